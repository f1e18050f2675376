-- What version 3 has with other arguments. The numbered files make it anew, in the same transaction.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 3 then
    return;
  end if;

  drop function if exists public.retry_job(uuid);
  drop function if exists processor.repetition(public.jobs);
end
$migration$;
