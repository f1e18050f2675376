import type { SupabaseClient } from '@supabase/supabase-js'
import { html, type TemplateResult } from 'lit'
import { customElement } from 'lit/decorators.js'
import { fill, language } from '../language'
import './plot'
import type { Colour, Figure, Line } from './plot'
import type { CreditDay } from './rows'
import { ask, Section } from './section'
import { DAY, seconds, steps, sums } from './series'

const DAYS = 30
const DRAWN: readonly ['reserved' | 'captured' | 'refunded' | 'granted' | 'expired', Colour, number[]][] = [
  ['reserved', 'processing', [8, 4]],
  ['captured', 'completed', []],
  ['refunded', 'partial', [2, 3]],
  ['granted', 'ink', [10, 3, 2, 3]],
  ['expired', 'quiet', [1, 4]],
]

/** What became of credits on each day. */
@customElement('job-credit-days')
export class JobCreditDays extends Section<CreditDay[]> {
  protected readonly everyMs = 30_000

  protected read(client: SupabaseClient): Promise<CreditDay[]> {
    return ask(client, 'read_credit_days', { days: DAYS })
  }

  protected body(days: CreditDay[]): TemplateResult {
    const t = this.t.operations
    const granted = DRAWN.filter(([name]) => name === 'granted' || name === 'expired')
    const spent = DRAWN.filter((line) => !granted.includes(line))
    return html`
      <p class="quiet tools">${fill(t.creditsHint, { days: DAYS })}</p>
      <div class="plots">
        <job-plot class="card" heading=${t.creditsPerDay} .figure=${this.#figure(days, spent)}></job-plot>
        <job-plot class="card" heading=${t.grantsPerDay} .figure=${this.#figure(days, granted)}></job-plot>
      </div>
    `
  }

  #figure(days: CreditDay[], drawn: typeof DRAWN): Figure {
    const at = (row: CreditDay): number => seconds(`${row.day}T00:00:00Z`)
    const times = steps(days.map(at), DAYS * DAY, DAY, this.polled.readAt / 1000)
    const lines = drawn.map(([name, colour, dash]): Line => {
      const values = sums(days, times, at, (row) => row[name])
      const total = values.reduce((sum, value) => sum + value, 0)
      return { label: this.t.operations.credit[name], colour, dash, values, summary: language.number(total) }
    })
    return { times, lines, sort: 'counts', days: true }
  }
}
