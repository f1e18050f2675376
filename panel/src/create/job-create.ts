import type { SupabaseClient } from '@supabase/supabase-js'
import { css, html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import { connection } from '../connection'
import { AccountFeed } from '../credits/account'
import { JobElement } from '../element'
import { tell, toast } from '../job/parts'
import { counted, lackInWords, priceOf, refusalOf } from '../job/words'
import { fill, language } from '../language'
import { messageOf } from '../live'
import type { Job, Json, Kind } from '../rows'
import { begin, collect, put, type Draft, type Problem } from './draft'
import { fieldOf, type Field } from './fields'
import { fieldsView, fieldView, idOf, inputsLook, problemInWords, type Form } from './inputs'
import './job-item-keys'
import type { JobItemKeys } from './job-item-keys'

const COLUMNS = 'kind,queue,credits_per_job,credits_per_item,max_items,payload_schema,description'
/** Stands for the items among the paths of the payload, which are never like this one. */
const ITEMS = '..items'

/**
 * A form for a new job: the kinds that the user may create, the fields of their payloads, the price and what is left after it.
 * Emits `job-created` {id}.
 */
@customElement('job-create')
export class JobCreate extends JobElement {
  static override styles = [
    JobElement.styles,
    inputsLook,
    css`
      form {
        display: grid;
        gap: 16px;
        max-width: 720px;
      }
      p {
        margin: 0;
      }
      .price {
        padding: 10px 12px;
        border-radius: var(--radius);
        background: var(--ground);
      }
    `,
  ]

  /** Which kind of job to begin with. */
  @property() kind = ''
  @state() private kinds: readonly Kind[] | null = null
  @state() private failure: string | null = null
  @state() private draft: Draft = null
  @state() private keys: readonly string[] = []
  @state() private problems: ReadonlyMap<string, Problem> = new Map()
  /** What the server found wrong with the items. */
  @state() private itemsRefused = ''
  @state() private refused = ''
  @state() private busy = false
  @query('job-item-keys') private itemKeys!: JobItemKeys | null
  readonly #account = new AccountFeed(this)
  #field: Field = fieldOf({})
  #shown: Kind | null = null
  /** Of the form as it was opened: pressing twice, or again after a lost answer, makes one job. */
  #once = newKey()
  #tried = false
  #focus: string | null = null

  protected override connected(client: SupabaseClient): void {
    this.#account.start(client)
    this.kinds = null
    this.#shown = null
    if (connection.userId !== null) void this.#read(client)
  }

  async #read(client: SupabaseClient): Promise<void> {
    this.failure = null
    const { data, error } = await client.from('job_kinds').select(COLUMNS).eq('public', true).order('kind')
    if (client !== connection.client) return
    if (error) this.failure = refusalOf(error)
    else this.kinds = data as Kind[]
  }

  protected override willUpdate(): void {
    const kind = this.#chosen
    if (kind === null || kind.kind === this.#shown?.kind) return
    this.#shown = kind
    this.#open(kind)
  }

  protected override updated(_changed: PropertyValues<this>): void {
    if (this.#focus === null) return
    const found = this.renderRoot.querySelector<HTMLElement>(`#${CSS.escape(idOf(this.#focus))}`)
    this.#focus = null
    found?.focus()
  }

  get #chosen(): Kind | null {
    return this.kinds?.find((kind) => kind.kind === this.kind) ?? this.kinds?.[0] ?? null
  }

  /** An empty form. */
  #open(kind: Kind): void {
    this.#field = fieldOf(kind.payload_schema)
    this.draft = begin(this.#field)
    this.keys = []
    this.problems = new Map()
    this.itemsRefused = ''
    this.refused = ''
    this.#tried = false
    this.#once = newKey()
  }

  override render(): TemplateResult {
    const t = this.t.create
    return html`<div class="card">
      <h2>${t.heading}</h2>
      ${this.#content()}
    </div>`
  }

  #content(): TemplateResult {
    const t = this.t.create
    if (connection.userId === null) return html`<p class="quiet">${t.signIn}</p>`
    if (this.failure !== null) {
      return html`<p class="error" role="alert">${fill(t.failedToRead, { reason: this.failure })}</p>
        <p><button type="button" @click=${() => this.#read(this.client)}>${this.t.retryNow}</button></p>`
    }
    const { kinds } = this
    if (kinds === null) return html`<p class="quiet" role="status">${this.t.loading}</p>`
    const chosen = this.#chosen
    if (chosen === null) return html`<h3>${t.noKinds}</h3><p class="quiet">${t.noKindsHint}</p>`
    return this.#form(kinds, chosen)
  }

  #form(kinds: readonly Kind[], chosen: Kind): TemplateResult {
    const t = this.t.create
    const perItem = chosen.credits_per_item > 0
    const items = this.problems.get(ITEMS)
    return html`<form novalidate @submit=${this.#submitted}>
      <div class="field">
        <label for="kind">${t.kind}</label>
        <select id="kind" aria-describedby="about" @change=${(event: Event) => (this.kind = (event.target as HTMLSelectElement).value)}>
          ${kinds.map(({ kind }) => html`<option value=${kind} .selected=${kind === chosen.kind}>${kind}</option>`)}
        </select>
        <p class="quiet note" id="about">${chosen.description}</p>
      </div>
      ${this.#payload()}
      ${chosen.max_items === 0
        ? nothing
        : html`<job-item-keys
            .keys=${this.keys}
            .most=${chosen.max_items}
            .required=${perItem}
            .problem=${items === undefined ? this.itemsRefused : problemInWords(items)}
            @change=${this.#itemsChanged}
          ></job-item-keys>`}
      ${this.#price(chosen)}
      <p class="error" role="alert">${this.refused || (this.problems.size > 0 ? counted(t.mistakes, this.problems.size) : nothing)}</p>
      <div><button class="primary" ?disabled=${this.busy || this.#lacking(chosen)}>${this.busy ? t.submitting : t.submit}</button></div>
    </form>`
  }

  #payload(): unknown {
    const form: Form = { problems: this.problems, change: (path, draft, focus) => this.#changed(path, draft, focus) }
    const { shape, hint } = this.#field
    if (shape.type === 'group') return fieldsView(shape.fields, this.draft, '', form)
    const t = this.t.create
    return fieldView({ ...this.#field, hint: hint || t.payloadHint }, this.draft, '', form, t.payload)
  }

  #price(kind: Kind): TemplateResult {
    const t = this.t.create
    const total = priceOf(kind, this.keys.length)
    const perItem = kind.credits_per_item > 0
    const values = {
      price: language.number(perItem ? kind.credits_per_item : kind.credits_per_job),
      count: language.number(this.keys.length),
      total: language.number(total),
    }
    const what = perItem ? (this.keys.length === 0 ? t.perItem : t.total) : kind.credits_per_job > 0 ? t.perJob : t.free
    const available = this.#account.balance?.available
    return html`<div class="price" role="status">
      <p><strong>${t.price}:</strong> ${fill(what, values)}</p>
      ${total === 0 || available === undefined
        ? nothing
        : available < total
          ? html`<p class="error">${lackInWords(total, available)}</p>`
          : html`<p class="quiet">
              ${fill(t.balanceAfter, { available: language.number(available), after: language.number(available - total) })}
            </p>`}
    </div>`
  }

  #lacking(kind: Kind): boolean {
    const { balance } = this.#account
    return balance !== null && balance.available < priceOf(kind, this.keys.length)
  }

  #changed(path: string, draft: Draft, focus?: string): void {
    this.draft = put(this.draft, path, draft)
    this.#focus = focus ?? null
    this.refused = ''
    if (this.#tried) this.#judge()
  }

  readonly #itemsChanged = (): void => {
    this.keys = this.itemKeys?.keys ?? []
    this.itemsRefused = ''
    this.refused = ''
    if (this.#tried) this.#judge()
  }

  /** The payload, as far as it is right; `problems` says what is not. */
  #judge(): Json | undefined {
    const found: Problem[] = []
    const payload = collect(this.#field, this.draft, found)
    const kind = this.#chosen
    const least = kind !== null && kind.credits_per_item > 0 ? 1 : 0
    if (this.keys.length < least) found.push({ path: ITEMS, code: 'tooFew', values: { least } })
    if (kind !== null && this.keys.length > kind.max_items) found.push({ path: ITEMS, code: 'tooMany', values: { most: kind.max_items } })
    this.problems = new Map(found.map((problem) => [problem.path, problem]))
    return payload
  }

  readonly #submitted = (event: SubmitEvent): void => {
    event.preventDefault()
    void this.#submit()
  }

  async #submit(): Promise<void> {
    const kind = this.#chosen
    if (kind === null || this.busy) return
    this.itemKeys?.take()
    this.#tried = true
    const payload = this.#judge()
    const [first] = this.problems.keys()
    if (first !== undefined) {
      if (first === ITEMS) this.itemKeys?.focus()
      else this.#focus = first
      this.requestUpdate()
      return
    }
    this.busy = true
    this.refused = ''
    try {
      const items = this.keys.length === 0 ? {} : { items: this.keys }
      const { data, error } = await this.client.rpc('create_job', { kind: kind.kind, payload, ...items, idempotency_key: this.#once })
      if (error) throw error
      this.#open(kind)
      toast(this, this.t.create.created, 'info')
      tell(this, 'job-created', { id: (data as Job).id })
    } catch (error) {
      this.#fail(error)
    } finally {
      this.busy = false
    }
  }

  #fail(error: unknown): void {
    const { code } = error as { code?: unknown }
    if (code === 'JQ007') this.#once = newKey() // an answer had been lost: what it said is known now
    if (code === 'JQ005') {
      this.itemsRefused = messageOf(error)
      this.itemKeys?.focus()
    } else this.refused = refusalOf(error)
  }
}

/** 128 random bits. `crypto.randomUUID` is there on secure pages only. */
function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

declare global {
  interface HTMLElementTagNameMap {
    'job-create': JobCreate
  }
}
