import type { SupabaseClient } from '@supabase/supabase-js'
import type { ReactiveController, ReactiveControllerHost } from 'lit'
import { Live, type Change } from '../live'
import type { Job } from '../rows'
import { asJob, fits, Pages, type Filter, type Page } from './pages'

/** Rows of the first page, which is read again and again, and of each further one. */
const FIRST = 60
const MORE = 200
/** Rows on either side of the visible ones that are asked for before they are reached, and that are kept. */
const AHEAD = 40
const KEPT = 400
/** So many new jobs wait for somebody who has scrolled down; beyond, the list begins anew. */
const HELD = 500
/** So many jobs' events wait for the next frame; beyond, everything is read again instead. */
const QUEUED = 5_000
const PATIENCE_MS = 10_000
const HIDDEN_MS = 1_000
const SOON_MS = 1_000

export interface ListEvents {
  /** A row left the list, where it had been. */
  gone: (index: number) => void
  /** A row that was not there came in, where it is now. */
  came: (index: number) => void
  /** Jobs have changed, or may have. */
  changed: () => void
}

/** The rows of a list and how they stay fresh. The component says what is looked at; this reads it and merges events in. */
export class ListFeed implements ReactiveController {
  readonly live: Live
  readonly pages = new Pages()
  /** True until there is a first answer to the present filter. */
  loading = true
  filter: Filter = { statuses: [], queue: null, search: '' }
  /** While true, new jobs come in on top at once. */
  atTop = true
  readonly #host: ReactiveControllerHost
  readonly #hears: ListEvents
  readonly #held = new Map<string, Job>()
  #tooMany = false
  #client: SupabaseClient | null = null
  #asking = new AbortController()
  #filling = false
  #from = 0
  #to = 0
  #queued = new Map<string, Change>()
  #frame: ReturnType<typeof setTimeout> | number | undefined
  #framed = false
  #soon: ReturnType<typeof setTimeout> | undefined
  /** What was told since a reading began, which may not know it. */
  readonly #told = new Map<string, Change>()
  #readings = 0

  constructor(host: ReactiveControllerHost, hears: ListEvents) {
    this.#host = host
    this.#hears = hears
    this.live = new Live(host)
    host.addController(this)
  }

  /** Begin anew. `everybody`: events tell of the user's own jobs only, so all are read every 5 s besides. */
  start(client: SupabaseClient, everybody: boolean): void {
    this.#client = client
    this.#forget()
    this.live.start(client, {
      tables: [{ table: 'jobs' }],
      refresh: () => this.#refresh(),
      change: (change) => this.#heard(change),
      eventsSuffice: !everybody,
    })
  }

  stop(): void {
    this.live.stop()
    this.#forget()
    this.#client = null
  }

