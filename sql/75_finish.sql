-- The end of an attempt: finished, or given back.

create or replace function processor.retry_delay(job public.jobs)
returns interval
language sql
volatile
set search_path = ''
as $$
  -- a queue that is gone, or a delay of null, must not keep the job from ending its attempt
  select coalesce((
    select q.retry_delays[least(job.failures + 1, cardinality(q.retry_delays))] * (1 + q.jitter * (2 * random() - 1))
    from public.job_queues q where q.name = job.queue
  ), interval '1 minute')
$$;
comment on function processor.retry_delay(public.jobs) is
  'How long a job waits after its next failure: the queue''s nth delay (the last one repeats), give or take the jitter.';

create or replace function processor.finish_held_job(job_id uuid, report jsonb)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  outcome constant text := finish_held_job.report ->> 'outcome';
  delay constant double precision := (finish_held_job.report ->> 'delay_seconds')::double precision;
  result constant jsonb := nullif(finish_held_job.report -> 'result', 'null');
  code text := finish_held_job.report ->> 'error_code';
  message text := finish_held_job.report ->> 'error_message';
  job public.jobs;
  retryable boolean;
begin
  -- LOCK: the caller holds account and job; it settles the holds of those that ended
  select * into job from public.jobs j where j.id = finish_held_job.job_id;
  if coalesce(outcome, '') not in ('done', 'fail', 'retry', 'snooze', 'cancelled') then
    perform processor.fail('JQ006', format('outcome %s is not one of done, fail, retry, snooze, cancelled', left(outcome, 100)));
  end if;
  perform processor.check_range('delay_seconds', delay::numeric, 0, 31536000);
  perform processor.check_size('the result', result, 1048576);

  if outcome = 'done' and job.items_done = job.items_total then
    perform processor.capture_units(job.id, array[1], per_item => false);
    perform processor.end_job(job.id, 'completed', result);
    return;
  elsif outcome = 'cancelled' or (job.cancel_requested_at is not null and outcome in ('retry', 'snooze')) then
    perform processor.end_job(job.id, 'cancelled', null, coalesce(code, 'CANCELLED'), coalesce(message, 'cancelled while it ran'));
    return;
  elsif outcome = 'snooze' then
    if delay is null then
      perform processor.fail('JQ006', 'a snooze needs delay_seconds');
    end if;
    perform processor.requeue_job(job.id, processor.now() + make_interval(secs => delay));
    update public.jobs j set progress_message = coalesce(finish_held_job.report ->> 'message', j.progress_message) where j.id = job.id;
    return;
  end if;

  -- a failure; "done" with open items is one too, worth another attempt if one of them is
  retryable := case outcome
    when 'done' then exists (
      select from public.job_items i
      where i.job_id = job.id and (i.status = 'pending' or (i.status = 'failed' and i.error_retryable))
    )
    when 'retry' then coalesce((finish_held_job.report ->> 'error_retryable')::boolean, true)
    else false
  end;
  if outcome = 'done' then
    code := 'ITEMS_FAILED';
    message := format('%s of %s items did not complete', job.items_total - job.items_done, job.items_total);
  end if;
  code := coalesce(code, 'HANDLER_CRASHED');
  perform processor.note_error(job.id, code, message);

  if retryable and job.cancel_requested_at is null and job.failures + 1 < job.max_attempts then
    perform processor.requeue_job(job.id,
      processor.now() + coalesce(make_interval(secs => delay), processor.retry_delay(job)));
    update public.jobs j
    set failures = j.failures + 1, error_code = code, error_message = left(message, 2000), error_retryable = true
    where j.id = job.id;
  elsif retryable and job.cancel_requested_at is not null then
    perform processor.end_job(job.id, 'cancelled', null, 'CANCELLED', 'cancelled while it ran');
  else
    update public.jobs j set failures = j.failures + 1 where j.id = job.id;
    perform processor.end_job(job.id, case when job.items_done > 0 then 'partial' else 'failed' end,
      result, code, message);
  end if;
end
$$;
comment on function processor.finish_held_job(uuid, jsonb) is
  'Decide what the end of an attempt means for a job that is locked and held: completed, partial, failed, cancelled, or pending again.';

create or replace function public.finish_jobs(worker_id uuid, results jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  answers jsonb := '[]';
  problem text;
  held boolean;
  now_is public.jobs;
begin
  if jsonb_typeof(finish_jobs.results) is distinct from 'array' then
    perform processor.fail('JQ006', 'results must be an array of objects with "id", "attempt" and "outcome"');
  end if;
  -- LOCK: accounts, then jobs; each account is changed once, at the end
  perform processor.lock_accounts(array(select (x ->> 'id')::uuid from jsonb_array_elements(finish_jobs.results) x));
  for r in select * from processor.lock_held_jobs(finish_jobs.worker_id, finish_jobs.results) loop
    problem := null;
    -- a job that stands in the batch twice is ended by the first report; the second is as stale as a later one
    held := r.held and exists (select from public.jobs j where j.id = r.id and j.status = 'processing');
    if held then
      begin -- one bad element spoils no other
        perform processor.finish_held_items(r.id, r.report -> 'items');
        perform processor.finish_held_job(r.id, r.report);
      exception when others then
        if left(sqlstate, 2) in ('40', '53', '55', '57', '58', 'XX') then
          raise; -- the server's trouble, not this element's: the batch is to be repeated
        end if;
        problem := left(sqlstate || ': ' || sqlerrm, 500);
      end;
    end if;
    select * into now_is from public.jobs j where j.id = r.id;
    answers := answers || jsonb_build_object(
      'id', r.id, 'status', now_is.status, 'run_at', now_is.run_at, 'stale', not held, 'error', problem);
  end loop;
  perform processor.settle_holds(array(
    select j.id from public.jobs j
    where j.id in (select (x ->> 'id')::uuid from jsonb_array_elements(finish_jobs.results) x) and j.finished_at is not null
  ));
  return answers;
end
$$;
comment on function public.finish_jobs(uuid, jsonb) is
  'Report how attempts ended, in a batch: each element is decided on its own, credits included, and answered in the order given. '
  'A late or repeated report is stale and changes nothing.';

create or replace function public.release_jobs(worker_id uuid, jobs jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = ''
as $$
#variable_conflict use_column
declare
  r record;
  held boolean;
  ended uuid[] := '{}';
  answers jsonb := '[]';
begin
  if jsonb_typeof(release_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: accounts, then jobs
  perform processor.lock_accounts(array(select (x ->> 'id')::uuid from jsonb_array_elements(release_jobs.jobs) x));
  for r in select * from processor.lock_held_jobs(release_jobs.worker_id, release_jobs.jobs) loop
    held := r.held and exists (select from public.jobs j where j.id = r.id and j.status = 'processing');
    if held and r.cancel then
      perform processor.end_job(r.id, 'cancelled', null, 'CANCELLED', 'cancelled while it ran');
      ended := ended || r.id;
    elsif held then
      perform processor.requeue_job(r.id, processor.now());
    end if;
    answers := answers || jsonb_build_object('id', r.id, 'stale', not held);
  end loop;
  perform processor.settle_holds(ended);
  return answers;
end
$$;
comment on function public.release_jobs(uuid, jsonb) is
  'Give jobs back, at once and without costing an attempt: what a worker does with unfinished work when it stops.';
