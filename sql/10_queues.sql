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
  retain_for interval not null default interval '7 days',
  retain_last int not null default 100,
  rate_limit int,
  rate_period interval not null default interval '1 minute',
  max_processing_per_owner int,
  max_pending_per_owner int,
  constraint job_queues_name_is_plain check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  constraint job_queues_max_processing_is_positive check (max_processing > 0),
  constraint job_queues_max_attempts_is_sane check (max_attempts between 1 and 100),
  constraint job_queues_retry_delays_are_given check (cardinality(retry_delays) between 1 and 100),
  constraint job_queues_jitter_is_a_share check (jitter between 0 and 1),
  constraint job_queues_timeout_is_sane check (timeout between interval '1 second' and interval '7 days'),
  constraint job_queues_retention_is_sane check (
    retain_for between interval '0' and interval '100 years' and retain_last between 0 and 1000000
  ),
  constraint job_queues_rate_is_sane check (
    rate_limit between 1 and 1000000000 and rate_period between interval '1 second' and interval '1 day'
  ),
  constraint job_queues_owner_limits_are_positive check (max_processing_per_owner > 0 and max_pending_per_owner > 0)
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
comment on column public.job_queues.retain_for is 'How long a finished job is kept, at least.';
comment on column public.job_queues.retain_last is 'How many of the queue''s last finished jobs are kept, however old.';
comment on column public.job_queues.rate_limit is
  'How many jobs may start in each rate_period, over all workers, and how many at once after a rest; null: no limit.';
comment on column public.job_queues.rate_period is 'The time that rate_limit is about.';
comment on column public.job_queues.max_processing_per_owner is
  'How many jobs of one owner may run at once; null: no limit, and jobs run in strict order. With a limit owners take turns, so '
  'that nobody''s 10,000 jobs keep another''s one waiting, and priority orders the jobs of each owner.';
comment on column public.job_queues.max_pending_per_owner is
  'How many jobs of one owner may wait; who has so many gets JQ014 from create_job. null: no limit.';

create table if not exists processor.queue_tokens (
  queue text primary key,
  tokens double precision not null,
  counted_at timestamptz not null
);
comment on table processor.queue_tokens is
  'The token buckets of queues with a rate_limit. Not in job_queues, where every change wakes the workers.';
comment on column processor.queue_tokens.queue is 'The queue.';
comment on column processor.queue_tokens.tokens is 'How many jobs could start at that moment.';
comment on column processor.queue_tokens.counted_at is 'The moment.';

create table if not exists processor.queue_turns (
  queue text primary key,
  owner_id uuid
);
comment on table processor.queue_turns is
  'Whose turn it was: in queues with max_processing_per_owner the next claim begins with the owner after that one.';
comment on column processor.queue_turns.queue is 'The queue.';
comment on column processor.queue_turns.owner_id is 'The owner whose job was claimed last; null: a job of nobody.';

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
