-- What an owner does with a job: cancel it, or repeat what is not done, or all of it. Operators do so with anybody's jobs.

create or replace function public.cancel_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; only own jobs are found, unless by an operator
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
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
    'tags', job.tags, 'unique_key', job.unique_key, 'on_child_failure', job.on_child_failure,
    'trace_context', job.trace_context)
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
