import { css, html } from 'lit'
import { customElement, state } from 'lit/decorators.js'
import { repeat } from 'lit/directives/repeat.js'
import { JobElement } from './element'

export interface Toast {
  text: string
  kind: 'info' | 'error'
}

const INFO_MS = 6_000
const AT_MOST = 4
let count = 0
/** With several of these on a page, each message is shown by one. */
const shown = new WeakSet<Event>()

/** Shows what `job-toast` events on the page say: news for some seconds, errors until they are closed. */
@customElement('job-toasts')
export class JobToasts extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        position: fixed;
        inset: auto 12px 12px auto;
        z-index: 20;
        width: min(380px, calc(100vw - 24px));
        pointer-events: none;
      }
      .toast {
        display: flex;
        gap: 8px;
        align-items: start;
        justify-content: space-between;
        margin-top: 8px;
        padding: 10px 8px 10px 14px;
        border: 1px solid var(--line);
        border-inline-start: 4px solid var(--accent);
        border-radius: var(--radius);
        background: var(--paper);
        box-shadow: 0 4px 16px rgb(0 0 0 / 25%);
        overflow-wrap: anywhere;
        pointer-events: auto;
      }
      .toast.error {
        border-inline-start-color: var(--failed);
        color: var(--ink);
      }
      button {
        flex: none;
        min-width: 28px;
        min-height: 28px;
        padding: 0;
        border: 0;
        background: none;
      }
    `,
  ]

  @state() private toasts: (Toast & { id: number })[] = []
  readonly #timers = new Set<ReturnType<typeof setTimeout>>()

  override connectedCallback(): void {
    super.connectedCallback()
    window.addEventListener('job-toast', this.#heard)
  }

  override disconnectedCallback(): void {
    window.removeEventListener('job-toast', this.#heard)
    for (const timer of this.#timers) clearTimeout(timer)
    super.disconnectedCallback()
  }

  show(toast: Toast): void {
    const id = (count += 1)
    this.toasts = [...this.toasts, { ...toast, id }].slice(-AT_MOST)
    if (toast.kind === 'error') return
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      this.#close(id)
    }, INFO_MS)
    this.#timers.add(timer)
  }

  override render() {
    return html`${this.#region('info', 'polite')}${this.#region('error', 'assertive')}`
  }

  #region(kind: Toast['kind'], manner: 'polite' | 'assertive') {
    return html`<div role="log" aria-live=${manner} aria-relevant="additions" aria-label=${this.t.page.messages}>
      ${repeat(
        this.toasts.filter((toast) => toast.kind === kind),
        ({ id }) => id,
        ({ id, text }) => html`<div class="toast ${kind}" data-kind=${kind}>
          <span>${text}</span>
          <button type="button" aria-label=${this.t.close} @click=${() => this.#close(id)}>✕</button>
        </div>`,
      )}
    </div>`
  }

  #close(id: number): void {
    this.toasts = this.toasts.filter((toast) => toast.id !== id)
  }

  readonly #heard = (event: Event): void => {
    if (shown.has(event)) return
    shown.add(event)
    this.show((event as CustomEvent<Toast>).detail)
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-toasts': JobToasts
  }
}
