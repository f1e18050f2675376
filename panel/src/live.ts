import type { RealtimeChannel, RealtimePostgresChangesPayload, SupabaseClient } from '@supabase/supabase-js'
import type { ReactiveController, ReactiveControllerHost } from 'lit'

/** `live`: events come. `refreshing`: the channel is down and rows are read every 5 s. `offline`: that fails, too. */
export type LiveState = 'connecting' | 'live' | 'refreshing' | 'offline'

export interface Watched {
  table: string
  /** As Realtime wants it, such as `job_id=eq.…`. */
  filter?: string
}

export type Change = RealtimePostgresChangesPayload<{ [column: string]: unknown }> & { table: string }

export interface LiveOptions {
  /** What to hear of. */
  tables: Watched[]
  /** Read all that is shown. Called at each start and after each gap, so that nothing is missed; raises if it fails. */
  refresh: () => Promise<void>
  /** One row changed. */
  change: (change: Change) => void
  /** False: there is more to see than events tell of, so rows are read every 5 s besides. Default true. */
  eventsSuffice?: boolean
}

const EVERY_MS = 5_000
let channels = 0

/**
 * Keeps a component's rows fresh: events while the channel is up, reading every 5 s while it is not, and one reading
 * whenever it comes (back) up, because events during a gap are lost.
 *
 * Up means the server's `system` message for `postgres_changes`; SUBSCRIBED comes before events flow.
 */
export class Live implements ReactiveController {
  state: LiveState = 'connecting'
  /** Why the last reading failed, in the server's words; null while readings succeed. */
  failure: string | null = null
  readonly #host: ReactiveControllerHost
  #options: LiveOptions | null = null
  #client: SupabaseClient | null = null
  #channel: RealtimeChannel | null = null
  #timer: ReturnType<typeof setTimeout> | undefined
  #reading: Promise<void> | null = null
  #again = false
  #up = false

  constructor(host: ReactiveControllerHost) {
    this.#host = host
    host.addController(this)
  }

  /** Watch these tables from now on, in place of what was watched before. */
  start(client: SupabaseClient, options: LiveOptions): void {
    this.stop()
    this.#client = client
    this.#options = options
    this.#set('connecting')
    const channel = client.channel(`job-panel:${(channels += 1)}`)
    for (const watched of options.tables) {
      const filter = { event: '*' as const, schema: 'public', ...watched }
      channel.on('postgres_changes', filter, (change) => {
        if (this.#channel === channel) this.#options?.change(change as Change)
      })
    }
    channel.on('system', {}, (message: { extension?: string; status?: string }) => {
      if (this.#channel === channel && message.extension === 'postgres_changes') this.#heard(message.status === 'ok')
    })
    this.#channel = channel
    const join = (): void => {
      if (this.#channel !== channel) return
      channel.subscribe((status) => {
        if (this.#channel === channel && status !== 'SUBSCRIBED') this.#heard(false)
      })
    }
    // the token first: who joins with another one is told, until the next token, only what strangers may see
    void client.realtime.setAuth().then(join, join)
    window.addEventListener('online', this.#found)
    window.addEventListener('offline', this.#lost)
    document.addEventListener('visibilitychange', this.#wake)
    void this.refresh()
  }

  stop(): void {
    window.removeEventListener('online', this.#found)
    window.removeEventListener('offline', this.#lost)
    document.removeEventListener('visibilitychange', this.#wake)
    clearTimeout(this.#timer)
    const channel = this.#channel
    this.#channel = null
    this.#options = null
    this.#up = false
    if (channel !== null) void this.#client?.removeChannel(channel)
  }

  /** Read everything now; a call while one is under way asks for another one after it. */
  async refresh(): Promise<void> {
    if (this.#reading !== null) {
      this.#again = true
      return this.#reading
    }
    this.#reading = this.#read().finally(() => (this.#reading = null))
    return this.#reading
  }

  hostConnected(): void {}

  hostDisconnected(): void {
    this.stop()
  }

  async #read(): Promise<void> {
    do {
      this.#again = false
      const options = this.#options
      if (options === null) return
      clearTimeout(this.#timer)
      let failure: string | null = null
      try {
        await options.refresh()
      } catch (error) {
        failure = messageOf(error)
      }
      if (options !== this.#options) {
        this.#again = this.#options !== null // started anew meanwhile: what was read is of the old one
        continue
      }
      this.failure = failure
      this.#judge()
    } while (this.#again)
  }

  #judge(): void {
    const enough = this.#up && this.#options?.eventsSuffice !== false
    const down = this.failure !== null || !enough
    if (this.failure !== null) this.#set('offline')
    else if (enough) this.#set('live')
    else if (this.#up) this.#set('refreshing')
    else if (this.state !== 'connecting') this.#set('refreshing')
    else this.#host.requestUpdate()
    clearTimeout(this.#timer)
    // hidden pages need not be fresh: they read when they are looked at again
    if (down && this.#options !== null && !document.hidden) this.#timer = setTimeout(() => this.#overdue(), EVERY_MS)
  }

  #overdue(): void {
    if (this.state === 'connecting') this.#set('refreshing')
    void this.refresh()
  }

  #heard(up: boolean): void {
    const before = this.#up
    this.#up = up
    if (up) void this.refresh() // what happened while it was down
    else if (before || this.state === 'connecting') {
      this.#set('refreshing')
      void this.refresh()
    }
  }

  readonly #wake = (): void => {
    if (!document.hidden) void this.refresh()
  }

  readonly #lost = (): void => {
    this.#up = false
    this.#set('offline')
    void this.refresh()
  }

  /** A channel that outlived the gap would not say `system` again: begin a new one. */
  readonly #found = (): void => {
    if (this.#client !== null && this.#options !== null) this.start(this.#client, this.#options)
  }

  #set(state: LiveState): void {
    this.state = state
    this.#host.requestUpdate()
  }
}

/** What an error of supabase-js says, with the hint that our functions give. */
export function messageOf(error: unknown): string {
  if (error === null || typeof error !== 'object') return String(error)
  const { message, hint } = error as { message?: unknown; hint?: unknown }
  const text = typeof message === 'string' && message !== '' ? message : String(error)
  return typeof hint === 'string' && hint !== '' ? `${text}. ${hint}` : text
}
