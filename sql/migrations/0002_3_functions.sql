-- What version 2 has no more, or with other arguments or results. The numbered files follow in the same transaction.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 2 then
    return;
  end if;

  -- nothing to do after the file before this one; everything when this is pasted
  alter table public.jobs
    validate constraint jobs_children_add_up,
    validate constraint jobs_on_child_failure_is_known;

  drop index if exists public.jobs_due_idx;

  drop function if exists public.create_job(
    text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[]);
  drop function if exists public.claim_jobs(uuid, uuid, text[], int);
  drop function if exists public.finish_jobs(uuid, jsonb);
  drop function if exists processor.claimed(uuid[]);
  drop function if exists processor.insert_job(public.jobs, jsonb);
  drop function if exists processor.end_job(uuid, text, jsonb, text, text);
  drop function if exists processor.requeue_job(uuid, timestamptz);
  drop function if exists processor.note_error(uuid, text, text);
  drop function if exists processor.lock_own_job(uuid);
  drop function if exists processor.lock_accounts(uuid[]);
  drop function if exists processor.finish_held_job(uuid, jsonb);
  drop function if exists processor.retry_delay(public.jobs);
end
$migration$;
