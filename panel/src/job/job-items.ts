import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { repeat } from 'lit/directives/repeat.js'
import { JobElement } from '../element'
import { fill, language } from '../language'
import type { Json } from '../rows'
import './job-result'
import { partsLook, shownState, statusSign } from './parts'
import type { ItemHere, JobHere } from './whole'
import { counted, itemNames, meaningOf, refusalOf } from './words'

/** Of more items than this only some are drawn, until more are asked for. */
const DRAWN = 200
/** Items drawn with one press, so that no page is asked to draw 10,000 at once. */
const MORE = 1_000

/** A tag for each item of a job, with its own state; pressed, it tells the rest, such as its error or its result. */
@customElement('job-items')
export class JobItems extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    css`
      ul {
        display: flex;
        flex-wrap: wrap;
        gap: 6px;
        margin: 0;
        padding: 0;
        list-style: none;
      }
      .tag {
        min-height: 28px;
        max-width: 100%;
        padding: 1px 10px;
        background: none;
        white-space: normal;
        overflow-wrap: anywhere;
        text-align: start;
      }
      .tag[aria-expanded='true'] {
        outline: 2px solid currentcolor;
        outline-offset: 1px;
      }
      .name {
        color: var(--ink);
      }
      .open[hidden] {
        display: none;
      }
      .open {
        margin-top: 10px;
        padding: 10px 12px;
        border: 1px solid var(--line);
        border-radius: var(--radius);
      }
    `,
  ]

  @property({ attribute: false }) job: JobHere | null = null
  @property({ attribute: false }) items: readonly ItemHere[] = []
  @state() private open: string | null = null
  @state() private drawn = DRAWN
  /** The result of the open item; undefined: not read. */
  @state() private result: Json | undefined
  @state() private failure: string | null = null
  #read: ItemHere | null = null

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('job') && changed.get('job')?.id !== this.job?.id) {
      this.open = null
      this.drawn = DRAWN
    }
    const item = this.#opened
    if (item === undefined) this.#forget()
    else if (this.#read?.key !== item.key || this.#read.status !== item.status) void this.#readResult(item)
  }

  override render(): TemplateResult {
    const { job } = this
    if (job === null) return html``
    const name = itemNames(this.items.map((item) => item.key))
    const item = this.#opened
    return html`
      <ul role="list" aria-label=${this.t.job.items}>
        ${repeat(
          drawnOf(this.items, this.drawn),
          (one) => one.key,
          (one) => html`<li>${this.#tag(one, job, name(one.key))}</li>`,
        )}
        ${this.drawn < this.items.length
          ? html`<li>
              <button type="button" class="small" @click=${this.#more}>
                ${fill(this.t.job.showMoreItems, {
                  more: language.number(Math.min(MORE, this.items.length - this.drawn)),
                  count: language.number(this.items.length),
                })}
              </button>
            </li>`
          : nothing}
      </ul>
      <div id="open" ?hidden=${item === undefined} class="open stack">${item ? this.#told(item, job, name(item.key)) : nothing}</div>
    `
  }

  #tag(item: ItemHere, job: JobHere, name: string): TemplateResult {
    const shown = shownState(item, job)
    const open = this.open === item.key
    return html`<button
      type="button"
      class="tag ${shown}"
      data-key=${item.key}
      data-status=${item.status}
      aria-expanded=${open ? 'true' : 'false'}
      aria-controls="open"
      @click=${() => (this.open = open ? null : item.key)}
    >
      ${statusSign(shown)}<span class="name">${name}</span>
      ${shown === 'processing' ? html`<span>${language.percent(item.progress)}</span>` : nothing}
      <span class="sr">${this.t.status[shown]}</span>
    </button>`
  }

  #told(item: ItemHere, job: JobHere, name: string): TemplateResult {
    const t = this.t.job
    const meaning = meaningOf(item.error_code)
    const facts = [
      this.t.status[shownState(item, job)],
      name === item.key ? null : item.key,
      item.attempts > 0 ? counted(t.itemAttempts, item.attempts) : null,
      item.credits > 0 ? counted(t.itemCredits, item.credits) : null,
    ]
    return html`
      <div class="row"><strong>${name}</strong><span class="quiet">${facts.filter((fact) => fact !== null).join(' · ')}</span></div>
      ${item.error_code === null
        ? nothing
        : html`<div>
            <p class=${item.status === 'failed' ? 'error' : ''}>${meaning ?? item.error_message} <code>${item.error_code}</code></p>
            ${meaning === null || !item.error_message
              ? nothing
              : html`<p class="quiet">${fill(t.inItsWords, { message: item.error_message })}</p>`}
            ${item.status === 'pending' ? html`<p class="quiet">${t.triedAgain}</p>` : nothing}
          </div>`}
      ${this.failure === null ? nothing : html`<p class="error" role="alert">${this.failure}</p>`}
      ${item.status !== 'completed' || this.result === undefined || this.result === null
        ? nothing
        : html`<job-result .value=${this.result} .label=${fill(t.itemResult, { item: name })}></job-result>`}
    `
  }

  get #opened(): ItemHere | undefined {
    return this.open === null ? undefined : this.items.find((item) => item.key === this.open)
  }

  readonly #more = (): void => {
    this.drawn += MORE
  }

  #forget(): void {
    this.#read = null
    this.result = undefined
    this.failure = null
  }

  async #readResult(item: ItemHere): Promise<void> {
    this.#forget()
    this.#read = item
    if (item.status !== 'completed') return
    const known = (item as ItemHere & { result?: Json }).result
    if (known !== undefined && known !== null) {
      this.result = known
      return
    }
    const { data, error } = await this.client
      .from('job_items')
      .select('result')
      .eq('job_id', item.job_id)
      .eq('key', item.key)
      .maybeSingle()
    if (this.#read !== item) return // another one was opened meanwhile
    if (error) this.failure = refusalOf(error)
    else this.result = (data as { result: Json } | null)?.result ?? null
  }
}

/** The items to draw: where there are too many, those that failed come first, because they are what one looks for. */
export function drawnOf(items: readonly ItemHere[], most: number): readonly ItemHere[] {
  if (items.length <= most) return items
  const failed = items.filter((item) => item.status === 'failed')
  return [...failed, ...items.filter((item) => item.status !== 'failed').slice(0, Math.max(0, most - failed.length))].slice(0, most)
}

declare global {
  interface HTMLElementTagNameMap {
    'job-items': JobItems
  }
}
