import type { SupabaseClient } from '@supabase/supabase-js'
import type { Change } from '../live'
import { hasEnded, type FullJob, type Item, type Job, type JobStatus, type Json, type LogLine } from '../rows'

/** What is known of a job: read at first and after gaps, then kept up by events. */
export interface Whole {
  job: JobHere
  /** By position. */
  items: readonly ItemHere[]
  /** By id: the last of them. */
  logs: readonly LogLine[]
  /** Up to which line reading has seen all: of later ones, told by events, some may have been missed. */
  logsRead: number
  entries: readonly Entry[]
  children: readonly Relative[]
  /** The job that repeats this one. */
  repeatedBy: string | null
}

/** `result` is read when the job has ended; undefined: not yet. */
export type JobHere = Omit<FullJob, 'result'> & { result?: Json }
/** Results may be large: they are read when they are looked at. */
export type ItemHere = Omit<Item, 'payload' | 'result'>

export interface Entry {
  id: number
  kind: string
  amount: number
  created_at: string
}

export interface Relative {
  id: string
  kind: string
  status: JobStatus
}

export const LOG_LINES = 1_000
const PAGE = 1_000
const CHILDREN = 100

const OF_A_LIST =
  'id,queue,kind,owner_id,status,priority,progress,progress_message,items_total,items_done,items_failed,attempt,max_attempts,'
  + 'run_at,created_at,started_at,finished_at,updated_at,cancel_requested_at,error_code,error_message,'
  + 'credits_held,credits_captured,credits_refunded,retry_of,parent_id,tags'
const OF_A_JOB = `${OF_A_LIST},failures,errors,error_retryable,children_total,children_open,children_failed`
const OF_AN_ITEM = 'job_id,key,position,status,progress,attempts,credits,error_code,error_message,updated_at'

/** Read a job with all that belongs to it, or only what may have changed since `before`; null: it is not there for this user. */
export async function readWhole(client: SupabaseClient, id: string, before: Whole | null): Promise<Whole | null> {
  const read = await client.from('jobs').select(before === null ? `${OF_A_JOB},payload` : OF_A_JOB).eq('id', id).maybeSingle()
  if (read.error) throw read.error
  if (read.data === null) return null
  const job = { ...before?.job, ...(read.data as unknown as JobHere) }
  const settled = before !== null && hasEnded(before.job) && before.job.result !== undefined
  const logsRead = before?.logsRead ?? 0
  const [result, items, logs, entries, children, repeated] = await Promise.all([
    hasEnded(job) && !settled ? client.from('jobs').select('result').eq('id', id).maybeSingle() : null,
    settled ? before.items : readItems(client, job),
    client.from('job_logs').select('*').eq('job_id', id).gt('id', logsRead).order('id', { ascending: false }).limit(LOG_LINES),
    client.from('credit_entries').select('id,kind,amount,created_at').eq('job_id', id).order('id').limit(PAGE),
    client.from('jobs').select('id,kind,status').eq('parent_id', id).order('id').limit(CHILDREN),
    client.from('jobs').select('id').eq('retry_of', id).limit(1).maybeSingle(),
  ])
  for (const one of [result, logs, entries, children, repeated]) if (one?.error) throw one.error
  if (result?.data) job.result = (result.data as { result: Json }).result
  return {
    job,
    items,
    logs: mergeLogs(before?.logs ?? [], (logs.data ?? []) as LogLine[]),
    logsRead: (logs.data?.[0] as LogLine | undefined)?.id ?? logsRead,
    entries: (entries.data ?? []) as Entry[],
    children: (children.data ?? []) as Relative[],
    repeatedBy: (repeated.data as { id: string } | null)?.id ?? null,
  }
}

async function readItems(client: SupabaseClient, job: Pick<Job, 'id' | 'items_total'>): Promise<ItemHere[]> {
  const items: ItemHere[] = []
  while (items.length < job.items_total) {
    const read = await client
      .from('job_items')
      .select(OF_AN_ITEM)
      .eq('job_id', job.id)
      .gt('position', items.at(-1)?.position ?? 0)
      .order('position')
      .limit(PAGE)
    if (read.error) throw read.error
    if (read.data.length === 0) break
    items.push(...read.data)
  }
  return items
}

