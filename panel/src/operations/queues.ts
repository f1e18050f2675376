import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type TemplateResult } from 'lit'
import { customElement, query, state } from 'lit/decorators.js'
import { fill, language } from '../language'
import { Live } from '../live'
import './limits'
import { changedLimits, type JobQueueLimits, type Limits } from './limits'
import type { Queue } from './rows'
import { ask, Section } from './section'
import '../live-state'
import { roughly, took } from './words'

/** Each queue: how much waits and runs, whether it keeps up, its limits; pause, resume, change limits. */
@customElement('job-queues')
export class JobQueues extends Section<Queue[]> {
  protected readonly everyMs = 10_000
  @state() private edited: Queue | null = null
  @query('job-queue-limits') private limits!: JobQueueLimits
  readonly #live = new Live(this)

  protected override begin(client: SupabaseClient): void {
    this.#live.start(client, {
      tables: [{ table: 'job_queues' }],
      refresh: () => this.polled.refresh(),
      change: () => this.polled.soon(),
    })
  }

  protected override refused(): void {
    this.#live.stop()
  }

  protected read(client: SupabaseClient): Promise<Queue[]> {
    return ask(client, 'read_queues')
  }

  protected body(queues: Queue[]): TemplateResult {
    const t = this.t.operations
    return html`
      <div class="row tools"><job-live-state .state=${this.#live.state}></job-live-state></div>
      ${queues.length === 0 ? html`<p class="quiet">${t.noQueues}</p>` : nothing}
      <ul class="cards">
        ${queues.map((queue) => html`<li class="card">${this.#card(queue)}</li>`)}
      </ul>
      <job-queue-limits .queue=${this.edited} .save=${this.#save}></job-queue-limits>
    `
  }

  #card(queue: Queue): TemplateResult {
    const t = this.t.operations
    const number = (value: number): string => language.number(value)
    const running =
      queue.max_processing === null
        ? number(queue.processing)
        : fill(t.ofMost, { count: number(queue.processing), most: number(queue.max_processing) })
    return html`
      <div class="head">
        <h3>${queue.queue}</h3>
        ${queue.paused === null
          ? html`<span class="tag failed">${t.noRow}</span>`
          : queue.paused
            ? html`<span class="tag partial">${t.paused}</span>`
            : html`<span class="tag completed">${t.active}</span>`}
      </div>
      <dl class="figures">
        <div><dt>${t.due}</dt><dd>${number(queue.due)}</dd></div>
        <div><dt>${t.running}</dt><dd>${running}</dd></div>
        <div><dt>${t.later}</dt><dd>${number(queue.scheduled)}</dd></div>
        <div><dt>${t.forChildren}</dt><dd>${number(queue.waiting)}</dd></div>
      </dl>
      <p>
        ${queue.oldest_due_seconds === null || queue.due === 0
          ? html`<span class="quiet">${t.nothingDue}</span>`
          : fill(t.oldest, { time: roughly(queue.oldest_due_seconds) })}
      </p>
      ${queue.due > 0 && queue.live_workers === 0 ? html`<p class="warning">${t.unserved}</p>` : nothing}
      <dl class="facts">
        <dt>${t.lastHour}</dt>
        <dd>${fill(t.doneAndFailed, { done: number(queue.done_last_hour), failed: number(queue.failed_last_hour) })}</dd>
        <dt>${t.runTime}</dt>
        <dd>${fill(t.percentiles, { p50: took(queue.run_seconds_p50), p95: took(queue.run_seconds_p95) })}</dd>
        <dt>${t.workers}</dt>
        <dd>${number(queue.live_workers)}</dd>
        <dt>${t.limits}</dt>
        <dd>${this.#limitsInWords(queue)}</dd>
      </dl>
      ${queue.paused === null ? nothing : this.#buttons(queue, queue.paused)}
    `
  }

  #buttons(queue: Queue, paused: boolean): TemplateResult {
    const t = this.t.operations
    const name = { name: queue.queue }
    return html`<div class="row bottom">
      <button
        aria-label=${fill(paused ? t.resumeNamed : t.pauseNamed, name)}
        aria-disabled=${this.isBusy(queue.queue)}
        @click=${() => void (paused ? this.#resume(queue.queue) : this.#pause(queue.queue))}
      >
        ${paused ? t.resume : t.pause}
      </button>
      <button aria-label=${fill(t.limitsNamed, name)} @click=${() => void this.#edit(queue)}>${t.limits} …</button>
    </div>`
  }

  #limitsInWords(queue: Queue): string {
    const t = this.t.operations
    const number = (value: number): string => language.number(value)
    const said = [
      queue.max_processing === null ? '' : fill(t.atOnce, { count: number(queue.max_processing) }),
      queue.rate_limit === null || queue.rate_seconds === null
        ? ''
        : fill(t.perPeriod, { count: number(queue.rate_limit), time: took(queue.rate_seconds) }),
      queue.max_processing_per_owner === null ? '' : fill(t.perOwner, { count: number(queue.max_processing_per_owner) }),
      queue.max_pending_per_owner === null ? '' : fill(t.waitingPerOwner, { count: number(queue.max_pending_per_owner) }),
      queue.timeout_seconds === null ? '' : fill(t.attemptTime, { time: took(queue.timeout_seconds) }),
      queue.max_attempts === null ? '' : fill(t.attempts, { count: number(queue.max_attempts) }),
    ]
    return said.filter((part) => part !== '').join(' · ') || '–'
  }

  async #pause(name: string): Promise<void> {
    const t = this.t.operations
    const question = { title: fill(t.pauseTitle, { name }), text: t.pauseText, yes: t.pause }
    if (!(await this.sure(question))) return
    await this.act(name, fill(t.pausedNamed, { name }), () => ask(this.client, 'pause_queue', { name }))
  }

  async #resume(name: string): Promise<void> {
    const done = fill(this.t.operations.resumedNamed, { name })
    await this.act(name, done, () => ask(this.client, 'resume_queue', { name }))
  }

  async #edit(queue: Queue): Promise<void> {
    this.edited = queue
    await this.updateComplete
    await this.limits.open()
  }

  /** Raises what the database says; the dialog shows it. */
  readonly #save = async (queue: Queue, wanted: Limits): Promise<void> => {
    const limits = changedLimits(queue, wanted)
    if (Object.keys(limits).length > 0) await ask(this.client, 'set_queue_limits', { name: queue.queue, limits })
    await this.act(queue.queue, fill(this.t.operations.limitsSaved, { name: queue.queue }), () => Promise.resolve())
  }
}
