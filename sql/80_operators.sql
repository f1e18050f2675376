-- For operators: the SQL editor at 3 a.m.

create or replace function processor.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null)
returns public.credit_accounts
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  account public.credit_accounts;
  earlier public.credit_entries;
begin
  if grant_credits.owner_id is null then
    perform processor.fail('JQ006', 'owner_id is missing', '', 'Name the auth user: select id from auth.users where email = …');
  end if;
  if grant_credits.amount is null then
    perform processor.fail('JQ006', 'amount is missing');
  end if;
  perform processor.check_range('amount', grant_credits.amount, 1, 1000000000000);
  perform processor.check_text('idempotency_key', grant_credits.idempotency_key, 200);
  -- LOCK: the account
  insert into public.credit_accounts (owner_id) values (grant_credits.owner_id) on conflict do nothing;
  select * into account from public.credit_accounts a where a.owner_id = grant_credits.owner_id for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = grant_credits.owner_id and e.idempotency_key = grant_credits.idempotency_key;
  if found then
    if earlier.amount <> grant_credits.amount then
      perform processor.fail('JQ007', format('idempotency_key %s granted %s before, not %s',
        grant_credits.idempotency_key, earlier.amount, grant_credits.amount));
    end if;
    return account;
  end if;
  perform processor.check_range('what was issued, with this grant,', account.issued::numeric + grant_credits.amount, 0, 9007199254740991);
  insert into public.credit_entries (owner_id, kind, amount, reason, idempotency_key)
  values (grant_credits.owner_id, 'grant', grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key);
  update public.credit_accounts a
  set issued = a.issued + grant_credits.amount, available = a.available + grant_credits.amount, updated_at = processor.now()
  where a.owner_id = grant_credits.owner_id
  returning * into account;
  return account;
end
$$;
comment on function processor.grant_credits(uuid, bigint, text, text) is
  'Give an owner credits: select * from processor.grant_credits(''<user id>'', 100, ''welcome''). With an idempotency_key, once only.';

create or replace function public.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null)
returns public.credit_accounts
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = ''
as $$
  select *
  from processor.grant_credits(grant_credits.owner_id, grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key)
$$;
comment on function public.grant_credits(uuid, bigint, text, text) is
  'processor.grant_credits() for a server with the service key, such as the one that takes payments.';

