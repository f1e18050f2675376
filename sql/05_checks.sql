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

create or replace function processor.check_elements(jobs jsonb, internal boolean, what text default 'job')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  known constant text[] := array['kind', 'payload', 'items', 'queue', 'priority', 'run_at', 'delay_seconds', 'idempotency_key',
    'unique_key', 'on_conflict', 'owner_id', 'max_attempts', 'timeout_seconds', 'tags', 'parent_id', 'children', 'on_child_failure'];
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
