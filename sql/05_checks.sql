-- Checks of what is asked: bad input gets a clear error and changes nothing.

create or replace function processor.check_size(what text, value jsonb, max_bytes int)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if octet_length(check_size.value::text) > check_size.max_bytes then
    perform processor.fail('JQ004',
      format('%s is too large: %s bytes, at most %s', check_size.what, octet_length(check_size.value::text), check_size.max_bytes),
      '', 'Put large data into Storage and the path into the payload.');
  end if;
end
$$;
comment on function processor.check_size(text, jsonb, int) is 'Raise JQ004 if the JSON text of a value has more than max_bytes.';

create or replace function processor.check_depth(what text, value jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  -- PostgreSQL reads deeper than the workers' and the browsers' JSON parsers do: one such payload would stop them all
  if jsonb_path_exists(check_depth.value, 'strict $.**{101}') then
    perform processor.fail('JQ003', format('%s is nested more than 100 levels deep', check_depth.what), '', 'Flatten it.');
  end if;
end
$$;
comment on function processor.check_depth(text, jsonb) is 'Raise JQ003 if a JSON value is nested more than 100 levels deep.';

create or replace function processor.check_range(what text, value numeric, low numeric, high numeric)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if check_range.value not between check_range.low and check_range.high then
    perform processor.fail('JQ006',
      format('%s is %s, but must be between %s and %s', check_range.what, check_range.value, check_range.low, check_range.high));
  end if;
end
$$;
comment on function processor.check_range(text, numeric, numeric, numeric) is 'Raise JQ006 if a number is out of its range; null passes.';

create or replace function processor.check_text(what text, value text, max_length int)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if length(check_text.value) not between 1 and check_text.max_length then
    perform processor.fail('JQ006',
      format('%s has %s characters, but must have 1 to %s', check_text.what, length(check_text.value), check_text.max_length));
  end if;
end
$$;
comment on function processor.check_text(text, text, int) is 'Raise JQ006 if a text is empty or too long; null passes.';

create or replace function processor.check_name(what text, name text, pattern text)
returns text
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if check_name.name is null or check_name.name !~ check_name.pattern then
    perform processor.fail('JQ006', format('%s %s is not a name', check_name.what, coalesce(left(check_name.name, 200), 'null')), '',
      format('A %s looks like %s', check_name.what, check_name.pattern));
  end if;
  return check_name.name;
end
$$;
comment on function processor.check_name(text, text, text) is 'The name, or JQ006 if it does not match the pattern.';

create or replace function processor.check_feed(feed text)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if check_feed.feed not in ('realtime', 'polling') then
    perform processor.fail('JQ006', format('feed %s is not realtime or polling', left(check_feed.feed, 100)));
  end if;
end
$$;
comment on function processor.check_feed(text) is 'Raise JQ006 if a worker''s feed is neither realtime nor polling; null passes.';

create or replace function processor.check_transport(transport text)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_choice('transport', check_transport.transport, array['postgres_changes', 'broadcast', 'polling']);
  if check_transport.transport = 'broadcast' and not exists (
    select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'realtime' and p.proname = 'send' and oidvectortypes(p.proargtypes) = 'jsonb, text, text, boolean'
      and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')
  ) then
    perform processor.fail('JQ006', 'this database has no function realtime.send() that we may call: nothing can be broadcast', '',
      'Set PROCESSOR_FEED=postgres_changes, or update Realtime (Supabase has the function since the end of 2024).');
  end if;
end
$$;
comment on function processor.check_transport(text) is
  'Raise JQ006 if a worker''s transport is none, or broadcast where nothing can be broadcast; null passes.';

create or replace function processor.check_choice(what text, value text, choices text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if check_choice.value <> all (check_choice.choices) then
    perform processor.fail('JQ006', format('%s is %s, but must be one of %s',
      check_choice.what, left(check_choice.value, 100), array_to_string(check_choice.choices, ', ')));
  end if;
end
$$;
comment on function processor.check_choice(text, text, text[]) is 'Raise JQ006 if a text is not one of the choices; null passes.';

create or replace function processor.check_tags(tags text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_range('the number of tags', cardinality(check_tags.tags), 0, 20);
  -- a worker reads tags as a list of texts: anything else would spoil the claim it comes with
  if array_ndims(check_tags.tags) > 1 or exists (select from unnest(check_tags.tags) t where t is null) then
    perform processor.fail('JQ006', 'tags must be a plain list of texts, without null');
  end if;
  perform processor.check_text('a tag', t, 100) from unnest(check_tags.tags) t;
end
$$;
comment on function processor.check_tags(text[]) is 'Raise JQ006 if tags are not at most 20 texts of at most 100 characters.';

create or replace function processor.is_traceparent(value text)
returns boolean
language sql
immutable
set search_path = '', pg_temp
as $$
  select coalesce(is_traceparent.value ~ '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$', false)
$$;
comment on function processor.is_traceparent(text) is
  'Whether a text is a traceparent of W3C Trace Context: version, trace, span and flags.';

create or replace function processor.read_trace_context(carrier jsonb)
returns jsonb
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if read_trace_context.carrier in ('null', '{}') then -- what tracing libraries give where nothing is traced
    return null;
  end if;
  if jsonb_typeof(read_trace_context.carrier) <> 'object'
    or not processor.is_traceparent(read_trace_context.carrier ->> 'traceparent')
    or jsonb_typeof(coalesce(read_trace_context.carrier -> 'tracestate', '""')) <> 'string'
  then
    perform processor.fail('JQ006', format('trace_context is no trace context: %s', left(read_trace_context.carrier::text, 200)), '',
      'Give what your tracing library injects into headers: {"traceparent": "00-<trace>-<span>-01", "tracestate": "…"}, in lower case.');
  end if;
  return processor.trace_carrier(read_trace_context.carrier ->> 'traceparent', read_trace_context.carrier ->> 'tracestate');
end
$$;
comment on function processor.read_trace_context(jsonb) is
  'What is kept of what a tracing library has injected: traceparent and tracestate; null if it is empty; JQ006 if it is anything else.';

create or replace function processor.trace_carrier(traceparent text, tracestate text)
returns jsonb
language sql
immutable
set search_path = '', pg_temp
as $$
  -- the standard has a longer tracestate dropped, or one that is none, rather than the trace
  select jsonb_strip_nulls(jsonb_build_object('traceparent', trace_carrier.traceparent, 'tracestate',
    case when length(trace_carrier.tracestate) <= 512 and trace_carrier.tracestate ~ '^[ -~]+$' then trace_carrier.tracestate end))
$$;
comment on function processor.trace_carrier(text, text) is 'The two as jobs.trace_context has them.';

create or replace function processor.request_trace_context()
returns jsonb
language plpgsql
stable
set search_path = '', pg_temp
as $$
declare
  -- cut out, not parsed: whatever stands there, a header is no reason to refuse a job
  headers constant text := current_setting('request.headers', true);
  traceparent constant text := substring(headers from '"traceparent"\s*:\s*"([^"\\]*)"');
begin
  -- one that is not sampled need not have been meant for us: gateways add headers of their own, and our spans would be lost with it
  if processor.is_traceparent(traceparent) and right(traceparent, 1) in ('1', '3', '5', '7', '9', 'b', 'd', 'f') then
    return processor.trace_carrier(traceparent, substring(headers from '"tracestate"\s*:\s*"([^"\\]*)"'));
  end if;
  return null;
end
$$;
comment on function processor.request_trace_context() is
  'The trace context in the headers of the request, as Supabase''s clients send it (tracePropagation); null: none, or one not sampled.';

create or replace function processor.check_elements(jobs jsonb, internal boolean, what text default 'job')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  known constant text[] := array['kind', 'payload', 'items', 'queue', 'priority', 'run_at', 'delay_seconds', 'idempotency_key',
    'unique_key', 'on_conflict', 'owner_id', 'max_attempts', 'timeout_seconds', 'tags', 'parent_id', 'children', 'on_child_failure',
    'trace_context'];
  bad record;
begin
  if jsonb_typeof(check_elements.jobs) is distinct from 'array' then
    perform processor.fail('JQ006', 'jobs must be an array of objects', '', 'Give [{"kind": "…", "payload": {…}}, …].');
  end if;
  if jsonb_array_length(check_elements.jobs) > 10000 then
    perform processor.check_range(case check_elements.what when 'child' then 'the number of children' else 'the number of jobs' end,
      jsonb_array_length(check_elements.jobs), 0, 10000);
  end if;
  select e.ordinality, jsonb_typeof(e.value) as type,
    (select u from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) u
     where u <> all (known) and not (check_elements.internal and u = 'retry_of') limit 1) as key
  into bad
  from jsonb_array_elements(check_elements.jobs) with ordinality e
  where jsonb_typeof(e.value) <> 'object'
    or e.value - known <> '{}' and not (check_elements.internal and e.value - known - 'retry_of' = '{}')
    or e.value -> 'payload' = 'null'
  order by e.ordinality
  limit 1;
  if found then
    if bad.key is not null then
      perform processor.fail('JQ006', format('%s %s has an unknown key: %s', check_elements.what, bad.ordinality, left(bad.key, 100)), '',
        'Known are ' || array_to_string(known, ', '));
    elsif bad.type <> 'object' then
      perform processor.fail('JQ006', format('%s %s must be an object, this is a JSON %s', check_elements.what, bad.ordinality, bad.type),
        '', 'Give [{"kind": "…", "payload": {…}}, …].');
    end if;
    perform processor.fail('JQ003', 'payload must be a JSON object, this is null',
      format('%s %s of the call', check_elements.what, bad.ordinality),
      'Wrap it: {"value": …}.');
  end if;
end
$$;
comment on function processor.check_elements(jsonb, boolean, text) is
  'Raise an error if something is not an array of objects with the names of create_job''s parameters, or retry_of if internal.';

create or replace function processor.check_limits(limits jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  known constant text[] := array['max_processing', 'rate_limit', 'rate_seconds', 'max_processing_per_owner', 'max_pending_per_owner',
    'timeout_seconds', 'max_attempts'];
  most constant bigint[] := array[2147483647, 1000000000, 86400, 2147483647, 2147483647, 604800, 100];
  needed constant text[] := array['rate_seconds', 'timeout_seconds', 'max_attempts'];
  l record;
begin
  if coalesce(jsonb_typeof(check_limits.limits), '') <> 'object' then
    perform processor.fail('JQ006', 'limits must be an object', '', 'Give {"max_processing": 5, "rate_limit": null}: null lifts a limit.');
  end if;
  for l in select e.key, e.value, jsonb_typeof(e.value) as type from jsonb_each(check_limits.limits) e loop
    if l.key <> all (known) then
      perform processor.fail('JQ006', format('limits has an unknown key: %s', left(l.key, 100)), '',
        'Known are ' || array_to_string(known, ', '));
    elsif l.type = 'null' and l.key = any (needed) then
      perform processor.fail('JQ006', format('%s cannot be null', l.key), '', 'Leave it out to keep what it is.');
    elsif l.type not in ('number', 'null') or l.type = 'number' and (l.value #>> '{}')::numeric % 1 <> 0 then
      perform processor.fail('JQ006', format('%s is %s, but must be a whole number', l.key, left(l.value::text, 100)), '',
        case when l.key = any (needed) then '' else 'null lifts the limit.' end);
    elsif l.type = 'number' then
      perform processor.check_range(l.key, (l.value #>> '{}')::numeric, 1, most[array_position(known, l.key)]);
    end if;
  end loop;
end
$$;
comment on function processor.check_limits(jsonb) is
  'Raise JQ006 unless this is an object of limits of a queue, as set_queue_limits() takes it.';
