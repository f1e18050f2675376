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
