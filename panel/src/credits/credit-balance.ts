import type { SupabaseClient } from '@supabase/supabase-js'
import { css, html, nothing, type TemplateResult } from 'lit'
import { customElement, query, state } from 'lit/decorators.js'
import { connection } from '../connection'
import { JobElement } from '../element'
import { counted } from '../job/words'
import { fill, language } from '../language'
import { AccountFeed } from './account'
import './credit-statement'

/** The user's credits, live: what is available, what is reserved. Pressed, it shows the statement. */
@customElement('credit-balance')
export class CreditBalance extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        display: inline-block;
      }
      .balance {
        white-space: nowrap;
        font-variant-numeric: tabular-nums;
      }
      dialog {
        width: min(720px, calc(100vw - 24px));
        max-height: calc(100dvh - 48px);
        padding: 16px;
      }
      dialog > .row {
        justify-content: space-between;
        margin-bottom: 8px;
      }
      h2 {
        margin: 0;
      }
    `,
  ]

  @state() private shown = false
  @query('dialog') private dialog!: HTMLDialogElement | null
  readonly #account = new AccountFeed(this)

  protected override connected(client: SupabaseClient): void {
    this.dialog?.close()
    this.#account.start(client)
  }

  override render(): TemplateResult | typeof nothing {
    const t = this.t.credits
    if (connection.userId === null) return nothing
    const { balance, live } = this.#account
    if (balance === null) {
      if (live.failure === null) return nothing
      return html`<span class="error">${fill(t.failedToRead, { reason: live.failure })}</span>`
    }
    const available = counted(t.available, balance.available)
    const held = fill(t.held, { count: language.number(balance.held) })
    return html`
      <button type="button" class="balance" aria-haspopup="dialog" title=${t.showStatement} @click=${this.#open}>
        ${available}${balance.held === 0
          ? nothing
          : html` <span class="quiet">· ${held}</span>`}
      </button>
      <dialog aria-labelledby="heading" @close=${() => (this.shown = false)} @job-open=${() => this.dialog?.close()}>
        <div class="row">
          <h2 id="heading">${t.statement}</h2>
          <button type="button" @click=${() => this.dialog?.close()}>${this.t.close}</button>
        </div>
        <p>
          ${available}${balance.held === 0 ? nothing : html` · ${held} <span class="quiet">(${t.heldHint})</span>`}
        </p>
        ${this.shown ? html`<credit-statement .stamp=${balance.updated_at}></credit-statement>` : nothing}
      </dialog>
    `
  }

  readonly #open = (): void => {
    this.shown = true
    this.dialog?.showModal()
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'credit-balance': CreditBalance
  }
}
