-- While a job runs: progress, logs, items. Nothing here touches an account.

create or replace function processor.lock_held_jobs(worker_id uuid, reports jsonb)
returns table (id uuid, report jsonb, held boolean, cancel boolean)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(lock_held_jobs.reports) is distinct from 'array' then
    perform processor.fail('JQ006', 'expected an array of objects with "id" and "attempt"');
  end if;
  -- LOCK: jobs, by id
  perform 1 from public.jobs j
  where j.id in (select (r ->> 'id')::uuid from jsonb_array_elements(lock_held_jobs.reports) r)
  order by j.id for no key update;
  return query
  select (r.value ->> 'id')::uuid,
    r.value,
    -- THE FENCE: still running, by this worker, in this attempt
    coalesce(j.status = 'processing' and j.worker_id = lock_held_jobs.worker_id and j.attempt = (r.value ->> 'attempt')::int, false),
    j.cancel_requested_at is not null
  from jsonb_array_elements(lock_held_jobs.reports) with ordinality r
  left join public.jobs j on j.id = (r.value ->> 'id')::uuid
  order by r.ordinality;
end
$$;
comment on function processor.lock_held_jobs(uuid, jsonb) is
  'Lock the jobs of a batch of reports and say of each, in the order given, whether the worker still holds it (the fence).';

create or replace function public.report_progress(worker_id uuid, reports jsonb)
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
  r record;
  stale jsonb := '[]'::jsonb;
  cancel jsonb := '[]'::jsonb;
begin
  for r in select * from processor.lock_held_jobs(report_progress.worker_id, report_progress.reports) loop
    if not r.held then
      stale := stale || to_jsonb(r.id);
      continue;
    end if;
    if r.cancel then
      cancel := cancel || to_jsonb(r.id);
    end if;
    update public.jobs j
    -- least() and greatest() pass over nulls: no progress given must not become 1
    set progress = greatest(0, least(1, coalesce((r.report ->> 'progress')::double precision, j.progress))),
      progress_message = coalesce(left(r.report ->> 'message', 500), j.progress_message),
      updated_at = processor.now()
    where j.id = r.id;
    update public.job_items i
    set progress = greatest(0, least(1, coalesce((x ->> 'progress')::double precision, i.progress))), updated_at = processor.now()
    from jsonb_array_elements(coalesce(nullif(r.report -> 'items', 'null'), '[]')) x
    where i.job_id = r.id and i.key = x ->> 'key' and i.status = 'pending';
  end loop;
  return jsonb_build_object('stale', stale, 'cancel', cancel);
end
$$;
comment on function public.report_progress(uuid, jsonb) is
  'Write the progress of jobs and items, each 0 to 1. Returns jobs that are no longer held and jobs to cancel.';

create or replace function public.append_job_logs(worker_id uuid, logs jsonb)
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
  jobs uuid[];
  stored int;
begin
  -- LOCK: jobs, by id; in a statement of its own, so that the next one sees what others wrote while we waited
  select array_agg(distinct h.id) into jobs
  from processor.lock_held_jobs(append_job_logs.worker_id, append_job_logs.logs) h where h.held;
  with given as (
    select j.id, j.attempt, l.value as line,
      (select count(*) from public.job_logs k where k.job_id = j.id)
        + row_number() over (partition by j.id order by l.ordinality) as n
    from jsonb_array_elements(append_job_logs.logs) with ordinality l
    join public.jobs j on j.id = (l.value ->> 'id')::uuid and j.attempt = (l.value ->> 'attempt')::int
    where j.id = any (jobs)
  ),
  written as (
    insert into public.job_logs (job_id, attempt, logged_at, level, message, fields)
    select g.id, g.attempt, coalesce((g.line ->> 'at')::timestamptz, processor.now()),
      case when g.n = 1000 then 'warning'
        when g.line ->> 'level' in ('debug', 'info', 'warning', 'error') then g.line ->> 'level'
        else 'info' end,
      case when g.n = 1000 then 'no more lines are kept of this job: 1,000 are the limit'
        when length(g.line ->> 'message') > 2000 then left(g.line ->> 'message', 1999) || '…'
        else coalesce(g.line ->> 'message', '') end,
      case when g.n = 1000 or jsonb_typeof(g.line -> 'fields') is distinct from 'object' then '{}'::jsonb
        when octet_length(g.line ->> 'fields') > 4096 then jsonb_build_object('cut', 'the fields had more than 4 KiB')
        else g.line -> 'fields' end
    from given g
    where g.n <= 1000
    order by g.id, g.n
    returning 1
  )
  select count(*) into stored from written;
  return jsonb_build_object('stored', stored);
