import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type TemplateResult } from 'lit'
import { customElement } from 'lit/decorators.js'
import { fill, language } from '../language'
import type { JobStatus } from '../rows'
import type { Schedule } from './rows'
import { ask, Section } from './section'

const COLOUR = { ok: 'completed', paused: 'partial', problem: 'failed', overdue: 'failed', new: 'pending' } as const

/** What runs when: each schedule with its last and next time; pause, resume, run now. */
@customElement('job-schedules')
export class JobSchedules extends Section<Schedule[]> {
  protected readonly everyMs = 10_000

  protected read(client: SupabaseClient): Promise<Schedule[]> {
    return ask(client, 'read_schedules')
  }

  protected body(schedules: Schedule[]): TemplateResult {
    return html`
      ${schedules.length === 0 ? html`<p class="quiet">${this.t.operations.noSchedules}</p>` : nothing}
      <ul class="cards">
        ${schedules.map((schedule) => html`<li class="card">${this.#card(schedule)}</li>`)}
      </ul>
    `
  }

  #card(schedule: Schedule): TemplateResult {
    const t = this.t.operations
    const name = { name: schedule.schedule }
    const paused = schedule.state === 'paused'
    const busy = this.isBusy(schedule.schedule)
    return html`
      <div class="head">
        <h3>${schedule.schedule}</h3>
        <span class="tag ${COLOUR[schedule.state]}">${t.scheduleState[schedule.state]}</span>
      </div>
      ${schedule.why === null || paused ? nothing : html`<p class="warning">${schedule.why}</p>`}
      <dl class="facts">
        <dt>${t.plan}</dt>
        <dd><code>${schedule.cron}</code> (${schedule.timezone})</dd>
        <dt>${t.kind}</dt>
        <dd>${schedule.kind}</dd>
        <dt>${t.next}</dt>
        <dd>${paused || schedule.next_run_at === null ? '–' : this.#when(schedule.next_run_at)}</dd>
        <dt>${t.last}</dt>
        <dd>${schedule.last_run_at === null ? t.never : this.#when(schedule.last_run_at)}</dd>
        <dt>${t.lastJob}</dt>
        <dd>${this.#lastJob(schedule)}</dd>
      </dl>
      <div class="row bottom">
        <button
          aria-label=${fill(paused ? t.resumeNamed : t.pauseNamed, name)}
          aria-disabled=${busy}
          @click=${() => void this.#switch(schedule.schedule, paused)}
        >
          ${paused ? t.resume : t.pause}
        </button>
        <button
          aria-label=${fill(t.runNowNamed, name)}
          aria-disabled=${busy}
          @click=${() => void this.#runNow(schedule.schedule)}
        >
          ${t.runNow}
        </button>
      </div>
    `
  }

  #when(moment: string): TemplateResult {
    return html`<time datetime=${moment} title=${language.moment(moment)}>${language.ago(moment)}</time>`
  }

  #lastJob({ last_job_id: id, last_status: status }: Schedule): TemplateResult | string {
    if (id === null) return '–'
    const said = status === null ? this.t.operations.pruned : this.t.status[status as JobStatus]
    return status === null ? said : html`<a href="#/jobs/${id}" data-status=${status}>${said}</a>`
  }

  async #switch(name: string, paused: boolean): Promise<void> {
    const t = this.t.operations
    const done = fill(paused ? t.resumedNamed : t.pausedNamed, { name })
    await this.act(name, done, () => ask(this.client, paused ? 'resume_schedule' : 'pause_schedule', { name }))
  }

  async #runNow(name: string): Promise<void> {
    const t = this.t.operations
    const question = { title: fill(t.runNowTitle, { name }), text: t.runNowText, yes: t.runNow }
    if (!(await this.sure(question))) return
    await this.act(name, fill(t.ranNow, { name }), () => ask(this.client, 'run_schedule', { name }))
  }
}
