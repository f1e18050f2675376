-- One message each way for most calls of functions, instead of three: every process that a request wakes costs it time.

drop function if exists extensions.rest_call(text, text, text, text, text, text, boolean, text, text[]); -- earlier versions had it

create or replace function extensions.rest_call(
  role text, path_of_names text, claims text, method text, path text, headers text, read_only boolean,
  name text, statement text, arguments text[],
  out rows bigint, out body text, out xid bigint
)
language plpgsql
as $$
#variable_conflict use_variable
declare
  total bigint;
begin
  -- no "set search_path" here: what the transaction sets must last to its end, for triggers that are deferred until then
  perform set_config('role', role, true), set_config('search_path', path_of_names, true),
    set_config('request.jwt.claims', claims, true), set_config('request.method', method, true),
    set_config('request.path', path, true), set_config('request.headers', headers, true),
    case when read_only then set_config('transaction_read_only', 'on', true) end;
  -- a session keeps its statements, and their plans: planning takes as long as a third of a claim
  if statement is not null then
    if exists (select from pg_catalog.pg_prepared_statements p where p.name = rest_call.name) then
      execute pg_catalog.format('deallocate %I', name);
    end if;
    execute pg_catalog.format('prepare %I as %s', name, statement);
  end if;
  execute pg_catalog.format('execute %I', name) || case pg_catalog.cardinality(arguments) -- a body and a limit
    when 0 then ''
    when 1 then pg_catalog.format('(%L)', arguments[1])
    else pg_catalog.format('(%L, %L)', arguments[1], arguments[2])
  end into total, rows, body;
  xid := pg_catalog.pg_current_xact_id_if_assigned()::text::bigint;
end
$$;
comment on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text, text[]) is
  'Run a statement of the REST gateway as its caller: the one that this session knows by name, or statement, which it then knows. '
  'xid is that of the transaction, if it wrote.';
revoke all on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text, text[]) from public;
grant usage on schema extensions to authenticator;
grant execute on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text, text[]) to authenticator;
