import type { Job, JobStatus } from '../rows'

/** A stretch of the list: the rows below `before` (null: the newest) down to `last`. Without rows while nobody looks. */
export interface Page {
  readonly before: string | null
  readonly last: string
  readonly count: number
  readonly rows: Job[] | null
}

/** Longer ones are cut in two, so that a page that grows on top can be let go in parts. */
const LONGEST = 400

/**
 * The jobs of a list, newest first, as far down as somebody scrolled. It remembers where each page begins and how many rows
 * it has, and the rows only near what is looked at: 100,000 jobs cost no more than a few hundred.
 *
 * Ids are UUIDs of version 7: their order is the order of creation.
 */
export class Pages {
  /** There is nothing older than what is known. */
  complete = false
  #pages: Page[] = []
  #newest: string | null = null

  get length(): number {
    return this.#pages.reduce((sum, page) => sum + page.count, 0)
  }

  /** Where the next page begins. */
  get oldest(): string | null {
    return this.#pages.at(-1)?.last ?? null
  }

  isNew(id: string): boolean {
    return this.#newest === null ? this.complete : id > this.#newest
  }

  /** Begin anew with the first page; whoever asked for more rows than came has them all. */
  reset(rows: Job[], asked: number): void {
    const known = new Map(this.loaded().map((job) => [job.id, job]))
    this.#pages = []
    this.#newest = rows[0]?.id ?? null
    this.complete = false
    this.append(rows.map((job) => newer(known.get(job.id), job)), asked)
  }

  append(rows: Job[], asked: number): void {
    this.complete = rows.length < asked
    const last = rows.at(-1)
    if (last === undefined) return
    this.#newest ??= rows[0]?.id ?? null
    this.#pages.push({ before: this.oldest, last: last.id, count: rows.length, rows })
  }

  /** A page was read again: all rows below its `before`, at least down to its `last`. */
  put(page: Page, read: Job[]): void {
    const index = this.#pages.findIndex((other) => other.before === page.before && other.last === page.last)
    if (index < 0) return // cut, or forgotten, meanwhile: it is asked for again if it is looked at
    const open = this.complete && index === this.#pages.length - 1
    const known = new Map((page.rows ?? []).map((job) => [job.id, job]))
    const rows = read
      .filter((job) => open || job.id >= page.last)
      .map((job) => newer(known.get(job.id), job))
    const end = rows.at(-1)?.id
    this.#pages[index] = { ...page, last: end !== undefined && end < page.last ? end : page.last, count: rows.length, rows }
  }

  /** One row in its newest form: put where it belongs, in place of an older form. False if it is not where one looks. */
  upsert(job: Job): boolean {
    if (this.#newest === null || job.id > this.#newest) this.#newest = job.id
    const index = this.#find(job.id)
    if (index === -1) {
      if (!this.complete) return false
      this.#pages.push({ before: this.oldest, last: job.id, count: 1, rows: [job] })
      return true
    }
    const page = this.#pages[index] as Page
    if (page.rows === null) return false
    const at = page.rows.findIndex((row) => row.id <= job.id)
    const rows = [...page.rows]
    const there = at >= 0 ? rows[at] : undefined
    if (at >= 0 && there?.id === job.id) rows[at] = newer(there, job)
    else rows.splice(at < 0 ? rows.length : at, 0, job)
    this.#pages[index] = { ...page, count: rows.length, rows }
    if (rows.length > LONGEST) this.#cut(index)
    return true
  }

  /** Returns the index that it had, or -1 if it is not among the loaded rows. */
  remove(id: string): number {
    const at = this.indexOf(id)
    if (at < 0) return -1
    const index = this.#find(id)
    const page = this.#pages[index] as Page
    const rows = (page.rows ?? []).filter((job) => job.id !== id)
    this.#pages[index] = { ...page, count: rows.length, rows }
    return at
  }

  get(id: string): Job | undefined {
    return this.#pages[this.#find(id)]?.rows?.find((job) => job.id === id)
  }

  /** The index of a loaded row, or -1. */
  indexOf(id: string): number {
    const index = this.#find(id)
    const at = this.#pages[index]?.rows?.findIndex((job) => job.id === id) ?? -1
    if (at < 0) return -1
    return this.#pages.slice(0, index).reduce((sum, page) => sum + page.count, at)
  }

  /** Rows from one index to another (exclusive); undefined where they are not loaded. */
  slice(from: number, to: number): (Job | undefined)[] {
    const found: (Job | undefined)[] = []
    let start = 0
    for (const page of this.#pages) {
      for (let i = Math.max(from, start); i < Math.min(to, start + page.count); i += 1) found.push(page.rows?.[i - start])
      start += page.count
      if (start >= to) break
    }
    return found
  }

  loaded(): Job[] {
    return this.#pages.flatMap((page) => page.rows ?? [])
  }

  /** The pages with rows between these indexes. */
  between(from: number, to: number): Page[] {
    let start = 0
    return this.#pages.filter((page) => {
      start += page.count
      return start > from && start - page.count < to
    })
  }

  /** Let go of the rows of all other pages. */
  keep(from: number, to: number): void {
    const kept = new Set(this.between(from, to))
    this.#pages = this.#pages.map((page) => (kept.has(page) || page.rows === null ? page : { ...page, rows: null }))
  }

  #find(id: string): number {
    let low = 0
    let high = this.#pages.length
    while (low < high) {
      const middle = (low + high) >> 1
      if ((this.#pages[middle] as Page).last <= id) high = middle
      else low = middle + 1
    }
    return low < this.#pages.length ? low : -1
  }

  #cut(index: number): void {
    const page = this.#pages[index] as Page
    const rows = page.rows ?? []
    const half = rows.length >> 1
    const last = (rows[half - 1] as Job).id
    this.#pages.splice(
      index,
      1,
      { before: page.before, last, count: half, rows: rows.slice(0, half) },
      { before: last, last: page.last, count: rows.length - half, rows: rows.slice(half) },
    )
  }
}

export interface Filter {
  /** None: all. */
  statuses: readonly JobStatus[]
  queue: string | null
  /** What it means is decided by the database alone. */
  search: string
}

/** Whether an event's row belongs into the list, as far as that can be told here. */
export function fits(job: Job, filter: Filter): boolean {
  if (filter.statuses.length > 0 && !filter.statuses.includes(job.status)) return false
  return filter.queue === null || filter.queue === job.queue
}

/** Events and readings overtake one another: the later change wins. */
export function newer(known: Job | undefined, job: Job): Job {
  return known !== undefined && Date.parse(known.updated_at) > Date.parse(job.updated_at) ? known : job
}

const COLUMNS: readonly (keyof Job)[] = [
  'id', 'queue', 'kind', 'owner_id', 'status', 'priority', 'progress', 'progress_message', 'items_total', 'items_done',
  'items_failed', 'attempt', 'max_attempts', 'run_at', 'created_at', 'started_at', 'finished_at', 'updated_at',
  'cancel_requested_at', 'error_code', 'error_message', 'credits_held', 'credits_captured', 'credits_refunded', 'retry_of',
  'parent_id', 'tags',
]

/** What a list keeps of an event's row: not its payload or result. Columns that the event left out stay as they were. */
export function asJob(record: { [column: string]: unknown }, known?: Job): Job {
  const told = COLUMNS.filter((column) => record[column] !== undefined).map((column) => [column, record[column]])
  return { ...known, ...Object.fromEntries(told) } as Job
}
