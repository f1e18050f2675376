import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import { JobElement } from '../element'
import { fill, language } from '../language'
import { hasEnded, type Kind } from '../rows'
import { partsLook, tell, toast } from './parts'
import type { JobHere } from './whole'
import { counted, priceOf, refusalOf } from './words'

type Price = Pick<Kind, 'credits_per_job' | 'credits_per_item'>

/**
 * What can be done with a job: cancel it while it is open, repeat it when it has ended. Emits `job-acted` when the job
 * has changed by it, and `job-open` {id} of the job that repeats it.
 */
@customElement('job-actions')
export class JobActions extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    css`
      dialog .row {
        justify-content: flex-end;
        margin-top: 8px;
      }
    `,
  ]

  @property({ attribute: false }) job: JobHere | null = null
  /** Whether another job repeats this one already. */
  @property({ type: Boolean }) repeated = false
  @state() private busy: 'cancel' | 'open' | 'all' | null = null
  @state() private failure: string | null = null
  @state() private price: Price | null = null
  @query('dialog') private dialog!: HTMLDialogElement | null
  #priced: string | null = null

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('job') || this.job === null) return
    if (changed.get('job')?.id !== this.job.id) {
      this.failure = null
      this.busy = null
    }
    if (hasEnded(this.job) && this.#priced !== this.job.kind) void this.#readPrice(this.job.kind)
  }

  protected override updated(): void {
    // ended while somebody was asked whether to cancel it
    if (this.job !== null && hasEnded(this.job) && this.busy === null) this.dialog?.close()
  }

  override render(): TemplateResult {
    const { job } = this
    if (job === null) return html``
    const buttons = hasEnded(job) ? this.#retryButtons(job) : this.#cancelButton(job)
    return html`
      <div class="row">${buttons}</div>
      ${this.failure === null ? nothing : html`<p class="error">${this.failure}</p>`}
      ${hasEnded(job) ? nothing : this.#question(job)}
    `
  }

  #cancelButton(job: JobHere): TemplateResult {
    const asked = job.cancel_requested_at !== null
    return html`<button type="button" class="danger" ?disabled=${asked || this.busy !== null} @click=${() => this.dialog?.showModal()}>
      ${asked ? this.t.job.cancelling : this.t.job.cancel}
    </button>`
  }

  #question(job: JobHere): TemplateResult {
    const t = this.t.job
    const running = job.status === 'processing'
    const credits = fill(running ? t.cancelRunningCredits : t.cancelWaitingCredits, { held: language.number(job.credits_held) })
    return html`<dialog aria-labelledby="question" aria-describedby="what">
      <h2 id="question">${t.cancelQuestion}</h2>
      <div id="what" class="stack">
        <p>${running ? t.cancelRunning : t.cancelWaiting}</p>
        <p>${job.credits_held === 0 ? t.cancelFree : credits}</p>
      </div>
      <div class="row">
        <button type="button" autofocus @click=${() => this.dialog?.close()}>${t.cancelNo}</button>
        <button type="button" class="danger" ?disabled=${this.busy !== null} @click=${this.#cancel}>
          ${this.busy === 'cancel' ? t.cancelling : t.cancelYes}
        </button>
      </div>
    </dialog>`
  }

  #retryButtons(job: JobHere): TemplateResult | typeof nothing {
    if (this.repeated) return nothing // its repetition is linked; that one can be repeated again
    const t = this.t.job
    const left = job.items_total - job.items_done
    const some = job.status !== 'completed'
    const label = job.items_total === 0 ? t.retry : counted(job.items_failed === left ? t.retryFailedItems : t.retryItems, left)
    const all = job.status === 'completed' || (job.items_total > 0 && job.items_done > 0)
    return html`
      ${some
        ? html`<button type="button" class="primary" ?disabled=${this.busy !== null} @click=${() => this.#retry(false)}>
            ${this.#withPrice(label, left)}
          </button>`
        : nothing}
      ${all
        ? html`<button type="button" ?disabled=${this.busy !== null} @click=${() => this.#retry(true)}>
            ${this.#withPrice(some ? t.runAllAgain : t.runAgain, job.items_total)}
          </button>`
        : nothing}
    `
  }

  #withPrice(action: string, items: number): string {
    const count = this.price === null || this.job?.owner_id === null ? 0 : priceOf(this.price, items)
    return count === 0 ? action : fill(this.t.job.reserves, { action, count: language.number(count) })
  }

  async #readPrice(kind: string): Promise<void> {
    this.#priced = kind
    const { data } = await this.client.from('job_kinds').select('credits_per_job,credits_per_item').eq('kind', kind).maybeSingle()
    if (this.#priced === kind) this.price = data as Price | null // unknown, unless users may create this kind
  }

  readonly #cancel = async (): Promise<void> => {
    const { job } = this
    if (job === null || this.busy !== null) return
    this.busy = 'cancel'
    this.failure = null
    try {
      const { data, error } = await this.client.rpc('cancel_job', { job_id: job.id })
      if (error) throw error
      const { status } = data as JobHere
      const t = this.t.job
      toast(this, status === 'cancelled' ? t.cancelledNow : status === 'processing' ? t.cancelAsked : t.cancelTooLate, 'info')
      this.dispatchEvent(new Event('job-acted'))
    } catch (error) {
      this.#fail(error)
    } finally {
      this.busy = null
      this.dialog?.close()
    }
  }

  async #retry(all: boolean): Promise<void> {
    const { job } = this
    if (job === null || this.busy !== null) return
    this.busy = all ? 'all' : 'open'
    this.failure = null
    try {
      const { data, error } = await this.client.rpc('retry_job', all ? { job_id: job.id, all_items: true } : { job_id: job.id })
      if (error) throw error
      toast(this, this.t.job.retried, 'info')
      this.dispatchEvent(new Event('job-acted'))
      tell(this, 'job-open', { id: (data as JobHere).id })
    } catch (error) {
      this.#fail(error)
    } finally {
      this.busy = null
    }
  }

  #fail(error: unknown): void {
    this.failure = refusalOf(error)
    toast(this, this.failure, 'error')
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-actions': JobActions
  }
}
