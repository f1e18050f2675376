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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
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
set jit = off
as $$
begin
  perform processor.check_operator();
  return processor.run_schedule(run_schedule.name);
end
$$;
comment on function public.run_schedule(text) is 'processor.run_schedule() for operators: one more job of it, now.';

create or replace function public.check_credits()
returns table (problem text, owner_id uuid, job_id uuid, expected bigint, found bigint)
language plpgsql
security definer -- nobody but the owner of schema processor may use it
rows 10
set search_path = '', pg_temp
set statement_timeout = '10min' -- PostgREST takes it over for the request: a journal may be longer than a role's own limit allows
as $$
#variable_conflict use_column
declare
  faults bigint;
begin
  perform processor.check_operator();
  return query select * from processor.check_credits() limit 1000;
  get diagnostics faults = row_count;
  insert into processor.metric_reader (only_one) values (true) on conflict (only_one) do nothing;
  update processor.metric_reader r set checked_at = processor.now(), credit_faults = faults where r.only_one;
end
$$;
comment on function public.check_credits() is
  'processor.check_credits() for operators: no row means that the books are right; at most 1000 faults. What it finds is what alerts and '
  'metrics say where the journal is too long for them to read.';
