-- The numbered files follow in the same transaction. What version 3 has no more, or with other arguments.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 3 then
    return;
  end if;

  drop index if exists public.jobs_retry_of_idx;
  drop function if exists public.retry_job(uuid);
end
$migration$;
