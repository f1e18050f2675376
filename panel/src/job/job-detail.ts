import type { SupabaseClient } from '@supabase/supabase-js'
import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { Clock } from '../clock'
import { connection } from '../connection'
import { JobElement } from '../element'
import { fill, language } from '../language'
import { Live, type Change, type LiveOptions } from '../live'
import '../live-state'
import { hasEnded } from '../rows'
import './job-actions'
import './job-items'
import './job-logs'
import { copy } from './job-result'
import './job-timeline'
import { jobLink, partsLook, progressBar, section, shareOf, statusTag } from './parts'
import { catchUp, merge, readForeign, readWhole, type JobHere, type Whole } from './whole'
import { tellingLook, whatItCost, whatWentWrong } from './telling'
import { counted } from './words'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
/** Events may come in hundreds a second: so long they are gathered before the page is drawn anew. */
const DRAW_MS = 40

/** Everything about one job, live. Emits `job-open` {id} for jobs it links to, and `job-toast`. */
@customElement('job-detail')
export class JobDetail extends JobElement {
  static override styles = [
    JobElement.styles,
    partsLook,
    tellingLook,
    css`
      article {
        display: grid;
        gap: 16px;
        container-type: inline-size;
      }
      header h2 {
        margin: 0;
        font-size: 20px;
        overflow-wrap: anywhere;
      }
      .columns {
        display: grid;
        gap: 20px;
      }
      .columns > div {
        display: grid;
        gap: 20px;
        align-content: start;
        min-width: 0;
      }
      @container (min-width: 760px) {
        .columns {
          grid-template-columns: minmax(0, 1fr) 280px;
          gap: 28px;
        }
      }
      job-live-state {
        margin-inline-start: auto;
      }
      ul {
        margin: 0;
        padding-inline-start: 18px;
      }
      summary {
        min-height: 24px;
        cursor: pointer;
      }
    `,
  ]

  @property({ attribute: 'job-id' }) jobId = ''
  @state() private whole: Whole | null = null
  @state() private missing = false
  readonly #live = new Live(this)
  /** What is being watched: a user and a job. */
  #watched: string | null = null

  constructor() {
    super()
    new Clock(this)
  }

  protected override connected(): void {
    this.#watched = null // another client or user: begin anew
    this.requestUpdate()
  }

  protected override async scheduleUpdate(): Promise<void> {
    if (this.hasUpdated) await new Promise((resolve) => setTimeout(resolve, DRAW_MS))
    await super.scheduleUpdate()
  }

  protected override willUpdate(_changed: PropertyValues<this>): void {
    const wanted = `${connection.userId} ${this.jobId}`
    if (connection.client === null || this.#watched === wanted) return
    this.#watched = wanted
    this.#watch(connection.client, this.jobId)
  }

  #watch(client: SupabaseClient, id: string): void {
    this.#live.stop()
    this.whole = null
    this.missing = !UUID.test(id)
    if (connection.userId === null || this.missing) return
    const options: LiveOptions = {
      tables: [
        { table: 'jobs', filter: `id=eq.${id}` },
        { table: 'job_items', filter: `job_id=eq.${id}` },
        { table: 'job_logs', filter: `job_id=eq.${id}` },
      ],
      refresh: async () => {
        let read = await readWhole(client, id, this.whole)
        // of somebody else's job no event comes: operators see it by reading
        const foreign = read === null && connection.isOperator
        if (foreign) read = await readForeign(client, id)
        if (id !== this.jobId || client !== connection.client) return
        options.eventsSuffice = !foreign || (read !== null && hasEnded(read.job))
        this.whole = read === null ? null : catchUp(read, this.whole)
        this.missing = read === null
      },
      change: (change) => this.#heard(change),
    }
    this.#live.start(client, options)
  }

