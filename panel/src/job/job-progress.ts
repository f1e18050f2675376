import type { SupabaseClient } from '@supabase/supabase-js'
import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { connection } from '../connection'
import { JobElement } from '../element'
import { fill } from '../language'
import { Live } from '../live'
import { hasEnded, type Job } from '../rows'
import { partsLook, progressBar, shareOf, statusTag, tell } from './parts'
import { isOlder, told } from './whole'

type Progress = Pick<Job, 'id' | 'status' | 'progress' | 'progress_message' | 'items_total' | 'items_done' | 'updated_at'>
const COLUMNS = 'id,status,progress,progress_message,items_total,items_done,updated_at'

/** How far a job is, live and small, for use inside other applications. Emits `job-ended` {id, status}. */
@customElement('job-progress')
export class JobProgress extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    css`
      .row {
        justify-content: space-between;
        margin-bottom: 4px;
      }
      .row > :first-child {
        min-width: 0;
        overflow-wrap: anywhere;
      }
    `,
  ]

  @property({ attribute: 'job-id' }) jobId = ''
  @state() private job: Progress | null = null
  @state() private missing = false
  readonly #live = new Live(this)
  #watched: string | null = null

  protected override connected(): void {
    this.#watched = null
    this.requestUpdate()
  }

  protected override willUpdate(_changed: PropertyValues<this>): void {
    const wanted = `${connection.userId} ${this.jobId}`
    if (connection.client === null || this.#watched === wanted) return
    this.#watched = wanted
    this.#watch(connection.client, this.jobId)
  }

  #watch(client: SupabaseClient, id: string): void {
    this.#live.stop()
    this.job = null
    this.missing = false
    if (connection.userId === null || id === '') return
    this.#live.start(client, {
      tables: [{ table: 'jobs', filter: `id=eq.${id}` }],
      refresh: async () => {
        const { data, error } = await client.from('jobs').select(COLUMNS).eq('id', id).maybeSingle()
        if (error) throw error
        if (id !== this.jobId) return
        this.missing = data === null
        if (data !== null) this.#show(data)
      },
      change: ({ eventType, new: row }) => {
        if (eventType !== 'DELETE' && this.job !== null) this.#show({ ...this.job, ...told(row) })
      },
    })
  }

  #show(job: Progress): void {
    const before = this.job
    if (before !== null && (hasEnded(before) || isOlder(job, before))) return
    this.job = job
    if (hasEnded(job)) tell(this, 'job-ended', { id: job.id, status: job.status })
  }

  override render(): TemplateResult | typeof nothing {
    const { job } = this
    const t = this.t.job
    if (this.missing) return html`<p class="quiet">${t.notFound}</p>`
    if (job === null) {
      const { failure } = this.#live
      return failure === null ? nothing : html`<p class="error">${fill(t.failedToRead, { reason: failure })}</p>`
    }
    const step = job.progress_message ?? (job.items_total > 0 ? fill(t.itemsDone, { done: job.items_done, total: job.items_total }) : '')
    return html`<div class="row"><span>${step}</span><span role="status">${statusTag(job.status)}</span></div>
      ${progressBar(job, shareOf(job, []))}`
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-progress': JobProgress
  }
}
