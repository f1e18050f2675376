-- Figures of the whole database for Prometheus: read by one worker at a time, in bounded steps.
--
-- What is counted as it happens elsewhere would cost every writer the lock of one row, so the counters follow what was
-- written: jobs by their ids, which grow with time, and the journal by its own. Both are counted 15 s after, when the
-- transactions that make them have long ended; one that takes longer is not counted.

create table if not exists processor.metric_reader (
  only_one boolean primary key default true,
  worker_id uuid,
  read_at timestamptz,
  jobs_to uuid,
  entries_to bigint not null default 0,
  checked_at timestamptz,
  credit_faults bigint,
  constraint metric_reader_is_one_row check (only_one)
);
comment on table processor.metric_reader is 'Who reads the figures, and how far the counters have come: one row.';
comment on column processor.metric_reader.only_one is 'true.';
comment on column processor.metric_reader.worker_id is 'The worker that reads; the others are told to leave it.';
comment on column processor.metric_reader.read_at is 'When it read last: after 90 s another may.';
comment on column processor.metric_reader.jobs_to is 'The last job that was counted.';
comment on column processor.metric_reader.entries_to is 'The last entry of the journal that was counted.';
comment on column processor.metric_reader.checked_at is 'When processor.check_credits() was asked last.';
comment on column processor.metric_reader.credit_faults is 'How many rows it gave, at most 1000 if an operator asked; null: not asked.';

create table if not exists processor.metric_totals (
  name text not null,
  queue text not null default '',
  kind text not null,
  total bigint not null,
  constraint metric_totals_pkey primary key (name, queue, kind)
);
comment on table processor.metric_totals is 'Counters that only grow.';
comment on column processor.metric_totals.name is 'created (jobs) or credits.';
comment on column processor.metric_totals.queue is 'The queue of the jobs; other: of those beyond the first 100 pairs.';
comment on column processor.metric_totals.kind is 'The kind of the jobs, or of the entries in the journal.';
comment on column processor.metric_totals.total is 'How many jobs or credits.';

create or replace function processor.add_to_metrics(name text, counted jsonb)
returns void
language sql
set search_path = '', pg_temp
as $$
  -- whoever makes names without end gets one series for what comes after the first hundred
  with known as materialized (
    select t.queue, t.kind from processor.metric_totals t where t.name = add_to_metrics.name
  ),
  counts as (
    select c.queue, c.kind, c.total, k.kind is not null as old,
      row_number() over (partition by k.kind is null order by c.queue, c.kind) as n
    from jsonb_to_recordset(add_to_metrics.counted) c (queue text, kind text, total bigint)
    left join known k on k.queue = c.queue and k.kind = c.kind
  ),
  named as (
    select case when b.fits then c.queue else 'other' end as queue, case when b.fits then c.kind else 'other' end as kind, c.total
    from counts c
    cross join lateral (select c.old or c.n + (select count(*) from known) <= 100 as fits) b
  )
  insert into processor.metric_totals as t (name, queue, kind, total)
  select add_to_metrics.name, n.queue, n.kind, sum(n.total) from named n group by n.queue, n.kind
  on conflict on constraint metric_totals_pkey do update set total = t.total + excluded.total
$$;
comment on function processor.add_to_metrics(text, jsonb) is
  'Add to counters: [{queue, kind, total}]. Of one name there are at most 100 pairs of queue and kind, and other.';

create or replace function processor.count_for_metrics()
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  -- what is counted by one call: a tenth of a second
  most constant int := 100000;
  behind constant interval := interval '15 seconds';
  moment constant timestamptz := processor.now();
  r processor.metric_reader;
  edge uuid;
  counts jsonb;
  last_job uuid;
  last_entry bigint;
