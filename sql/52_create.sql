-- Creating jobs, one or many: the rows, their items, their holds and their children, all or nothing.

create or replace function processor.keyed_job(owner_id uuid, idempotency_key text)
returns uuid
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if keyed_job.owner_id is null then -- "is not distinct from" would read the whole index
    return (select j.id from public.jobs j where j.owner_id is null and j.idempotency_key = keyed_job.idempotency_key);
  end if;
  return (select j.id from public.jobs j where j.owner_id = keyed_job.owner_id and j.idempotency_key = keyed_job.idempotency_key);
end
$$;
comment on function processor.keyed_job(uuid, text) is 'The job of an owner (or of nobody) with an idempotency_key.';

create or replace function processor.active_job(owner_id uuid, kind text, unique_key text)
returns uuid
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if active_job.owner_id is null then
    return (select j.id from public.jobs j where j.owner_id is null and j.kind = active_job.kind
      and j.unique_key = active_job.unique_key and j.status in ('pending', 'processing'));
  end if;
  return (select j.id from public.jobs j where j.owner_id = active_job.owner_id and j.kind = active_job.kind
    and j.unique_key = active_job.unique_key and j.status in ('pending', 'processing'));
end
$$;
comment on function processor.active_job(uuid, text, text) is 'The pending or processing job of an owner (or of nobody) with a unique_key.';

create or replace function processor.find_conflict(draft processor.draft, several boolean)
returns uuid
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  existing public.jobs;
  taken text;
begin
  if draft.retry_of is not null and draft.idempotency_key is null then
    select * into existing from public.jobs j where j.retry_of = draft.retry_of and j.idempotency_key is null;
  else
    select * into existing from public.jobs j where j.id = processor.keyed_job(draft.owner_id, draft.idempotency_key);
  end if;
  taken := format('taken by job %s', existing.id);
  if existing.id is not null then
    if existing.retry_of is null
      and (existing.input_digest <> draft.input_digest or existing.parent_id is distinct from draft.parent_id)
    then
      perform processor.fail('JQ007', format('idempotency_key %s was used with other input', draft.idempotency_key),
        case when find_conflict.several then processor.place_in_call(draft, taken) else taken end,
        'Use a new key for new input or another parent; the same key returns the first job.');
    end if;
    return existing.id;
  end if;
  select * into existing from public.jobs j where j.id = processor.active_job(draft.owner_id, draft.kind, draft.unique_key);
  taken := case when existing.id is null then '' else format('taken by job %s', existing.id) end;
  if existing.id is null or draft.on_conflict <> 'return' then
    perform processor.fail('JQ012',
      format('a job of kind %s with unique_key %s is already %s', draft.kind, draft.unique_key, coalesce(existing.status, 'on its way')),
      case when find_conflict.several then processor.place_in_call(draft, taken) else taken end,
      case
        when draft.on_conflict = 'error' then 'Wait for it to end, cancel it, or say on_conflict => ''replace'' or ''return''.'
        when existing.status = 'pending' then 'It was made by this very call: give each job its own unique_key.'
        else 'Only a pending job can be replaced: wait for this one to end, or cancel it.' end);
  end if;
  return existing.id;
end
$$;
comment on function processor.find_conflict(processor.draft, boolean) is
  'The job that keeps a draft from being written, if it stands for it; JQ007 or JQ012 if it does not.';

