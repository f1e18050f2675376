-- The end of an attempt: finished, or given back.

create or replace function processor.retry_delay(queue text, failures int)
returns interval
language sql
volatile
set search_path = '', pg_temp
as $$
  -- a queue that is gone, or a delay of null, must not keep the job from ending its attempt
  select coalesce((
    select q.retry_delays[least(retry_delay.failures, cardinality(q.retry_delays))] * (1 + q.jitter * (2 * random() - 1))
    from public.job_queues q where q.name = retry_delay.queue
  ), interval '1 minute')
$$;
comment on function processor.retry_delay(text, int) is
  'How long a job waits after its nth failure: the queue''s nth delay (the last one repeats), give or take the jitter.';

create or replace function processor.decide(job_id uuid, report jsonb)
returns processor.verdict
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  outcome constant text := decide.report ->> 'outcome';
  delay constant double precision := (decide.report ->> 'delay_seconds')::double precision;
  verdict processor.verdict;
  j record;
  retryable boolean;
begin
  if coalesce(outcome, '') not in ('done', 'fail', 'retry', 'snooze', 'cancelled', 'wait') then
    perform processor.fail('JQ006', format('outcome %s is not one of done, fail, retry, snooze, cancelled, wait', left(outcome, 100)));
  end if;
  perform processor.check_range('delay_seconds', delay::numeric, 0, 31536000);
  perform processor.check_size('the result', nullif(decide.report -> 'result', 'null'), 1048576);
  -- the columns by name: the whole row would bring its payload
  select x.queue, x.failures, x.max_attempts, x.items_total, x.items_done, x.cancel_requested_at is not null as cancelled,
    x.children_total, x.children_open, x.children_failed, x.on_child_failure
  into j
  from public.jobs x where x.id = decide.job_id;

  verdict := processor.ending(decide.job_id, 'cancelled', decide.report ->> 'error_code', decide.report ->> 'error_message');
  if outcome = 'done' and j.items_done = j.items_total then
    verdict.status := 'completed';
    verdict.result := nullif(decide.report -> 'result', 'null');
    verdict.error_code := null;
    verdict.error_message := null;
    return verdict;
  elsif outcome = 'cancelled' or (j.cancelled and outcome in ('retry', 'snooze', 'wait')) then
    verdict.error_code := coalesce(verdict.error_code, 'CANCELLED');
    verdict.error_message := coalesce(verdict.error_message, 'cancelled while it ran');
    return verdict;
  elsif outcome = 'snooze' or (outcome = 'wait' and (j.children_failed = 0 or j.on_child_failure = 'continue')) then
    if outcome = 'snooze' and delay is null then
      perform processor.fail('JQ006', 'a snooze needs delay_seconds');
    elsif outcome = 'wait' and j.children_total = 0 then
      perform processor.fail('JQ006', 'there are no children to wait for', '', 'Call spawn_jobs first.');
    end if;
    verdict := processor.requeueing(decide.job_id, case
      when outcome = 'snooze' then processor.now() + make_interval(secs => delay)
      when j.children_open > 0 then processor.never()
      else processor.now() end);
    verdict.progress_message := decide.report ->> 'message';
    verdict.crashed := false;
    return verdict;
  end if;

  -- a failure; "done" with open items is one too, worth another attempt if one of them is
  retryable := case outcome
    when 'done' then exists (
      select from public.job_items i
      where i.job_id = decide.job_id and (i.status = 'pending' or (i.status = 'failed' and i.error_retryable))
    )
    when 'retry' then coalesce((decide.report ->> 'error_retryable')::boolean, true)
    else false
  end;
  if outcome = 'done' then
    verdict.error_code := 'ITEMS_FAILED';
    verdict.error_message := format('%s of %s items did not complete', j.items_total - j.items_done, j.items_total);
  elsif outcome = 'wait' then
    verdict.error_code := 'CHILD_FAILED';
    verdict.error_message := format('%s of %s children did not complete', j.children_failed, j.children_total);
  end if;
  verdict.error_code := coalesce(verdict.error_code, 'HANDLER_CRASHED');
  verdict.note := jsonb_build_object('code', verdict.error_code, 'message', verdict.error_message);
  if retryable and j.cancelled then
    verdict.error_code := 'CANCELLED';
    verdict.error_message := 'cancelled while it ran';
    return verdict;
  end if;
  verdict.failed := true;
  if retryable and j.failures + 1 < j.max_attempts then
    verdict.status := 'pending';
    verdict.run_at := processor.now() + coalesce(make_interval(secs => delay), processor.retry_delay(j.queue, j.failures + 1));
  else
    verdict.status := case when j.items_done > 0 then 'partial' else 'failed' end;
    verdict.result := nullif(decide.report -> 'result', 'null');
  end if;
  return verdict;
