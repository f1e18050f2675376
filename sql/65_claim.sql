-- Claiming: who gets which job, and when the next one is due. Queues without limits are claimed from side by side; the claims
-- of a queue with a limit take turns, by the lock on its row.

create or replace function processor.retried(job_id uuid)
returns uuid[]
language sql
stable
set search_path = '', pg_temp
as $$
  with recursive line (id, retry_of, place) as (
    select j.id, case when j.idempotency_key is null then j.retry_of end, 0
    from public.jobs j where j.id = retried.job_id
    union all
    select o.id, case when o.idempotency_key is null then o.retry_of end, l.place + 1
    from line l join public.jobs o on o.id = l.retry_of where l.place < 100
  )
  select array_agg(l.id) from line l
$$;
comment on function processor.retried(uuid) is
  'A job and the jobs whose open parts it repeats; what one has done that is repeated with everything is not taken over.';

create or replace function processor.open_items(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(i), '[]')
    from (
      select i.key, i.position, i.payload, i.attempts
      from public.job_items i where i.job_id = open_items.job_id and i.status = 'pending' order by i.position
    ) i
  );
end
$$;
comment on function processor.open_items(uuid) is 'The items of a job that are still to do, as its worker gets them.';

create or replace function processor.done_items(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(d), '[]')
    from (
      select i.key, i.position,
        case when sum(octet_length(i.result::text)) over (order by i.position) <= 4194304 then i.result end as result
      from public.job_items i where i.job_id = done_items.job_id and i.status = 'completed' order by i.position
    ) d
  );
end
$$;
comment on function processor.done_items(uuid) is
  'The items of a job that earlier attempts did, as its worker gets them: results up to 4 MiB, the rest as null.';

create or replace function processor.children_for(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(n), '[]')
    from (
      select c.id, c.kind, c.status, c.error_code, c.error_message,
        case when sum(octet_length(c.result::text)) over (order by c.id) <= 4194304 then c.result end as result
      from public.jobs c
      where c.parent_id = any (processor.retried(children_for.job_id))
        and (c.parent_id = children_for.job_id or c.status = 'completed') -- the others were repeated with it
      order by c.id
    ) n
  );
end
$$;
comment on function processor.children_for(uuid) is
  'The children of a job, with those that completed under the jobs it is a retry of, as its worker gets them: results up to 4 MiB, '
  'the rest as null.';

create or replace function processor.checkpoints_for(job_id uuid)
returns json
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return (
    select coalesce(json_agg(s), '[]')
    from (
      select c.name,
        case when sum(octet_length(c.result::text)) over before <= 4194304 then c.result end as result,
        sum(octet_length(c.result::text)) over before > 4194304 as left_out
      from public.job_checkpoints c where c.job_id = checkpoints_for.job_id
      window before as (order by c.created_at, c.name)
      order by c.created_at, c.name
    ) s
  );
end
$$;
comment on function processor.checkpoints_for(uuid) is
  'The checkpoints of a job, as its worker gets them: results up to 4 MiB, the rest as null and marked left_out; read_checkpoint() '
  'has them.';

create or replace function processor.claimed(ids uuid[])
returns json
language plpgsql -- keeps its plan between calls, which is most of what such a function costs
stable
set search_path = '', pg_temp
set enable_sort = on -- claim_jobs has it off
as $$
begin
  -- json, not jsonb, and rows, not json_build_object: a third of the time. What few jobs have is looked for by functions: even
  -- a look that is not taken costs its share of a statement
  return coalesce((
    select json_agg(c)
    from (
      select j.id, j.queue, j.kind, j.owner_id, j.priority, j.payload, j.attempt, j.failures, j.max_attempts, j.run_at, j.created_at,
        j.tags, j.trace_context, extract(epoch from coalesce(j.timeout, q.timeout)) as timeout_seconds,
        j.cancel_requested_at is not null as cancel_requested, j.items_total, j.items_done, j.parent_id,
        case when j.items_total = 0 then '[]' else processor.open_items(j.id) end as items,
        case when j.items_done = 0 then '[]' else processor.done_items(j.id) end as done,
        case when j.children_total = 0 and j.retry_of is null then '[]' else processor.children_for(j.id) end as children,
        -- what is new and repeats nothing has none
        case when j.attempt = 1 and j.retry_of is null then '[]' else processor.checkpoints_for(j.id) end as checkpoints
      from public.jobs j
      left join public.job_queues q on q.name = j.queue
      where j.id = any (claimed.ids)
      order by j.priority desc, j.run_at, j.id
    ) c
  ), '[]');
