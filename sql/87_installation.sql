-- For `processor doctor`: what a worker's key can learn of the installation, without a connection to the database.

create or replace function public.check_installation()
returns jsonb
language plpgsql
stable
security definer -- the worker's role has no right to look into schema processor
set search_path = '', pg_temp
as $$
begin
  return jsonb_build_object(
    'now', processor.now(),
    'schema_version', processor.schema_version(),
    'role', coalesce(nullif(current_setting('role', true), 'none'), session_user),
    'problems', coalesce((select jsonb_agg(c.problem order by c.problem) from processor.check_schema() c), '[]'),
    -- what Realtime reads the changes from
    'wal_level', current_setting('wal_level'),
    -- what the transport broadcast sends with
    'broadcast', to_regprocedure('realtime.send(jsonb, text, text, boolean)') is not null
  );
end
$$;
comment on function public.check_installation() is
  'What processor doctor shows of the installation: the time, the schema''s version, the caller''s role, processor.check_schema(), '
  'and whether Realtime has what it needs.';
