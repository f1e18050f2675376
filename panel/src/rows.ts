/** The rows that the panel reads, as PostgREST gives them. What each column means is said in the schema (`sql/30_jobs.sql`). */

export type JobStatus = 'pending' | 'processing' | 'completed' | 'partial' | 'failed' | 'cancelled'
export const STATUSES: readonly JobStatus[] = ['pending', 'processing', 'completed', 'partial', 'failed', 'cancelled']
export const ENDED: readonly JobStatus[] = ['completed', 'partial', 'failed', 'cancelled']

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json }

/** What a list shows of a job: `read_jobs` and the events of Realtime have it. */
export interface Job {
  id: string
  queue: string
  kind: string
  owner_id: string | null
  status: JobStatus
  priority: number
  progress: number
  progress_message: string | null
  items_total: number
  items_done: number
  items_failed: number
  attempt: number
  max_attempts: number
  run_at: string
  created_at: string
  started_at: string | null
  finished_at: string | null
  updated_at: string
  cancel_requested_at: string | null
  error_code: string | null
  error_message: string | null
  credits_held: number
  credits_captured: number
  credits_refunded: number
  retry_of: string | null
  parent_id: string | null
  tags: string[]
}

/** A job with what only its own page needs. */
export interface FullJob extends Job {
  payload: { [name: string]: Json }
  result: Json
  failures: number
  errors: { attempt: number; code: string; message: string; at: string }[]
  error_retryable: boolean | null
  children_total: number
  children_open: number
  children_failed: number
}

export interface Item {
  job_id: string
  key: string
  position: number
  status: 'pending' | 'completed' | 'failed' | 'cancelled'
  payload: { [name: string]: Json }
  result: Json
  progress: number
  attempts: number
  credits: number
  error_code: string | null
  error_message: string | null
  updated_at: string
}

export interface LogLine {
  id: number
  job_id: string
  attempt: number
  logged_at: string
  level: 'debug' | 'info' | 'warning' | 'error'
  message: string
  fields: { [name: string]: Json }
}

export interface Kind {
  kind: string
  queue: string
  credits_per_job: number
  credits_per_item: number
  max_items: number
  payload_schema: { [name: string]: Json }
  description: string
}

export interface Account {
  owner_id: string
  available: number
  held: number
  spent: number
}

export function hasEnded(job: Pick<Job, 'status'>): boolean {
  return ENDED.includes(job.status)
}
