import { css, html, nothing, type PropertyValues } from 'lit'
import { customElement, query, state } from 'lit/decorators.js'
import { connection } from './connection'
import { JobElement } from './element'
import { focusHeading } from './focus'
import type { JobList } from './job-list'
import { address, parse, type Route } from './route'
import './create/job-create'
import './credits/credit-balance'
import './job/job-detail'
import './job-list'
import './toasts'

/**
 * Everything in one: the list, a job beside it, new jobs, credits, and the operator's view for operators. Where one is stands
 * in the address after `#`, so that links and the Back button work. Slots `start` and `end` are at the ends of its bar.
 */
@customElement('job-panel')
export class JobPanel extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        display: flex;
        flex-direction: column;
        height: var(--job-panel-height, 720px);
        background: var(--ground);
        container-type: inline-size;
      }
      .bar {
        display: flex;
        flex-wrap: wrap;
        gap: 6px 16px;
        align-items: center;
        padding: 8px 12px;
        border-bottom: 1px solid var(--line);
        background: var(--paper);
      }
      nav {
        display: flex;
        gap: 4px;
      }
      .gap {
        flex: 1;
      }
      nav a,
      .new,
      .back {
        display: inline-flex;
        align-items: center;
        min-height: 32px;
        padding: 4px 10px;
        border-radius: var(--radius);
        color: inherit;
        text-decoration: none;
      }
      nav a[aria-current] {
        background: var(--ground);
        font-weight: 600;
      }
      .new {
        background: var(--accent);
        color: var(--on-accent);
        font-weight: 600;
        white-space: nowrap;
      }
      .views {
        flex: 1;
        min-height: 0;
        display: grid;
        grid-template: minmax(0, 1fr) / minmax(0, 1fr);
        gap: 12px;
        padding: 12px;
      }
      .views.two {
        grid-template-columns: minmax(340px, 5fr) minmax(0, 7fr);
      }
      job-list {
        height: auto;
      }
      section {
        min-width: 0;
        overflow: auto;
      }
      .alone job-list {
        display: none;
      }
      .back {
        margin-bottom: 4px;
        padding-inline-start: 0;
      }
      @container (max-width: 899px) {
        .views.two {
          grid-template-columns: minmax(0, 1fr);
        }
        .views.two job-list {
          display: none;
        }
      }
      @container (max-width: 479px) {
        .views {
          padding: 6px;
        }
        .bar {
          padding: 6px;
          gap: 4px 8px;
        }
        /* two rows: name, new job and menu; then views and credits */
        .new,
        ::slotted([slot='end']) {
          order: 1;
        }
        .break {
          order: 2;
          flex-basis: 100%;
        }
        nav,
        credit-balance {
          order: 3;
        }
      }
    `,
  ]

  @state() private route: Route = parse(location.hash)
  @query('job-list') private list!: JobList
  @query('section > :last-child') private opened!: HTMLElement | null

  override connectedCallback(): void {
    super.connectedCallback()
    this.route = parse(location.hash)
    window.addEventListener('hashchange', this.#moved)
    this.addEventListener('job-open', this.#asked)
    this.addEventListener('job-created', this.#asked)
  }

  override disconnectedCallback(): void {
    window.removeEventListener('hashchange', this.#moved)
    super.disconnectedCallback()
  }

  override render() {
    const { t, route } = this
    const alone = route.view === 'operations'
    return html`
      <div class="bar">
        <slot name="start"></slot>
        ${connection.isOperator
          ? html`<nav aria-label=${t.page.views}>
              <a href="#/" aria-current=${alone ? nothing : 'page'}>${t.page.jobs}</a>
              <a href="#/operations" aria-current=${alone ? 'page' : nothing}>${t.page.operations}</a>
            </nav>`
          : nothing}
        <span class="gap"></span><span class="break"></span>
        <credit-balance></credit-balance>
        <a class="new" href="#/new">${t.page.newJob}</a>
        <slot name="end"></slot>
      </div>
      <div class="views ${alone ? 'alone' : route.view === 'list' ? '' : 'two'}">
        <job-list .selected=${route.view === 'job' ? route.id : ''}>
          <a slot="empty" href="#/new">${t.page.firstJob}</a>
        </job-list>
        ${this.#view()}
      </div>
      <job-toasts></job-toasts>
    `
  }

  protected override updated(changed: PropertyValues): void {
    const before = changed.get('route') as Route | undefined
    if (before === undefined || address(before) === address(this.route)) return
    if (this.route.view !== 'list') {
      if (this.opened !== null) focusHeading(this.opened)
    } else if (before.view === 'job') void this.list.focusJob(before.id)
  }

  #view() {
    const { t, route } = this
    if (route.view === 'list') return nothing
    if (route.view === 'operations') {
      return html`<section aria-label=${t.page.operations}><job-operations></job-operations></section>`
    }
    const back = html`<a class="back" href="#/">← ${t.page.back}</a>`
    if (route.view === 'new') {
      return html`<section aria-label=${t.page.newJob}>${back}<job-create></job-create></section>`
    }
    return html`<section aria-label=${t.page.view}>${back}<job-detail job-id=${route.id}></job-detail></section>`
  }

  readonly #moved = (): void => {
    this.route = parse(location.hash)
  }

  readonly #asked = (event: Event): void => {
    location.hash = address({ view: 'job', id: (event as CustomEvent<{ id: string }>).detail.id })
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-panel': JobPanel
  }
}
