import { css, html, nothing, type TemplateResult } from 'lit'
import { customElement, property, state } from 'lit/decorators.js'
import { connection } from '../connection'
import { JobElement } from '../element'
import { look } from '../styles'
import './credit-days'
import './error-codes'
import './queues'
import './schedules'
import './throughput'
import './workers'

const SECTIONS = ['queues', 'workers', 'schedules', 'throughput', 'errors', 'credits'] as const
type SectionName = (typeof SECTIONS)[number]

/** The operator's view: one section at a time, so that the database is asked only for what is looked at. */
@customElement('job-operations')
export class JobOperations extends JobElement {
  static override styles = [
    look,
    css`
      [role='tablist'] {
        display: flex;
        gap: 4px;
        margin: 8px 0 16px;
        padding: 2px;
        border-bottom: 1px solid var(--line);
        overflow-x: auto;
      }
      [role='tab'] {
        flex: none;
        border-color: transparent;
        border-radius: var(--radius) var(--radius) 0 0;
        background: none;
        color: var(--quiet);
      }
      [role='tab'][aria-selected='true'] {
        border-bottom: 3px solid var(--accent);
        color: var(--ink);
        font-weight: 600;
      }
      h2 {
        margin: 0;
        font-size: 20px;
        line-height: 1.3;
      }
      .notice {
        max-width: 640px;
      }
      .notice p {
        margin: 0 0 8px;
      }
      pre {
        padding: 8px 12px;
        border-radius: var(--radius);
        background: var(--ground);
      }
    `,
  ]

  /** Which section is shown. */
  @property({ reflect: true }) section: SectionName = 'queues'
  @state() private refused = false

  protected override connected(): void {
    this.refused = false
  }

  override render(): TemplateResult {
    const t = this.t.operations
    // the token says it, too: then the database need not be asked to hear no
    const stranger = this.refused || (connection.session !== null && !connection.isOperator)
    return html`
      <h2 tabindex="-1">${t.heading}</h2>
      ${stranger
        ? this.#notice()
        : html`
            <div role="tablist" aria-label=${t.heading} @keydown=${this.#key}>
              ${SECTIONS.map(
                (name) => html`<button
                  id="tab-${name}"
                  role="tab"
                  aria-selected=${name === this.section}
                  aria-controls="section"
                  tabindex=${name === this.section ? 0 : -1}
                  @click=${() => (this.section = name)}
                >
                  ${t[name]}
                </button>`,
              )}
            </div>
            <div
              id="section"
              role="tabpanel"
              aria-labelledby="tab-${this.section}"
              tabindex="-1"
              @operator-refused=${() => (this.refused = true)}
            >
              ${connection.client === null ? nothing : this.#shown()}
            </div>
          `}
    `
  }

  #shown(): TemplateResult {
    switch (this.section) {
      case 'workers':
        return html`<job-workers></job-workers>`
      case 'schedules':
        return html`<job-schedules></job-schedules>`
      case 'throughput':
        return html`<job-throughput></job-throughput>`
      case 'errors':
        return html`<job-error-codes></job-error-codes>`
      case 'credits':
        return html`<job-credit-days></job-credit-days>`
      default:
        return html`<job-queues></job-queues>`
    }
  }

  #notice(): TemplateResult {
    const t = this.t.operations
    const who = connection.userId ?? '…'
    const statement = `update auth.users set raw_app_meta_data = raw_app_meta_data || '{"is_operator": true}' where id = '${who}';`
    return html`<div class="card notice" role="status">
      <h3>${t.noOperator}</h3>
      <p>${t.noOperatorHint}</p>
      <pre>${statement}</pre>
    </div>`
  }

  readonly #key = (event: KeyboardEvent): void => {
    const moves: { [key: string]: number } = { ArrowRight: 1, ArrowLeft: -1, Home: -SECTIONS.length, End: SECTIONS.length }
    const move = moves[event.key]
    if (move === undefined) return
    event.preventDefault()
    const last = SECTIONS.length - 1
    const from = SECTIONS.indexOf(this.section)
    // the arrows go round; Home and End stop at the ends
    const to = Math.abs(move) === 1 ? (from + move + SECTIONS.length) % SECTIONS.length : Math.min(last, Math.max(0, from + move))
    this.section = SECTIONS[to] ?? 'queues'
    void this.updateComplete.then(() => this.renderRoot.querySelector<HTMLElement>(`#tab-${this.section}`)?.focus())
  }
}
