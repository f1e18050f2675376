-- Creating jobs, one or many: the rows, their items, their holds and their children, all or nothing.

create or replace function processor.find_conflict(draft processor.draft)
returns uuid
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  existing public.jobs;
begin
  if draft.retry_of is not null then
    select * into existing from public.jobs j where j.retry_of = draft.retry_of;
  elsif draft.owner_id is not null then -- "is not distinct from" would read the whole index
    select * into existing from public.jobs j where j.owner_id = draft.owner_id and j.idempotency_key = draft.idempotency_key;
  else
    select * into existing from public.jobs j where j.owner_id is null and j.idempotency_key = draft.idempotency_key;
  end if;
  if existing.id is not null then
    if existing.retry_of is null and existing.input_digest <> draft.input_digest then
      perform processor.fail('JQ007', format('idempotency_key %s was used with other input', draft.idempotency_key),
        format('job %s', existing.id), 'Use a new key for new input; the same key returns the first job.');
    end if;
    return existing.id;
  end if;
  select * into existing from public.jobs j
  where j.unique_key = draft.unique_key and j.kind = draft.kind and j.owner_id is not distinct from draft.owner_id
    and j.status in ('pending', 'processing');
  if existing.id is null or draft.on_conflict <> 'return' then
    perform processor.fail('JQ012',
      format('a job of kind %s with unique_key %s is already %s', draft.kind, draft.unique_key, coalesce(existing.status, 'on its way')),
      coalesce(format('job %s', existing.id), ''), case draft.on_conflict
        when 'replace' then 'Only a pending job can be replaced: wait for this one to end, or cancel it.'
        else 'Wait for it to end, cancel it, or say on_conflict => ''replace'' or ''return''.' end);
  end if;
  return existing.id;
end
$$;
comment on function processor.find_conflict(processor.draft) is
  'The job that keeps a draft from being written, if it stands for it; JQ007 or JQ012 if it does not.';

create or replace function processor.check_pending(drafts processor.draft[])
returns void
language plpgsql
set search_path = ''
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

create or replace function processor.take_turns(wanted jsonb, owner_id uuid default null)
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  -- LOCK: before all others, ascending. A turn that is held already, such as a parent's for its children, is not waited for.
  perform pg_advisory_xact_lock(o.turn) from (
    with recursive tree (job, owner_id) as (
      select e.value, coalesce(take_turns.owner_id, (e.value ->> 'owner_id')::uuid) from jsonb_array_elements(take_turns.wanted) e
      union all
      select c.value, t.owner_id
      from tree t
      cross join lateral jsonb_array_elements(case jsonb_typeof(t.job -> 'children') when 'array' then t.job -> 'children' else '[]' end) c
    )
    select distinct turn.turn
    from tree t
    left join public.job_kinds k on k.kind = t.job ->> 'kind'
    left join public.job_queues q on q.name = coalesce(t.job ->> 'queue', k.queue) and q.max_pending_per_owner is not null
    cross join lateral (values
      (case when t.job ->> 'unique_key' is not null
        then hashtextextended(format('unique %s %s %s', t.owner_id, t.job ->> 'kind', t.job ->> 'unique_key'), 0) end),
      (case when q.name is not null then hashtextextended(format('pending %s %s', q.name, t.owner_id), 0) end)
    ) turn (turn)
    where turn.turn is not null
    order by 1
  ) o;
end
$$;
comment on function processor.take_turns(jsonb, uuid) is
  'Wait until no other creator has the unique_keys of these jobs and their children in hand, or their owner''s share of a queue. '
  'Whoever creates after locking something else calls it first.';

create or replace function processor.add_jobs(wanted jsonb, internal boolean default false)
returns table (n int, job_id uuid, created boolean)
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  drafts processor.draft[];
  d processor.draft;
  turns boolean;
  payers uuid[];
  parents uuid[];
  replaced uuid[];
  made uuid[];
  ended public.jobs;
  any_items boolean;
  any_children boolean;
