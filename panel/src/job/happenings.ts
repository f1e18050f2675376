import { fill, language } from '../language'
import { hasEnded, type JobStatus } from '../rows'
import type { Whole } from './whole'
import { itemNames } from './words'

/** Something that happened to a job. */
export interface Happening {
  /** ISO. */
  at: string
  what: string
  /** How it looks: the state it stands for; null: nothing special. */
  as: JobStatus | null
}

/** With more items than this, each of them would bury the rest. */
const ITEMS = 30

/** What happened to a job, in order: as far as its rows still tell. */
export function happeningsOf({ job, items, entries }: Pick<Whole, 'job' | 'items' | 'entries'>): Happening[] {
  const t = language.strings.job.happened
  const found: Happening[] = [{ at: job.created_at, what: t.created, as: null }]
  const add = (at: string | null, what: string, as: JobStatus | null): void => {
    if (at !== null && at !== '') found.push({ at, what, as })
  }

  const moved = new Map<string, { at: string; kind: string; amount: number }>() // entries of one moment, of several lots
  for (const { created_at: at, kind, amount } of entries) {
    const key = `${at} ${kind}`
    moved.set(key, { at, kind, amount: amount + (moved.get(key)?.amount ?? 0) })
  }
  const texts: { [kind: string]: string } = {
    reserve: t.reserved,
    capture: t.captured,
    release: t.released,
    refund: t.refunded,
    expire: t.expired,
  }
  for (const { at, kind, amount } of moved.values()) {
    const text = texts[kind]
    if (text !== undefined) add(at, fill(text, { count: language.number(amount) }), null)
  }

  for (const { attempt, code, at } of job.errors) add(at, fill(t.attemptFailed, { attempt, code }), 'failed')
  add(job.started_at, fill(t.started, { attempt: job.attempt }), 'processing')
  if (items.length <= ITEMS) {
    const name = itemNames(items.map((item) => item.key))
    for (const item of items) {
      const values = { item: name(item.key), code: item.error_code ?? '' }
      if (item.status === 'completed') add(item.updated_at, fill(t.itemDone, values), 'completed')
      if (item.status === 'failed') add(item.updated_at, fill(t.itemFailed, values), 'failed')
      if (item.status === 'cancelled') add(item.updated_at, fill(t.itemCancelled, values), 'cancelled')
    }
  }
  add(job.cancel_requested_at, t.cancelRequested, 'cancelled')
  if (hasEnded(job)) add(job.finished_at, t[job.status as 'completed' | 'partial' | 'failed' | 'cancelled'], job.status)
  // what is of one moment stays in the order given above
  return found
    .map((one, n) => ({ one, n, time: Date.parse(one.at) }))
    .sort((a, b) => a.time - b.time || a.n - b.n)
    .map(({ one }) => one)
}
