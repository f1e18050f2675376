-- The two ways a running job goes (ended, pending again), and what an owner does: cancel and retry.

create or replace function processor.end_job(job_id uuid, status text, result jsonb default null,
  error_code text default null, error_message text default null)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  -- LOCK: the caller holds account and job, and calls settle_holds() for all that ended
  update public.job_items i
  set status = case when end_job.status = 'cancelled' then 'cancelled' else 'failed' end,
    error_code = coalesce(i.error_code, end_job.error_code),
    error_message = coalesce(i.error_message, end_job.error_message),
    updated_at = processor.now()
  where i.job_id = end_job.job_id and i.status = 'pending';
  update public.jobs j
  set status = end_job.status,
    result = coalesce(end_job.result, j.result),
    finished_at = processor.now(),
    updated_at = processor.now(),
    progress = case when end_job.status = 'completed' then 1 else j.progress end,
    items_failed = (select count(*) from public.job_items i where i.job_id = end_job.job_id and i.status = 'failed'),
    error_code = end_job.error_code,
    error_message = left(end_job.error_message, 2000),
    error_retryable = case when end_job.error_code is not null then false end,
    credits_refunded = j.credits_refunded + j.credits_held,
    credits_held = 0
  where j.id = end_job.job_id;
end
$$;
comment on function processor.end_job(uuid, text, jsonb, text, text) is
  'Make a job terminal: open items end with it, what is still held becomes refunded. settle_holds() must follow.';

create or replace function processor.requeue_job(job_id uuid, run_at timestamptz)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  again int;
begin
  -- LOCK: the caller holds the job
  update public.job_items i
  set status = 'pending', progress = 0, updated_at = processor.now()
  where i.job_id = requeue_job.job_id and i.status = 'failed' and i.error_retryable;
  get diagnostics again = row_count;
  update public.jobs j
  set status = 'pending', worker_id = null, claim_id = null, run_at = requeue_job.run_at,
    items_failed = j.items_failed - again, updated_at = processor.now()
  where j.id = requeue_job.job_id;
end
$$;
comment on function processor.requeue_job(uuid, timestamptz) is
  'Make a running job pending again, not before run_at: what retry, snooze, release and rescue have in common. '
  'Items that failed in a way worth trying again are open again.';

create or replace function processor.note_error(job_id uuid, code text, message text)
returns void
language sql
set search_path = ''
as $$
  update public.jobs j
  set errors = case when jsonb_array_length(j.errors) >= 20 then j.errors - 0 else j.errors end
    || jsonb_build_object('attempt', j.attempt, 'code', note_error.code, 'message', left(note_error.message, 2000), 'at', processor.now())
  where j.id = note_error.job_id
$$;
comment on function processor.note_error(uuid, text, text) is 'Append to a job''s errors, keeping the last 20.';

create or replace function processor.lock_own_job(job_id uuid)
returns public.jobs
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  -- LOCK: account, then job
  perform processor.lock_accounts(array[lock_own_job.job_id]);
  select * into job from public.jobs j
  where j.id = lock_own_job.job_id
    and (not processor.is_client() or j.owner_id = (select auth.uid()))
  for no key update;
  if not found then
    perform processor.fail('JQ008', format('job not found: %s', lock_own_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  return job;
end
$$;
comment on function processor.lock_own_job(uuid) is 'Lock a job of the caller (any job for the service), or raise JQ008.';

create or replace function public.cancel_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; lock_own_job checks that the job is theirs
set search_path = ''
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  job := processor.lock_own_job(cancel_job.job_id);
  if job.status = 'pending' then
    perform processor.end_job(job.id, 'cancelled', null, 'CANCELLED', 'cancelled before it started');
    perform processor.settle_holds(array[job.id]);
  elsif job.status = 'processing' and job.cancel_requested_at is null then
    update public.jobs j set cancel_requested_at = processor.now(), updated_at = processor.now() where j.id = job.id;
    update public.job_workers w set inbox = w.inbox + 1 where w.id = job.worker_id;
  end if;
  select * into job from public.jobs j where j.id = job.id;
  return job;
end
$$;
comment on function public.cancel_job(uuid) is
  'Cancel an own job: a pending one ends at once and is refunded; a running one is asked to stop, and pays for what is '
  'done. A job that has ended is returned as it is.';

create or replace function public.retry_job(job_id uuid)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; lock_own_job checks that the job is theirs
set search_path = ''
as $$
#variable_conflict use_column
declare
  old public.jobs;
  made public.jobs;
  again public.jobs;
  open_items jsonb;
begin
  -- LOCK: the account; not the job, which is read here and, being terminal, cannot change
  select * into old from public.jobs j
  where j.id = retry_job.job_id and (not processor.is_client() or j.owner_id = (select auth.uid()));
  if not found then
    perform processor.fail('JQ008', format('job not found: %s', retry_job.job_id), '', 'Check the id; one sees only own jobs.');
  end if;
  if old.status not in ('partial', 'failed', 'cancelled') then
    perform processor.fail('JQ009', format('job %s is %s: only a partial, failed or cancelled job can be retried', old.id, old.status));
  end if;
  select jsonb_agg(jsonb_build_object('key', i.key, 'payload', i.payload) order by i.position)
  into open_items
  from public.job_items i where i.job_id = old.id and i.status <> 'completed';
  if open_items is null and old.items_total > 0 then
    perform processor.fail('JQ009', format('every item of job %s is completed: nothing is left to retry', old.id));
  end if;

  again.kind := old.kind;
  again.queue := old.queue;
  again.owner_id := old.owner_id;
  again.priority := old.priority;
  again.payload := old.payload;
  again.max_attempts := old.max_attempts;
  again.timeout := old.timeout;
  again.tags := old.tags;
  again.unique_key := old.unique_key;
  again.retry_of := old.id;
  made := processor.insert_job(again, open_items);
  return made;
end
$$;
comment on function public.retry_job(uuid) is
  'A new job (retry_of) with the unfinished items of one that ended, reserving credits for those only. Asked again, the same new job.';