begin
  select * into r from processor.metric_reader;
  edge := processor.uuid7_ago(behind);
  with fresh as materialized (
    select j.id, j.queue, j.kind from public.jobs j where j.id > coalesce(r.jobs_to, edge) and j.id < edge order by j.id limit most
  )
  select (select jsonb_agg(g) from (select f.queue, f.kind, count(*) as total from fresh f group by 1, 2) g),
    (select f.id from fresh f order by f.id desc limit 1)
  into counts, last_job;
  perform processor.add_to_metrics('created', coalesce(counts, '[]'));

  with fresh as materialized (
    select e.id, e.kind, e.amount, e.created_at from public.credit_entries e where e.id > r.entries_to order by e.id limit most
  ),
  settled as materialized ( -- up to the first that is too young
    select f.* from fresh f
    where f.id < coalesce((select min(y.id) from fresh y where y.created_at > moment - behind), 9223372036854775807)
  )
  select (select jsonb_agg(g) from (select '' as queue, s.kind, sum(s.amount) as total from settled s group by 2) g),
    (select max(s.id) from settled s)
  into counts, last_entry;
  perform processor.add_to_metrics('credits', coalesce(counts, '[]'));

  -- without a first mark the next call would begin where it ends
  update processor.metric_reader
  set jobs_to = coalesce(last_job, r.jobs_to, edge), entries_to = coalesce(last_entry, r.entries_to)
  where only_one; -- Supabase lets no session of the API update without a condition
end
$$;
comment on function processor.count_for_metrics() is
  'Move the counters on, over at most 100,000 jobs and entries; what is beyond is left to the next call.';

create or replace function processor.count_credit_faults()
returns bigint
language sql
stable
set search_path = '', pg_temp
set enable_seqscan = on -- the journal is read whole
as $$
  select count(*) from processor.check_credits()
$$;
comment on function processor.count_credit_faults() is 'How many rows processor.check_credits() has.';

create or replace function processor.pending_groups(moment timestamptz)
returns table (queue text, kind text, oldest timestamptz, due int, long_due int, scheduled int, waiting int)
language plpgsql
stable
rows 100
set search_path = '', pg_temp
set enable_bitmapscan = off -- it would read all of a group before it counts the first
as $$
#variable_conflict use_column
declare
  most constant int := 10000;
  never constant timestamptz := processor.never();
  last text;
  due_left int;
  later_left int;
  waiting_left int;
  g record;
begin
  -- jumps along jobs_pending_idx from group to group, and reads so much of a queue as is counted, of each group the first
  for g in
    with recursive groups (queue, kind, priority) as (
      (select j.queue, j.kind, j.priority from public.jobs j where j.status = 'pending'
        order by j.queue, j.kind, j.priority desc limit 1)
      union all
      select n.queue, n.kind, n.priority from groups p
      cross join lateral (
        (select j.queue, j.kind, j.priority from public.jobs j
          where j.status = 'pending' and j.queue = p.queue and j.kind = p.kind and j.priority < p.priority
          order by j.priority desc limit 1)
        union all
        (select j.queue, j.kind, j.priority from public.jobs j
          where j.status = 'pending' and j.queue = p.queue and j.kind > p.kind
          order by j.kind, j.priority desc limit 1)
        union all
        (select j.queue, j.kind, j.priority from public.jobs j
          where j.status = 'pending' and j.queue > p.queue
          order by j.queue, j.kind, j.priority desc limit 1)
        limit 1
      ) n
    )
    select x.queue, x.kind, x.priority from groups x limit 2000
  loop
    if g.queue is distinct from last then
      last := g.queue;
      due_left := most;
      later_left := most;
      waiting_left := most;
    end if;
    queue := g.queue;
    kind := g.kind;
    select min(x.run_at), count(*), count(*) filter (where x.run_at < pending_groups.moment - interval '5 minutes')
    into oldest, due, long_due
    from (
      select j.run_at from public.jobs j
      where j.status = 'pending' and j.queue = g.queue and j.kind = g.kind and j.priority = g.priority
        and j.run_at <= pending_groups.moment
      order by j.run_at limit greatest(due_left, 1)
    ) x;
    select count(*) into scheduled from (
      select from public.jobs j
      where j.status = 'pending' and j.queue = g.queue and j.kind = g.kind and j.priority = g.priority
        and j.run_at > pending_groups.moment and j.run_at < never
      limit greatest(later_left, 0)
    ) x;
    select count(*) into waiting from (
      select from public.jobs j
      where j.status = 'pending' and j.queue = g.queue and j.kind = g.kind and j.priority = g.priority and j.run_at = never
      limit greatest(waiting_left, 0)
    ) x;
    due_left := due_left - due;
    later_left := later_left - scheduled;
    waiting_left := waiting_left - waiting;
    return next;
  end loop;