create or replace function processor.check_credits()
returns table (problem text, owner_id uuid, job_id uuid, expected bigint, found bigint)
language sql
stable
set search_path = ''
as $$
  select 'account.held is not the sum of its open holds', a.owner_id, null::uuid, coalesce(s.total, 0), a.held
  from public.credit_accounts a
  left join (
    select h.owner_id, sum(h.units * h.unit_price)::bigint as total
    from public.credit_holds h where h.closed_at is null group by 1
  ) s on s.owner_id = a.owner_id
  where a.held <> coalesce(s.total, 0)
  union all
  select 'account.' || b.bucket || ' is not what the journal says', a.owner_id, null, b.journal, b.account
  from public.credit_accounts a
  left join (
    select e.owner_id,
      coalesce(sum(e.amount) filter (where e.kind = 'grant'), 0)::bigint as granted,
      coalesce(sum(e.amount) filter (where e.kind = 'clawback'), 0)::bigint as undone,
      coalesce(sum(e.amount) filter (where e.kind = 'reserve'), 0)::bigint as reserved,
      coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0)::bigint as captured,
      coalesce(sum(e.amount) filter (where e.kind = 'release'), 0)::bigint as released
    from public.credit_entries e group by 1
  ) e on e.owner_id = a.owner_id
  cross join lateral (values
    ('issued', coalesce(e.granted - e.undone, 0), a.issued),
    ('available', coalesce(e.granted - e.undone - e.reserved + e.released, 0), a.available),
    ('held', coalesce(e.reserved - e.captured - e.released, 0), a.held),
    ('spent', coalesce(e.captured, 0), a.spent)
  ) b (bucket, journal, account)
  where b.journal <> b.account
  union all
  select 'the job has ended, its hold has not', h.owner_id, h.job_id, 0, h.units * h.unit_price
  from public.credit_holds h join public.jobs j on j.id = h.job_id
  where (j.finished_at is null) <> (h.closed_at is null)
  union all
  select 'job.' || b.bucket || ' is not what its hold says', h.owner_id, h.job_id, b.hold, b.job
  from public.credit_holds h
  join public.jobs j on j.id = h.job_id
  cross join lateral (select count(*) * h.unit_price as amount from public.credit_captures c where c.job_id = h.job_id) t
  cross join lateral (values
    ('credits_captured', t.amount, j.credits_captured),
    ('credits_held', case when h.closed_at is null then h.units * h.unit_price - t.amount else 0 end, j.credits_held),
    ('credits_refunded', case when h.closed_at is null then 0 else h.units * h.unit_price - t.amount end, j.credits_refunded),
    ('credits_captured, when it was closed,', coalesce(case when h.closed_at is not null then h.captured end, t.amount), j.credits_captured)
  ) b (bucket, hold, job)
  where b.hold <> b.job
  union all
  select 'the job has credits, but no hold', j.owner_id, j.id, 0, j.credits_held + j.credits_captured + j.credits_refunded
  from public.jobs j
  where j.credits_held + j.credits_captured + j.credits_refunded > 0
    and not exists (select from public.credit_holds h where h.job_id = j.id)
  union all
  select 'the tickets are not the items that completed', h.owner_id, h.job_id, i.completed, t.tickets
  from public.credit_holds h
  cross join lateral (select count(*) as tickets from public.credit_captures c where c.job_id = h.job_id) t
  cross join lateral (select count(*) as completed from public.job_items i where i.job_id = h.job_id and i.status = 'completed') i
  where h.per_item and i.completed <> t.tickets
  union all
  select 'more was taken back than granted', g.owner_id, null, g.amount, c.total
  from (select e.undoes, sum(e.amount)::bigint as total from public.credit_entries e where e.kind = 'clawback' group by 1) c
  join public.credit_entries g on g.id = c.undoes
  where c.total > g.amount
  union all
  select 'the journal has entries, but there is no account', e.owner_id, null, 0, count(*)
  from public.credit_entries e
  where not exists (select from public.credit_accounts a where a.owner_id = e.owner_id)
  group by e.owner_id
$$;
comment on function processor.check_credits() is
  'The conservation law, to be run at any time: select * from processor.check_credits(). Every row it returns is a fault.';

create or replace function processor.check_schema()
returns table (problem text)
language sql
stable
set search_path = ''
as $$
  with ours (name, live) as (
    values ('jobs', true), ('job_items', true), ('job_logs', true), ('job_queues', true), ('job_workers', true),
      ('credit_accounts', true),
      ('job_kinds', false), ('job_schedules', false), ('credit_entries', false), ('credit_holds', false), ('credit_captures', false)
  )
  select format('table public.%s is missing', o.name) from ours o
  where to_regclass('public.' || o.name) is null
  union all
  select format('row level security of public.%s is off: everyone with a grant sees every row', c.relname)
  from ours o join pg_catalog.pg_class c on c.oid = to_regclass('public.' || o.name)
  where not c.relrowsecurity
  union all
  select format('public.%s is not in the publication supabase_realtime: nobody is told of its changes', o.name)
  from ours o
  where o.live and to_regclass('public.' || o.name) is not null and not exists (
    select from pg_catalog.pg_publication_tables p
    where p.pubname = 'supabase_realtime' and p.schemaname = 'public' and p.tablename = o.name
  )
  union all
  select 'the role service_role cannot call public.claim_jobs()'
  where not has_function_privilege('service_role', 'public.claim_jobs(uuid, uuid, text[], int)', 'execute')
$$;
comment on function processor.check_schema() is
  'What is wrong with the installation; no row means nothing. `processor schema status` asks it.';
