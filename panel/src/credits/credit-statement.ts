import type { SupabaseClient } from '@supabase/supabase-js'
import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { Clock } from '../clock'
import { connection } from '../connection'
import { JobElement } from '../element'
import { fill, language } from '../language'
import { jobLink, timeOf } from '../job/parts'
import { refusalOf } from '../job/words'

interface Line {
  id: number
  created_at: string
  kind: string
  change: number
  balance: number
  job_id: string | null
  reason: string | null
}

const PAGE = 25

/** What the user's credits came from and went to, newest first, older lines on demand. Emits `job-open` {id}. */
@customElement('credit-statement')
export class CreditStatement extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      td {
        overflow-wrap: break-word;
      }
      td div {
        font-size: 12px;
      }
      .more {
        margin-top: 8px;
      }
      @media (max-width: 480px) {
        th,
        td {
          padding: 6px 4px;
        }
      }
    `,
  ]

  /** Read anew whenever this changes: when the account last changed. */
  @property() stamp = ''
  @state() private lines: readonly Line[] | null = null
  @state() private complete = false
  @state() private failure: string | null = null
  @state() private busy = false
  #reading = 0

  constructor() {
    super()
    new Clock(this)
  }

  protected override connected(): void {
    this.lines = null
    void this.#read(null)
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('stamp') && this.hasUpdated) void this.#read(null)
  }

  async #read(before: number | null): Promise<void> {
    const reading = (this.#reading += 1)
    const owner = connection.userId
    if (owner === null) return
    this.busy = true
    const client: SupabaseClient = this.client
    const page = client.from('credit_statement').select('id,created_at,kind,change,balance,job_id,reason').eq('owner_id', owner)
    const { data, error } = await (before === null ? page : page.lt('id', before)).order('id', { ascending: false }).limit(PAGE)
    if (reading !== this.#reading) return // asked again meanwhile
    this.busy = false
    this.failure = error === null ? null : refusalOf(error)
    if (error !== null) return
    const read = data as Line[]
    this.complete = read.length < PAGE
    this.lines = before === null ? read : [...(this.lines ?? []), ...read]
  }

  override render(): TemplateResult {
    const t = this.t.credits
    const { lines } = this
    return html`
      ${this.failure === null
        ? nothing
        : html`<p class="error" role="alert">
            ${fill(t.failedToRead, { reason: this.failure })}
            <button type="button" @click=${() => this.#read(null)}>${this.t.retryNow}</button>
          </p>`}
      ${lines === null
        ? html`<p class="quiet" role="status">${this.failure === null ? this.t.loading : nothing}</p>`
        : lines.length === 0
          ? html`<p class="quiet">${t.none}</p>`
          : this.#table(lines)}
      ${lines === null || lines.length === 0 || this.complete
        ? nothing
        : html`<button type="button" class="more" ?disabled=${this.busy} @click=${() => this.#read(lines.at(-1)?.id ?? null)}>
            ${t.more}
          </button>`}
    `
  }

  #table(lines: readonly Line[]): TemplateResult {
    const t = this.t.credits
    const kinds: { [kind: string]: string } = t.kinds
    const signed = new Intl.NumberFormat(language.code, { signDisplay: 'exceptZero' })
    return html`<table>
      <thead>
        <tr>
          <th scope="col">${t.what}</th>
          <th scope="col" class="number">${t.change}</th>
          <th scope="col" class="number">${t.left}</th>
        </tr>
      </thead>
      <tbody>
        ${lines.map(
          (line) => html`<tr>
            <td>
              ${kinds[line.kind] ?? line.kind}${line.reason === null ? nothing : html` <span class="quiet">${line.reason}</span>`}
              ${line.job_id === null ? nothing : jobLink(this, line.job_id, t.openJob)}
              <div class="quiet">${timeOf(line.created_at)}</div>
            </td>
            <td class="number">${signed.format(line.change)}</td>
            <td class="number">${language.number(line.balance)}</td>
          </tr>`,
        )}
      </tbody>
    </table>`
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'credit-statement': CreditStatement
  }
}