end
$$;
comment on function processor.pending_groups(timestamptz) is
  'What is pending by queue, kind and priority, however much that is: of a queue each figure is counted up to 10,000, in at most 2,000 '
  'groups in all. The oldest of each group is always found.';

create or replace function processor.queue_figures(moment timestamptz)
returns jsonb
language sql
stable
set search_path = '', pg_temp
as $$
  with pending as materialized (select * from processor.pending_groups(queue_figures.moment)),
  running as materialized (
    select j.queue, count(*) as processing,
      count(*) filter (where w.id is null or w.lease_expires_at < queue_figures.moment) as lost,
      count(*) filter (
        where w.lease_expires_at >= queue_figures.moment and j.started_at + coalesce(j.timeout, q.timeout) < queue_figures.moment
      ) as over_timeout
    from public.jobs j
    left join public.job_workers w on w.id = j.worker_id
    left join public.job_queues q on q.name = j.queue
    where j.status = 'processing'
    group by 1
  ),
  served as materialized ( -- what live workers would claim
    select u.queue, k.kind, bool_and(w.draining) as draining
    from public.job_workers w
    cross join unnest(w.queues) u (queue)
    cross join unnest(w.kinds) k (kind)
    where w.lease_expires_at >= queue_figures.moment
    group by 1, 2
  ),
  named as (
    select n.queue from (
      select q.name as queue from public.job_queues q union select p.queue from pending p union select r.queue from running r
    ) n order by 1 limit 100
  ),
  judged as (
    select p.due, p.long_due,
      case
        when q.name is null then 'queue_missing'
        when q.paused then 'queue_paused'
        when s.kind is null then 'no_worker'
        when s.draining then 'workers_draining'
        else 'waiting_long'
      end as reason
    from pending p
    left join public.job_queues q on q.name = p.queue
    left join served s on s.queue = p.queue and s.kind = p.kind
  )
  select jsonb_build_object(
    'queues', coalesce((
      select jsonb_agg(jsonb_build_object(
        'queue', n.queue, 'paused', coalesce(q.paused, false),
        'due', least(coalesce(p.due, 0), 10000), 'scheduled', least(coalesce(p.scheduled, 0), 10000),
        'waiting', least(coalesce(p.waiting, 0), 10000), 'processing', coalesce(r.processing, 0),
        'oldest_seconds', coalesce(extract(epoch from queue_figures.moment - p.oldest), 0)
      ) order by n.queue)
      from named n
      left join public.job_queues q on q.name = n.queue
      left join (
        select p.queue, min(p.oldest) as oldest, sum(p.due) as due, sum(p.scheduled) as scheduled, sum(p.waiting) as waiting
        from pending p group by 1
      ) p on p.queue = n.queue
      left join running r on r.queue = n.queue
    ), '[]'),
    'stuck', jsonb_build_object(
      'queue_missing', coalesce((select sum(j.due) from judged j where j.reason = 'queue_missing'), 0),
      'queue_paused', coalesce((select sum(j.due) from judged j where j.reason = 'queue_paused'), 0),
      'no_worker', coalesce((select sum(j.due) from judged j where j.reason = 'no_worker'), 0),
      'workers_draining', coalesce((select sum(j.due) from judged j where j.reason = 'workers_draining'), 0),
      'waiting_long', coalesce((select sum(j.long_due) from judged j where j.reason = 'waiting_long'), 0),
      'worker_lost', coalesce((select sum(r.lost) from running r), 0),
      'over_timeout', coalesce((select sum(r.over_timeout) from running r), 0)
    )
  )
