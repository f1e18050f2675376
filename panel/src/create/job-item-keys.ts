import { css, html, nothing, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import { repeat } from 'lit/directives/repeat.js'
import { JobElement } from '../element'
import { fill, language } from '../language'
import { itemNames } from '../job/words'

const LONGEST = 200
/** So many are drawn; of more, the last. */
const DRAWN = 200

/** The items of a job to be: type one, press Enter. Several at once may be pasted, one a line or with commas. Emits `change`. */
@customElement('job-item-keys')
export class JobItemKeys extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        display: grid;
        gap: 4px;
      }
      label {
        font-weight: 500;
      }
      label .quiet {
        font-weight: 400;
      }
      ul {
        display: flex;
        flex-wrap: wrap;
        gap: 6px;
        margin: 0;
        padding: 0;
        list-style: none;
      }
      li {
        display: inline-flex;
        align-items: center;
        max-width: 100%;
        padding-inline-start: 10px;
        border: 1px solid var(--line);
        border-radius: 999px;
        overflow-wrap: anywhere;
      }
      li button {
        min-width: 28px;
        min-height: 28px;
        padding: 0;
        border: 0;
        border-radius: 50%;
        background: none;
        color: var(--quiet);
      }
      input {
        width: 100%;
      }
      input[aria-invalid='true'] {
        border-color: var(--failed);
      }
      p {
        margin: 0;
        font-size: 12px;
      }
    `,
  ]

  @property({ attribute: false }) keys: readonly string[] = []
  @property({ type: Number }) most = 10_000
  @property({ type: Boolean }) required = false
  /** What is wrong with them, in words. */
  @property() problem = ''
  @state() private said = ''
  @query('input') private input!: HTMLInputElement

  override focus(options?: FocusOptions): void {
    this.input.focus(options)
  }

  /** Take what was typed without Enter. Not when the field is left: what is below would move away from under the pointer. */
  take(): void {
    if (this.input.value.trim() === '') return
    this.#add([this.input.value])
    this.input.value = ''
  }

  override render(): TemplateResult {
    const t = this.t.create
    const name = itemNames(this.keys)
    const shown = this.keys.slice(-DRAWN)
    return html`
      <label for="new">${t.items} <span class="quiet">(${this.required ? t.required : t.optional})</span></label>
      ${this.keys.length === 0
        ? nothing
        : html`<ul role="list" aria-label=${t.items}>
            ${shown.length < this.keys.length ? html`<li class="quiet">… ${language.number(this.keys.length - shown.length)} +</li>` : nothing}
            ${repeat(
              shown,
              (key) => key,
              (key) => html`<li data-key=${key}>
                <span>${name(key)}${name(key) === key ? nothing : html` <span class="quiet">${key}</span>`}</span>
                <button type="button" aria-label=${fill(t.remove, { what: name(key) })} @click=${() => this.#remove(key)}>✕</button>
              </li>`,
            )}
          </ul>`}
      <input
        id="new"
        autocomplete="off"
        autocapitalize="off"
        spellcheck="false"
        maxlength=${LONGEST}
        aria-required=${this.required ? 'true' : 'false'}
        aria-invalid=${this.problem === '' ? 'false' : 'true'}
        aria-describedby="hint problem"
        @keydown=${this.#pressed}
        @paste=${this.#pasted}
      />
      <p class="quiet" id="hint">
        ${this.required ? t.itemsHint : t.itemsOptionalHint} ${this.most < 10_000 ? fill(t.itemsMost, { most: language.number(this.most) }) : nothing}
      </p>
      <p class="error" id="problem" ?hidden=${this.problem === ''}>${this.problem}</p>
      <span class="sr" role="status">${this.said}</span>
    `
  }

  readonly #pressed = (event: KeyboardEvent): void => {
    if (event.isComposing) return
    if (event.key === 'Enter' || event.key === ',') {
      if (this.input.value.trim() === '' && event.key === 'Enter') return // nothing typed: the form may be sent
      event.preventDefault()
      this.take()
    } else if (event.key === 'Backspace' && this.input.value === '') {
      const last = this.keys.at(-1)
      if (last !== undefined) this.#remove(last)
    }
  }

  readonly #pasted = (event: ClipboardEvent): void => {
    const text = event.clipboardData?.getData('text/plain') ?? ''
    if (!/[\n,;]/.test(text)) return
    event.preventDefault()
    this.#add(text.split(/[\n,;]+/))
  }


  #add(more: readonly string[]): void {
    const wanted = more.map((key) => key.trim().slice(0, LONGEST)).filter((key) => key !== '')
    this.#set([...new Set([...this.keys, ...wanted])])
    this.said = fill(this.t.create.itemAdded, { item: wanted.join(', ') })
  }

  #remove(key: string): void {
    this.#set(this.keys.filter((other) => other !== key))
    this.said = fill(this.t.create.itemRemoved, { item: key })
    this.focus()
  }

  #set(keys: readonly string[]): void {
    this.keys = keys
    this.dispatchEvent(new Event('change'))
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-item-keys': JobItemKeys
  }
}