  #heard(change: Change): void {
    const before = this.whole
    if (before === null) return // being read
    this.whole = merge(before, change)
    const { job } = this.whole
    // what events do not tell: entries, results, children, who repeats it
    if (job.status !== before.job.status || job.children_open !== before.job.children_open) void this.#live.refresh()
  }

  override render(): TemplateResult {
    const t = this.t.job
    if (connection.userId === null) return html`<p class="quiet">${t.signIn}</p>`
    if (this.missing) return html`<div role="status"><h2>${t.notFound}</h2><p class="quiet">${t.notFoundHint}</p></div>`
    if (this.whole === null) return this.#waiting()
    const { job } = this.whole
    return html`<article class="card" aria-labelledby="kind">
      ${this.#header(job)} ${this.#progress(this.whole)} ${whatWentWrong(job)}
      <job-actions .job=${job} ?repeated=${this.whole.repeatedBy !== null} @job-acted=${() => void this.#live.refresh()}></job-actions>
      <div class="columns">
        <div>${this.#made(this.whole)}</div>
        <div>${this.#beside(this.whole)}</div>
      </div>
    </article>`
  }

  #waiting(): TemplateResult {
    const { failure } = this.#live
    if (failure === null) return html`<p class="quiet" role="status">${this.t.loading}</p>`
    return html`<div class="stack" role="alert">
      <p class="error">${fill(this.t.job.failedToRead, { reason: failure })}</p>
      <div><button type="button" @click=${() => this.#live.refresh()}>${this.t.retryNow}</button></div>
    </div>`
  }

  #header(job: JobHere): TemplateResult {
    const t = this.t.job
    return html`<header class="stack">
      <div class="row">
        <h2 id="kind">${job.kind}</h2>
        ${statusTag(job.status)}
        <job-live-state .state=${this.#live.state}></job-live-state>
      </div>
      <div class="row quiet">
        <code>${job.id}</code>
        <button type="button" class="small" aria-label=${t.copyId} title=${t.copyId} @click=${() => copy(this, job.id)}>
          ${t.copyResult}
        </button>
      </div>
    </header>`
  }

  #progress({ job, items }: Whole): TemplateResult {
    const t = this.t.job
    const share = shareOf(job, items)
    const facts = [
      job.progress_message,
      job.items_total > 0 ? fill(t.itemsDone, { done: language.number(job.items_done), total: language.number(job.items_total) }) : null,
      job.items_failed > 0 ? fill(t.itemsFailed, { failed: language.number(job.items_failed) }) : null,
      fill(job.attempt === 0 ? t.notYetTried : t.attempt, { attempt: job.attempt, most: job.max_attempts }),
    ]
    return html`<div class="stack">
      ${progressBar(job, share)}
      <p>
        <strong>${language.percent(share)}</strong>
        <span class="quiet">${facts.filter((fact) => fact !== null && fact !== '').join(' · ')}</span>
      </p>
      <p class="sr" role="status">${this.t.status[job.status]}</p>
      ${this.#waitsFor(job)}
    </div>`
  }

  #waitsFor(job: JobHere): TemplateResult | typeof nothing {
    const t = this.t.job
    if (!hasEnded(job) && job.cancel_requested_at !== null) return html`<p>${t.cancelRequested}</p>`
    if (job.status !== 'pending') return nothing
    if (job.run_at >= '9999') return html`<p>${t.waitsForChildren}</p>`
    if (Date.parse(job.run_at) <= Date.now()) return nothing
    return html`<p title=${language.moment(job.run_at)}>
      ${fill(job.failures > 0 ? t.nextTry : t.startsAt, { when: language.ago(job.run_at) })}
    </p>`
  }

  #made({ job, items, logs }: Whole): TemplateResult {
    const t = this.t.job
    const over = hasEnded(job)
    const result = over ? html`<job-result .value=${job.result}></job-result>` : html`<p class="quiet">${t.noResultYet}</p>`
    return html`
      ${job.items_total === 0 ? nothing : section(t.items, html`<job-items .job=${job} .items=${items}></job-items>`)}
      ${section(t.result, result)} ${section(t.logs, html`<job-logs .lines=${logs} ?over=${over}></job-logs>`)}
      <details>
        <summary>${t.payload}</summary>
        <job-result .value=${job.payload} .label=${t.payload}></job-result>
      </details>
    `
  }

  #beside(whole: Whole): TemplateResult {
    const t = this.t.job
    const { job } = whole
    return html`${section(t.credits, whatItCost(job))} ${section(t.timeline, html`<job-timeline .whole=${whole}></job-timeline>`)}
    ${this.#family(whole)}
    <div class="stack quiet">
      <p>${t.queue}: ${job.queue}</p>
      ${job.priority === 0 ? nothing : html`<p>${fill(t.priority, { priority: job.priority })}</p>`}
      ${job.tags.length === 0 ? nothing : html`<p>${t.tags}: ${job.tags.join(', ')}</p>`}
    </div>`
  }

  #family({ job, children, repeatedBy }: Whole): TemplateResult | typeof nothing {
    const t = this.t.job
    if (job.retry_of === null && repeatedBy === null && job.parent_id === null && children.length === 0) return nothing
    return html`<div class="stack">
      ${job.retry_of === null ? nothing : html`<p>${jobLink(this, job.retry_of, t.retryOf)}</p>`}
      ${repeatedBy === null ? nothing : html`<p>${jobLink(this, repeatedBy, t.repeatedBy)}</p>`}
      ${job.parent_id === null ? nothing : html`<p>${jobLink(this, job.parent_id, t.parent)}</p>`}
      ${children.length === 0
        ? nothing
        : html`<p>${counted(t.children, job.children_total)}</p>
            <ul>${children.map((child) => html`<li>${jobLink(this, child.id, child.kind)} ${statusTag(child.status)}</li>`)}</ul>`}
    </div>`
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-detail': JobDetail
  }
}