$$;
comment on function processor.queue_figures(timestamptz) is
  'What waits, runs and stands still, of at most 100 queues; a limit that holds jobs back counts as waiting_long.';

create or replace function public.read_metrics(worker_id uuid)
returns jsonb
language plpgsql
security definer -- the worker's role reads no credits, and nobody writes the counters
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  moment constant timestamptz := processor.now();
  r processor.metric_reader;
  taken interval;
  figures jsonb;
begin
  if not exists (select from public.job_workers w where w.id = read_metrics.worker_id) then
    perform processor.fail('JQ011', format('unknown worker: %s', read_metrics.worker_id), '', 'Register again.');
  end if;
  -- LOCK: a word of its own, until the end of the transaction; whoever finds it taken leaves the figures to the other
  if not pg_try_advisory_xact_lock(hashtextextended('processor.read_metrics', 0)) then
    return jsonb_build_object('figures', null, 'again_in_seconds', 10);
  end if;
  insert into processor.metric_reader (only_one) values (true) on conflict (only_one) do nothing;
  -- an operator may be checking the books
  select * into r from processor.metric_reader for update;
  -- for how long it is another's, if that one dies now
  select least(w.lease_expires_at, r.read_at + interval '90 seconds') - moment into taken
  from public.job_workers w where w.id = r.worker_id and w.id <> read_metrics.worker_id;
  if taken > interval '0' then
    return jsonb_build_object('figures', null, 'again_in_seconds', least(30, greatest(1, extract(epoch from taken))));
  end if;
  perform processor.count_for_metrics();
  if r.entries_to >= 1000000
    or (select c.reltuples from pg_catalog.pg_class c where c.oid = 'public.jobs'::regclass) >= 1000000
  then -- it would read both whole; what an operator, or a timer of theirs, has found by public.check_credits() counts for a while
    if r.checked_at is null or r.checked_at < moment - interval '2 days' then
      r.credit_faults := null;
    end if;
  elsif r.checked_at is null or r.checked_at <= moment - interval '1 hour' then
    r.credit_faults := processor.count_credit_faults();
    r.checked_at := moment;
  end if;
  update processor.metric_reader x
  set worker_id = read_metrics.worker_id, read_at = moment, checked_at = r.checked_at, credit_faults = r.credit_faults
  where x.only_one;

  figures := processor.queue_figures(moment) || jsonb_build_object(
    'workers', (
      select jsonb_build_object(
        'live', count(*) filter (where w.lease_expires_at >= moment and not w.draining),
        'draining', count(*) filter (where w.lease_expires_at >= moment and w.draining),
        'lost', count(*) filter (where w.lease_expires_at < moment)
      ) from public.job_workers w
    ),
    'webhooks', (
      select jsonb_build_object(
        'failing', count(*) filter (where a.alert = 'ProcessorWebhookFailing'),
        'given_up', count(*) filter (where a.alert = 'ProcessorWebhooksGivenUp')
      ) from processor.webhook_alerts() a
    ),
    'polling', (select count(*) from public.job_workers w where w.lease_expires_at >= moment and w.feed = 'polling'),
    'created', (
      select coalesce(jsonb_agg(jsonb_build_object('queue', t.queue, 'kind', t.kind, 'total', t.total) order by t.queue, t.kind), '[]')
      from processor.metric_totals t where t.name = 'created'
    ),
    'credits', (
      select coalesce(jsonb_object_agg(t.kind, t.total), '{}') from processor.metric_totals t where t.name = 'credits'
    ),
    'credit_faults', r.credit_faults
  );
  return jsonb_build_object(
    'figures', figures || jsonb_build_object('seconds', extract(epoch from processor.now() - moment)), 'again_in_seconds', 10
  );
end
$$;
comment on function public.read_metrics(uuid) is
  'For /metrics of the daemons: queues, stuck jobs, workers, webhooks in trouble, and counters of jobs and credits. One worker gets '
  'them; the others get null and when to ask again, until it ends or has not asked for 90 seconds.';
