-- What a job to be created must be like: every way of creating one passes through draft_jobs(), which writes nothing.

create or replace function processor.parse_items(items jsonb, max_items int)
returns table (key text, payload jsonb, "position" int)
language plpgsql
set search_path = '', pg_temp
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

do $$
begin
  if to_regtype('processor.wish') is null then
    create type processor.wish as (
      kind text,
      payload jsonb,
      items jsonb,
      queue text,
      priority int,
      run_at timestamptz,
      delay_seconds numeric,
      idempotency_key text,
      unique_key text,
      on_conflict text,
      owner_id uuid,
      max_attempts int,
      timeout_seconds numeric,
      tags text[],
      parent_id uuid,
      children jsonb,
      on_child_failure text,
      retry_of uuid,
      trace_context jsonb
    );
  end if;
end
$$;
comment on type processor.wish is 'A job as it is asked for: the parameters of create_job, and retry_of.';

create or replace function processor.name_wrong_type(wanted jsonb, what text)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  place record;
begin
  for place in
    select e.ordinality as n, v.key, v.value
    from jsonb_array_elements(name_wrong_type.wanted) with ordinality e cross join lateral jsonb_each(e.value) v
  loop
    begin
      perform jsonb_populate_record(null::processor.wish, jsonb_build_object(place.key, place.value));
    exception when data_exception then
      perform processor.fail('JQ006', format('%s of %s %s cannot be %s: %s', place.key, name_wrong_type.what, place.n,
          left(place.value::text, 100), left(sqlerrm, 200)), '',
        'Numbers are priority, max_attempts (whole), delay_seconds and timeout_seconds; run_at is a time with its zone, owner_id and '
        'parent_id are uuids, tags an array of texts.');
    end;
  end loop;
end
$$;
comment on function processor.name_wrong_type(jsonb, text) is
  'Raise JQ006 about the first value that cannot be read as what create_job''s parameter of that name is.';

do $$
begin
  if to_regtype('processor.draft') is null then
    create type processor.draft as (
      n int,
      depth int,
      id uuid,
      kind text,
      queue text,
      owner_id uuid,
      priority int,
      payload jsonb,
      items jsonb,
      items_total int,
      run_at timestamptz,
      created_at timestamptz,
      max_attempts int,
      timeout interval,
      tags text[],
      idempotency_key text,
      input_digest bytea,
      unique_key text,
      on_conflict text,
      retry_of uuid,
      parent_id uuid,
      children jsonb,
      on_child_failure text,
      units int,
      unit_price bigint,
      per_item boolean,
      trace_context jsonb
    );
  end if;
end
$$;
comment on type processor.draft is 'A job that has been checked and is to be written.';
comment on column processor.draft.n is 'Its place in the call, from 1; a child has its parent''s.';
comment on column processor.draft.depth is '0: given in the call itself, 1: a child of such a job, 2: a child of that, …';
comment on column processor.draft.id is 'The job''s id, should it be created.';
comment on column processor.draft.kind is 'As in jobs.';
comment on column processor.draft.queue is 'As in jobs.';
comment on column processor.draft.owner_id is 'As in jobs.';
comment on column processor.draft.priority is 'As in jobs.';
comment on column processor.draft.payload is 'As in jobs.';
comment on column processor.draft.items is 'As parse_items() takes them; null: none.';
comment on column processor.draft.items_total is 'As in jobs.';
comment on column processor.draft.run_at is 'As in jobs.';
comment on column processor.draft.created_at is 'As in jobs.';
comment on column processor.draft.max_attempts is 'As in jobs.';
comment on column processor.draft.timeout is 'As in jobs.';
comment on column processor.draft.tags is 'As in jobs.';
comment on column processor.draft.idempotency_key is 'As in jobs.';
comment on column processor.draft.input_digest is 'As in jobs.';
comment on column processor.draft.unique_key is 'As in jobs.';
comment on column processor.draft.on_conflict is 'What to do if the unique_key is taken: error, replace or return.';
comment on column processor.draft.retry_of is 'As in jobs.';
comment on column processor.draft.parent_id is 'As in jobs.';
comment on column processor.draft.children is 'Jobs to be created as its children; it waits for them.';
comment on column processor.draft.on_child_failure is 'As in jobs.';
comment on column processor.draft.units is 'How many tickets its hold has.';
comment on column processor.draft.unit_price is 'The price of each; 0: no hold.';
comment on column processor.draft.per_item is 'Whether a ticket is an item, or the job.';
comment on column processor.draft.trace_context is 'As in jobs.';

