-- For operators: are the books right?

create or replace function processor.check_credits()
returns table (problem text, owner_id uuid, job_id uuid, expected bigint, found bigint)
language sql
stable
set search_path = '', pg_temp
set work_mem = '64MB'
as $$
  -- The journal is read once. It outlives jobs, and what was written before there were lots names none.
  with journal as materialized (
    select e.owner_id, e.job_id, e.lot_id,
      coalesce(sum(e.amount) filter (where e.kind = 'grant'), 0)::bigint as granted,
      coalesce(sum(e.amount) filter (where e.kind = 'reserve'), 0)::bigint as reserved,
      coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0)::bigint as captured,
      coalesce(sum(e.amount) filter (where e.kind = 'release'), 0)::bigint as released,
      coalesce(sum(e.amount) filter (where e.kind = 'expire'), 0)::bigint as expired,
      coalesce(sum(e.amount) filter (where e.kind = 'refund'), 0)::bigint as refunded,
      coalesce(sum(e.amount) filter (where e.kind = 'clawback'), 0)::bigint as undone
    from public.credit_entries e
    group by 1, 2, 3
  ),
  owners as (
    select j.owner_id, sum(j.granted)::bigint as granted, sum(j.reserved)::bigint as reserved, sum(j.captured)::bigint as captured,
      sum(j.released)::bigint as released, sum(j.expired)::bigint as expired, sum(j.refunded)::bigint as refunded,
      sum(j.undone)::bigint as undone
    from journal j group by 1
  ),
  spending as materialized ( -- by job
    select j.job_id, j.owner_id, sum(j.reserved)::bigint as reserved, sum(j.captured)::bigint as captured,
      sum(j.released)::bigint as released, sum(j.refunded)::bigint as refunded
    from journal j where j.job_id is not null group by 1, 2
  ),
  holds as materialized ( -- with what their tickets, their items and the journal say
    select h.job_id, h.owner_id, h.per_item, h.captured, h.released, h.units * h.unit_price as amount, h.closed_at is null as open,
      coalesce(t.tickets, 0) as tickets, coalesce(t.tickets, 0) * h.unit_price as paid,
      coalesce(s.reserved, 0) as entered, coalesce(s.captured, 0) as entered_captured, coalesce(s.released, 0) as entered_released,
      coalesce(s.refunded, 0) as refunded
    from public.credit_holds h
    left join (select c.job_id, count(*) as tickets from public.credit_captures c group by 1) t on t.job_id = h.job_id
    left join spending s on s.job_id = h.job_id and s.owner_id = h.owner_id
  )

  -- accounts
  select 'account.held is not the sum of its open holds', a.owner_id, null::uuid, coalesce(s.total, 0), a.held
  from public.credit_accounts a
  left join (select h.owner_id, sum(h.amount)::bigint as total from holds h where h.open group by 1) s on s.owner_id = a.owner_id
  where a.held <> coalesce(s.total, 0)
  union all
  select 'account.available is not the sum of its lots', a.owner_id, null, coalesce(s.total, 0), a.available
  from public.credit_accounts a
  left join (
    select l.owner_id, sum(l.remaining)::bigint as total from public.credit_lots l where not l.exhausted group by 1
  ) s on s.owner_id = a.owner_id
  where a.available <> coalesce(s.total, 0)
  union all
  select 'account.' || b.bucket || ' is not what the journal says', a.owner_id, null, b.journal, b.account
  from public.credit_accounts a
  left join owners o on o.owner_id = a.owner_id
  cross join lateral (values
    ('issued', coalesce(o.granted - o.undone, 0), a.issued),
    ('available', coalesce(o.granted + o.refunded + o.released - o.undone - o.reserved - o.expired, 0), a.available),
    ('held', coalesce(o.reserved - o.captured - o.released, 0), a.held),
    ('spent', coalesce(o.captured - o.refunded, 0), a.spent),
    ('expired', coalesce(o.expired, 0), a.expired)
  ) b (bucket, journal, account)
  where b.journal <> b.account
  union all
  select 'the journal has entries, but there is no account', o.owner_id, null, 0, 1
  from owners o
  where not exists (select from public.credit_accounts a where a.owner_id = o.owner_id)

  -- lots
  union all
  select format('lot %s: remaining is not what the journal says', l.id), l.owner_id, null,
    l.amount + coalesce(s.released - s.reserved - s.expired - s.undone, 0), l.remaining
  from public.credit_lots l
  left join (
    select j.lot_id, sum(j.reserved)::bigint as reserved, sum(j.released)::bigint as released, sum(j.expired)::bigint as expired,
      sum(j.undone)::bigint as undone
    from journal j where j.lot_id is not null group by 1
  ) s on s.lot_id = l.id
  where l.remaining <> l.amount + coalesce(s.released - s.reserved - s.expired - s.undone, 0)
  union all
  select format('lot %s is not what its grant gave', l.id), l.owner_id, null, coalesce(e.amount, 0), l.amount
  from public.credit_lots l
  left join public.credit_entries e
    on e.id = l.granted_by and e.lot_id = l.id and e.owner_id = l.owner_id and e.kind in ('grant', 'refund')
  where l.granted_by is not null and l.amount is distinct from e.amount
  union all
  select format('the journal has entries of lot %s, which is not there', j.lot_id), j.owner_id, null, 0, 1
  from (select distinct x.lot_id, x.owner_id from journal x where x.lot_id is not null) j
  where not exists (select from public.credit_lots l where l.id = j.lot_id and l.owner_id = j.owner_id)
  union all
  select 'more was taken back than granted', g.owner_id, null, g.amount, c.total
  from (select e.undoes, sum(e.amount)::bigint as total from public.credit_entries e where e.kind = 'clawback' group by 1) c
  join public.credit_entries g on g.id = c.undoes
  where c.total > g.amount

  -- holds and jobs
  union all
  select 'the job has ended, its hold has not', h.owner_id, h.job_id, 0, h.amount
  from holds h join public.jobs j on j.id = h.job_id
  where (j.finished_at is null) <> h.open
  union all
  select 'hold.' || b.bucket || ' is not what the journal says', h.owner_id, h.job_id, b.journal, b.hold
  from holds h
  cross join lateral (values
    ('amount', h.entered, h.amount),
    ('captured', h.entered_captured, h.captured),
    ('released', h.entered_released, h.released)
  ) b (bucket, journal, hold)
  where b.journal <> b.hold
  union all
  select 'job.' || b.bucket || ' is not what its hold says', h.owner_id, h.job_id, b.hold, b.job
  from holds h
  join public.jobs j on j.id = h.job_id
  cross join lateral (values
    ('credits_captured', h.paid - h.refunded, j.credits_captured),
    ('credits_held', case when h.open then h.amount - h.paid else 0 end, j.credits_held),
    ('credits_refunded', case when h.open then 0 else h.amount - h.paid + h.refunded end, j.credits_refunded),
    ('credits_captured, when it was closed,', case when h.open then h.paid else h.captured end - h.refunded, j.credits_captured)
  ) b (bucket, hold, job)
  where b.hold <> b.job
  union all
  select 'the job has credits, but no hold', j.owner_id, j.id, 0, j.credits_held + j.credits_captured + j.credits_refunded
  from public.jobs j
  where j.credits_held + j.credits_captured + j.credits_refunded > 0
    and not exists (select from public.credit_holds h where h.job_id = j.id)
  union all
  select 'the tickets are not the items that completed', h.owner_id, h.job_id, coalesce(i.completed, 0), h.tickets
  from holds h
  left join (
    select x.job_id, count(*) as completed from public.job_items x where x.status = 'completed' group by 1
  ) i on i.job_id = h.job_id
  where h.per_item and coalesce(i.completed, 0) <> h.tickets

  -- jobs, also those that are pruned
  union all
  select format('the job has ended, but part of lot %s is still reserved', coalesce(j.lot_id::text, '(none)')), j.owner_id, j.job_id,
    j.reserved, j.captured + j.released
  from journal j
  where j.job_id is not null and j.reserved <> j.captured + j.released
    and not exists (select from public.credit_holds h where h.job_id = j.job_id and h.closed_at is null)
  union all
  select 'more was refunded than spent', s.owner_id, s.job_id, s.captured, s.refunded
  from spending s
  where s.refunded > s.captured
$$;
comment on function processor.check_credits() is
  'The conservation law, to be run at any time: select * from processor.check_credits(). Every row it returns is a fault. It reads '
  'the whole ledger.';
