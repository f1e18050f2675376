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
