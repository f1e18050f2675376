-- For operators: the SQL editor at 3 a.m.

create or replace function processor.add_lot(entry public.credit_entries, priority int, expires_at timestamptz)
returns public.credit_entries
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  made public.credit_entries;
begin
  -- LOCK: the caller holds the account, and changes it
  insert into public.credit_lots (owner_id, amount, remaining, priority, expires_at)
  values (entry.owner_id, entry.amount, entry.amount, add_lot.priority, add_lot.expires_at)
  returning id into entry.lot_id;
  insert into public.credit_entries (owner_id, kind, amount, job_id, reason, idempotency_key, lot_id)
  values (entry.owner_id, entry.kind, entry.amount, entry.job_id, entry.reason, entry.idempotency_key, entry.lot_id)
  returning * into made;
  update public.credit_lots l set granted_by = made.id where l.id = made.lot_id;
  return made;
end
$$;
comment on function processor.add_lot(public.credit_entries, int, timestamptz) is
  'Write a grant or a refund, and the lot that it gives; returns the entry.';

create or replace function processor.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null, priority int default 0, expires_at timestamptz default null)
returns public.credit_accounts
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  account public.credit_accounts;
  earlier public.credit_entries;
  lot public.credit_lots;
begin
  if grant_credits.owner_id is null then
    perform processor.fail('JQ006', 'owner_id is missing', '', 'Name the auth user: select id from auth.users where email = …');
  end if;
  if grant_credits.amount is null then
    perform processor.fail('JQ006', 'amount is missing');
  end if;
  grant_credits.priority := coalesce(grant_credits.priority, 0);
  perform processor.check_range('amount', grant_credits.amount, 1, 1000000000000);
  perform processor.check_range('priority', grant_credits.priority, -1000, 1000);
  perform processor.check_text('idempotency_key', grant_credits.idempotency_key, 200);
  -- LOCK: the account
  insert into public.credit_accounts (owner_id) values (grant_credits.owner_id) on conflict do nothing;
  select * into account from public.credit_accounts a where a.owner_id = grant_credits.owner_id for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = grant_credits.owner_id and e.idempotency_key = grant_credits.idempotency_key;
  if found then
    select * into lot from public.credit_lots l where l.id = earlier.lot_id;
    if (earlier.kind, earlier.amount, coalesce(lot.priority, 0), lot.expires_at)
      is distinct from ('grant', grant_credits.amount, grant_credits.priority, grant_credits.expires_at)
    then
      perform processor.fail('JQ007',
        format('idempotency_key %s was used before, for a %s of %s', grant_credits.idempotency_key, earlier.kind, earlier.amount),
        json_build_object('kind', earlier.kind, 'amount', earlier.amount, 'priority', lot.priority, 'expires_at', lot.expires_at)::text,
        'Use a new key for a new grant; the same one with the same amount, priority and expires_at changes nothing.');
    end if;
    return account;
  end if;
  -- not before the key is looked up: a grant told again after its time is still the same grant
  if grant_credits.expires_at <= moment or grant_credits.expires_at > moment + interval '100 years' then
    perform processor.fail('JQ006', format('expires_at is %s, but must be ahead, by at most 100 years', grant_credits.expires_at),
      '', 'Leave it out for credits that never expire.');
  end if;
  perform processor.check_range('what was issued, with this grant,', account.issued::numeric + grant_credits.amount, 0, 9007199254740991);
  earlier.owner_id := grant_credits.owner_id;
  earlier.kind := 'grant';
  earlier.amount := grant_credits.amount;
  earlier.reason := grant_credits.reason;
  earlier.idempotency_key := grant_credits.idempotency_key;
  perform processor.add_lot(earlier, grant_credits.priority, grant_credits.expires_at);
  update public.credit_accounts a
  set issued = a.issued + grant_credits.amount, available = a.available + grant_credits.amount, updated_at = moment
  where a.owner_id = grant_credits.owner_id
  returning * into account;
  return account;
