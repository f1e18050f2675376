-- outside a transaction
-- What reads every job, while jobs run. Version 2 goes on working until the next file.

create unique index concurrently if not exists jobs_retries_idx on public.jobs (retry_of, idempotency_key)
  nulls not distinct where retry_of is not null;
create index concurrently if not exists jobs_not_completed_idx on public.jobs (queue, finished_at, status)
  where status in ('partial', 'failed', 'cancelled');
create index concurrently if not exists jobs_errors_idx on public.jobs (finished_at) where errors <> '[]';