end
$$;
comment on function public.append_job_logs(uuid, jsonb) is
  'Add log lines to jobs the worker holds: at most 1,000 a job, of which the last one says that no more are kept; 2,000 characters a '
  'line. stored says how many were written.';

create or replace function processor.finish_held_items(job_id uuid, items jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  bad text;
  news jsonb;
  done int[];
  failed int;
  mended int;
  price bigint := 0;
begin
  -- LOCK: the caller holds the job, and nobody changes items without it
  if coalesce(finish_held_items.items, 'null') = 'null' then
    return;
  end if;
  select x ->> 'key' into bad from jsonb_array_elements(finish_held_items.items) x
  where not exists (select from public.job_items i where i.job_id = finish_held_items.job_id and i.key = x ->> 'key')
    or coalesce(x ->> 'status', '') not in ('completed', 'failed')
    or octet_length(x ->> 'result') > 1048576
  limit 1;
  if found then
    perform processor.fail('JQ005', format('the result of item %s cannot be taken', left(bad, 200)), '',
      'The key must be one of the job''s, the status completed or failed, the result at most 1 MiB.');
  end if;
  select x ->> 'key' into bad from jsonb_array_elements(finish_held_items.items) x group by 1 having count(*) > 1 limit 1;
  if found then
    perform processor.fail('JQ005', format('item %s is reported twice at once', bad), '', 'Report the last result of an item.');
  end if;

  -- what is new: a completed item stays so, and the same failure told again is no second one
  select jsonb_agg(x) into news
  from jsonb_array_elements(finish_held_items.items) x
  join public.job_items i on i.job_id = finish_held_items.job_id and i.key = x ->> 'key'
  where i.status = 'pending' or (i.status = 'failed' and (
    x ->> 'status' = 'completed'
    or (i.error_code, i.error_message, i.error_retryable) is distinct from
      (x ->> 'error_code', left(x ->> 'error_message', 2000), (x ->> 'error_retryable')::boolean)
  ));
  if news is null then
    return;
  end if;

  select array_agg(i.position order by i.position) filter (where x ->> 'status' = 'completed'),
    count(*) filter (where x ->> 'status' = 'failed' and i.status <> 'failed'),
    count(*) filter (where x ->> 'status' = 'completed' and i.status = 'failed')
  into done, failed, mended
  from public.job_items i
  join jsonb_array_elements(news) x on i.key = x ->> 'key'
  where i.job_id = finish_held_items.job_id;
  if done is not null then
    price := processor.capture_units(finish_held_items.job_id, done, per_item => true);
  end if;

  update public.job_items i
  set status = x ->> 'status',
    result = nullif(x -> 'result', 'null'),
    progress = case when x ->> 'status' = 'completed' then 1 else i.progress end,
    attempts = i.attempts + 1,
    credits = case when x ->> 'status' = 'completed' then price else 0 end,
    error_code = x ->> 'error_code',
    error_message = left(x ->> 'error_message', 2000),
    error_retryable = (x ->> 'error_retryable')::boolean,
    updated_at = processor.now()
  from jsonb_array_elements(news) x
  where i.job_id = finish_held_items.job_id and i.key = x ->> 'key';

  update public.jobs j
  set items_done = j.items_done + coalesce(cardinality(done), 0),
    items_failed = j.items_failed + failed - mended,
    progress = greatest(j.progress,
      (j.items_done + coalesce(cardinality(done), 0) + j.items_failed + failed - mended)::double precision / j.items_total),
    updated_at = processor.now()
  where j.id = finish_held_items.job_id;
end
$$;
comment on function processor.finish_held_items(uuid, jsonb) is
  'Write the ends of items of a job that is locked and held, and take the tickets of those that completed.';

create or replace function public.finish_items(worker_id uuid, results jsonb)
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
  r record;
  answers jsonb := '[]'::jsonb;
  cancel jsonb := '[]'::jsonb;
  problem text;
begin
  for r in select * from processor.lock_held_jobs(finish_items.worker_id, finish_items.results) loop
    problem := null;
    if r.held then
      if r.cancel then
        cancel := cancel || to_jsonb(r.id);
      end if;
      begin -- one bad element spoils no other
        perform processor.finish_held_items(r.id, r.report -> 'items');
      exception when others then
        if processor.is_server_trouble(sqlstate) then
          raise; -- the server's trouble, not this element's: the batch is to be repeated
        end if;
        problem := left(sqlstate || ': ' || sqlerrm, 500);
      end;
    end if;
    answers := answers || jsonb_build_object('id', r.id, 'stale', not r.held, 'error', problem);
  end loop;
  return jsonb_build_object('results', answers, 'cancel', cancel);
end
$$;
comment on function public.finish_items(uuid, jsonb) is
  'Write the ends of items while their jobs go on: each is a checkpoint and is paid for at once. Repeating it changes nothing.';