end
$$;
comment on function processor.claimed(uuid[]) is
  'Jobs as a worker gets them: each with its items that are still to do, the results of those that earlier attempts did, and its '
  'children, with those that completed under the jobs it is a retry of, and its checkpoints; results of each up to 4 MiB a job, the '
  'rest as null. Of checkpoints those are marked left_out: read_checkpoint() has them.';

create or replace function processor.refill(
  tokens double precision, counted_at timestamptz, rate_limit int, rate_period interval, moment timestamptz
)
returns double precision
language sql
immutable
set search_path = '', pg_temp
as $$
  -- never more than a full bucket, and never less than there was, whatever the clock does
  select least(refill.rate_limit, refill.tokens + refill.rate_limit
    * greatest(0, extract(epoch from refill.moment - refill.counted_at)) / extract(epoch from refill.rate_period))
$$;
comment on function processor.refill(double precision, timestamptz, int, interval, timestamptz) is
  'What a token bucket holds at a moment: it held so many tokens when they were counted, and is filled up within rate_period.';

create or replace function processor.tokens(q public.job_queues, moment timestamptz)
returns double precision
language sql
stable
set search_path = '', pg_temp
as $$
  -- a full bucket to begin with
  select coalesce((
    select processor.refill(t.tokens, t.counted_at, q.rate_limit, q.rate_period, tokens.moment)
    from processor.queue_tokens t where t.queue = q.name
  ), q.rate_limit)
$$;
comment on function processor.tokens(public.job_queues, timestamptz) is
  'How many jobs of a queue with a rate_limit may start at a moment; with a fraction, so that one knows when the next may.';

create or replace function processor.token_due_in(q public.job_queues, moment timestamptz)
returns interval
language sql
stable
set search_path = '', pg_temp
as $$
  -- up to the next microsecond: a claim at that time finds the token
  select interval '1 microsecond' * ceil(greatest(0, 1 - processor.tokens(q, token_due_in.moment))
    * extract(epoch from q.rate_period)::double precision * 1000000 / q.rate_limit)
$$;
comment on function processor.token_due_in(public.job_queues, timestamptz) is
  'How long until the next job of a queue with a rate_limit may start; 0: now.';

create or replace function processor.take_tokens(q public.job_queues, moment timestamptz, how_many int)
returns void
language sql
set search_path = '', pg_temp
as $$
  insert into processor.queue_tokens (queue, tokens, counted_at)
  values (q.name, processor.tokens(q, take_tokens.moment) - take_tokens.how_many, take_tokens.moment)
  on conflict (queue) do update set tokens = excluded.tokens, counted_at = excluded.counted_at
$$;
comment on function processor.take_tokens(public.job_queues, timestamptz, int) is
  'Take tokens from a queue''s bucket. LOCK: the caller holds the queue.';

create or replace function processor.room(q public.job_queues, moment timestamptz, wanted int)
returns int
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return greatest(0, least(room.wanted,
    q.max_processing - case when q.max_processing is not null then (
      select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
    ) end,
    case when q.rate_limit is not null then floor(processor.tokens(q, room.moment) + 1e-12) end -- sums of fractions are not exact
  )::int);
end
$$;
comment on function processor.room(public.job_queues, timestamptz, int) is
  'How many jobs of a queue may be claimed at a moment, at most wanted: what max_processing and rate_limit leave.';

