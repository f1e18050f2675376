import type { SupabaseClient } from '@supabase/supabase-js'
import type { ReactiveController, ReactiveControllerHost } from 'lit'

/** How many jobs wait and run: all that can be counted without reading through what has ended. */
export interface Open {
  pending: number
  processing: number
}

const EVERY_MS = 2_000
/** A counting that takes long is repeated less often: at most this share of the time is spent counting. */
const SHARE = 0.05

/** Counts open jobs, and knows the queues there are to choose from. */
export class Counts implements ReactiveController {
  open: Open | null = null
  queues: readonly string[] = []
  readonly #host: ReactiveControllerHost
  readonly #told: (open: Open) => void
  #client: SupabaseClient | null = null
  #everybody = false
  #timer: ReturnType<typeof setTimeout> | undefined
  #next = 0

  constructor(host: ReactiveControllerHost, told: (open: Open) => void) {
    this.#host = host
    this.#told = told
    host.addController(this)
  }

  start(client: SupabaseClient, everybody: boolean): void {
    this.stop()
    this.#client = client
    this.#everybody = everybody
    this.#next = 0
    if (!everybody) void this.#readQueues(client)
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#client = null
    this.open = null
    this.queues = []
  }

  /** Jobs have changed: count again soon. */
  stir(): void {
    if (this.#client === null) return
    this.#timer ??= setTimeout(() => void this.#count(), Math.max(0, this.#next - performance.now()))
  }

  hostConnected(): void {}

  hostDisconnected(): void {
    this.stop()
  }

  async #count(): Promise<void> {
    const client = this.#client
    if (client === null) return
    const began = performance.now()
    const open = this.#everybody ? await this.#ofQueues(client) : await ofUser(client)
    const took = performance.now() - began
    if (client !== this.#client) return
    this.#next = performance.now() + Math.max(EVERY_MS, took / SHARE)
    this.#timer = undefined
    if (open === null) return // the list itself says that the server cannot be reached
    this.open = open
    this.#told(open)
    this.#host.requestUpdate()
  }

  async #ofQueues(client: SupabaseClient): Promise<Open | null> {
    const { data, error } = await client.rpc('read_queues')
    if (error !== null) return null
    const rows = data as { queue: string; due: number; waiting: number; scheduled: number; processing: number }[]
    this.queues = rows.map((row) => row.queue).sort()
    return {
      pending: rows.reduce((sum, row) => sum + row.due + row.waiting + row.scheduled, 0),
      processing: rows.reduce((sum, row) => sum + row.processing, 0),
    }
  }

  async #readQueues(client: SupabaseClient): Promise<void> {
    const { data } = await client.from('job_kinds').select('queue')
    if (client !== this.#client || data === null) return
    this.queues = [...new Set((data as { queue: string }[]).map((kind) => kind.queue))].sort()
    this.#host.requestUpdate()
  }
}

async function ofUser(client: SupabaseClient): Promise<Open | null> {
  const [pending, processing] = await Promise.all(
    ['pending', 'processing'].map((status) =>
      client.from('jobs').select('id', { count: 'exact', head: true }).eq('status', status),
    ),
  )
  if (typeof pending?.count !== 'number' || typeof processing?.count !== 'number') return null
  return { pending: pending.count, processing: processing.count }
}
