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
