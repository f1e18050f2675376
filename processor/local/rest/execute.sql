-- One message each way for most calls of functions, instead of three: every process that a request wakes costs it time.

create or replace function extensions.rest_call(
  role text, path_of_names text, claims text, method text, path text, headers text, read_only boolean, statement text, arguments text[],
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
  execute statement into total, rows, body using arguments[1], arguments[2]; -- a body and a limit
  xid := pg_catalog.pg_current_xact_id_if_assigned()::text::bigint;
end
$$;
comment on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text[]) is
  'Run a statement of the REST gateway as its caller; xid is that of the transaction, if it wrote.';
revoke all on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text[]) from public;
grant usage on schema extensions to authenticator;
grant execute on function extensions.rest_call(text, text, text, text, text, text, boolean, text, text[]) to authenticator;