/** An operator's view of somebody else's job: rows are not theirs to select, `read_job` shows them. */
export async function readForeign(client: SupabaseClient, id: string): Promise<Whole | null> {
  const read = await client.rpc('read_job', { job_id: id })
  if (read.error) throw read.error
  if (read.data === null) return null
  const { job, items, logs, entries } = read.data as {
    job: JobHere
    items: ItemHere[] | null
    logs: LogLine[] | null
    entries: (Omit<Entry, 'id' | 'created_at'> & { id?: number; at?: string; created_at?: string })[] | null
  }
  return {
    job,
    items: (items ?? []).map((item) => ({ ...item, job_id: id })),
    logs: mergeLogs([], logs ?? []),
    logsRead: 0,
    entries: (entries ?? []).map((entry, n) => ({ ...entry, id: entry.id ?? n, created_at: entry.created_at ?? entry.at ?? '' })),
    children: [],
    repeatedBy: null,
  }
}

/** What was read, with what events told while it was being read. */
export function catchUp(read: Whole, known: Whole | null): Whole {
  if (known === null || known.job.id !== read.job.id) return read
  const items = new Map(known.items.map((item) => [item.key, item]))
  return {
    ...read,
    job: isOlder(read.job, known.job) ? { ...read.job, ...known.job } : read.job,
    items: read.items.map((item) => {
      const told = items.get(item.key)
      return told !== undefined && isOlder(item, told) ? told : item
    }),
    logs: mergeLogs(known.logs, read.logs),
  }
}

/** What an event makes of what is known. Events may come late or twice: a row only ever gets newer. */
export function merge(whole: Whole, change: Change): Whole {
  if (change.eventType === 'DELETE') return whole // reading says whether it is gone: anybody's deletions are told to all
  switch (change.table) {
    case 'jobs': {
      const row = told(change.new) as Partial<JobHere>
      if (row.id !== whole.job.id || isOlder(row, whole.job)) return whole
      // payload and tags never change; a result that is null now may be one that was too large for an event: it is read when the job has ended
      delete row.payload
      delete row.tags
      delete row.result
      return { ...whole, job: { ...whole.job, ...row } }
    }
    case 'job_items': {
      const row = told(change.new) as Partial<ItemHere>
      const n = whole.items.findIndex((item) => item.key === row.key)
      const known = whole.items[n]
      if (row.job_id !== whole.job.id || known === undefined || isOlder(row, known)) return whole
      return { ...whole, items: whole.items.with(n, { ...known, ...row }) }
    }
    case 'job_logs': {
      const row = { fields: {}, ...told(change.new) } as LogLine
      return row.job_id === whole.job.id ? { ...whole, logs: mergeLogs(whole.logs, [row]) } : whole
    }
    default:
      return whole
  }
}

/** Columns that an event leaves out (large ones that did not change) must not wipe out what is known. */
export function told(row: object): object {
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== undefined))
}

export function isOlder(row: { updated_at?: string }, known: { updated_at: string }): boolean {
  return row.updated_at === undefined || sortable(row.updated_at) < sortable(known.updated_at)
}

/** Both PostgREST and Realtime write UTC; one may leave out digits or write the zone otherwise. */
function sortable(iso: string): string {
  const [, moment = iso, digits = ''] = /^(.{19})(?:\.(\d+))?/.exec(iso) ?? []
  return `${moment.replace(' ', 'T')}.${digits.padEnd(6, '0')}`
}

/** Each line once, by id, and the last 1,000 of them. */
export function mergeLogs(known: readonly LogLine[], more: readonly LogLine[]): readonly LogLine[] {
  const last = known.at(-1)?.id ?? 0
  const [only] = more
  if (more.length === 1 && only !== undefined && only.id > last) return [...known, only].slice(-LOG_LINES)
  const byId = new Map([...known, ...more].map((line) => [line.id, line]))
  return [...byId.values()].sort((a, b) => a.id - b.id).slice(-LOG_LINES)
}
