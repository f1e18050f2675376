import { AuthError } from '@supabase/supabase-js'
import { css, html, nothing } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import type { Config } from './config'
import { JobElement } from './element'
import { fill } from './language'
import type { Strings } from './strings/en'

/** Sign in, or sign up, with an e-mail address and a password; a demo's users with one click. */
@customElement('job-sign-in')
export class JobSignIn extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        max-width: 380px;
        margin: 8vh auto 0;
        padding: 0 12px;
      }
      form,
      .demo {
        display: grid;
        gap: 12px;
      }
      label {
        display: grid;
        gap: 4px;
      }
      .demo {
        margin-top: 16px;
        padding-top: 16px;
        border-top: 1px solid var(--line);
      }
      h2 {
        font-size: 20px;
      }
      p {
        margin: 0;
        overflow-wrap: anywhere;
      }
      button {
        min-height: 36px;
      }
      .link {
        border: 0;
        background: none;
        color: var(--accent);
        text-decoration: underline;
      }
    `,
  ]

  /** Users to try it with. */
  @property({ attribute: false }) demo: Config['demo'] = []
  @state() private signingUp = false
  @state() private busy = false
  @state() private trouble = ''
  @state() private confirm = ''
  @query('#email') private email!: HTMLInputElement
  @query('#password') private password!: HTMLInputElement

  override render() {
    const p = this.t.page
    const title = this.signingUp ? p.signUp : p.signIn
    return html`<div class="card">
      <h2>${title}</h2>
      <form @submit=${this.#submit} aria-busy=${this.busy ? 'true' : 'false'}>
        <label>${p.email}<input id="email" type="email" autocomplete="username" required /></label>
        <label
          >${p.password}<input
            id="password"
            type="password"
            minlength=${this.signingUp ? 6 : nothing}
            autocomplete=${this.signingUp ? 'new-password' : 'current-password'}
            required
        /></label>
        <p class="error" role="alert" ?hidden=${this.trouble === ''}>${this.trouble}</p>
        <p role="status" ?hidden=${this.confirm === ''}>${this.confirm}</p>
        <button class="primary" ?disabled=${this.busy}>${title}</button>
        <button type="button" class="link" @click=${this.#other}>${this.signingUp ? p.knownHere : p.newHere}</button>
      </form>
      ${this.demo.length === 0
        ? nothing
        : html`<div class="demo">
            <p class="quiet">${p.demo}</p>
            ${this.demo.map(
              (user) => html`<button type="button" ?disabled=${this.busy} @click=${() => this.#enter(user.email, user.password)}>
                ${fill(p.demoUser, { email: user.email })}
              </button>`,
            )}
          </div>`}
    </div>`
  }

  readonly #submit = (event: Event): void => {
    event.preventDefault()
    const [email, password] = [this.email.value.trim(), this.password.value]
    void (this.signingUp ? this.#register(email, password) : this.#enter(email, password))
  }

  readonly #other = (): void => {
    this.signingUp = !this.signingUp
    this.trouble = ''
    this.confirm = ''
    this.email.focus()
  }

  #enter(email: string, password: string): Promise<void> {
    return this.#attempt(async () => {
      const { error } = await this.client.auth.signInWithPassword({ email, password })
      if (error !== null) throw error
    })
  }

  #register(email: string, password: string): Promise<void> {
    return this.#attempt(async () => {
      const { data, error } = await this.client.auth.signUp({ email, password })
      if (error !== null) throw error
      if (data.session !== null) return
      this.signingUp = false
      this.confirm = fill(this.t.page.confirm, { email })
    })
  }

  async #attempt(work: () => Promise<void>): Promise<void> {
    this.busy = true
    this.trouble = ''
    try {
      await work()
    } catch (error) {
      this.trouble = inWords(error, this.t)
    } finally {
      this.busy = false
    }
  }
}

/** What went wrong, as somebody would say it who is asked. */
export function inWords(error: unknown, t: Strings): string {
  if (!(error instanceof AuthError)) return error instanceof Error ? error.message : String(error)
  const known: { [code: string]: string } = {
    invalid_credentials: t.page.wrongPassword,
    invalid_grant: t.page.wrongPassword,
    user_already_exists: t.page.addressTaken,
    email_exists: t.page.addressTaken,
    weak_password: fill(t.page.weakPassword, { why: error.message }),
    email_not_confirmed: t.page.notConfirmed,
    over_request_rate_limit: t.page.tooOften,
    over_email_send_rate_limit: t.page.tooOften,
    email_address_invalid: t.page.badAddress,
    signup_disabled: t.page.noSignUp,
    email_provider_disabled: t.page.noSignUp,
  }
  if (error.name === 'AuthRetryableFetchError') return t.page.unreachable
  return known[error.code ?? ''] ?? error.message
}

declare global {
  interface HTMLElementTagNameMap {
    'job-sign-in': JobSignIn
  }
}
