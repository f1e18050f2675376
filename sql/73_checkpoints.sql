-- Checkpoints: what the steps of a running job came to, so that no later attempt runs them again.

create or replace function processor.keep_checkpoint(job_id uuid, attempt int, name text, result jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  what constant text := format('the result of checkpoint %s', coalesce(left(keep_checkpoint.name, 200), 'null'));
  known jsonb;
begin
  -- LOCK: the caller holds the job, and nobody writes checkpoints without it
  perform processor.check_text('the name of a checkpoint', coalesce(keep_checkpoint.name, ''), 200);
  if keep_checkpoint.result is null then
    perform processor.fail('JQ006', what || ' is missing', '', 'Give "result"; null is one.');
  end if;
  perform processor.check_size(what, keep_checkpoint.result, 1048576);
  perform processor.check_depth(what, keep_checkpoint.result);
  select c.result into known from public.job_checkpoints c
  where c.job_id = keep_checkpoint.job_id and c.name = keep_checkpoint.name;
  if found then
    if known <> keep_checkpoint.result then
      perform processor.fail('JQ006', format('checkpoint %s is there already, with another result', keep_checkpoint.name), '',
        'A step that is completed is not run again: give each step a name of its own.');
    end if;
    return;
  end if;
  if (select count(*) from public.job_checkpoints c where c.job_id = keep_checkpoint.job_id) >= 1000 then
    perform processor.fail('JQ006', format('checkpoint %s is one too many: a job has at most 1,000', keep_checkpoint.name), '',
      'Make what is done so often items of the job, or children.');
  end if;
  insert into public.job_checkpoints (job_id, name, result, attempt)
  values (keep_checkpoint.job_id, keep_checkpoint.name, keep_checkpoint.result, keep_checkpoint.attempt);
end
$$;
comment on function processor.keep_checkpoint(uuid, int, text, jsonb) is
  'Write one checkpoint of a job that is locked and held. Repeating it changes nothing; another result for the same name is an error.';

create or replace function public.save_checkpoints(worker_id uuid, checkpoints jsonb)
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
  for r in select * from processor.lock_held_jobs(save_checkpoints.worker_id, save_checkpoints.checkpoints) loop
    problem := null;
    if r.held then
      if r.cancel then
        cancel := cancel || to_jsonb(r.id);
      end if;
      begin -- one bad element spoils no other
        perform processor.keep_checkpoint(r.id, (r.report ->> 'attempt')::int, r.report ->> 'name', r.report -> 'result');
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
comment on function public.save_checkpoints(uuid, jsonb) is
  'Store what steps of running jobs came to: [{"id", "attempt", "name", "result"}], results of at most 1 MiB, 1,000 a job. Answered in '
  'the order given; stale means that the worker no longer holds the job. Repeating it changes nothing.';

create or replace function public.read_checkpoint(worker_id uuid, job jsonb, name text)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to read checkpoints
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  found_result jsonb;
begin
  -- LOCK: none: who holds the job is all that changes it, and a completed step stays as it is
  if not exists (
    select from public.jobs j
    where j.id = (read_checkpoint.job ->> 'id')::uuid and j.status = 'processing' and j.worker_id = read_checkpoint.worker_id
      and j.attempt = (read_checkpoint.job ->> 'attempt')::int
  ) then
    return jsonb_build_object('stale', true);
  end if;
  select c.result into found_result from public.job_checkpoints c
  where c.job_id = (read_checkpoint.job ->> 'id')::uuid and c.name = read_checkpoint.name;
  if not found then
    perform processor.fail('JQ006', format('the job has no checkpoint %s', left(read_checkpoint.name, 200)));
  end if;
  return jsonb_build_object('stale', false, 'result', found_result);
end
$$;
comment on function public.read_checkpoint(uuid, jsonb, text) is
  'The result of a checkpoint of a job that the worker holds, {"id", "attempt"}: for those that a claim left out because of their size.';
