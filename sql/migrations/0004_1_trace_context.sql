-- What a job was created within, for tracing: a column, which costs nothing, and an argument more.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 4 then
    return;
  end if;

  alter table public.jobs add column if not exists trace_context jsonb;
  if not exists (
    select from pg_catalog.pg_attribute a where a.attrelid = to_regclass('processor.wish') and a.attname = 'trace_context'
  ) and to_regtype('processor.wish') is not null
  then
    alter type processor.wish add attribute trace_context jsonb;
    alter type processor.draft add attribute trace_context jsonb;
  end if;
  drop function if exists public.create_job(
    text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text, uuid, jsonb, text);
end
$migration$;
