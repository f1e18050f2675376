-- The schema as it was in version 1, frozen: databases that have it are upgraded from here.
-- ===== 00_foundation.sql =====
-- supabase-job-processor: the schema as code.
--
-- THE MODEL
--   A job is a row of public.jobs: a kind (which handler), a payload, an owner, and optionally items,
--   the units inside it (one language, one file). Applications create jobs with create_job(); workers
--   claim, run and finish them; frontends read the rows. Every rule is a function in these files, and
--   nothing but these functions writes the tables.
--
--     pending ──claim──▶ processing ──finish──▶ completed | partial | failed | cancelled
--        ▲                    │
--        └── retry · snooze · release · rescue
--
-- THE GUARANTEES
--   * A job is held by at most one worker. A worker holds jobs for as long as its lease (a row of
--     job_workers that one update per heartbeat renews). When the lease is over, others rescue its jobs.
--   * Every write of a worker is fenced by (worker_id, attempt): attempt counts the claims of a job and
--     only grows, so a late or repeated write finds another number, changes nothing and is told "stale".
--   * Every function may be called again with the same arguments: a lost answer costs nothing.
--   * Credits move in the transaction of the transition they belong to. processor.check_credits()
--     returns no row, at any commit.
--
-- THE ONE LOCK ORDER
--   queue (by name) → account (by owner_id) → job (by id) → hold → items → worker
--   Whoever needs several rows of a kind locks them in ascending order before changing the first.
--
-- THE FILES load in the order of their numbers. Each can be pasted into the SQL editor, twice if need be.
--   00 foundation · 10 queues and kinds · 20 workers · 30 jobs · 40 credits · 50 create · 55 cancel, retry
--   60 registration, heartbeat, rescue · 65 claim · 70 progress, logs, items · 75 finish, release
--   80 operators: credits, checks · 82 views · 84 functions · 86 retention · 90 security · 95 realtime

do $$
begin
  if to_regprocedure('auth.uid()') is null
    or (select count(*) from pg_catalog.pg_roles where rolname in ('anon', 'authenticated', 'service_role')) < 3
  then
    raise exception 'this database is not a Supabase project: auth.uid() or the API roles are missing'
      using hint = 'Check the database URL; for a local project without an account run: processor dev';
  end if;
  if current_setting('server_version_num')::int < 150000 then
    raise exception 'PostgreSQL 15 or newer is needed, this is %', current_setting('server_version')
      using hint = 'Upgrade the project in the dashboard: Settings, Infrastructure.';
  end if;
  if not exists (select from pg_catalog.pg_roles where rolname = 'job_processor') then
    create role job_processor nologin noinherit;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'authenticator') then
    grant job_processor to authenticator;
  end if;
end
$$;

create schema if not exists processor;
comment on schema processor is
  'supabase-job-processor: helpers and operators'' tools. Not exposed over the API.';

create or replace function processor.schema_version()
returns int
language sql
immutable
set search_path = ''
as $$
  select 1
$$;
comment on function processor.schema_version() is
  'The version of this schema. A daemon made for another one refuses to start and says what to run.';

create or replace function processor.now()
returns timestamptz
language sql
volatile
set search_path = ''
as $$
  -- clock_timestamp(), not now(): after waiting for a lock the start of the transaction is the past
  select case
    when session_user = 'authenticator' then clock_timestamp()
    else coalesce(nullif(current_setting('processor.now', true), '')::timestamptz, clock_timestamp())
  end
$$;
comment on function processor.now() is
  'The only clock. Tests may set the session variable processor.now; API sessions cannot.';

create or replace function processor.uuid7()
returns uuid
language sql
volatile
set search_path = ''
as $$
  -- a random uuid whose first 48 bits are the milliseconds; bits 52 and 53 turn version 4 into 7
  select encode(
    set_bit(set_bit(
      substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
        || substring(uuid_send(gen_random_uuid()) from 7),
      52, 1), 53, 1),
    'hex')::uuid
$$;
comment on function processor.uuid7() is
  'A uuid that sorts by time of creation (version 7), on every supported PostgreSQL.';

create or replace function processor.fail(code text, message text, detail text default '', hint text default '')
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception using errcode = fail.code, message = fail.message, detail = fail.detail, hint = fail.hint;
end
$$;
comment on function processor.fail(text, text, text, text) is
  'Raise one of our own errors. Codes: JQ001 unknown kind, JQ002 unknown queue, JQ003 invalid payload, '
  'JQ004 too large, JQ005 invalid items, JQ006 invalid argument, JQ007 idempotency conflict, '
  'JQ008 job not found, JQ009 wrong state, JQ010 not allowed, JQ011 unknown worker, JQ012 unique_key taken, '
  'JQ013 schema version mismatch, PT402 insufficient credits (the one that PostgREST must answer with 402).';

create or replace function processor.is_client()
returns boolean
language sql
stable
set search_path = ''
as $$
  -- the setting, not current_user: inside a security definer function the latter is the definer
  select current_setting('role') not in ('none', 'postgres', 'supabase_admin', 'service_role', 'job_processor')
$$;
comment on function processor.is_client() is
  'Whether an end user is calling, who may act only on own jobs: any API role but the trusted ones.';
-- ===== 10_queues.sql =====
-- Queues and kinds: the control plane as rows. Change a row and the next claim obeys it.

create table if not exists public.job_queues (
  name text primary key,
  paused boolean not null default false,
  max_processing int,
  max_attempts int not null default 4,
  retry_delays interval[] not null default array[interval '1 minute', interval '5 minutes', interval '30 minutes'],
  jitter double precision not null default 0.1,
  timeout interval not null default interval '10 minutes',
  created_at timestamptz not null default processor.now(),
  constraint job_queues_name_is_plain check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  constraint job_queues_max_processing_is_positive check (max_processing > 0),
  constraint job_queues_max_attempts_is_sane check (max_attempts between 1 and 100),
  constraint job_queues_retry_delays_are_given check (cardinality(retry_delays) between 1 and 100),
  constraint job_queues_jitter_is_a_share check (jitter between 0 and 1),
  constraint job_queues_timeout_is_sane check (timeout between interval '1 second' and interval '7 days')
);
comment on table public.job_queues is
  'One row per queue, made by the first worker that serves it. Operators change it at any time; the next claim obeys.';
comment on column public.job_queues.name is 'Lower case letters, digits, dot, dash, underscore.';
comment on column public.job_queues.paused is 'true: nothing is claimed; what runs goes on.';
comment on column public.job_queues.max_processing is 'How many jobs may run at once over all workers; null: no limit.';
comment on column public.job_queues.max_attempts is 'How many attempts a new job gets.';
comment on column public.job_queues.retry_delays is 'Waits after the 1st, 2nd, … failed attempt; the last one repeats.';
comment on column public.job_queues.jitter is 'Random share of a delay, both ways: 0.1 makes 60 s anything from 54 to 66 s.';
comment on column public.job_queues.timeout is 'How long one attempt may take.';
comment on column public.job_queues.created_at is 'When it was made.';

create table if not exists public.job_kinds (
  kind text primary key,
  queue text not null references public.job_queues (name),
  public boolean not null default false,
  credits_per_job bigint not null default 0,
  credits_per_item bigint not null default 0,
  max_items int not null default 10000,
  payload_schema jsonb not null default '{}',
  description text not null default '',
  declared jsonb not null default '{}',
  updated_at timestamptz not null default processor.now(),
  constraint job_kinds_kind_is_plain check (kind ~ '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$'),
  constraint job_kinds_prices_are_sane check (
    credits_per_job between 0 and 1000000000 and credits_per_item between 0 and 1000000000
  ),
  constraint job_kinds_have_one_price check (credits_per_job = 0 or credits_per_item = 0),
  constraint job_kinds_max_items_is_sane check (max_items between 0 and 10000)
);
create index if not exists job_kinds_queue_idx on public.job_kinds (queue);
comment on table public.job_kinds is
  'One row per handler. register_worker fills it from the handlers'' declarations; what an operator changed here wins.';
comment on column public.job_kinds.kind is 'The name of the handler.';
comment on column public.job_kinds.queue is 'Where its jobs run unless create_job says otherwise, which only the service may.';
comment on column public.job_kinds.public is 'true: signed-in users may create such jobs. Default: only the service may.';
comment on column public.job_kinds.credits_per_job is 'Price of a job, paid when it completes.';
comment on column public.job_kinds.credits_per_item is
  'Price of an item, paid for each that completes. A kind has one price or the other.';
comment on column public.job_kinds.max_items is 'How many items a job may have.';
comment on column public.job_kinds.payload_schema is 'JSON Schema of the handler''s payload, for forms.';
comment on column public.job_kinds.description is 'What it does, for people.';
comment on column public.job_kinds.declared is
  'What the handler last declared: a column that still equals it follows the next declaration.';
comment on column public.job_kinds.updated_at is 'When a worker last declared something new.';
-- ===== 20_workers.sql =====
-- Workers: one row per daemon process. The row is the lease.

create table if not exists public.job_workers (
  id uuid primary key,
  name text not null,
  host text not null default '',
  pid int,
  version text not null default '',
  queues text[] not null,
  kinds text[] not null,
  slots int not null,
  running int not null default 0,
  feed text not null default 'polling',
  lease interval not null,
  started_at timestamptz not null default processor.now(),
  heartbeat_at timestamptz not null default processor.now(),
  lease_expires_at timestamptz not null,
  draining boolean not null default false,
  inbox bigint not null default 0,
  constraint job_workers_slots_are_sane check (slots between 1 and 10000),
  constraint job_workers_feed_is_known check (feed in ('realtime', 'polling')),
  constraint job_workers_lease_is_sane check (lease between interval '1 second' and interval '1 hour')
);
comment on table public.job_workers is
  'The living daemons. One update per heartbeat renews the lease of all jobs a worker holds.';
comment on column public.job_workers.id is 'Chosen by the worker when it starts.';
comment on column public.job_workers.name is 'What people call it.';
comment on column public.job_workers.host is 'The machine it runs on.';
comment on column public.job_workers.pid is 'Its process on that machine.';
comment on column public.job_workers.version is 'The version of its package.';
comment on column public.job_workers.queues is 'The queues it serves.';
comment on column public.job_workers.kinds is 'The kinds it has handlers for: it claims no others.';
comment on column public.job_workers.slots is 'How many jobs it runs at once.';
comment on column public.job_workers.running is 'How many jobs it ran at its last heartbeat.';
comment on column public.job_workers.feed is 'How the worker learns of new jobs at the moment: realtime or polling.';
comment on column public.job_workers.lease is 'How far each heartbeat moves lease_expires_at.';
comment on column public.job_workers.started_at is 'When it registered.';
comment on column public.job_workers.heartbeat_at is 'When it was last heard of.';
comment on column public.job_workers.lease_expires_at is 'After this its jobs may be rescued by others.';
comment on column public.job_workers.draining is 'true: the worker claims no more; set it from the SQL editor before a migration.';
comment on column public.job_workers.inbox is
  'Grows when somebody wants the worker''s attention, such as a cancel: the worker sees its row change and asks at once.';
-- ===== 30_jobs.sql =====
-- Jobs, their items and their logs.

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
  constraint jobs_credits_are_not_negative check (credits_held >= 0 and credits_captured >= 0 and credits_refunded >= 0)
)
-- progress is written up to twice a second: room on the page keeps those updates off the indexes (HOT)
with (fillfactor = 80);

-- what is claimed, in the order of claiming
create index if not exists jobs_claim_idx on public.jobs (queue, priority desc, run_at, id) where status = 'pending';
-- when the next one is due
create index if not exists jobs_due_idx on public.jobs (queue, run_at) where status = 'pending';
-- what runs: by worker for heartbeats and rescue, by queue for max_processing
create index if not exists jobs_worker_idx on public.jobs (worker_id) where status = 'processing';
create index if not exists jobs_processing_idx on public.jobs (queue) where status = 'processing';
-- what a user sees: newest first, by key
create index if not exists jobs_owner_idx on public.jobs (owner_id, id desc) where owner_id is not null;
create unique index if not exists jobs_idempotency_key_idx on public.jobs (owner_id, idempotency_key)
  nulls not distinct where idempotency_key is not null;
create unique index if not exists jobs_unique_key_idx on public.jobs (owner_id, kind, unique_key)
  nulls not distinct where unique_key is not null and status in ('pending', 'processing');
create unique index if not exists jobs_retry_of_idx on public.jobs (retry_of) where retry_of is not null;

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
comment on column public.jobs.crashes is 'How often its worker died with it. The second time ends it: WORKER_CRASHED.';
comment on column public.jobs.max_attempts is 'How many attempts may fail; from the queue unless create_job says otherwise.';
comment on column public.jobs.run_at is 'Not before this time.';
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
comment on column public.jobs.input_digest is 'SHA-256 of kind, queue, payload and items: what "the same input" means.';
comment on column public.jobs.unique_key is 'At most one pending or processing job of this owner and kind has it.';
comment on column public.jobs.retry_of is 'The ended job whose open items this one repeats.';
comment on column public.jobs.tags is 'Words to find it by: at most 20.';

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
)
with (fillfactor = 80);
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
comment on table public.job_logs is 'What handlers said with job.log: at most 1,000 lines a job, visible to its owner.';
comment on column public.job_logs.id is 'Grows with time.';
comment on column public.job_logs.job_id is 'The job that was running.';
comment on column public.job_logs.attempt is 'In which of its attempts.';
comment on column public.job_logs.logged_at is 'When, by the clock of the worker.';
comment on column public.job_logs.level is 'debug, info, warning or error.';
comment on column public.job_logs.message is 'At most 2,000 characters.';
comment on column public.job_logs.fields is 'What belongs to it, as a JSON object of at most 4 KiB.';
-- ===== 40_credits.sql =====
-- Credits: accounts, holds with numbered tickets, and the journal.
--
--   grant    issued → available          capture  held → spent       (a ticket: an item, or the job)
--   reserve  available → held            release  held → available   (the rest, when the job ends)
--   clawback available → issued          (an operator undoes a grant, as far as it is available)
--
-- A hold is `units` tickets at a price that never changes. Capturing unit i inserts ticket i: capturing
-- twice is impossible. The account row is touched once when a job is created and once when jobs end,
-- never per item. All amounts are whole numbers of the smallest unit, below 2^53.

create table if not exists public.credit_accounts (
  owner_id uuid primary key,
  issued bigint not null default 0,
  available bigint not null default 0,
  held bigint not null default 0,
  spent bigint not null default 0,
  expired bigint not null default 0,
  updated_at timestamptz not null default processor.now(),
  constraint credit_accounts_are_conserved check (issued = available + held + spent + expired),
  constraint credit_accounts_are_not_negative check (available >= 0 and held >= 0 and spent >= 0 and expired >= 0),
  constraint credit_accounts_fit_javascript check (issued < 9007199254740992)
)
with (fillfactor = 50);
comment on table public.credit_accounts is 'One row per owner: what was issued is available, held, spent or expired.';
comment on column public.credit_accounts.owner_id is 'The auth user.';
comment on column public.credit_accounts.issued is 'All that was ever granted, less what was taken back.';
comment on column public.credit_accounts.available is 'What new jobs can reserve.';
comment on column public.credit_accounts.held is
  'Reserved by jobs that have not ended; what of it is paid already becomes spent when they do.';
