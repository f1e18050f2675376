-- Children of a running job: fan-out from a handler, which then ends its attempt with the outcome "wait".

create or replace function public.spawn_jobs(worker_id uuid, parent jsonb, jobs jsonb, on_child_failure text default null)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  family constant uuid := (spawn_jobs.parent ->> 'id')::uuid;
  wanted jsonb;
  drafts processor.draft[];
  held boolean;
begin
  if jsonb_typeof(spawn_jobs.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects', '', 'Give [{"kind": "…", "payload": {…}, "key": "…"}].');
  end if;
  perform processor.fail('JQ006', format('job %s must be an object, this is a JSON %s', e.ordinality, jsonb_typeof(e.value)))
  from jsonb_array_elements(spawn_jobs.jobs) with ordinality e where jsonb_typeof(e.value) <> 'object' limit 1;
  perform processor.check_choice('on_child_failure', spawn_jobs.on_child_failure, array['continue', 'fail']);
  -- a look before anything is locked: a job that is gone has no children
  if not exists (
    select from public.jobs j
    where j.id = family and j.status = 'processing' and j.worker_id = spawn_jobs.worker_id
      and j.attempt = (spawn_jobs.parent ->> 'attempt')::int
  ) then
    return json_build_object('stale', true, 'jobs', '[]'::json);
  end if;
  -- a job of somebody else would be waited for in vain, and a key like those of children without one would mix them up
  perform processor.fail('JQ006', 'a child cannot be the job that has its unique_key: on_conflict must be error or replace')
  from jsonb_array_elements(spawn_jobs.jobs) e where e ->> 'on_conflict' = 'return' limit 1;
  perform processor.fail('JQ006', format('the key %s of a child begins with #', left(e ->> 'key', 100)), '',
    'So do those of children without a key, which have a "number".')
  from jsonb_array_elements(spawn_jobs.jobs) e where e ->> 'key' like '#%' limit 1;
  wanted := (
    -- an attempt that runs again spawns the same children: the key, or else the number, tells which are which
    select coalesce(jsonb_agg((e.value - array['key', 'number']) || jsonb_build_object(
      'parent_id', family,
      'idempotency_key', format('%s/%s', family, coalesce(e.value ->> 'key', '#' || coalesce(e.value ->> 'number', e.ordinality::text))))
      order by e.ordinality), '[]')
    from jsonb_array_elements(spawn_jobs.jobs) with ordinality e
  );
  perform processor.check_elements(wanted, false);
  drafts := processor.draft_jobs(wanted);
  -- LOCK: creators' turns, account, job with its ancestors
  perform processor.lock_drafts(drafts);
  select h.held into held from processor.lock_held_jobs(spawn_jobs.worker_id, jsonb_build_array(spawn_jobs.parent)) h;
  if not held then
    return json_build_object('stale', true, 'jobs', '[]'::json);
  end if;
  update public.jobs j set on_child_failure = spawn_jobs.on_child_failure
  where j.id = family and j.on_child_failure <> spawn_jobs.on_child_failure;
  return json_build_object('stale', false, 'jobs', (
    select coalesce(json_agg(json_build_object('id', a.job_id, 'created', a.created) order by a.n), '[]')
    from processor.write_drafts(drafts) a
  ));
end
$$;
comment on function public.spawn_jobs(uuid, jsonb, jsonb, text) is
  'Create children of a job that the worker holds, {"id", "attempt"}: objects with the names of create_job''s parameters, and a "key" '
  'that is the child''s name within its parent, or a "number" that stands for it (else its place in the call). Spawning the same again '
  'returns the same children. on_child_failure null keeps what is.';
