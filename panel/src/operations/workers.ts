import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, svg, type TemplateResult } from 'lit'
import { customElement } from 'lit/decorators.js'
import { fill, language } from '../language'
import { Live } from '../live'
import '../live-state'
import type { Worker } from './rows'
import { ask, Section } from './section'
import { took } from './words'

/** Each worker: how it is woken, how long its lease goes on, how full it is; have it take no more. */
@customElement('job-workers')
export class JobWorkers extends Section<Worker[]> {
  protected readonly everyMs = 10_000
  readonly #live = new Live(this)

  protected override begin(client: SupabaseClient): void {
    this.#live.start(client, {
      tables: [{ table: 'job_workers' }],
      refresh: () => this.polled.refresh(),
      change: () => this.polled.soon(),
    })
  }

  protected override refused(): void {
    this.#live.stop()
  }

  protected read(client: SupabaseClient): Promise<Worker[]> {
    return ask(client, 'read_workers')
  }

  protected body(workers: Worker[]): TemplateResult {
    return html`
      <div class="row tools"><job-live-state .state=${this.#live.state}></job-live-state></div>
      ${workers.length === 0 ? html`<p class="quiet">${this.t.operations.noWorkers}</p>` : nothing}
      <ul class="cards">
        ${workers.map((worker) => html`<li class="card">${this.#card(worker)}</li>`)}
      </ul>
    `
  }

  #card(worker: Worker): TemplateResult {
    const t = this.t.operations
    const load = fill(t.load, { running: language.number(worker.running), slots: language.number(worker.slots) })
    const share = Math.min(1, worker.running / worker.slots)
    const waking = worker.feed === 'polling' ? t.polling : worker.transport === 'broadcast' ? t.broadcast : t.realtime
    return html`
      <div class="head">
        <h3>${worker.name}</h3>
        ${!worker.alive
          ? html`<span class="tag failed">${t.lost}</span>`
          : worker.draining
            ? html`<span class="tag partial">${t.draining}</span>`
            : html`<span class="tag completed">${t.alive}</span>`}
      </div>
      <div>
        <div
          class="bar"
          role="meter"
          aria-label=${fill(t.loadOf, { name: worker.name })}
          aria-valuemin="0"
          aria-valuemax=${worker.slots}
          aria-valuenow=${Math.min(worker.running, worker.slots)}
          aria-valuetext=${load}
        >
          <svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">
            ${svg`<rect width=${share * 100} height="1" fill="currentColor" />`}
          </svg>
        </div>
        <p>${load}</p>
      </div>
      <dl class="facts">
        <dt>${t.wokenBy}</dt>
        <dd class=${worker.feed === 'polling' ? 'warning' : ''}>${waking}</dd>
        <dt>${t.lease}</dt>
        <dd class=${worker.alive ? '' : 'error'}>
          ${fill(worker.alive ? t.leaseLeft : t.leaseOver, { time: took(Math.abs(worker.lease_left_seconds)) })}
        </dd>
        <dt>${t.heard}</dt>
        <dd>${language.ago(new Date(this.polled.readAt - worker.heartbeat_age_seconds * 1000).toISOString(), this.polled.readAt)}</dd>
        <dt>${t.serves}</dt>
        <dd>${worker.queues.join(', ')}</dd>
        <dt>${t.kinds}</dt>
        <dd>${worker.kinds.join(', ') || '–'}</dd>
        <dt>${t.host}</dt>
        <dd>${worker.host}, ${fill(t.process, { pid: worker.pid })}</dd>
        <dt>${t.version}</dt>
        <dd>${worker.version}</dd>
        <dt>${t.started}</dt>
        <dd>${language.moment(worker.started_at)}</dd>
      </dl>
      ${worker.alive && !worker.draining
        ? html`<div class="row bottom">
            <button
              aria-label=${fill(t.drainNamed, { name: worker.name })}
              aria-disabled=${this.isBusy(worker.id)}
              @click=${() => void this.#drain(worker)}
            >
              ${t.drain}
            </button>
          </div>`
        : nothing}
    `
  }

  async #drain({ id, name }: Worker): Promise<void> {
    const t = this.t.operations
    if (!(await this.sure({ title: fill(t.drainTitle, { name }), text: t.drainText, yes: t.drain }))) return
    await this.act(id, fill(t.drained, { name }), () => ask(this.client, 'drain_worker', { worker: id }))
  }
}