comment on column public.credit_accounts.spent is 'Paid for work that was done.';
comment on column public.credit_accounts.expired is 'Granted for a time that is over.';
comment on column public.credit_accounts.updated_at is 'When it last changed.';

create table if not exists public.credit_entries (
  id bigint generated always as identity primary key,
  owner_id uuid not null,
  kind text not null,
  amount bigint not null,
  job_id uuid,
  reason text,
  idempotency_key text,
  created_at timestamptz not null default processor.now(),
  undoes bigint,
  constraint credit_entries_kind_is_known check (kind in ('grant', 'reserve', 'capture', 'release', 'clawback')),
  constraint credit_entries_amount_is_positive check (amount > 0),
  constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null))
);
-- a journal from before there were clawbacks
alter table public.credit_entries add column if not exists undoes bigint;
do $$
begin
  if not exists (select from pg_catalog.pg_constraint where conname = 'credit_entries_clawback_names_its_grant') then
    alter table public.credit_entries
      drop constraint credit_entries_kind_is_known,
      add constraint credit_entries_kind_is_known check (kind in ('grant', 'reserve', 'capture', 'release', 'clawback')),
      add constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null));
  end if;
end
$$;
-- no foreign keys: entries outlive jobs, and one to the account would lock its row against every writer
create index if not exists credit_entries_owner_idx on public.credit_entries (owner_id, id desc);
create index if not exists credit_entries_job_idx on public.credit_entries (job_id) where job_id is not null;
create unique index if not exists credit_entries_idempotency_key_idx
  on public.credit_entries (owner_id, idempotency_key) where idempotency_key is not null;
create index if not exists credit_entries_undoes_idx on public.credit_entries (undoes) where undoes is not null;
comment on table public.credit_entries is 'The journal: appended to, never changed.';
comment on column public.credit_entries.id is 'Grows with time.';
comment on column public.credit_entries.owner_id is 'Whose account.';
comment on column public.credit_entries.kind is 'grant, reserve, capture, release or clawback.';
comment on column public.credit_entries.amount is 'How much, always positive.';
comment on column public.credit_entries.job_id is 'The job it is about; null for a grant or clawback.';
comment on column public.credit_entries.reason is 'Why, in the words of whoever granted it.';
comment on column public.credit_entries.idempotency_key is 'A grant with the same key happens once.';
comment on column public.credit_entries.created_at is 'When.';
comment on column public.credit_entries.undoes is 'The grant that a clawback takes back, whole or in part.';

create table if not exists public.credit_holds (
  job_id uuid primary key references public.jobs (id) on delete cascade,
  owner_id uuid not null,
  units int not null,
  unit_price bigint not null,
  per_item boolean not null,
  captured bigint not null default 0,
  released bigint not null default 0,
  closed_at timestamptz,
  constraint credit_holds_units_are_positive check (units > 0 and unit_price > 0),
  constraint credit_holds_closed_adds_up check (closed_at is null or captured + released = units * unit_price)
);
create index if not exists credit_holds_open_idx on public.credit_holds (owner_id) where closed_at is null;
comment on table public.credit_holds is 'Credits reserved for a job: units × unit_price, open until the job ends.';
comment on column public.credit_holds.job_id is 'The job; a free one has no hold.';
comment on column public.credit_holds.owner_id is 'Whose credits.';
comment on column public.credit_holds.units is 'How many tickets there are.';
comment on column public.credit_holds.unit_price is 'The price of each, as it was when the job was created.';
comment on column public.credit_holds.per_item is 'true: unit n is the item at position n. false: unit 1 is the job.';

comment on column public.credit_holds.captured is 'What was spent of it, known when it closes.';
comment on column public.credit_holds.released is 'What was given back of it, known when it closes.';
comment on column public.credit_holds.closed_at is 'When the job ended; null: open.';

create table if not exists public.credit_captures (
  job_id uuid not null references public.credit_holds (job_id) on delete cascade,
  unit int not null,
  captured_at timestamptz not null default processor.now(),
  primary key (job_id, unit)
);
comment on table public.credit_captures is 'The tickets taken from a hold: one per item that completed (or unit 1 for the job).';
comment on column public.credit_captures.job_id is 'The hold.';
comment on column public.credit_captures.unit is 'The number of the ticket: the position of the item, or 1 for the job.';
comment on column public.credit_captures.captured_at is 'When it was taken.';

create or replace function processor.open_hold(job_id uuid, owner_id uuid, units int, unit_price bigint, per_item boolean)
returns bigint
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  needed constant bigint := open_hold.units * open_hold.unit_price;
  there bigint;
begin
  -- LOCK: the account; the caller has locked no job yet but the one it is inserting
  select a.available into there from public.credit_accounts a
  where a.owner_id = open_hold.owner_id for no key update;
  if coalesce(there, 0) < needed then
    perform processor.fail('PT402',
      format('insufficient credits: %s needed, %s available', needed, coalesce(there, 0)),
      json_build_object('needed', needed, 'available', coalesce(there, 0))::text,
      'Grant credits with processor.grant_credits(owner_id, amount, reason), or ask for fewer items.');
  end if;
  update public.credit_accounts a
  set available = a.available - needed, held = a.held + needed, updated_at = processor.now()
  where a.owner_id = open_hold.owner_id;
  insert into public.credit_holds (job_id, owner_id, units, unit_price, per_item)
  values (open_hold.job_id, open_hold.owner_id, open_hold.units, open_hold.unit_price, open_hold.per_item);
  insert into public.credit_entries (owner_id, kind, amount, job_id)
  values (open_hold.owner_id, 'reserve', needed, open_hold.job_id);
  return needed;
end
$$;
comment on function processor.open_hold(uuid, uuid, int, bigint, boolean) is
  'Reserve units × unit_price for a new job, or raise PT402 saying what was needed and what was there. Returns the amount.';

create or replace function processor.capture_units(job_id uuid, units int[], per_item boolean)
returns bigint
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  price bigint;
  taken bigint;
begin
  -- LOCK: the caller holds the job; the share lock keeps the hold open until we commit
  select h.unit_price into price from public.credit_holds h
  where h.job_id = capture_units.job_id and h.per_item = capture_units.per_item and h.closed_at is null for share;
  if not found then
    return 0;
  end if;
  with tickets as (
    insert into public.credit_captures (job_id, unit)
    select capture_units.job_id, u from unnest(capture_units.units) u order by u
    on conflict do nothing
    returning 1
  )
  select count(*) * price into taken from tickets;
  update public.jobs j
  set credits_held = j.credits_held - taken, credits_captured = j.credits_captured + taken
  where j.id = capture_units.job_id and taken > 0;
  return price;
end
$$;
comment on function processor.capture_units(uuid, int[], boolean) is
  'Take the tickets of these units; one taken before costs nothing more. Returns the unit price, 0 without a hold.';

create or replace function processor.lock_accounts(job_ids uuid[])
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform 1 from public.credit_accounts a
  where a.owner_id in (
    select h.owner_id from public.credit_holds h
    where h.job_id = any (lock_accounts.job_ids) and h.closed_at is null
  )
  order by a.owner_id for no key update;
end
$$;
comment on function processor.lock_accounts(uuid[]) is
  'Lock the accounts that these jobs'' open holds belong to. Comes before locking the jobs.';

create or replace function processor.settle_holds(job_ids uuid[])
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  -- LOCK: the caller has locked accounts and jobs. `for no key update` waits for running captures.
  perform 1 from public.credit_holds h
  where h.job_id = any (settle_holds.job_ids) and h.closed_at is null
  order by h.job_id for no key update;

  with closed as (
    update public.credit_holds h
    set captured = t.taken * h.unit_price,
      released = (h.units - t.taken) * h.unit_price,
      closed_at = processor.now()
    from (
      select o.job_id, (select count(*) from public.credit_captures c where c.job_id = o.job_id) as taken
      from public.credit_holds o
      where o.job_id = any (settle_holds.job_ids) and o.closed_at is null
    ) t
    where h.job_id = t.job_id
    returning h.job_id, h.owner_id, h.captured, h.released
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id)
    select c.owner_id, e.kind, e.amount, c.job_id
    from closed c
    cross join lateral (values ('capture', c.captured), ('release', c.released)) e (kind, amount)
    where e.amount > 0
    order by c.job_id, e.kind
  )
  update public.credit_accounts a
  set held = a.held - s.captured - s.released,
    spent = a.spent + s.captured,
    available = a.available + s.released,
    updated_at = processor.now()
  from (select c.owner_id, sum(c.captured)::bigint as captured, sum(c.released)::bigint as released from closed c group by 1) s
  where a.owner_id = s.owner_id;
end
$$;
comment on function processor.settle_holds(uuid[]) is
  'Close the open holds of jobs that are ending: what has a ticket is spent, the rest is available again. '
  'end_job() has written the same amounts to the job''s row.';
-- ===== 50_create.sql =====
-- Creating jobs: everything is checked before anything is written.

create or replace function processor.check_size(what text, value jsonb, max_bytes int)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if octet_length(check_size.value::text) > check_size.max_bytes then
    perform processor.fail('JQ004',
      format('%s is too large: %s bytes, at most %s', check_size.what, octet_length(check_size.value::text), check_size.max_bytes),
      '', 'Put large data into Storage and the path into the payload.');
  end if;
end
$$;
comment on function processor.check_size(text, jsonb, int) is 'Raise JQ004 if the JSON text of a value has more than max_bytes.';

create or replace function processor.check_depth(what text, value jsonb)
returns void
language plpgsql
set search_path = ''
as $$
begin
  -- PostgreSQL reads deeper than the workers' and the browsers' JSON parsers do: one such payload would stop them all
  if jsonb_path_exists(check_depth.value, 'strict $.**{101}') then
    perform processor.fail('JQ003', format('%s is nested more than 100 levels deep', check_depth.what), '', 'Flatten it.');
  end if;
end
$$;
comment on function processor.check_depth(text, jsonb) is 'Raise JQ003 if a JSON value is nested more than 100 levels deep.';

create or replace function processor.check_range(what text, value numeric, low numeric, high numeric)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if check_range.value not between check_range.low and check_range.high then
    perform processor.fail('JQ006',
      format('%s is %s, but must be between %s and %s', check_range.what, check_range.value, check_range.low, check_range.high));
  end if;
end
$$;
comment on function processor.check_range(text, numeric, numeric, numeric) is 'Raise JQ006 if a number is out of its range; null passes.';

create or replace function processor.check_text(what text, value text, max_length int)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if length(check_text.value) not between 1 and check_text.max_length then
    perform processor.fail('JQ006',
      format('%s has %s characters, but must have 1 to %s', check_text.what, length(check_text.value), check_text.max_length));
  end if;
end
$$;
comment on function processor.check_text(text, text, int) is 'Raise JQ006 if a text is empty or too long; null passes.';

create or replace function processor.parse_items(items jsonb, max_items int)
returns table (key text, payload jsonb, "position" int)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  bad record;
  how_many int;
