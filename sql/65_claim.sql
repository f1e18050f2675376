-- Claiming: who gets which job, and when the next one is due. Queues without limits are claimed from side by side; the claims
-- of a queue with a limit take turns, by the lock on its row.

create or replace function processor.claimed(ids uuid[])
returns json
language plpgsql -- keeps its plan between calls, which is most of what such a function costs
stable
set search_path = ''
set enable_sort = on -- claim_jobs has it off
as $$
begin
  -- json, not jsonb, and rows, not json_build_object: a third of the time
  return coalesce((
    select json_agg(c)
    from (
      select j.id, j.queue, j.kind, j.owner_id, j.priority, j.payload, j.attempt, j.failures, j.max_attempts, j.run_at, j.created_at,
        j.tags, extract(epoch from coalesce(j.timeout, q.timeout)) as timeout_seconds,
        j.cancel_requested_at is not null as cancel_requested, j.items_total, j.items_done, j.parent_id,
        case when j.items_total = 0 then '[]' else (
          select coalesce(json_agg(i), '[]')
          from (
            select i.key, i.position, i.payload, i.attempts
            from public.job_items i where i.job_id = j.id and i.status = 'pending' order by i.position
          ) i
        ) end as items,
        case when j.items_done = 0 then '[]' else (
          select coalesce(json_agg(d), '[]')
          from (
            select i.key, i.position,
              case when sum(octet_length(i.result::text)) over (order by i.position) <= 4194304 then i.result end as result
            from public.job_items i where i.job_id = j.id and i.status = 'completed' order by i.position
          ) d
        ) end as done,
        case when j.children_total = 0 then '[]' else (
          select coalesce(json_agg(n), '[]')
          from (
            select c.id, c.kind, c.status, c.error_code, c.error_message,
              case when sum(octet_length(c.result::text)) over (order by c.id) <= 4194304 then c.result end as result
            from public.jobs c where c.parent_id = j.id order by c.id
          ) n
        ) end as children
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
  'children; results up to 4 MiB a job, the rest as null.';

create or replace function processor.tokens(q public.job_queues, moment timestamptz)
returns double precision
language sql
stable
set search_path = ''
as $$
  -- a full bucket to begin with, and never more than that
  select coalesce((
    select least(q.rate_limit,
      t.tokens + q.rate_limit * extract(epoch from tokens.moment - t.counted_at) / extract(epoch from q.rate_period))
    from processor.queue_tokens t where t.queue = q.name
  ), q.rate_limit)
$$;
comment on function processor.tokens(public.job_queues, timestamptz) is
  'How many jobs of a queue with a rate_limit may start at a moment; with a fraction, so that one knows when the next may.';

create or replace function processor.take_tokens(q public.job_queues, moment timestamptz, how_many int)
returns void
language sql
set search_path = ''
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
set search_path = ''
as $$
#variable_conflict use_column
begin
  return greatest(0, least(room.wanted,
    q.max_processing - case when q.max_processing is not null then (
      select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
    ) end,
    case when q.rate_limit is not null then floor(processor.tokens(q, room.moment)) end
  )::int);
end
$$;
comment on function processor.room(public.job_queues, timestamptz, int) is
  'How many jobs of a queue may be claimed at a moment, at most wanted: what max_processing and rate_limit leave.';

create or replace function processor.pick_in_order(queue text, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  level int := 1001;
  first_at timestamptz;
  first_id uuid;
  ids uuid[] := '{}';
  picked uuid[];
begin
  -- priority by priority: jobs of a high one whose time has not come are not read, however many. The first that waits says
  -- where to begin: until a vacuum, its place in the index lies behind all that were claimed before it
  loop
    select j.priority, j.run_at, j.id into level, first_at, first_id from public.jobs j
    where j.queue = pick_in_order.queue and j.status = 'pending' and j.priority < level
    order by j.priority desc, j.run_at, j.id limit 1;
    exit when not found;
    -- LOCK: jobs, waiting for none
    select array_agg(p.id) into picked from (
      select j.id from public.jobs j
      where j.queue = pick_in_order.queue and j.status = 'pending' and j.priority = level
        and (j.run_at, j.id) >= (first_at, first_id) and j.run_at <= pick_in_order.moment and j.kind = any (pick_in_order.kinds)
      order by j.run_at, j.id
      limit pick_in_order.how_many - cardinality(ids)
      for no key update skip locked
    ) p;
    ids := ids || coalesce(picked, '{}');
    exit when cardinality(ids) >= pick_in_order.how_many;
  end loop;
  return ids;
end
$$;
comment on function processor.pick_in_order(text, text[], timestamptz, int) is
  'Lock due jobs of a queue: the highest priority first, then the longest due.';

create or replace function processor.pick_in_turns(q public.job_queues, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  start constant uuid := gen_random_uuid();
begin
  -- LOCK: the caller holds the queue, so nobody else picks from it.
  -- Owners are visited along jobs_turns_idx from a random one on, at most 1,000: as many looks as owners, however many jobs.
  return array(
    with recursive owners (n, owner_id, wrapped) as (
      (select 1, (select j.owner_id from public.jobs j where j.queue = q.name and j.status = 'pending' and j.owner_id >= start
        order by j.owner_id limit 1), false)
      union all
      select o.n + 1,
        case when o.owner_id is null
          then (select j.owner_id from public.jobs j where j.queue = q.name and j.status = 'pending' and j.owner_id < start
            order by j.owner_id limit 1)
          else (select j.owner_id from public.jobs j where j.queue = q.name and j.status = 'pending' and j.owner_id > o.owner_id
            and (not o.wrapped or j.owner_id < start) order by j.owner_id limit 1)
        end,
        o.wrapped or o.owner_id is null
      from owners o
      where o.n < 1000 and not (o.wrapped and o.owner_id is null)
    ),
    running as (
      select j.owner_id, count(*) as jobs from public.jobs j where j.queue = q.name and j.status = 'processing' group by 1
    ),
    candidates as (
      -- an owner's nth running job competes with the others' nth: who has least goes first
      select j.id, j.priority, j.run_at, coalesce(r.jobs, 0) + row_number() over (
        partition by o.owner_id order by j.priority desc, j.run_at, j.id) as turn
      from (select distinct x.owner_id from owners x where x.owner_id is not null) o
      left join running r on r.owner_id = o.owner_id
      cross join lateral (
        select x.id, x.priority, x.run_at from public.jobs x
        where x.queue = q.name and x.status = 'pending' and x.owner_id = o.owner_id
          and x.run_at <= pick_in_turns.moment and x.kind = any (pick_in_turns.kinds)
        order by x.priority desc, x.run_at, x.id
        limit greatest(0, least(pick_in_turns.how_many, q.max_processing_per_owner - coalesce(r.jobs, 0)))
      ) j
      union all
      -- jobs of nobody have no limit of their own, and take their turns too
      select j.id, j.priority, j.run_at, row_number() over (order by j.priority desc, j.run_at, j.id)
      from (
        select x.id, x.priority, x.run_at from public.jobs x
        where x.queue = q.name and x.status = 'pending' and x.owner_id is null
          and x.run_at <= pick_in_turns.moment and x.kind = any (pick_in_turns.kinds)
        order by x.priority desc, x.run_at, x.id
        limit pick_in_turns.how_many
      ) j
    )
    -- LOCK: jobs, waiting for none
    select j.id from public.jobs j
    where j.id in (
        select c.id from candidates c order by c.turn, c.priority desc, c.run_at, c.id limit pick_in_turns.how_many
      )
      and j.status = 'pending'
    for no key update skip locked
  );
end
$$;
comment on function processor.pick_in_turns(public.job_queues, text[], timestamptz, int) is
  'Lock due jobs of a queue with max_processing_per_owner: owners take turns, those first who have least running.';

create or replace function processor.next_due_at(worker public.job_workers, queues text[] default null)
returns timestamptz
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  q public.job_queues;
  soonest timestamptz;
  due timestamptz;
begin
  if worker.draining then
    return null;
  end if;
  for q in
    select * from public.job_queues x where x.name = any (coalesce(next_due_at.queues, worker.queues)) and not x.paused
  loop
    -- a queue that is full makes itself heard when something of it ends
    continue when q.max_processing is not null and processor.room(q, moment, 1) = 0 and (
      q.rate_limit is null or processor.tokens(q, moment) >= 1
    );
    due := processor.first_due_at(q.name, worker.kinds, '-infinity');
    if q.max_processing_per_owner is not null and due <= moment
      and processor.pick_in_turns(q, worker.kinds, moment, 1) = '{}'
    then -- whoever has something due has as much running as may be
      due := processor.first_due_at(q.name, worker.kinds, moment);
    end if;
    if q.rate_limit is not null and processor.tokens(q, moment) < 1 then
      due := greatest(due, moment + q.rate_period * ((1 - processor.tokens(q, moment)) / q.rate_limit));
    end if;
    soonest := least(soonest, due);
  end loop;
  return soonest;
end
$$;
comment on function processor.next_due_at(public.job_workers, text[]) is
  'When this worker''s next claim makes sense: the past means now, null means nothing is pending for it.';

create or replace function processor.first_due_at(queue text, kinds text[], after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = ''
as $$
#variable_conflict use_column
declare
  level int := 1001;
  first_at timestamptz;
  first_id uuid;
  soonest timestamptz;
  due timestamptz;
begin
  loop
    select j.priority, j.run_at, j.id into level, first_at, first_id from public.jobs j
    where j.queue = first_due_at.queue and j.status = 'pending' and j.priority < level
    order by j.priority desc, j.run_at, j.id limit 1;
    exit when not found;
    select j.run_at into due from public.jobs j
    where j.queue = first_due_at.queue and j.status = 'pending' and j.priority = level
      and (j.run_at, j.id) >= (first_at, first_id) and j.run_at > first_due_at.after and j.run_at < processor.never()
      and j.kind = any (first_due_at.kinds)
    order by j.run_at limit 1;
    soonest := least(soonest, due);
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
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- a claim is too short for compiling to pay, whatever the planner's estimate
set enable_sort = off -- without statistics the planner would sort all that is pending instead of reading jobs_claim_idx
as $$
#variable_conflict use_column
declare
  moment timestamptz;
  w public.job_workers;
  q public.job_queues;
  ids uuid[];
  picked uuid[];
  room int;
begin
  perform processor.check_range('limit', claim_jobs."limit", 1, 1000);
  select * into w from public.job_workers x where x.id = claim_jobs.worker_id;
  -- LOCK: queues with a limit, by name: their claims take turns; all others run side by side
  perform 1 from public.job_queues x
  where x.name = any (coalesce(claim_jobs.queues, w.queues)) and not x.paused
    and coalesce(x.max_processing, x.rate_limit, x.max_processing_per_owner) is not null
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
      room := processor.room(q, moment, claim_jobs."limit" - cardinality(ids));
      continue when room = 0;
      picked := case when q.max_processing_per_owner is null then processor.pick_in_order(q.name, w.kinds, moment, room)
        else processor.pick_in_turns(q, w.kinds, moment, room) end;
      if q.rate_limit is not null and picked <> '{}' then
        perform processor.take_tokens(q, moment, cardinality(picked));
      end if;
      ids := ids || picked;
    end loop;
    update public.jobs j
    set status = 'processing', worker_id = w.id, claim_id = claim_jobs.request_id, attempt = j.attempt + 1,
      started_at = moment, updated_at = moment
    where j.id = any (ids);
  end if;

  return json_build_object(
    'now', processor.now(),
    'jobs', processor.claimed(ids),
    'next_due_at', processor.next_due_at(w, claim_jobs.queues)
  );
end
$$;
comment on function public.claim_jobs(uuid, uuid, text[], int) is
  'Take up to "limit" due jobs of the worker''s kinds: highest priority first, then the longest due; owners in turns where the queue '
  'limits how many of an owner may run. The same request_id again returns the same jobs. next_due_at says when the next claim '
  'makes sense.';