create or replace function processor.place_in_call(draft processor.draft, detail text)
returns text
language sql
immutable
set search_path = '', pg_temp
as $$
  select concat_ws(': ', format('job %s of the call', draft.n) || case when draft.depth > 0 then ', among its children' else '' end,
    nullif(place_in_call.detail, ''))
$$;
comment on function processor.place_in_call(processor.draft, text) is 'The detail of an error about one of several jobs: which of them.';

create or replace function processor.count_ancestors(job_id uuid)
returns int
language sql
stable
set search_path = '', pg_temp
as $$
  with recursive line (id, parent_id, place) as (
    select j.id, j.parent_id, 0 from public.jobs j where j.id = count_ancestors.job_id
    union all
    select p.id, p.parent_id, l.place + 1 from line l join public.jobs p on p.id = l.parent_id where l.place < 100
  )
  select max(l.place) from line l
$$;
comment on function processor.count_ancestors(uuid) is 'How deep a job is: 0 without a parent.';

create or replace function processor.draft_jobs(wanted jsonb, internal boolean default false)
returns processor.draft[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  -- what an operator has us repeat is made as it was, whoever's it is
  client constant boolean := processor.is_client() and not (draft_jobs.internal and processor.is_operator());
  caller constant uuid := auth.uid();
  moment constant timestamptz := processor.now();
  -- nobody's but the caller's: a schedule has none, and what is repeated has its own
  around constant jsonb := case
    when not draft_jobs.internal and position('"traceparent"' in current_setting('request.headers', true)) > 0
    then processor.request_trace_context() end;
  most constant int := 20; -- levels of children: what ends a job goes up and down the family, and the stack has an end
  drafts processor.draft[] := '{}'::processor.draft[];
  wave jsonb := draft_jobs.wanted; -- the jobs of one depth
  above int[]; -- the places of their parents in drafts
  current int := 0; -- the depth
  what text := 'job';
  nested boolean; -- whether any of this depth has children
  e record;
  d processor.draft;
  k public.job_kinds;
  q public.job_queues;
  parent public.jobs;
  keys text[];
  payloads jsonb[];
  twice text;
  message text;
  detail text;
  hint text;
begin
  loop
    if current > 0 then
      perform processor.check_elements(wave, draft_jobs.internal, what);
    end if;
    d := null;
    nested := false;
    for e in
      select * from rows from (jsonb_populate_recordset(null::processor.wish, wave)) with ordinality
    loop
      d := null;
      d.n := coalesce(drafts[above[e.ordinality]].n, e.ordinality);
      d.depth := current;
      d.retry_of := e.retry_of;
      d.owner_id := e.owner_id;

      if current > 0 then
        if e.parent_id is not null then
          perform processor.fail('JQ006', 'parent_id is given for a child', '', 'Leave it out: its parent is the job it is given in.');
        end if;
        parent := null;
        parent.id := drafts[above[e.ordinality]].id;
        parent.owner_id := drafts[above[e.ordinality]].owner_id;
        parent.trace_context := drafts[above[e.ordinality]].trace_context;
      elsif e.parent_id is distinct from parent.id and e.parent_id is not null then
        select * into parent from public.jobs j where j.id = e.parent_id and (not client or j.owner_id = caller);
        if not found then
          perform processor.fail('JQ008', format('job not found: %s', e.parent_id), '', 'Check parent_id; one sees only own jobs.');
        elsif processor.count_ancestors(parent.id) >= most then
          perform processor.fail('JQ006', format('there are more than %s levels of children', most), '', 'Make the tree flatter.');
        end if;
      end if;
      if current > 0 or e.parent_id is not null then
        if d.owner_id <> parent.owner_id or (d.owner_id is not null and parent.owner_id is null) then
          perform processor.fail('JQ010', 'a child has the owner of its parent', format('parent %s', parent.id), 'Leave owner_id out.');
        end if;
        d.parent_id := parent.id;
        d.owner_id := parent.owner_id;
        d.trace_context := parent.trace_context;
      elsif client then
        if d.owner_id <> caller then
          perform processor.fail('JQ010', 'owner_id is not yours', '', 'Leave owner_id out: a job belongs to the user who creates it.');
        end if;
        d.owner_id := caller;
        if d.owner_id is null then
          perform processor.fail('JQ010', 'only signed-in users create jobs', '', 'Sign in first, or call with the service key.');
        end if;
      end if;

      if e.kind is null then
        perform processor.fail('JQ006', 'kind is missing', '', 'Name the handler: create_job(kind => ''…'').');
      end if;
      if e.kind is distinct from k.kind then
        select * into k from public.job_kinds x where x.kind = e.kind;
        if not found or (client and not k.public) then
          -- the same answer for both: a client learns nothing about internal kinds
          perform processor.fail('JQ001', format('unknown kind: %s', left(e.kind, 100)), '',
            'Kinds are registered when a worker with their handlers starts; clients may create those declared public.');
        end if;
      end if;
      d.kind := k.kind;
      d.queue := coalesce(e.queue, k.queue);
      if d.queue is distinct from q.name then
        select * into q from public.job_queues x where x.name = d.queue;
        if not found then
          perform processor.fail('JQ002', format('unknown queue: %s', left(d.queue, 100)), '',
            'Queues are made by the first worker that serves them, or by inserting a row into public.job_queues.');
        end if;
      end if;
      -- a retry runs where its job ran: the queue is not the caller's choice then
      if client and d.queue <> k.queue and d.retry_of is null then
        perform processor.fail('JQ010', format('jobs of kind %s run in queue %s', k.kind, k.queue), '', 'Leave queue out.');
      end if;

      d.payload := coalesce(e.payload, '{}');
      if jsonb_typeof(d.payload) <> 'object' then
        perform processor.fail('JQ003', format('payload must be a JSON object, this is %s', jsonb_typeof(d.payload)),
          '', 'Wrap it: {"value": …}.');
      end if;
      perform processor.check_size('payload', d.payload, 262144), processor.check_depth('payload', d.payload);
      d.priority := coalesce(e.priority, 0);
      d.max_attempts := coalesce(e.max_attempts, q.max_attempts);
      if d.priority <> 0 then
        perform processor.check_range('priority', e.priority, -1000, 1000);
      end if;
      if e.max_attempts is not null then
        perform processor.check_range('max_attempts', e.max_attempts, 1, 100);
      end if;
      if e.timeout_seconds is not null then
        perform processor.check_range('timeout_seconds', e.timeout_seconds, 1, 604800);
        d.timeout := make_interval(secs => e.timeout_seconds::double precision);
      end if;
      d.run_at := coalesce(e.run_at, moment);
      if e.run_at not between moment - interval '100 years' and moment + interval '10 years' then
        perform processor.fail('JQ006', format('run_at is %s, but must be at most 10 years ahead', e.run_at));
      end if;
      if e.delay_seconds is not null then
        perform processor.check_range('delay_seconds', e.delay_seconds, 0, 315360000);
        if e.run_at is not null then
          perform processor.fail('JQ006', 'run_at and delay_seconds are both given', '', 'Give one of them.');
        end if;
        d.run_at := moment + make_interval(secs => e.delay_seconds::double precision);
      end if;
      d.idempotency_key := e.idempotency_key;
      d.unique_key := e.unique_key;
      d.on_conflict := coalesce(e.on_conflict, 'error');
      if coalesce(d.idempotency_key, d.unique_key) is not null or d.on_conflict <> 'error' then
        perform processor.check_text('idempotency_key', d.idempotency_key, 200);
        perform processor.check_text('unique_key', d.unique_key, 200);
        perform processor.check_choice('on_conflict', d.on_conflict, array['error', 'replace', 'return']);
      end if;
      d.tags := coalesce(e.tags, '{}');
      if d.tags <> '{}' then
        perform processor.check_tags(d.tags);
      end if;

      if e.trace_context is not null then
        d.trace_context := processor.read_trace_context(e.trace_context);
      elsif around is not null and d.trace_context is null then
        d.trace_context := around;
      end if;

      d.items_total := 0;
      if e.items is not null then
        d.items := e.items;
        select array_agg(i.key order by i.position), array_agg(i.payload order by i.position)
        into keys, payloads
        from processor.parse_items(e.items, k.max_items) i;
        select u into twice from unnest(keys) u group by u having count(*) > 1 limit 1;
        if found then
          perform processor.fail('JQ005', format('duplicate item key: %s', twice), '', 'Each item of a job has a key of its own.');
        end if;
        d.items_total := coalesce(cardinality(keys), 0);
      end if;
      if d.items_total = 0 and k.credits_per_item > 0 then
        perform processor.fail('JQ005', format('kind %s is priced per item, but there are no items', k.kind), '',
          'Give at least one item.');
      end if;
      if d.idempotency_key is not null then
        d.input_digest := sha256(convert_to(jsonb_build_array(d.kind, d.queue, d.payload,
          case when d.items_total > 0 then to_jsonb(keys) end, case when d.items_total > 0 then to_jsonb(payloads) end)::text, 'UTF8'));
      end if;
      d.per_item := k.credits_per_item > 0;
      d.units := case when d.per_item then d.items_total else 1 end;
      d.unit_price := case when d.owner_id is null then 0 else k.credits_per_item + k.credits_per_job end; -- one of them is 0

      d.on_child_failure := coalesce(e.on_child_failure, 'continue');
      if d.on_child_failure <> 'continue' then
        perform processor.check_choice('on_child_failure', d.on_child_failure, array['continue', 'fail']);
      end if;
      if coalesce(e.children, '[]') <> '[]' then
        if jsonb_typeof(e.children) <> 'array' then
          perform processor.fail('JQ006', 'children must be an array of jobs', '', 'Give [{"kind": …, "payload": {…}}].');
        end if;
        if e.run_at is not null or e.delay_seconds is not null then
          perform processor.fail('JQ006', 'a job with children starts when they have ended', '', 'Leave run_at and delay_seconds out.');
        end if;
        if current + 1 > most then
          perform processor.fail('JQ006', format('there are more than %s levels of children', most), '', 'Make the tree flatter.');
        end if;
        nested := true;
        d.children := e.children;
        d.run_at := processor.never();
      end if;

      d.id := processor.uuid7();
      d.created_at := moment;
      drafts := drafts || d;
    end loop;

    exit when not nested;
    select jsonb_agg(c.value order by x.ordinality, c.ordinality), array_agg(x.ordinality::int order by x.ordinality, c.ordinality)
    into wave, above
    from unnest(drafts) with ordinality x
    cross join lateral jsonb_array_elements(x.children) with ordinality c
    where x.depth = current and x.children is not null;
    current := current + 1;
    what := 'child';
  end loop;
  return drafts;
exception when others then
  if left(sqlstate, 2) not in ('JQ', '22') then
    raise;
  end if;
  if left(sqlstate, 2) = '22' then
    perform processor.name_wrong_type(wave, what);
  end if;
  if d.n is null or jsonb_array_length(draft_jobs.wanted) = 1 then
    raise;
  end if;
  get stacked diagnostics message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
  raise exception using errcode = sqlstate, message = message, detail = processor.place_in_call(d, detail), hint = hint;
end
$$;
comment on function processor.draft_jobs(jsonb, boolean) is
  'Check an array of jobs that check_elements() let pass, each with the names of create_job''s parameters, and their children, and give '
  'them what follows from kind, queue and parent: first the jobs of the array, then their children, then theirs. Nothing is written '
  'or locked.';