begin
  if parse_items.items is null or parse_items.items = 'null' then
    return;
  end if;
  if jsonb_typeof(parse_items.items) <> 'array' then
    perform processor.fail('JQ005', format('items must be an array, this is a JSON %s', jsonb_typeof(parse_items.items)), '',
      'Give ["de", "fr"] or [{"key": "de", "payload": {…}}].');
  end if;
  how_many := jsonb_array_length(parse_items.items);
  if how_many > parse_items.max_items then
    perform processor.fail('JQ005', format('too many items: %s, at most %s', how_many, parse_items.max_items), '',
      'Split the work into several jobs.');
  end if;
  perform processor.check_size('items', parse_items.items, 4194304);
  perform processor.check_depth('items', parse_items.items);

  select e.value, e.ordinality into bad
  from jsonb_array_elements(parse_items.items) with ordinality e
  where case jsonb_typeof(e.value)
    when 'string' then length(e.value #>> '{}') not between 1 and 200
    when 'object' then
      coalesce(jsonb_typeof(e.value -> 'key'), '') <> 'string'
      or length(e.value ->> 'key') not between 1 and 200
      or coalesce(jsonb_typeof(e.value -> 'payload'), 'object') <> 'object'
      or e.value - 'key' - 'payload' <> '{}'
    else true
  end
  limit 1;
  if found then
    perform processor.fail('JQ005', format('item %s is not valid: %s', bad.ordinality, left(bad.value::text, 200)), '',
      'An item is a key of 1 to 200 characters, or {"key": key} with an optional "payload" object.');
  end if;

  return query
  select case jsonb_typeof(e.value) when 'string' then e.value #>> '{}' else e.value ->> 'key' end,
    case jsonb_typeof(e.value) when 'string' then '{}'::jsonb else coalesce(e.value -> 'payload', '{}') end,
    e.ordinality::int
  from jsonb_array_elements(parse_items.items) with ordinality e;
end
$$;
comment on function processor.parse_items(jsonb, int) is
  'The items of a job as rows, from ["key", …] or [{"key", "payload"}, …]; raises JQ005 on any other shape.';

create or replace function processor.insert_job(job public.jobs, items jsonb)
returns public.jobs
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  k public.job_kinds;
  q public.job_queues;
  made public.jobs;
  existing public.jobs;
  keys text[];
  payloads jsonb[];
  twice text;
  price bigint;
  units int;
begin
  if job.kind is null then
    perform processor.fail('JQ006', 'kind is missing', '', 'Name the handler: create_job(kind => ''…'').');
  end if;
  select * into k from public.job_kinds where kind = insert_job.job.kind;
  if not found or (processor.is_client() and not k.public) then
    -- the same answer for both: a client learns nothing about internal kinds
    perform processor.fail('JQ001', format('unknown kind: %s', left(job.kind, 100)), '',
      'Kinds are registered when a worker with their handlers starts; clients may create those declared public.');
  end if;
  job.queue := coalesce(job.queue, k.queue);
  select * into q from public.job_queues where name = insert_job.job.queue;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(job.queue, 100)), '',
      'Queues are made by the first worker that serves them, or by inserting a row into public.job_queues.');
  end if;
  -- a retry runs where its job ran: the queue is not the caller's choice then
  if processor.is_client() and job.queue <> k.queue and job.retry_of is null then
    perform processor.fail('JQ010', format('jobs of kind %s run in queue %s', k.kind, k.queue), '', 'Leave queue out.');
  end if;

  if coalesce(jsonb_typeof(job.payload), 'null') <> 'object' then
    perform processor.fail('JQ003', format('payload must be a JSON object, this is %s', coalesce(jsonb_typeof(job.payload), 'null')),
      '', 'Wrap it: {"value": …}.');
  end if;
  perform processor.check_size('payload', job.payload, 262144);
  perform processor.check_depth('payload', job.payload);
  perform processor.check_range('priority', job.priority, -1000, 1000);
  perform processor.check_range('max_attempts', job.max_attempts, 1, 100);
  perform processor.check_range('timeout_seconds', extract(epoch from job.timeout), 1, 604800);
  if job.run_at not between processor.now() - interval '100 years' and processor.now() + interval '10 years' then
    perform processor.fail('JQ006', format('run_at is %s, but must be at most 10 years ahead', job.run_at));
  end if;
  perform processor.check_text('idempotency_key', job.idempotency_key, 200);
  perform processor.check_text('unique_key', job.unique_key, 200);
  perform processor.check_range('the number of tags', cardinality(job.tags), 0, 20);
  -- a worker reads tags as a list of texts: anything else would spoil the claim it comes with
  if array_ndims(job.tags) > 1 or exists (select from unnest(job.tags) t where t is null) then
    perform processor.fail('JQ006', 'tags must be a plain list of texts, without null');
  end if;
  perform processor.check_text('a tag', t, 100) from unnest(job.tags) t;

  select array_agg(i.key order by i.position), array_agg(i.payload order by i.position)
  into keys, payloads
  from processor.parse_items(insert_job.items, k.max_items) i;
  select u into twice from unnest(keys) u group by u having count(*) > 1 limit 1;
  if found then
    perform processor.fail('JQ005', format('duplicate item key: %s', twice), '', 'Each item of a job has a key of its own.');
  end if;
  if keys is null and k.credits_per_item > 0 then
    perform processor.fail('JQ005', format('kind %s is priced per item, but there are no items', k.kind), '', 'Give at least one item.');
  end if;

  job.input_digest := sha256(convert_to(
    jsonb_build_array(job.kind, job.queue, job.payload, to_jsonb(keys), to_jsonb(payloads))::text, 'UTF8'));
  job.items_total := coalesce(cardinality(keys), 0);
  job.max_attempts := coalesce(job.max_attempts, q.max_attempts);
  price := case when job.owner_id is null then 0 else k.credits_per_item + k.credits_per_job end; -- one of them is 0
  units := case when k.credits_per_item > 0 then job.items_total else 1 end;

  -- LOCK: the account before the job, so that two creates of one key meet here and not at the index
  if price > 0 then
    perform 1 from public.credit_accounts a where a.owner_id = insert_job.job.owner_id for no key update;
  end if;

  insert into public.jobs (queue, kind, owner_id, priority, payload, items_total, max_attempts, run_at,
    timeout, credits_held, idempotency_key, input_digest, unique_key, retry_of, tags)
  values (job.queue, job.kind, job.owner_id, coalesce(job.priority, 0), job.payload, job.items_total, job.max_attempts,
    coalesce(job.run_at, processor.now()), job.timeout, price * units, job.idempotency_key, job.input_digest, job.unique_key,
    job.retry_of, coalesce(job.tags, '{}'))
  on conflict do nothing
  returning * into made;

  if made.id is null then
    if job.retry_of is not null then
      select * into existing from public.jobs j where j.retry_of = job.retry_of;
    elsif job.owner_id is not null then -- "is not distinct from" would read the whole index
      select * into existing from public.jobs j where j.owner_id = job.owner_id and j.idempotency_key = job.idempotency_key;
    else
      select * into existing from public.jobs j where j.owner_id is null and j.idempotency_key = job.idempotency_key;
    end if;
    if existing.id is null then
      perform processor.fail('JQ012', format('a job of kind %s with unique_key %s is already on its way', job.kind, job.unique_key),
        '', 'Wait for it to end, or cancel it.');
    elsif existing.retry_of is null and existing.input_digest <> job.input_digest then
      perform processor.fail('JQ007', format('idempotency_key %s was used with other input', job.idempotency_key),
        format('job %s', existing.id), 'Use a new key for new input; the same key returns the first job.');
    end if;
    return existing;
  end if;

  insert into public.job_items (job_id, key, position, payload)
  select made.id, i.key, i.position, i.payload
  from unnest(keys, payloads) with ordinality i (key, payload, "position");

  if price > 0 then
    perform processor.open_hold(made.id, made.owner_id, units, price, k.credits_per_item > 0);
  end if;
  return made;
end
$$;
comment on function processor.insert_job(public.jobs, jsonb) is
  'Check a job, reserve its credits, write it and its items; or return the one that exists. create_job and retry_job end here.';

create or replace function public.create_job(
  kind text,
  payload jsonb default '{}',
  items jsonb default null,
  queue text default null,
  priority int default 0,
  run_at timestamptz default null,
  idempotency_key text default null,
  unique_key text default null,
  owner_id uuid default null,
  max_attempts int default null,
  timeout_seconds numeric default null,
  tags text[] default null
)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided here and in insert_job
set search_path = ''
as $$
declare
  job public.jobs;
begin
  if processor.is_client() then
    if create_job.owner_id <> auth.uid() then
      perform processor.fail('JQ010', 'owner_id is not yours', '', 'Leave owner_id out: a job belongs to the user who creates it.');
    end if;
    create_job.owner_id := auth.uid();
    if create_job.owner_id is null then
      perform processor.fail('JQ010', 'only signed-in users create jobs', '', 'Sign in first, or call with the service key.');
    end if;
  end if;
  perform processor.check_range('timeout_seconds', create_job.timeout_seconds, 1, 604800);
  job.kind := create_job.kind;
  job.payload := create_job.payload;
  job.queue := create_job.queue;
  job.priority := create_job.priority;
  job.run_at := create_job.run_at;
  job.idempotency_key := create_job.idempotency_key;
  job.unique_key := create_job.unique_key;
  job.owner_id := create_job.owner_id;
  job.max_attempts := create_job.max_attempts;
  job.timeout := make_interval(secs => create_job.timeout_seconds::double precision);
  job.tags := create_job.tags;
  return processor.insert_job(job, create_job.items);
end
$$;
comment on function public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[]) is
  'Create a job and reserve its credits, in the caller''s transaction. Repeating it with the same idempotency_key '
  'returns the same job. Users create jobs of public kinds, as themselves; the service may name any owner or none.';
-- ===== 55_cancel_retry.sql =====
-- The two ways a running job goes (ended, pending again), and what an owner does: cancel and retry.

create or replace function processor.end_job(job_id uuid, status text, result jsonb default null,
  error_code text default null, error_message text default null)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  -- LOCK: the caller holds account and job, and calls settle_holds() for all that ended
  update public.job_items i
  set status = case when end_job.status = 'cancelled' then 'cancelled' else 'failed' end,
    error_code = coalesce(i.error_code, end_job.error_code),
    error_message = coalesce(i.error_message, end_job.error_message),
    updated_at = processor.now()
  where i.job_id = end_job.job_id and i.status = 'pending';
  update public.jobs j
  set status = end_job.status,
    result = coalesce(end_job.result, j.result),
    finished_at = processor.now(),
    updated_at = processor.now(),
    progress = case when end_job.status = 'completed' then 1 else j.progress end,
    items_failed = (select count(*) from public.job_items i where i.job_id = end_job.job_id and i.status = 'failed'),
    error_code = end_job.error_code,
    error_message = left(end_job.error_message, 2000),
    error_retryable = case when end_job.error_code is not null then false end,
    credits_refunded = j.credits_refunded + j.credits_held,
    credits_held = 0
  where j.id = end_job.job_id;
end
$$;
comment on function processor.end_job(uuid, text, jsonb, text, text) is
  'Make a job terminal: open items end with it, what is still held becomes refunded. settle_holds() must follow.';

create or replace function processor.requeue_job(job_id uuid, run_at timestamptz)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  again int;
begin
  -- LOCK: the caller holds the job
  update public.job_items i
  set status = 'pending', progress = 0, updated_at = processor.now()
  where i.job_id = requeue_job.job_id and i.status = 'failed' and i.error_retryable;
  get diagnostics again = row_count;
  update public.jobs j
  set status = 'pending', worker_id = null, claim_id = null, run_at = requeue_job.run_at,
    items_failed = j.items_failed - again, updated_at = processor.now()
  where j.id = requeue_job.job_id;
end
$$;
comment on function processor.requeue_job(uuid, timestamptz) is
  'Make a running job pending again, not before run_at: what retry, snooze, release and rescue have in common. '
  'Items that failed in a way worth trying again are open again.';

create or replace function processor.note_error(job_id uuid, code text, message text)
returns void
language sql
set search_path = ''
as $$
  update public.jobs j
  set errors = case when jsonb_array_length(j.errors) >= 20 then j.errors - 0 else j.errors end
    || jsonb_build_object('attempt', j.attempt, 'code', note_error.code, 'message', left(note_error.message, 2000), 'at', processor.now())
  where j.id = note_error.job_id
$$;
comment on function processor.note_error(uuid, text, text) is 'Append to a job''s errors, keeping the last 20.';

