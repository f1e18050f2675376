-- Jobs, their items, their checkpoints and their logs.

create table if not exists public.jobs (
  id uuid primary key default processor.uuid7(),
  queue text not null,
  kind text not null,
  owner_id uuid,
  status text not null default 'pending',
  priority int not null default 0,
  payload jsonb not null default '{}',
  result jsonb,
  progress double precision not null default 0,
  progress_message text,
  items_total int not null default 0,
  items_done int not null default 0,
  items_failed int not null default 0,
  attempt int not null default 0,
  failures int not null default 0,
  crashes int not null default 0,
  max_attempts int not null,
  run_at timestamptz not null default processor.now(),
  created_at timestamptz not null default processor.now(),
  started_at timestamptz,
  finished_at timestamptz,
  updated_at timestamptz not null default processor.now(),
  worker_id uuid,
  claim_id uuid,
  cancel_requested_at timestamptz,
  timeout interval,
  error_code text,
  error_message text,
  error_retryable boolean,
  errors jsonb not null default '[]',
  credits_held bigint not null default 0,
  credits_captured bigint not null default 0,
  credits_refunded bigint not null default 0,
  idempotency_key text,
  input_digest bytea,
  unique_key text,
  retry_of uuid,
  tags text[] not null default '{}',
  parent_id uuid,
  children_total int not null default 0,
  children_open int not null default 0,
  children_failed int not null default 0,
  on_child_failure text not null default 'continue',
  trace_context jsonb,
  constraint jobs_status_is_known check (
    status in ('pending', 'processing', 'completed', 'partial', 'failed', 'cancelled')
  ),
  constraint jobs_terminal_means_finished check (
    (status in ('completed', 'partial', 'failed', 'cancelled')) = (finished_at is not null)
  ),
  constraint jobs_terminal_holds_nothing check (finished_at is null or credits_held = 0),
  constraint jobs_processing_has_a_worker check (status <> 'processing' or (worker_id is not null and started_at is not null)),
  constraint jobs_pending_has_no_worker check (status <> 'pending' or worker_id is null),
  constraint jobs_progress_is_a_share check (progress between 0 and 1),
  constraint jobs_items_add_up check (
    items_done >= 0 and items_failed >= 0 and items_done + items_failed <= items_total
  ),
  constraint jobs_completed_means_all_items check (status <> 'completed' or items_done = items_total),
  constraint jobs_children_add_up check (
    children_open >= 0 and children_failed >= 0 and children_open + children_failed <= children_total
  ),
  constraint jobs_on_child_failure_is_known check (on_child_failure in ('continue', 'fail')),
  constraint jobs_credits_are_not_negative check (credits_held >= 0 and credits_captured >= 0 and credits_refunded >= 0)
);

-- what is claimed, in the order of claiming
create index if not exists jobs_pending_idx on public.jobs (queue, kind, priority desc, run_at, id) where status = 'pending';
-- the same for queues in which owners take turns; also counts what an owner has waiting
create index if not exists jobs_turns_idx on public.jobs (queue, owner_id, priority desc, run_at, id) where status = 'pending';
-- what runs: by worker for heartbeats and rescue, by queue for max_processing
create index if not exists jobs_worker_idx on public.jobs (worker_id) where status = 'processing';
create index if not exists jobs_processing_idx on public.jobs (queue) where status = 'processing';
-- what a user sees: newest first, by key
create index if not exists jobs_owner_idx on public.jobs (owner_id, id desc) where owner_id is not null;
create unique index if not exists jobs_idempotency_key_idx on public.jobs (owner_id, idempotency_key)
  nulls not distinct where idempotency_key is not null;
create unique index if not exists jobs_unique_key_idx on public.jobs (owner_id, kind, unique_key)
  nulls not distinct where unique_key is not null and status in ('pending', 'processing');
create index if not exists jobs_parent_idx on public.jobs (parent_id) where parent_id is not null;
-- a job is repeated once; and once with everything, which has an idempotency_key
create unique index if not exists jobs_retries_idx on public.jobs (retry_of, idempotency_key)
  nulls not distinct where retry_of is not null;