end
$$;
comment on function processor.grant_credits(uuid, bigint, text, text, int, timestamptz) is
  'Give an owner credits: select * from processor.grant_credits(''<user id>'', 100, ''welcome''). With an idempotency_key, once only. '
  'Those of a higher priority are spent first, then those that expire first.';

create or replace function public.grant_credits(owner_id uuid, amount bigint, reason text default null,
  idempotency_key text default null, priority int default 0, expires_at timestamptz default null)
returns public.credit_accounts
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = '', pg_temp
as $$
  select *
  from processor.grant_credits(grant_credits.owner_id, grant_credits.amount, grant_credits.reason, grant_credits.idempotency_key,
    grant_credits.priority, grant_credits.expires_at)
$$;
comment on function public.grant_credits(uuid, bigint, text, text, int, timestamptz) is
  'processor.grant_credits() for a server with the service key, such as the one that takes payments.';

create or replace function processor.refund_credits(job_id uuid, amount bigint default null, reason text default null,
  idempotency_key text default null)
returns public.credit_entries
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  owner uuid;
  earlier public.credit_entries;
  refund public.credit_entries;
  spent bigint;
  refunded bigint;
begin
  if refund_credits.job_id is null then
    perform processor.fail('JQ006', 'job_id is missing');
  end if;
  if refund_credits.reason is null then
    perform processor.fail('JQ006', 'reason is missing', '', 'Say why: the owner can read it in the statement.');
  end if;
  perform processor.check_text('reason', refund_credits.reason, 500);
  perform processor.check_text('idempotency_key', refund_credits.idempotency_key, 200);
  -- the journal remembers jobs that are pruned; all entries of a job have one owner
  select e.owner_id into owner from public.credit_entries e where e.job_id = refund_credits.job_id limit 1;
  if not found then
    if exists (select from public.jobs j where j.id = refund_credits.job_id) then
      perform processor.fail('JQ009', format('job %s is free: nothing was spent on it', refund_credits.job_id));
    end if;
    perform processor.fail('JQ008', format('job not found: %s', refund_credits.job_id), '', 'Check the id.');
  end if;
  -- LOCK: the account, without which no hold closes; then the job
  perform 1 from public.credit_accounts a where a.owner_id = owner for no key update;

  select * into earlier from public.credit_entries e
  where e.owner_id = owner and e.idempotency_key = refund_credits.idempotency_key;
  select coalesce(sum(e.amount) filter (where e.kind = 'capture'), 0),
    -- what an earlier call with this key found: only what was refunded before it
    coalesce(sum(e.amount) filter (where e.kind = 'refund' and (earlier.id is null or e.id < earlier.id)), 0)
  into spent, refunded
  from public.credit_entries e where e.job_id = refund_credits.job_id;
  if earlier.id is not null then
    if (earlier.kind, earlier.job_id, earlier.amount)
      is distinct from ('refund', refund_credits.job_id, coalesce(refund_credits.amount, spent - refunded))
    then
      perform processor.fail('JQ007',
        format('idempotency_key %s was used before, for a %s of %s', refund_credits.idempotency_key, earlier.kind, earlier.amount),
        json_build_object('kind', earlier.kind, 'amount', earlier.amount, 'job_id', earlier.job_id)::text,
        'Use a new key for a new refund; the same one with the same job and amount changes nothing.');
    end if;
    return earlier;
  end if;
  if exists (select from public.credit_holds h where h.job_id = refund_credits.job_id and h.closed_at is null) then
    perform processor.fail('JQ009', format('job %s has not ended: what it spends is not known yet', refund_credits.job_id),
      '', 'Wait for it to end, or cancel it: what it has not spent is given back by itself.');
  end if;
  if spent = refunded then
    perform processor.fail('JQ009', format('nothing is left to refund: job %s has spent %s, and %s was refunded',
      refund_credits.job_id, spent, refunded));
  end if;
  perform processor.check_range('amount', refund_credits.amount, 1, spent - refunded);

  refund.owner_id := owner;
  refund.kind := 'refund';
  refund.amount := coalesce(refund_credits.amount, spent - refunded);
  refund.job_id := refund_credits.job_id;
  refund.reason := refund_credits.reason;
  refund.idempotency_key := refund_credits.idempotency_key;
  refund := processor.add_lot(refund, 0, null);
  update public.credit_accounts a
  set spent = a.spent - refund.amount, available = a.available + refund.amount, updated_at = processor.now()
  where a.owner_id = owner;
  update public.jobs j
  set credits_captured = j.credits_captured - refund.amount, credits_refunded = j.credits_refunded + refund.amount,
    updated_at = processor.now()
  where j.id = refund.job_id;
  return refund;
