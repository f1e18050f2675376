-- What is wrong now, in words: for whoever has no Prometheus, or one that is down. `processor status` shows it, and `processor
-- maintain` tells a webhook (83_telling.sql). The names are those of ops/prometheus/rules.yml. It must answer when things are at
-- their worst, so each look is bounded: a backlog of a million jobs is not counted, and the books are read only while they are short.

create or replace function processor.backlog_alerts(max_depth int)
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
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
  with backlog as materialized (
    select g.queue, min(g.oldest) as oldest, sum(g.due)::bigint as due
    from processor.pending_groups(moment) g
    where g.due > 0
    group by g.queue
  ),
  told as materialized (
    select b.queue, b.oldest, b.due,
      -- further than that they are not counted
      case when b.due < 10000 then b.due::text else '10000 or more' end as jobs,
      case
        when q.name is null then format('It has no row in job_queues, so nothing is claimed: insert into public.job_queues (name) '
          'values (%L).', b.queue)
        when q.paused then format('It is paused: select processor.resume_queue(%L).', b.queue)
        when not exists (
          select from public.job_workers w where b.queue = any (w.queues) and w.lease_expires_at >= moment and not w.draining
        ) then 'No live worker serves it: start one.'
        else format('Its workers are busy, or a limit holds the jobs back: select * from processor.stuck_jobs where queue = %L limit 20.',
          b.queue)
      end as what_to_do
    from backlog b left join public.job_queues q on q.name = b.queue
  )
  select 'ProcessorJobsWaitLong', 'warning', t.queue,
    format('The oldest of %s due jobs of queue %s waits for %s. %s', t.jobs, t.queue, date_trunc('second', moment - t.oldest),
      t.what_to_do),
    t.oldest
  from told t where t.oldest < moment - interval '5 minutes'
  union all
  select 'ProcessorQueueDeep', 'warning', t.queue,
    format('%s jobs of queue %s are due, more than %s. %s', t.jobs, t.queue, backlog_alerts.max_depth, t.what_to_do), null
  from told t where t.due > backlog_alerts.max_depth;
end
$$;
comment on function processor.backlog_alerts(int) is
  'What waits too long, and where too much waits: more than max_depth due jobs of a queue.';

create or replace function processor.outcome_alerts()
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  from_then constant timestamptz := moment - interval '15 minutes';
begin
  return query
  select 'ProcessorJobsFail', 'warning', n.queue,
    format('%s of the %s jobs of queue %s that ended in the last 15 minutes failed, or did a part only. See why: '
      'select * from processor.error_summary.', o.failed, e.ended - o.cancelled, n.queue),
    o.first_at
  from processor.queue_names() n (queue)
  cross join lateral (
    select count(*) as ended from public.jobs x where x.queue = n.queue and x.finished_at between from_then and moment
  ) e
  cross join lateral (
    select count(*) filter (where x.status in ('failed', 'partial')) as failed,
      count(*) filter (where x.status = 'cancelled') as cancelled,
      min(x.finished_at) filter (where x.status in ('failed', 'partial')) as first_at
    from public.jobs x
    where x.queue = n.queue and x.finished_at between from_then and moment and x.status in ('partial', 'failed', 'cancelled')
  ) o
  -- one of three is no rate
  where e.ended - o.cancelled >= 10 and o.failed > 0.1 * (e.ended - o.cancelled)
  union all
  select 'ProcessorItemsSlow', 'warning', n.queue,
    format('Jobs of queue %s took %s seconds per item in the last 15 minutes, more than 120. Is what the handlers call slow?',
      n.queue, round(i.seconds)),
    null
  from processor.queue_names() n (queue)
  cross join lateral (
    select sum(extract(epoch from l.finished_at - l.started_at)) / sum(l.items_done + l.items_failed) as seconds
    from (
      select x.started_at, x.finished_at, x.items_done, x.items_failed from public.jobs x
      where x.queue = n.queue and x.finished_at between from_then and moment
      order by x.finished_at desc, x.id desc limit 1000
    ) l
    where l.items_done + l.items_failed > 0 and l.started_at is not null
  ) i
  where i.seconds > 120;
end
$$;
comment on function processor.outcome_alerts() is
  'Where more than a tenth of at least 10 jobs fail, and where an item takes more than 2 minutes, by the last 15 minutes.';

