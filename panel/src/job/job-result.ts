import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { JobElement } from '../element'
import { fill, language } from '../language'
import type { Json } from '../rows'
import { partsLook, toast } from './parts'
import { shownAs } from './shown'

/** Of a longer text this much is shown, until all is asked for. */
const SHOWN = 10_000

/** What a job or an item came to, as `shown.ts` says. All of it is text: none becomes markup. */
@customElement('job-result')
export class JobResult extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    css`
      .box {
        position: relative;
        padding: 10px 12px;
        border-radius: var(--radius);
        background: var(--ground);
      }
      pre {
        max-height: 420px;
      }
      .prose {
        max-height: 420px;
        overflow: auto;
        white-space: pre-wrap;
        overflow-wrap: anywhere;
      }
      img {
        display: block;
        max-width: 100%;
        max-height: 420px;
        border-radius: var(--radius);
      }
      .copy {
        justify-content: flex-end;
        margin-top: 6px;
      }
      a {
        overflow-wrap: anywhere;
      }
    `,
  ]

  @property({ attribute: false }) value: Json | undefined
  /** What it is the result of, for screen readers. */
  @property() label = ''
  @state() private whole = false

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('value')) this.whole = false
  }

  override render(): TemplateResult {
    const t = this.t.job
    const shown = shownAs(this.value)
    switch (shown.as) {
      case 'nothing':
        return html`<p class="quiet">${t.noResult}</p>`
      case 'link':
        return html`<a href=${shown.url} target="_blank" rel="noopener noreferrer">${shown.name}</a>`
      case 'image':
        return html`<a href=${shown.url} target="_blank" rel="noopener noreferrer" aria-label=${fill(t.openLink, { link: shown.name })}>
          <img src=${shown.url} alt=${shown.name === shown.url ? t.imageAlt : shown.name} loading="lazy" referrerpolicy="no-referrer" />
        </a>`
      case 'text':
        return this.#box(shown.text, false)
      case 'json':
        return this.#box(shown.text, true)
    }
  }

  #box(text: string, code: boolean): TemplateResult {
    const t = this.t.job
    const part = this.whole ? text : text.slice(0, SHOWN)
    const label = this.label || t.result
    // it may scroll: then the keyboard must reach it
    return html`<div class="box">
      ${code
        ? html`<pre tabindex="0" role="region" aria-label=${label}>${part}</pre>`
        : html`<div class="prose" tabindex="0" role="region" aria-label=${label}>${part}</div>`}
      <div class="row copy">
        ${part.length < text.length
          ? html`<button type="button" class="small" @click=${() => (this.whole = true)}>
              ${fill(t.showWhole, { count: language.number(text.length) })}
            </button>`
          : nothing}
        <button type="button" class="small" @click=${() => copy(this, text)}>${t.copyResult}</button>
      </div>
    </div>`
  }
}

/** Copy a text and say whether that worked. */
export async function copy(host: JobElement, text: string): Promise<void> {
  const t = language.strings.job
  try {
    await navigator.clipboard.writeText(text)
    toast(host, t.copied, 'info')
  } catch {
    toast(host, t.notCopied, 'error') // not a secure page, or refused
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-result': JobResult
  }
}