  setFilter(filter: Filter): void {
    this.filter = filter
    this.#forget()
    if (this.#client !== null) void this.live.refresh()
    this.#host.requestUpdate()
  }

  /** New jobs that wait to be shown. */
  get news(): { count: number; more: boolean } {
    return { count: this.#held.size, more: this.#tooMany }
  }

  /** Show what waited. */
  showNews(): void {
    this.atTop = true
    if (this.#tooMany) void this.live.refresh()
    else for (const job of [...this.#held.values()].reverse()) this.pages.upsert(job)
    this.#held.clear()
    this.#tooMany = false
    this.#host.requestUpdate()
  }

  /** These rows are looked at: have them, and what comes next. */
  look(from: number, to: number): void {
    this.#from = from
    this.#to = to
    if (!this.#filling && !this.loading && this.#client !== null && this.#missing()) void this.#fill()
  }

  hostConnected(): void {}

  hostDisconnected(): void {
    this.stop()
  }

  #forget(): void {
    this.#asking.abort()
    this.#asking = new AbortController()
    this.pages.reset([], FIRST)
    this.#held.clear()
    this.#tooMany = false
    this.#told.clear()
    this.#unqueue()
    clearTimeout(this.#soon)
    this.#soon = undefined
    this.loading = true
    this.#from = 0
    this.#to = 0
  }

  async #refresh(): Promise<void> {
    const { signal } = this.#asking
    const first = await this.#read(null, FIRST, signal)
    if (signal.aborted) return
    if (this.loading || this.atTop) this.pages.reset(first, FIRST)
    else {
      this.#offer(first)
      this.pages.keep(this.#from - AHEAD, this.#to + AHEAD)
      for (const page of this.pages.between(this.#from - AHEAD, this.#to + AHEAD)) await this.#reread(page, signal)
    }
    this.loading = false
    this.#settled()
    this.look(this.#from, this.#to)
  }

  /** New jobs, for somebody who has scrolled down. If none of those read is known, there are more between. */
  #offer(read: Job[]): void {
    const fresh = read.filter((job) => this.pages.isNew(job.id))
    if (fresh.length === read.length && read.length === FIRST) this.#tooMany = true
    for (const job of fresh.reverse()) this.#hold(job)
  }

  #hold(job: Job): void {
    if (this.#held.size < HELD || this.#held.has(job.id)) this.#held.set(job.id, job)
    else this.#tooMany = true
  }

  #missing(): boolean {
    const { pages } = this
    if (pages.between(this.#from - AHEAD, this.#to + AHEAD).some((page) => page.rows === null)) return true
    return !pages.complete && this.#to + AHEAD > pages.length
  }

  async #fill(): Promise<void> {
    const { signal } = this.#asking
    this.#filling = true
    try {
      while (!signal.aborted && this.#missing()) {
        const lost = this.pages.between(this.#from - AHEAD, this.#to + AHEAD).find((page) => page.rows === null)
        if (lost !== undefined) await this.#reread(lost, signal)
        else {
          const oldest = this.pages.oldest
          const rows = await this.#read(oldest, MORE, signal)
          if (!signal.aborted && oldest === this.pages.oldest) this.pages.append(rows, MORE)
        }
        if (signal.aborted) return
        this.pages.keep(this.#from - KEPT, this.#to + KEPT)
        this.#settled()
      }
    } catch {
      if (!signal.aborted) void this.live.refresh() // says that it fails, and goes on trying
    } finally {
      this.#filling = false
    }
    if (signal.aborted) this.look(this.#from, this.#to)
  }

  async #reread(page: Page, signal: AbortSignal): Promise<void> {
    const rows: Job[] = []
    for (let before = page.before; ; ) {
      const more = await this.#read(before, MORE, signal)
      rows.push(...more)
      before = more.at(-1)?.id ?? null
      if (more.length < MORE || before === null || before <= page.last) break
    }
    if (!signal.aborted) this.pages.put(page, rows)
  }

  async #read(before: string | null, limit: number, signal: AbortSignal): Promise<Job[]> {
    const { statuses, queue, search } = this.filter
    this.#readings += 1
    try {
      const { data, error } = await (this.#client as SupabaseClient)
        .rpc('read_jobs', { statuses: statuses.length > 0 ? statuses : null, queue, search: search || null, before, limit })
        .abortSignal(AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]))
      if (signal.aborted) return []
      if (error !== null) throw error
      return data as Job[]
    } finally {
      this.#readings -= 1
    }
  }

  /** Rows that were read are in their place: what was told meanwhile comes on top of them. */
  #settled(): void {
    for (const change of this.#told.values()) this.#merge(change)
    if (this.#readings === 0) this.#told.clear()
    this.#hears.changed()
    this.#host.requestUpdate()
  }

  #heard(change: Change): void {
    const id = String((change.eventType === 'DELETE' ? change.old : change.new)['id'])
    this.#queued.set(id, change)
    if (this.#queued.size > QUEUED) {
      this.#unqueue()
      this.#later()
      return
    }
    if (this.#frame !== undefined) return
    this.#framed = !document.hidden
    const now = (): void => this.#flush()
    this.#frame = this.#framed ? requestAnimationFrame(now) : setTimeout(now, HIDDEN_MS)
  }

  #unqueue(): void {
    this.#queued = new Map()
    if (this.#framed) cancelAnimationFrame(this.#frame as number)
    else clearTimeout(this.#frame)
    this.#frame = undefined
  }

  #flush(): void {
    const changes = [...this.#queued]
    this.#unqueue()
    for (const [id, change] of changes) {
      if (this.#readings > 0) this.#told.set(id, change)
      this.#merge(change)
    }
    this.pages.keep(this.#from - KEPT, this.#to + KEPT)
    this.#hears.changed()
    this.#host.requestUpdate()
  }

  #merge(change: Change): void {
    if (this.loading) return // kept in what was told
    if (change.eventType === 'DELETE') {
      this.#drop(String(change.old['id']))
      return
    }
    const id = String(change.new['id'])
    const known = this.pages.get(id) ?? this.#held.get(id)
    const job = asJob(change.new, known)
    if (known !== undefined && Date.parse(known.updated_at) > Date.parse(job.updated_at)) return
    if (!fits(job, this.filter)) this.#drop(id)
    else if (this.#held.has(id)) this.#hold(job)
    else if (known !== undefined) this.pages.upsert(job)
    else if (this.filter.search !== '') this.#later() // whether it belongs here, the database says
    else if (this.pages.isNew(id) && !this.atTop) this.#hold(job)
    else if (this.pages.upsert(job)) this.#hears.came(this.pages.indexOf(id))
  }

  #drop(id: string): void {
    this.#held.delete(id)
    const index = this.pages.remove(id)
    if (index >= 0) this.#hears.gone(index)
  }

  #later(): void {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined
      void this.live.refresh()
    }, SOON_MS)
  }
}
