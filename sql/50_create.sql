-- Creating jobs: everything is checked before anything is written.

create or replace function processor.check_size(what text, value jsonb, max_bytes int)
returns void
language plpgsql
set search_path = ''
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
set search_path = ''
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
set search_path = ''
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
set search_path = ''
as $$
begin
  if length(check_text.value) not between 1 and check_text.max_length then
    perform processor.fail('JQ006',
      format('%s has %s characters, but must have 1 to %s', check_text.what, length(check_text.value), check_text.max_length));
  end if;
end
$$;
comment on function processor.check_text(text, text, int) is 'Raise JQ006 if a text is empty or too long; null passes.';

create or replace function processor.parse_items(items jsonb, max_items int)
returns table (key text, payload jsonb, "position" int)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  bad record;
  how_many int;
begin
  if parse_items.items is null or parse_items.items = 'null' then
    return;
  end if;
  if jsonb_typeof(parse_items.items) <> 'array' then
    perform processor.fail('JQ005', format('items must be an array, this is a JSON %s', jsonb_typeof(parse_items.items)), '',
      'Give ["de", "fr"] or [{"key": "de", "payload": {…}}].');
  end if;
  how_many := jsonb_array_length(parse_items.items);
  if how_many > parse_items.max_items then
    perform processor.fail('JQ005', format('too many items: %s, at most %s', how_many, parse_items.max_items), '',
      'Split the work into several jobs.');
  end if;
  perform processor.check_size('items', parse_items.items, 4194304);
  perform processor.check_depth('items', parse_items.items);

  select e.value, e.ordinality into bad
  from jsonb_array_elements(parse_items.items) with ordinality e
  where case jsonb_typeof(e.value)
    when 'string' then length(e.value #>> '{}') not between 1 and 200
    when 'object' then
      coalesce(jsonb_typeof(e.value -> 'key'), '') <> 'string'
      or length(e.value ->> 'key') not between 1 and 200
      or coalesce(jsonb_typeof(e.value -> 'payload'), 'object') <> 'object'
      or e.value - 'key' - 'payload' <> '{}'
    else true
  end
  limit 1;
  if found then
    perform processor.fail('JQ005', format('item %s is not valid: %s', bad.ordinality, left(bad.value::text, 200)), '',
      'An item is a key of 1 to 200 characters, or {"key": key} with an optional "payload" object.');
  end if;

  return query
  select case jsonb_typeof(e.value) when 'string' then e.value #>> '{}' else e.value ->> 'key' end,
    case jsonb_typeof(e.value) when 'string' then '{}'::jsonb else coalesce(e.value -> 'payload', '{}') end,
    e.ordinality::int
  from jsonb_array_elements(parse_items.items) with ordinality e;
end
$$;
comment on function processor.parse_items(jsonb, int) is
  'The items of a job as rows, from ["key", …] or [{"key", "payload"}, …]; raises JQ005 on any other shape.';

create or replace function processor.insert_job(job public.jobs, items jsonb)
returns public.jobs
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  k public.job_kinds;
  q public.job_queues;
  made public.jobs;
  existing public.jobs;
  keys text[];
  payloads jsonb[];
  twice text;
  price bigint;
  units int;
begin
  if job.kind is null then
    perform processor.fail('JQ006', 'kind is missing', '', 'Name the handler: create_job(kind => ''…'').');
  end if;
  select * into k from public.job_kinds where kind = insert_job.job.kind;
  if not found or (processor.is_client() and not k.public) then
    -- the same answer for both: a client learns nothing about internal kinds
    perform processor.fail('JQ001', format('unknown kind: %s', left(job.kind, 100)), '',
      'Kinds are registered when a worker with their handlers starts; clients may create those declared public.');
  end if;
  job.queue := coalesce(job.queue, k.queue);
  select * into q from public.job_queues where name = insert_job.job.queue;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(job.queue, 100)), '',
      'Queues are made by the first worker that serves them, or by inserting a row into public.job_queues.');
  end if;
  -- a retry runs where its job ran: the queue is not the caller's choice then
  if processor.is_client() and job.queue <> k.queue and job.retry_of is null then
    perform processor.fail('JQ010', format('jobs of kind %s run in queue %s', k.kind, k.queue), '', 'Leave queue out.');
  end if;

  if coalesce(jsonb_typeof(job.payload), 'null') <> 'object' then
    perform processor.fail('JQ003', format('payload must be a JSON object, this is %s', coalesce(jsonb_typeof(job.payload), 'null')),
      '', 'Wrap it: {"value": …}.');
  end if;
  perform processor.check_size('payload', job.payload, 262144);
  perform processor.check_depth('payload', job.payload);
  perform processor.check_range('priority', job.priority, -1000, 1000);
  perform processor.check_range('max_attempts', job.max_attempts, 1, 100);
  perform processor.check_range('timeout_seconds', extract(epoch from job.timeout), 1, 604800);
  if job.run_at not between processor.now() - interval '100 years' and processor.now() + interval '10 years' then
    perform processor.fail('JQ006', format('run_at is %s, but must be at most 10 years ahead', job.run_at));
  end if;
  perform processor.check_text('idempotency_key', job.idempotency_key, 200);
  perform processor.check_text('unique_key', job.unique_key, 200);
  perform processor.check_range('the number of tags', cardinality(job.tags), 0, 20);
  -- a worker reads tags as a list of texts: anything else would spoil the claim it comes with
  if array_ndims(job.tags) > 1 or exists (select from unnest(job.tags) t where t is null) then
    perform processor.fail('JQ006', 'tags must be a plain list of texts, without null');
  end if;
  perform processor.check_text('a tag', t, 100) from unnest(job.tags) t;

  select array_agg(i.key order by i.position), array_agg(i.payload order by i.position)
  into keys, payloads
  from processor.parse_items(insert_job.items, k.max_items) i;
  select u into twice from unnest(keys) u group by u having count(*) > 1 limit 1;
  if found then
    perform processor.fail('JQ005', format('duplicate item key: %s', twice), '', 'Each item of a job has a key of its own.');
  end if;
  if keys is null and k.credits_per_item > 0 then
    perform processor.fail('JQ005', format('kind %s is priced per item, but there are no items', k.kind), '', 'Give at least one item.');
  end if;

  job.input_digest := sha256(convert_to(
    jsonb_build_array(job.kind, job.queue, job.payload, to_jsonb(keys), to_jsonb(payloads))::text, 'UTF8'));
  job.items_total := coalesce(cardinality(keys), 0);
  job.max_attempts := coalesce(job.max_attempts, q.max_attempts);
  price := case when job.owner_id is null then 0 else k.credits_per_item + k.credits_per_job end; -- one of them is 0
  units := case when k.credits_per_item > 0 then job.items_total else 1 end;

  -- LOCK: the account before the job, so that two creates of one key meet here and not at the index
  if price > 0 then
    perform 1 from public.credit_accounts a where a.owner_id = insert_job.job.owner_id for no key update;
  end if;

  insert into public.jobs (queue, kind, owner_id, priority, payload, items_total, max_attempts, run_at,
    timeout, credits_held, idempotency_key, input_digest, unique_key, retry_of, tags)
  values (job.queue, job.kind, job.owner_id, coalesce(job.priority, 0), job.payload, job.items_total, job.max_attempts,
    coalesce(job.run_at, processor.now()), job.timeout, price * units, job.idempotency_key, job.input_digest, job.unique_key,
    job.retry_of, coalesce(job.tags, '{}'))
  on conflict do nothing
  returning * into made;

  if made.id is null then
    if job.retry_of is not null then
      select * into existing from public.jobs j where j.retry_of = job.retry_of;
    elsif job.owner_id is not null then -- "is not distinct from" would read the whole index
      select * into existing from public.jobs j where j.owner_id = job.owner_id and j.idempotency_key = job.idempotency_key;
    else
      select * into existing from public.jobs j where j.owner_id is null and j.idempotency_key = job.idempotency_key;
    end if;
    if existing.id is null then
      perform processor.fail('JQ012', format('a job of kind %s with unique_key %s is already on its way', job.kind, job.unique_key),
        '', 'Wait for it to end, or cancel it.');
    elsif existing.retry_of is null and existing.input_digest <> job.input_digest then
      perform processor.fail('JQ007', format('idempotency_key %s was used with other input', job.idempotency_key),
        format('job %s', existing.id), 'Use a new key for new input; the same key returns the first job.');
    end if;
    return existing;
  end if;

  insert into public.job_items (job_id, key, position, payload)
  select made.id, i.key, i.position, i.payload
  from unnest(keys, payloads) with ordinality i (key, payload, "position");

  if price > 0 then
    perform processor.open_hold(made.id, made.owner_id, units, price, k.credits_per_item > 0);
  end if;
  return made;