-- what may have killed two workers: almost always empty
create index if not exists jobs_suspects_idx on public.jobs (queue, priority desc, run_at, id)
  where status = 'pending' and crashes > 1;

comment on table public.jobs is
  'The jobs. Created by create_job(), changed by functions only, read by their owners (and live through Realtime).';
comment on column public.jobs.id is 'Sorts by time of creation.';
comment on column public.jobs.queue is 'Which queue it waits in, and whose limits and delays it has.';
comment on column public.jobs.kind is 'Which handler runs it.';
comment on column public.jobs.owner_id is 'The auth user who owns and pays for it; null: a job of the system, free.';
comment on column public.jobs.status is
  'pending → processing → completed | partial | failed | cancelled; back to pending by retry, snooze, release, rescue.';
comment on column public.jobs.priority is 'Higher first, -1000 to 1000.';
comment on column public.jobs.payload is 'What the handler works on: a JSON object of at most 256 KiB.';
comment on column public.jobs.result is 'What the handler returned: at most 1 MiB.';
comment on column public.jobs.progress is '0 to 1.';
comment on column public.jobs.progress_message is 'What the handler said last, for people.';
comment on column public.jobs.items_total is 'How many items it has.';
comment on column public.jobs.items_done is 'How many of them are completed.';
comment on column public.jobs.items_failed is 'How many of them have failed and are not open again.';
comment on column public.jobs.attempt is 'How many times it was claimed. Only grows: with worker_id it fences every write.';
comment on column public.jobs.failures is 'Failed attempts; at max_attempts it ends. A release, snooze or rescue is not a failure.';
comment on column public.jobs.crashes is
  'How many times in a row its worker was lost with it. The second time ends it, WORKER_CRASHED, unless other jobs that the worker '
  'held may have been the cause as well: then these run one at a time on a worker, and the third time ends it.';
comment on column public.jobs.max_attempts is 'How many attempts may fail; from the queue unless create_job says otherwise.';
comment on column public.jobs.run_at is 'Not before this time; the year 9999: not before its children have ended.';
comment on column public.jobs.created_at is 'When it was created.';
comment on column public.jobs.started_at is 'When the current (or last) attempt was claimed.';
comment on column public.jobs.finished_at is 'When it ended; null until then.';
comment on column public.jobs.updated_at is 'When it last changed.';
comment on column public.jobs.worker_id is 'Who holds it; after the end, who held it last.';
comment on column public.jobs.claim_id is 'The request that claimed it: the same request again gets the same jobs.';
comment on column public.jobs.cancel_requested_at is 'When somebody asked to stop it while it ran.';
comment on column public.jobs.timeout is 'Overrides the queue''s timeout for one attempt.';
comment on column public.jobs.error_code is 'Why it ended as it did or is tried again: a stable code such as UPSTREAM_TIMEOUT.';
comment on column public.jobs.error_message is 'The same in words, at most 2,000 characters.';
comment on column public.jobs.error_retryable is 'true: it is tried again. false: it is not.';
comment on column public.jobs.errors is 'One entry per failed attempt {attempt, code, message, at}, the last 20.';
comment on column public.jobs.credits_held is 'Reserved and not yet decided. held + captured + refunded is what was reserved.';
comment on column public.jobs.credits_captured is 'Paid for what completed.';
comment on column public.jobs.credits_refunded is 'Given back when it ended.';
comment on column public.jobs.idempotency_key is 'create_job with the same key and input returns this job.';
comment on column public.jobs.input_digest is
  'SHA-256 of kind, queue, payload and items, if there is an idempotency_key: what "the same input" means.';
comment on column public.jobs.unique_key is 'At most one pending or processing job of this owner and kind has it.';
comment on column public.jobs.retry_of is
  'The ended job that this one repeats: its open items, or with an idempotency_key all of it.';
comment on column public.jobs.tags is 'Words to find it by: at most 20.';
comment on column public.jobs.parent_id is 'The job that this one is a part of; it has the same owner.';
comment on column public.jobs.children_total is 'How many children it has been given.';
comment on column public.jobs.children_open is 'How many of them have not ended. The last one to end wakes a parent that waits.';
comment on column public.jobs.children_failed is 'How many of them ended otherwise than completed.';
comment on column public.jobs.on_child_failure is
  'continue: the parent looks at what failed when the last child has ended. fail: the first failure ends it, CHILD_FAILED, '
  'and cancels its other children.';
