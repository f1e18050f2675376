import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import { repeat } from 'lit/directives/repeat.js'
import { JobElement } from '../element'
import { fill, language } from '../language'
import type { LogLine } from '../rows'
import { partsLook } from './parts'
import { LOG_LINES } from './whole'

/** What a handler logged, live. It follows the end, unless somebody scrolled up to read. */
@customElement('job-logs')
export class JobLogs extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    css`
      .lines {
        max-height: 320px;
        margin: 0;
        padding: 8px 0;
        overflow: auto;
        border-radius: var(--radius);
        background: var(--ground);
        font: 12px/1.5 ui-monospace, monospace;
      }
      .line {
        display: grid;
        grid-template-columns: max-content 4.5em minmax(0, 1fr);
        gap: 0 10px;
        padding: 1px 12px;
        content-visibility: auto;
        contain-intrinsic-size: auto 18px;
      }
      .line > :last-child {
        overflow-wrap: anywhere;
        white-space: pre-wrap;
      }
      .warning {
        color: var(--partial);
      }
      .level.error {
        font-weight: 600;
      }
      .end {
        display: flex;
        justify-content: flex-end;
        margin-top: 6px;
      }
      @media (max-width: 480px) {
        .line {
          grid-template-columns: max-content 1fr;
          padding-bottom: 4px;
        }
        .line > :last-child {
          grid-column: 1 / -1;
        }
      }
    `,
  ]

  @property({ attribute: false }) lines: readonly LogLine[] = []
  /** Whether more may come. */
  @property({ type: Boolean }) over = false
  @state() private following = true
  @query('.lines') private box!: HTMLElement | null

  override render(): TemplateResult {
    const t = this.t.job
    if (this.lines.length === 0) return html`<p class="quiet">${this.over ? t.noLogsAtAll : t.noLogs}</p>`
    const clock = new Intl.DateTimeFormat(language.code, { timeStyle: 'medium' })
    return html`
      ${this.lines.length < LOG_LINES ? nothing : html`<p class="quiet">${fill(t.logsCapped, { count: language.number(LOG_LINES) })}</p>`}
      <div class="lines" role="log" tabindex="0" aria-label=${t.logs} @scroll=${this.#scrolled}>
        ${repeat(this.lines, (line) => line.id, (line) => this.#line(line, clock))}
      </div>
      ${this.following
        ? nothing
        : html`<div class="end"><button type="button" class="small" @click=${this.#toEnd}>↓ ${t.toTheEnd}</button></div>`}
    `
  }

  protected override updated(changed: PropertyValues<this>): void {
    if (changed.has('lines') && this.following && this.box !== null) this.box.scrollTop = this.box.scrollHeight
  }

  #line({ logged_at, level, message, fields }: LogLine, clock: Intl.DateTimeFormat): TemplateResult {
    const more = Object.entries(fields).map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
    return html`<div class="line" data-level=${level}>
      <time class="quiet" datetime=${logged_at} title=${language.moment(logged_at)}>${clock.format(new Date(logged_at))}</time>
      <span class="level ${level === 'debug' || level === 'info' ? 'quiet' : level}">${this.t.job.level[level]}</span>
      <span>${message}${more.length === 0 ? nothing : html` <span class="quiet">${more.join(' ')}</span>`}</span>
    </div>`
  }

  readonly #scrolled = (): void => {
    const { box } = this
    if (box !== null) this.following = box.scrollHeight - box.scrollTop - box.clientHeight < 24
  }

  readonly #toEnd = (): void => {
    this.following = true
    if (this.box === null) return
    this.box.scrollTop = this.box.scrollHeight
    this.box.focus({ preventScroll: true }) // the button goes away
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-logs': JobLogs
  }
}