end
$$;
comment on function processor.decide(uuid, jsonb) is
  'The verdict on a job that is locked and held, from the worker''s report of how the attempt ended.';

create or replace function processor.job_ids(reports jsonb)
returns uuid[]
language sql
immutable
set search_path = '', pg_temp
as $$
  select array(
    select (r ->> 'id')::uuid from jsonb_array_elements(job_ids.reports) r
    -- a regular expression would take longer than locking the job
    where r ->> 'id' like '________-____-____-____-____________' and length(replace(r ->> 'id', '-', '')) = 32
      and translate(r ->> 'id', '-0123456789abcdefABCDEF', '') = ''
  )
$$;
comment on function processor.job_ids(jsonb) is 'The ids of the jobs that reports are about; what is no uuid is left out.';

create or replace function processor.finish_batch(worker_id uuid, results jsonb)
returns table (id text, status text, run_at timestamptz, stale boolean, error text, facts json)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  places int[];
  ids uuid[];
  reports jsonb[];
  verdicts processor.verdict[];
begin
  -- THE FENCE: still running, by this worker, in this attempt; of several reports about a job the first counts
  select array_agg(h.place), array_agg(h.id), array_agg(h.report) into places, ids, reports
  from (
    select distinct on (j.id) r.ordinality as place, j.id, r.value as report
    from jsonb_array_elements(finish_batch.results) with ordinality r
    join public.jobs j on j.id = (r.value ->> 'id')::uuid
    where j.status = 'processing' and j.worker_id = finish_batch.worker_id and j.attempt = (r.value ->> 'attempt')::int
    order by j.id, r.ordinality
  ) h;
  perform processor.finish_held_items(u.id, u.report -> 'items')
  from unnest(ids, reports) u (id, report) where u.report ? 'items';

  select array_agg(case
    -- by far the most frequent report needs no look at anything else; of so few bytes no JSON text has too many
    when u.report ->> 'outcome' = 'done' and j.items_done = j.items_total and not u.report ? 'delay_seconds'
      and coalesce(pg_column_size(u.report -> 'result'), 0) < 100000
    then row(u.id, 'completed', null, nullif(u.report -> 'result', 'null'), null, null, null, null, false, false)::processor.verdict
    else processor.decide(u.id, u.report) end) into verdicts
  from unnest(ids, reports) u (id, report) join public.jobs j on j.id = u.id;
  perform processor.conclude(verdicts);

  return query
  select r.value ->> 'id', j.status, j.run_at, p.place is null, null::text,
    case when j.error_code is not null or j.items_total > 0 or j.credits_captured + j.credits_refunded > 0
    then json_build_object(
      'error_code', j.error_code, 'error_message', j.error_message,
      'items_total', j.items_total, 'items_done', j.items_done, 'items_failed', j.items_failed,
      'credits_captured', j.credits_captured, 'credits_refunded', j.credits_refunded) end
  from jsonb_array_elements(finish_batch.results) with ordinality r
  left join public.jobs j on j.id = (r.value ->> 'id')::uuid
  left join unnest(places) p (place) on p.place = r.ordinality
  order by r.ordinality;
