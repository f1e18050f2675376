-- Holds: credits are reserved when jobs are created, captured as they succeed, settled when they end. Always for many at once.
--
-- Plans are kept for the life of a session, and a session may begin when the tables are empty: then reading a whole table looks
-- as good as an index, and it stays in the plan while the table grows. So every table is asked for `= any (…)` an array,
-- functions for batches have `enable_seqscan = off`, and with `enable_nestloop = off` what was read is joined by hashing or
-- merging, whose cost grows with the batch and not with its square. Times are given, not left to the column's default, which
-- would call processor.now() for each row.

create or replace function processor.lock_holds(job_ids uuid[])
returns uuid[]
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  -- LOCK: holds, by job. `for no key update` waits for captures that have not committed.
  return array(
    select h.job_id from public.credit_holds h
    where h.job_id = any (lock_holds.job_ids) and h.closed_at is null
    order by h.job_id for no key update
  );
end
$$;
comment on function processor.lock_holds(uuid[]) is
  'Lock those holds of these jobs that are open, and return their jobs, in order. The caller has locked the jobs.';

create or replace function processor.expire_lots(owner_ids uuid[], max_lots int default null)
returns int
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids bigint[];
begin
  -- LOCK: the caller holds the accounts
  ids := array(
    select l.id from public.credit_lots l
    where l.owner_id = any (expire_lots.owner_ids) and not l.exhausted and l.expires_at <= moment
    order by l.expires_at, l.id
    limit expire_lots.max_lots
  );
  if ids = '{}' then -- the usual case
    return 0;
  end if;
  with dead as materialized (
    select l.id, l.owner_id, l.remaining from public.credit_lots l where l.id = any (ids)
  ),
  emptied as (
    update public.credit_lots l set remaining = 0 where l.id = any (ids)
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, lot_id, created_at)
    select d.owner_id, 'expire', d.remaining, d.id, moment from dead d order by d.id
  )
  update public.credit_accounts a
  set available = a.available - s.amount, expired = a.expired + s.amount, updated_at = moment
  from (select d.owner_id, sum(d.remaining)::bigint as amount from dead d group by 1) s
  where a.owner_id = any (expire_lots.owner_ids) and s.owner_id = a.owner_id;
  return cardinality(ids);
end
$$;
comment on function processor.expire_lots(uuid[], int) is
  'Empty the lots of these owners whose time is over, the oldest first; null: however many. Returns how many. Comes before '
  'anything that takes from lots, so that nobody spends what has expired.';

