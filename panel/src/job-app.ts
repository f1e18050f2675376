import { css, html, nothing } from 'lit'
import { customElement, state } from 'lit/decorators.js'
import { readConfig, type Config } from './config'
import { connect, connection } from './connection'
import { JobElement } from './element'
import { fill, language, LANGUAGES } from './language'
import type { Open } from './list/counts'
import { messageOf } from './live'
import { chooseTheme, theme, THEMES, type Theme } from './theme'
import './job-panel'
import './sign-in'

const CONFIG = new URL('config.json', document.baseURI)

/** The page: asks the server that it comes from where the project is, lets people in, and shows the panel. */
@customElement('job-app')
export class JobApp extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        display: flex;
        flex-direction: column;
        min-height: 100dvh;
        background: var(--ground);
      }
      main {
        flex: 1;
        min-height: 0;
      }
      job-panel {
        --job-panel-height: 100dvh;
      }
      header {
        display: flex;
        justify-content: space-between;
        align-items: center;
        padding: 8px 12px;
      }
      h1 {
        margin: 0;
        font-size: 16px;
      }
      details {
        position: relative;
      }
      summary {
        display: inline-flex;
        align-items: center;
        min-height: 32px;
        padding: 4px 10px;
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--paper);
        cursor: pointer;
        list-style: none;
      }
      summary::-webkit-details-marker {
        display: none;
      }
      .menu {
        position: absolute;
        inset: calc(100% + 6px) 0 auto auto;
        z-index: 10;
        display: grid;
        gap: 12px;
        width: 240px;
        box-shadow: 0 8px 24px rgb(0 0 0 / 25%);
      }
      .menu label {
        display: grid;
        gap: 4px;
      }
      .menu p,
      .message p {
        margin: 0;
        overflow-wrap: anywhere;
      }
      .message {
        display: grid;
        gap: 12px;
        justify-items: start;
        max-width: 560px;
        margin: 8vh auto 0;
      }
    `,
  ]

  @state() private config: Config | null = null
  @state() private trouble = ''
  @state() private running = 0

  override connectedCallback(): void {
    super.connectedCallback()
    this.addEventListener('job-counts', this.#counted)
    document.addEventListener('click', this.#elsewhere)
    if (this.config === null) void this.#begin()
  }

  override disconnectedCallback(): void {
    document.removeEventListener('click', this.#elsewhere)
    super.disconnectedCallback()
  }

  override render() {
    const { t } = this
    const signedIn = connection.userId !== null
    if (this.config !== null && signedIn) {
      return html`<main>
        <job-panel><h1 slot="start">${t.page.name}</h1>${this.#settings('end')}</job-panel>
      </main>`
    }
    return html`<header><h1>${t.page.name}</h1>${this.#settings('')}</header>
      <main>${this.#entrance()}</main>`
  }

  protected override updated(): void {
    const { page } = this.t
    const running = connection.userId === null ? 0 : this.running
    document.documentElement.lang = language.code
    document.title = running === 0 ? page.title : fill(page.titleRunning, { count: language.number(running) })
  }

  #entrance() {
    const { t } = this
    if (this.trouble !== '') {
      return html`<div class="card message" role="alert">
        <h2>${t.page.noConfig}</h2>
        <p>${fill(t.page.noConfigHint, { url: CONFIG.pathname, why: this.trouble })}</p>
        <p class="quiet">${t.page.noConfigHelp}</p>
        <button type="button" class="primary" @click=${this.#begin}>${t.retryNow}</button>
      </div>`
    }
    if (this.config === null) return html`<p class="message quiet" role="status">${t.loading}</p>`
    return html`<job-sign-in .demo=${this.config.demo}></job-sign-in>`
  }

  #settings(slot: string) {
    const p = this.t.page
    const email = connection.session?.user.email
    return html`<details slot=${slot || nothing} @keydown=${this.#escaped}>
      <summary aria-label=${p.settings}>☰</summary>
      <div class="card menu">
        ${email === undefined ? nothing : html`<p class="quiet">${fill(p.signedInAs, { email })}</p>`}
        <label
          >${p.language}
          <select @change=${(event: Event) => language.choose((event.target as HTMLSelectElement).value)}>
            ${Object.keys(LANGUAGES).map(
              (code) => html`<option value=${code} lang=${code} .selected=${code === language.code}>
                ${new Intl.DisplayNames([code], { type: 'language' }).of(code)}
              </option>`,
            )}
          </select>
        </label>
        <label
          >${p.theme}
          <select @change=${(event: Event) => chooseTheme((event.target as HTMLSelectElement).value as Theme)}>
            ${THEMES.map((name) => html`<option value=${name} .selected=${name === theme()}>${p.themes[name]}</option>`)}
          </select>
        </label>
        ${email === undefined ? nothing : html`<button type="button" @click=${this.#leave}>${p.signOut}</button>`}
      </div>
    </details>`
  }

  readonly #begin = async (): Promise<void> => {
    this.trouble = ''
    try {
      const config = await readConfig(CONFIG, this.t.page.badConfig)
      await connect(config.url, config.key).auth.getSession() // who was signed in here before, is
      this.config = config
    } catch (error) {
      this.trouble = messageOf(error)
    }
  }

  readonly #leave = async (): Promise<void> => {
    this.running = 0
    location.hash = ''
    await this.client.auth.signOut({ scope: 'local' })
  }

  readonly #counted = (event: Event): void => {
    this.running = (event as CustomEvent<Open>).detail.processing
  }

  readonly #elsewhere = (event: Event): void => {
    const menu = this.renderRoot.querySelector('details')
    if (menu !== null && !event.composedPath().includes(menu)) menu.open = false
  }

  readonly #escaped = (event: KeyboardEvent): void => {
    const menu = event.currentTarget as HTMLDetailsElement
    if (event.key !== 'Escape' || !menu.open) return
    menu.open = false
    menu.querySelector('summary')?.focus()
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-app': JobApp
  }
}
