import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, query } from 'lit/decorators.js'
import { repeat } from 'lit/directives/repeat.js'
import { Clock } from './clock'
import { connection } from './connection'
import { JobElement } from './element'
import { fill, language } from './language'
import { Counts } from './list/counts'
import { ListFeed } from './list/feed'
import { cannotRead, none, noneFound, notRead, signedOut, waiting } from './list/messages'
import { emptyRow, jobRow } from './list/row'
import { listLook } from './list/styles'
import { tools } from './list/tools'

const NARROW = 720
const HEIGHT = { wide: 56, narrow: 84 }
/** Rows drawn above and below the visible ones. */
const MARGIN = 6
const TYPING_MS = 250

/**
 * The user's jobs, newest first, live; everybody's for operators. Emits `job-open` {id} and `job-counts` {pending, processing}.
 * What stands in slot `empty` is shown to those who have no job yet.
 */
@customElement('job-list')
export class JobList extends JobElement {
  static override styles = [JobElement.styles, listLook]

  /** The id of the job that is open beside the list. */
  @property() selected = ''
  @query('.scroll') private scroller!: HTMLElement | null
  @query('input') private searchField!: HTMLInputElement

  readonly #feed = new ListFeed(this, {
    gone: (index) => this.#gone(index),
    came: (index) => this.#came(index),
    changed: () => this.#counts.stir(),
  })
  readonly #counts = new Counts(this, (open) => this.#tell('job-counts', open))
  readonly #sizes = new ResizeObserver(() => this.#resized())
  #typing: ReturnType<typeof setTimeout> | undefined
  #rowHeight = HEIGHT.wide
  #viewHeight = 0
  #top = 0
  #active: string | null = null
  /** A row that was moved to with the keyboard and is not drawn yet. */
  #moveTo: number | null = null

  constructor() {
    super()
    new Clock(this)
  }

  override connectedCallback(): void {
    super.connectedCallback()
    this.#sizes.observe(this)
    document.addEventListener('keydown', this.#slash)
  }

  override disconnectedCallback(): void {
    this.#sizes.disconnect()
    document.removeEventListener('keydown', this.#slash)
    clearTimeout(this.#typing)
    super.disconnectedCallback()
  }

  protected override connected(client: SupabaseClient): void {
    this.#feed.stop()
    this.#counts.stop()
    if (connection.userId === null) return
    this.#counts.start(client, connection.isOperator)
    this.#feed.start(client, connection.isOperator)
  }

  /** Read everything now. */
  refresh(): Promise<void> {
    return this.#feed.live.refresh()
  }

  /** Put the focus on a job's row, if it is among those loaded; else on the search field. */
  async focusJob(id: string): Promise<void> {
    await this.updateComplete
    const index = this.#feed.pages.indexOf(id)
    if (index >= 0) this.#move(index)
    else this.searchField.focus()
  }

  override render() {
    const { live, filter, loading } = this.#feed
    return html`
      ${tools({
        filter,
        live,
        counts: this.#counts,
        everybody: connection.isOperator,
        typed: this.#typed,
        choose: (chosen) => this.#filter(chosen),
      })}
      ${live.failure === null || loading ? nothing : notRead(live.failure, this.#again)}
      <div class="body">
        ${this.#news()}
        <div class="scroll" @scroll=${this.#scrolled}>${this.#body()}</div>
      </div>
    `
  }

  protected override updated(_changed: PropertyValues): void {
    if (this.#moveTo !== null) {
      const link = this.renderRoot.querySelector<HTMLElement>(`[aria-posinset="${this.#moveTo + 1}"] a`)
      if (link !== null) {
        this.#moveTo = null
        link.focus({ preventScroll: true })
      }
    }
    const { from, to } = this.#seen()
    this.#feed.look(from, to)
  }

  #news(): TemplateResult {
    const { count, more } = this.#feed.news
    const text = count === 1 ? this.t.list.oneNew : fill(this.t.list.someNew, { count: language.number(count) + (more ? '+' : '') })
    return html`<div class="news" role="status">
      ${count === 0 ? nothing : html`<button type="button" class="primary" @click=${this.#showNews}>↑ ${text}</button>`}
    </div>`
  }

  #body(): TemplateResult {
    const { live, filter, loading, pages } = this.#feed
    if (connection.userId === null) return signedOut()
    if (loading && live.failure !== null) return cannotRead(live.failure, this.#again)
    if (loading) return waiting(Math.ceil(Math.min(this.#viewHeight || 560, 1_200) / this.#rowHeight), this.#rowHeight)
    if (pages.length > 0) return this.#rows()
    return filter.statuses.length > 0 || filter.queue !== null || filter.search !== '' ? noneFound(this.#clear) : none()
  }

  #rows(): TemplateResult {
    const { pages } = this.#feed
    const count = pages.length
    const { from, to } = this.#seen()
    const rows = pages.slice(from, to).map((job, i) => ({ job, index: from + i, key: job?.id ?? `row ${from + i}` }))
    const active = this.#activeIndex()
    const drawn = rows.some((row) => row.index === active)
    const focused = drawn ? undefined : pages.slice(active, active + 1)[0]
    if (focused !== undefined) rows.push({ job: focused, index: active, key: focused.id }) // it keeps the focus
    const now = Date.now()
    const total = pages.complete ? count : -1
    const showOwner = connection.isOperator
    const open = (event: MouseEvent, id: string): void => this.#open(event, id)
    return html`<ul role="list" aria-label=${this.t.list.jobs} .style=${`height: ${count * this.#rowHeight}px`} @keydown=${this.#keyed}>
      ${repeat(
        rows,
        (row) => row.key,
        ({ job, index }) => {
          const y = index * this.#rowHeight
          if (job === undefined) return emptyRow(y)
          return jobRow(job, { index, total, y, now, open, showOwner, active: index === active, selected: job.id === this.selected })
        },
      )}
    </ul>`
  }

  /** The rows that are drawn. */
  #seen(): { from: number; to: number } {
    const first = Math.floor(this.#top / this.#rowHeight)
    const fitting = Math.ceil((this.#viewHeight || 560) / this.#rowHeight)
    const from = Math.max(0, first - MARGIN)
    return { from, to: Math.min(first + fitting + MARGIN, this.#feed.pages.length) }
  }

  #activeIndex(): number {
    const index = this.#active === null ? -1 : this.#feed.pages.indexOf(this.#active)
    return index >= 0 ? index : Math.ceil(this.#top / this.#rowHeight)
  }

  readonly #scrolled = (): void => {
    const scroller = this.scroller
    if (scroller === null || scroller.clientHeight === 0) return // hidden: it has no place to be at
    const before = Math.floor(this.#top / this.#rowHeight)
    this.#top = scroller.scrollTop
    this.#feed.atTop = this.#top < this.#rowHeight / 2
    if (this.#feed.atTop && this.#feed.news.count > 0) this.#feed.showNews()
    if (Math.floor(this.#top / this.#rowHeight) !== before) this.requestUpdate()
  }

  #resized(): void {
    const scroller = this.scroller
    if (scroller === null || scroller.clientHeight === 0) return
    const height = this.clientWidth < NARROW ? HEIGHT.narrow : HEIGHT.wide
    const row = this.#top / this.#rowHeight
    this.#rowHeight = height
    this.#viewHeight = scroller.clientHeight
    this.requestUpdate()
    void this.updateComplete.then(() => this.#scrollTo(row * height)) // the same row on top as before
  }

  #scrollTo(top: number): void {
    if (this.scroller === null) return
    this.scroller.scrollTop = top
    this.#scrolled()
  }

  readonly #showNews = (): void => {
    this.#feed.showNews()
    this.#active = null
    this.#scrollTo(0)
    void this.updateComplete.then(() => this.#move(0))
  }

  /** A row above what is looked at has left the list: what is looked at stays where it is. */
  #gone(index: number): void {
    if ((index + 1) * this.#rowHeight <= this.#top) this.#scrollTo(this.#top - this.#rowHeight)
    if (index === this.#activeIndex()) this.#active = null
  }

  #came(index: number): void {
    if (!this.#feed.atTop && index * this.#rowHeight < this.#top) this.#scrollTo(this.#top + this.#rowHeight)
  }

  #open(event: MouseEvent, id: string): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey || getSelection()?.toString()) return // a new tab, or copying
    event.preventDefault()
    this.#active = id
    this.#tell('job-open', { id })
  }

  readonly #keyed = (event: KeyboardEvent): void => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const page = Math.max(1, Math.floor(this.#viewHeight / this.#rowHeight) - 1)
    const last = this.#feed.pages.length - 1
    const index = this.#activeIndex()
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, PageDown: index + page, PageUp: index - page, Home: 0, End: last }[event.key]
    if (to === undefined) return
    event.preventDefault()
    this.#move(Math.max(0, Math.min(last, to)))
  }

  #move(index: number): void {
    const top = index * this.#rowHeight
    if (top < this.#top) this.#scrollTo(top)
    else if (top + this.#rowHeight > this.#top + this.#viewHeight) this.#scrollTo(top + this.#rowHeight - this.#viewHeight)
    this.#active = this.#feed.pages.slice(index, index + 1)[0]?.id ?? null
    this.#moveTo = index
    this.requestUpdate()
  }

  readonly #slash = (event: KeyboardEvent): void => {
    const at = event.composedPath()[0]
    const typing = at instanceof HTMLElement && (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName))
    if (event.key !== '/' || typing || event.ctrlKey || event.metaKey || this.clientHeight === 0) return
    event.preventDefault()
    this.searchField.focus()
  }

  readonly #typed = (): void => {
    clearTimeout(this.#typing)
    this.#typing = setTimeout(() => this.#filter({ ...this.#feed.filter, search: this.searchField.value.trim() }), TYPING_MS)
  }

  readonly #again = (): void => void this.refresh()

  readonly #clear = (): void => {
    this.searchField.value = ''
    this.searchField.focus()
    this.#filter({ statuses: [], queue: null, search: '' })
  }

  #filter(filter: ListFeed['filter']): void {
    this.#active = null
    this.#scrollTo(0)
    this.#feed.setFilter(filter)
  }

  #tell(name: string, detail: object): void {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }))
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-list': JobList
  }
}