create or replace function processor.check_pending(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  o record;
begin
  -- LOCK: the caller lets one creator at a time through, for each owner and queue
  for o in
    select g.queue, g.owner_id, q.max_pending_per_owner as most, (
      select count(*) from public.jobs j
      where j.queue = g.queue and j.status = 'pending' and j.owner_id = g.owner_id
    ) as there
    from (select distinct x.queue, x.owner_id from unnest(check_pending.drafts) x where x.owner_id is not null) g
    join public.job_queues q on q.name = g.queue and q.max_pending_per_owner is not null
  loop
    if o.there > o.most then
      perform processor.fail('JQ014', format('too many pending jobs in queue %s: %s with these, at most %s', o.queue, o.there, o.most),
        format('owner %s', o.owner_id), 'Wait until some have run, or cancel some.');
    end if;
  end loop;
end
$$;
comment on function processor.check_pending(processor.draft[]) is
  'Raise JQ014 if with these jobs an owner has more pending than the queue''s max_pending_per_owner.';

create or replace function processor.take_turns(turns bigint[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  all_turns constant bigint := hashtextextended('processor: every turn', 0);
begin
  -- LOCK: before all others. Each turn is a place in the server's table of locks, which is small: whoever wants many takes them all.
  if take_turns.turns is null or cardinality(take_turns.turns) > 100 then
    perform pg_advisory_xact_lock(all_turns);
  else
    perform pg_advisory_xact_lock_shared(all_turns);
    perform pg_advisory_xact_lock(o.t) from (select distinct t from unnest(take_turns.turns) t order by t) o;
  end if;
end
$$;
comment on function processor.take_turns(bigint[]) is
  'Creators who would race for a unique_key, or for an owner''s share of a queue, do one after the other; null: all of them wait.';

create or replace function processor.lock_drafts(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  turns bigint[];
  payers uuid[];
  concerned uuid[];
  alone boolean := true; -- whether no draft touches anything but its own row
  d processor.draft;
begin
  foreach d in array lock_drafts.drafts loop
    alone := d.unit_price = 0 and d.parent_id is null and d.unique_key is null;
    exit when not alone;
  end loop;
  if alone and not exists (select from public.job_queues q where q.max_pending_per_owner is not null) then
    return;
  end if;
  select array_agg(distinct x.owner_id) filter (where x.unit_price > 0 or x.parent_id is not null),
    array_agg(distinct x.parent_id) filter (where x.parent_id is not null and x.depth = 0),
    array_agg(hashtextextended(format('unique %s %s %s', x.owner_id, x.kind, x.unique_key), 0)) filter (where x.unique_key is not null)
      || array_agg(distinct hashtextextended(format('pending %s %s', x.queue, x.owner_id), 0)) filter (where q.name is not null)
  into payers, concerned, turns
  from unnest(lock_drafts.drafts) x
  left join public.job_queues q on q.name = x.queue and q.max_pending_per_owner is not null and x.owner_id is not null;
  -- LOCK: creators' turns; then accounts before jobs, so that two creates of one key meet here and not at the index;
  -- then parents, and jobs that may have to make way
  if turns is not null then
    perform processor.take_turns(turns);
    concerned := concerned || array(
      select a.id from unnest(lock_drafts.drafts) x cross join lateral processor.active_job(x.owner_id, x.kind, x.unique_key) a (id)
      where x.on_conflict = 'replace' and x.unique_key is not null and a.id is not null
    );
  end if;
  if coalesce(payers, nullif(concerned, '{}')) is not null then
    perform processor.lock_jobs(coalesce(concerned, '{}'), coalesce(payers, '{}'));
  end if;
end
$$;
comment on function processor.lock_drafts(processor.draft[]) is
  'Lock all that writing drafts may touch, children''s included, in the one order.';

create or replace function processor.make_way(drafts processor.draft[], made uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  replaced processor.verdict[];
  waiting uuid[];
begin
  -- LOCK: the caller has called lock_drafts()
  select array_agg(processor.ending(j.id, 'cancelled', 'REPLACED', 'replaced by a newer job with the same unique_key')),
    array_agg(distinct p.id) filter (where p.id is not null)
  into replaced, waiting
  from (
    select distinct processor.active_job(x.owner_id, x.kind, x.unique_key) as id
    from unnest(make_way.drafts) x
    where x.on_conflict = 'replace' and x.unique_key is not null
      -- a repeated call replaces nothing: what it made is there
      and (x.idempotency_key is null or processor.keyed_job(x.owner_id, x.idempotency_key) is null)
  ) a
  join public.jobs j on j.id = a.id and j.status = 'pending' and j.id <> all (make_way.made)
  -- a parent that waits goes on waiting when one of its children takes another's place
  left join public.jobs p on p.id = j.parent_id and p.run_at = processor.never() and p.status = 'pending'
    and p.id in (select x.parent_id from unnest(make_way.drafts) x);
  if replaced is not null then
    perform processor.conclude(replaced);
    update public.jobs p set run_at = processor.never() where p.id = any (waiting) and p.status = 'pending';
  end if;
end
$$;
comment on function processor.make_way(processor.draft[], uuid[]) is
  'Cancel the pending jobs whose unique_key is given anew with on_conflict "replace"; not what the same call has made.';

create or replace function processor.write_drafts(drafts processor.draft[])
returns table (n int, job_id uuid, created boolean)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  deepest constant int := coalesce(write_drafts.drafts[cardinality(write_drafts.drafts)].depth, -1); -- -1: there are none
  replacing boolean;
  wave processor.draft[];
  d processor.draft;
  parents uuid[];
  ended public.jobs;
  written uuid[];
  made uuid[] := '{}'::uuid[];
begin
  -- LOCK: the caller has called lock_drafts()
  for level in 0..deepest loop
    -- two calls that name the same keys in different orders must not meet at the index in a circle
    select array_agg(x order by x.owner_id, x.idempotency_key, x.n),
      array_agg(distinct x.parent_id) filter (where x.parent_id is not null),
      bool_or(x.on_conflict = 'replace' and x.unique_key is not null)
    into wave, parents, replacing
    from unnest(write_drafts.drafts) x
    where x.depth = level and (x.depth = 0 or x.parent_id = any (written));
    exit when wave is null;
    if replacing then
      perform processor.make_way(wave, made);
    end if;
    if parents is not null then
      select * into ended from public.jobs p where p.id = any (parents) and p.finished_at is not null limit 1;
      if found then
        perform processor.fail('JQ009', format('job %s is %s: it gets no more children', ended.id, ended.status));
      end if;
    end if;

    with rows as (
      insert into public.jobs (id, queue, kind, owner_id, priority, payload, items_total, max_attempts, run_at, created_at, updated_at,
        timeout, credits_held, idempotency_key, input_digest, unique_key, retry_of, tags, parent_id, on_child_failure,
        trace_context)
      select x.id, x.queue, x.kind, x.owner_id, x.priority, x.payload, x.items_total, x.max_attempts, x.run_at, x.created_at, x.created_at,
        x.timeout, x.unit_price * x.units, x.idempotency_key, x.input_digest, x.unique_key, x.retry_of, x.tags, x.parent_id,
        x.on_child_failure, x.trace_context
      from unnest(wave) x
      on conflict do nothing
      returning id
    )
    select coalesce(array_agg(r.id), '{}') into written from rows r;
    if cardinality(written) < cardinality(wave) then
      foreach d in array wave loop
        continue when d.id = any (written);
        n := d.n;
        job_id := processor.find_conflict(d, cardinality(write_drafts.drafts) > 1);
        created := false;
        if level = 0 then
          return next;
        end if;
      end loop;
    end if;
    made := made || written;
    if parents is not null then
      update public.jobs p
      set children_total = p.children_total + c.count, children_open = p.children_open + c.count, updated_at = processor.now()
      from (
        select x.parent_id, count(*)::int as count from unnest(wave) x
        where x.parent_id is not null and x.id = any (written) group by 1
      ) c
      where p.id = any (parents) and p.id = c.parent_id;
    end if;
  end loop;

  perform processor.complete_drafts(case when cardinality(made) = cardinality(write_drafts.drafts) then write_drafts.drafts
    else array(select x from unnest(write_drafts.drafts) x where x.id = any (made) order by x.depth, x.n) end);
  return query select x.n, x.id, true from unnest(write_drafts.drafts) x where x.depth = 0 and x.id = any (made);
end
$$;
comment on function processor.write_drafts(processor.draft[]) is
  'Write drafts, or raise an error and write none. One that exists already (by idempotency_key, unique_key or retry_of) is told as not '
  'created, and its children are left out.';

create or replace function processor.complete_drafts(drafts processor.draft[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  with_items processor.draft[];
  repeating processor.draft[];
  waiting uuid[];
  holds public.credit_holds[];
  alone boolean := true; -- whether nothing belongs to any of them
  limited constant boolean := exists (select from public.job_queues q where q.max_pending_per_owner is not null);
  d processor.draft;
begin
  foreach d in array complete_drafts.drafts loop
    alone := d.unit_price = 0 and d.items is null and d.children is null and d.retry_of is null;
    exit when not alone;
  end loop;
  if alone and not limited then
    return;
  end if;
  select array_agg(x) filter (where x.items is not null),
    array_agg(x) filter (where x.retry_of is not null and x.idempotency_key is null), -- one that repeats everything begins anew
    array_agg(x.id) filter (where x.children is not null),
    array_agg(row(x.id, x.owner_id, x.units, x.unit_price, x.per_item, 0, 0, null)::public.credit_holds order by x.owner_id, x.id)
      filter (where x.unit_price > 0)
  into with_items, repeating, waiting, holds
  from unnest(complete_drafts.drafts) x;
  if with_items is not null then
    insert into public.job_items (job_id, key, position, payload)
    select x.id, i.key, i.position, i.payload
    from unnest(with_items) x cross join lateral processor.parse_items(x.items, x.items_total) i;
  end if;
  if repeating is not null then
    -- copied, not looked up later: what is repeated may be pruned while its repetition runs
    insert into public.job_checkpoints (job_id, name, result, attempt, created_at)
    select x.id, c.name, c.result, 0, c.created_at
    from unnest(repeating) x join public.job_checkpoints c on c.job_id = x.retry_of;
  end if;
  if holds is not null then
    perform processor.open_holds(holds);
  end if;
  if limited then
    perform processor.check_pending(complete_drafts.drafts);
  end if;
  if waiting is not null then -- all of its children may have been there already, as somebody else's
    update public.jobs j set run_at = j.created_at where j.id = any (waiting) and j.children_open = 0;
  end if;
end
$$;
comment on function processor.complete_drafts(processor.draft[]) is
  'What belongs to jobs that were just written: items, the checkpoints of what they repeat, holds, the limits of their owners.';

create or replace function processor.add_jobs(wanted jsonb, internal boolean default false)
returns table (n int, job_id uuid, created boolean)
language plpgsql
set search_path = '', pg_temp
as $$
declare
  drafts processor.draft[];
begin
  perform processor.check_elements(add_jobs.wanted, add_jobs.internal);
  drafts := processor.draft_jobs(add_jobs.wanted, add_jobs.internal);
  perform processor.lock_drafts(drafts);
  return query select * from processor.write_drafts(drafts);
end
$$;
comment on function processor.add_jobs(jsonb, boolean) is
  'Create the jobs of an array, with their items, holds and children; or none, and an error. Each element has the names of '
  'create_job''s parameters; internal: retry_of too. Told are the jobs of the array, not their children.';

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
  tags text[] default null,
  delay_seconds numeric default null,
  on_conflict text default 'error',
  parent_id uuid default null,
  children jsonb default null,
  on_child_failure text default 'continue',
  trace_context jsonb default null
)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in draft_jobs
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  wanted constant jsonb := jsonb_build_array(jsonb_build_object(
    'kind', create_job.kind, 'payload', create_job.payload, 'items', create_job.items, 'queue', create_job.queue,
    'priority', create_job.priority, 'run_at', create_job.run_at, 'idempotency_key', create_job.idempotency_key,
    'unique_key', create_job.unique_key, 'owner_id', create_job.owner_id, 'max_attempts', create_job.max_attempts,
    'timeout_seconds', create_job.timeout_seconds, 'tags', create_job.tags, 'delay_seconds', create_job.delay_seconds,
    'on_conflict', create_job.on_conflict, 'parent_id', create_job.parent_id, 'children', create_job.children,
    'on_child_failure', create_job.on_child_failure, 'trace_context', create_job.trace_context
  ));
  drafts processor.draft[];
  job public.jobs;
begin
  if create_job.payload is null or create_job.payload = 'null' then -- all else is right: the names are our own
    perform processor.check_elements(wanted, false);
  end if;
  drafts := processor.draft_jobs(wanted);
  perform processor.lock_drafts(drafts);
  select a.job_id into job.id from processor.write_drafts(drafts) a;
  select * into job from public.jobs j where j.id = job.id; -- a statement of its own sees what the one before wrote
  return job;
end
$$;
comment on function public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text,
  uuid, jsonb, text, jsonb) is
  'Create a job and reserve its credits, in the caller''s transaction. Repeating it with the same idempotency_key '
  'returns the same job. Users create jobs of public kinds, as themselves; the service may name any owner or none. '
  'With children it starts when they have ended; with a unique_key, on_conflict says what happens if a job has it: '
  'error, replace (a pending one is cancelled) or return (that job). trace_context is what a tracing library injects into headers; '
  'without it, the one in the headers of the request.';

create or replace function public.create_jobs(jobs jsonb)
returns jsonb
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in add_jobs
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('id', a.job_id, 'created', a.created) order by a.n), '[]')
    from processor.add_jobs(create_jobs.jobs) a
  );
end
$$;
comment on function public.create_jobs(jsonb) is
  'Create up to 10,000 jobs at once, all or none: an array of objects with the names of create_job''s parameters. Returns '
  '[{"id", "created"}] in the order given; created is false for one that was there already.';