begin
  perform processor.check_elements(add_jobs.wanted, add_jobs.internal);
  drafts := processor.draft_jobs(add_jobs.wanted);
  select array_agg(distinct x.owner_id) filter (where x.unit_price > 0),
    array_agg(distinct x.parent_id) filter (where x.parent_id is not null),
    bool_or(x.unique_key is not null or q.name is not null),
    bool_or(x.items is not null), bool_or(x.children is not null)
  into payers, parents, turns, any_items, any_children
  from unnest(drafts) x
  left join public.job_queues q on q.name = x.queue and q.max_pending_per_owner is not null;

  -- LOCK: before all others: creators who would race for a unique_key, or for an owner's share of a queue, take turns
  if turns or any_children then
    perform processor.take_turns((
      select jsonb_agg(jsonb_build_object('owner_id', x.owner_id, 'kind', x.kind, 'queue', x.queue, 'unique_key', x.unique_key,
        'children', x.children))
      from unnest(drafts) x
    ));
  end if;
  if turns then
    select array_agg(j.id) into replaced
    from unnest(drafts) x
    join public.jobs j on j.unique_key = x.unique_key and j.kind = x.kind and j.owner_id is not distinct from x.owner_id
    where x.on_conflict = 'replace' and j.status = 'pending'
      and not exists ( -- a repeated call replaces nothing: what it made is there
        select from public.jobs r where r.idempotency_key = x.idempotency_key and r.owner_id is not distinct from x.owner_id
      );
  end if;
  -- LOCK: accounts before jobs, so that two creates of one key meet here and not at the index; parents and jobs that make way
  if coalesce(payers, parents, replaced) is not null then
    perform processor.lock_jobs(coalesce(parents || replaced, parents, replaced, '{}'), coalesce(payers, '{}'));
  end if;
  if replaced is not null then
    perform processor.conclude(array(
      select processor.ending(j.id, 'cancelled', 'REPLACED', 'replaced by a newer job with the same unique_key')
      from public.jobs j where j.id = any (replaced) and j.status = 'pending'
    ));
  end if;
  if parents is not null then
    select * into ended from public.jobs p where p.id = any (parents) and p.finished_at is not null limit 1;
    if found then
      perform processor.fail('JQ009', format('job %s is %s: it gets no more children', ended.id, ended.status));
    end if;
  end if;

  with written as (
    insert into public.jobs (id, queue, kind, owner_id, priority, payload, items_total, max_attempts, run_at, created_at, updated_at,
      timeout, credits_held, idempotency_key, input_digest, unique_key, retry_of, tags, parent_id, on_child_failure)
    select x.id, x.queue, x.kind, x.owner_id, x.priority, x.payload, x.items_total, x.max_attempts, x.run_at, x.created_at, x.created_at,
      x.timeout, x.unit_price * x.units, x.idempotency_key, x.input_digest, x.unique_key, x.retry_of, x.tags, x.parent_id,
      x.on_child_failure
    from unnest(drafts) x
    on conflict do nothing
    returning id
  )
  select coalesce(array_agg(w.id), '{}') into made from written w;
  if cardinality(made) < cardinality(drafts) then
    foreach d in array drafts loop
      continue when d.id = any (made);
      n := d.n;
      job_id := processor.find_conflict(d);
      created := false;
      return next;
    end loop;
    drafts := array(select x from unnest(drafts) x where x.id = any (made));
  end if;

  if any_items then
    insert into public.job_items (job_id, key, position, payload)
    select x.id, i.key, i.position, i.payload
    from unnest(drafts) x
    cross join lateral processor.parse_items(x.items, x.items_total) i
    where x.items is not null;
  end if;
  if payers is not null then
    perform processor.open_holds(array(
      select row(x.id, x.owner_id, x.units, x.unit_price, x.per_item, 0, 0, null)::public.credit_holds
      from unnest(drafts) x where x.unit_price > 0
    ));
  end if;
  if parents is not null then
    update public.jobs p
    set children_total = p.children_total + c.count, children_open = p.children_open + c.count, updated_at = processor.now()
    from (select x.parent_id, count(*)::int as count from unnest(drafts) x where x.parent_id is not null group by 1) c
    where p.id = c.parent_id;
  end if;
  if turns then
    perform processor.check_pending(drafts);
  end if;
  if any_children then -- after their parents: their ids are greater, as the lock order wants
    perform processor.add_jobs(c.children, add_jobs.internal)
    from (
      select jsonb_agg(e.value || jsonb_build_object('parent_id', x.id) order by x.n, e.ordinality) as children
      from unnest(drafts) x cross join lateral jsonb_array_elements(x.children) with ordinality e
    ) c
    where c.children is not null;
  end if;
  return query select x.n, x.id, true from unnest(drafts) x;
end
$$;
comment on function processor.add_jobs(jsonb, boolean) is
  'Create the jobs of an array, with their items, holds and children; or none, and an error. Each element has the names of '
  'create_job''s parameters. One that exists already (by idempotency_key, unique_key or retry_of) is told as not created.';

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
  on_child_failure text default 'continue'
)
returns public.jobs
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in add_jobs
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  job public.jobs;
begin
  select a.job_id into job.id
  from processor.add_jobs(jsonb_build_array(jsonb_build_object(
    'kind', create_job.kind, 'payload', create_job.payload, 'items', create_job.items, 'queue', create_job.queue,
    'priority', create_job.priority, 'run_at', create_job.run_at, 'idempotency_key', create_job.idempotency_key,
    'unique_key', create_job.unique_key, 'owner_id', create_job.owner_id, 'max_attempts', create_job.max_attempts,
    'timeout_seconds', create_job.timeout_seconds, 'tags', create_job.tags, 'delay_seconds', create_job.delay_seconds,
    'on_conflict', create_job.on_conflict, 'parent_id', create_job.parent_id, 'children', create_job.children,
    'on_child_failure', create_job.on_child_failure
  ))) a;
  select * into job from public.jobs j where j.id = job.id; -- a statement of its own sees what the one before wrote
  return job;
end
$$;
comment on function public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text,
  uuid, jsonb, text) is
  'Create a job and reserve its credits, in the caller''s transaction. Repeating it with the same idempotency_key '
  'returns the same job. Users create jobs of public kinds, as themselves; the service may name any owner or none. '
  'With children it starts when they have ended; with a unique_key, on_conflict says what happens if a job has it: '
  'error, replace (a pending one is cancelled) or return (that job).';

create or replace function public.create_jobs(jobs jsonb)
returns jsonb
language plpgsql
security definer -- clients have no right to write tables; what they may do is decided in add_jobs
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
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