create or replace function processor.worker_alerts()
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
begin
  return query
  with living as materialized (
    select w.name, w.host, w.feed, w.transport, w.started_at, w.heartbeat_at, w.lease, w.lease_expires_at
    from public.job_workers w where w.lease_expires_at >= moment and not w.draining
  )
  select 'ProcessorNoLiveWorker', 'critical', '',
    'No worker is alive that takes jobs: they wait, nothing is lost. '
      || case when exists (select from public.job_workers w where w.lease_expires_at >= moment)
        then 'Those that live are draining: start another.' else 'Start a daemon; if it does not stay, its log says why.' end,
    (select max(w.lease_expires_at) from public.job_workers w where w.lease_expires_at < moment)
  where not exists (select from living)
  union all
  -- in the first minutes a worker may still be subscribing
  select 'ProcessorRealtimeDown', 'warning', '',
    format('%s of %s workers are not woken by Realtime and poll: %s. Jobs start some seconds later, none is lost. Run: processor doctor.',
      count(*), (select count(*) from living), string_agg(l.name || '@' || l.host, ', ' order by l.name, l.host)
        filter (where l.place <= 10)),
    null
  from (
    select x.*, row_number() over (order by x.name, x.host) as place from living x
    where x.feed = 'polling' and x.transport <> 'polling' and x.started_at < moment - interval '5 minutes'
  ) l
  having count(*) > 0
  union all
  select 'ProcessorLeaseNearEnd', 'warning', l.name || '@' || l.host,
    format('The lease of worker %s@%s ends in %s, and it has not been heard of for %s: then it stops its jobs, and others take them. '
      'Can it reach the project?', l.name, l.host, date_trunc('second', l.lease_expires_at - moment),
      date_trunc('second', moment - l.heartbeat_at)),
    l.heartbeat_at
  from living l where l.lease_expires_at - moment < l.lease / 4
  union all
  select 'ProcessorWorkerLost', 'warning', coalesce(w.name || '@' || w.host, r.worker_id::text),
    format('Worker %s is gone, and %s jobs are still in its hands: any live worker takes them with its next heartbeat, or do it '
      'yourself: select processor.rescue_jobs().', coalesce(w.name || '@' || w.host, r.worker_id::text), r.jobs),
    w.lease_expires_at
  from (
    select j.worker_id, count(*) as jobs from public.jobs j where j.status = 'processing' group by 1
  ) r
  left join public.job_workers w on w.id = r.worker_id
  where w.id is null or w.lease_expires_at < moment - interval '1 minute'
  union all
  select 'ProcessorJobsStuck', 'warning', j.queue,
    format('%s jobs of queue %s run for longer than their timeout and a minute, the first is %s. Their handlers do not stop when asked: '
      'restart worker %s.', count(*), j.queue, min(j.id::text), min(j.worker_id::text)),
    min(j.started_at + coalesce(j.timeout, q.timeout))
  from public.jobs j
  join public.job_queues q on q.name = j.queue
  join public.job_workers w on w.id = j.worker_id and w.lease_expires_at >= moment
  where j.status = 'processing' and j.started_at + coalesce(j.timeout, q.timeout) < moment - interval '1 minute'
  group by j.queue;
end
$$;
comment on function processor.worker_alerts() is
  'Whether anybody is alive, who has fallen back to polling, whose lease runs out, who is lost with jobs, and what does not stop.';

create or replace function processor.schedule_alerts()
returns table (alert text, severity text, about text, summary text, since timestamptz)
language sql
stable
set search_path = '', pg_temp
as $$
  select 'ProcessorScheduleStuck', 'warning', h.schedule, format('Schedule %s makes no job: %s. Look with: processor schedules list.',
    h.schedule, h.why), h.next_run_at
  from processor.schedule_health h where h.state in ('problem', 'overdue')
$$;
comment on function processor.schedule_alerts() is 'Which schedules cannot run, or are overdue.';

create or replace function processor.credit_alerts()
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- ids are given one after the other; to read more than this takes seconds, which this caller does not have
  if (select max(e.id) from public.credit_entries e) > 200000
    or (select c.reltuples from pg_catalog.pg_class c where c.oid = 'public.jobs'::regclass) > 200000
  then
    return query
    select 'ProcessorCreditsWrong', 'critical', '',
      format('The books do not add up: %s faults when they were last checked. See them, and check again: processor credits check.',
        r.credit_faults),
      r.checked_at
    from processor.metric_reader r where r.credit_faults > 0;
    return;
  end if;
  return query
  select 'ProcessorCreditsWrong', 'critical', '',
    format('The books do not add up: %s faults, such as: %s; owner %s, job %s. See all: processor credits check.',
      count(*), (array_agg(c.problem order by c.problem, c.owner_id))[1], (array_agg(c.owner_id order by c.problem, c.owner_id))[1],
      coalesce((array_agg(c.job_id order by c.problem, c.owner_id))[1]::text, 'none')),
    null::timestamptz
  from processor.check_credits() c
  having count(*) > 0;
end
$$;
comment on function processor.credit_alerts() is
  'Whether check_credits() finds anything. Beyond 200,000 entries of the journal, or jobs, it does not look itself, and tells what the '
  'last public.check_credits() found: let a timer or pg_cron run that daily.';

create or replace function public.read_alerts(max_depth int default 20)
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
security definer -- the worker's role has no right to look into schema processor
rows 10
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  perform processor.check_range('max_depth', coalesce(read_alerts.max_depth, 0), 1, 9999);
  return query
  select a.alert, a.severity, a.about, a.summary, a.since
  from (
    select * from processor.worker_alerts()
    union all
    select * from processor.backlog_alerts(read_alerts.max_depth)
    union all
    select * from processor.outcome_alerts()
    union all
    select * from processor.schedule_alerts()
    union all
    select * from processor.webhook_alerts()
    union all
    select * from processor.credit_alerts()
  ) a
  order by a.severity, a.alert, a.since, a.about, a.summary;
end
$$;
comment on function public.read_alerts(int) is
  'What is wrong now, in words, the critical first; no row: nothing. about: which queue, worker, schedule or webhook, empty where it is '
  'all of them. since: from when on, as far as rows tell. A queue with more than '
  'max_depth (1 to 9999) due jobs is told of. What only a daemon knows of itself is not here: the spool, how long Realtime has been down.';