end
$$;
comment on function processor.refund_credits(uuid, bigint, text, text) is
  'Give back what an ended job has spent, all that is left or an amount of it: select * from processor.refund_credits(''<job id>'', '
  'reason => ''bad quality''). They come as a lot that does not expire. Works for pruned jobs too. With an idempotency_key, once only.';

create or replace function public.refund_credits(job_id uuid, amount bigint default null, reason text default null,
  idempotency_key text default null)
returns public.credit_entries
language sql
security definer -- the service has no right to write the ledger but this one
set search_path = '', pg_temp
as $$
  select *
  from processor.refund_credits(refund_credits.job_id, refund_credits.amount, refund_credits.reason, refund_credits.idempotency_key)
$$;
comment on function public.refund_credits(uuid, bigint, text, text) is
  'processor.refund_credits() for a server with the service key, such as the one that support works with.';

create or replace function processor.expire_credits(batch int default 1000)
returns int
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  owners uuid[];
begin
  perform processor.check_range('batch', expire_credits.batch, 1, 10000);
  -- LOCK: accounts, by owner, waiting for none: one that is busy sweeps its own lots, or is found by the next call
  owners := array(
    select a.owner_id from public.credit_accounts a
    where a.owner_id in (
      select d.owner_id from (
        select l.owner_id from public.credit_lots l
        where not l.exhausted and l.expires_at <= processor.now()
        order by l.expires_at
        limit expire_credits.batch
      ) d
    )
    order by a.owner_id for no key update skip locked
  );
  return processor.expire_lots(owners, expire_credits.batch);
end
$$;
comment on function processor.expire_credits(int) is
  'Take out of the accounts what has expired, at most batch lots at once; returns how many. Call again until it is 0. Until then '
  'expired credits are still shown as available, but no job can reserve them.';

create or replace function public.expire_credits(batch int default 1000)
returns int
language sql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
  select processor.expire_credits(expire_credits.batch)
$$;
comment on function public.expire_credits(int) is 'processor.expire_credits() for the workers, one of which calls it now and then.';

create or replace function processor.check_schema()
returns table (problem text)
language sql
stable
set search_path = '', pg_temp
as $$
  with ours (name, live) as (
    values ('jobs', true), ('job_items', true), ('job_checkpoints', false), ('job_logs', true), ('job_queues', true), ('job_workers', true),
      ('credit_accounts', true), ('credit_lots', false),
      ('job_kinds', false), ('job_schedules', false), ('credit_entries', false), ('credit_holds', false), ('credit_captures', false),
      ('webhook_endpoints', false)
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
  union all
  select format('public.%s is open to the world: anon has rights on it', o.name) from ours o
  where has_table_privilege('anon', to_regclass('public.' || o.name), 'select, insert, update, delete')
  union all
  select format('%s is open to the world: anon can execute it', p.oid::regprocedure) from pg_catalog.pg_proc p
  where (p.pronamespace = 'processor'::regnamespace or p.oid = 'public.claim_jobs(uuid, uuid, text[], int)'::regprocedure)
    and has_function_privilege('anon', p.oid, 'execute')
$$;
comment on function processor.check_schema() is
  'What is badly wrong with the installation; no row means nothing. `processor schema status` compares every object.';
