-- For operators: what to do about it. Whatever changes many jobs does so in a bounded batch, says what is left,
-- and may be called again until nothing is. sql/README.md shows each at work.

create or replace function processor.set_paused(queue text, paused boolean)
returns public.job_queues
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  q public.job_queues;
begin
  -- a queue that is so already is not written: no worker is woken for nothing
  update public.job_queues x set paused = set_paused.paused where x.name = set_paused.queue and x.paused <> set_paused.paused;
  select * into q from public.job_queues x where x.name = set_paused.queue;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(set_paused.queue, 100)), '',
      'See select name from public.job_queues.');
  end if;
  return q;
end
$$;
comment on function processor.set_paused(text, boolean) is
  'What pause_queue() and resume_queue() have in common; JQ002 if there is no such queue.';

create or replace function processor.pause_queue(name text)
returns public.job_queues
language sql
set search_path = '', pg_temp
as $$
  select * from processor.set_paused(pause_queue.name, true)
$$;
comment on function processor.pause_queue(text) is
  'Nothing of the queue is claimed from now on; what runs goes on, new jobs wait: select * from processor.pause_queue(''default'').';

create or replace function processor.resume_queue(name text)
returns public.job_queues
language sql
set search_path = '', pg_temp
as $$
  select * from processor.set_paused(resume_queue.name, false)
$$;
comment on function processor.resume_queue(text) is 'The end of pause_queue(): workers are woken and claim again.';

create or replace function processor.set_queue_limits(name text, limits jsonb)
returns public.job_queues
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  q public.job_queues;
  wanted public.job_queues;
begin
  perform processor.check_limits(set_queue_limits.limits);
  -- LOCK: the queue
  select * into q from public.job_queues x where x.name = set_queue_limits.name for no key update;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', coalesce(left(set_queue_limits.name, 100), 'null')), '',
      'See select name from public.job_queues.');
  end if;
  wanted := jsonb_populate_record(q, set_queue_limits.limits - array['rate_seconds', 'timeout_seconds']);
  wanted.rate_period := coalesce(make_interval(secs => (limits ->> 'rate_seconds')::double precision), q.rate_period);
  wanted.timeout := coalesce(make_interval(secs => (limits ->> 'timeout_seconds')::double precision), q.timeout);
  if wanted is distinct from q then -- no worker is woken for nothing
    update public.job_queues x
    set max_processing = wanted.max_processing, rate_limit = wanted.rate_limit, rate_period = wanted.rate_period,
      max_processing_per_owner = wanted.max_processing_per_owner, max_pending_per_owner = wanted.max_pending_per_owner,
      max_attempts = wanted.max_attempts, timeout = wanted.timeout
    where x.name = q.name;
  end if;
  return wanted;
