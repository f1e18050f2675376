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
--        └── retry · snooze · wait · release · rescue
--
--   A job may have children, which are jobs too. It waits for them (run_at in the year 9999) until the last one ends.
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
--   schedule (by name) → creators' turns (advisory) → queue (by name) → account (by owner_id) → job (by id) → hold → lots
--   → items → worker
--   Whoever needs several rows of a kind locks them in ascending order before changing the first. With a job go its
--   ancestors (processor.lock_jobs), whom its end concerns. What is taken out of order waits for nobody (skip locked).
--
-- PLANS
--   What clients and workers call often keeps its plans (plan_cache_mode = force_generic_plan): planning was half of a short
--   call's time. As a plan may have been made when the tables were empty, enable_seqscan = off keeps it on the indexes.
--   Both hold for everything that is called from there.
--
-- NAMES
--   Every function has search_path = '', pg_temp: nothing is found but what is named with its schema, and PostgreSQL's own.
--   pg_temp must be said, at the end: unnamed, the caller's temporary schema comes first where types are looked for.
--
-- THE FILES load in the order of their numbers. Each can be pasted into the SQL editor, twice if need be.
--   00 foundation · 05 checks · 10 queues and kinds · 20 workers · 30 jobs · 40 credits, 42 holds · 45 how a job ends
--   50, 52 create · 55 cancel, retry · 58, 59 schedules · 60 registration, heartbeat, rescue · 65 claim · 70 progress, logs, items
--   72 children · 73 checkpoints · 75 finish, release · 80 operators: credits · 81 the books · 82 views · 84 functions
--   85 operators over the API · 86 retention · 87 installation · 88 storage · 89 broadcast · 90 security · 95 realtime

do $$
begin
  -- the same number as in processor.schema_version() below
  if to_regprocedure('processor.schema_version()') is not null then
    if processor.schema_version() > 3 then
      raise exception 'this database has version % of the schema, newer than version 3', processor.schema_version()
        using hint = 'Take the files of a newer package: pip install --upgrade supabase-job-processor';
    end if;
  end if;
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
set search_path = '', pg_temp
as $$
  select 3
$$;
comment on function processor.schema_version() is
  'The version of this schema. A daemon made for another one refuses to start and says what to run.';

create or replace function processor.now()
returns timestamptz
language plpgsql
volatile
set search_path = '', pg_temp
as $$
begin
  -- clock_timestamp(), not now(): after waiting for a lock the start of the transaction is the past
  return case
    when session_user = 'authenticator' then clock_timestamp()
    else coalesce(nullif(current_setting('processor.now', true), '')::timestamptz, clock_timestamp())
  end;
end
$$;
comment on function processor.now() is
  'The only clock. Tests may set the session variable processor.now; API sessions cannot.';

create or replace function processor.uuid7()
returns uuid
language plpgsql
volatile
set search_path = '', pg_temp
as $$
declare
  us constant bigint := extract(epoch from clock_timestamp()) * 1000000;
begin
  -- 48 bits of milliseconds, the version, 12 bits of a millisecond's fraction, 62 random bits: what is made later sorts
  -- later, so jobs made in one call run in the order given, and a child's id is greater than its parent's
  return encode(
    int8send(((us / 1000) << 16) | 28672 | ((us % 1000) * 4096 / 1000)) || substring(uuid_send(gen_random_uuid()) from 9),
    'hex')::uuid;
end
$$;
comment on function processor.uuid7() is
  'A uuid that sorts by time of creation, to the microsecond (version 7), on every supported PostgreSQL.';

create or replace function processor.never()
returns timestamptz
language sql
immutable
set search_path = '', pg_temp
as $$
  select timestamptz '9999-12-31 00:00:00+00' -- not infinity: every client can read it
$$;
comment on function processor.never() is 'The run_at of a job that waits for its children and not for a time.';

create or replace function processor.fail(code text, message text, detail text default '', hint text default '')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  raise exception using errcode = fail.code, message = fail.message, detail = fail.detail, hint = fail.hint;
end
$$;
comment on function processor.fail(text, text, text, text) is
  'Raise one of our own errors. Codes: JQ001 unknown kind, JQ002 unknown queue, JQ003 invalid payload, '
  'JQ004 too large, JQ005 invalid items, JQ006 invalid argument, JQ007 idempotency conflict, '
  'JQ008 job not found, JQ009 wrong state, JQ010 not allowed, JQ011 unknown worker, JQ012 unique_key taken, '
  'JQ013 schema version mismatch, JQ014 too many pending jobs, JQ015 not an operator, '
  'PT402 insufficient credits (the one that PostgREST must answer with 402).';

create or replace function processor.is_server_trouble(code text)
returns boolean
language sql
immutable
set search_path = '', pg_temp
as $$
  -- rolled back, out of resources, in use, operator's intervention, system error, internal error
  select left(code, 2) in ('40', '53', '55', '57', '58', 'XX')
$$;
comment on function processor.is_server_trouble(text) is
  'Whether an SQLSTATE is the server''s trouble of the moment and not the fault of what was asked: the call is to be repeated.';

create or replace function processor.is_client()
returns boolean
language plpgsql
stable
set search_path = '', pg_temp
as $$
begin
  -- the setting, not current_user: inside a security definer function the latter is the definer
  return coalesce(nullif(current_setting('role'), 'none'), session_user)
    not in ('postgres', 'supabase_admin', 'service_role', 'job_processor')
  -- nobody set a role: a trigger of Auth's, which is trusted, or a person who logs in with the rights of users
  and (current_setting('role') <> 'none'
    or (pg_has_role(session_user, 'authenticated', 'usage') and not pg_has_role(session_user, 'service_role', 'usage')));
end
$$;
comment on function processor.is_client() is
  'Whether an end user is calling, who may act only on own jobs: any API role but the trusted ones, and whoever inherits the '
  'rights of authenticated but not those of service_role.';

create or replace function processor.is_operator()
returns boolean
language sql
stable
set search_path = '', pg_temp
as $$
  -- complete in itself: policies call it as a user, who finds nothing else of this schema. Claims outside app_metadata are
  -- the project's own word (an access token hook's); those in user_metadata are the user's, and count for nothing.
  select case current_setting('role')
    when 'authenticated' then
      coalesce(jsonb 'true' in (auth.jwt() -> 'is_operator', auth.jwt() -> 'app_metadata' -> 'is_operator'), false)
    when 'none' then -- the SQL editor; but not a person who logs in with the rights of users, see is_client()
      pg_has_role(session_user, 'service_role', 'usage') or not pg_has_role(session_user, 'authenticated', 'usage')
    else current_setting('role') in ('postgres', 'supabase_admin', 'service_role')
  end
$$;
comment on function processor.is_operator() is
  'Whether an operator is calling: the service, the SQL editor, or a signed-in user whose token says is_operator: true, at its top or in '
  'app_metadata.';

create or replace function processor.check_operator()
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if not processor.is_operator() then
    perform processor.fail('JQ015', 'only operators may do this', '',
      'An operator''s token has is_operator: true in app_metadata. After it was set, sign in again.');
  end if;
end
$$;
comment on function processor.check_operator() is 'Raise JQ015 unless an operator is calling.';
-- Checks of what is asked: bad input gets a clear error and changes nothing.

create or replace function processor.check_size(what text, value jsonb, max_bytes int)
returns void
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
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
set search_path = '', pg_temp
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
set search_path = '', pg_temp
as $$
begin
  if length(check_text.value) not between 1 and check_text.max_length then
    perform processor.fail('JQ006',
      format('%s has %s characters, but must have 1 to %s', check_text.what, length(check_text.value), check_text.max_length));
  end if;
end
$$;
comment on function processor.check_text(text, text, int) is 'Raise JQ006 if a text is empty or too long; null passes.';

create or replace function processor.check_name(what text, name text, pattern text)
returns text
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
as $$
begin
  if check_feed.feed not in ('realtime', 'polling') then
    perform processor.fail('JQ006', format('feed %s is not realtime or polling', left(check_feed.feed, 100)));
  end if;
end
$$;
comment on function processor.check_feed(text) is 'Raise JQ006 if a worker''s feed is neither realtime nor polling; null passes.';

create or replace function processor.check_transport(transport text)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_choice('transport', check_transport.transport, array['postgres_changes', 'broadcast', 'polling']);
  if check_transport.transport = 'broadcast' and not exists (
    select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'realtime' and p.proname = 'send' and oidvectortypes(p.proargtypes) = 'jsonb, text, text, boolean'
      and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')
  ) then
    perform processor.fail('JQ006', 'this database has no function realtime.send() that we may call: nothing can be broadcast', '',
      'Set PROCESSOR_FEED=postgres_changes, or update Realtime (Supabase has the function since the end of 2024).');
  end if;
end
$$;
comment on function processor.check_transport(text) is
  'Raise JQ006 if a worker''s transport is none, or broadcast where nothing can be broadcast; null passes.';

create or replace function processor.check_choice(what text, value text, choices text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if check_choice.value <> all (check_choice.choices) then
    perform processor.fail('JQ006', format('%s is %s, but must be one of %s',
      check_choice.what, left(check_choice.value, 100), array_to_string(check_choice.choices, ', ')));
  end if;
end
$$;
comment on function processor.check_choice(text, text, text[]) is 'Raise JQ006 if a text is not one of the choices; null passes.';

create or replace function processor.check_tags(tags text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_range('the number of tags', cardinality(check_tags.tags), 0, 20);
  -- a worker reads tags as a list of texts: anything else would spoil the claim it comes with
  if array_ndims(check_tags.tags) > 1 or exists (select from unnest(check_tags.tags) t where t is null) then
    perform processor.fail('JQ006', 'tags must be a plain list of texts, without null');
  end if;
  perform processor.check_text('a tag', t, 100) from unnest(check_tags.tags) t;
end
$$;
comment on function processor.check_tags(text[]) is 'Raise JQ006 if tags are not at most 20 texts of at most 100 characters.';

create or replace function processor.check_elements(jobs jsonb, internal boolean, what text default 'job')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  known constant text[] := array['kind', 'payload', 'items', 'queue', 'priority', 'run_at', 'delay_seconds', 'idempotency_key',
    'unique_key', 'on_conflict', 'owner_id', 'max_attempts', 'timeout_seconds', 'tags', 'parent_id', 'children', 'on_child_failure'];
  bad record;
begin
  if jsonb_typeof(check_elements.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects', '', 'Give [{"kind": "…", "payload": {…}}, …].');
  end if;
  if jsonb_array_length(check_elements.jobs) > 10000 then
    perform processor.check_range(case check_elements.what when 'child' then 'the number of children' else 'the number of jobs' end,
      jsonb_array_length(check_elements.jobs), 0, 10000);
  end if;
  select e.ordinality, jsonb_typeof(e.value) as type,
    (select u from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) u
     where u <> all (known) and not (check_elements.internal and u = 'retry_of') limit 1) as key
  into bad
  from jsonb_array_elements(check_elements.jobs) with ordinality e
  where jsonb_typeof(e.value) <> 'object'
    or e.value - known <> '{}' and not (check_elements.internal and e.value - known - 'retry_of' = '{}')
    or e.value -> 'payload' = 'null'
  order by e.ordinality
  limit 1;
  if found then
    if bad.key is not null then
      perform processor.fail('JQ006', format('%s %s has an unknown key: %s', check_elements.what, bad.ordinality, left(bad.key, 100)), '',
        'Known are ' || array_to_string(known, ', '));
    elsif bad.type <> 'object' then
      perform processor.fail('JQ006', format('%s %s must be an object, this is a JSON %s', check_elements.what, bad.ordinality, bad.type),
        '', 'Give [{"kind": "…", "payload": {…}}, …].');
    end if;
    perform processor.fail('JQ003', 'payload must be a JSON object, this is null',
      format('%s %s of the call', check_elements.what, bad.ordinality),
      'Wrap it: {"value": …}.');
  end if;
end
$$;
comment on function processor.check_elements(jsonb, boolean, text) is
  'Raise an error if something is not an array of objects with the names of create_job''s parameters, or retry_of if internal.';

create or replace function processor.check_limits(limits jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  known constant text[] := array['max_processing', 'rate_limit', 'rate_seconds', 'max_processing_per_owner', 'max_pending_per_owner',
    'timeout_seconds', 'max_attempts'];
  most constant bigint[] := array[2147483647, 1000000000, 86400, 2147483647, 2147483647, 604800, 100];
  needed constant text[] := array['rate_seconds', 'timeout_seconds', 'max_attempts'];
  l record;
begin
  if coalesce(jsonb_typeof(check_limits.limits), '') <> 'object' then
    perform processor.fail('JQ006', 'limits must be an object', '', 'Give {"max_processing": 5, "rate_limit": null}: null lifts a limit.');
  end if;
  for l in select e.key, e.value, jsonb_typeof(e.value) as type from jsonb_each(check_limits.limits) e loop
    if l.key <> all (known) then
      perform processor.fail('JQ006', format('limits has an unknown key: %s', left(l.key, 100)), '',
        'Known are ' || array_to_string(known, ', '));
    elsif l.type = 'null' and l.key = any (needed) then
      perform processor.fail('JQ006', format('%s cannot be null', l.key), '', 'Leave it out to keep what it is.');
    elsif l.type not in ('number', 'null') or l.type = 'number' and (l.value #>> '{}')::numeric % 1 <> 0 then
      perform processor.fail('JQ006', format('%s is %s, but must be a whole number', l.key, left(l.value::text, 100)), '',
        case when l.key = any (needed) then '' else 'null lifts the limit.' end);
    elsif l.type = 'number' then
      perform processor.check_range(l.key, (l.value #>> '{}')::numeric, 1, most[array_position(known, l.key)]);
    end if;
  end loop;
end
$$;
comment on function processor.check_limits(jsonb) is
  'Raise JQ006 unless this is an object of limits of a queue, as set_queue_limits() takes it.';
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
  transport text not null default 'postgres_changes',
  constraint job_workers_slots_are_sane check (slots between 1 and 10000),
  constraint job_workers_feed_is_known check (feed in ('realtime', 'polling')),
  constraint job_workers_lease_is_sane check (lease between interval '1 second' and interval '1 hour'),
  constraint job_workers_transport_is_known check (transport in ('postgres_changes', 'broadcast', 'polling'))
);
create index if not exists job_workers_broadcast_idx on public.job_workers (id) where transport = 'broadcast';
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
comment on column public.job_workers.transport is
  'How the worker wants to learn of new jobs: postgres_changes, broadcast (messages are sent only while such a worker lives) or polling.';
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
-- Credits: accounts, the lots in them, holds with numbered tickets, and the journal.
--
--   event                                        from        to          entries
--   grant      an operator, a payment            issued   →  available   grant, and a lot
--   reserve    a job is created                  available → held        reserve, one per lot
--   capture    an item (or the job) completed    held     →  spent       a ticket; capture when the job ends, one per lot
--   release    the rest, when the job ends       held     →  available   release, one per lot
--              … if its lot has died meanwhile   held     →  expired     release, then expire
--   expire     a lot's time is over              available → expired     expire
--   refund     of what an ended job has spent    spent    →  available   refund, and a lot
--   clawback   an operator undoes a grant        available → issued      clawback, one per lot
--
-- A lot is what one grant gave. Lots burn in this order: the highest priority, then what expires first (what never does,
-- last), then the oldest. A lot dies when its time comes; what jobs hold of it is theirs, what they give back is lost.
--
-- A hold is `units` tickets at a price that never changes. Capturing unit i inserts ticket i: capturing
-- twice is impossible. The account row is touched once when a job is created and once when jobs end,
-- never per item. All amounts are whole numbers of the smallest unit, below 2^53.
--
-- Nobody touches an owner's lots without the lock of the account, so lots need no lock of their own.

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

create table if not exists public.credit_lots (
  id bigint generated always as identity primary key,
  owner_id uuid not null,
  amount bigint not null,
  remaining bigint not null,
  priority int not null default 0,
  expires_at timestamptz,
  exhausted boolean not null generated always as (remaining = 0) stored,
  granted_by bigint,
  created_at timestamptz not null default processor.now(),
  constraint credit_lots_amount_is_positive check (amount > 0),
  constraint credit_lots_remaining_is_a_part check (remaining between 0 and amount)
)
with (fillfactor = 50);
-- The indexes ask for `exhausted` and not for `remaining`: it changes once, so that every other change stays off them (HOT).
-- what burns, in the order of burning
create index if not exists credit_lots_burn_idx on public.credit_lots (owner_id, priority desc, expires_at, id) where not exhausted;
-- what expires next
create index if not exists credit_lots_expiry_idx on public.credit_lots (expires_at) where not exhausted and expires_at is not null;
comment on table public.credit_lots is
  'What each grant (or refund) gave, and what is left of it. Burned by priority (higher first), then expires_at (never is last), '
  'then id.';
comment on column public.credit_lots.id is 'Grows with time.';
comment on column public.credit_lots.owner_id is 'Whose account.';
comment on column public.credit_lots.amount is 'How much it was.';
comment on column public.credit_lots.remaining is 'What of it is available: neither held, spent, expired nor taken back.';
comment on column public.credit_lots.priority is 'Higher burns first, -1000 to 1000: what was given away before what was paid for.';
comment on column public.credit_lots.expires_at is 'When what remains is lost; null: never.';
comment on column public.credit_lots.exhausted is 'Whether nothing remains. A job that ends may give some back.';
comment on column public.credit_lots.granted_by is
  'The entry it came with: a grant or a refund. null: what an account had before there were lots.';
comment on column public.credit_lots.created_at is 'When it was given.';

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
  lot_id bigint,
  constraint credit_entries_kind_is_known check (
    kind in ('grant', 'reserve', 'capture', 'release', 'expire', 'refund', 'clawback')
  ),
  constraint credit_entries_amount_is_positive check (amount > 0),
  constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null))
);
-- no foreign keys: entries outlive jobs, and one to the account would lock its row against every writer
create index if not exists credit_entries_owner_idx on public.credit_entries (owner_id, id desc);
create index if not exists credit_entries_job_idx on public.credit_entries (job_id) where job_id is not null;
create unique index if not exists credit_entries_idempotency_key_idx
  on public.credit_entries (owner_id, idempotency_key) where idempotency_key is not null;
create index if not exists credit_entries_undoes_idx on public.credit_entries (undoes) where undoes is not null;
comment on table public.credit_entries is 'The journal: appended to, never changed.';
comment on column public.credit_entries.id is 'Grows with time.';
comment on column public.credit_entries.owner_id is 'Whose account.';
comment on column public.credit_entries.kind is 'grant, reserve, capture, release, expire, refund or clawback.';
comment on column public.credit_entries.amount is 'How much, always positive.';
comment on column public.credit_entries.job_id is
  'The job it is about; null for a grant, a clawback, and the expiry of what no job held.';
comment on column public.credit_entries.reason is 'Why, in the words of whoever granted, refunded or took it back.';
comment on column public.credit_entries.idempotency_key is 'A grant or refund with the same key happens once.';
comment on column public.credit_entries.created_at is 'When.';
comment on column public.credit_entries.undoes is 'The grant that a clawback takes back, whole or in part.';
comment on column public.credit_entries.lot_id is 'The lot it made, or took from, or gave back to. null: from before there were lots.';

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
)
-- each is written twice, to open and to close it: room for both on the page, and no index on what changes (HOT)
with (fillfactor = 50);
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

create or replace view public.credit_statement with (security_invoker = on) as
select e.id, e.owner_id, e.created_at, e.kind, d.change,
  -- from what is available now, back to what was then: the last lines of a long statement cost no more than those of a short one
  ((select a.available from public.credit_accounts a where a.owner_id = e.owner_id)
    - coalesce(sum(d.change) over (
        partition by e.owner_id order by e.id desc rows between unbounded preceding and 1 preceding
      ), 0))::bigint as balance,
  e.job_id, e.lot_id, e.reason
from public.credit_entries e
cross join lateral (
  select case e.kind
    when 'grant' then e.amount when 'refund' then e.amount when 'release' then e.amount
    when 'reserve' then -e.amount when 'expire' then -e.amount when 'clawback' then -e.amount
    else 0
  end as change
) d;
comment on view public.credit_statement is
  'An owner''s credits line by line: select * from credit_statement order by id desc limit 50. Users see their own lines; whoever '
  'sees all says where owner_id = ….';
comment on column public.credit_statement.id is 'The entry of the journal.';
comment on column public.credit_statement.owner_id is 'Whose account.';
comment on column public.credit_statement.created_at is 'When.';
comment on column public.credit_statement.kind is 'grant, reserve, capture, release, expire, refund or clawback.';
comment on column public.credit_statement.change is 'By how much it changed what is available; 0 for a capture: that was reserved before.';
comment on column public.credit_statement.balance is 'What was available after it.';
comment on column public.credit_statement.job_id is 'The job it is about.';
comment on column public.credit_statement.lot_id is 'The lot it is about.';
comment on column public.credit_statement.reason is 'Why, in the words of whoever granted, refunded or took it back.';
-- Holds: credits are reserved when jobs are created, captured as they succeed, settled when they end. Always for many at once.
--
-- Plans are kept for the life of a session, and a session may begin when the tables are empty: then reading a whole table looks
-- as good as an index, and it stays in the plan while the table grows. So every table is asked for `= any (…)` an array,
-- functions for batches have `enable_seqscan = off`, and with `enable_nestloop = off` what was read is joined by hashing or
-- merging, whose cost grows with the batch and not with its square. Times are given, not left to the column's default, which
-- would call processor.now() for each row.

create or replace function processor.lock_holds(job_ids uuid[])
returns uuid[]
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  -- LOCK: holds, by job. `for no key update` waits for captures that have not committed.
  return array(
    select h.job_id from public.credit_holds h
    where h.job_id = any (lock_holds.job_ids) and h.closed_at is null
    order by h.job_id for no key update
  );
end
$$;
comment on function processor.lock_holds(uuid[]) is
  'Lock those holds of these jobs that are open, and return their jobs, in order. The caller has locked the jobs.';

create or replace function processor.expire_lots(owner_ids uuid[], max_lots int default null)
returns int
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids bigint[];
begin
  -- LOCK: the caller holds the accounts
  ids := array(
    select l.id from public.credit_lots l
    where l.owner_id = any (expire_lots.owner_ids) and not l.exhausted and l.expires_at <= moment
    order by l.expires_at, l.id
    limit expire_lots.max_lots
  );
  if ids = '{}' then -- the usual case
    return 0;
  end if;
  with dead as materialized (
    select l.id, l.owner_id, l.remaining from public.credit_lots l where l.id = any (ids)
  ),
  emptied as (
    update public.credit_lots l set remaining = 0 where l.id = any (ids)
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, lot_id, created_at)
    select d.owner_id, 'expire', d.remaining, d.id, moment from dead d order by d.id
  )
  update public.credit_accounts a
  set available = a.available - s.amount, expired = a.expired + s.amount, updated_at = moment
  from (select d.owner_id, sum(d.remaining)::bigint as amount from dead d group by 1) s
  where a.owner_id = any (expire_lots.owner_ids) and s.owner_id = a.owner_id;
  return cardinality(ids);
end
$$;
comment on function processor.expire_lots(uuid[], int) is
  'Empty the lots of these owners whose time is over, the oldest first; null: however many. Returns how many. Comes before '
  'anything that takes from lots, so that nobody spends what has expired.';

