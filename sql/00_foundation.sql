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
--   → items → worker; and beside these, of a webhook: delivery (by job_id) → endpoint → tokens
--   Whoever needs several rows of a kind locks them in ascending order before changing the first. With a job go its
--   ancestors (processor.lock_jobs), whom its end concerns. What is taken out of order waits for nobody (skip locked).
--
-- PLANS
--   What clients and workers call often keeps its plans (plan_cache_mode = force_generic_plan): planning was half of a short
--   call's time. As a plan may have been made when the tables were empty, enable_seqscan = off keeps it on the indexes.
--   Where there is no index it makes a plan look dear, and a server with JIT would compile it, which takes longer than most
--   calls: jit = off. All of it holds for everything that is called from there.
--
-- NAMES
--   Every function has search_path = '', pg_temp: nothing is found but what is named with its schema, and PostgreSQL's own.
--   pg_temp must be said, at the end: unnamed, the caller's temporary schema comes first where types are looked for.
--
-- THE FILES load in the order of their numbers. Each can be pasted into the SQL editor, twice if need be.
--   00 foundation · 05 checks · 10 queues and kinds · 20 workers · 30 jobs · 40 credits, 42 holds · 45 how a job ends
--   50, 52 create · 53 webhooks · 55 cancel, retry · 58, 59 schedules · 60 registration, heartbeat, rescue · 65 claim · 70 progress,
--   logs, items · 72 children · 73 checkpoints · 75 finish, release · 76 deliveries · 80 operators: credits · 81 the books · 82 views
--   83 alerts, metrics, telling, ended jobs · 84 operators: functions · 85 over the API, webhooks · 86 retention
--   87 installation · 88 storage · 89 broadcast · 90 security · 95 realtime

do $$
begin
  -- the same number as in processor.schema_version() below
  if to_regprocedure('processor.schema_version()') is not null then
    if processor.schema_version() > 4 then
      raise exception 'this database has version % of the schema, newer than version 4', processor.schema_version()
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
  select 4
$$;
comment on function processor.schema_version() is
  'The version of this schema. A daemon made for a newer one refuses to start and says what to run.';

create or replace function processor.oldest_worker_version()
returns int
language sql
immutable
set search_path = '', pg_temp
as $$
  -- raised when a function that workers call changes its arguments or its answer: until all machines of a fleet have
  -- the new package, the old ones restart too, and a rollback puts them back
  select 3
$$;
comment on function processor.oldest_worker_version() is
  'The oldest version of the schema whose workers this one serves: the schema is upgraded first, the daemons after it, one by one.';

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

create or replace function processor.uuid7_ago(past interval)
returns uuid
language sql
volatile
set search_path = '', pg_temp
as $$
  select encode(
    int8send((extract(epoch from clock_timestamp() - uuid7_ago.past) * 1000)::bigint << 16) || decode('0000000000000000', 'hex'),
    'hex')::uuid
$$;
comment on function processor.uuid7_ago(interval) is 'The least id that processor.uuid7() made in the millisecond so long ago.';

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