end
$$;
comment on function processor.set_queue_limits(text, jsonb) is
  'Change some of a queue''s limits, the others stay; null lifts one: select * from processor.set_queue_limits(''default'', '
  '''{"max_processing": 5, "rate_limit": null}''). Their names are those of job_queues, with rate_seconds and timeout_seconds.';

create or replace function processor.drain_worker(worker text)
returns setof public.job_workers
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  ids uuid[];
begin
  -- LOCK: workers, by id
  select array_agg(l.id) into ids from (
    select w.id from public.job_workers w
    where w.name = drain_worker.worker or w.id::text = lower(drain_worker.worker)
    order by w.id for no key update
  ) l;
  if ids is null then
    perform processor.fail('JQ011', format('unknown worker: %s', left(drain_worker.worker, 100)), '',
      'Give its name or its id; see select id, name from processor.worker_health.');
  end if;
  update public.job_workers w set draining = true, inbox = w.inbox + 1 where w.id = any (ids) and not w.draining;
  return query select * from public.job_workers w where w.id = any (ids) order by w.id;
end
$$;
comment on function processor.drain_worker(text) is
  'The worker (by id, or all of a name) claims no more and finishes what it has: select * from processor.drain_worker(''web-1''). '
  'It is done when processor.worker_health shows held = 0.';

create or replace function processor.retry_failed(queue text, since timestamptz, kind text default null, max_jobs int default 1000)
returns table (retried int, skipped int, next_since timestamptz, problems jsonb)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  ids uuid[];
  job_id uuid;
begin
  if not exists (select from processor.queue_names() n where n = retry_failed.queue) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(retry_failed.queue, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  if retry_failed.kind is not null and not exists (select from public.job_kinds k where k.kind = retry_failed.kind) then
    perform processor.fail('JQ001', format('unknown kind: %s', left(retry_failed.kind, 100)), '',
      'See select kind from public.job_kinds.');
  end if;
  if retry_failed.since is null then
    perform processor.fail('JQ006', 'since is missing', '', 'Say which failures: since => processor.now() - interval ''2 hours''.');
  end if;
  perform processor.check_range('max_jobs', retry_failed.max_jobs, 1, 10000);
  retried := 0;
  skipped := 0;
  problems := '[]';

  -- those that were retried before are left out: asking again goes on where it ended
  select array_agg(b.id order by b.id), case when count(*) = retry_failed.max_jobs then max(b.finished_at) end
  into ids, next_since
  from (
    select j.id, j.finished_at from public.jobs j
    where j.queue = retry_failed.queue and j.finished_at >= retry_failed.since and j.status in ('failed', 'partial')
      and (retry_failed.kind is null or j.kind = retry_failed.kind)
      and not exists (select from public.jobs r where r.retry_of = j.id)
    order by j.finished_at, j.id
    limit retry_failed.max_jobs
  ) b;
  -- LOCK: every creator's turn; the accounts of all, by owner; then one new job after the other, by the id of the old one
  perform processor.take_turns(null);
  perform 1 from public.credit_accounts a
  where a.owner_id in (select j.owner_id from public.jobs j where j.id = any (ids))
  order by a.owner_id for no key update;
  foreach job_id in array coalesce(ids, '{}') loop
    begin -- one that cannot be retried spoils no other
      perform public.retry_job(job_id);
      retried := retried + 1;
    exception when others then
      if left(sqlstate, 2) not in ('JQ', 'PT') then
        raise;
      end if;
      skipped := skipped + 1;
      if skipped <= 100 then
        problems := problems || jsonb_build_object('job_id', job_id, 'code', sqlstate, 'message', left(sqlerrm, 500),
          'owner_id', (select j.owner_id from public.jobs j where j.id = job_id));
      end if;
    end;
  end loop;
  return next;
end
$$;
comment on function processor.retry_failed(text, timestamptz, text, int) is
  'Retry what ended failed or partial since a time and was not retried yet, at most max_jobs at once. Jobs that cannot be, such as '
  'those of an owner without credits, are skipped, and problems says why of the first 100. next_since not null: call again with it.';

create or replace function processor.cancel_queue(name text, max_jobs int default 1000)
returns table (cancelled int, asked int, remaining bigint)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  seen uuid[];
  ended uuid[];
  told uuid[];
begin
  if not exists (select from processor.queue_names() n where n = cancel_queue.name) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(cancel_queue.name, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  perform processor.check_range('max_jobs', cancel_queue.max_jobs, 1, 10000);
  select array_agg(b.id) into seen from (
    select j.id from public.jobs j
    where j.queue = cancel_queue.name
      and (j.status = 'pending' or (j.status = 'processing' and j.cancel_requested_at is null))
    limit cancel_queue.max_jobs
  ) b;
  -- LOCK: accounts, then jobs, by id; then workers, by id
  perform processor.lock_jobs(seen);
  -- while waiting some were claimed, moved or ended: what they are now decides
  select coalesce(array_agg(j.id order by j.id) filter (where j.status = 'pending'), '{}'),
    coalesce(array_agg(j.id order by j.id) filter (where j.status = 'processing' and j.cancel_requested_at is null), '{}')
  into ended, told
  from public.jobs j where j.id = any (seen) and j.queue = cancel_queue.name;
  perform processor.conclude(array(
    select processor.ending(e, 'cancelled', 'CANCELLED', 'cancelled with its queue before it started') from unnest(ended) e
  ));
  perform processor.request_cancel(told);

  cancelled := cardinality(ended);
  asked := cardinality(told);
  select count(*) into remaining from public.jobs j
  where j.queue = cancel_queue.name
    and (j.status = 'pending' or (j.status = 'processing' and j.cancel_requested_at is null));
  return next;
end
$$;
comment on function processor.cancel_queue(text, int) is
  'Cancel what is in a queue, at most max_jobs at once: what waits ends and is refunded, what runs is asked to stop. Pause the '
  'queue first, then call again until remaining is 0.';

create or replace function processor.move_jobs(from_queue text, to_queue text, max_jobs int default 1000)
returns table (moved int, remaining bigint)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if not exists (select from processor.queue_names() n where n = move_jobs.from_queue) then
    perform processor.fail('JQ002', format('unknown queue: %s', left(move_jobs.from_queue, 100)), '',
      'See select queue from processor.queue_health.');
  end if;
  if move_jobs.from_queue = move_jobs.to_queue then
    perform processor.fail('JQ006', format('from_queue and to_queue are both %s', move_jobs.to_queue));
  end if;
  perform processor.check_range('max_jobs', move_jobs.max_jobs, 1, 10000);
  -- LOCK: the queue, so that it is not deleted meanwhile; then jobs, by id
  perform 1 from public.job_queues q where q.name = move_jobs.to_queue for key share;
  if not found then
    perform processor.fail('JQ002', format('unknown queue: %s', left(move_jobs.to_queue, 100)), '',
      'Make it first: insert into public.job_queues (name) values (…).');
  end if;
  with seen as materialized (
    select j.id from public.jobs j
    where j.queue = move_jobs.from_queue and j.status = 'pending'
    order by j.priority desc, j.run_at, j.id
    limit move_jobs.max_jobs
  ),
  locked as materialized ( -- checked again once locked: one that was claimed or cancelled meanwhile stays
    select j.id from public.jobs j
    where j.id in (select s.id from seen s) and j.queue = move_jobs.from_queue and j.status = 'pending'
    order by j.id for no key update
  )
  update public.jobs j set queue = move_jobs.to_queue, updated_at = processor.now()
  from locked l where j.id = l.id;
  get diagnostics moved = row_count;
  select count(*) into remaining from public.jobs j where j.queue = move_jobs.from_queue and j.status = 'pending';
  return next;
end
$$;
comment on function processor.move_jobs(text, text, int) is
  'Move pending jobs to another queue, at most max_jobs at once, those first that would run first; what runs stays. Call again '
  'until remaining is 0. The workers of the other queue must handle the kinds: look at processor.stuck_jobs afterwards.';

create or replace function processor.undo_grant(entry_id bigint, reason text)
returns table (owner_id uuid, granted bigint, taken bigint, taken_in_all bigint, missing bigint, available bigint)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  entry public.credit_entries;
begin
  select * into entry from public.credit_entries e where e.id = undo_grant.entry_id;
  if not found or entry.kind <> 'grant' then
    perform processor.fail('JQ006',
      case when entry.id is null then format('there is no credit entry %s', coalesce(undo_grant.entry_id::text, 'null'))
        else format('credit entry %s is a %s: only a grant can be undone', entry.id, entry.kind) end, '',
      'See select id, amount, reason, created_at from public.credit_entries where kind = ''grant'' and owner_id = ….');
  end if;
  if undo_grant.reason is null then
    perform processor.fail('JQ006', 'reason is missing', '', 'Say why: the owner can read it in the journal.');
  end if;
  perform processor.check_text('reason', undo_grant.reason, 500);
  -- LOCK: the account; what was taken back before is known only then
  perform 1 from public.credit_accounts a where a.owner_id = entry.owner_id for no key update;
  perform processor.expire_lots(array[entry.owner_id]);
  select a.available into available from public.credit_accounts a where a.owner_id = entry.owner_id;
  select coalesce(sum(e.amount), 0)::bigint into taken_in_all from public.credit_entries e where e.undoes = entry.id;
  owner_id := entry.owner_id;
  granted := entry.amount;
  taken := least(granted - taken_in_all, available);
  if taken > 0 then
    -- the grant's own lot first, then the others in the order of burning
    with lots as materialized (
      select x.id, x.remaining, x.upto, least(x.upto, taken) - (x.upto - x.remaining) as amount
      from (
        select l.id, l.remaining,
          sum(l.remaining) over (
            order by l.id is distinct from entry.lot_id, l.priority desc, l.expires_at, l.id
          )::bigint as upto
        from public.credit_lots l
        where l.owner_id = entry.owner_id and not l.exhausted
      ) x
      where x.upto - x.remaining < taken
    ),
    journal as (
      insert into public.credit_entries (owner_id, kind, amount, reason, undoes, lot_id)
      select entry.owner_id, 'clawback', x.amount, undo_grant.reason, entry.id, x.id from lots x order by x.upto
    ),
    emptied as (
      update public.credit_lots l set remaining = l.remaining - x.amount from lots x where l.id = x.id
    )
    update public.credit_accounts a
    set issued = a.issued - undo_grant.taken, available = a.available - undo_grant.taken, updated_at = processor.now()
    where a.owner_id = entry.owner_id;
  end if;
  taken_in_all := taken_in_all + taken;
  missing := granted - taken_in_all;
  available := available - taken;
  return next;
end
$$;
comment on function processor.undo_grant(bigint, text) is
  'Take a wrong grant back, as far as credits are available: first what is left of the grant itself, then others as they would burn. '
  'What jobs hold or have spent stays theirs and is told as missing. Asked again, it takes what has become available since, never '
  'more than the grant in all.';