end
$$;
comment on function processor.insert_job(public.jobs, jsonb) is
  'Check a job, reserve its credits, write it and its items; or return the one that exists. create_job and retry_job end here.';

create or replace function public.create_job(
  kind text,
  payload jsonb default '{}',
  items jsonb default null,
  queue text default null,
  priority int default 0,
  run_at timestamptz default null,
  idempotency_key text default null,
  unique_key text default null,
  owner_id uuid default null,
  max_attempts int default null,
  timeout_seconds numeric default null,
  tags text[] default null
)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided here and in insert_job
set search_path = ''
as $$
declare
  job public.jobs;
begin
  if processor.is_client() then
    if create_job.owner_id <> auth.uid() then
      perform processor.fail('JQ010', 'owner_id is not yours', '', 'Leave owner_id out: a job belongs to the user who creates it.');
    end if;
    create_job.owner_id := auth.uid();
    if create_job.owner_id is null then
      perform processor.fail('JQ010', 'only signed-in users create jobs', '', 'Sign in first, or call with the service key.');
    end if;
  end if;
  perform processor.check_range('timeout_seconds', create_job.timeout_seconds, 1, 604800);
  job.kind := create_job.kind;
  job.payload := create_job.payload;
  job.queue := create_job.queue;
  job.priority := create_job.priority;
  job.run_at := create_job.run_at;
  job.idempotency_key := create_job.idempotency_key;
  job.unique_key := create_job.unique_key;
  job.owner_id := create_job.owner_id;
  job.max_attempts := create_job.max_attempts;
  job.timeout := make_interval(secs => create_job.timeout_seconds::double precision);
  job.tags := create_job.tags;
  return processor.insert_job(job, create_job.items);
end
$$;
comment on function public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[]) is
  'Create a job and reserve its credits, in the caller''s transaction. Repeating it with the same idempotency_key '
  'returns the same job. Users create jobs of public kinds, as themselves; the service may name any owner or none.';
