/** What the operators' functions answer. Each column is described beside its function (`sql/85_operator_api.sql`). */

export interface Queue {
  queue: string
  /** null: the queue has jobs but no row, so nothing is claimed. */
  paused: boolean | null
  max_processing: number | null
  rate_limit: number | null
  rate_seconds: number | null
  max_processing_per_owner: number | null
  max_pending_per_owner: number | null
  max_attempts: number | null
  timeout_seconds: number | null
  live_workers: number
  due: number
  waiting: number
  scheduled: number
  processing: number
  oldest_due_seconds: number | null
  done_last_hour: number
  failed_last_hour: number
  run_seconds_p50: number | null
  run_seconds_p95: number | null
}

export interface Worker {
  id: string
  name: string
  host: string
  pid: number
  version: string
  alive: boolean
  draining: boolean
  feed: 'realtime' | 'polling'
  transport: string
  slots: number
  running: number
  /** Negative: over for so long. */
  lease_left_seconds: number
  heartbeat_age_seconds: number
  started_at: string
  queues: string[]
  kinds: string[]
}

export interface ErrorCode {
  kind: string
  code: string
  failures: number
  jobs: number
  ended: number
  last_at: string
  sample_message: string
  sample_job_id: string
}

export interface ErrorRate {
  starts_at: string
  code: string
  failures: number
}

export interface Throughput {
  starts_at: string
  queue: string
  completed: number
  partial: number
  failed: number
  cancelled: number
  pickup_seconds_p50: number | null
  pickup_seconds_p95: number | null
  run_seconds_p50: number | null
  run_seconds_p95: number | null
}

export interface CreditDay {
  day: string
  granted: number
  reserved: number
  captured: number
  refunded: number
  expired: number
}

export interface Schedule {
  schedule: string
  state: 'ok' | 'paused' | 'problem' | 'overdue' | 'new'
  why: string | null
  kind: string
  queue: string | null
  cron: string
  timezone: string
  next_run_at: string | null
  last_run_at: string | null
  last_job_id: string | null
  last_status: string | null
  declared: boolean
}
