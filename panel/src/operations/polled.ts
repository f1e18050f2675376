import type { ReactiveController, ReactiveControllerHost } from 'lit'

const SOON_MS = 1_000

/**
 * Something that is read again and again while the page is looked at: `everyMs` after the last reading ended, so that
 * a slow database is not asked faster than it answers. What was read last stays when a reading fails.
 */
export class Polled<T> implements ReactiveController {
  value: T | null = null
  /** Why the last reading failed; null while readings succeed. */
  failure: unknown = null
  /** When `value` was read, in milliseconds since 1970. */
  readAt = 0
  readonly #host: ReactiveControllerHost
  readonly #read: () => Promise<T>
  readonly #everyMs: number
  #next: ReturnType<typeof setTimeout> | undefined
  #reading: Promise<void> | null = null
  #again = false
  #run = 0 // grows with each start and stop: an answer to an earlier question is not shown
  #going = false
  #hurried = false

  constructor(host: ReactiveControllerHost, everyMs: number, read: () => Promise<T>) {
    this.#host = host
    this.#everyMs = everyMs
    this.#read = read
    host.addController(this)
  }

  /** Forget what was read; the first `refresh()` is the caller's, further ones come by themselves. */
  start(): void {
    this.stop()
    this.value = null
    this.failure = null
    this.#going = true
    document.addEventListener('visibilitychange', this.#looked)
    this.#host.requestUpdate()
  }

  stop(): void {
    this.#run += 1
    this.#going = false
    this.#reading = null
    clearTimeout(this.#next)
    document.removeEventListener('visibilitychange', this.#looked)
  }

  hostDisconnected(): void {
    this.stop()
  }

  /** Read now, or once more after the reading that is under way. Raises what the reading raised. */
  refresh(): Promise<void> {
    this.#again = this.#reading !== null
    this.#reading ??= this.#readAll(this.#run)
    return this.#reading
  }

  /** Something changed, and more may follow: read in a second. */
  soon(): void {
    if (this.#hurried) return // or a steady stream of changes would put it off for ever
    this.#plan(Math.min(SOON_MS, this.#everyMs))
    this.#hurried = true
  }

  async #readAll(run: number): Promise<void> {
    clearTimeout(this.#next)
    try {
      do {
        this.#again = false
        const value = await this.#read()
        if (run !== this.#run) return
        this.value = value
        this.failure = null
        this.readAt = Date.now()
      } while (this.#again)
    } catch (error) {
      if (run !== this.#run) return
      this.failure = error
      throw error
    } finally {
      if (run === this.#run) {
        this.#reading = null
        this.#host.requestUpdate()
        this.#plan(this.#everyMs)
      }
    }
  }

  #plan(ms: number): void {
    clearTimeout(this.#next)
    this.#hurried = false
    if (!this.#going || document.hidden) return // what nobody looks at is read when somebody does
    this.#next = setTimeout(() => void this.refresh().catch(() => undefined), ms)
  }

  readonly #looked = (): void => {
    if (!document.hidden) void this.refresh().catch(() => undefined)
    else clearTimeout(this.#next)
  }
}
