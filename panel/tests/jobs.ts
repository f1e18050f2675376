import type { Job } from '../src/rows'

/** Job number n, with an id that sorts as n does. */
export function job(n: number, columns: Partial<Job> = {}): Job {
  const at = new Date(Date.UTC(2026, 0, 1) + n * 1_000).toISOString()
  return {
    id: id(n), queue: 'default', kind: 'report', owner_id: 'me', status: 'completed', priority: 0, progress: 1,
    progress_message: null, items_total: 0, items_done: 0, items_failed: 0, attempt: 1, max_attempts: 3, run_at: at,
    created_at: at, started_at: at, finished_at: at, updated_at: at, cancel_requested_at: null, error_code: null,
    error_message: null, credits_held: 0, credits_captured: 0, credits_refunded: 0, retry_of: null, parent_id: null, tags: [],
    ...columns,
  }
}

export function id(n: number): string {
  return `01900000-0000-7000-8000-${n.toString().padStart(12, '0')}`
}

/** Jobs number `from` down to `to`, both included. */
export function jobs(from: number, to: number): Job[] {
  return Array.from({ length: from - to + 1 }, (_, i) => job(from - i))
}
