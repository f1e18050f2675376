import { css, html, nothing, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import { JobElement } from '../element'
import { fill } from '../language'
import { messageOf } from '../live'
import { look } from '../styles'
import type { Queue } from './rows'

/** The limits of a queue that the operators' API sets; empty (null) is no limit where the queue allows that. */
export const LIMITS = [
  'max_processing',
  'rate_limit',
  'rate_seconds',
  'max_processing_per_owner',
  'max_pending_per_owner',
  'timeout_seconds',
  'max_attempts',
] as const
export type Limit = (typeof LIMITS)[number]
export type Limits = { [name in Limit]: number | null }

/** These have always a value. */
const NEEDED: readonly Limit[] = ['rate_seconds', 'timeout_seconds', 'max_attempts']

/** Only what differs from what the queue has: what somebody else changed meanwhile is left alone. */
export function changedLimits(queue: Limits, wanted: Limits): Partial<Limits> {
  return Object.fromEntries(LIMITS.filter((name) => wanted[name] !== queue[name]).map((name) => [name, wanted[name]]))
}

/** A dialog with the limits of one queue. What the database thinks of them is said in it. */
@customElement('job-queue-limits')
export class JobQueueLimits extends JobElement {
  static override styles = [
    look,
    css`
      dialog {
        width: min(520px, calc(100vw - 32px));
      }
      h2 {
        overflow-wrap: anywhere;
      }
      .fields {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr));
        gap: 12px;
        margin: 12px 0 16px;
        align-items: end;
      }
      label {
        display: block;
      }
      input {
        display: block;
        width: 100%;
        margin-top: 4px;
      }
      .end {
        justify-content: flex-end;
        margin-top: 16px;
      }
      p {
        margin: 0;
      }
    `,
  ]

  @property({ attribute: false }) queue: Queue | null = null
  /** Saves; raises what the database says. */
  @property({ attribute: false }) save: (queue: Queue, wanted: Limits) => Promise<void> = () => Promise.resolve()
  @state() private problem: string | null = null
  @state() private busy = false
  @query('dialog') private dialog!: HTMLDialogElement
  @query('form') private form!: HTMLFormElement

  /** Show what the queue has now. */
  async open(): Promise<void> {
    this.problem = null
    await this.updateComplete
    this.form.reset()
    this.dialog.showModal()
  }

  override render(): TemplateResult {
    const t = this.t.operations
    const queue = this.queue
    return html`<dialog aria-labelledby="title">
      ${queue === null
        ? nothing
        : html`<form novalidate @submit=${(event: SubmitEvent) => void this.#submit(event, queue)}>
            <h2 id="title">${fill(t.limitsOf, { name: queue.queue })}</h2>
            <p class="quiet">${t.limitsHint}</p>
            <div class="fields">
              ${LIMITS.map(
                (name) => html`<label>
                  ${t.limit[name]}
                  <input
                    name=${name}
                    type="number"
                    inputmode="decimal"
                    step=${name.endsWith('_seconds') ? 'any' : '1'}
                    min="1"
                    ?required=${NEEDED.includes(name)}
                    placeholder=${NEEDED.includes(name) ? '' : t.noLimit}
                    value=${String(queue[name] ?? '')}
                  />
                </label>`,
              )}
            </div>
            ${this.problem === null ? nothing : html`<p class="error" role="alert">${this.problem}</p>`}
            <div class="row end">
              <button type="button" @click=${() => this.dialog.close()}>${t.no}</button>
              <button class="primary" ?disabled=${this.busy}>${t.save}</button>
            </div>
          </form>`}
    </dialog>`
  }

  async #submit(event: SubmitEvent, queue: Queue): Promise<void> {
    event.preventDefault()
    if (this.busy) return
    const inputs = [...this.form.querySelectorAll('input')]
    const wrong = inputs.find((input) => !input.validity.valid)
    if (wrong !== undefined) {
      this.problem = `${wrong.labels?.[0]?.textContent?.trim() ?? wrong.name}: ${wrong.validationMessage}`
      wrong.focus()
      return
    }
    const given = inputs.map((input) => [input.name, input.value === '' ? null : input.valueAsNumber])
    this.busy = true
    this.problem = null
    try {
      await this.save(queue, Object.fromEntries(given) as Limits)
      this.dialog.close()
    } catch (error) {
      this.problem = messageOf(error)
    } finally {
      this.busy = false
    }
  }
}