create or replace function processor.open_holds(holds public.credit_holds[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  owners uuid[];
  short record;
begin
  -- LOCK: accounts, by owner (the caller may have them); the caller has locked no job but those it has just inserted
  select array_agg(distinct h.owner_id) into owners from unnest(open_holds.holds) h;
  perform 1 from public.credit_accounts a where a.owner_id = any (owners) order by a.owner_id for no key update;
  perform processor.expire_lots(owners);

  select d.needed, coalesce(a.available, 0) as available into short
  from (select h.owner_id, sum(h.units * h.unit_price) as needed from unnest(open_holds.holds) h group by 1) d
  left join (select x.owner_id, x.available from public.credit_accounts x where x.owner_id = any (owners)) a on a.owner_id = d.owner_id
  where d.needed > coalesce(a.available, 0)
  order by d.owner_id
  limit 1;
  if found then
    perform processor.fail('PT402',
      format('insufficient credits: %s needed, %s available', short.needed, short.available),
      json_build_object('needed', short.needed, 'available', short.available)::text,
      'Grant credits with processor.grant_credits(owner_id, amount, reason), or ask for fewer items.');
  end if;

  insert into public.credit_holds (job_id, owner_id, units, unit_price, per_item)
  select h.job_id, h.owner_id, h.units, h.unit_price, h.per_item from unnest(open_holds.holds) h;

  -- Lay the holds of an owner end to end, and the lots in the order of burning beside them: where two overlap, so much of
  -- this hold comes from that lot. Most owners have one lot, and it covers all.
  with needs as materialized (
    select h.job_id, h.owner_id, h.n, h.units * h.unit_price as amount,
      sum(h.units * h.unit_price) over (partition by h.owner_id order by h.n)::bigint as upto
    from unnest(open_holds.holds) with ordinality h (job_id, owner_id, units, unit_price, per_item, captured, released, closed_at, n)
  ),
  totals as materialized (
    select d.owner_id, max(d.upto) as amount from needs d group by 1
  ),
  lots as materialized ( -- as many as are needed
    select l.id, l.owner_id, l.upto - l.remaining as after, l.upto, least(l.upto, t.amount) - (l.upto - l.remaining) as burns
    from (
      select x.id, x.owner_id, x.remaining,
        sum(x.remaining) over (partition by x.owner_id order by x.priority desc, x.expires_at, x.id)::bigint as upto
      from public.credit_lots x
      where x.owner_id = any (owners) and not x.exhausted
    ) l
    join totals t on t.owner_id = l.owner_id
    where l.upto - l.remaining < t.amount
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id, lot_id, created_at)
    select d.owner_id, 'reserve', least(d.upto, l.upto) - greatest(d.upto - d.amount, l.after), d.job_id, l.id, moment
    from needs d
    join lots l on l.owner_id = d.owner_id and l.after < d.upto and d.upto - d.amount < l.upto
    order by d.n, l.upto
  ),
  burned as (
    update public.credit_lots x
    set remaining = x.remaining - l.burns
    from lots l
    where x.id = any (array(select y.id from lots y)) and l.id = x.id
  )
  update public.credit_accounts a
  set available = a.available - t.amount, held = a.held + t.amount, updated_at = moment
  from totals t
  where a.owner_id = any (owners) and t.owner_id = a.owner_id;
end
$$;
comment on function processor.open_holds(public.credit_holds[]) is
  'Reserve units × unit_price for each of these new jobs (job_id, owner_id, units, unit_price, per_item; the rest is ignored), or '
  'raise PT402 for the first owner who cannot pay for all of theirs, saying what was needed and what was there.';

create or replace function processor.capture_units(job_id uuid, units int[], per_item boolean)
returns bigint
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  price bigint;
  taken bigint;
begin
  -- LOCK: the caller holds the job; the share lock keeps the hold open until we commit
  select h.unit_price into price from public.credit_holds h
  where h.job_id = capture_units.job_id and h.per_item = capture_units.per_item and h.closed_at is null for share;
  if not found then
    return 0;
  end if;
  with tickets as (
    insert into public.credit_captures (job_id, unit, captured_at)
    select capture_units.job_id, u, moment from unnest(capture_units.units) u order by u
    on conflict do nothing
    returning 1
  )
  select count(*) * price into taken from tickets;
  update public.jobs j
  set credits_held = j.credits_held - taken, credits_captured = j.credits_captured + taken
  where j.id = capture_units.job_id and taken > 0;
  return price;
end
$$;
comment on function processor.capture_units(uuid, int[], boolean) is
  'Take the tickets of these units; one taken before costs nothing more. Returns the unit price, 0 without a hold.';

create or replace function processor.capture_jobs(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids uuid[];
begin
  -- LOCK: the caller holds the jobs. The holds are locked as settle_holds(), which follows, needs them: a share lock would be in
  -- its way
  ids := processor.lock_holds(capture_jobs.job_ids);
  insert into public.credit_captures (job_id, unit, captured_at)
  select h.job_id, 1, moment from public.credit_holds h
  where h.job_id = any (ids) and not h.per_item
  order by h.job_id
  on conflict do nothing;
end
$$;
comment on function processor.capture_jobs(uuid[]) is
  'Take the one ticket of those of these jobs that are paid as a whole: they are completing. The caller writes the same to their rows.';

create or replace function processor.settle_holds(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ids uuid[];
begin
  -- LOCK: the caller holds accounts and jobs
  ids := processor.lock_holds(settle_holds.job_ids);
  if ids = '{}' then
    return;
  end if;

  with tickets as (
    select c.job_id, count(*) as taken from public.credit_captures c where c.job_id = any (ids) group by 1
  ),
  closed as (
    update public.credit_holds h
    set captured = coalesce(t.taken, 0) * h.unit_price,
      released = (h.units - coalesce(t.taken, 0)) * h.unit_price,
      closed_at = moment
    from unnest(ids) o (id) left join tickets t on t.job_id = o.id
    where h.job_id = any (ids) and h.job_id = o.id
    returning h.job_id, h.captured
  ),
  -- what each hold reserved of each lot, in the order of burning: what was captured comes from the first ones
  parts as materialized (
    select r.id, r.owner_id, r.job_id, r.lot_id, r.amount,
      greatest(0, least(r.amount,
        c.captured + r.amount - sum(r.amount) over (partition by r.job_id order by r.id)))::bigint as captured
    from public.credit_entries r join closed c on c.job_id = r.job_id
    where r.job_id = any (ids) and r.kind = 'reserve'
  ),
  rests as materialized ( -- seldom any
    select p.id, p.owner_id, p.job_id, p.lot_id, p.amount - p.captured as amount,
      coalesce((select l.expires_at <= moment from public.credit_lots l where l.id = p.lot_id), false) as lost
    from parts p
    where p.captured < p.amount
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id, lot_id, created_at)
    select e.owner_id, e.kind, e.amount, e.job_id, e.lot_id, moment
    from (
      select p.owner_id, 'capture' as kind, p.captured as amount, p.job_id, p.lot_id, 1 as step, p.id from parts p where p.captured > 0
      union all
      select x.owner_id, 'release', x.amount, x.job_id, x.lot_id, 2, x.id from rests x
      union all
      select x.owner_id, 'expire', x.amount, x.job_id, x.lot_id, 3, x.id from rests x where x.lost
    ) e
    order by e.job_id, e.step, e.id
  ),
  refilled as (
    update public.credit_lots l
    set remaining = l.remaining + s.amount
    from (select x.lot_id, sum(x.amount)::bigint as amount from rests x where not x.lost group by 1) s
    where l.id = any (array(select x.lot_id from rests x where not x.lost)) and s.lot_id = l.id
  )
  update public.credit_accounts a
  set held = a.held - s.held,
    spent = a.spent + s.captured,
    available = a.available + s.held - s.captured - coalesce(x.lost, 0),
    expired = a.expired + coalesce(x.lost, 0),
    updated_at = moment
  from (
    select p.owner_id, sum(p.amount)::bigint as held, sum(p.captured)::bigint as captured from parts p group by 1
  ) s
  left join (select r.owner_id, sum(r.amount)::bigint as lost from rests r where r.lost group by 1) x on x.owner_id = s.owner_id
  where a.owner_id = any (array(select p.owner_id from parts p)) and s.owner_id = a.owner_id;
end
$$;
comment on function processor.settle_holds(uuid[]) is
  'Close the open holds of jobs that are ending: what has a ticket is spent, the rest is available again, or lost with a lot that '
  'has expired meanwhile. The caller writes the same amounts to the jobs'' rows.';
