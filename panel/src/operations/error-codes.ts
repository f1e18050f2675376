import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type TemplateResult } from 'lit'
import { customElement, state } from 'lit/decorators.js'
import { language } from '../language'
import './plot'
import type { Colour, Figure, Line } from './plot'
import { rangeChoice } from './range'
import type { ErrorCode, ErrorRate } from './rows'
import { ask, Section } from './section'
import { errorStep, seconds, steps, sums, topCodes, type Hours } from './series'

interface Errors {
  hours: Hours
  codes: ErrorCode[]
  rates: ErrorRate[]
}

const DRAWN: readonly [Colour, number[]][] = [
  ['failed', []],
  ['processing', [8, 4]],
  ['partial', [2, 3]],
  ['completed', [10, 3, 2, 3]],
  ['ink', [5, 5]],
]

/** Which error codes attempts end with: how often over time, of what kind, with an example of each. */
@customElement('job-error-codes')
export class JobErrorCodes extends Section<Errors> {
  protected readonly everyMs = 30_000
  @state() private hours: Hours = 24

  protected async read(client: SupabaseClient): Promise<Errors> {
    const hours = this.hours
    const [codes, rates] = await Promise.all([
      ask<ErrorCode[]>(client, 'read_errors', { hours }),
      ask<ErrorRate[]>(client, 'read_error_rates', { hours }),
    ])
    return { hours, codes, rates }
  }

  protected body({ hours, codes, rates }: Errors): TemplateResult {
    const t = this.t.operations
    return html`
      <div class="row tools">
        <span class="quiet">${t.failuresHint}</span>
        ${rangeChoice(this.hours, this.t, (chosen) => this.#look(chosen))}
      </div>
      ${codes.length === 0
        ? html`<p class="quiet">${t.noErrors}</p>`
        : html`
            <div class="plots">
              <job-plot
                class="card"
                heading=${hours === 1 ? t.failuresPer5Minutes : t.failuresPerHour}
                .figure=${this.#figure(hours, rates)}
              ></job-plot>
            </div>
            ${this.#table(codes)}
          `}
    `
  }

  #look(hours: Hours): void {
    this.hours = hours
    this.again()
  }

  #figure(hours: Hours, rates: ErrorRate[]): Figure {
    const at = (row: ErrorRate): number => seconds(row.starts_at)
    const times = steps(rates.map(at), hours * 3600, errorStep(hours), this.polled.readAt / 1000)
    const { codes, more } = topCodes(rates, DRAWN.length)
    const line = (label: string, rows: ErrorRate[], [colour, dash]: readonly [Colour, number[]]): Line => {
      const values = sums(rows, times, at, (row) => row.failures)
      return { label, colour, dash, values, summary: language.number(values.reduce((sum, value) => sum + value, 0)) }
    }
    const lines = codes.map((code, n) => line(code, rates.filter((row) => row.code === code), DRAWN[n] ?? ['ink', []]))
    const others = rates.filter((row) => !codes.includes(row.code))
    if (more) lines.push(line(this.t.operations.otherCodes, others, ['quiet', [1, 4]]))
    return { times, sort: 'counts', lines }
  }

  #table(codes: ErrorCode[]): TemplateResult {
    const t = this.t.operations
    return html`<div class="card scrolls" tabindex="0" role="region" aria-label=${t.errors}>
      <table>
        <thead>
          <tr>
            <th scope="col">${t.code}</th>
            <th scope="col">${t.kind}</th>
            <th scope="col" class="number">${t.failures}</th>
            <th scope="col" class="number">${t.jobs}</th>
            <th scope="col" class="number">${t.ended}</th>
            <th scope="col">${t.last}</th>
            <th scope="col">${t.example}</th>
          </tr>
        </thead>
        <tbody>
          ${codes.map(
            (row) => html`<tr>
              <th scope="row"><code>${row.code}</code></th>
              <td>${row.kind}</td>
              <td class="number">${language.number(row.failures)}</td>
              <td class="number">${language.number(row.jobs)}</td>
              <td class="number">${language.number(row.ended)}</td>
              <td><time datetime=${row.last_at} title=${language.moment(row.last_at)}>${language.ago(row.last_at)}</time></td>
              <td class="message">
                ${row.sample_job_id
                  ? html`<a href="#/jobs/${row.sample_job_id}">${row.sample_message || t.lastJob}</a>`
                  : (row.sample_message ?? nothing)}
              </td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`
  }
}