comment on column public.jobs.trace_context is
  'What it was created within, for tracing: {"traceparent", "tracestate"} as W3C Trace Context has them; null: nobody said.';

create table if not exists public.job_items (
  job_id uuid not null references public.jobs (id) on delete cascade,
  key text not null,
  position int not null,
  status text not null default 'pending',
  payload jsonb not null default '{}',
  result jsonb,
  progress double precision not null default 0,
  attempts int not null default 0,
  credits bigint not null default 0,
  error_code text,
  error_message text,
  error_retryable boolean,
  updated_at timestamptz not null default processor.now(),
  primary key (job_id, key),
  constraint job_items_status_is_known check (status in ('pending', 'completed', 'failed', 'cancelled')),
  constraint job_items_progress_is_a_share check (progress between 0 and 1)
);
comment on table public.job_items is
  'The units inside a job: each is a checkpoint, so a retry or a rescue runs only those that are not completed.';
comment on column public.job_items.job_id is 'The job it is part of.';
comment on column public.job_items.key is 'Its name within the job, such as a language or a file.';
comment on column public.job_items.position is '1 to n, the order given; also the number of its ticket in the hold.';
comment on column public.job_items.status is
  'pending → completed | failed; what is open when the job ends becomes failed, or cancelled with it.';
comment on column public.job_items.payload is 'What it needs beside the job''s payload.';
comment on column public.job_items.result is 'What the handler made of it: at most 1 MiB.';
comment on column public.job_items.progress is '0 to 1.';
comment on column public.job_items.attempts is 'How often it was finished, well or not.';
comment on column public.job_items.credits is 'What was paid for it.';
comment on column public.job_items.error_code is 'Why it failed: a stable code.';
comment on column public.job_items.error_message is 'The same in words, at most 2,000 characters.';
comment on column public.job_items.error_retryable is 'true: it runs again with the job''s next attempt.';
comment on column public.job_items.updated_at is 'When it last changed.';

create table if not exists public.job_checkpoints (
  job_id uuid not null references public.jobs (id) on delete cascade,
  name text not null,
  result jsonb not null,
  attempt int not null,
  created_at timestamptz not null default processor.now(),
  primary key (job_id, name)
);
comment on table public.job_checkpoints is
  'What the steps of a job came to that are not run again. They may be internal: users do not see them.';
comment on column public.job_checkpoints.job_id is 'The job whose handler took the step.';
comment on column public.job_checkpoints.name is 'The step''s name within the job: at most 200 characters.';
comment on column public.job_checkpoints.result is 'What the step returned: at most 1 MiB. The JSON null stands for None.';
comment on column public.job_checkpoints.attempt is 'In which attempt it was taken; 0: by the job that this one repeats (retry_of).';
comment on column public.job_checkpoints.created_at is 'When it was taken.';

create table if not exists public.job_logs (
  id bigint generated always as identity primary key,
  job_id uuid not null references public.jobs (id) on delete cascade,
  attempt int not null,
  logged_at timestamptz not null,
  level text not null,
  message text not null,
  fields jsonb not null default '{}',
  constraint job_logs_level_is_known check (level in ('debug', 'info', 'warning', 'error'))
);
create index if not exists job_logs_job_idx on public.job_logs (job_id, id);
comment on table public.job_logs is
  'What handlers said with job.log, visible to the job''s owner: at most 1,000 lines a job, of which the last one says so.';
comment on column public.job_logs.id is 'Grows with time.';
comment on column public.job_logs.job_id is 'The job that was running.';
comment on column public.job_logs.attempt is 'In which of its attempts.';
comment on column public.job_logs.logged_at is 'When, by the clock of the worker.';
comment on column public.job_logs.level is 'debug, info, warning or error.';
comment on column public.job_logs.message is 'At most 2,000 characters.';
comment on column public.job_logs.fields is 'What belongs to it, as a JSON object of at most 4 KiB.';
