import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type TemplateResult } from 'lit'
import { customElement, state } from 'lit/decorators.js'
import { language } from '../language'
import './plot'
import type { Figure, Line } from './plot'
import { rangeChoice } from './range'
import type { Throughput } from './rows'
import { ask, Section } from './section'
import { largest, seconds, steps, sums, throughputStep, type Hours } from './series'
import { took } from './words'

const ENDS = [
  ['completed', []],
  ['partial', [8, 4]],
  ['failed', [2, 3]],
] as const

/** How many jobs end, how long they wait and how long they run, over time. */
@customElement('job-throughput')
export class JobThroughput extends Section<{ hours: Hours; rows: Throughput[] }> {
  protected readonly everyMs = 30_000
  @state() private hours: Hours = 24
  @state() private queue = ''

  protected async read(client: SupabaseClient): Promise<{ hours: Hours; rows: Throughput[] }> {
    const hours = this.hours
    return { hours, rows: await ask<Throughput[]>(client, 'read_throughput', { hours }) }
  }

  protected body({ hours, rows }: { hours: Hours; rows: Throughput[] }): TemplateResult {
    const t = this.t.operations
    const queues = [...new Set(rows.map((row) => row.queue))].sort()
    const shown = this.queue === '' ? rows : rows.filter((row) => row.queue === this.queue)
    const now = this.polled.readAt / 1000
    const times = steps(shown.map((row) => seconds(row.starts_at)), hours * 3600, throughputStep(hours), now)
    return html`
      <div class="row tools">
        <label>
          ${t.queue}
          <select @change=${(event: Event) => (this.queue = (event.target as HTMLSelectElement).value)}>
            <option value="">${t.allQueues}</option>
            ${queues.map((name) => html`<option value=${name} ?selected=${name === this.queue}>${name}</option>`)}
          </select>
        </label>
        ${rangeChoice(this.hours, this.t, (chosen) => this.#look(chosen))}
      </div>
      ${shown.length === 0 ? html`<p class="quiet">${t.nothingInRange}</p>` : nothing}
      <div class="plots">
        <job-plot
          class="card"
          heading=${hours === 1 ? t.perMinute : t.perHour}
          .figure=${this.#ends(shown, times)}
        ></job-plot>
        <job-plot
          class="card"
          heading=${t.pickup}
          .says=${took}
          .figure=${this.#times(shown, times, 'pickup_seconds_p50', 'pickup_seconds_p95')}
        ></job-plot>
        <job-plot
          class="card"
          heading=${t.runTime}
          .says=${took}
          .figure=${this.#times(shown, times, 'run_seconds_p50', 'run_seconds_p95')}
        ></job-plot>
      </div>
      ${this.queue === '' && queues.length > 1 ? html`<p class="quiet">${t.slowestQueue}</p>` : nothing}
    `
  }

  #look(hours: Hours): void {
    this.hours = hours
    this.again()
  }

  #ends(rows: Throughput[], times: number[]): Figure {
    const lines = ENDS.map(([status, dash]): Line => {
      const values = sums(rows, times, (row) => seconds(row.starts_at), (row) => row[status])
      const total = values.reduce((sum, value) => sum + value, 0)
      return { label: this.t.status[status], colour: status, dash: [...dash], values, summary: language.number(total) }
    })
    const values = sums(rows, times, (row) => seconds(row.starts_at), (row) => row.cancelled)
    const summary = language.number(values.reduce((sum, value) => sum + value, 0))
    lines.push({ label: this.t.status.cancelled, colour: 'quiet', dash: [1, 4], values, summary })
    return { times, sort: 'counts', lines }
  }

  #times(
    rows: Throughput[],
    times: number[],
    half: 'pickup_seconds_p50' | 'run_seconds_p50',
    most: 'pickup_seconds_p95' | 'run_seconds_p95',
  ): Figure {
    const t = this.t.operations
    const line = (label: string, name: typeof half | typeof most, rest: Pick<Line, 'colour' | 'dash'>): Line => {
      const values = largest(rows, times, (row) => row[name])
      const last = values.findLast((value) => value !== null)
      return { label, values, summary: took(last ?? null), ...rest }
    }
    return {
      times,
      sort: 'measured',
      lines: [
        line(t.half, half, { colour: 'completed', dash: [] }),
        line(t.most, most, { colour: 'processing', dash: [8, 4] }),
      ],
    }
  }
}