create or replace function processor.open_holds(holds public.credit_holds[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  owners uuid[];
  short record;
begin
  -- LOCK: accounts, by owner (the caller may have them); the caller has locked no job but those it has just inserted
  select array_agg(distinct h.owner_id) into owners from unnest(open_holds.holds) h;
  perform 1 from public.credit_accounts a where a.owner_id = any (owners) order by a.owner_id for no key update;
  perform processor.expire_lots(owners);

  select d.needed, coalesce(a.available, 0) as available into short
  from (select h.owner_id, sum(h.units * h.unit_price) as needed from unnest(open_holds.holds) h group by 1) d
  left join (select x.owner_id, x.available from public.credit_accounts x where x.owner_id = any (owners)) a on a.owner_id = d.owner_id
  where d.needed > coalesce(a.available, 0)
  order by d.owner_id
  limit 1;
  if found then
    perform processor.fail('PT402',
      format('insufficient credits: %s needed, %s available', short.needed, short.available),
      json_build_object('needed', short.needed, 'available', short.available)::text,
      'Grant credits with processor.grant_credits(owner_id, amount, reason), or ask for fewer items.');
  end if;

  insert into public.credit_holds (job_id, owner_id, units, unit_price, per_item)
  select h.job_id, h.owner_id, h.units, h.unit_price, h.per_item from unnest(open_holds.holds) h;

  -- Lay the holds of an owner end to end, and the lots in the order of burning beside them: where two overlap, so much of
  -- this hold comes from that lot. Most owners have one lot, and it covers all.
  with needs as materialized (
    select h.job_id, h.owner_id, h.n, h.units * h.unit_price as amount,
      sum(h.units * h.unit_price) over (partition by h.owner_id order by h.n)::bigint as upto
    from unnest(open_holds.holds) with ordinality h (job_id, owner_id, units, unit_price, per_item, captured, released, closed_at, n)
  ),
  totals as materialized (
    select d.owner_id, max(d.upto) as amount from needs d group by 1
  ),
  lots as materialized ( -- as many as are needed
    select l.id, l.owner_id, l.upto - l.remaining as after, l.upto, least(l.upto, t.amount) - (l.upto - l.remaining) as burns
    from (
      select x.id, x.owner_id, x.remaining,
        sum(x.remaining) over (partition by x.owner_id order by x.priority desc, x.expires_at, x.id)::bigint as upto
      from public.credit_lots x
      where x.owner_id = any (owners) and not x.exhausted
    ) l
    join totals t on t.owner_id = l.owner_id
    where l.upto - l.remaining < t.amount
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id, lot_id, created_at)
    select d.owner_id, 'reserve', least(d.upto, l.upto) - greatest(d.upto - d.amount, l.after), d.job_id, l.id, moment
    from needs d
    join lots l on l.owner_id = d.owner_id and l.after < d.upto and d.upto - d.amount < l.upto
    order by d.n, l.upto
  ),
  burned as (
    update public.credit_lots x
    set remaining = x.remaining - l.burns
    from lots l
    where x.id = any (array(select y.id from lots y)) and l.id = x.id
  )
  update public.credit_accounts a
  set available = a.available - t.amount, held = a.held + t.amount, updated_at = moment
  from totals t
  where a.owner_id = any (owners) and t.owner_id = a.owner_id;
end
$$;
comment on function processor.open_holds(public.credit_holds[]) is
  'Reserve units × unit_price for each of these new jobs (job_id, owner_id, units, unit_price, per_item; the rest is ignored), or '
  'raise PT402 for the first owner who cannot pay for all of theirs, saying what was needed and what was there.';

create or replace function processor.capture_units(job_id uuid, units int[], per_item boolean)
returns bigint
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
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
    insert into public.credit_captures (job_id, unit, captured_at)
    select capture_units.job_id, u, moment from unnest(capture_units.units) u order by u
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

create or replace function processor.capture_jobs(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids uuid[];
begin
  -- LOCK: the caller holds the jobs. The holds are locked as settle_holds(), which follows, needs them: a share lock would be in
  -- its way
  ids := processor.lock_holds(capture_jobs.job_ids);
  insert into public.credit_captures (job_id, unit, captured_at)
  select h.job_id, 1, moment from public.credit_holds h
  where h.job_id = any (ids) and not h.per_item
  order by h.job_id
  on conflict do nothing;
end
$$;
comment on function processor.capture_jobs(uuid[]) is
  'Take the one ticket of those of these jobs that are paid as a whole: they are completing. The caller writes the same to their rows.';

create or replace function processor.settle_holds(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids uuid[];
begin
  -- LOCK: the caller holds accounts and jobs
  ids := processor.lock_holds(settle_holds.job_ids);
  if ids = '{}' then
    return;
  end if;

  with tickets as (
    select c.job_id, count(*) as taken from public.credit_captures c where c.job_id = any (ids) group by 1
  ),
  closed as (
    update public.credit_holds h
    set captured = coalesce(t.taken, 0) * h.unit_price,
      released = (h.units - coalesce(t.taken, 0)) * h.unit_price,
      closed_at = moment
    from unnest(ids) o (id) left join tickets t on t.job_id = o.id
    where h.job_id = any (ids) and h.job_id = o.id
    returning h.job_id, h.captured
  ),
  -- what each hold reserved of each lot, in the order of burning: what was captured comes from the first ones
  parts as materialized (
    select r.id, r.owner_id, r.job_id, r.lot_id, r.amount,
      greatest(0, least(r.amount,
        c.captured + r.amount - sum(r.amount) over (partition by r.job_id order by r.id)))::bigint as captured
    from public.credit_entries r join closed c on c.job_id = r.job_id
    where r.job_id = any (ids) and r.kind = 'reserve'
  ),
  rests as materialized ( -- seldom any
    select p.id, p.owner_id, p.job_id, p.lot_id, p.amount - p.captured as amount,
      coalesce((select l.expires_at <= moment from public.credit_lots l where l.id = p.lot_id), false) as lost
    from parts p
    where p.captured < p.amount
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id, lot_id, created_at)
    select e.owner_id, e.kind, e.amount, e.job_id, e.lot_id, moment
    from (
      select p.owner_id, 'capture' as kind, p.captured as amount, p.job_id, p.lot_id, 1 as step, p.id from parts p where p.captured > 0
      union all
      select x.owner_id, 'release', x.amount, x.job_id, x.lot_id, 2, x.id from rests x
      union all
      select x.owner_id, 'expire', x.amount, x.job_id, x.lot_id, 3, x.id from rests x where x.lost
    ) e
    order by e.job_id, e.step, e.id
  ),
  refilled as (
    update public.credit_lots l
    set remaining = l.remaining + s.amount
    from (select x.lot_id, sum(x.amount)::bigint as amount from rests x where not x.lost group by 1) s
    where l.id = any (array(select x.lot_id from rests x where not x.lost)) and s.lot_id = l.id
  )
  update public.credit_accounts a
  set held = a.held - s.held,
    spent = a.spent + s.captured,
    available = a.available + s.held - s.captured - coalesce(x.lost, 0),
    expired = a.expired + coalesce(x.lost, 0),
    updated_at = moment
  from (
    select p.owner_id, sum(p.amount)::bigint as held, sum(p.captured)::bigint as captured from parts p group by 1
  ) s
  left join (select r.owner_id, sum(r.amount)::bigint as lost from rests r where r.lost group by 1) x on x.owner_id = s.owner_id
  where a.owner_id = any (array(select p.owner_id from parts p)) and s.owner_id = a.owner_id;
end
$$;
comment on function processor.settle_holds(uuid[]) is
  'Close the open holds of jobs that are ending: what has a ticket is spent, the rest is available again, or lost with a lot that '
  'has expired meanwhile. The caller writes the same amounts to the jobs'' rows.';
-- How an attempt goes on record. Whatever ends a job or makes it pending again states a verdict, and conclude() carries
-- verdicts out, a thousand as easily as one: the rows, the items, the credits, the parents and the children.

do $$
begin
  if to_regtype('processor.verdict') is null then
    create type processor.verdict as (
      job_id uuid,
      status text,
      run_at timestamptz,
      result jsonb,
      error_code text,
      error_message text,
      progress_message text,
      note jsonb,
      failed boolean,
      crashed boolean
    );
  end if;
end
$$;
comment on type processor.verdict is 'What becomes of a job: a terminal status, or pending and when to run.';
comment on column processor.verdict.job_id is 'The job.';
comment on column processor.verdict.status is 'Its new status: pending or a terminal one.';
comment on column processor.verdict.run_at is 'If pending: not before this time.';
comment on column processor.verdict.result is 'What the handler returned; null keeps what is there.';
comment on column processor.verdict.error_code is 'Why: a stable code. If pending, null keeps what is there.';
comment on column processor.verdict.error_message is 'The same in words.';
comment on column processor.verdict.progress_message is 'For people; null keeps what is there.';
comment on column processor.verdict.note is 'What to append to the job''s errors: {"code", "message"}.';
comment on column processor.verdict.failed is 'Whether the attempt counts as failed.';
comment on column processor.verdict.crashed is
  'Whether the worker was lost with the job; false: the attempt ended by itself; null: neither.';

create or replace function processor.ending(job_id uuid, status text, error_code text, error_message text)
returns processor.verdict
language sql
immutable
set search_path = '', pg_temp
as $$
  select row(job_id, status, null, null, error_code, error_message, null, null, false, false)::processor.verdict
$$;
comment on function processor.ending(uuid, text, text, text) is 'The verdict that a job ends, without having failed an attempt.';

create or replace function processor.requeueing(job_id uuid, run_at timestamptz)
returns processor.verdict
language sql
immutable
set search_path = '', pg_temp
as $$
  select row(job_id, 'pending', run_at, null, null, null, null, null, false, null)::processor.verdict
$$;
comment on function processor.requeueing(uuid, timestamptz) is 'The verdict that a job is pending again and has not failed an attempt.';

create or replace function processor.lock_jobs(job_ids uuid[], owners uuid[] default '{}')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  ids uuid[] := lock_jobs.job_ids;
  payers uuid[];
  parents uuid[];
begin
  -- what is read here before locking never changes, or changes towards needing fewer locks. Free jobs too may be given children
  -- that are not, while we wait.
  select array_agg(distinct j.owner_id) filter (where j.owner_id is not null and j.finished_at is null),
    array_agg(distinct j.parent_id) filter (where j.parent_id is not null)
  into payers, parents
  from public.jobs j where j.id = any (ids);
  while parents is not null loop
    ids := ids || parents;
    select array_agg(distinct j.parent_id) filter (where j.parent_id is not null) into parents
    from public.jobs j where j.id = any (parents);
  end loop;
  payers := payers || lock_jobs.owners;
  -- LOCK: accounts, then jobs with their ancestors, whom the end of a child concerns. A child has its parent's owner.
  if cardinality(payers) > 0 then
    perform 1 from public.credit_accounts a where a.owner_id = any (payers) order by a.owner_id for no key update;
  end if;
  perform 1 from public.jobs j where j.id = any (ids) order by j.id for no key update;
end
$$;
comment on function processor.lock_jobs(uuid[], uuid[]) is
  'Lock jobs and all that their end may touch, in the one order: accounts (and those of owners) before jobs, each ascending.';

create or replace function processor.request_cancel(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  workers uuid[];
begin
  -- LOCK: the caller holds the jobs; workers, by id
  with asked as (
    update public.jobs j set cancel_requested_at = processor.now(), updated_at = processor.now()
    where j.id = any (request_cancel.job_ids) and j.status = 'processing' and j.cancel_requested_at is null
    returning j.worker_id
  )
  select array_agg(distinct a.worker_id) into workers from asked a;
  perform 1 from public.job_workers w where w.id = any (workers) order by w.id for no key update;
  update public.job_workers w set inbox = w.inbox + 1 where w.id = any (workers);
end
$$;
comment on function processor.request_cancel(uuid[]) is 'Ask the workers of running jobs to stop them.';

create or replace function processor.cancel_children(parents uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  verdicts processor.verdict[];
  running uuid[];
begin
  -- LOCK: jobs, waiting for none, as they are out of order: a child that somebody has in hand runs to its end
  select array_agg(processor.ending(c.id, 'cancelled', 'CANCELLED', 'cancelled because its parent ended ' || c.parent_status))
      filter (where c.status = 'pending'),
    array_agg(c.id) filter (where c.status = 'processing')
  into verdicts, running
  from (
    select j.id, j.status, p.status as parent_status
    from public.jobs j
    join public.jobs p on p.id = j.parent_id
    where j.parent_id = any (cancel_children.parents) and j.finished_at is null
    order by j.id for no key update of j skip locked
  ) c;
  perform processor.conclude(verdicts);
  perform processor.request_cancel(running);
end
$$;
comment on function processor.cancel_children(uuid[]) is
  'Cancel the open children of jobs that did not complete: what waits ends, what runs is asked to stop.';

create or replace function processor.tell_parents(children uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  failing processor.verdict[];
begin
  -- LOCK: the caller holds the parents, see lock_jobs()
  with told as (
    update public.jobs p
    set children_open = p.children_open - t.ended,
      children_failed = p.children_failed + t.failed,
      run_at = case
        when p.status = 'pending' and p.run_at = processor.never() and p.children_open = t.ended then processor.now()
        else p.run_at end,
      updated_at = processor.now()
    from (
      select c.parent_id, count(*)::int as ended, (count(*) filter (where c.status <> 'completed'))::int as failed
      from public.jobs c where c.id = any (tell_parents.children) group by 1
    ) t
    where p.id = t.parent_id
    returning p.id, p.items_done, p.children_failed, p.children_total,
      p.status = 'pending' and p.on_child_failure = 'fail' and t.failed > 0 as fails
  )
  select array_agg(processor.ending(t.id, case when t.items_done > 0 then 'partial' else 'failed' end, 'CHILD_FAILED',
    format('%s of %s children did not complete', t.children_failed, t.children_total)) order by t.id)
  into failing
  from told t where t.fails;
  perform processor.conclude(failing);
end
$$;
comment on function processor.tell_parents(uuid[]) is
  'Tell the parents of jobs that have ended: the last one wakes a waiting parent, and one that failed may end it.';

create or replace function processor.conclude(verdicts processor.verdict[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ending uuid[];
  reopening uuid[];
  paying uuid[];
  settling uuid[];
  children uuid[];
  parents uuid[];
begin
  if coalesce(cardinality(conclude.verdicts), 0) = 0 then
    return;
  end if;
  -- LOCK: the caller holds accounts, jobs and their ancestors, see lock_jobs()
  select array_agg(j.id) filter (where v.status <> 'pending' and j.items_total > j.items_done),
    array_agg(j.id) filter (where v.status = 'pending' and j.items_failed > 0),
    array_agg(j.id) filter (where v.status = 'completed' and j.credits_held > 0),
    array_agg(j.id) filter (where v.status <> 'pending' and j.credits_held + j.credits_captured > 0),
    array_agg(j.id) filter (where v.status <> 'pending' and j.parent_id is not null),
    array_agg(j.id) filter (where v.status in ('partial', 'failed', 'cancelled') and j.children_open > 0)
  into ending, reopening, paying, settling, children, parents
  from unnest(conclude.verdicts) v join public.jobs j on j.id = v.job_id;

  if ending is not null then -- open items end with their job
    update public.job_items i
    set status = case when v.status = 'cancelled' then 'cancelled' else 'failed' end,
      error_code = coalesce(i.error_code, v.error_code),
      error_message = coalesce(i.error_message, left(v.error_message, 2000)),
      updated_at = moment
    from unnest(conclude.verdicts) v
    where v.job_id = any (ending) and i.job_id = v.job_id and i.status = 'pending';
  end if;
  if reopening is not null then -- what failed in a way worth trying again is open again
    update public.job_items i
    set status = 'pending', progress = 0, updated_at = moment
    where i.job_id = any (reopening) and i.status = 'failed' and i.error_retryable;
  end if;

  update public.jobs j
  set status = v.status,
    result = coalesce(v.result, j.result),
    progress = case when v.status = 'completed' then 1 else j.progress end,
    progress_message = coalesce(v.progress_message, j.progress_message),
    items_failed = case when j.items_total = j.items_done then 0 else (
      select count(*) from public.job_items i where i.job_id = j.id and i.status = 'failed') end,
    failures = j.failures + v.failed::int,
    crashes = case
      when v.crashed then j.crashes + 1
      when v.status = 'pending' and not v.crashed then 0 -- it can be run without harm
      else j.crashes end,
    run_at = coalesce(v.run_at, j.run_at),
    finished_at = case when v.status <> 'pending' then moment end,
    updated_at = moment,
    worker_id = case when v.status <> 'pending' then j.worker_id end,
    claim_id = case when v.status <> 'pending' then j.claim_id end,
    error_code = case when v.status = 'pending' and v.error_code is null then j.error_code else v.error_code end,
    error_message = case when v.status = 'pending' and v.error_code is null then j.error_message else left(v.error_message, 2000) end,
    error_retryable = case
      when v.error_code is not null then v.status = 'pending'
      when v.status = 'pending' then j.error_retryable end,
    errors = case when v.note is null then j.errors else
      case when jsonb_array_length(j.errors) >= 20 then j.errors - 0 else j.errors end || jsonb_build_object(
        'attempt', j.attempt, 'code', v.note ->> 'code', 'message', left(v.note ->> 'message', 2000), 'at', moment) end,
    -- what is still held when a job completes is its own price: that of items is captured with them
    credits_captured = j.credits_captured + case when v.status = 'completed' then j.credits_held else 0 end,
    credits_refunded = j.credits_refunded + case when v.status not in ('pending', 'completed') then j.credits_held else 0 end,
    credits_held = case when v.status = 'pending' then j.credits_held else 0 end
  from unnest(conclude.verdicts) v
  where j.id = v.job_id;

  if settling is not null then
    if paying is not null then
      perform processor.capture_jobs(paying);
    end if;
    perform processor.settle_holds(settling);
  end if;
  if children is not null then
    perform processor.tell_parents(children);
  end if;
  if parents is not null then
    perform processor.cancel_children(parents);
  end if;
end
$$;
comment on function processor.conclude(processor.verdict[]) is
  'Carry verdicts out, at most one a job: rows, items, credits, parents, children. The caller has called lock_jobs().';
-- What a job to be created must be like: every way of creating one passes through draft_jobs(), which writes nothing.

create or replace function processor.parse_items(items jsonb, max_items int)
returns table (key text, payload jsonb, "position" int)
language plpgsql
set search_path = '', pg_temp
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

do $$
begin
  if to_regtype('processor.wish') is null then
    create type processor.wish as (
      kind text,
      payload jsonb,
      items jsonb,
      queue text,
      priority int,
      run_at timestamptz,
      delay_seconds numeric,
      idempotency_key text,
      unique_key text,
      on_conflict text,
      owner_id uuid,
      max_attempts int,
      timeout_seconds numeric,
      tags text[],
      parent_id uuid,
      children jsonb,
      on_child_failure text,
      retry_of uuid
    );
  end if;
end
$$;
comment on type processor.wish is 'A job as it is asked for: the parameters of create_job, and retry_of.';

create or replace function processor.name_wrong_type(wanted jsonb, what text)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  place record;
begin
  for place in
    select e.ordinality as n, v.key, v.value
    from jsonb_array_elements(name_wrong_type.wanted) with ordinality e cross join lateral jsonb_each(e.value) v
  loop
    begin
      perform jsonb_populate_record(null::processor.wish, jsonb_build_object(place.key, place.value));
    exception when data_exception then
      perform processor.fail('JQ006', format('%s of %s %s cannot be %s: %s', place.key, name_wrong_type.what, place.n,
          left(place.value::text, 100), left(sqlerrm, 200)), '',
        'Numbers are priority, max_attempts (whole), delay_seconds and timeout_seconds; run_at is a time with its zone, owner_id and '
        'parent_id are uuids, tags an array of texts.');
    end;
  end loop;
end
$$;
comment on function processor.name_wrong_type(jsonb, text) is
  'Raise JQ006 about the first value that cannot be read as what create_job''s parameter of that name is.';

do $$
begin
  if to_regtype('processor.draft') is null then
    create type processor.draft as (
      n int,
      depth int,
      id uuid,
      kind text,
      queue text,
      owner_id uuid,
      priority int,
      payload jsonb,
      items jsonb,
      items_total int,
      run_at timestamptz,
      created_at timestamptz,
      max_attempts int,
      timeout interval,
      tags text[],
      idempotency_key text,
      input_digest bytea,
      unique_key text,
      on_conflict text,
      retry_of uuid,
      parent_id uuid,
      children jsonb,
      on_child_failure text,
      units int,
      unit_price bigint,
      per_item boolean
    );
  end if;
end
$$;
comment on type processor.draft is 'A job that has been checked and is to be written.';
comment on column processor.draft.n is 'Its place in the call, from 1; a child has its parent''s.';
comment on column processor.draft.depth is '0: given in the call itself, 1: a child of such a job, 2: a child of that, …';
comment on column processor.draft.id is 'The job''s id, should it be created.';
comment on column processor.draft.kind is 'As in jobs.';
comment on column processor.draft.queue is 'As in jobs.';
comment on column processor.draft.owner_id is 'As in jobs.';
comment on column processor.draft.priority is 'As in jobs.';
comment on column processor.draft.payload is 'As in jobs.';
comment on column processor.draft.items is 'As parse_items() takes them; null: none.';
comment on column processor.draft.items_total is 'As in jobs.';
comment on column processor.draft.run_at is 'As in jobs.';
comment on column processor.draft.created_at is 'As in jobs.';
comment on column processor.draft.max_attempts is 'As in jobs.';
comment on column processor.draft.timeout is 'As in jobs.';
comment on column processor.draft.tags is 'As in jobs.';
comment on column processor.draft.idempotency_key is 'As in jobs.';
comment on column processor.draft.input_digest is 'As in jobs.';
comment on column processor.draft.unique_key is 'As in jobs.';
comment on column processor.draft.on_conflict is 'What to do if the unique_key is taken: error, replace or return.';
comment on column processor.draft.retry_of is 'As in jobs.';
comment on column processor.draft.parent_id is 'As in jobs.';
comment on column processor.draft.children is 'Jobs to be created as its children; it waits for them.';
comment on column processor.draft.on_child_failure is 'As in jobs.';
comment on column processor.draft.units is 'How many tickets its hold has.';
comment on column processor.draft.unit_price is 'The price of each; 0: no hold.';
comment on column processor.draft.per_item is 'Whether a ticket is an item, or the job.';

create or replace function processor.place_in_call(draft processor.draft, detail text)
returns text
language sql
immutable
set search_path = '', pg_temp
as $$
  select concat_ws(': ', format('job %s of the call', draft.n) || case when draft.depth > 0 then ', among its children' else '' end,
    nullif(place_in_call.detail, ''))
$$;
comment on function processor.place_in_call(processor.draft, text) is 'The detail of an error about one of several jobs: which of them.';

create or replace function processor.count_ancestors(job_id uuid)
returns int
language sql
stable
set search_path = '', pg_temp
as $$
  with recursive line (id, parent_id, place) as (
    select j.id, j.parent_id, 0 from public.jobs j where j.id = count_ancestors.job_id
    union all
    select p.id, p.parent_id, l.place + 1 from line l join public.jobs p on p.id = l.parent_id where l.place < 100
  )
  select max(l.place) from line l
$$;
comment on function processor.count_ancestors(uuid) is 'How deep a job is: 0 without a parent.';

create or replace function processor.draft_jobs(wanted jsonb, internal boolean default false)
returns processor.draft[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  -- what an operator has us repeat is made as it was, whoever's it is
  client constant boolean := processor.is_client() and not (draft_jobs.internal and processor.is_operator());
  caller constant uuid := auth.uid();
  moment constant timestamptz := processor.now();
  most constant int := 20; -- levels of children: what ends a job goes up and down the family, and the stack has an end
  drafts processor.draft[] := '{}'::processor.draft[];
  wave jsonb := draft_jobs.wanted; -- the jobs of one depth
  above int[]; -- the places of their parents in drafts
  current int := 0; -- the depth
  what text := 'job';
  nested boolean; -- whether any of this depth has children
  e record;
  d processor.draft;
  k public.job_kinds;
  q public.job_queues;
  parent public.jobs;
  keys text[];
  payloads jsonb[];
  twice text;
  message text;
  detail text;
  hint text;
begin
  loop
    if current > 0 then
      perform processor.check_elements(wave, draft_jobs.internal, what);
    end if;
    d := null;
    nested := false;
    for e in
      select * from rows from (jsonb_populate_recordset(null::processor.wish, wave)) with ordinality
    loop
      d := null;
      d.n := coalesce(drafts[above[e.ordinality]].n, e.ordinality);
      d.depth := current;
      d.retry_of := e.retry_of;
      d.owner_id := e.owner_id;

      if current > 0 then
        if e.parent_id is not null then
          perform processor.fail('JQ006', 'parent_id is given for a child', '', 'Leave it out: its parent is the job it is given in.');
        end if;
        parent := null;
        parent.id := drafts[above[e.ordinality]].id;
        parent.owner_id := drafts[above[e.ordinality]].owner_id;
      elsif e.parent_id is distinct from parent.id and e.parent_id is not null then
        select * into parent from public.jobs j where j.id = e.parent_id and (not client or j.owner_id = caller);
        if not found then
          perform processor.fail('JQ008', format('job not found: %s', e.parent_id), '', 'Check parent_id; one sees only own jobs.');
        elsif processor.count_ancestors(parent.id) >= most then
          perform processor.fail('JQ006', format('there are more than %s levels of children', most), '', 'Make the tree flatter.');
        end if;
      end if;
      if current > 0 or e.parent_id is not null then
        if d.owner_id <> parent.owner_id or (d.owner_id is not null and parent.owner_id is null) then
          perform processor.fail('JQ010', 'a child has the owner of its parent', format('parent %s', parent.id), 'Leave owner_id out.');
        end if;
        d.parent_id := parent.id;
        d.owner_id := parent.owner_id;
      elsif client then
        if d.owner_id <> caller then
          perform processor.fail('JQ010', 'owner_id is not yours', '', 'Leave owner_id out: a job belongs to the user who creates it.');
        end if;
        d.owner_id := caller;
        if d.owner_id is null then
          perform processor.fail('JQ010', 'only signed-in users create jobs', '', 'Sign in first, or call with the service key.');
        end if;
      end if;

      if e.kind is null then
        perform processor.fail('JQ006', 'kind is missing', '', 'Name the handler: create_job(kind => ''…'').');
      end if;
      if e.kind is distinct from k.kind then
        select * into k from public.job_kinds x where x.kind = e.kind;
        if not found or (client and not k.public) then
          -- the same answer for both: a client learns nothing about internal kinds
          perform processor.fail('JQ001', format('unknown kind: %s', left(e.kind, 100)), '',
            'Kinds are registered when a worker with their handlers starts; clients may create those declared public.');
        end if;
      end if;
      d.kind := k.kind;
      d.queue := coalesce(e.queue, k.queue);
      if d.queue is distinct from q.name then
        select * into q from public.job_queues x where x.name = d.queue;
        if not found then
          perform processor.fail('JQ002', format('unknown queue: %s', left(d.queue, 100)), '',
            'Queues are made by the first worker that serves them, or by inserting a row into public.job_queues.');
        end if;
      end if;
      -- a retry runs where its job ran: the queue is not the caller's choice then
      if client and d.queue <> k.queue and d.retry_of is null then
        perform processor.fail('JQ010', format('jobs of kind %s run in queue %s', k.kind, k.queue), '', 'Leave queue out.');
      end if;

      d.payload := coalesce(e.payload, '{}');
      if jsonb_typeof(d.payload) <> 'object' then
        perform processor.fail('JQ003', format('payload must be a JSON object, this is %s', jsonb_typeof(d.payload)),
          '', 'Wrap it: {"value": …}.');
      end if;
      perform processor.check_size('payload', d.payload, 262144), processor.check_depth('payload', d.payload);
      d.priority := coalesce(e.priority, 0);
      d.max_attempts := coalesce(e.max_attempts, q.max_attempts);
      if d.priority <> 0 then
        perform processor.check_range('priority', e.priority, -1000, 1000);
      end if;
      if e.max_attempts is not null then
        perform processor.check_range('max_attempts', e.max_attempts, 1, 100);
      end if;
      if e.timeout_seconds is not null then
        perform processor.check_range('timeout_seconds', e.timeout_seconds, 1, 604800);
        d.timeout := make_interval(secs => e.timeout_seconds::double precision);
      end if;
      d.run_at := coalesce(e.run_at, moment);
      if e.run_at not between moment - interval '100 years' and moment + interval '10 years' then
        perform processor.fail('JQ006', format('run_at is %s, but must be at most 10 years ahead', e.run_at));
      end if;
      if e.delay_seconds is not null then
        perform processor.check_range('delay_seconds', e.delay_seconds, 0, 315360000);
        if e.run_at is not null then
          perform processor.fail('JQ006', 'run_at and delay_seconds are both given', '', 'Give one of them.');
        end if;
        d.run_at := moment + make_interval(secs => e.delay_seconds::double precision);
      end if;
      d.idempotency_key := e.idempotency_key;
      d.unique_key := e.unique_key;
      d.on_conflict := coalesce(e.on_conflict, 'error');
      if coalesce(d.idempotency_key, d.unique_key) is not null or d.on_conflict <> 'error' then
        perform processor.check_text('idempotency_key', d.idempotency_key, 200);
        perform processor.check_text('unique_key', d.unique_key, 200);
        perform processor.check_choice('on_conflict', d.on_conflict, array['error', 'replace', 'return']);
      end if;
      d.tags := coalesce(e.tags, '{}');
      if d.tags <> '{}' then
        perform processor.check_tags(d.tags);
      end if;

      d.items_total := 0;
      if e.items is not null then
        d.items := e.items;
        select array_agg(i.key order by i.position), array_agg(i.payload order by i.position)
        into keys, payloads
        from processor.parse_items(e.items, k.max_items) i;
        select u into twice from unnest(keys) u group by u having count(*) > 1 limit 1;
        if found then
          perform processor.fail('JQ005', format('duplicate item key: %s', twice), '', 'Each item of a job has a key of its own.');
        end if;
        d.items_total := coalesce(cardinality(keys), 0);
      end if;
      if d.items_total = 0 and k.credits_per_item > 0 then
        perform processor.fail('JQ005', format('kind %s is priced per item, but there are no items', k.kind), '',
          'Give at least one item.');
      end if;
      if d.idempotency_key is not null then
        d.input_digest := sha256(convert_to(jsonb_build_array(d.kind, d.queue, d.payload,
          case when d.items_total > 0 then to_jsonb(keys) end, case when d.items_total > 0 then to_jsonb(payloads) end)::text, 'UTF8'));
      end if;
      d.per_item := k.credits_per_item > 0;
      d.units := case when d.per_item then d.items_total else 1 end;
      d.unit_price := case when d.owner_id is null then 0 else k.credits_per_item + k.credits_per_job end; -- one of them is 0

      d.on_child_failure := coalesce(e.on_child_failure, 'continue');
      if d.on_child_failure <> 'continue' then
        perform processor.check_choice('on_child_failure', d.on_child_failure, array['continue', 'fail']);
      end if;
      if coalesce(e.children, '[]') <> '[]' then
        if jsonb_typeof(e.children) <> 'array' then
          perform processor.fail('JQ006', 'children must be an array of jobs', '', 'Give [{"kind": …, "payload": {…}}].');
        end if;
        if e.run_at is not null or e.delay_seconds is not null then
          perform processor.fail('JQ006', 'a job with children starts when they have ended', '', 'Leave run_at and delay_seconds out.');
        end if;
        if current + 1 > most then
          perform processor.fail('JQ006', format('there are more than %s levels of children', most), '', 'Make the tree flatter.');
        end if;
        nested := true;
        d.children := e.children;
        d.run_at := processor.never();
      end if;

      d.id := processor.uuid7();
      d.created_at := moment;
      drafts := drafts || d;
    end loop;

    exit when not nested;
    select jsonb_agg(c.value order by x.ordinality, c.ordinality), array_agg(x.ordinality::int order by x.ordinality, c.ordinality)
    into wave, above
    from unnest(drafts) with ordinality x
    cross join lateral jsonb_array_elements(x.children) with ordinality c
    where x.depth = current and x.children is not null;
    current := current + 1;
    what := 'child';
  end loop;
  return drafts;
exception when others then
  if left(sqlstate, 2) not in ('JQ', '22') then
    raise;
  end if;
  if left(sqlstate, 2) = '22' then
    perform processor.name_wrong_type(wave, what);
  end if;
  if d.n is null or jsonb_array_length(draft_jobs.wanted) = 1 then
    raise;
  end if;
  get stacked diagnostics message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
  raise exception using errcode = sqlstate, message = message, detail = processor.place_in_call(d, detail), hint = hint;
end
$$;
comment on function processor.draft_jobs(jsonb, boolean) is
  'Check an array of jobs that check_elements() let pass, each with the names of create_job''s parameters, and their children, and give '
  'them what follows from kind, queue and parent: first the jobs of the array, then their children, then theirs. Nothing is written '
  'or locked.';
-- Creating jobs, one or many: the rows, their items, their holds and their children, all or nothing.

create or replace function processor.keyed_job(owner_id uuid, idempotency_key text)
returns uuid
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if keyed_job.owner_id is null then -- "is not distinct from" would read the whole index
    return (select j.id from public.jobs j where j.owner_id is null and j.idempotency_key = keyed_job.idempotency_key);
  end if;
  return (select j.id from public.jobs j where j.owner_id = keyed_job.owner_id and j.idempotency_key = keyed_job.idempotency_key);
end
$$;
comment on function processor.keyed_job(uuid, text) is 'The job of an owner (or of nobody) with an idempotency_key.';

create or replace function processor.active_job(owner_id uuid, kind text, unique_key text)
returns uuid
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if active_job.owner_id is null then
    return (select j.id from public.jobs j where j.owner_id is null and j.kind = active_job.kind
      and j.unique_key = active_job.unique_key and j.status in ('pending', 'processing'));
  end if;
  return (select j.id from public.jobs j where j.owner_id = active_job.owner_id and j.kind = active_job.kind
    and j.unique_key = active_job.unique_key and j.status in ('pending', 'processing'));
end
$$;
comment on function processor.active_job(uuid, text, text) is 'The pending or processing job of an owner (or of nobody) with a unique_key.';

create or replace function processor.find_conflict(draft processor.draft, several boolean)
returns uuid
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  existing public.jobs;
  taken text;
begin
  if draft.retry_of is not null and draft.idempotency_key is null then
    select * into existing from public.jobs j where j.retry_of = draft.retry_of and j.idempotency_key is null;
  else
    select * into existing from public.jobs j where j.id = processor.keyed_job(draft.owner_id, draft.idempotency_key);
  end if;
  taken := format('taken by job %s', existing.id);
  if existing.id is not null then
    if existing.retry_of is null
      and (existing.input_digest <> draft.input_digest or existing.parent_id is distinct from draft.parent_id)
    then
      perform processor.fail('JQ007', format('idempotency_key %s was used with other input', draft.idempotency_key),
        case when find_conflict.several then processor.place_in_call(draft, taken) else taken end,
        'Use a new key for new input or another parent; the same key returns the first job.');
    end if;
    return existing.id;
  end if;
  select * into existing from public.jobs j where j.id = processor.active_job(draft.owner_id, draft.kind, draft.unique_key);
  taken := case when existing.id is null then '' else format('taken by job %s', existing.id) end;
  if existing.id is null or draft.on_conflict <> 'return' then
    perform processor.fail('JQ012',
      format('a job of kind %s with unique_key %s is already %s', draft.kind, draft.unique_key, coalesce(existing.status, 'on its way')),
      case when find_conflict.several then processor.place_in_call(draft, taken) else taken end,
      case
        when draft.on_conflict = 'error' then 'Wait for it to end, cancel it, or say on_conflict => ''replace'' or ''return''.'
        when existing.status = 'pending' then 'It was made by this very call: give each job its own unique_key.'
        else 'Only a pending job can be replaced: wait for this one to end, or cancel it.' end);
  end if;
  return existing.id;
end
$$;
comment on function processor.find_conflict(processor.draft, boolean) is
  'The job that keeps a draft from being written, if it stands for it; JQ007 or JQ012 if it does not.';

create or replace function processor.check_pending(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  o record;
begin
  -- LOCK: the caller lets one creator at a time through, for each owner and queue
  for o in
    select g.queue, g.owner_id, q.max_pending_per_owner as most, (
      select count(*) from public.jobs j
      where j.queue = g.queue and j.status = 'pending' and j.owner_id = g.owner_id
    ) as there
    from (select distinct x.queue, x.owner_id from unnest(check_pending.drafts) x where x.owner_id is not null) g
    join public.job_queues q on q.name = g.queue and q.max_pending_per_owner is not null
  loop
    if o.there > o.most then
      perform processor.fail('JQ014', format('too many pending jobs in queue %s: %s with these, at most %s', o.queue, o.there, o.most),
        format('owner %s', o.owner_id), 'Wait until some have run, or cancel some.');
    end if;
  end loop;
end
$$;
comment on function processor.check_pending(processor.draft[]) is
  'Raise JQ014 if with these jobs an owner has more pending than the queue''s max_pending_per_owner.';

create or replace function processor.take_turns(turns bigint[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  all_turns constant bigint := hashtextextended('processor: every turn', 0);
begin
  -- LOCK: before all others. Each turn is a place in the server's table of locks, which is small: whoever wants many takes them all.
  if take_turns.turns is null or cardinality(take_turns.turns) > 100 then
    perform pg_advisory_xact_lock(all_turns);
  else
    perform pg_advisory_xact_lock_shared(all_turns);
    perform pg_advisory_xact_lock(o.t) from (select distinct t from unnest(take_turns.turns) t order by t) o;
  end if;
end
$$;
comment on function processor.take_turns(bigint[]) is
  'Creators who would race for a unique_key, or for an owner''s share of a queue, do one after the other; null: all of them wait.';

create or replace function processor.lock_drafts(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  turns bigint[];
  payers uuid[];
  concerned uuid[];
  alone boolean := true; -- whether no draft touches anything but its own row
  d processor.draft;
begin
  foreach d in array lock_drafts.drafts loop
    alone := d.unit_price = 0 and d.parent_id is null and d.unique_key is null;
    exit when not alone;
  end loop;
  if alone and not exists (select from public.job_queues q where q.max_pending_per_owner is not null) then
    return;
  end if;
  select array_agg(distinct x.owner_id) filter (where x.unit_price > 0 or x.parent_id is not null),
    array_agg(distinct x.parent_id) filter (where x.parent_id is not null and x.depth = 0),
    array_agg(hashtextextended(format('unique %s %s %s', x.owner_id, x.kind, x.unique_key), 0)) filter (where x.unique_key is not null)
      || array_agg(distinct hashtextextended(format('pending %s %s', x.queue, x.owner_id), 0)) filter (where q.name is not null)
  into payers, concerned, turns
  from unnest(lock_drafts.drafts) x
  left join public.job_queues q on q.name = x.queue and q.max_pending_per_owner is not null and x.owner_id is not null;
  -- LOCK: creators' turns; then accounts before jobs, so that two creates of one key meet here and not at the index;
  -- then parents, and jobs that may have to make way
  if turns is not null then
    perform processor.take_turns(turns);
    concerned := concerned || array(
      select a.id from unnest(lock_drafts.drafts) x cross join lateral processor.active_job(x.owner_id, x.kind, x.unique_key) a (id)
      where x.on_conflict = 'replace' and x.unique_key is not null and a.id is not null
    );
  end if;
  if coalesce(payers, nullif(concerned, '{}')) is not null then
    perform processor.lock_jobs(coalesce(concerned, '{}'), coalesce(payers, '{}'));
  end if;
end
$$;
comment on function processor.lock_drafts(processor.draft[]) is
  'Lock all that writing drafts may touch, children''s included, in the one order.';

create or replace function processor.make_way(drafts processor.draft[], made uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  replaced processor.verdict[];
  waiting uuid[];
begin
  -- LOCK: the caller has called lock_drafts()
  select array_agg(processor.ending(j.id, 'cancelled', 'REPLACED', 'replaced by a newer job with the same unique_key')),
    array_agg(distinct p.id) filter (where p.id is not null)
  into replaced, waiting
  from (
    select distinct processor.active_job(x.owner_id, x.kind, x.unique_key) as id
    from unnest(make_way.drafts) x
    where x.on_conflict = 'replace' and x.unique_key is not null
      -- a repeated call replaces nothing: what it made is there
      and (x.idempotency_key is null or processor.keyed_job(x.owner_id, x.idempotency_key) is null)
  ) a
  join public.jobs j on j.id = a.id and j.status = 'pending' and j.id <> all (make_way.made)
  -- a parent that waits goes on waiting when one of its children takes another's place
  left join public.jobs p on p.id = j.parent_id and p.run_at = processor.never() and p.status = 'pending'
    and p.id in (select x.parent_id from unnest(make_way.drafts) x);
  if replaced is not null then
    perform processor.conclude(replaced);
    update public.jobs p set run_at = processor.never() where p.id = any (waiting) and p.status = 'pending';
  end if;
end
$$;
comment on function processor.make_way(processor.draft[], uuid[]) is
  'Cancel the pending jobs whose unique_key is given anew with on_conflict "replace"; not what the same call has made.';

create or replace function processor.write_drafts(drafts processor.draft[])
returns table (n int, job_id uuid, created boolean)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  deepest constant int := coalesce(write_drafts.drafts[cardinality(write_drafts.drafts)].depth, -1); -- -1: there are none
  replacing boolean;
  wave processor.draft[];
  d processor.draft;
  parents uuid[];
  ended public.jobs;
  written uuid[];
  made uuid[] := '{}'::uuid[];
begin
  -- LOCK: the caller has called lock_drafts()
  for level in 0..deepest loop
    -- two calls that name the same keys in different orders must not meet at the index in a circle
    select array_agg(x order by x.owner_id, x.idempotency_key, x.n),
      array_agg(distinct x.parent_id) filter (where x.parent_id is not null),
      bool_or(x.on_conflict = 'replace' and x.unique_key is not null)
    into wave, parents, replacing
    from unnest(write_drafts.drafts) x
    where x.depth = level and (x.depth = 0 or x.parent_id = any (written));
    exit when wave is null;
    if replacing then
      perform processor.make_way(wave, made);
    end if;
    if parents is not null then
      select * into ended from public.jobs p where p.id = any (parents) and p.finished_at is not null limit 1;
      if found then
        perform processor.fail('JQ009', format('job %s is %s: it gets no more children', ended.id, ended.status));
      end if;
    end if;

    with rows as (
      insert into public.jobs (id, queue, kind, owner_id, priority, payload, items_total, max_attempts, run_at, created_at, updated_at,
        timeout, credits_held, idempotency_key, input_digest, unique_key, retry_of, tags, parent_id, on_child_failure)
      select x.id, x.queue, x.kind, x.owner_id, x.priority, x.payload, x.items_total, x.max_attempts, x.run_at, x.created_at, x.created_at,
        x.timeout, x.unit_price * x.units, x.idempotency_key, x.input_digest, x.unique_key, x.retry_of, x.tags, x.parent_id,
        x.on_child_failure
      from unnest(wave) x
      on conflict do nothing
      returning id
    )
    select coalesce(array_agg(r.id), '{}') into written from rows r;
    if cardinality(written) < cardinality(wave) then
      foreach d in array wave loop
        continue when d.id = any (written);
        n := d.n;
        job_id := processor.find_conflict(d, cardinality(write_drafts.drafts) > 1);
        created := false;
        if level = 0 then
          return next;
        end if;
      end loop;
    end if;
    made := made || written;
    if parents is not null then
      update public.jobs p
      set children_total = p.children_total + c.count, children_open = p.children_open + c.count, updated_at = processor.now()
      from (
        select x.parent_id, count(*)::int as count from unnest(wave) x
        where x.parent_id is not null and x.id = any (written) group by 1
      ) c
      where p.id = any (parents) and p.id = c.parent_id;
    end if;
  end loop;

  perform processor.complete_drafts(case when cardinality(made) = cardinality(write_drafts.drafts) then write_drafts.drafts
    else array(select x from unnest(write_drafts.drafts) x where x.id = any (made) order by x.depth, x.n) end);
  return query select x.n, x.id, true from unnest(write_drafts.drafts) x where x.depth = 0 and x.id = any (made);
end
$$;
comment on function processor.write_drafts(processor.draft[]) is
  'Write drafts, or raise an error and write none. One that exists already (by idempotency_key, unique_key or retry_of) is told as not '
  'created, and its children are left out.';

create or replace function processor.complete_drafts(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  with_items processor.draft[];
  repeating processor.draft[];
  waiting uuid[];
  holds public.credit_holds[];
  alone boolean := true; -- whether nothing belongs to any of them
  limited constant boolean := exists (select from public.job_queues q where q.max_pending_per_owner is not null);
  d processor.draft;
begin
  foreach d in array complete_drafts.drafts loop
    alone := d.unit_price = 0 and d.items is null and d.children is null and d.retry_of is null;
    exit when not alone;
  end loop;
  if alone and not limited then
    return;
  end if;
  select array_agg(x) filter (where x.items is not null),
    array_agg(x) filter (where x.retry_of is not null and x.idempotency_key is null), -- one that repeats everything begins anew
    array_agg(x.id) filter (where x.children is not null),
    array_agg(row(x.id, x.owner_id, x.units, x.unit_price, x.per_item, 0, 0, null)::public.credit_holds order by x.owner_id, x.id)
      filter (where x.unit_price > 0)
  into with_items, repeating, waiting, holds
  from unnest(complete_drafts.drafts) x;
  if with_items is not null then
    insert into public.job_items (job_id, key, position, payload)
    select x.id, i.key, i.position, i.payload
    from unnest(with_items) x cross join lateral processor.parse_items(x.items, x.items_total) i;
  end if;
  if repeating is not null then
    -- copied, not looked up later: what is repeated may be pruned while its repetition runs
    insert into public.job_checkpoints (job_id, name, result, attempt, created_at)
    select x.id, c.name, c.result, 0, c.created_at
    from unnest(repeating) x join public.job_checkpoints c on c.job_id = x.retry_of;
  end if;
  if holds is not null then
    perform processor.open_holds(holds);
  end if;
  if limited then
    perform processor.check_pending(complete_drafts.drafts);
  end if;
  if waiting is not null then -- all of its children may have been there already, as somebody else's
    update public.jobs j set run_at = j.created_at where j.id = any (waiting) and j.children_open = 0;
  end if;
end
$$;
comment on function processor.complete_drafts(processor.draft[]) is
  'What belongs to jobs that were just written: items, the checkpoints of what they repeat, holds, the limits of their owners.';

create or replace function processor.add_jobs(wanted jsonb, internal boolean default false)
returns table (n int, job_id uuid, created boolean)
language plpgsql
set search_path = '', pg_temp
as $$
declare
  drafts processor.draft[];
begin
  perform processor.check_elements(add_jobs.wanted, add_jobs.internal);
  drafts := processor.draft_jobs(add_jobs.wanted, add_jobs.internal);
  perform processor.lock_drafts(drafts);
  return query select * from processor.write_drafts(drafts);
end
$$;
comment on function processor.add_jobs(jsonb, boolean) is
  'Create the jobs of an array, with their items, holds and children; or none, and an error. Each element has the names of '
  'create_job''s parameters; internal: retry_of too. Told are the jobs of the array, not their children.';

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
  tags text[] default null,
  delay_seconds numeric default null,
  on_conflict text default 'error',
  parent_id uuid default null,
  children jsonb default null,
  on_child_failure text default 'continue'
)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in draft_jobs
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  wanted constant jsonb := jsonb_build_array(jsonb_build_object(
    'kind', create_job.kind, 'payload', create_job.payload, 'items', create_job.items, 'queue', create_job.queue,
    'priority', create_job.priority, 'run_at', create_job.run_at, 'idempotency_key', create_job.idempotency_key,
    'unique_key', create_job.unique_key, 'owner_id', create_job.owner_id, 'max_attempts', create_job.max_attempts,
    'timeout_seconds', create_job.timeout_seconds, 'tags', create_job.tags, 'delay_seconds', create_job.delay_seconds,
    'on_conflict', create_job.on_conflict, 'parent_id', create_job.parent_id, 'children', create_job.children,
    'on_child_failure', create_job.on_child_failure
  ));
  drafts processor.draft[];
  job public.jobs;
begin
  if create_job.payload is null or create_job.payload = 'null' then -- all else is right: the names are our own
    perform processor.check_elements(wanted, false);
  end if;
  drafts := processor.draft_jobs(wanted);
  perform processor.lock_drafts(drafts);
  select a.job_id into job.id from processor.write_drafts(drafts) a;
  select * into job from public.jobs j where j.id = job.id; -- a statement of its own sees what the one before wrote
  return job;
end
$$;
comment on function public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text,
  uuid, jsonb, text) is
  'Create a job and reserve its credits, in the caller''s transaction. Repeating it with the same idempotency_key '
  'returns the same job. Users create jobs of public kinds, as themselves; the service may name any owner or none. '
  'With children it starts when they have ended; with a unique_key, on_conflict says what happens if a job has it: '
  'error, replace (a pending one is cancelled) or return (that job).';

create or replace function public.create_jobs(jobs jsonb)
returns jsonb
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in add_jobs
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('id', a.job_id, 'created', a.created) order by a.n), '[]')
    from processor.add_jobs(create_jobs.jobs) a
  );
end
$$;
comment on function public.create_jobs(jsonb) is
  'Create up to 10,000 jobs at once, all or none: an array of objects with the names of create_job''s parameters. Returns '
  '[{"id", "created"}] in the order given; created is false for one that was there already.';
-- What an owner does with a job: cancel it, or repeat what is not done, or all of it. Operators do so with anybody's jobs.

create or replace function public.cancel_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; only own jobs are found, unless by an operator
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  -- the owner never changes: whose job it is may be asked before it is locked
  if not exists (
    select from public.jobs j
    where j.id = cancel_job.job_id
      and (not processor.is_client() or processor.is_operator() or j.owner_id = (select auth.uid()))
  ) then
    perform processor.fail('JQ008', format('job not found: %s', cancel_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  -- LOCK: account, job with its ancestors
  perform processor.lock_jobs(array[cancel_job.job_id]);
  select * into job from public.jobs j where j.id = cancel_job.job_id;
  if not found then -- pruned while it was waited for
    perform processor.fail('JQ008', format('job not found: %s', cancel_job.job_id));
  end if;
  if job.status = 'pending' then
    perform processor.conclude(array[processor.ending(job.id, 'cancelled', 'CANCELLED', 'cancelled before it started')]);
  elsif job.status = 'processing' then
    perform processor.request_cancel(array[job.id]);
  end if;
  select * into job from public.jobs j where j.id = cancel_job.job_id;
  return job;
end
$$;
comment on function public.cancel_job(uuid) is
  'Cancel an own job, or an operator any: a pending one ends at once and is refunded; a running one is asked to stop, and pays for what is '
  'done. Its open children are cancelled with it. A job that has ended is returned as it is.';

create or replace function processor.repetition(job public.jobs)
returns jsonb
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  open_items jsonb;
  children jsonb;
begin
  if job.status not in ('partial', 'failed', 'cancelled') then
    perform processor.fail('JQ009', format('job %s is %s: only a partial, failed or cancelled job can be retried', job.id, job.status),
      '', case when job.status = 'completed' then 'To do all of it again: retry_job(job_id, all_items => true).' else '' end);
  end if;
  select jsonb_agg(jsonb_build_object('key', i.key, 'payload', i.payload) order by i.position)
  into open_items
  from public.job_items i where i.job_id = job.id and i.status <> 'completed';
  select jsonb_agg(processor.repetition(c) - 'owner_id' order by c.id) into children
  from public.jobs c
  where c.parent_id = job.id and c.status in ('partial', 'failed', 'cancelled')
    and (c.items_total = 0 or c.items_done < c.items_total or c.children_failed > 0)
    and not exists (select from public.jobs r where r.retry_of = c.id);
  if open_items is null and children is null and job.items_total > 0 then
    perform processor.fail('JQ009', format('every item of job %s is completed: nothing is left to retry', job.id), '',
      'To do all of it again: retry_job(job_id, all_items => true).');
  end if;
  return processor.same_again(job) || jsonb_build_object('items', open_items, 'retry_of', job.id, 'children', children);
end
$$;
comment on function processor.repetition(public.jobs) is
  'What add_jobs() needs to repeat a job that ended: its unfinished items, and its unfinished children that were not repeated yet.';

create or replace function processor.same_again(job public.jobs)
returns jsonb
language sql
stable
set search_path = '', pg_temp
as $$
  select jsonb_build_object('kind', job.kind, 'queue', job.queue, 'owner_id', job.owner_id, 'priority', job.priority,
    'payload', job.payload, 'max_attempts', job.max_attempts, 'timeout_seconds', extract(epoch from job.timeout),
    'tags', job.tags, 'unique_key', job.unique_key, 'on_child_failure', job.on_child_failure)
$$;
comment on function processor.same_again(public.jobs) is 'What every repetition of a job has from it.';

create or replace function processor.whole_repetition(job public.jobs, root uuid default null)
returns jsonb
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  every_item jsonb;
  children jsonb;
begin
  if whole_repetition.root is null and job.finished_at is null then
    perform processor.fail('JQ009', format('job %s is %s: only a job that has ended can be repeated', job.id, job.status), '',
      'Wait for it to end, or cancel it.');
  end if;
  select jsonb_agg(jsonb_build_object('key', i.key, 'payload', i.payload) order by i.position)
  into every_item
  from public.job_items i where i.job_id = job.id;
  select jsonb_agg(processor.whole_repetition(c, coalesce(whole_repetition.root, job.id)) - 'owner_id' order by c.id) into children
  from public.jobs c
  where c.parent_id = job.id
    and not starts_with(coalesce(c.idempotency_key, ''), job.id || '/'); -- those the handler spawns again
  return processor.same_again(job) || jsonb_build_object('items', every_item, 'retry_of', job.id, 'children', children,
    -- what sets it apart from a retry of what is open, and makes asking again find it
    'idempotency_key', concat_ws('/', 'all of', coalesce(whole_repetition.root, job.id), case when root is not null then job.id end));
end
$$;
comment on function processor.whole_repetition(public.jobs, uuid) is
  'What add_jobs() needs to do all of an ended job again: every item, and every child but those that its handler spawned. root: the job '
  'that was asked for, if this is one of its children.';

create or replace function public.retry_job(job_id uuid, all_items boolean default false)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; only own jobs are found, unless by an operator
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  old public.jobs;
  made public.jobs;
begin
  -- LOCK: none on the old job, which is read here and, being terminal, cannot change
  select * into old from public.jobs j
  where j.id = retry_job.job_id
    and (not processor.is_client() or processor.is_operator() or j.owner_id = (select auth.uid()));
  if not found then
    perform processor.fail('JQ008', format('job not found: %s', retry_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  select a.job_id into made.id
  from processor.add_jobs(
    jsonb_build_array(case when retry_job.all_items then processor.whole_repetition(old) else processor.repetition(old) end),
    internal => true) a;
  select * into made from public.jobs j where j.id = made.id;
  return made;
end
$$;
comment on function public.retry_job(uuid, boolean) is
  'A new job (retry_of) with the unfinished items of one that ended, reserving credits for those only; unfinished children are '
  'repeated with it. all_items: everything again, also of a completed job, without its checkpoints, reserving for all of it. '
  'Asked again, the same new job. An operator may do so with any job; its owner pays.';
-- Schedules: jobs that are made by the clock.
--
-- A worker computes when a cron expression comes next, because PostgreSQL cannot; who makes the job, and whether, is
-- decided here. next_run_at is what workers compare and swap: a tick that one of them has moved is nobody else's, so
-- any number of workers makes one job per tick. No worker needs to handle the kind, or to have declared the schedule.

create table if not exists public.job_schedules (
  name text primary key,
  cron text not null,
  timezone text not null default 'UTC',
  kind text not null,
  queue text,
  payload jsonb not null default '{}',
  items jsonb,
  owner_id uuid,
  priority int not null default 0,
  paused boolean not null default false,
  catch_up text not null default 'last',
  next_run_at timestamptz,
  last_run_at timestamptz,
  last_job_id uuid,
  problem text,
  declared jsonb not null default '{}',
  created_at timestamptz not null default processor.now(),
  constraint job_schedules_name_is_plain check (name ~ '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,89}$'),
  constraint job_schedules_catch_up_is_known check (catch_up in ('none', 'last', 'all'))
);
-- what is due and what must be computed first; few rows, unless every user of an application has schedules of their own
create index if not exists job_schedules_next_idx on public.job_schedules (next_run_at) where not paused;
comment on table public.job_schedules is
  'One row per schedule: declared by handlers, or inserted here. Change a row and the workers obey it at their next heartbeat.';
comment on column public.job_schedules.name is 'What people call it; the default of a declared one is its kind.';
comment on column public.job_schedules.cron is
  'Minute, hour, day of month, month, weekday: 0 3 * * * is every day at 3:00, */15 * * * * every quarter of an hour.';
comment on column public.job_schedules.timezone is
  'Whose clock it follows, a name of pg_timezone_names. An hour that is left out in spring runs right after it; a fixed '
  'hour that comes twice in autumn runs the first time.';
comment on column public.job_schedules.kind is 'What its jobs are.';
comment on column public.job_schedules.queue is 'Where they run; null: where the kind does.';
comment on column public.job_schedules.payload is 'What they are given.';
comment on column public.job_schedules.items is 'Their items, as create_job takes them; null: none.';
comment on column public.job_schedules.owner_id is
  'Whose jobs they are, and who pays for them; null: the application''s own, which cost nothing.';
comment on column public.job_schedules.priority is 'Their priority.';
comment on column public.job_schedules.paused is
  'true: makes no jobs. Afterwards it goes on with the next time to come: what a pause left out is not caught up.';
comment on column public.job_schedules.catch_up is
  'What happens to times at which no worker was alive. last: however many they were, one job, for the last of them. '
  'all: a job for each. none: what is more than a minute late is left out.';
comment on column public.job_schedules.next_run_at is
  'The tick: when it makes its next job; null: a worker will compute it, unless there is a problem. May be set, to run once at '
  'another time.';
comment on column public.job_schedules.last_run_at is 'When it last made a job.';
comment on column public.job_schedules.last_job_id is 'That job.';
comment on column public.job_schedules.problem is 'Why it made no job the last time, or cannot run at all; null: all is well.';
comment on column public.job_schedules.declared is
  'What the handler last declared: a column that still equals it follows the next declaration.';
comment on column public.job_schedules.created_at is 'When it was made.';

create or replace function public.guard_schedule()
returns trigger
language plpgsql
security definer -- whoever may write schedules may not use schema processor
set search_path = '', pg_temp
as $$
begin
  perform processor.check_name('schedule', new.name, '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,89}$');
  if coalesce(length(new.cron), 0) > 200 or new.cron !~ '^\s*\S+(\s+\S+){4}\s*$' then
    perform processor.fail('JQ006', format('schedule %s: %s is not a cron expression', new.name, left(new.cron, 100)), '',
      'Five fields: minute, hour, day of month, month, weekday. 0 3 * * * is every day at 3:00.');
  end if;
  perform processor.check_choice(format('schedule %s: catch_up', new.name), new.catch_up, array['none', 'last', 'all']);
  if jsonb_typeof(new.payload) <> 'object' then
    perform processor.fail('JQ003', format('schedule %s: payload must be a JSON object, this is %s', new.name, jsonb_typeof(new.payload)),
      '', 'Wrap it: {"value": …}.');
  end if;
  -- the view reads all files of the time zone database (50 ms), so it is asked about new names only
  if new.timezone <> 'UTC' and (tg_op = 'INSERT' or new.timezone <> old.timezone)
    and not exists (select from pg_catalog.pg_timezone_names z where z.name = new.timezone)
  then
    perform processor.fail('JQ006', format('schedule %s: there is no time zone %s', new.name, left(new.timezone, 100)), '',
      'Give a name such as Europe/Berlin: select name from pg_timezone_names where name ilike ''%…%''.');
  end if;
  if tg_op = 'UPDATE' then
    -- another plan, or the end of a pause: the next time is computed anew, from now on
    if (new.cron, new.timezone) is distinct from (old.cron, old.timezone) or (old.paused and not new.paused) then
      new.next_run_at := null;
      new.problem := null;
    elsif (new.kind, new.queue, new.payload, new.items, new.owner_id)
      is distinct from (old.kind, old.queue, old.payload, old.items, old.owner_id)
    then
      new.problem := null;
    end if;
  end if;
  return new;
end
$$;
comment on function public.guard_schedule() is
  'What a row of job_schedules must be, whoever writes it; and a changed plan is computed anew.';

create or replace trigger job_schedules_guard
before insert or update of name, cron, timezone, kind, queue, payload, items, owner_id, paused, catch_up on public.job_schedules
for each row execute function public.guard_schedule();

create or replace function processor.declare_schedule(schedule jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  wanted jsonb;
  kept jsonb;
  s public.job_schedules;
begin
  -- only what a handler may say, in one form: paused is the operators' word, and nobody's credits are declared away
  select to_jsonb(r) into wanted
  from jsonb_to_record('{"timezone": "UTC", "payload": {}, "priority": 0, "catch_up": "last"}' || declare_schedule.schedule)
    r (name text, cron text, timezone text, kind text, queue text, payload jsonb, items jsonb, priority int, catch_up text);
  -- LOCK: the schedule
  select * into s from public.job_schedules x where x.name = wanted ->> 'name' for no key update;
  if not found then
    perform processor.check_name('kind', wanted ->> 'kind', '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$');
    insert into public.job_schedules (name, cron, timezone, kind, queue, payload, items, priority, catch_up, declared)
    select r.name, r.cron, r.timezone, r.kind, r.queue, r.payload, r.items, r.priority, r.catch_up, wanted
    from jsonb_populate_record(null::public.job_schedules, wanted) r
    on conflict on constraint job_schedules_pkey do nothing; -- another worker declared it a moment ago
  elsif s.declared <> wanted then
    -- a value that still is what was declared follows the new declaration; one that an operator set stays
    select coalesce(jsonb_object_agg(c.key, c.value), '{}') into kept
    from jsonb_each(to_jsonb(s)) c
    where wanted ? c.key and c.value is distinct from s.declared -> c.key;
    update public.job_schedules x
    set (cron, timezone, kind, queue, payload, items, priority, catch_up) = (
        select r.cron, r.timezone, r.kind, r.queue, r.payload, r.items, r.priority, r.catch_up
        from jsonb_populate_record(null::public.job_schedules, wanted || kept) r
      ),
      declared = wanted
    where x.name = s.name;
  end if;
end
$$;
comment on function processor.declare_schedule(jsonb) is
  'Write a handler''s declaration to job_schedules, keeping what an operator changed.';

create or replace function processor.declare_schedules(schedules jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  -- LOCK: schedules, by name
  perform processor.declare_schedule(d)
  from jsonb_array_elements(coalesce(nullif(declare_schedules.schedules, 'null'), '[]')) d
  order by d ->> 'name';
  -- a new worker may be able to compute what the others could not
  update public.job_schedules s set problem = null
  from (
    select x.name from public.job_schedules x where x.next_run_at is null and x.problem is not null
    order by x.name for no key update
  ) l
  where s.name = l.name;
end
$$;
comment on function processor.declare_schedules(jsonb) is
  'What register_worker does with the schedules that a worker declares; null: none.';
-- Schedules at work: what is due, which jobs that makes, and what operators can do and see.

create or replace function processor.next_schedule_at()
returns timestamptz
language plpgsql -- keeps its plan between calls
stable
set search_path = '', pg_temp
as $$
begin
  if exists (select from public.job_schedules s where not s.paused and s.next_run_at is null and s.problem is null) then
    return processor.now();
  end if;
  return (select min(s.next_run_at) from public.job_schedules s where not s.paused);
end
$$;
comment on function processor.next_schedule_at() is
  'When a worker should next call run_due_schedules(): the past means now, null means that there is nothing to do.';

create or replace function processor.scheduled_job(schedule public.job_schedules, tick timestamptz default null)
returns jsonb
language plpgsql
immutable
set search_path = '', pg_temp
as $$
declare
  tick_name constant text := replace(
    to_char(scheduled_job.tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000', '');
begin
  return jsonb_build_object(
    'kind', schedule.kind,
    'payload', schedule.payload,
    'items', schedule.items,
    'queue', schedule.queue,
    'priority', schedule.priority,
    'owner_id', schedule.owner_id,
    'idempotency_key', 'schedule:' || schedule.name || ':' || tick_name,
    'tags', array_remove(array['schedule:' || schedule.name, 'tick:' || tick_name], null)
  );
end
$$;
comment on function processor.scheduled_job(public.job_schedules, timestamptz) is
  'A schedule''s job as create_jobs takes it, for one tick; null: for no tick, as often as asked.';

create or replace function processor.plan_ticks(names text[], ticks jsonb, room int, failed jsonb)
returns table (name text, steps int, next_run_at timestamptz, problem text, jobs jsonb)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  planned int := 0;
  wanted boolean;
  s public.job_schedules;
  t record;
begin
  -- LOCK: the caller holds the schedules. Those that had a problem come first: if they still have it, that is found at once
  for s in select * from public.job_schedules x where x.name = any (plan_ticks.names) order by x.problem is null, x.name loop
    name := s.name;
    steps := 0;
    next_run_at := s.next_run_at;
    problem := null;
    jobs := '[]'::jsonb;
    for t in
      select (e.value ->> 'tick')::timestamptz as tick, (e.value ->> 'next')::timestamptz as next,
        left(e.value ->> 'problem', 500) as problem
      from jsonb_array_elements(plan_ticks.ticks) with ordinality e
      where e.value ->> 'name' = s.name
      order by e.ordinality
    loop
      -- another worker has moved it, somebody has changed it, or its time has not come
      exit when s.paused or next_run_at is distinct from t.tick or t.tick > moment;
      exit when t.next <= t.tick or (t.next is null and t.problem is null);
      wanted := t.tick is not null and not plan_ticks.failed ? s.name and case s.catch_up
        when 'all' then true
        when 'last' then t.next is null or t.next > moment
        when 'none' then t.tick >= moment - interval '1 minute'
      end;
      if wanted then
        exit when planned >= plan_ticks.room;
        planned := planned + 1;
        jobs := jobs || processor.scheduled_job(s, t.tick);
      end if;
      steps := steps + 1;
      next_run_at := t.next;
      problem := t.problem;
    end loop;
    if steps > 0 then
      return next;
    end if;
  end loop;
end
$$;
comment on function processor.plan_ticks(text[], jsonb, int, jsonb) is
  'How far each schedule goes with these ticks, and which jobs that makes, at most room of them in all: for every tick that has come, '
  'or the last, or those that are not late, as catch_up says; for those that failed (by name) none. Ticks that are not a schedule''s '
  'next one are left alone.';

create or replace function public.run_due_schedules(worker_id uuid, ticks jsonb default '[]')
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment timestamptz;
  names text[];
  room int := 100;
  plan jsonb;
  jobs jsonb;
  made jsonb := '[]'::jsonb;
  failed jsonb := '{}'::jsonb;
  first text;
  hint text;
begin
  if not exists (select from public.job_workers w where w.id = run_due_schedules.worker_id) then
    perform processor.fail('JQ011', format('unknown worker: %s', run_due_schedules.worker_id), '', 'Register again.');
  end if;
  if coalesce(jsonb_typeof(run_due_schedules.ticks), '') <> 'array' then
    perform processor.fail('JQ006', 'ticks must be an array', '',
      'Give [{"name", "tick", "next"}, …], or leave it out to learn what is due.');
  end if;
  perform processor.check_range('the number of ticks', jsonb_array_length(run_due_schedules.ticks), 0, 1000);
  -- LOCK: schedules, by name, waiting for none: one that another worker has in hand is run there. Then what create_jobs locks
  select array_agg(l.name) into names from (
    select s.name from public.job_schedules s
    where s.name in (select e.value ->> 'name' from jsonb_array_elements(run_due_schedules.ticks) e)
    order by s.name for no key update skip locked
  ) l;

  loop
    select coalesce(jsonb_agg(p), '[]') into plan from processor.plan_ticks(names, run_due_schedules.ticks, room, failed) p;
    select coalesce(jsonb_agg(j.value order by e.ordinality, j.ordinality), '[]'), min(e.value ->> 'name') into jobs, first
    from jsonb_array_elements(plan) with ordinality e
    cross join lateral jsonb_array_elements(e.value -> 'jobs') with ordinality j;
    exit when jobs = '[]';
    begin
      made := public.create_jobs(jobs);
      exit;
    exception when others then
      -- what passes by itself is tried again, by the caller or at the next call
      if left(sqlstate, 2) in ('08', '40', '53', '55', '57', '58', 'XX') then
        raise;
      end if;
      -- all or none: so one alone, which shows whether the problem is its own. If so the others go on without it, else they
      -- follow in the next calls
      if jsonb_array_length(jobs) > 1 then
        room := 1;
      else
        get stacked diagnostics hint = pg_exception_hint;
        failed := failed || jsonb_build_object(first, concat_ws('. ', sqlerrm, nullif(hint, '')));
        room := 100;
      end if;
    end;
  end loop;

  moment := processor.now();
  update public.job_schedules s
  set next_run_at = p.next_run_at,
    last_run_at = case when p.job_id is null then s.last_run_at else moment end,
    last_job_id = coalesce(p.job_id, s.last_job_id),
    problem = nullif(concat_ws('. ', p.problem, failed ->> s.name), '')
  from (
    select e.value ->> 'name' as name, (e.value ->> 'next_run_at')::timestamptz as next_run_at, e.value ->> 'problem' as problem,
      l.last, (made -> (l.last - 1) ->> 'id')::uuid as job_id
    from jsonb_array_elements(plan) with ordinality e
    cross join lateral ( -- its last job is the one up to which its own and those before it reach
      select case when e.value -> 'jobs' <> '[]' then sum(jsonb_array_length(b.value -> 'jobs')) end::int as last
      from jsonb_array_elements(plan) with ordinality b where b.ordinality <= e.ordinality
    ) l
  ) p
  where s.name = p.name;

  return jsonb_build_object(
    'now', moment,
    'created', coalesce((select jsonb_agg(m -> 'id') from jsonb_array_elements(made) m where (m -> 'created')::boolean), '[]'),
    'moved', jsonb_array_length(plan),
    'problems', coalesce((
      select jsonb_object_agg(s.name, s.problem)
      from jsonb_array_elements(plan) e join public.job_schedules s on s.name = e.value ->> 'name'
      where s.problem is not null
    ), '{}'),
    'next_at', processor.next_schedule_at(),
    'due', coalesce((
      select jsonb_agg(jsonb_build_object(
        'name', d.name, 'cron', d.cron, 'timezone', d.timezone, 'tick', d.next_run_at,
        'after', case when d.next_run_at is null then moment
          when d.catch_up = 'none' then greatest(d.next_run_at, moment - interval '1 minute')
          else d.next_run_at end
      ))
      from (
        select * from public.job_schedules s
        where not s.paused and (s.next_run_at <= moment or (s.next_run_at is null and s.problem is null))
        order by s.next_run_at nulls first, s.name
        limit 100
      ) d
    ), '[]')
  );
end
$$;
comment on function public.run_due_schedules(uuid, jsonb) is
  'Make the jobs whose time has come. ticks: [{"name", "tick", "next", "problem"}], in order: for a schedule whose next_run_at is tick '
  '(null: not computed yet) the next time is next, or cannot be computed because of problem. Returns what was made, how many schedules '
  'moved, why some made no job, what is due and must be computed first (the first time after "after", and on until now), and when '
  'to come back.';

create or replace function processor.find_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules;
begin
  -- LOCK: the schedule
  select * into s from public.job_schedules x where x.name = find_schedule.name for no key update;
  if not found then
    perform processor.fail('JQ006', format('unknown schedule: %s', coalesce(left(find_schedule.name, 100), 'null')), '',
      'See select schedule from processor.schedule_health.');
  end if;
  return s;
end
$$;
comment on function processor.find_schedule(text) is 'Lock a schedule, or raise JQ006.';

create or replace function processor.pause_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules := processor.find_schedule(pause_schedule.name);
begin
  update public.job_schedules x set paused = true where x.name = s.name returning * into s;
  return s;
end
$$;
comment on function processor.pause_schedule(text) is
  'The schedule makes no more jobs; those that it made go on: select * from processor.pause_schedule(''nightly'').';

create or replace function processor.resume_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules := processor.find_schedule(resume_schedule.name);
begin
  update public.job_schedules x set paused = false where x.name = s.name returning * into s;
  return s;
end
$$;
comment on function processor.resume_schedule(text) is
  'The end of pause_schedule(): it goes on with the next time to come, what was left out is not caught up.';

create or replace function processor.run_schedule(name text)
returns public.jobs
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules;
  job public.jobs;
begin
  -- LOCK: the schedule, then what add_jobs locks
  s := processor.find_schedule(run_schedule.name);
  -- internal: an operator who is a signed-in user makes jobs of others, too
  select a.job_id into job.id from processor.add_jobs(jsonb_build_array(processor.scheduled_job(s)), internal => true) a;
  select * into job from public.jobs j where j.id = job.id;
  update public.job_schedules x
  set last_run_at = processor.now(), last_job_id = job.id, problem = case when x.next_run_at is null then x.problem end
  where x.name = s.name;
  return job;
end
$$;
comment on function processor.run_schedule(text) is
  'Make a job of the schedule now, once more, paused or not; the plan stays: select id from processor.run_schedule(''nightly'').';

create or replace view processor.schedule_health with (security_invoker = on) as
with moment as materialized (select processor.now() as now),
judged as (
  select s.*, m.now,
    case
      when s.paused then 'paused'
      when s.problem is not null then 'problem'
      when s.next_run_at < m.now - interval '1 minute' then 'overdue'
      when s.next_run_at is null and s.created_at < m.now - interval '5 minutes' then 'overdue'
      when s.next_run_at is null then 'new'
      else 'ok'
    end as state
  from moment m cross join public.job_schedules s
)
select s.name as schedule, s.state,
  case s.state
    when 'paused' then format('resume_schedule(''%s'') lets it go on', s.name)
    when 'problem' then s.problem || case when s.next_run_at is null then ' (until somebody changes it, or a worker starts)' else '' end
    when 'overdue' then 'no worker has run it: see whether one is alive in worker_health'
    when 'new' then 'a worker computes its next time at its next heartbeat'
  end as why,
  s.kind, s.queue, s.cron, s.timezone, s.next_run_at, s.next_run_at - s.now as next_in,
  s.last_run_at, s.last_job_id, j.status as last_status, s.catch_up, s.declared <> '{}' as declared
from judged s
left join public.jobs j on j.id = s.last_job_id;
comment on view processor.schedule_health is
  'What runs when, and what does not: one row per schedule. select * from processor.schedule_health order by next_run_at.';
comment on column processor.schedule_health.schedule is 'Its name.';
comment on column processor.schedule_health.state is
  'ok, paused, problem (it made no job, or cannot run at all), overdue (no worker looks), new (not computed yet).';
comment on column processor.schedule_health.why is 'The same in words, with what to do; null where all is well.';
comment on column processor.schedule_health.kind is 'What its jobs are.';
comment on column processor.schedule_health.queue is 'Where they run; null: where the kind does.';
comment on column processor.schedule_health.cron is 'Its plan.';
comment on column processor.schedule_health.timezone is 'Whose clock the plan follows.';
comment on column processor.schedule_health.next_run_at is 'When it makes its next job.';
comment on column processor.schedule_health.next_in is 'In how long that is; negative: it is late.';
comment on column processor.schedule_health.last_run_at is 'When it last made a job.';
comment on column processor.schedule_health.last_job_id is 'That job.';
comment on column processor.schedule_health.last_status is 'What became of it; null: none yet, or pruned.';
comment on column processor.schedule_health.catch_up is 'What happens to times at which no worker was alive.';
comment on column processor.schedule_health.declared is 'Whether a handler declares it; false: somebody inserted it.';
-- A worker's life: register, heartbeat (which also rescues), deregister.

create or replace function processor.declare_kind(kind jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
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
  perform processor.check_transport(register_worker.worker ->> 'transport');
  perform processor.declare_schedules(register_worker.worker -> 'schedules');
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

  insert into public.job_workers as w (id, name, host, pid, version, queues, kinds, slots, feed, lease, lease_expires_at,
    transport)
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
    processor.now() + l.lease,
    coalesce(register_worker.worker ->> 'transport', 'postgres_changes')
  from (select make_interval(secs => (register_worker.worker ->> 'lease_seconds')::double precision) as lease) l
  on conflict on constraint job_workers_pkey do update set
    heartbeat_at = processor.now(), lease_expires_at = excluded.lease_expires_at, lease = excluded.lease,
    queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, feed = excluded.feed, transport = excluded.transport
  returning * into w;
  return jsonb_build_object('now', processor.now(), 'lease_expires_at', w.lease_expires_at, 'schema_version', processor.schema_version());
end
$$;
comment on function public.register_worker(jsonb) is
  'Enter a worker and its handlers'' declarations. The worker chooses its id (a uuid), so asking twice is harmless.';

create or replace function processor.rescue_jobs(max_jobs int default 100)
returns int
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  seen uuid[];
  concerned uuid[];
  ids uuid[];
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

  -- LOCK: accounts, then jobs with their ancestors; one that somebody else has in hand is left to the next heartbeat
  perform 1 from public.credit_accounts a
  where a.owner_id in (select j.owner_id from public.jobs j where j.id = any (seen))
  order by a.owner_id for no key update;
  with recursive family as (
    select j.id, j.parent_id from public.jobs j where j.id = any (seen)
    union
    select p.id, p.parent_id from family f join public.jobs p on p.id = f.parent_id
  )
  select array_agg(f.id) into concerned from family f;
  select array_agg(l.id) into ids from (
    select j.id from public.jobs j where j.id = any (concerned) order by j.id for no key update skip locked
  ) l;
  select array_agg(j.id) into ids
  from public.jobs j
  left join public.job_workers w on w.id = j.worker_id
  where j.id = any (ids) and j.id = any (seen) and j.status = 'processing' and (w.id is null or w.lease_expires_at < moment)
    and (j.parent_id is null or cardinality(ids) = cardinality(concerned));

  perform processor.conclude(array(
    select row(j.id,
      case when j.cancel_requested_at is not null then 'cancelled'
        when not g.guilty then 'pending'
        when j.items_done > 0 then 'partial'
        else 'failed' end,
      case when j.cancel_requested_at is null and not g.guilty then moment end,
      null,
      case when j.cancel_requested_at is not null then 'CANCELLED' when g.guilty then 'WORKER_CRASHED' end,
      case when j.cancel_requested_at is not null then 'cancelled while its worker was lost'
        when g.guilty then format('%s workers in a row were lost while running it', j.crashes + 1) end,
      null,
      jsonb_build_object('code', 'LEASE_LOST', 'message', format('worker %s stopped renewing its lease', j.worker_id)),
      false,
      j.cancel_requested_at is null
    )::processor.verdict
    from public.jobs j
    cross join lateral (
      -- the second time it is the cause, unless another job that has lost a worker was there too: then the third time, because
      -- since then they ran apart (pick_suspect)
      select j.crashes > 1 or (j.crashes = 1 and not exists (
        select from public.jobs o
        where o.worker_id = j.worker_id and o.status = 'processing' and o.crashes > 0 and o.id <> j.id
      )) as guilty
    ) g
    where j.id = any (ids) order by j.id
  ));
  return coalesce(cardinality(ids), 0);
end
$$;
comment on function processor.rescue_jobs(int) is
  'Take jobs from workers whose lease is over: pending again, or ended if they are what workers are lost by (see jobs.crashes). '
  'Every heartbeat calls it; call it yourself when no worker is alive.';

create or replace function public.heartbeat_worker(worker_id uuid, running uuid[] default '{}', feed text default 'polling')
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
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
    select j.id, j.attempt, j.started_at,
      -- a child that somebody had in hand when its parent ended was not asked to stop
      j.cancel_requested_at is not null or p.status in ('partial', 'failed', 'cancelled') as unwanted
    from public.jobs j left join public.jobs p on p.id = j.parent_id
    where j.worker_id = w.id and j.status = 'processing'
  )
  select jsonb_build_object(
    'now', processor.now(),
    'heartbeat_at', w.heartbeat_at,
    'lease_expires_at', w.lease_expires_at,
    'next_due_at', processor.next_due_at(w),
    'next_schedule_at', processor.next_schedule_at(),
    'next_rescue_at', (
      select min(o.lease_expires_at) from public.job_workers o
      where o.id <> w.id and o.lease_expires_at >= w.heartbeat_at
        and exists (select from public.jobs j where j.worker_id = o.id and j.status = 'processing')
    ),
    'draining', w.draining,
    'inbox', w.inbox,
    'rescued', rescued,
    'cancel', coalesce((select jsonb_agg(o.id) from owned o where o.unwanted), '[]'),
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
  'Renew the lease, rescue what dead workers held, and learn: jobs to cancel, jobs lost, jobs forgotten, when the next one is due, '
  'and when the next of the other workers that hold jobs would be lost.';

create or replace function public.deregister_worker(worker_id uuid)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
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
-- Claiming: who gets which job, and when the next one is due. Queues without limits are claimed from side by side; the claims
-- of a queue with a limit take turns, by the lock on its row.

create or replace function processor.retried(job_id uuid)
returns uuid[]
language sql
stable
set search_path = '', pg_temp
as $$
  with recursive line (id, retry_of, place) as (
    select j.id, case when j.idempotency_key is null then j.retry_of end, 0
    from public.jobs j where j.id = retried.job_id
    union all
    select o.id, case when o.idempotency_key is null then o.retry_of end, l.place + 1
    from line l join public.jobs o on o.id = l.retry_of where l.place < 100
  )
  select array_agg(l.id) from line l
$$;
comment on function processor.retried(uuid) is
  'A job and the jobs whose open parts it repeats; what one has done that is repeated with everything is not taken over.';

create or replace function processor.open_items(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(i), '[]')
    from (
      select i.key, i.position, i.payload, i.attempts
      from public.job_items i where i.job_id = open_items.job_id and i.status = 'pending' order by i.position
    ) i
  );
end
$$;
comment on function processor.open_items(uuid) is 'The items of a job that are still to do, as its worker gets them.';

create or replace function processor.done_items(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(d), '[]')
    from (
      select i.key, i.position,
        case when sum(octet_length(i.result::text)) over (order by i.position) <= 4194304 then i.result end as result
      from public.job_items i where i.job_id = done_items.job_id and i.status = 'completed' order by i.position
    ) d
  );
end
$$;
comment on function processor.done_items(uuid) is
  'The items of a job that earlier attempts did, as its worker gets them: results up to 4 MiB, the rest as null.';

create or replace function processor.children_for(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(n), '[]')
    from (
      select c.id, c.kind, c.status, c.error_code, c.error_message,
        case when sum(octet_length(c.result::text)) over (order by c.id) <= 4194304 then c.result end as result
      from public.jobs c
      where c.parent_id = any (processor.retried(children_for.job_id))
        and (c.parent_id = children_for.job_id or c.status = 'completed') -- the others were repeated with it
      order by c.id
    ) n
  );
end
$$;
comment on function processor.children_for(uuid) is
  'The children of a job, with those that completed under the jobs it is a retry of, as its worker gets them: results up to 4 MiB, '
  'the rest as null.';

create or replace function processor.checkpoints_for(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(s), '[]')
    from (
      select c.name,
        case when sum(octet_length(c.result::text)) over before <= 4194304 then c.result end as result,
        sum(octet_length(c.result::text)) over before > 4194304 as left_out
      from public.job_checkpoints c where c.job_id = checkpoints_for.job_id
      window before as (order by c.created_at, c.name)
      order by c.created_at, c.name
    ) s
  );
end
$$;
comment on function processor.checkpoints_for(uuid) is
  'The checkpoints of a job, as its worker gets them: results up to 4 MiB, the rest as null and marked left_out; read_checkpoint() '
  'has them.';

create or replace function processor.claimed(ids uuid[])
returns json
language plpgsql -- keeps its plan between calls, which is most of what such a function costs
stable
set search_path = '', pg_temp
set enable_sort = on -- claim_jobs has it off
as $$
begin
  -- json, not jsonb, and rows, not json_build_object: a third of the time. What few jobs have is looked for by functions: even
  -- a look that is not taken costs its share of a statement
  return coalesce((
    select json_agg(c)
    from (
      select j.id, j.queue, j.kind, j.owner_id, j.priority, j.payload, j.attempt, j.failures, j.max_attempts, j.run_at, j.created_at,
        j.tags, extract(epoch from coalesce(j.timeout, q.timeout)) as timeout_seconds,
        j.cancel_requested_at is not null as cancel_requested, j.items_total, j.items_done, j.parent_id,
        case when j.items_total = 0 then '[]' else processor.open_items(j.id) end as items,
        case when j.items_done = 0 then '[]' else processor.done_items(j.id) end as done,
        case when j.children_total = 0 and j.retry_of is null then '[]' else processor.children_for(j.id) end as children,
        -- what is new and repeats nothing has none
        case when j.attempt = 1 and j.retry_of is null then '[]' else processor.checkpoints_for(j.id) end as checkpoints
      from public.jobs j
      left join public.job_queues q on q.name = j.queue
      where j.id = any (claimed.ids)
      order by j.priority desc, j.run_at, j.id
    ) c
  ), '[]');
end
$$;
comment on function processor.claimed(uuid[]) is
  'Jobs as a worker gets them: each with its items that are still to do, the results of those that earlier attempts did, and its '
  'children, with those that completed under the jobs it is a retry of, and its checkpoints; results of each up to 4 MiB a job, the '
  'rest as null. Of checkpoints those are marked left_out: read_checkpoint() has them.';

create or replace function processor.tokens(q public.job_queues, moment timestamptz)
returns double precision
language sql
stable
set search_path = '', pg_temp
as $$
  -- a full bucket to begin with, and never more than that
  select coalesce((
    select least(q.rate_limit,
      t.tokens + q.rate_limit * greatest(0, extract(epoch from tokens.moment - t.counted_at)) / extract(epoch from q.rate_period))
    from processor.queue_tokens t where t.queue = q.name
  ), q.rate_limit)
$$;
comment on function processor.tokens(public.job_queues, timestamptz) is
  'How many jobs of a queue with a rate_limit may start at a moment; with a fraction, so that one knows when the next may.';

create or replace function processor.token_due_in(q public.job_queues, moment timestamptz)
returns interval
language sql
stable
set search_path = '', pg_temp
as $$
  -- up to the next microsecond: a claim at that time finds the token
  select interval '1 microsecond' * ceil(greatest(0, 1 - processor.tokens(q, token_due_in.moment))
    * extract(epoch from q.rate_period)::double precision * 1000000 / q.rate_limit)
$$;
comment on function processor.token_due_in(public.job_queues, timestamptz) is
  'How long until the next job of a queue with a rate_limit may start; 0: now.';

create or replace function processor.take_tokens(q public.job_queues, moment timestamptz, how_many int)
returns void
language sql
set search_path = '', pg_temp
as $$
  insert into processor.queue_tokens (queue, tokens, counted_at)
  values (q.name, processor.tokens(q, take_tokens.moment) - take_tokens.how_many, take_tokens.moment)
  on conflict (queue) do update set tokens = excluded.tokens, counted_at = excluded.counted_at
$$;
comment on function processor.take_tokens(public.job_queues, timestamptz, int) is
  'Take tokens from a queue''s bucket. LOCK: the caller holds the queue.';

create or replace function processor.room(q public.job_queues, moment timestamptz, wanted int)
returns int
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return greatest(0, least(room.wanted,
    q.max_processing - case when q.max_processing is not null then (
      select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
    ) end,
    case when q.rate_limit is not null then floor(processor.tokens(q, room.moment) + 1e-12) end -- sums of fractions are not exact
  )::int);
end
$$;
comment on function processor.room(public.job_queues, timestamptz, int) is
  'How many jobs of a queue may be claimed at a moment, at most wanted: what max_processing and rate_limit leave.';

create or replace function processor.heads(queue text, kinds text[], below int)
returns table (kind text, priority int, run_at timestamptz, id uuid)
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- one look a kind: what this worker has no handler for is not read, however much of it waits
  return query
  with firsts as materialized (
    select k.kind, f.priority, f.run_at, f.id
    from unnest(heads.kinds) k (kind)
    cross join lateral (
      select j.priority, j.run_at, j.id from public.jobs j
      where j.queue = heads.queue and j.kind = k.kind and j.status = 'pending' and j.priority < heads.below and j.crashes < 2
      order by j.priority desc, j.run_at, j.id limit 1
    ) f
  )
  select f.kind, f.priority, f.run_at, f.id from firsts f where f.priority = (select max(x.priority) from firsts x);
end
$$;
comment on function processor.heads(text, text[], int) is
  'The first pending job of each kind in a queue, at the highest priority below one that has any: where to begin to read. Until a '
  'vacuum, what was claimed before still lies ahead of them in the index. Suspects are passed over: see pick_suspect().';

create or replace function processor.pick_in_order(queue text, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  ids uuid[] := '{}'::uuid[];
  picked uuid[];
begin
  -- priority by priority: jobs of a high one whose time has not come are not read, however many
  loop
    -- LOCK: jobs, waiting for none; with several kinds a few more than are taken, until the claim commits
    with firsts as materialized ( -- as in heads(), which would be a statement of its own
      select k.kind, f.priority, f.run_at, f.id
      from unnest(pick_in_order.kinds) k (kind)
      cross join lateral (
        select j.priority, j.run_at, j.id from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    )
    select array_agg(p.id) filter (where p.id is not null), max(p.priority) into picked, level
    from (
      select f.id, h.priority
      from firsts h
      left join lateral (
        select j.id, j.run_at from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = h.kind and j.status = 'pending' and j.priority = h.priority
          and (j.run_at, j.id) >= (h.run_at, h.id) and j.run_at <= pick_in_order.moment and j.crashes < 2
        order by j.run_at, j.id
        limit pick_in_order.how_many - cardinality(ids)
        for no key update skip locked
      ) f on true
      where h.priority = (select max(x.priority) from firsts x)
      order by f.run_at, f.id
      limit pick_in_order.how_many - cardinality(ids)
    ) p;
    ids := ids || picked;
    exit when level is null or cardinality(ids) >= pick_in_order.how_many;
    exit when not exists ( -- asked apart, as it costs less than to find nothing above
      select from unnest(pick_in_order.kinds) k (kind)
      cross join lateral (
        select from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    );
  end loop;
  return ids;
end
$$;
comment on function processor.pick_in_order(text, text[], timestamptz, int) is
  'Lock due jobs of a queue: the highest priority first, then the longest due.';

create or replace function processor.due_of_owner(
  q public.job_queues, owner_id uuid, level int, kinds text[], moment timestamptz, how_many int
)
returns uuid[]
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- a range of one owner, in the order of owners: so it can be nothing but jobs_turns_idx that is read, with or without statistics
  return case when due_of_owner.owner_id is null then array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id is null and j.priority = due_of_owner.level
      and j.run_at <= due_of_owner.moment and j.kind = any (due_of_owner.kinds) and j.crashes < 2
    order by j.owner_id, j.run_at, j.id
    limit due_of_owner.how_many
  ) else array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id between due_of_owner.owner_id and due_of_owner.owner_id
      and j.priority = due_of_owner.level and j.run_at <= due_of_owner.moment and j.kind = any (due_of_owner.kinds) and j.crashes < 2
    order by j.owner_id, j.run_at, j.id
    limit due_of_owner.how_many
  ) end;
end
$$;
comment on function processor.due_of_owner(public.job_queues, uuid, int, text[], timestamptz, int) is
  'Due jobs of one priority of an owner, or of nobody: the longest due first.';

create or replace function processor.priority_below(q public.job_queues, owner_id uuid, level int)
returns int
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- see due_of_owner()
  if priority_below.owner_id is null then
    return (select j.priority from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id is null and j.priority < priority_below.level
      order by j.owner_id, j.priority desc limit 1);
  end if;
  return (select j.priority from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id between priority_below.owner_id and priority_below.owner_id
      and j.priority < priority_below.level
    order by j.owner_id, j.priority desc limit 1);
end
$$;
comment on function processor.priority_below(public.job_queues, uuid, int) is
  'The next lower priority among the pending jobs of an owner, or of nobody.';

create or replace function processor.next_in_turn(q public.job_queues, kinds text[], moment timestamptz, how_many int)
returns table (id uuid, owner_id uuid)
language plpgsql
stable
set search_path = '', pg_temp
set enable_sort = off -- see claim_jobs
as $$
#variable_conflict use_column
declare
  last constant uuid := (select t.owner_id from processor.queue_turns t where t.queue = q.name);
  running jsonb;
  here uuid := last;
  round int := case when last is null then 2 else 1 end; -- 1: the owners after the last one; then nobody; 2: those from the first on
  alone boolean := false; -- whether the jobs of nobody were looked at
  who uuid;
  level int;
  theirs int;
  room int;
  due uuid[];
  ids uuid[] := '{}'::uuid[];
  owners uuid[] := '{}'::uuid[];
  turns int[] := '{}'::int[];
  first_turns int := 0;
  exhausted boolean := false;
  full_owners uuid[];
begin
  select coalesce(jsonb_object_agg(coalesce(r.owner_id::text, ''), r.count), '{}') into running
  from (
    select j.owner_id, count(*) from public.jobs j where j.queue = q.name and j.status = 'processing' group by 1
  ) r;

  -- From owner to owner along jobs_turns_idx, in a ring: as many looks as owners, however many jobs. It ends when so many are found
  -- that nobody can have less running, and after 1,000 owners.
  for visited in 1..1000 loop
    if here is null then
      select j.owner_id, j.priority into who, level from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id is not null
      order by j.owner_id, j.priority desc limit 1;
    else
      select j.owner_id, j.priority into who, level from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id > here
      order by j.owner_id, j.priority desc limit 1;
    end if;
    if found and (round = 1 or last is null or who <= last) then
      here := who;
    elsif not alone then -- nobody comes after the last owner
      alone := true;
      who := null;
      level := processor.priority_below(q, null, 1001);
      here := null;
      round := case when last is null then 3 else 2 end;
    else
      exhausted := true;
      exit;
    end if;

    theirs := coalesce((running ->> coalesce(who::text, ''))::int, 0);
    room := case when who is null then next_in_turn.how_many else least(next_in_turn.how_many, q.max_processing_per_owner - theirs) end;
    while room > 0 and level is not null loop
      due := processor.due_of_owner(q, who, level, next_in_turn.kinds, next_in_turn.moment, room);
      for place in 1..cardinality(due) loop
        theirs := theirs + 1; -- an owner's nth running job competes with the others' nth
        ids := ids || due[place];
        owners := owners || who;
        turns := turns || theirs;
        first_turns := first_turns + (theirs = 1)::int;
      end loop;
      room := room - cardinality(due);
      level := case when room > 0 then processor.priority_below(q, who, level) end;
    end loop;
    exhausted := round = 3;
    exit when exhausted or first_turns >= next_in_turn.how_many;
  end loop;

  if ids = '{}' and not exhausted then -- of so many owners none has anything due: look for what is due instead
    select coalesce(array_agg(r.key::uuid) filter (where r.value::int >= q.max_processing_per_owner and r.key <> ''), '{}') into full_owners
    from jsonb_each_text(running) r;
    level := 1001;
    loop
      select max(h.priority) into level from processor.heads(q.name, next_in_turn.kinds, level) h;
      exit when level is null;
      return query
      select j.id, j.owner_id from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.priority = level and j.run_at <= next_in_turn.moment
        and j.kind = any (next_in_turn.kinds) and (j.owner_id is null or j.owner_id <> all (full_owners)) and j.crashes < 2
      order by j.run_at, j.id limit 1;
      exit when found;
    end loop;
    return;
  end if;

  return query
  select f.id, f.owner_id
  from unnest(ids, owners, turns) with ordinality f (id, owner_id, turn, place)
  order by f.turn, f.place
  limit next_in_turn.how_many;
end
$$;
comment on function processor.next_in_turn(public.job_queues, text[], timestamptz, int) is
  'Whose due jobs are next in a queue with max_processing_per_owner: of those who have least running, in turns. Nothing is locked.';

create or replace function processor.pick_in_turns(q public.job_queues, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  chosen uuid[];
  owners uuid[];
begin
  -- LOCK: the caller holds the queue, so nobody else picks from it; jobs, waiting for none
  select array_agg(n.id order by n.ordinality), array_agg(n.owner_id order by n.ordinality) into chosen, owners
  from processor.next_in_turn(q, pick_in_turns.kinds, pick_in_turns.moment, pick_in_turns.how_many) with ordinality n;
  if chosen is null then
    return '{}'::uuid[];
  end if;
  insert into processor.queue_turns as t (queue, owner_id) values (q.name, owners[cardinality(owners)])
  on conflict (queue) do update set owner_id = excluded.owner_id where t.owner_id is distinct from excluded.owner_id;
  return array(
    select j.id from public.jobs j where j.id = any (chosen) and j.status = 'pending' for no key update skip locked
  );
end
$$;
comment on function processor.pick_in_turns(public.job_queues, text[], timestamptz, int) is
  'Lock due jobs of a queue with max_processing_per_owner, and note whose turn it was.';

create or replace function processor.may_take_suspect(worker_id uuid)
returns boolean
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return exists (select from public.jobs j where j.status = 'pending' and j.crashes > 1)
    and not exists (
      select from public.jobs j where j.worker_id = may_take_suspect.worker_id and j.status = 'processing' and j.crashes > 1
    );
end
$$;
comment on function processor.may_take_suspect(uuid) is
  'Whether any job waits that was lost with two workers, and the worker holds no such job.';

create or replace function processor.pick_suspect(q public.job_queues, kinds text[], moment timestamptz)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- LOCK: a job, waiting for none
  return array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.crashes > 1 and j.kind = any (pick_suspect.kinds)
      and j.run_at <= pick_suspect.moment
      and (q.max_processing_per_owner is null or j.owner_id is null or q.max_processing_per_owner > (
        select count(*) from public.jobs r where r.queue = q.name and r.status = 'processing' and r.owner_id = j.owner_id
      ))
    order by j.priority desc, j.run_at, j.id
    limit 1
    for no key update skip locked
  );
end
$$;
comment on function processor.pick_suspect(public.job_queues, text[], timestamptz) is
  'Lock the next job that was lost with two workers and not found to be the cause, as another such job was there. A worker runs '
  'one of them at a time, so the next loss tells.';

create or replace function processor.next_due_at(worker public.job_workers, queues text[] default null)
returns timestamptz
language plpgsql
set search_path = '', pg_temp
set enable_sort = off -- see claim_jobs
as $$
#variable_conflict use_column
declare
  served public.job_queues[];
begin
  if worker.draining then
    return null;
  end if;
  select array_agg(x) into served
  from public.job_queues x where x.name = any (coalesce(next_due_at.queues, worker.queues)) and not x.paused;
  return processor.next_due_in(worker, served, processor.may_take_suspect(worker.id));
end
$$;
comment on function processor.next_due_at(public.job_workers, text[]) is
  'When this worker''s next claim makes sense: the past means now, null means nothing is pending for it.';

create or replace function processor.next_due_in(worker public.job_workers, served public.job_queues[], suspects boolean)
returns timestamptz
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  q public.job_queues;
  soonest timestamptz;
  due timestamptz;
begin
  if next_due_in.served is null then
    return null;
  end if;
  foreach q in array next_due_in.served loop
    if q.max_processing is not null then -- a queue that is full makes itself heard when something of it ends
      continue when q.max_processing <= (
        select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
      );
    end if;
    due := processor.first_run_at(q.name, worker.kinds, moment);
    if q.max_processing_per_owner is not null and due <= moment then
      -- whoever has something due may have as much running as may be
      if not exists (select from processor.next_in_turn(q, worker.kinds, moment, 1)) then
        due := processor.first_due_at(q.name, worker.kinds, moment);
      end if;
    end if;
    if next_due_in.suspects and processor.pick_suspect(q, worker.kinds, moment) <> '{}' then
      due := moment;
    end if;
    if q.rate_limit is not null and due is not null then
      due := greatest(due, moment + processor.token_due_in(q, moment));
    end if;
    soonest := least(soonest, due);
  end loop;
  return soonest;
end
$$;
comment on function processor.next_due_in(public.job_workers, public.job_queues[], boolean) is
  'The same of these queues, which are not paused; suspects: whether the worker may take a job that was lost with two workers.';

create or replace function processor.first_run_at(queue text, kinds text[], moment timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  soonest timestamptz;
  due timestamptz;
begin
  loop
    with firsts as materialized ( -- see pick_in_order()
      select f.priority, f.run_at
      from unnest(first_run_at.kinds) k (kind)
      cross join lateral (
        select j.priority, j.run_at from public.jobs j
        where j.queue = first_run_at.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    )
    select max(f.priority), min(f.run_at) filter (where f.priority = (select max(x.priority) from firsts x))
    into level, due
    from firsts f;
    exit when level is null;
    soonest := least(soonest, nullif(due, processor.never()));
    exit when soonest <= first_run_at.moment;
  end loop;
  return soonest;
end
$$;
comment on function processor.first_run_at(text, text[], timestamptz) is
  'The first run_at among a queue''s pending jobs of these kinds, or one that has passed at that moment; null: none.';

create or replace function processor.first_due_at(queue text, kinds text[], after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  soonest timestamptz;
  due timestamptz;
begin
  loop
    select max(h.priority), min(coalesce(case when h.run_at > first_due_at.after then h.run_at else (
        select j.run_at from public.jobs j
        where j.queue = first_due_at.queue and j.kind = h.kind and j.status = 'pending' and j.priority = h.priority
          and j.run_at > first_due_at.after and j.crashes < 2
        order by j.run_at limit 1
      ) end, processor.never()))
    into level, due
    from processor.heads(first_due_at.queue, first_due_at.kinds, level) h;
    exit when level is null;
    soonest := least(soonest, nullif(due, processor.never()));
    exit when soonest <= processor.now();
  end loop;
  return soonest;
end
$$;
comment on function processor.first_due_at(text, text[], timestamptz) is
  'The first run_at after a moment among a queue''s pending jobs of these kinds, or one that has passed; null: none.';

create or replace function public.claim_jobs(worker_id uuid, request_id uuid, queues text[] default null, "limit" int default 1)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- a claim is too short for compiling to pay, whatever the planner's estimate
set enable_sort = off -- without statistics the planner would sort all that is pending instead of reading jobs_pending_idx
as $$
#variable_conflict use_column
-- "limit" is a keyword and the name that callers know: @plpgsql_check_options: other_warnings = off
declare
  moment timestamptz;
  w public.job_workers;
  served public.job_queues[];
  limited boolean;
  q public.job_queues;
  ids uuid[];
  picked uuid[];
  room int;
  suspects boolean;
begin
  if claim_jobs."limit" not between 1 and 1000 then
    perform processor.check_range('limit', claim_jobs."limit", 1, 1000);
  end if;
  -- in random order: no queue always comes first
  select array_agg(x order by random()),
    bool_or(coalesce(x.max_processing, x.rate_limit, x.max_processing_per_owner) is not null)
  into served, limited
  from public.job_queues x
  where not x.paused and x.name = any (coalesce(claim_jobs.queues, (
    select w.queues from public.job_workers w where w.id = claim_jobs.worker_id
  )));
  if limited then
    -- LOCK: queues with a limit, by name: their claims take turns; all others run side by side
    perform 1 from public.job_queues x
    where x.name in (select u.name from unnest(served) u)
      and coalesce(x.max_processing, x.rate_limit, x.max_processing_per_owner) is not null
    order by x.name for no key update;
    select array_agg(x order by random()) into served
    from public.job_queues x where x.name in (select u.name from unnest(served) u) and not x.paused;
  end if;
  -- LOCK: the worker: a repeated request waits here for the first. No job is waited for below, so whoever
  -- locks a job before a worker cannot meet us in a circle
  select * into w from public.job_workers x where x.id = claim_jobs.worker_id for no key update;
  moment := processor.now();
  if not found or w.lease_expires_at < moment then
    perform processor.fail('JQ011', format('worker %s is unknown or its lease is over', claim_jobs.worker_id), '',
      'Send a heartbeat, or register again.');
  end if;

  -- a repeated request: its answer was lost, the jobs are the same
  select array_agg(j.id), exists (select from public.jobs x where x.status = 'pending' and x.crashes > 1) into ids, suspects
  from public.jobs j
  where j.worker_id = w.id and j.status = 'processing' and j.claim_id = claim_jobs.request_id;
  suspects := suspects and processor.may_take_suspect(w.id);

  if ids is null and not w.draining and served is not null then
    ids := '{}'::uuid[];
    foreach q in array served loop
      room := claim_jobs."limit" - cardinality(ids);
      if coalesce(q.max_processing, q.rate_limit) is not null then
        room := processor.room(q, moment, room);
      end if;
      continue when room = 0;
      picked := case when suspects then processor.pick_suspect(q, w.kinds, moment) else '{}' end;
      suspects := suspects and picked = '{}';
      if q.max_processing_per_owner is null then
        picked := picked || processor.pick_in_order(q.name, w.kinds, moment, room - cardinality(picked));
      elsif picked = '{}' then -- else its owner has one more than is known until it is written
        picked := processor.pick_in_turns(q, w.kinds, moment, room);
      end if;
      if q.rate_limit is not null and picked <> '{}' then
        perform processor.take_tokens(q, moment, cardinality(picked));
      end if;
      ids := ids || picked;
    end loop;
    if ids <> '{}' then
      update public.jobs j
      set status = 'processing', worker_id = w.id, claim_id = claim_jobs.request_id, attempt = j.attempt + 1,
        started_at = moment, updated_at = moment
      where j.id = any (ids);
    end if;
  end if;

  return json_build_object(
    'now', processor.now(),
    'jobs', case when ids <> '{}' then processor.claimed(ids) else '[]' end,
    'next_due_at', case when not w.draining then processor.next_due_in(w, served, suspects) end
  );
end
$$;
comment on function public.claim_jobs(uuid, uuid, text[], int) is
  'Take up to "limit" due jobs of the worker''s kinds: highest priority first, then the longest due; owners in turns where the queue '
  'limits how many of an owner may run. The same request_id again returns the same jobs. next_due_at says when the next claim '
  'makes sense.';
-- While a job runs: progress, logs, items. Nothing here touches an account.

create or replace function processor.lock_held_jobs(worker_id uuid, reports jsonb)
returns table (id uuid, report jsonb, held boolean, cancel boolean)
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  r record;
  stale jsonb := '[]'::jsonb;
  cancel jsonb := '[]'::jsonb;
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
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  jobs uuid[];
  stored int;
begin
  -- LOCK: jobs, by id; in a statement of its own, so that the next one sees what others wrote while we waited
  select array_agg(distinct h.id) into jobs
  from processor.lock_held_jobs(append_job_logs.worker_id, append_job_logs.logs) h where h.held;
  with given as (
    select j.id, j.attempt, l.value as line,
      (select count(*) from public.job_logs k where k.job_id = j.id)
        + row_number() over (partition by j.id order by l.ordinality) as n
    from jsonb_array_elements(append_job_logs.logs) with ordinality l
    join public.jobs j on j.id = (l.value ->> 'id')::uuid and j.attempt = (l.value ->> 'attempt')::int
    where j.id = any (jobs)
  ),
  written as (
    insert into public.job_logs (job_id, attempt, logged_at, level, message, fields)
    select g.id, g.attempt, coalesce((g.line ->> 'at')::timestamptz, processor.now()),
      case when g.n = 1000 then 'warning'
        when g.line ->> 'level' in ('debug', 'info', 'warning', 'error') then g.line ->> 'level'
        else 'info' end,
      case when g.n = 1000 then 'no more lines are kept of this job: 1,000 are the limit'
        when length(g.line ->> 'message') > 2000 then left(g.line ->> 'message', 1999) || '…'
        else coalesce(g.line ->> 'message', '') end,
      case when g.n = 1000 or jsonb_typeof(g.line -> 'fields') is distinct from 'object' then '{}'::jsonb
        when octet_length(g.line ->> 'fields') > 4096 then jsonb_build_object('cut', 'the fields had more than 4 KiB')
        else g.line -> 'fields' end
    from given g
    where g.n <= 1000
    order by g.id, g.n
    returning 1
  )
  select count(*) into stored from written;
  return jsonb_build_object('stored', stored);
end
$$;
comment on function public.append_job_logs(uuid, jsonb) is
  'Add log lines to jobs the worker holds: at most 1,000 a job, of which the last one says that no more are kept; 2,000 characters a '
  'line. stored says how many were written.';

create or replace function processor.finish_held_items(job_id uuid, items jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  r record;
  answers jsonb := '[]'::jsonb;
  cancel jsonb := '[]'::jsonb;
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
        if processor.is_server_trouble(sqlstate) then
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
-- Children of a running job: fan-out from a handler, which then ends its attempt with the outcome "wait".

create or replace function public.spawn_jobs(worker_id uuid, parent jsonb, jobs jsonb, on_child_failure text default null)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  family constant uuid := (spawn_jobs.parent ->> 'id')::uuid;
  wanted jsonb;
  drafts processor.draft[];
  held boolean;
begin
  if jsonb_typeof(spawn_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects', '', 'Give [{"kind": "…", "payload": {…}, "key": "…"}].');
  end if;
  perform processor.fail('JQ006', format('job %s must be an object, this is a JSON %s', e.ordinality, jsonb_typeof(e.value)))
  from jsonb_array_elements(spawn_jobs.jobs) with ordinality e where jsonb_typeof(e.value) <> 'object' limit 1;
  perform processor.check_choice('on_child_failure', spawn_jobs.on_child_failure, array['continue', 'fail']);
  -- a look before anything is locked: a job that is gone has no children
  if not exists (
    select from public.jobs j
    where j.id = family and j.status = 'processing' and j.worker_id = spawn_jobs.worker_id
      and j.attempt = (spawn_jobs.parent ->> 'attempt')::int
  ) then
    return json_build_object('stale', true, 'jobs', '[]'::json);
  end if;
  -- a job of somebody else would be waited for in vain, and a key like those of children without one would mix them up
  perform processor.fail('JQ006', 'a child cannot be the job that has its unique_key: on_conflict must be error or replace')
  from jsonb_array_elements(spawn_jobs.jobs) e where e ->> 'on_conflict' = 'return' limit 1;
  perform processor.fail('JQ006', format('the key %s of a child begins with #', left(e ->> 'key', 100)), '',
    'So do those of children without a key, which have a "number".')
  from jsonb_array_elements(spawn_jobs.jobs) e where e ->> 'key' like '#%' limit 1;
  wanted := (
    -- an attempt that runs again spawns the same children: the key, or else the number, tells which are which
    select coalesce(jsonb_agg((e.value - array['key', 'number']) || jsonb_build_object(
      'parent_id', family,
      'idempotency_key', format('%s/%s', family, coalesce(e.value ->> 'key', '#' || coalesce(e.value ->> 'number', e.ordinality::text))))
      order by e.ordinality), '[]')
    from jsonb_array_elements(spawn_jobs.jobs) with ordinality e
  );
  perform processor.check_elements(wanted, false);
  drafts := processor.draft_jobs(wanted);
  -- LOCK: creators' turns, account, job with its ancestors
  perform processor.lock_drafts(drafts);
  select h.held into held from processor.lock_held_jobs(spawn_jobs.worker_id, jsonb_build_array(spawn_jobs.parent)) h;
  if not held then
    return json_build_object('stale', true, 'jobs', '[]'::json);
  end if;
  update public.jobs j set on_child_failure = spawn_jobs.on_child_failure
  where j.id = family and j.on_child_failure <> spawn_jobs.on_child_failure;
  return json_build_object('stale', false, 'jobs', (
    select coalesce(json_agg(json_build_object('id', a.job_id, 'created', a.created) order by a.n), '[]')
    from processor.write_drafts(drafts) a
  ));
end
$$;
comment on function public.spawn_jobs(uuid, jsonb, jsonb, text) is
  'Create children of a job that the worker holds, {"id", "attempt"}: objects with the names of create_job''s parameters, and a "key" '
  'that is the child''s name within its parent, or a "number" that stands for it (else its place in the call). Spawning the same again '
  'returns the same children. on_child_failure null keeps what is.';
-- Checkpoints: what the steps of a running job came to, so that no later attempt runs them again.

create or replace function processor.keep_checkpoint(job_id uuid, attempt int, name text, result jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  what constant text := format('the result of checkpoint %s', coalesce(left(keep_checkpoint.name, 200), 'null'));
  known jsonb;
begin
  -- LOCK: the caller holds the job, and nobody writes checkpoints without it
  perform processor.check_text('the name of a checkpoint', coalesce(keep_checkpoint.name, ''), 200);
  if keep_checkpoint.result is null then
    perform processor.fail('JQ006', what || ' is missing', '', 'Give "result"; null is one.');
  end if;
  perform processor.check_size(what, keep_checkpoint.result, 1048576);
  perform processor.check_depth(what, keep_checkpoint.result);
  select c.result into known from public.job_checkpoints c
  where c.job_id = keep_checkpoint.job_id and c.name = keep_checkpoint.name;
  if found then
    if known <> keep_checkpoint.result then
      perform processor.fail('JQ006', format('checkpoint %s is there already, with another result', keep_checkpoint.name), '',
        'A step that is completed is not run again: give each step a name of its own.');
    end if;
    return;
  end if;
  if (select count(*) from public.job_checkpoints c where c.job_id = keep_checkpoint.job_id) >= 1000 then
    perform processor.fail('JQ006', format('checkpoint %s is one too many: a job has at most 1,000', keep_checkpoint.name), '',
      'Make what is done so often items of the job, or children.');
  end if;
  insert into public.job_checkpoints (job_id, name, result, attempt)
  values (keep_checkpoint.job_id, keep_checkpoint.name, keep_checkpoint.result, keep_checkpoint.attempt);
end
$$;
comment on function processor.keep_checkpoint(uuid, int, text, jsonb) is
  'Write one checkpoint of a job that is locked and held. Repeating it changes nothing; another result for the same name is an error.';

create or replace function public.save_checkpoints(worker_id uuid, checkpoints jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  r record;
  answers jsonb := '[]'::jsonb;
  cancel jsonb := '[]'::jsonb;
  problem text;
begin
  for r in select * from processor.lock_held_jobs(save_checkpoints.worker_id, save_checkpoints.checkpoints) loop
    problem := null;
    if r.held then
      if r.cancel then
        cancel := cancel || to_jsonb(r.id);
      end if;
      begin -- one bad element spoils no other
        perform processor.keep_checkpoint(r.id, (r.report ->> 'attempt')::int, r.report ->> 'name', r.report -> 'result');
      exception when others then
        if processor.is_server_trouble(sqlstate) then
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
comment on function public.save_checkpoints(uuid, jsonb) is
  'Store what steps of running jobs came to: [{"id", "attempt", "name", "result"}], results of at most 1 MiB, 1,000 a job. Answered in '
  'the order given; stale means that the worker no longer holds the job. Repeating it changes nothing.';

create or replace function public.read_checkpoint(worker_id uuid, job jsonb, name text)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to read checkpoints
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  found_result jsonb;
begin
  -- LOCK: none: who holds the job is all that changes it, and a completed step stays as it is
  if not exists (
    select from public.jobs j
    where j.id = (read_checkpoint.job ->> 'id')::uuid and j.status = 'processing' and j.worker_id = read_checkpoint.worker_id
      and j.attempt = (read_checkpoint.job ->> 'attempt')::int
  ) then
    return jsonb_build_object('stale', true);
  end if;
  select c.result into found_result from public.job_checkpoints c
  where c.job_id = (read_checkpoint.job ->> 'id')::uuid and c.name = read_checkpoint.name;
  if not found then
    perform processor.fail('JQ006', format('the job has no checkpoint %s', left(read_checkpoint.name, 200)));
  end if;
  return jsonb_build_object('stale', false, 'result', found_result);
end
$$;
comment on function public.read_checkpoint(uuid, jsonb, text) is
  'The result of a checkpoint of a job that the worker holds, {"id", "attempt"}: for those that a claim left out because of their size.';
-- The end of an attempt: finished, or given back.

create or replace function processor.retry_delay(queue text, failures int)
returns interval
language sql
volatile
set search_path = '', pg_temp
as $$
  -- a queue that is gone, or a delay of null, must not keep the job from ending its attempt
  select coalesce((
    select q.retry_delays[least(retry_delay.failures, cardinality(q.retry_delays))] * (1 + q.jitter * (2 * random() - 1))
    from public.job_queues q where q.name = retry_delay.queue
  ), interval '1 minute')
$$;
comment on function processor.retry_delay(text, int) is
  'How long a job waits after its nth failure: the queue''s nth delay (the last one repeats), give or take the jitter.';

create or replace function processor.decide(job_id uuid, report jsonb)
returns processor.verdict
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  outcome constant text := decide.report ->> 'outcome';
  delay constant double precision := (decide.report ->> 'delay_seconds')::double precision;
  verdict processor.verdict;
  j record;
  retryable boolean;
begin
  if coalesce(outcome, '') not in ('done', 'fail', 'retry', 'snooze', 'cancelled', 'wait') then
    perform processor.fail('JQ006', format('outcome %s is not one of done, fail, retry, snooze, cancelled, wait', left(outcome, 100)));
  end if;
  perform processor.check_range('delay_seconds', delay::numeric, 0, 31536000);
  perform processor.check_size('the result', nullif(decide.report -> 'result', 'null'), 1048576);
  -- the columns by name: the whole row would bring its payload
  select x.queue, x.failures, x.max_attempts, x.items_total, x.items_done, x.cancel_requested_at is not null as cancelled,
    x.children_total, x.children_open, x.children_failed, x.on_child_failure
  into j
  from public.jobs x where x.id = decide.job_id;

  verdict := processor.ending(decide.job_id, 'cancelled', decide.report ->> 'error_code', decide.report ->> 'error_message');
  if outcome = 'done' and j.items_done = j.items_total then
    verdict.status := 'completed';
    verdict.result := nullif(decide.report -> 'result', 'null');
    verdict.error_code := null;
    verdict.error_message := null;
    return verdict;
  elsif outcome = 'cancelled' or (j.cancelled and outcome in ('retry', 'snooze', 'wait')) then
    verdict.error_code := coalesce(verdict.error_code, 'CANCELLED');
    verdict.error_message := coalesce(verdict.error_message, 'cancelled while it ran');
    return verdict;
  elsif outcome = 'snooze' or (outcome = 'wait' and (j.children_failed = 0 or j.on_child_failure = 'continue')) then
    if outcome = 'snooze' and delay is null then
      perform processor.fail('JQ006', 'a snooze needs delay_seconds');
    elsif outcome = 'wait' and j.children_total = 0 then
      perform processor.fail('JQ006', 'there are no children to wait for', '', 'Call spawn_jobs first.');
    end if;
    verdict := processor.requeueing(decide.job_id, case
      when outcome = 'snooze' then processor.now() + make_interval(secs => delay)
      when j.children_open > 0 then processor.never()
      else processor.now() end);
    verdict.progress_message := decide.report ->> 'message';
    verdict.crashed := false;
    return verdict;
  end if;

  -- a failure; "done" with open items is one too, worth another attempt if one of them is
  retryable := case outcome
    when 'done' then exists (
      select from public.job_items i
      where i.job_id = decide.job_id and (i.status = 'pending' or (i.status = 'failed' and i.error_retryable))
    )
    when 'retry' then coalesce((decide.report ->> 'error_retryable')::boolean, true)
    else false
  end;
  if outcome = 'done' then
    verdict.error_code := 'ITEMS_FAILED';
    verdict.error_message := format('%s of %s items did not complete', j.items_total - j.items_done, j.items_total);
  elsif outcome = 'wait' then
    verdict.error_code := 'CHILD_FAILED';
    verdict.error_message := format('%s of %s children did not complete', j.children_failed, j.children_total);
  end if;
  verdict.error_code := coalesce(verdict.error_code, 'HANDLER_CRASHED');
  verdict.note := jsonb_build_object('code', verdict.error_code, 'message', verdict.error_message);
  if retryable and j.cancelled then
    verdict.error_code := 'CANCELLED';
    verdict.error_message := 'cancelled while it ran';
    return verdict;
  end if;
  verdict.failed := true;
  if retryable and j.failures + 1 < j.max_attempts then
    verdict.status := 'pending';
    verdict.run_at := processor.now() + coalesce(make_interval(secs => delay), processor.retry_delay(j.queue, j.failures + 1));
  else
    verdict.status := case when j.items_done > 0 then 'partial' else 'failed' end;
    verdict.result := nullif(decide.report -> 'result', 'null');
  end if;
  return verdict;
end
$$;
comment on function processor.decide(uuid, jsonb) is
  'The verdict on a job that is locked and held, from the worker''s report of how the attempt ended.';

create or replace function processor.job_ids(reports jsonb)
returns uuid[]
language sql
immutable
set search_path = '', pg_temp
as $$
  select array(
    select (r ->> 'id')::uuid from jsonb_array_elements(job_ids.reports) r
    -- a regular expression would take longer than locking the job
    where r ->> 'id' like '________-____-____-____-____________' and length(replace(r ->> 'id', '-', '')) = 32
      and translate(r ->> 'id', '-0123456789abcdefABCDEF', '') = ''
  )
$$;
comment on function processor.job_ids(jsonb) is 'The ids of the jobs that reports are about; what is no uuid is left out.';

create or replace function processor.finish_batch(worker_id uuid, results jsonb)
returns table (id text, status text, run_at timestamptz, stale boolean, error text)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  places int[];
  ids uuid[];
  reports jsonb[];
  verdicts processor.verdict[];
begin
  -- THE FENCE: still running, by this worker, in this attempt; of several reports about a job the first counts
  select array_agg(h.place), array_agg(h.id), array_agg(h.report) into places, ids, reports
  from (
    select distinct on (j.id) r.ordinality as place, j.id, r.value as report
    from jsonb_array_elements(finish_batch.results) with ordinality r
    join public.jobs j on j.id = (r.value ->> 'id')::uuid
    where j.status = 'processing' and j.worker_id = finish_batch.worker_id and j.attempt = (r.value ->> 'attempt')::int
    order by j.id, r.ordinality
  ) h;
  perform processor.finish_held_items(u.id, u.report -> 'items')
  from unnest(ids, reports) u (id, report) where u.report ? 'items';

  select array_agg(case
    -- by far the most frequent report needs no look at anything else; of so few bytes no JSON text has too many
    when u.report ->> 'outcome' = 'done' and j.items_done = j.items_total and not u.report ? 'delay_seconds'
      and coalesce(pg_column_size(u.report -> 'result'), 0) < 100000
    then row(u.id, 'completed', null, nullif(u.report -> 'result', 'null'), null, null, null, null, false, false)::processor.verdict
    else processor.decide(u.id, u.report) end) into verdicts
  from unnest(ids, reports) u (id, report) join public.jobs j on j.id = u.id;
  perform processor.conclude(verdicts);

  return query
  select r.value ->> 'id', j.status, j.run_at, p.place is null, null::text
  from jsonb_array_elements(finish_batch.results) with ordinality r
  left join public.jobs j on j.id = (r.value ->> 'id')::uuid
  left join unnest(places) p (place) on p.place = r.ordinality
  order by r.ordinality;
end
$$;
comment on function processor.finish_batch(uuid, jsonb) is
  'Carry out reports of jobs that are locked, all or none, and answer in the order given.';

create or replace function processor.finish_singly(worker_id uuid, results jsonb)
returns table (id text, status text, run_at timestamptz, stale boolean, error text)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  r record;
begin
  for r in select x.value as report from jsonb_array_elements(finish_singly.results) with ordinality x order by x.ordinality loop
    begin
      return query select * from processor.finish_batch(finish_singly.worker_id, jsonb_build_array(r.report));
    exception when others then
      if processor.is_server_trouble(sqlstate) then
        raise; -- not the fault of this one: all are to be repeated
      end if;
      id := left(r.report ->> 'id', 100);
      stale := false;
      error := left(sqlstate || ': ' || sqlerrm, 500);
      select j.status, j.run_at into status, run_at from public.jobs j where j.id = any (processor.job_ids(jsonb_build_array(r.report)));
      return next;
    end;
  end loop;
end
$$;
comment on function processor.finish_singly(uuid, jsonb) is
  'Carry out reports of jobs that are locked, each by itself: one that cannot be taken is answered with its error and spoils no other.';

create or replace function public.finish_jobs(worker_id uuid, results jsonb)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(finish_jobs.results) is distinct from 'array' then
    perform processor.fail('JQ006', 'results must be an array of objects with "id", "attempt" and "outcome"');
  end if;
  begin
    -- LOCK: accounts, then jobs with their ancestors. In here, not before: a row that one part of a transaction locks and another
    -- changes has two owners, which the next ones to read it have to look up
    perform processor.lock_jobs(processor.job_ids(finish_jobs.results));
    return (select coalesce(json_agg(f), '[]') from processor.finish_batch(finish_jobs.worker_id, finish_jobs.results) f);
  exception when others then
    if processor.is_server_trouble(sqlstate) then
      raise;
    end if;
  end;
  -- one of them cannot be taken, and the locks went with the attempt
  perform processor.lock_jobs(processor.job_ids(finish_jobs.results));
  return (select json_agg(f) from processor.finish_singly(finish_jobs.worker_id, finish_jobs.results) f);
end
$$;
comment on function public.finish_jobs(uuid, jsonb) is
  'Report how attempts ended, in a batch: each element is decided on its own, credits included, and answered in the order given. '
  'Outcomes: done, fail, retry, snooze, cancelled, or wait (for its children). A late or repeated report is stale and changes nothing.';

create or replace function public.release_jobs(worker_id uuid, jobs jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  places int[];
  held uuid[];
begin
  if jsonb_typeof(release_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: accounts, then jobs with their ancestors
  perform processor.lock_jobs(processor.job_ids(release_jobs.jobs));
  select array_agg(h.place), array_agg(h.id) into places, held
  from (
    select distinct on (x.id) x.ordinality as place, x.id
    from processor.lock_held_jobs(release_jobs.worker_id, release_jobs.jobs) with ordinality x
    where x.held
    order by x.id, x.ordinality
  ) h;
  perform processor.conclude(array(
    select case when j.cancel_requested_at is not null then processor.ending(j.id, 'cancelled', 'CANCELLED', 'cancelled while it ran')
      else processor.requeueing(j.id, moment) end
    from public.jobs j where j.id = any (held) order by j.id
  ));
  return (
    select coalesce(jsonb_agg(jsonb_build_object('id', r.value -> 'id', 'stale', p.place is null) order by r.ordinality), '[]')
    from jsonb_array_elements(release_jobs.jobs) with ordinality r
    left join unnest(places) p (place) on p.place = r.ordinality
  );
end
$$;
comment on function public.release_jobs(uuid, jsonb) is
  'Give jobs back, at once and without costing an attempt: what a worker does with unfinished work when it stops.';
-- For operators: the SQL editor at 3 a.m.

create or replace function processor.add_lot(entry public.credit_entries, priority int, expires_at timestamptz)
returns public.credit_entries
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  made public.credit_entries;
begin
  -- LOCK: the caller holds the account, and changes it
  insert into public.credit_lots (owner_id, amount, remaining, priority, expires_at)
  values (entry.owner_id, entry.amount, entry.amount, add_lot.priority, add_lot.expires_at)
  returning id into entry.lot_id;
  insert into public.credit_entries (owner_id, kind, amount, job_id, reason, idempotency_key, lot_id)
  values (entry.owner_id, entry.kind, entry.amount, entry.job_id, entry.reason, entry.idempotency_key, entry.lot_id)
  returning * into made;
  update public.credit_lots l set granted_by = made.id where l.id = made.lot_id;
  return made;
end
$$;
comment on function processor.add_lot(public.credit_entries, int, timestamptz) is
  'Write a grant or a refund, and the lot that it gives; returns the entry.';

create or replace function processor.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null, priority int default 0, expires_at timestamptz default null)
returns public.credit_accounts
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  account public.credit_accounts;
  earlier public.credit_entries;
  lot public.credit_lots;
begin
  if grant_credits.owner_id is null then
    perform processor.fail('JQ006', 'owner_id is missing', '', 'Name the auth user: select id from auth.users where email = …');
  end if;
  if grant_credits.amount is null then
    perform processor.fail('JQ006', 'amount is missing');
  end if;
  grant_credits.priority := coalesce(grant_credits.priority, 0);
  perform processor.check_range('amount', grant_credits.amount, 1, 1000000000000);
  perform processor.check_range('priority', grant_credits.priority, -1000, 1000);
  perform processor.check_text('idempotency_key', grant_credits.idempotency_key, 200);
  -- LOCK: the account
  insert into public.credit_accounts (owner_id) values (grant_credits.owner_id) on conflict do nothing;
  select * into account from public.credit_accounts a where a.owner_id = grant_credits.owner_id for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = grant_credits.owner_id and e.idempotency_key = grant_credits.idempotency_key;
  if found then
    select * into lot from public.credit_lots l where l.id = earlier.lot_id;
    if (earlier.kind, earlier.amount, coalesce(lot.priority, 0), lot.expires_at)
      is distinct from ('grant', grant_credits.amount, grant_credits.priority, grant_credits.expires_at)
    then
      perform processor.fail('JQ007',
        format('idempotency_key %s was used before, for a %s of %s', grant_credits.idempotency_key, earlier.kind, earlier.amount),
        json_build_object('kind', earlier.kind, 'amount', earlier.amount, 'priority', lot.priority, 'expires_at', lot.expires_at)::text,
        'Use a new key for a new grant; the same one with the same amount, priority and expires_at changes nothing.');
    end if;
    return account;
  end if;
  -- not before the key is looked up: a grant told again after its time is still the same grant
  if grant_credits.expires_at <= moment or grant_credits.expires_at > moment + interval '100 years' then
    perform processor.fail('JQ006', format('expires_at is %s, but must be ahead, by at most 100 years', grant_credits.expires_at),
      '', 'Leave it out for credits that never expire.');
  end if;
  perform processor.check_range('what was issued, with this grant,', account.issued::numeric + grant_credits.amount, 0, 9007199254740991);
  earlier.owner_id := grant_credits.owner_id;
  earlier.kind := 'grant';
  earlier.amount := grant_credits.amount;
  earlier.reason := grant_credits.reason;
  earlier.idempotency_key := grant_credits.idempotency_key;
  perform processor.add_lot(earlier, grant_credits.priority, grant_credits.expires_at);
  update public.credit_accounts a
  set issued = a.issued + grant_credits.amount, available = a.available + grant_credits.amount, updated_at = moment
  where a.owner_id = grant_credits.owner_id
  returning * into account;
  return account;
end
$$;
comment on function processor.grant_credits(uuid, bigint, text, text, int, timestamptz) is
  'Give an owner credits: select * from processor.grant_credits(''<user id>'', 100, ''welcome''). With an idempotency_key, once only. '
  'Those of a higher priority are spent first, then those that expire first.';

create or replace function public.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null, priority int default 0, expires_at timestamptz default null)
returns public.credit_accounts
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = '', pg_temp
as $$
  select *
  from processor.grant_credits(grant_credits.owner_id, grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key,
    grant_credits.priority, grant_credits.expires_at)
$$;
comment on function public.grant_credits(uuid, bigint, text, text, int, timestamptz) is
  'processor.grant_credits() for a server with the service key, such as the one that takes payments.';

create or replace function processor.refund_credits(job_id uuid, amount bigint default null, reason text default null,
  idempotency_key text default null)
returns public.credit_entries
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  owner uuid;
  earlier public.credit_entries;
  refund public.credit_entries;
  spent bigint;
  refunded bigint;
begin
  if refund_credits.job_id is null then
    perform processor.fail('JQ006', 'job_id is missing');
  end if;
  if refund_credits.reason is null then
    perform processor.fail('JQ006', 'reason is missing', '', 'Say why: the owner can read it in the statement.');
  end if;
  perform processor.check_text('reason', refund_credits.reason, 500);
  perform processor.check_text('idempotency_key', refund_credits.idempotency_key, 200);
  -- the journal remembers jobs that are pruned; all entries of a job have one owner
  select e.owner_id into owner from public.credit_entries e where e.job_id = refund_credits.job_id limit 1;
  if not found then
    if exists (select from public.jobs j where j.id = refund_credits.job_id) then
      perform processor.fail('JQ009', format('job %s is free: nothing was spent on it', refund_credits.job_id));
    end if;
    perform processor.fail('JQ008', format('job not found: %s', refund_credits.job_id), '', 'Check the id.');
  end if;
  -- LOCK: the account, without which no hold closes; then the job
  perform 1 from public.credit_accounts a where a.owner_id = owner for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = owner and e.idempotency_key = refund_credits.idempotency_key;
  select coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0),
    -- what an earlier call with this key found: only what was refunded before it
    coalesce(sum(e.amount) filter (where e.kind = 'refund' and (earlier.id is null or e.id < earlier.id)), 0)
  into spent, refunded
  from public.credit_entries e where e.job_id = refund_credits.job_id;
  if earlier.id is not null then
    if (earlier.kind, earlier.job_id, earlier.amount)
      is distinct from ('refund', refund_credits.job_id, coalesce(refund_credits.amount, spent - refunded))
    then
      perform processor.fail('JQ007',
        format('idempotency_key %s was used before, for a %s of %s', refund_credits.idempotency_key, earlier.kind, earlier.amount),
        json_build_object('kind', earlier.kind, 'amount', earlier.amount, 'job_id', earlier.job_id)::text,
        'Use a new key for a new refund; the same one with the same job and amount changes nothing.');
    end if;
    return earlier;
  end if;
  if exists (select from public.credit_holds h where h.job_id = refund_credits.job_id and h.closed_at is null) then
    perform processor.fail('JQ009', format('job %s has not ended: what it spends is not known yet', refund_credits.job_id),
      '', 'Wait for it to end, or cancel it: what it has not spent is given back by itself.');
  end if;
  if spent = refunded then
    perform processor.fail('JQ009', format('nothing is left to refund: job %s has spent %s, and %s was refunded',
      refund_credits.job_id, spent, refunded));
  end if;
  perform processor.check_range('amount', refund_credits.amount, 1, spent - refunded);

  refund.owner_id := owner;
  refund.kind := 'refund';
  refund.amount := coalesce(refund_credits.amount, spent - refunded);
  refund.job_id := refund_credits.job_id;
  refund.reason := refund_credits.reason;
  refund.idempotency_key := refund_credits.idempotency_key;
  refund := processor.add_lot(refund, 0, null);
  update public.credit_accounts a
  set spent = a.spent - refund.amount, available = a.available + refund.amount, updated_at = processor.now()
  where a.owner_id = owner;
  update public.jobs j
  set credits_captured = j.credits_captured - refund.amount, credits_refunded = j.credits_refunded + refund.amount,
    updated_at = processor.now()
  where j.id = refund.job_id;
  return refund;
end
$$;
comment on function processor.refund_credits(uuid, bigint, text, text) is
  'Give back what an ended job has spent, all that is left or an amount of it: select * from processor.refund_credits(''<job id>'', '
  'reason => ''bad quality''). They come as a lot that does not expire. Works for pruned jobs too. With an idempotency_key, once only.';

create or replace function public.refund_credits(job_id uuid, amount bigint default null, reason text default null,
  idempotency_key text default null)
returns public.credit_entries
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = '', pg_temp
as $$
  select *
  from processor.refund_credits(refund_credits.job_id, refund_credits.amount, refund_credits.reason, refund_credits.idempotency_key)
$$;
comment on function public.refund_credits(uuid, bigint, text, text) is
  'processor.refund_credits() for a server with the service key, such as the one that support works with.';

create or replace function processor.expire_credits(batch int default 1000)
returns int
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  owners uuid[];
begin
  perform processor.check_range('batch', expire_credits.batch, 1, 10000);
  -- LOCK: accounts, by owner, waiting for none: one that is busy sweeps its own lots, or is found by the next call
  owners := array(
    select a.owner_id from public.credit_accounts a
    where a.owner_id in (
      select d.owner_id from (
        select l.owner_id from public.credit_lots l
        where not l.exhausted and l.expires_at <= processor.now()
        order by l.expires_at
        limit expire_credits.batch
      ) d
    )
    order by a.owner_id for no key update skip locked
  );
  return processor.expire_lots(owners, expire_credits.batch);
end
$$;
comment on function processor.expire_credits(int) is
  'Take out of the accounts what has expired, at most batch lots at once; returns how many. Call again until it is 0. Until then '
  'expired credits are still shown as available, but no job can reserve them.';

create or replace function public.expire_credits(batch int default 1000)
returns int
language sql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
  select processor.expire_credits(expire_credits.batch)
$$;
comment on function public.expire_credits(int) is 'processor.expire_credits() for the workers, one of which calls it now and then.';

create or replace function processor.check_schema()
returns table (problem text)
language sql
stable
set search_path = '', pg_temp
as $$
  with ours (name, live) as (
    values ('jobs', true), ('job_items', true), ('job_checkpoints', false), ('job_logs', true), ('job_queues', true), ('job_workers', true),
      ('credit_accounts', true), ('credit_lots', false),
      ('job_kinds', false), ('job_schedules', false), ('credit_entries', false), ('credit_holds', false), ('credit_captures', false)
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
  union all
  select format('public.%s is open to the world: anon has rights on it', o.name) from ours o
  where has_table_privilege('anon', to_regclass('public.' || o.name), 'select, insert, update, delete')
  union all
  select format('%s is open to the world: anon can execute it', p.oid::regprocedure) from pg_catalog.pg_proc p
  where (p.pronamespace = 'processor'::regnamespace or p.oid = 'public.claim_jobs(uuid, uuid, text[], int)'::regprocedure)
    and has_function_privilege('anon', p.oid, 'execute')
$$;
comment on function processor.check_schema() is
  'What is badly wrong with the installation; no row means nothing. `processor schema status` compares every object.';
-- For operators: are the books right?

create or replace function processor.check_credits()
returns table (problem text, owner_id uuid, job_id uuid, expected bigint, found bigint)
language sql
stable
set search_path = '', pg_temp
set work_mem = '64MB'
as $$
  -- The journal is read once. It outlives jobs, and what was written before there were lots names none.
  with journal as materialized (
    select e.owner_id, e.job_id, e.lot_id,
      coalesce(sum(e.amount) filter (where e.kind = 'grant'), 0)::bigint as granted,
      coalesce(sum(e.amount) filter (where e.kind = 'reserve'), 0)::bigint as reserved,
      coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0)::bigint as captured,
      coalesce(sum(e.amount) filter (where e.kind = 'release'), 0)::bigint as released,
      coalesce(sum(e.amount) filter (where e.kind = 'expire'), 0)::bigint as expired,
      coalesce(sum(e.amount) filter (where e.kind = 'refund'), 0)::bigint as refunded,
      coalesce(sum(e.amount) filter (where e.kind = 'clawback'), 0)::bigint as undone
    from public.credit_entries e
    group by 1, 2, 3
  ),
  owners as (
    select j.owner_id, sum(j.granted)::bigint as granted, sum(j.reserved)::bigint as reserved, sum(j.captured)::bigint as captured,
      sum(j.released)::bigint as released, sum(j.expired)::bigint as expired, sum(j.refunded)::bigint as refunded,
      sum(j.undone)::bigint as undone
    from journal j group by 1
  ),
  spending as materialized ( -- by job
    select j.job_id, j.owner_id, sum(j.reserved)::bigint as reserved, sum(j.captured)::bigint as captured,
      sum(j.released)::bigint as released, sum(j.refunded)::bigint as refunded
    from journal j where j.job_id is not null group by 1, 2
  ),
  holds as materialized ( -- with what their tickets, their items and the journal say
    select h.job_id, h.owner_id, h.per_item, h.captured, h.released, h.units * h.unit_price as amount, h.closed_at is null as open,
      coalesce(t.tickets, 0) as tickets, coalesce(t.tickets, 0) * h.unit_price as paid,
      coalesce(s.reserved, 0) as entered, coalesce(s.captured, 0) as entered_captured, coalesce(s.released, 0) as entered_released,
      coalesce(s.refunded, 0) as refunded
    from public.credit_holds h
    left join (select c.job_id, count(*) as tickets from public.credit_captures c group by 1) t on t.job_id = h.job_id
    left join spending s on s.job_id = h.job_id and s.owner_id = h.owner_id
  )

  -- accounts
  select 'account.held is not the sum of its open holds', a.owner_id, null::uuid, coalesce(s.total, 0), a.held
  from public.credit_accounts a
  left join (select h.owner_id, sum(h.amount)::bigint as total from holds h where h.open group by 1) s on s.owner_id = a.owner_id
  where a.held <> coalesce(s.total, 0)
  union all
  select 'account.available is not the sum of its lots', a.owner_id, null, coalesce(s.total, 0), a.available
  from public.credit_accounts a
  left join (
    select l.owner_id, sum(l.remaining)::bigint as total from public.credit_lots l where not l.exhausted group by 1
  ) s on s.owner_id = a.owner_id
  where a.available <> coalesce(s.total, 0)
  union all
  select 'account.' || b.bucket || ' is not what the journal says', a.owner_id, null, b.journal, b.account
  from public.credit_accounts a
  left join owners o on o.owner_id = a.owner_id
  cross join lateral (values
    ('issued', coalesce(o.granted - o.undone, 0), a.issued),
    ('available', coalesce(o.granted + o.refunded + o.released - o.undone - o.reserved - o.expired, 0), a.available),
    ('held', coalesce(o.reserved - o.captured - o.released, 0), a.held),
    ('spent', coalesce(o.captured - o.refunded, 0), a.spent),
    ('expired', coalesce(o.expired, 0), a.expired)
  ) b (bucket, journal, account)
  where b.journal <> b.account
  union all
  select 'the journal has entries, but there is no account', o.owner_id, null, 0, 1
  from owners o
  where not exists (select from public.credit_accounts a where a.owner_id = o.owner_id)

  -- lots
  union all
  select format('lot %s: remaining is not what the journal says', l.id), l.owner_id, null,
    l.amount + coalesce(s.released - s.reserved - s.expired - s.undone, 0), l.remaining
  from public.credit_lots l
  left join (
    select j.lot_id, sum(j.reserved)::bigint as reserved, sum(j.released)::bigint as released, sum(j.expired)::bigint as expired,
      sum(j.undone)::bigint as undone
    from journal j where j.lot_id is not null group by 1
  ) s on s.lot_id = l.id
  where l.remaining <> l.amount + coalesce(s.released - s.reserved - s.expired - s.undone, 0)
  union all
  select format('lot %s is not what its grant gave', l.id), l.owner_id, null, coalesce(e.amount, 0), l.amount
  from public.credit_lots l
  left join public.credit_entries e
    on e.id = l.granted_by and e.lot_id = l.id and e.owner_id = l.owner_id and e.kind in ('grant', 'refund')
  where l.granted_by is not null and l.amount is distinct from e.amount
  union all
  select format('the journal has entries of lot %s, which is not there', j.lot_id), j.owner_id, null, 0, 1
  from (select distinct x.lot_id, x.owner_id from journal x where x.lot_id is not null) j
  where not exists (select from public.credit_lots l where l.id = j.lot_id and l.owner_id = j.owner_id)
  union all
  select 'more was taken back than granted', g.owner_id, null, g.amount, c.total
  from (select e.undoes, sum(e.amount)::bigint as total from public.credit_entries e where e.kind = 'clawback' group by 1) c
  join public.credit_entries g on g.id = c.undoes
  where c.total > g.amount

  -- holds and jobs
  union all
  select 'the job has ended, its hold has not', h.owner_id, h.job_id, 0, h.amount
  from holds h join public.jobs j on j.id = h.job_id
  where (j.finished_at is null) <> h.open
  union all
  select 'hold.' || b.bucket || ' is not what the journal says', h.owner_id, h.job_id, b.journal, b.hold
  from holds h
  cross join lateral (values
    ('amount', h.entered, h.amount),
    ('captured', h.entered_captured, h.captured),
    ('released', h.entered_released, h.released)
  ) b (bucket, journal, hold)
  where b.journal <> b.hold
  union all
  select 'job.' || b.bucket || ' is not what its hold says', h.owner_id, h.job_id, b.hold, b.job
  from holds h
  join public.jobs j on j.id = h.job_id
  cross join lateral (values
    ('credits_captured', h.paid - h.refunded, j.credits_captured),
    ('credits_held', case when h.open then h.amount - h.paid else 0 end, j.credits_held),
    ('credits_refunded', case when h.open then 0 else h.amount - h.paid + h.refunded end, j.credits_refunded),
    ('credits_captured, when it was closed,', case when h.open then h.paid else h.captured end - h.refunded, j.credits_captured)
  ) b (bucket, hold, job)
  where b.hold <> b.job
  union all
  select 'the job has credits, but no hold', j.owner_id, j.id, 0, j.credits_held + j.credits_captured + j.credits_refunded
  from public.jobs j
  where j.credits_held + j.credits_captured + j.credits_refunded > 0
    and not exists (select from public.credit_holds h where h.job_id = j.id)
  union all
  select 'the tickets are not the items that completed', h.owner_id, h.job_id, coalesce(i.completed, 0), h.tickets
  from holds h
  left join (
    select x.job_id, count(*) as completed from public.job_items x where x.status = 'completed' group by 1
  ) i on i.job_id = h.job_id
  where h.per_item and coalesce(i.completed, 0) <> h.tickets

  -- jobs, also those that are pruned
  union all
  select format('the job has ended, but part of lot %s is still reserved', coalesce(j.lot_id::text, '(none)')), j.owner_id, j.job_id,
    j.reserved, j.captured + j.released
  from journal j
  where j.job_id is not null and j.reserved <> j.captured + j.released
    and not exists (select from public.credit_holds h where h.job_id = j.job_id and h.closed_at is null)
  union all
  select 'more was refunded than spent', s.owner_id, s.job_id, s.captured, s.refunded
  from spending s
  where s.refunded > s.captured
$$;
comment on function processor.check_credits() is
  'The conservation law, to be run at any time: select * from processor.check_credits(). Every row it returns is a fault. It reads '
  'the whole ledger.';
-- For operators: what is going on. Each view answers one question; sql/README.md shows them at work.
-- They read indexes, not the table: finished jobs through jobs_finished_idx (a time that is bounded on both sides makes
-- the planner expect few rows), what waits and runs through its own.

create index if not exists jobs_finished_idx on public.jobs (queue, finished_at desc, id desc) where finished_at is not null;
-- the few that did not complete, or not at once: a day of a million jobs is read for them in a tenth of the time
create index if not exists jobs_not_completed_idx on public.jobs (queue, finished_at, status)
  where status in ('partial', 'failed', 'cancelled');
create index if not exists jobs_errors_idx on public.jobs (finished_at) where errors <> '[]';

create or replace function processor.queue_names()
returns setof text
language sql
stable
rows 20
set search_path = '', pg_temp
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
  m.now - p.oldest as oldest_due_age, f.done_last_hour, f.failed_last_hour, f.run_seconds_p50, f.run_seconds_p95, p.waiting
from moment m
cross join processor.queue_names() n (queue)
left join public.job_queues q on q.name = n.queue
cross join lateral (
  select count(*) as live_workers from public.job_workers x
  where n.queue = any (x.queues) and x.lease_expires_at >= m.now and not x.draining
) w
cross join lateral (
  select count(*) filter (where j.run_at <= m.now) as due,
    count(*) filter (where j.run_at > m.now and j.run_at < processor.never()) as scheduled,
    count(*) filter (where j.run_at = processor.never()) as waiting,
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
comment on column processor.queue_health.waiting is 'Pending jobs that wait for their children.';

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
  select q.name, q.paused, q.timeout, q.max_processing, q.rate_limit, q.rate_period, q.max_processing_per_owner,
    (select count(*) from public.jobs r where r.queue = q.name and r.status = 'processing') as processing,
    case when q.rate_limit is not null then processor.token_due_in(q, m.now) > interval '0' end as spent
  from moment m cross join public.job_queues q
),
running as materialized ( -- of each owner, where that matters
  select j.queue, j.owner_id, count(*) as jobs
  from queues q join public.jobs j on j.queue = q.name and j.status = 'processing' and j.owner_id is not null
  where q.max_processing_per_owner is not null
  group by 1, 2
),
judged as (
  select j.id, j.queue, j.kind, j.owner_id, j.status, j.worker_id, m.now - j.run_at as age,
    case
      when q.name is null then 'queue_missing'
      when q.paused then 'queue_paused'
      when s.kind is null then 'no_worker'
      when s.draining then 'workers_draining'
      when q.processing >= q.max_processing then 'queue_at_limit'
      when r.jobs >= q.max_processing_per_owner then 'owner_at_limit'
      when q.spent then 'rate_limited'
      when j.run_at < m.now - interval '5 minutes' then 'waiting_long'
    end as reason,
    q.max_processing, q.rate_limit, q.rate_period, q.max_processing_per_owner, null::interval as timeout
  from moment m
  join public.jobs j on j.status = 'pending' and j.run_at <= m.now
  left join queues q on q.name = j.queue
  left join served s on s.queue = j.queue and s.kind = j.kind
  left join running r on r.queue = j.queue and r.owner_id = j.owner_id
  union all
  select j.id, j.queue, j.kind, j.owner_id, j.status, j.worker_id, m.now - j.started_at,
    case
      when w.id is null or w.lease_expires_at < m.now then 'worker_lost'
      when j.started_at + coalesce(j.timeout, q.timeout) < m.now then 'over_timeout'
    end,
    null, null, null, null, coalesce(j.timeout, q.timeout)
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
    when 'owner_at_limit' then format('its owner runs as many in queue %s as max_processing_per_owner of %s allows', d.queue,
      d.max_processing_per_owner)
    when 'rate_limited' then format('queue %s has started as many as its rate_limit of %s in %s allows: the next one comes in time',
      d.queue, d.rate_limit, d.rate_period)
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
  'Pending: queue_missing, queue_paused, no_worker, workers_draining, queue_at_limit, owner_at_limit, rate_limited, waiting_long. '
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

create or replace function processor.failed_attempts(since timestamptz)
returns table (job_id uuid, kind text, code text, message text, failed_at timestamptz, final boolean)
language plpgsql -- its plan knows no values: a time that is bounded on both sides lets the planner expect few rows
stable
rows 1000
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
begin
  return query
  select j.id, j.kind, e.value ->> 'code', e.value ->> 'message', (e.value ->> 'at')::timestamptz,
    j.status in ('failed', 'partial') and j.error_code = e.value ->> 'code'
  from (
    select x.id, x.kind, x.status, x.error_code, x.errors from public.jobs x
    where x.errors <> '[]' and x.finished_at between failed_attempts.since and moment
    union all
    select x.id, x.kind, x.status, x.error_code, x.errors from public.jobs x
    where x.errors <> '[]' and x.finished_at is null
  ) j
  cross join lateral jsonb_array_elements(j.errors) e
  where (e.value ->> 'at')::timestamptz > failed_attempts.since;
end
$$;
comment on function processor.failed_attempts(timestamptz) is
  'The failed attempts since a time; of each job the last 20 are known. final: whether the job ended with it.';

create or replace view processor.error_summary with (security_invoker = on) as
select f.kind, f.code, count(*) as failures, count(distinct f.job_id) as jobs,
  count(distinct f.job_id) filter (where f.final) as ended, max(f.failed_at) as last_at,
  (array_agg(f.message order by f.failed_at desc))[1] as sample_message,
  (array_agg(f.job_id order by f.failed_at desc))[1] as sample_job_id
from processor.failed_attempts(processor.now() - interval '1 day') f
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
  greatest(a.updated_at, j.last_created_at) as last_activity_at, l.lots, l.next_expiry_at
from public.credit_accounts a
cross join lateral (
  select count(*) as jobs, count(*) filter (where x.finished_at is null) as open_jobs, max(x.created_at) as last_created_at
  from public.jobs x where x.owner_id = a.owner_id
) j
cross join lateral (
  select count(*) as lots, min(x.expires_at) as next_expiry_at
  from public.credit_lots x where x.owner_id = a.owner_id and not x.exhausted
) l;
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
comment on column processor.credit_summary.lots is 'How many lots have something left.';
comment on column processor.credit_summary.next_expiry_at is 'When the first of them expires; null: none does.';
-- For operators: what to do about it. Whatever changes many jobs does so in a bounded batch, says what is left,
-- and may be called again until nothing is. sql/README.md shows each at work.

create or replace function processor.set_paused(queue text, paused boolean)
returns public.job_queues
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
as $$
  select * from processor.set_paused(pause_queue.name, true)
$$;
comment on function processor.pause_queue(text) is
  'Nothing of the queue is claimed from now on; what runs goes on, new jobs wait: select * from processor.pause_queue(''default'').';

create or replace function processor.resume_queue(name text)
returns public.job_queues
language sql
set search_path = '', pg_temp
as $$
  select * from processor.set_paused(resume_queue.name, false)
$$;
comment on function processor.resume_queue(text) is 'The end of pause_queue(): workers are woken and claim again.';

create or replace function processor.set_queue_limits(name text, limits jsonb)
returns public.job_queues
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  q public.job_queues;
  wanted public.job_queues;
begin
  perform processor.check_limits(set_queue_limits.limits);
  -- LOCK: the queue
  select * into q from public.job_queues x where x.name = set_queue_limits.name for no key update;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', coalesce(left(set_queue_limits.name, 100), 'null')), '',
      'See select name from public.job_queues.');
  end if;
  wanted := jsonb_populate_record(q, set_queue_limits.limits - array['rate_seconds', 'timeout_seconds']);
  wanted.rate_period := coalesce(make_interval(secs => (limits ->> 'rate_seconds')::double precision), q.rate_period);
  wanted.timeout := coalesce(make_interval(secs => (limits ->> 'timeout_seconds')::double precision), q.timeout);
  if wanted is distinct from q then -- no worker is woken for nothing
    update public.job_queues x
    set max_processing = wanted.max_processing, rate_limit = wanted.rate_limit, rate_period = wanted.rate_period,
      max_processing_per_owner = wanted.max_processing_per_owner, max_pending_per_owner = wanted.max_pending_per_owner,
      max_attempts = wanted.max_attempts, timeout = wanted.timeout
    where x.name = q.name;
  end if;
  return wanted;
end
$$;
comment on function processor.set_queue_limits(text, jsonb) is
  'Change some of a queue''s limits, the others stay; null lifts one: select * from processor.set_queue_limits(''default'', '
  '''{"max_processing": 5, "rate_limit": null}''). Their names are those of job_queues, with rate_seconds and timeout_seconds.';

create or replace function processor.drain_worker(worker text)
returns setof public.job_workers
language plpgsql
set search_path = '', pg_temp
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
set search_path = '', pg_temp
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
  -- LOCK: every creator's turn; the accounts of all, by owner; then one new job after the other, by the id of the old one
  perform processor.take_turns(null);
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
set search_path = '', pg_temp
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
  perform processor.lock_jobs(seen);
  -- while waiting some were claimed, moved or ended: what they are now decides
  select coalesce(array_agg(j.id order by j.id) filter (where j.status = 'pending'), '{}'),
    coalesce(array_agg(j.id order by j.id) filter (where j.status = 'processing' and j.cancel_requested_at is null), '{}')
  into ended, told
  from public.jobs j where j.id = any (seen) and j.queue = cancel_queue.name;
  perform processor.conclude(array(
    select processor.ending(e, 'cancelled', 'CANCELLED', 'cancelled with its queue before it started') from unnest(ended) e
  ));
  perform processor.request_cancel(told);

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
set search_path = '', pg_temp
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
set search_path = '', pg_temp
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
  perform 1 from public.credit_accounts a where a.owner_id = entry.owner_id for no key update;
  perform processor.expire_lots(array[entry.owner_id]);
  select a.available into available from public.credit_accounts a where a.owner_id = entry.owner_id;
  select coalesce(sum(e.amount), 0)::bigint into taken_in_all from public.credit_entries e where e.undoes = entry.id;
  owner_id := entry.owner_id;
  granted := entry.amount;
  taken := least(granted - taken_in_all, available);
  if taken > 0 then
    -- the grant's own lot first, then the others in the order of burning
    with lots as materialized (
      select x.id, x.remaining, x.upto, least(x.upto, taken) - (x.upto - x.remaining) as amount
      from (
        select l.id, l.remaining,
          sum(l.remaining) over (
            order by l.id is distinct from entry.lot_id, l.priority desc, l.expires_at, l.id
          )::bigint as upto
        from public.credit_lots l
        where l.owner_id = entry.owner_id and not l.exhausted
      ) x
      where x.upto - x.remaining < taken
    ),
    journal as (
      insert into public.credit_entries (owner_id, kind, amount, reason, undoes, lot_id)
      select entry.owner_id, 'clawback', x.amount, undo_grant.reason, entry.id, x.id from lots x order by x.upto
    ),
    emptied as (
      update public.credit_lots l set remaining = l.remaining - x.amount from lots x where l.id = x.id
    )
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
  'Take a wrong grant back, as far as credits are available: first what is left of the grant itself, then others as they would burn. '
  'What jobs hold or have spent stays theirs and is told as missing. Asked again, it takes what has become available since, never '
  'more than the grant in all.';
-- The operator's page and the job panel, over the API: what the views before tell and what the functions before do, for operators who
-- have no connection to the database. Whoever is none is refused, JQ015; read_jobs() and read_job() show users what is their own.
--
-- A page asks again every 10 to 30 seconds, so each is bounded: what a time can hold is asked for in hours or days, and what is
-- estimated says so. Intervals are seconds.

create or replace function public.read_queues()
returns table (queue text, paused boolean, max_processing int, rate_limit int, rate_seconds double precision, max_processing_per_owner int,
  max_pending_per_owner int, max_attempts int, timeout_seconds double precision, live_workers bigint, due bigint, waiting bigint,
  scheduled bigint, processing bigint, oldest_due_seconds double precision, done_last_hour bigint, failed_last_hour bigint,
  run_seconds_p50 double precision, run_seconds_p95 double precision)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
rows 20
set search_path = '', pg_temp
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
begin
  perform processor.check_operator();
  return query
  select h.queue, h.paused, h.max_processing, q.rate_limit, extract(epoch from q.rate_period)::double precision,
    q.max_processing_per_owner, q.max_pending_per_owner, q.max_attempts, extract(epoch from q.timeout)::double precision,
    h.live_workers, h.due, h.waiting, h.scheduled, h.processing, extract(epoch from h.oldest_due_age)::double precision,
    h.done_last_hour, h.failed_last_hour, h.run_seconds_p50, h.run_seconds_p95
  from processor.queue_health h
  left join public.job_queues q on q.name = h.queue
  order by h.queue;
end
$$;
comment on function public.read_queues() is
  'processor.queue_health and the limits of each queue, for operators. paused is null: it has jobs, but no row in job_queues.';

create or replace function public.read_workers()
returns table (id uuid, name text, host text, pid int, version text, alive boolean, draining boolean, feed text, transport text, slots int,
  running int, lease_left_seconds double precision, heartbeat_age_seconds double precision, started_at timestamptz, queues text[],
  kinds text[])
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  perform processor.check_operator();
  return query
  select h.id, h.name, h.host, h.pid, h.version, h.alive, h.draining, h.feed, w.transport, h.slots, h.running,
    extract(epoch from h.lease_left)::double precision, extract(epoch from h.heartbeat_age)::double precision, h.started_at, h.queues,
    h.kinds
  from processor.worker_health h
  join public.job_workers w on w.id = h.id
  order by h.name, h.id;
end
$$;
comment on function public.read_workers() is
  'processor.worker_health for operators: who works, is alive, drains, has fallen back to polling.';

create or replace function public.read_schedules()
returns table (schedule text, state text, why text, kind text, queue text, cron text, timezone text, paused boolean,
  next_run_at timestamptz, next_in_seconds double precision, last_run_at timestamptz, last_job_id uuid, last_status text, catch_up text,
  declared boolean)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  perform processor.check_operator();
  return query
  select h.schedule, h.state, h.why, h.kind, h.queue, h.cron, h.timezone, h.state = 'paused', h.next_run_at,
    extract(epoch from h.next_in)::double precision, h.last_run_at, h.last_job_id, h.last_status, h.catch_up, h.declared
  from processor.schedule_health h
  order by h.schedule;
end
$$;
comment on function public.read_schedules() is 'processor.schedule_health for operators: what runs when, and what does not.';

create or replace function processor.hours_ago(hours int, bucket text)
returns timestamptz
language plpgsql
stable
set search_path = '', pg_temp
as $$
begin
  perform processor.check_range('hours', coalesce(hours_ago.hours, 0), 1, 168);
  return date_trunc(hours_ago.bucket, processor.now() - make_interval(hours => hours_ago.hours), 'UTC');
end
$$;
comment on function processor.hours_ago(int, text) is
  'The minute or hour (bucket) that was so many hours ago; JQ006 unless they are 1 to 168.';

create or replace function public.read_errors(hours int default 24)
returns table (kind text, code text, failures bigint, jobs bigint, ended bigint, last_at timestamptz, sample_message text,
  sample_job_id uuid)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  perform processor.check_operator();
  return query
  select f.kind, f.code, count(*), count(distinct f.job_id), count(distinct f.job_id) filter (where f.final), max(f.failed_at),
    (array_agg(f.message order by f.failed_at desc))[1], (array_agg(f.job_id order by f.failed_at desc))[1]
  from processor.failed_attempts(processor.hours_ago(read_errors.hours, 'minute')) f
  group by f.kind, f.code
  order by 3 desc, 1, 2;
end
$$;
comment on function public.read_errors(int) is
  'processor.error_summary for operators, of the last hours (1 to 168): failed attempts by kind and code, the most frequent first. '
  'jobs: of how many jobs; ended: how many of these ended so.';

create or replace function public.read_error_rates(hours int default 24)
returns table (starts_at timestamptz, code text, failures bigint)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  bucket constant interval := case when read_error_rates.hours <= 3 then interval '5 minutes' else interval '1 hour' end;
begin
  perform processor.check_operator();
  return query
  select date_bin(bucket, f.failed_at, timestamptz '2000-01-01 00:00:00+00'), f.code, count(*)
  from processor.failed_attempts(processor.hours_ago(read_error_rates.hours, 'hour')) f
  group by 1, 2
  order by 1, 2;
end
$$;
comment on function public.read_error_rates(int) is
  'Failed attempts over the last hours (1 to 168) by code, for operators: in 5 minutes each if hours is at most 3, else in hours; where '
  'nothing failed there is no row.';

create or replace function public.read_throughput(hours int default 24)
returns table (starts_at timestamptz, queue text, completed bigint, partial bigint, failed bigint, cancelled bigint,
  pickup_seconds_p50 double precision, pickup_seconds_p95 double precision, run_seconds_p50 double precision,
  run_seconds_p95 double precision)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  bucket constant text := case when read_throughput.hours <= 3 then 'minute' else 'hour' end;
  width constant interval := ('1 ' || bucket)::interval;
  since timestamptz;
begin
  perform processor.check_operator();
  since := processor.hours_ago(read_throughput.hours, bucket);
  -- A day of a million jobs is read in indexes, the table itself would take seconds: how many ended is in one, how those ended
  -- that did not complete in another, and how long it took is looked up for some jobs, chosen by a hash of their ids.
  return query
  with counted as materialized (
    select b.starts_at, n.queue, e.jobs, o.partial, o.failed, o.cancelled
    from processor.queue_names() n (queue)
    cross join generate_series(since, moment, width) b (starts_at)
    cross join lateral (
      select count(*) as jobs from public.jobs x
      where x.queue = n.queue and x.finished_at >= b.starts_at and x.finished_at < b.starts_at + width
    ) e
    cross join lateral (
      select count(*) filter (where x.status = 'partial') as partial, count(*) filter (where x.status = 'failed') as failed,
        count(*) filter (where x.status = 'cancelled') as cancelled
      from public.jobs x
      where x.queue = n.queue and x.finished_at >= b.starts_at and x.finished_at < b.starts_at + width
        and x.status in ('partial', 'failed', 'cancelled')
    ) o
    where e.jobs > 0
  ),
  chosen as materialized (
    select x.id
    from processor.queue_names() n (queue)
    cross join lateral (
      select j.id from public.jobs j
      where j.queue = n.queue and j.finished_at between since and moment
        and uuid_hash(j.id) <= (select (4294967296 * least(1, 30000 / sum(c.jobs)))::bigint - 2147483648 from counted c)
    ) x
  ),
  took as (
    select date_bin(width, x.finished_at, since) as starts_at, x.queue,
      percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from x.started_at - greatest(x.run_at, x.created_at)))
        as pickup_seconds,
      percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from x.finished_at - x.started_at)) as run_seconds
    from public.jobs x
    where x.id = any (array(select c.id from chosen c))
      and x.started_at >= greatest(x.run_at, x.created_at) -- not what was cancelled while it waited
    group by 1, 2
  )
  select c.starts_at, c.queue, c.jobs - c.partial - c.failed - c.cancelled, c.partial, c.failed, c.cancelled,
    t.pickup_seconds[1], t.pickup_seconds[2], t.run_seconds[1], t.run_seconds[2]
  from counted c
  left join took t on t.starts_at = c.starts_at and t.queue = c.queue
  order by 1, 2;
end
$$;
comment on function public.read_throughput(int) is
  'What ended in the last hours (1 to 168), for operators, by queue: in minutes if hours is at most 3, else in hours; where nothing ended '
  'there is no row. Of the last attempts: pickup is from when the job was due (run_at; with children: when the last one ended) to when a '
  'worker claimed it, so pauses, limits and busy workers are in it; run is from there to the end. Counts are exact. Of more than 30,000 '
  'jobs the times are those of about 30,000, chosen at random.';

create or replace function processor.first_entry_since(moment timestamptz)
returns bigint
language plpgsql
stable
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  low bigint := 0; -- came before
  high bigint := (select max(e.id) + 1 from public.credit_entries e); -- did not
  middle bigint;
begin
  while high - low > 1 loop
    middle := low + (high - low) / 2;
    if (select e.created_at from public.credit_entries e where e.id >= middle order by e.id limit 1) < first_entry_since.moment then
      low := middle;
    else
      high := middle;
    end if;
  end loop;
  return coalesce(high, 0);
end
$$;
comment on function processor.first_entry_since(timestamptz) is
  'From which id on the journal of credits is about a time: ids grow with time, to within the length of a transaction.';

create or replace function public.read_credit_days(days int default 30)
returns table (day date, granted bigint, reserved bigint, captured bigint, refunded bigint, expired bigint)
language plpgsql
stable
security definer -- nobody but the owner may read the credits of all
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
declare
  today constant date := (processor.now() at time zone 'UTC')::date;
  since timestamptz;
  first_id bigint;
begin
  perform processor.check_operator();
  perform processor.check_range('days', coalesce(read_credit_days.days, 0), 1, 366);
  since := (today - read_credit_days.days + 1)::timestamp at time zone 'UTC';
  first_id := processor.first_entry_since(since - interval '1 hour');
  return query
  with sums as (
    select date_bin(interval '24 hours', e.created_at, since) as day, e.kind, sum(e.amount)::bigint as amount
    from public.credit_entries e
    where e.id >= first_id and e.created_at >= since
    group by 1, 2
  )
  select (d.day at time zone 'UTC')::date,
    coalesce(sum(case s.kind when 'grant' then s.amount when 'clawback' then -s.amount end), 0)::bigint,
    coalesce(sum(s.amount) filter (where s.kind = 'reserve'), 0)::bigint,
    coalesce(sum(s.amount) filter (where s.kind = 'capture'), 0)::bigint,
    coalesce(sum(s.amount) filter (where s.kind in ('release', 'refund')), 0)::bigint,
    coalesce(sum(s.amount) filter (where s.kind = 'expire'), 0)::bigint
  from (select since + n * interval '24 hours' as day from generate_series(0, read_credit_days.days - 1) n) d
  left join sums s on s.day = d.day
  group by 1
  order by 1;
end
$$;
comment on function public.read_credit_days(int) is
  'The credits of all owners on each of the last days (1 to 366, UTC, today included), for operators, from the journal. granted: less what '
  'was taken back; captured: when the job ended; refunded: what jobs gave back when they ended, and what was refunded later. Every entry '
  'of those days is read, which takes a second for a million: where there are many, ask seldom.';

create or replace view processor.job_lines with (security_invoker = on) as
select j.id, j.queue, j.kind, j.owner_id, j.status, j.priority, j.progress, j.progress_message, j.items_total, j.items_done,
  j.items_failed, j.attempt, j.max_attempts, j.run_at, j.created_at, j.started_at, j.finished_at, j.updated_at, j.cancel_requested_at,
  j.error_code, j.error_message, j.credits_held, j.credits_captured, j.credits_refunded, j.retry_of, j.parent_id, j.tags
from public.jobs j;
comment on view processor.job_lines is 'What a list shows of a job: all but what can be large, payload, result and errors.';
comment on column processor.job_lines.id is 'As in jobs.';
comment on column processor.job_lines.queue is 'As in jobs.';
comment on column processor.job_lines.kind is 'As in jobs.';
comment on column processor.job_lines.owner_id is 'As in jobs.';
comment on column processor.job_lines.status is 'As in jobs.';
comment on column processor.job_lines.priority is 'As in jobs.';
comment on column processor.job_lines.progress is 'As in jobs.';
comment on column processor.job_lines.progress_message is 'As in jobs.';
comment on column processor.job_lines.items_total is 'As in jobs.';
comment on column processor.job_lines.items_done is 'As in jobs.';
comment on column processor.job_lines.items_failed is 'As in jobs.';
comment on column processor.job_lines.attempt is 'As in jobs.';
comment on column processor.job_lines.max_attempts is 'As in jobs.';
comment on column processor.job_lines.run_at is 'As in jobs.';
comment on column processor.job_lines.created_at is 'As in jobs.';
comment on column processor.job_lines.started_at is 'As in jobs.';
comment on column processor.job_lines.finished_at is 'As in jobs.';
comment on column processor.job_lines.updated_at is 'As in jobs.';
comment on column processor.job_lines.cancel_requested_at is 'As in jobs.';
comment on column processor.job_lines.error_code is 'As in jobs.';
comment on column processor.job_lines.error_message is 'As in jobs.';
comment on column processor.job_lines.credits_held is 'As in jobs.';
comment on column processor.job_lines.credits_captured is 'As in jobs.';
comment on column processor.job_lines.credits_refunded is 'As in jobs.';
comment on column processor.job_lines.retry_of is 'As in jobs.';
comment on column processor.job_lines.parent_id is 'As in jobs.';
comment on column processor.job_lines.tags is 'As in jobs.';

create or replace function public.read_jobs(statuses text[] default null, queue text default null, search text default null,
  before uuid default null, "limit" int default 50)
returns setof processor.job_lines
language plpgsql
stable
security definer -- an operator has no right to read the jobs of others but through this
rows 50
set search_path = '', pg_temp
set plan_cache_mode = force_custom_plan -- which index is best depends on what is asked for
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
-- "limit" is a keyword and the name that callers know: @plpgsql_check_options: other_warnings = off
declare
  everybody constant boolean := processor.is_operator();
  caller constant uuid := auth.uid();
  pattern text;
  digits text;
begin
  perform processor.check_range('limit', coalesce(read_jobs."limit", 0), 1, 500);
  perform processor.check_choice('status', s, array['pending', 'processing', 'completed', 'partial', 'failed', 'cancelled'])
  from unnest(read_jobs.statuses) s;
  if coalesce(read_jobs.search, '') = '' then
    return query
    select l.* from processor.job_lines l
    where (everybody or l.owner_id = caller)
      and (read_jobs.before is null or l.id < read_jobs.before)
      and (read_jobs.statuses is null or l.status = any (read_jobs.statuses))
      and (read_jobs.queue is null or l.queue = read_jobs.queue)
    order by l.id desc
    limit read_jobs."limit";
    return;
  end if;
  perform processor.check_text('search', read_jobs.search, 200);
  pattern := '%' || regexp_replace(read_jobs.search, '([\\%_])', '\\\1', 'g') || '%';
  digits := replace(substring(lower(read_jobs.search) from '^[0-9a-f-]{8,36}$'), '-', '');
  if length(digits) not between 8 and 32 then
    digits := null;
  end if;
  return query
  select * from (
    (
      select l.* from (
        select x.* from processor.job_lines x
        where (everybody or x.owner_id = caller)
          and (read_jobs.before is null or x.id < read_jobs.before)
          and (read_jobs.statuses is null or x.status = any (read_jobs.statuses))
          and (read_jobs.queue is null or x.queue = read_jobs.queue)
        order by x.id desc
        limit 100000
      ) l
      where l.kind ilike pattern or l.error_code ilike pattern or l.error_message ilike pattern or l.progress_message ilike pattern
        or exists (select from unnest(l.tags) t where t ilike pattern)
      order by l.id desc
      limit read_jobs."limit"
    )
    union
    (
      select x.* from processor.job_lines x
      where x.id between rpad(digits, 32, '0')::uuid and rpad(digits, 32, 'f')::uuid
        and (everybody or x.owner_id = caller)
        and (read_jobs.before is null or x.id < read_jobs.before)
        and (read_jobs.statuses is null or x.status = any (read_jobs.statuses))
        and (read_jobs.queue is null or x.queue = read_jobs.queue)
      order by x.id desc
      limit read_jobs."limit"
    )
  ) f
  order by f.id desc
  limit read_jobs."limit";
end
$$;
comment on function public.read_jobs(text[], text, text, uuid, int) is
  'Jobs for a list, the newest first: an operator''s everybody''s, a user''s own. before: the last id of the page before. limit: 1 to 500. '
  'search: words of kind, tags, error_code, error_message, progress_message, whatever their case, among the newest 100,000 of the others; '
  'or how an id begins, 8 digits or more, among all.';

create or replace function public.read_job(job_id uuid)
returns jsonb
language plpgsql
stable
security definer -- an operator has no right to read the jobs of others but through this
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  return (
    select jsonb_build_object(
      'job', to_jsonb(j) - array['claim_id', 'input_digest'],
      'items', coalesce((
        select jsonb_agg(to_jsonb(i) - array['job_id', 'stored', case when i.stored > 1048576 then 'payload' end,
            case when i.stored > 1048576 then 'result' end]
          || jsonb_build_object('left_out', i.stored > 1048576) order by i.position)
        from (
          select x.*, sum(pg_column_size(x.payload) + coalesce(pg_column_size(x.result), 0)) over (order by x.position) as stored
          from public.job_items x where x.job_id = j.id
        ) i
      ), '[]'),
      'logs', coalesce((
        select jsonb_agg(to_jsonb(g) - 'job_id' order by g.id)
        from (select x.* from public.job_logs x where x.job_id = j.id order by x.id desc limit 200) g
      ), '[]'),
      'entries', coalesce((
        select jsonb_agg(jsonb_build_object('at', e.created_at, 'kind', e.kind, 'amount', e.amount, 'reason', e.reason) order by e.id)
        from public.credit_entries e where e.job_id = j.id
      ), '[]'),
      'price', (
        select jsonb_build_object('units', h.units, 'unit_price', h.unit_price, 'per_item', h.per_item)
        from public.credit_holds h where h.job_id = j.id
      )
    )
    from public.jobs j
    where j.id = read_job.job_id and (processor.is_operator() or j.owner_id = (select auth.uid()))
  );
end
$$;
comment on function public.read_job(uuid) is
  'All about a job, for its owner and for operators; null for others. {"job": its row, "items": in order, payloads and results up to 1 MiB '
  'in all, left_out after that, "logs": the last 200 lines, "entries": [{"at", "kind", "amount", "reason"}] of the journal of credits, '
  '"price": {"units", "unit_price", "per_item"}, null if it is free}.';

create or replace function public.pause_queue(name text)
returns public.job_queues
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.pause_queue(pause_queue.name);
end
$$;
comment on function public.pause_queue(text) is 'processor.pause_queue() for operators: nothing of the queue is claimed from now on.';

create or replace function public.resume_queue(name text)
returns public.job_queues
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.resume_queue(resume_queue.name);
end
$$;
comment on function public.resume_queue(text) is 'processor.resume_queue() for operators: its workers claim again.';

create or replace function public.set_queue_limits(name text, limits jsonb)
returns public.job_queues
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.set_queue_limits(set_queue_limits.name, set_queue_limits.limits);
end
$$;
comment on function public.set_queue_limits(text, jsonb) is
  'processor.set_queue_limits() for operators: only what is given changes, null lifts a limit. Keys: max_processing, rate_limit, '
  'rate_seconds, max_processing_per_owner, max_pending_per_owner, timeout_seconds, max_attempts.';

create or replace function public.drain_worker(worker text)
returns setof public.job_workers
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return query select * from processor.drain_worker(drain_worker.worker);
end
$$;
comment on function public.drain_worker(text) is
  'processor.drain_worker() for operators: the worker (by id, or all of a name) finishes what it has and claims no more.';

create or replace function public.pause_schedule(name text)
returns public.job_schedules
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.pause_schedule(pause_schedule.name);
end
$$;
comment on function public.pause_schedule(text) is 'processor.pause_schedule() for operators: it makes no more jobs.';

create or replace function public.resume_schedule(name text)
returns public.job_schedules
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.resume_schedule(resume_schedule.name);
end
$$;
comment on function public.resume_schedule(text) is 'processor.resume_schedule() for operators: it goes on with the next time to come.';

create or replace function public.run_schedule(name text)
returns public.jobs
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
begin
  perform processor.check_operator();
  return processor.run_schedule(run_schedule.name);
end
$$;
comment on function public.run_schedule(text) is 'processor.run_schedule() for operators: one more job of it, now.';
-- Retention: finished jobs go when they are old AND many newer ones have finished in their queue.

create or replace function processor.prune_jobs(batch int default 1000)
returns int
language plpgsql
set search_path = '', pg_temp
set jit = off -- a batch is too short for compiling to pay
set enable_sort = off -- without statistics the planner would sort all that has ended instead of reading jobs_finished_idx
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
        -- asked for each, where `not exists` would be joined, and all holds and jobs be read for that
        and (select h.closed_at is null from public.credit_holds h where h.job_id = j.id) is not true
        -- a parent still looks at its children
        and (j.parent_id is null or (select p.finished_at is null from public.jobs p where p.id = j.parent_id) is not true)
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
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
begin
  -- LOCK: a word of its own, until the end of the transaction; whoever finds it taken leaves the work to the other
  if not pg_try_advisory_xact_lock(hashtextextended('processor.prune_jobs', 0)) then
    return 0;
  end if;
  return processor.prune_jobs(prune_jobs.batch);
end
$$;
comment on function public.prune_jobs(int) is
  'processor.prune_jobs() for the workers: all call it now and then, one at a time does it, the others are told 0.';
-- For `processor doctor`: what a worker's key can learn of the installation, without a connection to the database.

create or replace function public.check_installation()
returns jsonb
language plpgsql
stable
security definer -- the worker's role has no right to look into schema processor
set search_path = '', pg_temp
as $$
begin
  return jsonb_build_object(
    'now', processor.now(),
    'schema_version', processor.schema_version(),
    'role', coalesce(nullif(current_setting('role', true), 'none'), session_user),
    'problems', coalesce((select jsonb_agg(c.problem order by c.problem) from processor.check_schema() c), '[]'),
    -- what Realtime reads the changes from
    'wal_level', current_setting('wal_level'),
    -- what the transport broadcast sends with
    'broadcast', to_regprocedure('realtime.send(jsonb, text, text, boolean)') is not null
  );
end
$$;
comment on function public.check_installation() is
  'What processor doctor shows of the installation: the time, the schema''s version, the caller''s role, processor.check_schema(), '
  'and whether Realtime has what it needs.';
-- How the tables are stored: room for updates, where large values go, when to vacuum. ARCHITECTURE.md has the figures behind
-- it, and bench/ measures them again. One statement a table: the options keep their order, however often this runs.
-- Tables that are not named here are small or hardly change: PostgreSQL's defaults are right for them.

-- LOCK: share update exclusive on each table: neither reads nor writes wait
alter table public.jobs set (
  -- progress is written in place (HOT): room for new versions of jobs beside the old ones
  fillfactor = 70,
  -- of a row above 2 kB only 512 bytes stay: payload and result move out, and a transition does not write them again
  toast_tuple_target = 512,
  -- a claim passes the places in the index of all that was claimed since the last vacuum. So vacuum after some ten thousand
  -- transitions, not after a fifth of all that was ever kept, and the indexes each time
  autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_scale_factor = 0.001,
  vacuum_index_cleanup = on,
  autovacuum_vacuum_cost_limit = 1000,
  autovacuum_analyze_threshold = 10000,
  autovacuum_analyze_scale_factor = 0.02
);
-- items change in place as well; nothing looks for them but by their job
alter table public.job_items set (
  fillfactor = 80,
  toast_tuple_target = 512,
  autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_cost_limit = 1000
);
-- a handful of rows, changed all day: the next look at the page clears what was there before, if it all is on one page
alter table public.job_workers set (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
alter table processor.queue_tokens set (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
-- written once, and taken away with their job: as often as pruning leaves something
alter table public.job_logs set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
alter table public.credit_captures set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
alter table public.job_checkpoints set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
-- changed once, when it is closed
alter table public.credit_holds set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
-- the journal only grows, for ever: freeze it in small portions, not a fifth of it at once
alter table public.credit_entries set (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
-- The feed's other way: messages that the database itself sends, for projects beyond the limits of Postgres Changes.
--
-- One message a statement, however many jobs it makes pending, and only while a worker listens that serves their queues;
-- a message names queues and carries no job. Without such a worker each trigger costs one look into an empty index.
-- realtime.send() belongs to Supabase: where it is missing or fails, nothing of ours does.

create or replace function processor.send(topic text, event text, payload jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  -- on a private topic: who may hear it, the policies on realtime.messages say
  perform realtime.send(send.payload, send.event, send.topic, true);
exception when others then -- a message that is lost costs a worker time; it must cost nobody the transaction
  raise warning 'realtime.send failed: % (%)', sqlerrm, sqlstate;
end
$$;
comment on function processor.send(text, text, jsonb) is 'Send a message to workers whose feed is broadcast. Never fails.';

create or replace function processor.send_queues(queues text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  served jsonb;
begin
  select jsonb_agg(q.queue order by q.queue) into served
  from (select distinct unnest(send_queues.queues) as queue) q
  where exists (
    select from public.job_workers w
    where w.transport = 'broadcast' and w.lease_expires_at > processor.now() and q.queue = any (w.queues)
  );
  if served is not null then
    perform processor.send('processor:jobs', 'look', jsonb_build_object('queues', served));
  end if;
end
$$;
comment on function processor.send_queues(text[]) is
  'Have workers whose feed is broadcast look at these queues, as far as one of them serves them.';

create or replace function processor.somebody_listens()
returns boolean
language plpgsql
stable
set search_path = '', pg_temp
as $$
begin
  -- workers are locked before jobs, and who asks here has locked jobs: where there has never been a listener, one look at
  -- the size of their index, whose lock is not kept, spares the table. An index without entries is one page
  if pg_relation_size(to_regclass('public.job_workers_broadcast_idx')) <= current_setting('block_size')::bigint then
    return false;
  end if;
  return exists (select from public.job_workers w where w.transport = 'broadcast');
end
$$;
comment on function processor.somebody_listens() is 'Whether there is a worker whose feed is broadcast.';

create or replace function public.tell_of_jobs()
returns trigger
language plpgsql
security definer -- whoever makes jobs has no right to see workers, nor to send
set search_path = '', pg_temp
as $$
begin
  if processor.somebody_listens() then
    -- what waits for its children changes with each that ends, and cannot run before the last
    perform processor.send_queues(array(
      select distinct c.queue from changed c where c.status = 'pending' and c.run_at < processor.never()
    ));
  end if;
  return null;
end
$$;
comment on function public.tell_of_jobs() is 'The trigger that tells workers whose feed is broadcast of pending jobs.';

create or replace function public.tell_of_queues()
returns trigger
language plpgsql
security definer -- whoever turns the knobs of a queue has no right to send
set search_path = '', pg_temp
as $$
begin
  if processor.somebody_listens() then
    perform processor.send_queues(array(select c.name from changed c where not c.paused));
  end if;
  return null;
end
$$;
comment on function public.tell_of_queues() is 'The trigger that tells workers whose feed is broadcast of changed queues.';

create or replace function public.tell_worker()
returns trigger
language plpgsql
security definer -- whoever cancels a job has no right to send
set search_path = '', pg_temp
as $$
begin
  perform processor.send('processor:worker:' || new.id, 'worker', jsonb_build_object(
    'id', new.id, 'heartbeat_at', new.heartbeat_at, 'inbox', new.inbox, 'draining', new.draining));
  return null;
end
$$;
comment on function public.tell_worker() is
  'The trigger that tells a worker whose feed is broadcast of its own row: its inbox, and the echo of its heartbeat.';

-- statements, not rows; a condition that no other worker's row meets. Only what is missing or differs: making a trigger
-- locks the table, and jobs run while this is applied
do $$
declare
  wanted record;
begin
  for wanted in
    select w.relation, w.name, w.definition
    from (values
      ('public.jobs', 'jobs_tell_when_made', 'after insert on public.jobs'
        ' referencing new table as changed for each statement execute function public.tell_of_jobs()'),
      ('public.jobs', 'jobs_tell_when_changed', 'after update on public.jobs'
        ' referencing new table as changed for each statement execute function public.tell_of_jobs()'),
      ('public.job_queues', 'job_queues_tell_when_changed', 'after update on public.job_queues'
        ' referencing new table as changed for each statement execute function public.tell_of_queues()'),
      ('public.job_workers', 'job_workers_tell_when_changed', 'after update on public.job_workers'
        ' for each row when ((new.transport = ''broadcast''::text)) execute function public.tell_worker()')
    ) w (relation, name, definition)
    where not exists (
      select from pg_catalog.pg_trigger t
      where t.tgrelid = w.relation::regclass and t.tgname = w.name
        and replace(lower(pg_catalog.pg_get_triggerdef(t.oid)), 'public.', '') -- which is said if the search_path lacks it
          = replace(format('create trigger %s %s', w.name, w.definition), 'public.', '')
    )
  loop
    execute format('create or replace trigger %I %s', wanted.name, wanted.definition);
  end loop;
end
$$;

do $$
declare
  -- by the catalog: who may not use the schema may not name its tables
  messages constant oid := (
    select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'realtime' and c.relname = 'messages'
  );
  policy record;
begin
  if messages is null then
    return; -- not a database that Realtime works with
  end if;
  -- service_role needs neither rights nor policies. The table is Supabase's: hosted projects may keep us from granting
  begin
    grant usage on schema realtime to job_processor;
    grant select, insert on realtime.messages to job_processor;
  exception when insufficient_privilege then
    null;
  end;
  if not has_table_privilege('job_processor', messages, 'select') then
    raise notice 'job_processor may not read realtime.messages: workers with its token cannot use the broadcast feed';
  end if;
  -- only what is missing: others send while this runs, and a policy locks the table
  for policy in
    select w.name, w.definition
    from (values
      ('processor_topics_are_heard_by_workers',
        $policy$for select to job_processor using (topic like 'processor:%' and extension = 'broadcast')$policy$),
      ('processor_topics_are_probed_by_workers',
        $policy$for insert to job_processor with check (topic like 'processor:worker:%' and extension = 'broadcast')$policy$),
      -- an application's own policies may open every topic to its users
      ('processor_topics_are_for_workers_alone',
        $policy$as restrictive for all to public using (topic not like 'processor:%' or current_user = 'job_processor')$policy$)
    ) w (name, definition)
    where not exists (
      select from pg_catalog.pg_policy p where p.polrelid = messages and p.polname = w.name
    )
  loop
    begin
      execute format('create policy %I on realtime.messages %s', policy.name, policy.definition);
    exception when insufficient_privilege then
      raise warning 'the policy % on realtime.messages could not be made: apply the schema as postgres', policy.name;
    end;
  end loop;
end
$$;
-- Who may do what. Everything is refused first, then granted one by one.

revoke all on schema processor from public, anon, authenticated, service_role, job_processor;
grant usage on schema public to anon, authenticated, service_role, job_processor;

do $$
declare
  -- whoever else holds rights got them from the operator, and keeps them
  api constant text := 'public, anon, authenticated, service_role, job_processor';
  tables constant text[] := array[ -- and views
    'jobs', 'job_items', 'job_checkpoints', 'job_logs', 'job_queues', 'job_kinds', 'job_schedules', 'job_workers',
    'credit_accounts', 'credit_lots', 'credit_entries', 'credit_holds', 'credit_captures', 'credit_statement'
  ];
  functions constant text[] := array[
    'create_job', 'create_jobs', 'cancel_job', 'retry_job', 'grant_credits', 'refund_credits', 'expire_credits',
    'tell_of_jobs', 'tell_of_queues', 'tell_worker',
    'register_worker', 'heartbeat_worker', 'claim_jobs',
    'report_progress', 'append_job_logs', 'save_checkpoints', 'read_checkpoint', 'finish_items', 'finish_jobs', 'release_jobs',
    'spawn_jobs', 'deregister_worker', 'prune_jobs', 'guard_schedule', 'run_due_schedules', 'check_installation',
    'read_queues', 'read_workers', 'read_schedules', 'read_errors', 'read_error_rates', 'read_throughput', 'read_credit_days',
    'read_jobs', 'read_job', 'pause_queue', 'resume_queue', 'set_queue_limits', 'drain_worker', 'pause_schedule', 'resume_schedule',
    'run_schedule'
  ];
  o record;
begin
  -- default privileges may have given anything to anybody when an object was made, and nothing revokes them as a
  -- whole: `alter default privileges in schema` would not even take PUBLIC's right to execute. So each by name
  for o in
    select 'schema' as kind, n.oid::regnamespace::text as name, n.nspowner as owner
    from pg_catalog.pg_namespace n where n.nspname = 'processor'
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text, c.relowner
    from pg_catalog.pg_class c
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and (
      c.relnamespace = 'processor'::regnamespace
      or (c.relnamespace = 'public'::regnamespace and (c.relname = any (tables) or exists (
        select from pg_catalog.pg_depend d join pg_catalog.pg_class t on t.oid = d.refobjid
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
          and t.relnamespace = 'public'::regnamespace and t.relname = any (tables)
      )))
    )
    union all
    select 'type', t.oid::regtype::text, t.typowner
    from pg_catalog.pg_type t
    where t.typnamespace = 'processor'::regnamespace and t.typtype in ('c', 'd', 'e')
      and (t.typrelid = 0 or (select c.relkind from pg_catalog.pg_class c where c.oid = t.typrelid) = 'c')
    union all
    select 'function', p.oid::regprocedure::text, p.proowner
    from pg_catalog.pg_proc p
    where p.pronamespace = 'processor'::regnamespace
      or (p.pronamespace = 'public'::regnamespace and p.proname = any (functions))
  loop
    if o.owner <> (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'processor') then
      -- whoever owns a table can give it a trigger, which our functions would run with their own rights
      raise exception '% % belongs to %, not to % as schema processor does', o.kind, o.name, o.owner::regrole,
        (select n.nspowner::regrole from pg_catalog.pg_namespace n where n.nspname = 'processor')
        using hint = 'Apply the schema with one role, always the same. Whose object is it? If it is yours: alter … owner to ….';
    end if;
    execute format('revoke all on %s %s from %s', o.kind, o.name, api);
  end loop;
  for o in
    select c.oid::regclass as name, c.relnamespace = 'public'::regnamespace as exposed
    from pg_catalog.pg_class c
    where c.relkind in ('r', 'p')
      and (c.relnamespace = 'processor'::regnamespace or (c.relnamespace = 'public'::regnamespace and c.relname = any (tables)))
  loop
    execute format('alter table %s enable row level security', o.name);
    if o.exposed then
      execute format('grant select on table %s to service_role', o.name);
    end if;
  end loop;
end
$$;

-- tables: users read what is theirs, the service reads all and turns the knobs, nobody writes the rest
grant select on public.jobs, public.job_items, public.job_logs, public.job_kinds,
  public.credit_accounts, public.credit_lots, public.credit_entries, public.credit_holds, public.credit_captures,
  public.credit_statement to authenticated;
-- no row of these but to operators, see the policies
grant select on public.job_queues, public.job_workers, public.job_schedules to authenticated;
grant select on public.credit_statement to service_role;
grant insert, update, delete on public.job_queues, public.job_kinds, public.job_schedules to service_role;
grant update (draining) on public.job_workers to service_role;
-- the least-privilege worker reads what it subscribes to
grant select on public.jobs, public.job_queues, public.job_schedules, public.job_workers to job_processor;

-- a policy calls what it names with the rights of whoever reads; to be named once is enough, so nobody needs the schema
grant execute on function processor.is_operator() to authenticated;
-- the default of a column is computed with the rights of whoever inserts
grant execute on function processor.now() to service_role;
-- functions: clients
grant execute on function
  public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text, uuid, jsonb, text),
  public.create_jobs(jsonb),
  public.cancel_job(uuid),
  public.retry_job(uuid, boolean)
to authenticated, service_role;
-- functions: workers
grant execute on function
  public.register_worker(jsonb),
  public.heartbeat_worker(uuid, uuid[], text),
  public.claim_jobs(uuid, uuid, text[], int),
  public.report_progress(uuid, jsonb),
  public.append_job_logs(uuid, jsonb),
  public.save_checkpoints(uuid, jsonb),
  public.read_checkpoint(uuid, jsonb, text),
  public.finish_items(uuid, jsonb),
  public.finish_jobs(uuid, jsonb),
  public.release_jobs(uuid, jsonb),
  public.spawn_jobs(uuid, jsonb, jsonb, text),
  public.deregister_worker(uuid),
  public.prune_jobs(int),
  public.run_due_schedules(uuid, jsonb),
  public.expire_credits(int),
  public.check_installation()
to service_role, job_processor;
-- functions: operators, who may be signed-in users; each asks who is calling
grant execute on function
  public.read_queues(),
  public.read_workers(),
  public.read_schedules(),
  public.read_errors(int),
  public.read_error_rates(int),
  public.read_throughput(int),
  public.read_credit_days(int),
  public.read_jobs(text[], text, text, uuid, int),
  public.read_job(uuid),
  public.pause_queue(text),
  public.resume_queue(text),
  public.set_queue_limits(text, jsonb),
  public.drain_worker(text),
  public.pause_schedule(text),
  public.resume_schedule(text),
  public.run_schedule(text)
to authenticated, service_role;
-- functions: a server that sells credits
grant execute on function
  public.grant_credits(uuid, bigint, text, text, int, timestamptz),
  public.refund_credits(uuid, bigint, text, text)
to service_role;

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
drop policy if exists credit_lots_are_read_by_their_owner on public.credit_lots;
create policy credit_lots_are_read_by_their_owner on public.credit_lots
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
-- not so jobs: an "or" beside the owner would spoil the index; operators read them with read_jobs()
drop policy if exists job_queues_are_read_by_operators on public.job_queues;
create policy job_queues_are_read_by_operators on public.job_queues
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists job_workers_are_read_by_operators on public.job_workers;
create policy job_workers_are_read_by_operators on public.job_workers
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists job_schedules_are_read_by_operators on public.job_schedules;
create policy job_schedules_are_read_by_operators on public.job_schedules
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists jobs_are_read_by_workers on public.jobs;
create policy jobs_are_read_by_workers on public.jobs for select to job_processor using (true);
drop policy if exists job_queues_are_read_by_workers on public.job_queues;
create policy job_queues_are_read_by_workers on public.job_queues for select to job_processor using (true);
drop policy if exists job_workers_are_read_by_workers on public.job_workers;
create policy job_workers_are_read_by_workers on public.job_workers for select to job_processor using (true);
drop policy if exists job_schedules_are_read_by_workers on public.job_schedules;
create policy job_schedules_are_read_by_workers on public.job_schedules for select to job_processor using (true);
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