end
$$;
comment on function processor.finish_batch(uuid, jsonb) is
  'Carry out reports of jobs that are locked, all or none, and answer in the order given.';

create or replace function processor.finish_singly(worker_id uuid, results jsonb)
returns table (id text, status text, run_at timestamptz, stale boolean, error text, facts json)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  r record;
begin
  for r in select x.value as report from jsonb_array_elements(finish_singly.results) with ordinality x order by x.ordinality loop
    begin
      return query select * from processor.finish_batch(finish_singly.worker_id, jsonb_build_array(r.report));
    exception when others then
      if processor.is_server_trouble(sqlstate) then
        raise; -- not the fault of this one: all are to be repeated
      end if;
      id := left(r.report ->> 'id', 100);
      stale := false;
      error := left(sqlstate || ': ' || sqlerrm, 500);
      select j.status, j.run_at into status, run_at from public.jobs j where j.id = any (processor.job_ids(jsonb_build_array(r.report)));
      return next;
    end;
  end loop;
end
$$;
comment on function processor.finish_singly(uuid, jsonb) is
  'Carry out reports of jobs that are locked, each by itself: one that cannot be taken is answered with its error and spoils no other.';

create or replace function public.finish_jobs(worker_id uuid, results jsonb)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(finish_jobs.results) is distinct from 'array' then
    perform processor.fail('JQ006', 'results must be an array of objects with "id", "attempt" and "outcome"');
  end if;
  begin
    -- LOCK: accounts, then jobs with their ancestors. In here, not before: a row that one part of a transaction locks and another
    -- changes has two owners, which the next ones to read it have to look up
    perform processor.lock_jobs(processor.job_ids(finish_jobs.results));
    return (select coalesce(json_agg(f), '[]') from processor.finish_batch(finish_jobs.worker_id, finish_jobs.results) f);
  exception when others then
    if processor.is_server_trouble(sqlstate) then
      raise;
    end if;
  end;
  -- one of them cannot be taken, and the locks went with the attempt
  perform processor.lock_jobs(processor.job_ids(finish_jobs.results));
  return (select json_agg(f) from processor.finish_singly(finish_jobs.worker_id, finish_jobs.results) f);
end
$$;
comment on function public.finish_jobs(uuid, jsonb) is
  'Report how attempts ended, in a batch: each element is decided on its own, credits included, and answered in the order given. '
  'Outcomes: done, fail, retry, snooze, cancelled, or wait (for its children). A late or repeated report is stale and changes nothing.';

create or replace function public.release_jobs(worker_id uuid, jobs jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  places int[];
  held uuid[];
begin
  if jsonb_typeof(release_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: accounts, then jobs with their ancestors
  perform processor.lock_jobs(processor.job_ids(release_jobs.jobs));
  select array_agg(h.place), array_agg(h.id) into places, held
  from (
    select distinct on (x.id) x.ordinality as place, x.id
    from processor.lock_held_jobs(release_jobs.worker_id, release_jobs.jobs) with ordinality x
    where x.held
    order by x.id, x.ordinality
  ) h;
  perform processor.conclude(array(
    select case when j.cancel_requested_at is not null then processor.ending(j.id, 'cancelled', 'CANCELLED', 'cancelled while it ran')
      else processor.requeueing(j.id, moment) end
    from public.jobs j where j.id = any (held) order by j.id
  ));
  return (
    select coalesce(jsonb_agg(jsonb_build_object('id', r.value -> 'id', 'stale', p.place is null) order by r.ordinality), '[]')
    from jsonb_array_elements(release_jobs.jobs) with ordinality r
    left join unnest(places) p (place) on p.place = r.ordinality
  );
end
$$;
comment on function public.release_jobs(uuid, jsonb) is
  'Give jobs back, at once and without costing an attempt: what a worker does with unfinished work when it stops.';