create or replace function processor.lock_own_job(job_id uuid)
returns public.jobs
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  -- LOCK: account, then job
  perform processor.lock_accounts(array[lock_own_job.job_id]);
  select * into job from public.jobs j
  where j.id = lock_own_job.job_id
    and (not processor.is_client() or j.owner_id = (select auth.uid()))
  for no key update;
  if not found then
    perform processor.fail('JQ008', format('job not found: %s', lock_own_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  return job;
end
$$;
comment on function processor.lock_own_job(uuid) is 'Lock a job of the caller (any job for the service), or raise JQ008.';

create or replace function public.cancel_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; lock_own_job checks that the job is theirs
set search_path = ''
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  job := processor.lock_own_job(cancel_job.job_id);
  if job.status = 'pending' then
    perform processor.end_job(job.id, 'cancelled', null, 'CANCELLED', 'cancelled before it started');
    perform processor.settle_holds(array[job.id]);
  elsif job.status = 'processing' and job.cancel_requested_at is null then
    update public.jobs j set cancel_requested_at = processor.now(), updated_at = processor.now() where j.id = job.id;
    update public.job_workers w set inbox = w.inbox + 1 where w.id = job.worker_id;
  end if;
  select * into job from public.jobs j where j.id = job.id;
  return job;
end
$$;
comment on function public.cancel_job(uuid) is
  'Cancel an own job: a pending one ends at once and is refunded; a running one is asked to stop, and pays for what is '
  'done. A job that has ended is returned as it is.';

create or replace function public.retry_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; lock_own_job checks that the job is theirs
set search_path = ''
as $$
#variable_conflict use_column
declare
  old public.jobs;
  made public.jobs;
  again public.jobs;
  open_items jsonb;
begin
  -- LOCK: the account; not the job, which is read here and, being terminal, cannot change
  select * into old from public.jobs j
  where j.id = retry_job.job_id and (not processor.is_client() or j.owner_id = (select auth.uid()));
  if not found then
    perform processor.fail('JQ008', format('job not found: %s', retry_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  if old.status not in ('partial', 'failed', 'cancelled') then
    perform processor.fail('JQ009', format('job %s is %s: only a partial, failed or cancelled job can be retried', old.id, old.status));
  end if;
  select jsonb_agg(jsonb_build_object('key', i.key, 'payload', i.payload) order by i.position)
  into open_items
  from public.job_items i where i.job_id = old.id and i.status <> 'completed';
  if open_items is null and old.items_total > 0 then
    perform processor.fail('JQ009', format('every item of job %s is completed: nothing is left to retry', old.id));
  end if;

  again.kind := old.kind;
  again.queue := old.queue;
  again.owner_id := old.owner_id;
  again.priority := old.priority;
  again.payload := old.payload;
  again.max_attempts := old.max_attempts;
  again.timeout := old.timeout;
  again.tags := old.tags;
  again.unique_key := old.unique_key;
  again.retry_of := old.id;
  made := processor.insert_job(again, open_items);
  return made;
end
$$;
comment on function public.retry_job(uuid) is
  'A new job (retry_of) with the unfinished items of one that ended, reserving credits for those only. Asked again, the same new job.';
-- ===== 60_workers.sql =====
-- A worker's life: register, heartbeat (which also rescues), deregister.

create or replace function processor.check_name(what text, name text, pattern text)
returns text
language plpgsql
set search_path = ''
as $$
begin
  if check_name.name is null or check_name.name !~ check_name.pattern then
    perform processor.fail('JQ006', format('%s %s is not a name', check_name.what, coalesce(left(check_name.name, 200), 'null')), '',
      format('A %s looks like %s', check_name.what, check_name.pattern));
  end if;
  return check_name.name;
end
$$;
comment on function processor.check_name(text, text, text) is 'The name, or JQ006 if it does not match the pattern.';

create or replace function processor.check_feed(feed text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if check_feed.feed not in ('realtime', 'polling') then
    perform processor.fail('JQ006', format('feed %s is not realtime or polling', left(check_feed.feed, 100)));
  end if;
end
$$;
comment on function processor.check_feed(text) is 'Raise JQ006 if a worker''s feed is neither realtime nor polling; null passes.';

create or replace function processor.declare_kind(kind jsonb)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform processor.check_name('kind', declare_kind.kind ->> 'kind', '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$');
  perform processor.check_range('credits_per_job', (declare_kind.kind ->> 'credits_per_job')::numeric, 0, 1000000000);
  perform processor.check_range('credits_per_item', (declare_kind.kind ->> 'credits_per_item')::numeric, 0, 1000000000);
  perform processor.check_range('max_items', (declare_kind.kind ->> 'max_items')::numeric, 0, 10000);
  if (declare_kind.kind ->> 'credits_per_job')::numeric > 0 and (declare_kind.kind ->> 'credits_per_item')::numeric > 0 then
    perform processor.fail('JQ006', format('kind %s declares two prices', declare_kind.kind ->> 'kind'), '',
      'A kind is priced per job or per item, not both.');
  end if;
  -- LOCK: the caller has made the queues, and declares kinds in the order of their names
  insert into public.job_kinds as k (kind, queue, public, credits_per_job, credits_per_item, max_items,
    payload_schema, description, declared)
  values (
    declare_kind.kind ->> 'kind',
    declare_kind.kind ->> 'queue',
    coalesce((declare_kind.kind ->> 'public')::boolean, false),
    coalesce((declare_kind.kind ->> 'credits_per_job')::bigint, 0),
    coalesce((declare_kind.kind ->> 'credits_per_item')::bigint, 0),
    coalesce((declare_kind.kind ->> 'max_items')::int, 10000),
    coalesce(declare_kind.kind -> 'payload_schema', '{}'),
    coalesce(declare_kind.kind ->> 'description', ''),
    declare_kind.kind
  )
  on conflict on constraint job_kinds_pkey do update set
    -- a value that still is what was declared follows the new declaration; one an operator set stays
    queue = case when k.queue = k.declared ->> 'queue' then excluded.queue else k.queue end,
    public = case when k.public = coalesce((k.declared ->> 'public')::boolean, false) then excluded.public else k.public end,
    credits_per_job = case
      when k.credits_per_job = coalesce((k.declared ->> 'credits_per_job')::bigint, 0)
        and k.credits_per_item = coalesce((k.declared ->> 'credits_per_item')::bigint, 0)
      then excluded.credits_per_job else k.credits_per_job end,
    credits_per_item = case
      when k.credits_per_job = coalesce((k.declared ->> 'credits_per_job')::bigint, 0)
        and k.credits_per_item = coalesce((k.declared ->> 'credits_per_item')::bigint, 0)
      then excluded.credits_per_item else k.credits_per_item end,
    max_items = case when k.max_items = coalesce((k.declared ->> 'max_items')::int, 10000) then excluded.max_items else k.max_items end,
    payload_schema = excluded.payload_schema,
    description = case when k.description = coalesce(k.declared ->> 'description', '') then excluded.description else k.description end,
    declared = excluded.declared,
    updated_at = processor.now()
  where k.declared is distinct from excluded.declared;
end
$$;
comment on function processor.declare_kind(jsonb) is 'Write a handler''s declaration to job_kinds, keeping what an operator changed.';

create or replace function public.register_worker(worker jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  w public.job_workers;
  wanted constant int := (register_worker.worker ->> 'schema_version')::int;
begin
  if wanted is distinct from processor.schema_version() then
    perform processor.fail('JQ013',
      format('the database has schema version %s, this worker needs %s', processor.schema_version(), coalesce(wanted::text, 'none')), '',
      'Run: processor schema apply --database-url … with the package version that the worker has.');
  end if;
  if register_worker.worker ->> 'id' is null or register_worker.worker ->> 'slots' is null
    or register_worker.worker ->> 'lease_seconds' is null
  then
    perform processor.fail('JQ006', 'a worker needs id, slots and lease_seconds');
  end if;
  perform processor.check_range('slots', (register_worker.worker ->> 'slots')::numeric, 1, 10000);
  perform processor.check_range('lease_seconds', (register_worker.worker ->> 'lease_seconds')::numeric, 1, 3600);
  perform processor.check_feed(register_worker.worker ->> 'feed');
  -- LOCK: all queues at once, by name: two workers that start together must not make them in opposite orders
  insert into public.job_queues (name)
  select processor.check_name('queue', named.queue, '^[a-z0-9][a-z0-9_.-]{0,62}$')
  from (
    select jsonb_array_elements_text(register_worker.worker -> 'queues') as queue
    union
    select k ->> 'queue' from jsonb_array_elements(register_worker.worker -> 'kinds') k
  ) named
  order by named.queue
  on conflict do nothing;
  perform processor.declare_kind(k) from jsonb_array_elements(register_worker.worker -> 'kinds') k order by k ->> 'kind';

  insert into public.job_workers as w (id, name, host, pid, version, queues, kinds, slots, feed, lease, lease_expires_at)
  select (register_worker.worker ->> 'id')::uuid,
    coalesce(register_worker.worker ->> 'name', 'worker'),
    coalesce(register_worker.worker ->> 'host', ''),
    (register_worker.worker ->> 'pid')::int,
    coalesce(register_worker.worker ->> 'version', ''),
    array(select jsonb_array_elements_text(register_worker.worker -> 'queues')),
    array(select k ->> 'kind' from jsonb_array_elements(register_worker.worker -> 'kinds') k),
    (register_worker.worker ->> 'slots')::int,
    coalesce(register_worker.worker ->> 'feed', 'polling'),
    l.lease,
    processor.now() + l.lease
  from (select make_interval(secs => (register_worker.worker ->> 'lease_seconds')::double precision) as lease) l
  on conflict on constraint job_workers_pkey do update set
    heartbeat_at = processor.now(), lease_expires_at = excluded.lease_expires_at, lease = excluded.lease,
    queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, feed = excluded.feed
  returning * into w;
  return jsonb_build_object('now', processor.now(), 'lease_expires_at', w.lease_expires_at, 'schema_version', processor.schema_version());
end
$$;
comment on function public.register_worker(jsonb) is
  'Enter a worker and its handlers'' declarations. The worker chooses its id (a uuid), so asking twice is harmless.';

create or replace function processor.next_due_at(worker public.job_workers, queues text[] default null)
returns timestamptz
language plpgsql -- keeps its plan between calls
stable
set search_path = ''
as $$
begin
  return (
    select min(due.run_at)
    from public.job_queues q
    cross join lateral (
      select j.run_at from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.kind = any (worker.kinds)
      order by j.run_at
      limit 1
    ) due
    where q.name = any (coalesce(next_due_at.queues, worker.queues))
      and not q.paused
      and not worker.draining
      and (q.max_processing is null or q.max_processing > (
        select count(*) from public.jobs r where r.queue = q.name and r.status = 'processing'
      ))
  );
end
$$;
comment on function processor.next_due_at(public.job_workers, text[]) is
  'When this worker''s next claim makes sense: the past means now, null means nothing is pending for it.';

create or replace function processor.rescue_jobs(max_jobs int default 100)
returns int
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  seen uuid[];
  ids uuid[];
  ended uuid[] := '{}';
  job public.jobs;
begin
  -- the usual case: no lease is over, one look at what runs; a worker whose row is gone is lost too
  select array_agg(c.id) into seen from (
    select j.id from public.jobs j
    left join public.job_workers w on w.id = j.worker_id
    where j.status = 'processing' and (w.id is null or w.lease_expires_at < moment)
    limit rescue_jobs.max_jobs
  ) c;
  if seen is null then
    delete from public.job_workers w
    where w.lease_expires_at < moment - interval '1 day'
      and not exists (select from public.jobs j where j.worker_id = w.id and j.status = 'processing');
    return 0;
  end if;

  -- LOCK: accounts, then jobs; a job that somebody else has in hand is left to the next heartbeat
  perform processor.lock_accounts(seen);
  select array_agg(l.id) into ids from (
    select j.id from public.jobs j
    left join public.job_workers w on w.id = j.worker_id
    where j.id = any (seen) and j.status = 'processing' and (w.id is null or w.lease_expires_at < moment)
    order by j.id for no key update of j skip locked
  ) l;
  for job in select * from public.jobs j where j.id = any (ids) order by j.id loop
    perform processor.note_error(job.id, 'LEASE_LOST', format('worker %s stopped renewing its lease', job.worker_id));
    if job.cancel_requested_at is not null then
      perform processor.end_job(job.id, 'cancelled', null, 'CANCELLED', 'cancelled while its worker was lost');
      ended := ended || job.id;
    elsif job.crashes >= 1 then
      perform processor.end_job(job.id, case when job.items_done > 0 then 'partial' else 'failed' end, null,
        'WORKER_CRASHED', 'its worker was lost twice while running it');
      ended := ended || job.id;
    else
      perform processor.requeue_job(job.id, processor.now());
      update public.jobs j set crashes = j.crashes + 1 where j.id = job.id;
    end if;
  end loop;
  perform processor.settle_holds(ended);
  return coalesce(cardinality(ids), 0);
end
$$;
comment on function processor.rescue_jobs(int) is
  'Take jobs from workers whose lease is over: pending again, or ended if it is the second worker lost with the job. '
  'Every heartbeat calls it; call it yourself when no worker is alive.';

create or replace function public.heartbeat_worker(worker_id uuid, running uuid[] default '{}', feed text default 'polling')
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  w public.job_workers;
  rescued int := 0;
  running_now constant uuid[] := coalesce(heartbeat_worker.running, '{}');
  answer jsonb;
begin
  perform processor.check_feed(heartbeat_worker.feed);
  select * into w from public.job_workers x where x.id = heartbeat_worker.worker_id;
  if not found then
    perform processor.fail('JQ011', format('unknown worker: %s', heartbeat_worker.worker_id), '', 'Register again.');
  end if;
  -- whoever had lapsed only renews: after an outage of everything nobody rescues the living
  if w.lease_expires_at >= processor.now() then
    begin -- a job that cannot be rescued must not cost the living their leases
      rescued := processor.rescue_jobs();
    exception when others then
      raise warning 'rescue_jobs failed: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  update public.job_workers x
  set heartbeat_at = processor.now(), lease_expires_at = processor.now() + x.lease,
    running = cardinality(running_now), feed = coalesce(heartbeat_worker.feed, x.feed)
  where x.id = w.id
  returning * into w;
  if not found then -- it was forgotten a moment ago
    perform processor.fail('JQ011', format('unknown worker: %s', heartbeat_worker.worker_id), '', 'Register again.');
  end if;

  with owned as (
    select j.id, j.attempt, j.cancel_requested_at, j.started_at from public.jobs j
    where j.worker_id = w.id and j.status = 'processing'
  )
  select jsonb_build_object(
    'now', processor.now(),
    'heartbeat_at', w.heartbeat_at,
    'lease_expires_at', w.lease_expires_at,
    'next_due_at', processor.next_due_at(w),
    'draining', w.draining,
    'inbox', w.inbox,
    'rescued', rescued,
    'cancel', coalesce((select jsonb_agg(o.id) from owned o where o.cancel_requested_at is not null), '[]'),
    'lost', coalesce((select jsonb_agg(r) from unnest(running_now) r where r not in (select o.id from owned o)), '[]'),
    -- a job claimed a moment ago may not have reached the worker yet
    'unknown', coalesce((
      select jsonb_agg(jsonb_build_object('id', o.id, 'attempt', o.attempt)) from owned o
      where o.id <> all (running_now) and o.started_at < processor.now() - interval '10 seconds'
    ), '[]')
  ) into answer;
  return answer;
end
$$;
comment on function public.heartbeat_worker(uuid, uuid[], text) is
  'Renew the lease, rescue what dead workers held, and learn: jobs to cancel, jobs lost, jobs forgotten, when the next one is due.';

create or replace function public.deregister_worker(worker_id uuid)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  left_behind jsonb;
  released int;
begin
  select coalesce(jsonb_agg(jsonb_build_object('id', j.id, 'attempt', j.attempt)), '[]') into left_behind
  from public.jobs j where j.worker_id = deregister_worker.worker_id and j.status = 'processing';
  released := jsonb_array_length(public.release_jobs(deregister_worker.worker_id, left_behind));
  delete from public.job_workers w where w.id = deregister_worker.worker_id;
  return jsonb_build_object('released', released);
end
$$;
comment on function public.deregister_worker(uuid) is 'Leave: what the worker still holds is released, its row goes.';
-- ===== 65_claim.sql =====
-- Claiming: who gets which job.

create or replace function processor.claimed(ids uuid[])
returns jsonb
language plpgsql -- keeps its plan between calls, which is most of what such a function costs
stable
set search_path = ''
set enable_sort = on -- claim_jobs has it off
as $$
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object(
      'id', j.id, 'queue', j.queue, 'kind', j.kind, 'owner_id', j.owner_id, 'priority', j.priority,
      'payload', j.payload, 'attempt', j.attempt, 'failures', j.failures, 'max_attempts', j.max_attempts,
      'run_at', j.run_at, 'created_at', j.created_at, 'tags', j.tags,
      'timeout_seconds', extract(epoch from coalesce(j.timeout, q.timeout)),
      'cancel_requested', j.cancel_requested_at is not null,
      'items_total', j.items_total, 'items_done', j.items_done,
      'items', case when j.items_total = 0 then '[]' else coalesce((
        select jsonb_agg(jsonb_build_object('key', i.key, 'position', i.position, 'payload', i.payload, 'attempts', i.attempts)
          order by i.position)
        from public.job_items i where i.job_id = j.id and i.status = 'pending'
      ), '[]') end,
      'done', case when j.items_done = 0 then '[]' else coalesce((
        select jsonb_agg(jsonb_build_object('key', d.key, 'position', d.position,
          'result', case when d.bytes <= 4194304 then d.result end) order by d.position)
        from (
          select i.key, i.position, i.result, sum(octet_length(i.result::text)) over (order by i.position) as bytes
          from public.job_items i where i.job_id = j.id and i.status = 'completed'
        ) d
      ), '[]') end
    ) order by j.priority desc, j.run_at, j.id)
    from public.jobs j
    left join public.job_queues q on q.name = j.queue
    where j.id = any (claimed.ids)
  ), '[]');
end
$$;
comment on function processor.claimed(uuid[]) is
  'Jobs as a worker gets them: each with its items that are still to do, and the results of those that earlier attempts did, '
  'up to 4 MiB a job (the rest as null).';

create or replace function public.claim_jobs(worker_id uuid, request_id uuid, queues text[] default null, "limit" int default 1)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
set jit = off -- a claim is too short for compiling to pay, whatever the planner's estimate
set enable_sort = off -- without statistics the planner would sort all that is pending instead of reading jobs_claim_idx
as $$
#variable_conflict use_column
declare
  moment timestamptz;
  w public.job_workers;
  q public.job_queues;
  ids uuid[];
  taken uuid[];
  room int;
begin
  perform processor.check_range('limit', claim_jobs."limit", 1, 1000);
  select * into w from public.job_workers x where x.id = claim_jobs.worker_id;
  -- LOCK: queues with a limit, by name: their claims take turns; all others run side by side
  perform 1 from public.job_queues x
  where x.name = any (coalesce(claim_jobs.queues, w.queues)) and x.max_processing is not null and not x.paused
  order by x.name for no key update;
  -- LOCK: the worker: a repeated request waits here for the first. No job is waited for below, so whoever
  -- locks a job before a worker cannot meet us in a circle
  select * into w from public.job_workers x where x.id = claim_jobs.worker_id for no key update;
  moment := processor.now();
  if not found or w.lease_expires_at < moment then
    perform processor.fail('JQ011', format('worker %s is unknown or its lease is over', claim_jobs.worker_id), '',
      'Send a heartbeat, or register again.');
  end if;

  -- a repeated request: its answer was lost, the jobs are the same
  select array_agg(j.id) into ids from public.jobs j
  where j.worker_id = w.id and j.status = 'processing' and j.claim_id = claim_jobs.request_id;

  if ids is null and not w.draining then
    ids := '{}';
    -- in random order: no queue always comes first
    for q in
      select * from public.job_queues x
      where x.name = any (coalesce(claim_jobs.queues, w.queues)) and not x.paused
      order by random()
    loop
      room := claim_jobs."limit" - cardinality(ids);
      if q.max_processing is not null then
        room := least(room, q.max_processing - (
          select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
        )::int);
      end if;
      continue when room <= 0;

      with picked as materialized (
        select j.id from public.jobs j
        where j.queue = q.name and j.status = 'pending' and j.run_at <= moment and j.kind = any (w.kinds)
        order by j.priority desc, j.run_at, j.id
        limit room
        for no key update skip locked
      ),
      claimed as (
        update public.jobs j
        set status = 'processing', worker_id = w.id, claim_id = claim_jobs.request_id, attempt = j.attempt + 1,
          started_at = moment, updated_at = moment
        from picked p
        where j.id = p.id
        returning j.id
      )
      select array_agg(c.id) into taken from claimed c;
      ids := ids || coalesce(taken, '{}');
    end loop;
  end if;

  return jsonb_build_object(
    'now', processor.now(),
    'jobs', processor.claimed(ids),
    'next_due_at', processor.next_due_at(w, claim_jobs.queues)
  );
end
$$;
comment on function public.claim_jobs(uuid, uuid, text[], int) is
  'Take up to "limit" due jobs of the worker''s kinds: highest priority first, then the longest due. The same request_id '
  'again returns the same jobs. next_due_at says when the next claim makes sense.';
-- ===== 70_progress.sql =====
-- While a job runs: progress, logs, items. Nothing here touches an account.

create or replace function processor.lock_held_jobs(worker_id uuid, reports jsonb)
returns table (id uuid, report jsonb, held boolean, cancel boolean)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(lock_held_jobs.reports) is distinct from 'array' then
    perform processor.fail('JQ006', 'expected an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: jobs, by id
  perform 1 from public.jobs j
  where j.id in (select (r ->> 'id')::uuid from jsonb_array_elements(lock_held_jobs.reports) r)
  order by j.id for no key update;
  return query
  select (r.value ->> 'id')::uuid,
    r.value,
    -- THE FENCE: still running, by this worker, in this attempt
    coalesce(j.status = 'processing' and j.worker_id = lock_held_jobs.worker_id and j.attempt = (r.value ->> 'attempt')::int, false),
    j.cancel_requested_at is not null
  from jsonb_array_elements(lock_held_jobs.reports) with ordinality r
  left join public.jobs j on j.id = (r.value ->> 'id')::uuid
  order by r.ordinality;
end
$$;
comment on function processor.lock_held_jobs(uuid, jsonb) is
  'Lock the jobs of a batch of reports and say of each, in the order given, whether the worker still holds it (the fence).';

create or replace function public.report_progress(worker_id uuid, reports jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  stale jsonb := '[]';
  cancel jsonb := '[]';
begin
  for r in select * from processor.lock_held_jobs(report_progress.worker_id, report_progress.reports) loop
    if not r.held then
      stale := stale || to_jsonb(r.id);
      continue;
    end if;
    if r.cancel then
      cancel := cancel || to_jsonb(r.id);
    end if;
    update public.jobs j
    -- least() and greatest() pass over nulls: no progress given must not become 1
    set progress = greatest(0, least(1, coalesce((r.report ->> 'progress')::double precision, j.progress))),
      progress_message = coalesce(left(r.report ->> 'message', 500), j.progress_message),
      updated_at = processor.now()
    where j.id = r.id;
    update public.job_items i
    set progress = greatest(0, least(1, coalesce((x ->> 'progress')::double precision, i.progress))), updated_at = processor.now()
    from jsonb_array_elements(coalesce(nullif(r.report -> 'items', 'null'), '[]')) x
    where i.job_id = r.id and i.key = x ->> 'key' and i.status = 'pending';
  end loop;
  return jsonb_build_object('stale', stale, 'cancel', cancel);
end
$$;
comment on function public.report_progress(uuid, jsonb) is
  'Write the progress of jobs and items, each 0 to 1. Returns jobs that are no longer held and jobs to cancel.';

create or replace function public.append_job_logs(worker_id uuid, logs jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  stored int;
begin
  with held as (
    select distinct h.id, (h.report ->> 'attempt')::int as attempt
    from processor.lock_held_jobs(append_job_logs.worker_id, append_job_logs.logs) h where h.held
  ),
  room as (
    select h.id, h.attempt, 1000 - (select count(*) from public.job_logs l where l.job_id = h.id) as lines from held h
  ),
  given as (
    select room.id, room.attempt, room.lines, l.value as line, row_number() over (partition by room.id order by l.ordinality) as n
    from jsonb_array_elements(append_job_logs.logs) with ordinality l
    join room on room.id = (l.value ->> 'id')::uuid and room.attempt = (l.value ->> 'attempt')::int
  ),
  written as (
    insert into public.job_logs (job_id, attempt, logged_at, level, message, fields)
    select g.id, g.attempt, coalesce((g.line ->> 'at')::timestamptz, processor.now()),
      case when g.line ->> 'level' in ('debug', 'info', 'warning', 'error') then g.line ->> 'level' else 'info' end,
      left(coalesce(g.line ->> 'message', ''), 2000),
      case when octet_length(coalesce(g.line ->> 'fields', '{}')) <= 4096 then coalesce(g.line -> 'fields', '{}') else '{}' end
    from given g
    where g.n <= g.lines
    order by g.id, g.n
    returning 1
  )
  select count(*) into stored from written;
  return jsonb_build_object('stored', stored);
end
$$;
comment on function public.append_job_logs(uuid, jsonb) is
  'Add log lines to jobs the worker holds: at most 1,000 a job, 2,000 characters a line. More are dropped, and the count says so.';

create or replace function processor.finish_held_items(job_id uuid, items jsonb)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  bad text;
  news jsonb;
  done int[];
  failed int;
  mended int;
  price bigint := 0;
begin
  -- LOCK: the caller holds the job, and nobody changes items without it
  if coalesce(finish_held_items.items, 'null') = 'null' then
    return;
  end if;
  select x ->> 'key' into bad from jsonb_array_elements(finish_held_items.items) x
  where not exists (select from public.job_items i where i.job_id = finish_held_items.job_id and i.key = x ->> 'key')
    or coalesce(x ->> 'status', '') not in ('completed', 'failed')
    or octet_length(x ->> 'result') > 1048576
  limit 1;
  if found then
    perform processor.fail('JQ005', format('the result of item %s cannot be taken', left(bad, 200)), '',
      'The key must be one of the job''s, the status completed or failed, the result at most 1 MiB.');
  end if;
  select x ->> 'key' into bad from jsonb_array_elements(finish_held_items.items) x group by 1 having count(*) > 1 limit 1;
  if found then
    perform processor.fail('JQ005', format('item %s is reported twice at once', bad), '', 'Report the last result of an item.');
  end if;

  -- what is new: a completed item stays so, and the same failure told again is no second one
  select jsonb_agg(x) into news
  from jsonb_array_elements(finish_held_items.items) x
  join public.job_items i on i.job_id = finish_held_items.job_id and i.key = x ->> 'key'
  where i.status = 'pending' or (i.status = 'failed' and (
    x ->> 'status' = 'completed'
    or (i.error_code, i.error_message, i.error_retryable) is distinct from
      (x ->> 'error_code', left(x ->> 'error_message', 2000), (x ->> 'error_retryable')::boolean)
  ));
  if news is null then
    return;
  end if;

  select array_agg(i.position order by i.position) filter (where x ->> 'status' = 'completed'),
    count(*) filter (where x ->> 'status' = 'failed' and i.status <> 'failed'),
    count(*) filter (where x ->> 'status' = 'completed' and i.status = 'failed')
  into done, failed, mended
  from public.job_items i
  join jsonb_array_elements(news) x on i.key = x ->> 'key'
  where i.job_id = finish_held_items.job_id;
  if done is not null then
    price := processor.capture_units(finish_held_items.job_id, done, per_item => true);
  end if;

  update public.job_items i
  set status = x ->> 'status',
    result = nullif(x -> 'result', 'null'),
    progress = case when x ->> 'status' = 'completed' then 1 else i.progress end,
    attempts = i.attempts + 1,
    credits = case when x ->> 'status' = 'completed' then price else 0 end,
    error_code = x ->> 'error_code',
    error_message = left(x ->> 'error_message', 2000),
    error_retryable = (x ->> 'error_retryable')::boolean,
    updated_at = processor.now()
  from jsonb_array_elements(news) x
  where i.job_id = finish_held_items.job_id and i.key = x ->> 'key';

  update public.jobs j
  set items_done = j.items_done + coalesce(cardinality(done), 0),
    items_failed = j.items_failed + failed - mended,
    progress = greatest(j.progress,
      (j.items_done + coalesce(cardinality(done), 0) + j.items_failed + failed - mended)::double precision / j.items_total),
    updated_at = processor.now()
  where j.id = finish_held_items.job_id;
end
$$;
comment on function processor.finish_held_items(uuid, jsonb) is
  'Write the ends of items of a job that is locked and held, and take the tickets of those that completed.';

create or replace function public.finish_items(worker_id uuid, results jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  answers jsonb := '[]';
  cancel jsonb := '[]';
  problem text;
begin
  for r in select * from processor.lock_held_jobs(finish_items.worker_id, finish_items.results) loop
    problem := null;
    if r.held then
      if r.cancel then
        cancel := cancel || to_jsonb(r.id);
      end if;
      begin -- one bad element spoils no other
        perform processor.finish_held_items(r.id, r.report -> 'items');
      exception when others then
        if left(sqlstate, 2) in ('40', '53', '55', '57', '58', 'XX') then
          raise; -- the server's trouble, not this element's: the batch is to be repeated
        end if;
        problem := left(sqlstate || ': ' || sqlerrm, 500);
      end;
    end if;
    answers := answers || jsonb_build_object('id', r.id, 'stale', not r.held, 'error', problem);
  end loop;
  return jsonb_build_object('results', answers, 'cancel', cancel);
end
$$;
comment on function public.finish_items(uuid, jsonb) is
  'Write the ends of items while their jobs go on: each is a checkpoint and is paid for at once. Repeating it changes nothing.';
-- ===== 75_finish.sql =====
-- The end of an attempt: finished, or given back.

create or replace function processor.retry_delay(job public.jobs)
returns interval
language sql
volatile
set search_path = ''
as $$
  -- a queue that is gone, or a delay of null, must not keep the job from ending its attempt
  select coalesce((
    select q.retry_delays[least(job.failures + 1, cardinality(q.retry_delays))] * (1 + q.jitter * (2 * random() - 1))
    from public.job_queues q where q.name = job.queue
  ), interval '1 minute')
$$;
comment on function processor.retry_delay(public.jobs) is
  'How long a job waits after its next failure: the queue''s nth delay (the last one repeats), give or take the jitter.';

create or replace function processor.finish_held_job(job_id uuid, report jsonb)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  outcome constant text := finish_held_job.report ->> 'outcome';
  delay constant double precision := (finish_held_job.report ->> 'delay_seconds')::double precision;
  result constant jsonb := nullif(finish_held_job.report -> 'result', 'null');
  code text := finish_held_job.report ->> 'error_code';
  message text := finish_held_job.report ->> 'error_message';
  job public.jobs;
  retryable boolean;
begin
  -- LOCK: the caller holds account and job; it settles the holds of those that ended
  select * into job from public.jobs j where j.id = finish_held_job.job_id;
  if coalesce(outcome, '') not in ('done', 'fail', 'retry', 'snooze', 'cancelled') then
    perform processor.fail('JQ006', format('outcome %s is not one of done, fail, retry, snooze, cancelled', left(outcome, 100)));
  end if;
  perform processor.check_range('delay_seconds', delay::numeric, 0, 31536000);
  perform processor.check_size('the result', result, 1048576);

  if outcome = 'done' and job.items_done = job.items_total then
    perform processor.capture_units(job.id, array[1], per_item => false);
    perform processor.end_job(job.id, 'completed', result);
    return;
  elsif outcome = 'cancelled' or (job.cancel_requested_at is not null and outcome in ('retry', 'snooze')) then
    perform processor.end_job(job.id, 'cancelled', null, coalesce(code, 'CANCELLED'), coalesce(message, 'cancelled while it ran'));
    return;
  elsif outcome = 'snooze' then
    if delay is null then
      perform processor.fail('JQ006', 'a snooze needs delay_seconds');
    end if;
    perform processor.requeue_job(job.id, processor.now() + make_interval(secs => delay));
    update public.jobs j set progress_message = coalesce(finish_held_job.report ->> 'message', j.progress_message) where j.id = job.id;
    return;
  end if;

  -- a failure; "done" with open items is one too, worth another attempt if one of them is
  retryable := case outcome
    when 'done' then exists (
      select from public.job_items i
      where i.job_id = job.id and (i.status = 'pending' or (i.status = 'failed' and i.error_retryable))
    )
    when 'retry' then coalesce((finish_held_job.report ->> 'error_retryable')::boolean, true)
    else false
  end;
  if outcome = 'done' then
    code := 'ITEMS_FAILED';
    message := format('%s of %s items did not complete', job.items_total - job.items_done, job.items_total);
  end if;
  code := coalesce(code, 'HANDLER_CRASHED');
  perform processor.note_error(job.id, code, message);

  if retryable and job.cancel_requested_at is null and job.failures + 1 < job.max_attempts then
    perform processor.requeue_job(job.id,
      processor.now() + coalesce(make_interval(secs => delay), processor.retry_delay(job)));
    update public.jobs j
    set failures = j.failures + 1, error_code = code, error_message = left(message, 2000), error_retryable = true
    where j.id = job.id;
  elsif retryable and job.cancel_requested_at is not null then
    perform processor.end_job(job.id, 'cancelled', null, 'CANCELLED', 'cancelled while it ran');
  else
    update public.jobs j set failures = j.failures + 1 where j.id = job.id;
    perform processor.end_job(job.id, case when job.items_done > 0 then 'partial' else 'failed' end,
      result, code, message);
  end if;
end
$$;
comment on function processor.finish_held_job(uuid, jsonb) is
  'Decide what the end of an attempt means for a job that is locked and held: completed, partial, failed, cancelled, or pending again.';

create or replace function public.finish_jobs(worker_id uuid, results jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  answers jsonb := '[]';
  problem text;
  held boolean;
  now_is public.jobs;
begin
  if jsonb_typeof(finish_jobs.results) is distinct from 'array' then
    perform processor.fail('JQ006', 'results must be an array of objects with "id", "attempt" and "outcome"');
  end if;
  -- LOCK: accounts, then jobs; each account is changed once, at the end
  perform processor.lock_accounts(array(select (x ->> 'id')::uuid from jsonb_array_elements(finish_jobs.results) x));
  for r in select * from processor.lock_held_jobs(finish_jobs.worker_id, finish_jobs.results) loop
    problem := null;
    -- a job that stands in the batch twice is ended by the first report; the second is as stale as a later one
    held := r.held and exists (select from public.jobs j where j.id = r.id and j.status = 'processing');
    if held then
      begin -- one bad element spoils no other
        perform processor.finish_held_items(r.id, r.report -> 'items');
        perform processor.finish_held_job(r.id, r.report);
      exception when others then
        if left(sqlstate, 2) in ('40', '53', '55', '57', '58', 'XX') then
          raise; -- the server's trouble, not this element's: the batch is to be repeated
        end if;
        problem := left(sqlstate || ': ' || sqlerrm, 500);
      end;
    end if;
    select * into now_is from public.jobs j where j.id = r.id;
    answers := answers || jsonb_build_object(
      'id', r.id, 'status', now_is.status, 'run_at', now_is.run_at, 'stale', not held, 'error', problem);
  end loop;
  perform processor.settle_holds(array(
    select j.id from public.jobs j
    where j.id in (select (x ->> 'id')::uuid from jsonb_array_elements(finish_jobs.results) x) and j.finished_at is not null
  ));
  return answers;
end
$$;
comment on function public.finish_jobs(uuid, jsonb) is
  'Report how attempts ended, in a batch: each element is decided on its own, credits included, and answered in the order given. '
  'A late or repeated report is stale and changes nothing.';

create or replace function public.release_jobs(worker_id uuid, jobs jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  held boolean;
  ended uuid[] := '{}';
  answers jsonb := '[]';
begin
  if jsonb_typeof(release_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: accounts, then jobs
  perform processor.lock_accounts(array(select (x ->> 'id')::uuid from jsonb_array_elements(release_jobs.jobs) x));
  for r in select * from processor.lock_held_jobs(release_jobs.worker_id, release_jobs.jobs) loop
    held := r.held and exists (select from public.jobs j where j.id = r.id and j.status = 'processing');
    if held and r.cancel then
      perform processor.end_job(r.id, 'cancelled', null, 'CANCELLED', 'cancelled while it ran');
      ended := ended || r.id;
    elsif held then
      perform processor.requeue_job(r.id, processor.now());
    end if;
    answers := answers || jsonb_build_object('id', r.id, 'stale', not held);
  end loop;
  perform processor.settle_holds(ended);
  return answers;
end
$$;
comment on function public.release_jobs(uuid, jsonb) is
  'Give jobs back, at once and without costing an attempt: what a worker does with unfinished work when it stops.';
-- ===== 80_operators.sql =====
-- For operators: the SQL editor at 3 a.m.

create or replace function processor.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null)
returns public.credit_accounts
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  account public.credit_accounts;
  earlier public.credit_entries;
begin
  if grant_credits.owner_id is null then
    perform processor.fail('JQ006', 'owner_id is missing', '', 'Name the auth user: select id from auth.users where email = …');
  end if;
  if grant_credits.amount is null then
    perform processor.fail('JQ006', 'amount is missing');
  end if;
  perform processor.check_range('amount', grant_credits.amount, 1, 1000000000000);
  perform processor.check_text('idempotency_key', grant_credits.idempotency_key, 200);
  -- LOCK: the account
  insert into public.credit_accounts (owner_id) values (grant_credits.owner_id) on conflict do nothing;
  select * into account from public.credit_accounts a where a.owner_id = grant_credits.owner_id for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = grant_credits.owner_id and e.idempotency_key = grant_credits.idempotency_key;
  if found then
    if earlier.amount <> grant_credits.amount then
      perform processor.fail('JQ007', format('idempotency_key %s granted %s before, not %s',
        grant_credits.idempotency_key, earlier.amount, grant_credits.amount));
    end if;
    return account;
  end if;
  perform processor.check_range('what was issued, with this grant,', account.issued::numeric + grant_credits.amount, 0, 9007199254740991);
  insert into public.credit_entries (owner_id, kind, amount, reason, idempotency_key)
  values (grant_credits.owner_id, 'grant', grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key);
  update public.credit_accounts a
  set issued = a.issued + grant_credits.amount, available = a.available + grant_credits.amount, updated_at = processor.now()
  where a.owner_id = grant_credits.owner_id
  returning * into account;
  return account;
end
$$;
comment on function processor.grant_credits(uuid, bigint, text, text) is
  'Give an owner credits: select * from processor.grant_credits(''<user id>'', 100, ''welcome''). With an idempotency_key, once only.';

create or replace function public.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null)
returns public.credit_accounts
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = ''
as $$
  select *
  from processor.grant_credits(grant_credits.owner_id, grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key)
$$;
comment on function public.grant_credits(uuid, bigint, text, text) is
  'processor.grant_credits() for a server with the service key, such as the one that takes payments.';

create or replace function processor.check_credits()
returns table (problem text, owner_id uuid, job_id uuid, expected bigint, found bigint)
language sql
stable
set search_path = ''
as $$
  select 'account.held is not the sum of its open holds', a.owner_id, null::uuid, coalesce(s.total, 0), a.held
  from public.credit_accounts a
  left join (
    select h.owner_id, sum(h.units * h.unit_price)::bigint as total
    from public.credit_holds h where h.closed_at is null group by 1
  ) s on s.owner_id = a.owner_id
  where a.held <> coalesce(s.total, 0)
  union all
  select 'account.' || b.bucket || ' is not what the journal says', a.owner_id, null, b.journal, b.account
  from public.credit_accounts a
  left join (
    select e.owner_id,
      coalesce(sum(e.amount) filter (where e.kind = 'grant'), 0)::bigint as granted,
      coalesce(sum(e.amount) filter (where e.kind = 'clawback'), 0)::bigint as undone,
      coalesce(sum(e.amount) filter (where e.kind = 'reserve'), 0)::bigint as reserved,
      coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0)::bigint as captured,
      coalesce(sum(e.amount) filter (where e.kind = 'release'), 0)::bigint as released
    from public.credit_entries e group by 1
  ) e on e.owner_id = a.owner_id
  cross join lateral (values
    ('issued', coalesce(e.granted - e.undone, 0), a.issued),
    ('available', coalesce(e.granted - e.undone - e.reserved + e.released, 0), a.available),
    ('held', coalesce(e.reserved - e.captured - e.released, 0), a.held),
    ('spent', coalesce(e.captured, 0), a.spent)
  ) b (bucket, journal, account)
  where b.journal <> b.account
  union all
  select 'the job has ended, its hold has not', h.owner_id, h.job_id, 0, h.units * h.unit_price
  from public.credit_holds h join public.jobs j on j.id = h.job_id
  where (j.finished_at is null) <> (h.closed_at is null)
  union all
  select 'job.' || b.bucket || ' is not what its hold says', h.owner_id, h.job_id, b.hold, b.job
  from public.credit_holds h
  join public.jobs j on j.id = h.job_id
  cross join lateral (select count(*) * h.unit_price as amount from public.credit_captures c where c.job_id = h.job_id) t
  cross join lateral (values
    ('credits_captured', t.amount, j.credits_captured),
    ('credits_held', case when h.closed_at is null then h.units * h.unit_price - t.amount else 0 end, j.credits_held),
    ('credits_refunded', case when h.closed_at is null then 0 else h.units * h.unit_price - t.amount end, j.credits_refunded),
    ('credits_captured, when it was closed,', coalesce(case when h.closed_at is not null then h.captured end, t.amount), j.credits_captured)
  ) b (bucket, hold, job)
  where b.hold <> b.job
  union all
  select 'the job has credits, but no hold', j.owner_id, j.id, 0, j.credits_held + j.credits_captured + j.credits_refunded
  from public.jobs j
  where j.credits_held + j.credits_captured + j.credits_refunded > 0
    and not exists (select from public.credit_holds h where h.job_id = j.id)
  union all
  select 'the tickets are not the items that completed', h.owner_id, h.job_id, i.completed, t.tickets
  from public.credit_holds h
  cross join lateral (select count(*) as tickets from public.credit_captures c where c.job_id = h.job_id) t
  cross join lateral (select count(*) as completed from public.job_items i where i.job_id = h.job_id and i.status = 'completed') i
  where h.per_item and i.completed <> t.tickets
  union all
  select 'more was taken back than granted', g.owner_id, null, g.amount, c.total
  from (select e.undoes, sum(e.amount)::bigint as total from public.credit_entries e where e.kind = 'clawback' group by 1) c
  join public.credit_entries g on g.id = c.undoes
  where c.total > g.amount
  union all
  select 'the journal has entries, but there is no account', e.owner_id, null, 0, count(*)
  from public.credit_entries e
  where not exists (select from public.credit_accounts a where a.owner_id = e.owner_id)
  group by e.owner_id
$$;
comment on function processor.check_credits() is
  'The conservation law, to be run at any time: select * from processor.check_credits(). Every row it returns is a fault.';

create or replace function processor.check_schema()
returns table (problem text)
language sql
stable
set search_path = ''
as $$
  with ours (name, live) as (
    values ('jobs', true), ('job_items', true), ('job_logs', true), ('job_queues', true), ('job_workers', true),
      ('credit_accounts', true), ('job_kinds', false), ('credit_entries', false), ('credit_holds', false), ('credit_captures', false)
  )
  select format('table public.%s is missing', o.name) from ours o
  where to_regclass('public.' || o.name) is null
  union all
  select format('row level security of public.%s is off: everyone with a grant sees every row', c.relname)
  from ours o join pg_catalog.pg_class c on c.oid = to_regclass('public.' || o.name)
  where not c.relrowsecurity
  union all
  select format('public.%s is not in the publication supabase_realtime: nobody is told of its changes', o.name)
  from ours o
  where o.live and to_regclass('public.' || o.name) is not null and not exists (
    select from pg_catalog.pg_publication_tables p
    where p.pubname = 'supabase_realtime' and p.schemaname = 'public' and p.tablename = o.name
  )
  union all
  select 'the role service_role cannot call public.claim_jobs()'
  where not has_function_privilege('service_role', 'public.claim_jobs(uuid, uuid, text[], int)', 'execute')
$$;
comment on function processor.check_schema() is
  'What is wrong with the installation; no row means nothing. `processor schema status` asks it.';
-- ===== 82_operator_views.sql =====
-- For operators: what is going on. Each view answers one question; sql/README.md shows them at work.
-- They read indexes, not the table: finished jobs through jobs_finished_idx (a time that is bounded on both sides makes
-- the planner expect few rows), what waits and runs through its own.

create index if not exists jobs_finished_idx on public.jobs (queue, finished_at desc, id desc) where finished_at is not null;

create or replace function processor.queue_names()
returns setof text
language sql
stable
rows 20
set search_path = ''
as $$
  -- jumps from queue to queue along the indexes: as many steps as there are queues, however many jobs
  with recursive finished (queue) as (
    (select j.queue from public.jobs j where j.finished_at is not null order by j.queue limit 1)
    union all
    select (select j.queue from public.jobs j where j.finished_at is not null and j.queue > f.queue order by j.queue limit 1)
    from finished f where f.queue is not null
  ),
  pending (queue) as (
    (select j.queue from public.jobs j where j.status = 'pending' order by j.queue limit 1)
    union all
    select (select j.queue from public.jobs j where j.status = 'pending' and j.queue > p.queue order by j.queue limit 1)
    from pending p where p.queue is not null
  )
  select q.name from public.job_queues q
  union select f.queue from finished f where f.queue is not null
  union select p.queue from pending p where p.queue is not null
  union select j.queue from public.jobs j where j.status = 'processing'
  order by 1
$$;
comment on function processor.queue_names() is 'All queues: those with a row, and those whose row is gone while their jobs are not.';

create or replace view processor.queue_health with (security_invoker = on) as
with moment as materialized (select processor.now() as now)
select n.queue, q.paused, q.max_processing, w.live_workers, p.due, p.scheduled, r.processing,
  m.now - p.oldest as oldest_due_age, f.done_last_hour, f.failed_last_hour, f.run_seconds_p50, f.run_seconds_p95
from moment m
cross join processor.queue_names() n (queue)
left join public.job_queues q on q.name = n.queue
cross join lateral (
  select count(*) as live_workers from public.job_workers x
  where n.queue = any (x.queues) and x.lease_expires_at >= m.now and not x.draining
) w
cross join lateral (
  select count(*) filter (where j.run_at <= m.now) as due,
    count(*) filter (where j.run_at > m.now) as scheduled,
    min(j.run_at) filter (where j.run_at <= m.now) as oldest
  from public.jobs j where j.queue = n.queue and j.status = 'pending'
) p
cross join lateral (
  select count(*) as processing from public.jobs j where j.queue = n.queue and j.status = 'processing'
) r
cross join lateral (
  select count(*) filter (where j.status = 'completed') as done_last_hour,
    count(*) filter (where j.status in ('failed', 'partial')) as failed_last_hour,
    percentile_cont(0.5) within group (order by extract(epoch from j.finished_at - j.started_at)) as run_seconds_p50,
    percentile_cont(0.95) within group (order by extract(epoch from j.finished_at - j.started_at)) as run_seconds_p95
  from public.jobs j
  where j.queue = n.queue and j.finished_at between m.now - interval '1 hour' and m.now
) f;
comment on view processor.queue_health is
  'Look here first: one row per queue. Is it paused, does it keep up, how long does the oldest due job wait, what fails.';
comment on column processor.queue_health.queue is 'The queue.';
comment on column processor.queue_health.paused is
  'Whether it is paused; null: it has jobs but no row in job_queues, so nothing is claimed.';
comment on column processor.queue_health.max_processing is 'Its limit over all workers; null: none.';
comment on column processor.queue_health.live_workers is 'Workers that serve it, are alive and are not draining.';
comment on column processor.queue_health.due is 'Pending jobs that could run now.';
comment on column processor.queue_health.scheduled is 'Pending jobs whose time has not come: delayed, snoozed or to be tried again.';
comment on column processor.queue_health.processing is 'Jobs that run now.';
comment on column processor.queue_health.oldest_due_age is 'How long the longest due job has been due.';
comment on column processor.queue_health.done_last_hour is 'Jobs completed in the last hour.';
comment on column processor.queue_health.failed_last_hour is 'Jobs failed or partly done in the last hour.';
comment on column processor.queue_health.run_seconds_p50 is
  'Half of the last attempts that ended in the last hour took at most so many seconds.';
comment on column processor.queue_health.run_seconds_p95 is 'The same for 95 of 100.';

create or replace view processor.stuck_jobs with (security_invoker = on) as
with moment as materialized (select processor.now() as now),
served as materialized ( -- what live workers would claim
  select u.queue, k.kind, bool_and(w.draining) as draining
  from moment m
  join public.job_workers w on w.lease_expires_at >= m.now
  cross join unnest(w.queues) u (queue)
  cross join unnest(w.kinds) k (kind)
  group by 1, 2
),
queues as materialized (
  select q.name, q.paused, q.timeout, q.max_processing,
    (select count(*) from public.jobs r where r.queue = q.name and r.status = 'processing') as processing
  from public.job_queues q
),
judged as (
  select j.id, j.queue, j.kind, j.owner_id, j.status, j.worker_id, m.now - j.run_at as age,
    case
      when q.name is null then 'queue_missing'
      when q.paused then 'queue_paused'
      when s.kind is null then 'no_worker'
      when s.draining then 'workers_draining'
      when q.processing >= q.max_processing then 'queue_at_limit'
      when j.run_at < m.now - interval '5 minutes' then 'waiting_long'
    end as reason,
    q.max_processing as max_processing, null::interval as timeout
  from moment m
  join public.jobs j on j.status = 'pending' and j.run_at <= m.now
  left join queues q on q.name = j.queue
  left join served s on s.queue = j.queue and s.kind = j.kind
  union all
  select j.id, j.queue, j.kind, j.owner_id, j.status, j.worker_id, m.now - j.started_at,
    case
      when w.id is null or w.lease_expires_at < m.now then 'worker_lost'
      when j.started_at + coalesce(j.timeout, q.timeout) < m.now then 'over_timeout'
    end,
    q.max_processing, coalesce(j.timeout, q.timeout)
  from moment m
  join public.jobs j on j.status = 'processing'
  left join public.job_workers w on w.id = j.worker_id
  left join queues q on q.name = j.queue
)
select d.id as job_id, d.queue, d.kind, d.owner_id, d.status, d.age, d.reason,
  case d.reason
    when 'queue_missing' then format('queue %s has no row in job_queues: insert one, or move_jobs(''%s'', …)', d.queue, d.queue)
    when 'queue_paused' then format('queue %s is paused: resume_queue(''%s'')', d.queue, d.queue)
    when 'no_worker' then format('no live worker serves queue %s and handles %s: start one, see worker_health', d.queue, d.kind)
    when 'workers_draining' then format('every live worker that handles %s is draining: start another', d.kind)
    when 'queue_at_limit' then format('queue %s runs as many as its max_processing of %s allows', d.queue, d.max_processing)
    when 'waiting_long' then 'due for more than 5 minutes: all workers are busy, or do not claim; see worker_health'
    when 'worker_lost' then format('worker %s stopped renewing its lease: any live worker rescues the job, or rescue_jobs()', d.worker_id)
    when 'over_timeout' then format('running longer than its timeout of %s: cancel_job(''%s''), or restart worker %s',
      d.timeout, d.id, d.worker_id)
  end as why
from judged d
where d.reason is not null;
comment on view processor.stuck_jobs is
  'When jobs do not move: one row per job that is due or running and stands still, with the first reason why and what to do. '
  'With many, count them: select queue, kind, reason, count(*) from processor.stuck_jobs group by 1, 2, 3.';
comment on column processor.stuck_jobs.job_id is 'The job.';
comment on column processor.stuck_jobs.queue is 'Its queue.';
comment on column processor.stuck_jobs.kind is 'Its kind.';
comment on column processor.stuck_jobs.owner_id is 'Its owner.';
comment on column processor.stuck_jobs.status is 'pending or processing.';
comment on column processor.stuck_jobs.age is 'For how long it has been due, or has been running.';
comment on column processor.stuck_jobs.reason is
  'Pending: queue_missing, queue_paused, no_worker, workers_draining, queue_at_limit, waiting_long. '
  'Processing: worker_lost, over_timeout.';
comment on column processor.stuck_jobs.why is 'The same in words, with what to do.';

create or replace view processor.worker_health with (security_invoker = on) as
with moment as materialized (select processor.now() as now)
select w.id, w.name, w.host, w.pid, w.version, w.lease_expires_at >= m.now as alive, w.draining,
  w.lease_expires_at - m.now as lease_left, m.now - w.heartbeat_at as heartbeat_age,
  w.running, w.slots, h.held, w.feed, w.queues, w.kinds, w.started_at
from moment m
cross join public.job_workers w
cross join lateral (
  select count(*) as held from public.jobs j where j.worker_id = w.id and j.status = 'processing'
) h;
comment on view processor.worker_health is
  'Who works: one row per worker. Use it to see whether anybody is alive, full, draining, or has fallen back to polling.';
comment on column processor.worker_health.id is 'The worker.';
comment on column processor.worker_health.name is 'What people call it.';
comment on column processor.worker_health.host is 'The machine it runs on.';
comment on column processor.worker_health.pid is 'Its process there.';
comment on column processor.worker_health.version is 'The version of its package.';
comment on column processor.worker_health.alive is 'Whether its lease goes on.';
comment on column processor.worker_health.draining is 'Whether it claims no more.';
comment on column processor.worker_health.lease_left is 'How long the lease goes on without another heartbeat; negative: over for so long.';
comment on column processor.worker_health.heartbeat_age is 'When it was last heard of.';
comment on column processor.worker_health.running is 'How many jobs it said it ran, at its last heartbeat.';
comment on column processor.worker_health.slots is 'How many it can run.';
comment on column processor.worker_health.held is 'How many jobs are its own by the table: draining is over at 0.';
comment on column processor.worker_health.feed is
  'realtime: woken by changes. polling: it could not subscribe, and asks every few seconds.';
comment on column processor.worker_health.queues is 'What it serves.';
comment on column processor.worker_health.kinds is 'What it has handlers for.';
comment on column processor.worker_health.started_at is 'When it registered.';

create or replace view processor.error_summary with (security_invoker = on) as
with moment as materialized (select processor.now() as now),
failures as (
  select j.id, j.kind, e.value ->> 'code' as code, e.value ->> 'message' as message, (e.value ->> 'at')::timestamptz as failed_at,
    j.status in ('failed', 'partial') and j.error_code = e.value ->> 'code' as final
  from moment m
  cross join processor.queue_names() n (queue)
  cross join lateral (
    select x.id, x.kind, x.status, x.error_code, x.errors from public.jobs x
    where x.queue = n.queue and x.finished_at between m.now - interval '1 day' and m.now and x.errors <> '[]'
    union all
    select x.id, x.kind, x.status, x.error_code, x.errors from public.jobs x
    where x.queue = n.queue and x.status = 'pending' and x.errors <> '[]'
    union all
    select x.id, x.kind, x.status, x.error_code, x.errors from public.jobs x
    where x.queue = n.queue and x.status = 'processing' and x.errors <> '[]'
  ) j
  cross join lateral jsonb_array_elements(j.errors) e
  where (e.value ->> 'at')::timestamptz > m.now - interval '1 day'
)
select f.kind, f.code, count(*) as failures, count(distinct f.id) as jobs,
  count(distinct f.id) filter (where f.final) as ended, max(f.failed_at) as last_at,
  (array_agg(f.message order by f.failed_at desc))[1] as sample_message,
  (array_agg(f.id order by f.failed_at desc))[1] as sample_job_id
from failures f
group by f.kind, f.code;
comment on view processor.error_summary is
  'What fails: the failed attempts of the last 24 hours by kind and code, with the latest message. Start here before retry_failed().';
comment on column processor.error_summary.kind is 'The kind of the jobs.';
comment on column processor.error_summary.code is 'The error code; LEASE_LOST: the worker died.';
comment on column processor.error_summary.failures is 'How many attempts failed so; of each job the last 20 attempts are known.';
comment on column processor.error_summary.jobs is 'How many jobs that were.';
comment on column processor.error_summary.ended is
  'How many of them ended failed or partial with this code; the others were, or will be, tried again.';
comment on column processor.error_summary.last_at is 'When it last happened.';
comment on column processor.error_summary.sample_message is 'The message of the last one.';
comment on column processor.error_summary.sample_job_id is 'The job of the last one.';

create or replace view processor.throughput with (security_invoker = on) as
with moment as materialized (select processor.now() as now)
select j.queue, t.per, t.starts_at, count(*) as jobs,
  count(*) filter (where j.status = 'completed') as completed,
  count(*) filter (where j.status = 'partial') as partial,
  count(*) filter (where j.status = 'failed') as failed,
  count(*) filter (where j.status = 'cancelled') as cancelled,
  avg(extract(epoch from j.finished_at - j.started_at))::double precision as run_seconds_avg
from moment m
cross join processor.queue_names() n (queue)
cross join lateral (
  select x.queue, x.status, x.started_at, x.finished_at from public.jobs x
  where x.queue = n.queue and x.finished_at between m.now - interval '1 day' and m.now
  offset 0 -- queue by queue, so that each is a look into the index
) j
cross join lateral (values
  ('minute', date_trunc('minute', j.finished_at, 'UTC')),
  ('hour', date_trunc('hour', j.finished_at, 'UTC'))
) t (per, starts_at)
group by j.queue, t.per, t.starts_at;
comment on view processor.throughput is
  'How much ended when, for the last 24 hours: select * from processor.throughput where per = ''hour'' order by starts_at desc. '
  'Use it to see when trouble began and whether the backlog shrinks.';
comment on column processor.throughput.queue is 'The queue.';
comment on column processor.throughput.per is 'minute or hour: ask for one of them, or everything is there twice.';
comment on column processor.throughput.starts_at is 'When that minute or hour began; those in which nothing ended are left out.';
comment on column processor.throughput.jobs is 'How many jobs ended.';
comment on column processor.throughput.completed is 'How many of them completed.';
comment on column processor.throughput.partial is 'How many of them were partly done.';
comment on column processor.throughput.failed is 'How many of them failed.';
comment on column processor.throughput.cancelled is 'How many of them were cancelled.';
comment on column processor.throughput.run_seconds_avg is 'How many seconds their last attempts took, on average.';

create or replace view processor.credit_summary with (security_invoker = on) as
select a.owner_id, a.issued, a.available, a.held, a.spent, a.expired, j.jobs, j.open_jobs,
  greatest(a.updated_at, j.last_created_at) as last_activity_at
from public.credit_accounts a
cross join lateral (
  select count(*) as jobs, count(*) filter (where x.finished_at is null) as open_jobs, max(x.created_at) as last_created_at
  from public.jobs x where x.owner_id = a.owner_id
) j;
comment on view processor.credit_summary is
  'Who has and spends what: one row per account. select * from processor.credit_summary order by spent desc limit 20.';
comment on column processor.credit_summary.owner_id is 'The auth user.';
comment on column processor.credit_summary.issued is 'All that was granted, less what was taken back.';
comment on column processor.credit_summary.available is 'What new jobs can reserve.';
comment on column processor.credit_summary.held is 'Reserved by jobs that have not ended.';
comment on column processor.credit_summary.spent is 'Paid for work that was done.';
comment on column processor.credit_summary.expired is 'Granted for a time that is over.';
comment on column processor.credit_summary.jobs is 'How many jobs of the owner are in the table, pruned ones not counted.';
comment on column processor.credit_summary.open_jobs is 'How many of them have not ended.';
comment on column processor.credit_summary.last_activity_at is 'When the account last changed or a job was last created.';
-- ===== 84_operator_functions.sql =====
-- For operators: what to do about it. Whatever changes many jobs does so in a bounded batch, says what is left,
-- and may be called again until nothing is. sql/README.md shows each at work.

create or replace function processor.set_paused(queue text, paused boolean)
returns public.job_queues
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  q public.job_queues;
begin
  -- a queue that is so already is not written: no worker is woken for nothing
  update public.job_queues x set paused = set_paused.paused where x.name = set_paused.queue and x.paused <> set_paused.paused;
  select * into q from public.job_queues x where x.name = set_paused.queue;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(set_paused.queue, 100)), '',
      'See select name from public.job_queues.');
  end if;
  return q;
end
$$;
comment on function processor.set_paused(text, boolean) is
  'What pause_queue() and resume_queue() have in common; JQ002 if there is no such queue.';

create or replace function processor.pause_queue(name text)
returns public.job_queues
language sql
set search_path = ''
as $$
  select * from processor.set_paused(pause_queue.name, true)
$$;
comment on function processor.pause_queue(text) is
  'Nothing of the queue is claimed from now on; what runs goes on, new jobs wait: select * from processor.pause_queue(''default'').';

create or replace function processor.resume_queue(name text)
returns public.job_queues
language sql
set search_path = ''
as $$
  select * from processor.set_paused(resume_queue.name, false)
$$;
comment on function processor.resume_queue(text) is 'The end of pause_queue(): workers are woken and claim again.';

create or replace function processor.drain_worker(worker text)
returns setof public.job_workers
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  ids uuid[];
begin
  -- LOCK: workers, by id
  select array_agg(l.id) into ids from (
    select w.id from public.job_workers w
    where w.name = drain_worker.worker or w.id::text = lower(drain_worker.worker)
    order by w.id for no key update
  ) l;
  if ids is null then
    perform processor.fail('JQ011', format('unknown worker: %s', left(drain_worker.worker, 100)), '',
      'Give its name or its id; see select id, name from processor.worker_health.');
  end if;
  update public.job_workers w set draining = true, inbox = w.inbox + 1 where w.id = any (ids) and not w.draining;
  return query select * from public.job_workers w where w.id = any (ids) order by w.id;
end
$$;
comment on function processor.drain_worker(text) is
  'The worker (by id, or all of a name) claims no more and finishes what it has: select * from processor.drain_worker(''web-1''). '
  'It is done when processor.worker_health shows held = 0.';

create or replace function processor.retry_failed(queue text, since timestamptz, kind text default null, max_jobs int default 1000)
returns table (retried int, skipped int, next_since timestamptz, problems jsonb)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  ids uuid[];
  job_id uuid;
begin
  if not exists (select from processor.queue_names() n where n = retry_failed.queue) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(retry_failed.queue, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  if retry_failed.kind is not null and not exists (select from public.job_kinds k where k.kind = retry_failed.kind) then
    perform processor.fail('JQ001', format('unknown kind: %s', left(retry_failed.kind, 100)), '',
      'See select kind from public.job_kinds.');
  end if;
  if retry_failed.since is null then
    perform processor.fail('JQ006', 'since is missing', '', 'Say which failures: since => processor.now() - interval ''2 hours''.');
  end if;
  perform processor.check_range('max_jobs', retry_failed.max_jobs, 1, 10000);
  retried := 0;
  skipped := 0;
  problems := '[]';

  -- those that were retried before are left out: asking again goes on where it ended
  select array_agg(b.id order by b.id), case when count(*) = retry_failed.max_jobs then max(b.finished_at) end
  into ids, next_since
  from (
    select j.id, j.finished_at from public.jobs j
    where j.queue = retry_failed.queue and j.finished_at >= retry_failed.since and j.status in ('failed', 'partial')
      and (retry_failed.kind is null or j.kind = retry_failed.kind)
      and not exists (select from public.jobs r where r.retry_of = j.id)
    order by j.finished_at, j.id
    limit retry_failed.max_jobs
  ) b;
  -- LOCK: the accounts of all, by owner; then one new job after the other, by the id of the old one
  perform 1 from public.credit_accounts a
  where a.owner_id in (select j.owner_id from public.jobs j where j.id = any (ids))
  order by a.owner_id for no key update;
  foreach job_id in array coalesce(ids, '{}') loop
    begin -- one that cannot be retried spoils no other
      perform public.retry_job(job_id);
      retried := retried + 1;
    exception when others then
      if left(sqlstate, 2) not in ('JQ', 'PT') then
        raise;
      end if;
      skipped := skipped + 1;
      if skipped <= 100 then
        problems := problems || jsonb_build_object('job_id', job_id, 'code', sqlstate, 'message', left(sqlerrm, 500),
          'owner_id', (select j.owner_id from public.jobs j where j.id = job_id));
      end if;
    end;
  end loop;
  return next;
end
$$;
comment on function processor.retry_failed(text, timestamptz, text, int) is
  'Retry what ended failed or partial since a time and was not retried yet, at most max_jobs at once. Jobs that cannot be, such as '
  'those of an owner without credits, are skipped, and problems says why of the first 100. next_since not null: call again with it.';

create or replace function processor.cancel_queue(name text, max_jobs int default 1000)
returns table (cancelled int, asked int, remaining bigint)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  seen uuid[];
  ended uuid[];
  told uuid[];
begin
  if not exists (select from processor.queue_names() n where n = cancel_queue.name) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(cancel_queue.name, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  perform processor.check_range('max_jobs', cancel_queue.max_jobs, 1, 10000);
  select array_agg(b.id) into seen from (
    select j.id from public.jobs j
    where j.queue = cancel_queue.name
      and (j.status = 'pending' or (j.status = 'processing' and j.cancel_requested_at is null))
    limit cancel_queue.max_jobs
  ) b;
  -- LOCK: accounts, then jobs, by id; then workers, by id
  perform processor.lock_accounts(seen);
  perform 1 from public.jobs j where j.id = any (seen) order by j.id for no key update;
  -- while waiting some were claimed, moved or ended: what they are now decides
  select coalesce(array_agg(j.id order by j.id) filter (where j.status = 'pending'), '{}'),
    coalesce(array_agg(j.id order by j.id) filter (where j.status = 'processing' and j.cancel_requested_at is null), '{}')
  into ended, told
  from public.jobs j where j.id = any (seen) and j.queue = cancel_queue.name;

  perform processor.end_job(e, 'cancelled', null, 'CANCELLED', 'cancelled with its queue before it started')
  from unnest(ended) e;
  perform processor.settle_holds(ended);
  update public.jobs j set cancel_requested_at = processor.now(), updated_at = processor.now() where j.id = any (told);
  perform 1 from public.job_workers w
  where w.id in (select j.worker_id from public.jobs j where j.id = any (told))
  order by w.id for no key update;
  update public.job_workers w set inbox = w.inbox + 1
  where w.id in (select j.worker_id from public.jobs j where j.id = any (told));

  cancelled := cardinality(ended);
  asked := cardinality(told);
  select count(*) into remaining from public.jobs j
  where j.queue = cancel_queue.name
    and (j.status = 'pending' or (j.status = 'processing' and j.cancel_requested_at is null));
  return next;
end
$$;
comment on function processor.cancel_queue(text, int) is
  'Cancel what is in a queue, at most max_jobs at once: what waits ends and is refunded, what runs is asked to stop. Pause the '
  'queue first, then call again until remaining is 0.';

create or replace function processor.move_jobs(from_queue text, to_queue text, max_jobs int default 1000)
returns table (moved int, remaining bigint)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  if not exists (select from processor.queue_names() n where n = move_jobs.from_queue) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(move_jobs.from_queue, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  if move_jobs.from_queue = move_jobs.to_queue then
    perform processor.fail('JQ006', format('from_queue and to_queue are both %s', move_jobs.to_queue));
  end if;
  perform processor.check_range('max_jobs', move_jobs.max_jobs, 1, 10000);
  -- LOCK: the queue, so that it is not deleted meanwhile; then jobs, by id
  perform 1 from public.job_queues q where q.name = move_jobs.to_queue for key share;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(move_jobs.to_queue, 100)), '',
      'Make it first: insert into public.job_queues (name) values (…).');
  end if;
  with seen as materialized (
    select j.id from public.jobs j
    where j.queue = move_jobs.from_queue and j.status = 'pending'
    order by j.priority desc, j.run_at, j.id
    limit move_jobs.max_jobs
  ),
  locked as materialized ( -- checked again once locked: one that was claimed or cancelled meanwhile stays
    select j.id from public.jobs j
    where j.id in (select s.id from seen s) and j.queue = move_jobs.from_queue and j.status = 'pending'
    order by j.id for no key update
  )
  update public.jobs j set queue = move_jobs.to_queue, updated_at = processor.now()
  from locked l where j.id = l.id;
  get diagnostics moved = row_count;
  select count(*) into remaining from public.jobs j where j.queue = move_jobs.from_queue and j.status = 'pending';
  return next;
end
$$;
comment on function processor.move_jobs(text, text, int) is
  'Move pending jobs to another queue, at most max_jobs at once, those first that would run first; what runs stays. Call again '
  'until remaining is 0. The workers of the other queue must handle the kinds: look at processor.stuck_jobs afterwards.';

create or replace function processor.undo_grant(entry_id bigint, reason text)
returns table (owner_id uuid, granted bigint, taken bigint, taken_in_all bigint, missing bigint, available bigint)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  entry public.credit_entries;
begin
  select * into entry from public.credit_entries e where e.id = undo_grant.entry_id;
  if not found or entry.kind <> 'grant' then
    perform processor.fail('JQ006',
      case when entry.id is null then format('there is no credit entry %s', coalesce(undo_grant.entry_id::text, 'null'))
        else format('credit entry %s is a %s: only a grant can be undone', entry.id, entry.kind) end, '',
      'See select id, amount, reason, created_at from public.credit_entries where kind = ''grant'' and owner_id = ….');
  end if;
  if undo_grant.reason is null then
    perform processor.fail('JQ006', 'reason is missing', '', 'Say why: the owner can read it in the journal.');
  end if;
  perform processor.check_text('reason', undo_grant.reason, 500);
  -- LOCK: the account; what was taken back before is known only then
  select a.available into available from public.credit_accounts a where a.owner_id = entry.owner_id for no key update;
  select coalesce(sum(e.amount), 0)::bigint into taken_in_all from public.credit_entries e where e.undoes = entry.id;
  owner_id := entry.owner_id;
  granted := entry.amount;
  taken := least(granted - taken_in_all, available);
  if taken > 0 then
    insert into public.credit_entries (owner_id, kind, amount, reason, undoes)
    values (entry.owner_id, 'clawback', taken, undo_grant.reason, entry.id);
    update public.credit_accounts a
    set issued = a.issued - undo_grant.taken, available = a.available - undo_grant.taken, updated_at = processor.now()
    where a.owner_id = entry.owner_id;
  end if;
  taken_in_all := taken_in_all + taken;
  missing := granted - taken_in_all;
  available := available - taken;
  return next;
end
$$;
comment on function processor.undo_grant(bigint, text) is
  'Take a wrong grant back, as far as it is available: what jobs hold or have spent stays theirs and is told as missing. Asked again, '
  'it takes what has become available since, never more than the grant in all.';
-- ===== 86_retention.sql =====
-- Retention: finished jobs go when they are old AND many newer ones have finished in their queue.

alter table public.job_queues
  add column if not exists retain_for interval not null default interval '7 days',
  add column if not exists retain_last int not null default 100;
do $$
begin
  if not exists (select from pg_catalog.pg_constraint where conname = 'job_queues_retention_is_sane') then
    alter table public.job_queues add constraint job_queues_retention_is_sane check (
      retain_for between interval '0' and interval '100 years' and retain_last between 0 and 1000000
    );
  end if;
end
$$;
comment on column public.job_queues.retain_for is 'How long a finished job is kept, at least.';
comment on column public.job_queues.retain_last is 'How many of the queue''s last finished jobs are kept, however old.';

create or replace function processor.prune_jobs(batch int default 1000)
returns int
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  q record;
  edge record;
  gone int;
  pruned int := 0;
begin
  perform processor.check_range('batch', prune_jobs.batch, 1, 10000);
  for q in
    -- a queue whose row is gone has the defaults
    select n as name, coalesce(x.retain_for, interval '7 days') as retain_for, coalesce(x.retain_last, 100) as retain_last
    from processor.queue_names() n left join public.job_queues x on x.name = n
    order by n
  loop
    exit when pruned >= prune_jobs.batch;
    -- the first that is not among the last retain_last: it and all before it may go
    select j.finished_at, j.id into edge from public.jobs j
    where j.queue = q.name and j.finished_at is not null
    order by j.finished_at desc, j.id desc
    offset q.retain_last limit 1;
    continue when not found;
    -- LOCK: jobs, waiting for none: one that is in somebody's hands is left to the next call.
    -- Items, logs, hold and tickets go with their job; the journal stays.
    with old as materialized (
      select j.id from public.jobs j
      where j.queue = q.name and (j.finished_at, j.id) <= (edge.finished_at, edge.id) and j.finished_at < moment - q.retain_for
        and not exists (select from public.credit_holds h where h.job_id = j.id and h.closed_at is null)
      order by j.finished_at, j.id
      limit prune_jobs.batch - pruned
      for update skip locked
    )
    delete from public.jobs j using old o where j.id = o.id;
    get diagnostics gone = row_count;
    pruned := pruned + gone;
  end loop;
  return pruned;
end
$$;
comment on function processor.prune_jobs(int) is
  'Delete finished jobs that are older than their queue''s retain_for and not among its retain_last, the oldest first, at most batch '
  'at once; returns how many. The journal of credits stays. A pruned job''s idempotency_key is free again.';

create or replace function public.prune_jobs(batch int default 1000)
returns int
language sql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
  select processor.prune_jobs(prune_jobs.batch)
$$;
comment on function public.prune_jobs(int) is 'processor.prune_jobs() for the workers, one of which calls it now and then.';
-- ===== 90_security.sql =====
-- Who may do what. Everything is refused first, then granted one by one.

grant usage on schema public to anon, authenticated, service_role, job_processor;

do $$
declare
  t text;
  f regprocedure;
begin
  foreach t in array array[
    'jobs', 'job_items', 'job_logs', 'job_queues', 'job_kinds', 'job_workers',
    'credit_accounts', 'credit_entries', 'credit_holds', 'credit_captures'
  ] loop
    execute format('alter table public.%I enable row level security', t);
    execute format('revoke all on table public.%I from public, anon, authenticated, service_role, job_processor', t);
    execute format('grant select on table public.%I to service_role', t);
  end loop;
  foreach t in array array['job_logs_id_seq', 'credit_entries_id_seq'] loop
    execute format('revoke all on sequence public.%I from public, anon, authenticated, service_role, job_processor', t);
  end loop;
  for t in select c.relname from pg_catalog.pg_class c where c.relnamespace = 'processor'::regnamespace and c.relkind = 'v' loop
    execute format('revoke all on table processor.%I from public, anon, authenticated, service_role, job_processor', t);
  end loop;
  -- `alter default privileges in schema` would not revoke PUBLIC's right to execute: each by name
  for f in
    select p.oid::regprocedure from pg_catalog.pg_proc p
    where p.pronamespace = 'processor'::regnamespace
      or (p.pronamespace = 'public'::regnamespace and p.proname in (
        'create_job', 'cancel_job', 'retry_job', 'grant_credits', 'register_worker', 'heartbeat_worker', 'claim_jobs',
        'report_progress', 'append_job_logs', 'finish_items', 'finish_jobs', 'release_jobs', 'deregister_worker',
        'prune_jobs'))
  loop
    execute format('revoke execute on function %s from public, anon, authenticated, service_role, job_processor', f);
  end loop;
end
$$;

-- tables: users read what is theirs, the service reads all and turns the knobs, nobody writes the rest
grant select on public.jobs, public.job_items, public.job_logs, public.job_kinds,
  public.credit_accounts, public.credit_entries, public.credit_holds, public.credit_captures to authenticated;
grant insert, update, delete on public.job_queues, public.job_kinds to service_role;
grant update (draining) on public.job_workers to service_role;
-- the least-privilege worker reads what it subscribes to
grant select on public.jobs, public.job_queues, public.job_workers to job_processor;

-- the default of a column is computed with the rights of whoever inserts
grant execute on function processor.now() to service_role;
-- functions: clients
grant execute on function
  public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[]),
  public.cancel_job(uuid),
  public.retry_job(uuid)
to authenticated, service_role;
-- functions: workers
grant execute on function
  public.register_worker(jsonb),
  public.heartbeat_worker(uuid, uuid[], text),
  public.claim_jobs(uuid, uuid, text[], int),
  public.report_progress(uuid, jsonb),
  public.append_job_logs(uuid, jsonb),
  public.finish_items(uuid, jsonb),
  public.finish_jobs(uuid, jsonb),
  public.release_jobs(uuid, jsonb),
  public.deregister_worker(uuid),
  public.prune_jobs(int)
to service_role, job_processor;
-- functions: a server that sells credits
grant execute on function public.grant_credits(uuid, bigint, text, text) to service_role;

-- rows: one policy per table and reader; service_role bypasses them
drop policy if exists jobs_are_read_by_their_owner on public.jobs;
create policy jobs_are_read_by_their_owner on public.jobs
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists job_items_are_read_by_the_jobs_owner on public.job_items;
create policy job_items_are_read_by_the_jobs_owner on public.job_items
  for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.owner_id = (select auth.uid())));
drop policy if exists job_logs_are_read_by_the_jobs_owner on public.job_logs;
create policy job_logs_are_read_by_the_jobs_owner on public.job_logs
  for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.owner_id = (select auth.uid())));
drop policy if exists public_job_kinds_are_read_by_users on public.job_kinds;
create policy public_job_kinds_are_read_by_users on public.job_kinds
  for select to authenticated using (public);
drop policy if exists credit_accounts_are_read_by_their_owner on public.credit_accounts;
create policy credit_accounts_are_read_by_their_owner on public.credit_accounts
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_entries_are_read_by_their_owner on public.credit_entries;
create policy credit_entries_are_read_by_their_owner on public.credit_entries
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_holds_are_read_by_their_owner on public.credit_holds;
create policy credit_holds_are_read_by_their_owner on public.credit_holds
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_captures_are_read_by_the_holds_owner on public.credit_captures;
create policy credit_captures_are_read_by_the_holds_owner on public.credit_captures
  for select to authenticated
  using (exists (select from public.credit_holds h where h.job_id = credit_captures.job_id and h.owner_id = (select auth.uid())));
drop policy if exists jobs_are_read_by_workers on public.jobs;
create policy jobs_are_read_by_workers on public.jobs for select to job_processor using (true);
drop policy if exists job_queues_are_read_by_workers on public.job_queues;
create policy job_queues_are_read_by_workers on public.job_queues for select to job_processor using (true);
drop policy if exists job_workers_are_read_by_workers on public.job_workers;
create policy job_workers_are_read_by_workers on public.job_workers for select to job_processor using (true);
-- ===== 95_realtime.sql =====
-- What Realtime may tell: the tables that frontends watch and that wake the workers. Safe to run twice.

do $$
declare
  t text;
begin
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
  foreach t in array array['jobs', 'job_items', 'job_logs', 'job_queues', 'job_workers', 'credit_accounts'] loop
    -- replica identity default, on purpose: an update carries the new row and the old key, which is all that
    -- wake-ups and frontends use; `full` would write every old payload to the WAL again, and a delete, to which
    -- Realtime applies no RLS, would show whole rows to strangers
    execute format('alter table public.%I replica identity default', t);
    if not exists (
      select from pg_catalog.pg_publication_tables p
      where p.pubname = 'supabase_realtime' and p.schemaname = 'public' and p.tablename = t
    ) then
      execute format('alter publication supabase_realtime add table public.%I', t);
    end if;
  end loop;
end
$$;

-- PostgREST learns of new functions
notify pgrst, 'reload schema';