create or replace function processor.heads(queue text, kinds text[], below int)
returns table (kind text, priority int, run_at timestamptz, id uuid)
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- one look a kind: what this worker has no handler for is not read, however much of it waits
  return query
  with firsts as materialized (
    select k.kind, f.priority, f.run_at, f.id
    from unnest(heads.kinds) k (kind)
    cross join lateral (
      select j.priority, j.run_at, j.id from public.jobs j
      where j.queue = heads.queue and j.kind = k.kind and j.status = 'pending' and j.priority < heads.below and j.crashes < 2
      order by j.priority desc, j.run_at, j.id limit 1
    ) f
  )
  select f.kind, f.priority, f.run_at, f.id from firsts f where f.priority = (select max(x.priority) from firsts x);
end
$$;
comment on function processor.heads(text, text[], int) is
  'The first pending job of each kind in a queue, at the highest priority below one that has any: where to begin to read. Until a '
  'vacuum, what was claimed before still lies ahead of them in the index. Suspects are passed over: see pick_suspect().';

create or replace function processor.pick_in_order(queue text, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  ids uuid[] := '{}'::uuid[];
  picked uuid[];
begin
  -- priority by priority: jobs of a high one whose time has not come are not read, however many
  loop
    -- LOCK: jobs, waiting for none; with several kinds a few more than are taken, until the claim commits
    with firsts as materialized ( -- as in heads(), which would be a statement of its own
      select k.kind, f.priority, f.run_at, f.id
      from unnest(pick_in_order.kinds) k (kind)
      cross join lateral (
        select j.priority, j.run_at, j.id from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    )
    select array_agg(p.id) filter (where p.id is not null), max(p.priority) into picked, level
    from (
      select f.id, h.priority
      from firsts h
      left join lateral (
        select j.id, j.run_at from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = h.kind and j.status = 'pending' and j.priority = h.priority
          and (j.run_at, j.id) >= (h.run_at, h.id) and j.run_at <= pick_in_order.moment and j.crashes < 2
        order by j.run_at, j.id
        limit pick_in_order.how_many - cardinality(ids)
        for no key update skip locked
      ) f on true
      where h.priority = (select max(x.priority) from firsts x)
      order by f.run_at, f.id
      limit pick_in_order.how_many - cardinality(ids)
    ) p;
    ids := ids || picked;
    exit when level is null or cardinality(ids) >= pick_in_order.how_many;
    exit when not exists ( -- asked apart, as it costs less than to find nothing above
      select from unnest(pick_in_order.kinds) k (kind)
      cross join lateral (
        select from public.jobs j
        where j.queue = pick_in_order.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    );
  end loop;
  return ids;
end
$$;
comment on function processor.pick_in_order(text, text[], timestamptz, int) is
  'Lock due jobs of a queue: the highest priority first, then the longest due.';

create or replace function processor.due_of_owner(
  q public.job_queues, owner_id uuid, level int, kinds text[], moment timestamptz, how_many int
)
returns uuid[]
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- a range of one owner, in the order of owners: so it can be nothing but jobs_turns_idx that is read, with or without statistics
  return case when due_of_owner.owner_id is null then array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id is null and j.priority = due_of_owner.level
      and j.run_at <= due_of_owner.moment and j.kind = any (due_of_owner.kinds) and j.crashes < 2
    order by j.owner_id, j.run_at, j.id
    limit due_of_owner.how_many
  ) else array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id between due_of_owner.owner_id and due_of_owner.owner_id
      and j.priority = due_of_owner.level and j.run_at <= due_of_owner.moment and j.kind = any (due_of_owner.kinds) and j.crashes < 2
    order by j.owner_id, j.run_at, j.id
    limit due_of_owner.how_many
  ) end;
end
$$;
comment on function processor.due_of_owner(public.job_queues, uuid, int, text[], timestamptz, int) is
  'Due jobs of one priority of an owner, or of nobody: the longest due first.';

create or replace function processor.priority_below(q public.job_queues, owner_id uuid, level int)
returns int
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- see due_of_owner()
  if priority_below.owner_id is null then
    return (select j.priority from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id is null and j.priority < priority_below.level
      order by j.owner_id, j.priority desc limit 1);
  end if;
  return (select j.priority from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.owner_id between priority_below.owner_id and priority_below.owner_id
      and j.priority < priority_below.level
    order by j.owner_id, j.priority desc limit 1);
end
$$;
comment on function processor.priority_below(public.job_queues, uuid, int) is
  'The next lower priority among the pending jobs of an owner, or of nobody.';

create or replace function processor.next_in_turn(q public.job_queues, kinds text[], moment timestamptz, how_many int)
returns table (id uuid, owner_id uuid)
language plpgsql
stable
set search_path = '', pg_temp
set enable_sort = off -- see claim_jobs
as $$
#variable_conflict use_column
declare
  last constant uuid := (select t.owner_id from processor.queue_turns t where t.queue = q.name);
  running jsonb;
  here uuid := last;
  round int := case when last is null then 2 else 1 end; -- 1: the owners after the last one; then nobody; 2: those from the first on
  alone boolean := false; -- whether the jobs of nobody were looked at
  who uuid;
  level int;
  theirs int;
  room int;
  due uuid[];
  ids uuid[] := '{}'::uuid[];
  owners uuid[] := '{}'::uuid[];
  turns int[] := '{}'::int[];
  first_turns int := 0;
  exhausted boolean := false;
  full_owners uuid[];
begin
  select coalesce(jsonb_object_agg(coalesce(r.owner_id::text, ''), r.count), '{}') into running
  from (
    select j.owner_id, count(*) from public.jobs j where j.queue = q.name and j.status = 'processing' group by 1
  ) r;

  -- From owner to owner along jobs_turns_idx, in a ring: as many looks as owners, however many jobs. It ends when so many are found
  -- that nobody can have less running, and after 1,000 owners.
  for visited in 1..1000 loop
    if here is null then
      select j.owner_id, j.priority into who, level from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id is not null
      order by j.owner_id, j.priority desc limit 1;
    else
      select j.owner_id, j.priority into who, level from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.owner_id > here
      order by j.owner_id, j.priority desc limit 1;
    end if;
    if found and (round = 1 or last is null or who <= last) then
      here := who;
    elsif not alone then -- nobody comes after the last owner
      alone := true;
      who := null;
      level := processor.priority_below(q, null, 1001);
      here := null;
      round := case when last is null then 3 else 2 end;
    else
      exhausted := true;
      exit;
    end if;

    theirs := coalesce((running ->> coalesce(who::text, ''))::int, 0);
    room := case when who is null then next_in_turn.how_many else least(next_in_turn.how_many, q.max_processing_per_owner - theirs) end;
    while room > 0 and level is not null loop
      due := processor.due_of_owner(q, who, level, next_in_turn.kinds, next_in_turn.moment, room);
      for place in 1..cardinality(due) loop
        theirs := theirs + 1; -- an owner's nth running job competes with the others' nth
        ids := ids || due[place];
        owners := owners || who;
        turns := turns || theirs;
        first_turns := first_turns + (theirs = 1)::int;
      end loop;
      room := room - cardinality(due);
      level := case when room > 0 then processor.priority_below(q, who, level) end;
    end loop;
    exhausted := round = 3;
    exit when exhausted or first_turns >= next_in_turn.how_many;
  end loop;

  if ids = '{}' and not exhausted then -- of so many owners none has anything due: look for what is due instead
    select coalesce(array_agg(r.key::uuid) filter (where r.value::int >= q.max_processing_per_owner and r.key <> ''), '{}') into full_owners
    from jsonb_each_text(running) r;
    level := 1001;
    loop
      select max(h.priority) into level from processor.heads(q.name, next_in_turn.kinds, level) h;
      exit when level is null;
      return query
      select j.id, j.owner_id from public.jobs j
      where j.queue = q.name and j.status = 'pending' and j.priority = level and j.run_at <= next_in_turn.moment
        and j.kind = any (next_in_turn.kinds) and (j.owner_id is null or j.owner_id <> all (full_owners)) and j.crashes < 2
      order by j.run_at, j.id limit 1;
      exit when found;
    end loop;
    return;
  end if;

  return query
  select f.id, f.owner_id
  from unnest(ids, owners, turns) with ordinality f (id, owner_id, turn, place)
  order by f.turn, f.place
  limit next_in_turn.how_many;
end
$$;
comment on function processor.next_in_turn(public.job_queues, text[], timestamptz, int) is
  'Whose due jobs are next in a queue with max_processing_per_owner: of those who have least running, in turns. Nothing is locked.';

create or replace function processor.pick_in_turns(q public.job_queues, kinds text[], moment timestamptz, how_many int)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  chosen uuid[];
  owners uuid[];
begin
  -- LOCK: the caller holds the queue, so nobody else picks from it; jobs, waiting for none
  select array_agg(n.id order by n.ordinality), array_agg(n.owner_id order by n.ordinality) into chosen, owners
  from processor.next_in_turn(q, pick_in_turns.kinds, pick_in_turns.moment, pick_in_turns.how_many) with ordinality n;
  if chosen is null then
    return '{}'::uuid[];
  end if;
  insert into processor.queue_turns as t (queue, owner_id) values (q.name, owners[cardinality(owners)])
  on conflict (queue) do update set owner_id = excluded.owner_id where t.owner_id is distinct from excluded.owner_id;
  return array(
    select j.id from public.jobs j where j.id = any (chosen) and j.status = 'pending' for no key update skip locked
  );
end
$$;
comment on function processor.pick_in_turns(public.job_queues, text[], timestamptz, int) is
  'Lock due jobs of a queue with max_processing_per_owner, and note whose turn it was.';

create or replace function processor.may_take_suspect(worker_id uuid)
returns boolean
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  return exists (select from public.jobs j where j.status = 'pending' and j.crashes > 1)
    and not exists (
      select from public.jobs j where j.worker_id = may_take_suspect.worker_id and j.status = 'processing' and j.crashes > 1
    );
end
$$;
comment on function processor.may_take_suspect(uuid) is
  'Whether any job waits that was lost with two workers, and the worker holds no such job.';

create or replace function processor.pick_suspect(q public.job_queues, kinds text[], moment timestamptz)
returns uuid[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  -- LOCK: a job, waiting for none
  return array(
    select j.id from public.jobs j
    where j.queue = q.name and j.status = 'pending' and j.crashes > 1 and j.kind = any (pick_suspect.kinds)
      and j.run_at <= pick_suspect.moment
      and (q.max_processing_per_owner is null or j.owner_id is null or q.max_processing_per_owner > (
        select count(*) from public.jobs r where r.queue = q.name and r.status = 'processing' and r.owner_id = j.owner_id
      ))
    order by j.priority desc, j.run_at, j.id
    limit 1
    for no key update skip locked
  );
end
$$;
comment on function processor.pick_suspect(public.job_queues, text[], timestamptz) is
  'Lock the next job that was lost with two workers and not found to be the cause, as another such job was there. A worker runs '
  'one of them at a time, so the next loss tells.';

create or replace function processor.next_due_at(worker public.job_workers, queues text[] default null)
returns timestamptz
language plpgsql
set search_path = '', pg_temp
set enable_sort = off -- see claim_jobs
as $$
#variable_conflict use_column
declare
  served public.job_queues[];
begin
  if worker.draining then
    return null;
  end if;
  select array_agg(x) into served
  from public.job_queues x where x.name = any (coalesce(next_due_at.queues, worker.queues)) and not x.paused;
  return processor.next_due_in(worker, served, processor.may_take_suspect(worker.id));
end
$$;
comment on function processor.next_due_at(public.job_workers, text[]) is
  'When this worker''s next claim makes sense: the past means now, null means nothing is pending for it.';

create or replace function processor.next_due_in(worker public.job_workers, served public.job_queues[], suspects boolean)
returns timestamptz
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  q public.job_queues;
  soonest timestamptz;
  due timestamptz;
begin
  if next_due_in.served is null then
    return null;
  end if;
  foreach q in array next_due_in.served loop
    if q.max_processing is not null then -- a queue that is full makes itself heard when something of it ends
      continue when q.max_processing <= (
        select count(*) from public.jobs j where j.queue = q.name and j.status = 'processing'
      );
    end if;
    due := processor.first_run_at(q.name, worker.kinds, moment);
    if q.max_processing_per_owner is not null and due <= moment then
      -- whoever has something due may have as much running as may be
      if not exists (select from processor.next_in_turn(q, worker.kinds, moment, 1)) then
        due := processor.first_due_at(q.name, worker.kinds, moment);
      end if;
    end if;
    if next_due_in.suspects and processor.pick_suspect(q, worker.kinds, moment) <> '{}' then
      due := moment;
    end if;
    if q.rate_limit is not null and due is not null then
      due := greatest(due, moment + processor.token_due_in(q, moment));
    end if;
    soonest := least(soonest, due);
  end loop;
  return soonest;
end
$$;
comment on function processor.next_due_in(public.job_workers, public.job_queues[], boolean) is
  'The same of these queues, which are not paused; suspects: whether the worker may take a job that was lost with two workers.';

create or replace function processor.first_run_at(queue text, kinds text[], moment timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  soonest timestamptz;
  due timestamptz;
begin
  loop
    with firsts as materialized ( -- see pick_in_order()
      select f.priority, f.run_at
      from unnest(first_run_at.kinds) k (kind)
      cross join lateral (
        select j.priority, j.run_at from public.jobs j
        where j.queue = first_run_at.queue and j.kind = k.kind and j.status = 'pending' and j.priority < level and j.crashes < 2
        order by j.priority desc, j.run_at, j.id limit 1
      ) f
    )
    select max(f.priority), min(f.run_at) filter (where f.priority = (select max(x.priority) from firsts x))
    into level, due
    from firsts f;
    exit when level is null;
    soonest := least(soonest, nullif(due, processor.never()));
    exit when soonest <= first_run_at.moment;
  end loop;
  return soonest;
end
$$;
comment on function processor.first_run_at(text, text[], timestamptz) is
  'The first run_at among a queue''s pending jobs of these kinds, or one that has passed at that moment; null: none.';

create or replace function processor.first_due_at(queue text, kinds text[], after timestamptz)
returns timestamptz
language plpgsql
stable
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  level int := 1001;
  soonest timestamptz;
  due timestamptz;
begin
  loop
    select max(h.priority), min(coalesce(case when h.run_at > first_due_at.after then h.run_at else (
        select j.run_at from public.jobs j
        where j.queue = first_due_at.queue and j.kind = h.kind and j.status = 'pending' and j.priority = h.priority
          and j.run_at > first_due_at.after and j.crashes < 2
        order by j.run_at limit 1
      ) end, processor.never()))
    into level, due
    from processor.heads(first_due_at.queue, first_due_at.kinds, level) h;
    exit when level is null;
    soonest := least(soonest, nullif(due, processor.never()));
    exit when soonest <= processor.now();
  end loop;
  return soonest;
end
$$;
comment on function processor.first_due_at(text, text[], timestamptz) is
  'The first run_at after a moment among a queue''s pending jobs of these kinds, or one that has passed; null: none.';

create or replace function public.claim_jobs(worker_id uuid, request_id uuid, queues text[] default null, "limit" int default 1)
returns json
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- a claim is too short for compiling to pay, whatever the planner's estimate
set enable_sort = off -- without statistics the planner would sort all that is pending instead of reading jobs_pending_idx
as $$
#variable_conflict use_column
-- "limit" is a keyword and the name that callers know: @plpgsql_check_options: other_warnings = off
declare
  moment timestamptz;
  w public.job_workers;
  served public.job_queues[];
  limited boolean;
  q public.job_queues;
  ids uuid[];
  picked uuid[];
  room int;
  suspects boolean;
begin
  if claim_jobs."limit" not between 1 and 1000 then
    perform processor.check_range('limit', claim_jobs."limit", 1, 1000);
  end if;
  -- in random order: no queue always comes first
  select array_agg(x order by random()),
    bool_or(coalesce(x.max_processing, x.rate_limit, x.max_processing_per_owner) is not null)
  into served, limited
  from public.job_queues x
  where not x.paused and x.name = any (coalesce(claim_jobs.queues, (
    select w.queues from public.job_workers w where w.id = claim_jobs.worker_id
  )));
  if limited then
    -- LOCK: queues with a limit, by name: their claims take turns; all others run side by side
    perform 1 from public.job_queues x
    where x.name in (select u.name from unnest(served) u)
      and coalesce(x.max_processing, x.rate_limit, x.max_processing_per_owner) is not null
    order by x.name for no key update;
    select array_agg(x order by random()) into served
    from public.job_queues x where x.name in (select u.name from unnest(served) u) and not x.paused;
  end if;
  -- LOCK: the worker: a repeated request waits here for the first. No job is waited for below, so whoever
  -- locks a job before a worker cannot meet us in a circle
  select * into w from public.job_workers x where x.id = claim_jobs.worker_id for no key update;
  moment := processor.now();
  if not found or w.lease_expires_at < moment then
    perform processor.fail('JQ011', format('worker %s is unknown or its lease is over', claim_jobs.worker_id), '',
      'Send a heartbeat, or register again.');
  end if;

  -- a repeated request: its answer was lost, the jobs are the same
  select array_agg(j.id), exists (select from public.jobs x where x.status = 'pending' and x.crashes > 1) into ids, suspects
  from public.jobs j
  where j.worker_id = w.id and j.status = 'processing' and j.claim_id = claim_jobs.request_id;
  suspects := suspects and processor.may_take_suspect(w.id);

  if ids is null and not w.draining and served is not null then
    ids := '{}'::uuid[];
    foreach q in array served loop
      room := claim_jobs."limit" - cardinality(ids);
      if coalesce(q.max_processing, q.rate_limit) is not null then
        room := processor.room(q, moment, room);
      end if;
      continue when room = 0;
      picked := case when suspects then processor.pick_suspect(q, w.kinds, moment) else '{}' end;
      suspects := suspects and picked = '{}';
      if q.max_processing_per_owner is null then
        picked := picked || processor.pick_in_order(q.name, w.kinds, moment, room - cardinality(picked));
      elsif picked = '{}' then -- else its owner has one more than is known until it is written
        picked := processor.pick_in_turns(q, w.kinds, moment, room);
      end if;
      if q.rate_limit is not null and picked <> '{}' then
        perform processor.take_tokens(q, moment, cardinality(picked));
      end if;
      ids := ids || picked;
    end loop;
    if ids <> '{}' then
      update public.jobs j
      set status = 'processing', worker_id = w.id, claim_id = claim_jobs.request_id, attempt = j.attempt + 1,
        started_at = moment, updated_at = moment
      where j.id = any (ids);
    end if;
  end if;

  return json_build_object(
    'now', processor.now(),
    'jobs', case when ids <> '{}' then processor.claimed(ids) else '[]' end,
    'next_due_at', case when not w.draining then processor.next_due_in(w, served, suspects) end
  );
end
$$;
comment on function public.claim_jobs(uuid, uuid, text[], int) is
  'Take up to "limit" due jobs of the worker''s kinds: highest priority first, then the longest due; owners in turns where the queue '
  'limits how many of an owner may run. The same request_id again returns the same jobs. next_due_at says when the next claim '
  'makes sense.';
