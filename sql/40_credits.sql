-- Credits: accounts, holds with numbered tickets, and the journal.
--
--   grant    issued → available          capture  held → spent       (a ticket: an item, or the job)
--   reserve  available → held            release  held → available   (the rest, when the job ends)
--   clawback available → issued          (an operator undoes a grant, as far as it is available)
--
-- A hold is `units` tickets at a price that never changes. Capturing unit i inserts ticket i: capturing
-- twice is impossible. The account row is touched once when a job is created and once when jobs end,
-- never per item. All amounts are whole numbers of the smallest unit, below 2^53.

create table if not exists public.credit_accounts (
  owner_id uuid primary key,
  issued bigint not null default 0,
  available bigint not null default 0,
  held bigint not null default 0,
  spent bigint not null default 0,
  expired bigint not null default 0,
  updated_at timestamptz not null default processor.now(),
  constraint credit_accounts_are_conserved check (issued = available + held + spent + expired),
  constraint credit_accounts_are_not_negative check (available >= 0 and held >= 0 and spent >= 0 and expired >= 0),
  constraint credit_accounts_fit_javascript check (issued < 9007199254740992)
)
with (fillfactor = 50);
comment on table public.credit_accounts is 'One row per owner: what was issued is available, held, spent or expired.';
comment on column public.credit_accounts.owner_id is 'The auth user.';
comment on column public.credit_accounts.issued is 'All that was ever granted, less what was taken back.';
comment on column public.credit_accounts.available is 'What new jobs can reserve.';
comment on column public.credit_accounts.held is
  'Reserved by jobs that have not ended; what of it is paid already becomes spent when they do.';
comment on column public.credit_accounts.spent is 'Paid for work that was done.';
comment on column public.credit_accounts.expired is 'Granted for a time that is over.';
comment on column public.credit_accounts.updated_at is 'When it last changed.';

create table if not exists public.credit_entries (
  id bigint generated always as identity primary key,
  owner_id uuid not null,
  kind text not null,
  amount bigint not null,
  job_id uuid,
  reason text,
  idempotency_key text,
  created_at timestamptz not null default processor.now(),
  undoes bigint,
  constraint credit_entries_kind_is_known check (kind in ('grant', 'reserve', 'capture', 'release', 'clawback')),
  constraint credit_entries_amount_is_positive check (amount > 0),
  constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null))
);
-- a journal from before there were clawbacks
alter table public.credit_entries add column if not exists undoes bigint;
do $$
begin
  if not exists (select from pg_catalog.pg_constraint where conname = 'credit_entries_clawback_names_its_grant') then
    alter table public.credit_entries
      drop constraint credit_entries_kind_is_known,
      add constraint credit_entries_kind_is_known check (kind in ('grant', 'reserve', 'capture', 'release', 'clawback')),
      add constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null));
  end if;
end
$$;
-- no foreign keys: entries outlive jobs, and one to the account would lock its row against every writer
create index if not exists credit_entries_owner_idx on public.credit_entries (owner_id, id desc);
create index if not exists credit_entries_job_idx on public.credit_entries (job_id) where job_id is not null;
create unique index if not exists credit_entries_idempotency_key_idx
  on public.credit_entries (owner_id, idempotency_key) where idempotency_key is not null;
create index if not exists credit_entries_undoes_idx on public.credit_entries (undoes) where undoes is not null;
comment on table public.credit_entries is 'The journal: appended to, never changed.';
comment on column public.credit_entries.id is 'Grows with time.';
comment on column public.credit_entries.owner_id is 'Whose account.';
comment on column public.credit_entries.kind is 'grant, reserve, capture, release or clawback.';
comment on column public.credit_entries.amount is 'How much, always positive.';
comment on column public.credit_entries.job_id is 'The job it is about; null for a grant or clawback.';
comment on column public.credit_entries.reason is 'Why, in the words of whoever granted it.';
comment on column public.credit_entries.idempotency_key is 'A grant with the same key happens once.';
comment on column public.credit_entries.created_at is 'When.';
comment on column public.credit_entries.undoes is 'The grant that a clawback takes back, whole or in part.';

create table if not exists public.credit_holds (
  job_id uuid primary key references public.jobs (id) on delete cascade,
  owner_id uuid not null,
  units int not null,
  unit_price bigint not null,
  per_item boolean not null,
  captured bigint not null default 0,
  released bigint not null default 0,
  closed_at timestamptz,
  constraint credit_holds_units_are_positive check (units > 0 and unit_price > 0),
  constraint credit_holds_closed_adds_up check (closed_at is null or captured + released = units * unit_price)
);
create index if not exists credit_holds_open_idx on public.credit_holds (owner_id) where closed_at is null;
comment on table public.credit_holds is 'Credits reserved for a job: units × unit_price, open until the job ends.';
comment on column public.credit_holds.job_id is 'The job; a free one has no hold.';
comment on column public.credit_holds.owner_id is 'Whose credits.';
comment on column public.credit_holds.units is 'How many tickets there are.';
comment on column public.credit_holds.unit_price is 'The price of each, as it was when the job was created.';
comment on column public.credit_holds.per_item is 'true: unit n is the item at position n. false: unit 1 is the job.';

comment on column public.credit_holds.captured is 'What was spent of it, known when it closes.';
comment on column public.credit_holds.released is 'What was given back of it, known when it closes.';
comment on column public.credit_holds.closed_at is 'When the job ended; null: open.';

create table if not exists public.credit_captures (
  job_id uuid not null references public.credit_holds (job_id) on delete cascade,
  unit int not null,
  captured_at timestamptz not null default processor.now(),
  primary key (job_id, unit)
);
comment on table public.credit_captures is 'The tickets taken from a hold: one per item that completed (or unit 1 for the job).';
comment on column public.credit_captures.job_id is 'The hold.';
comment on column public.credit_captures.unit is 'The number of the ticket: the position of the item, or 1 for the job.';
comment on column public.credit_captures.captured_at is 'When it was taken.';

create or replace function processor.open_hold(job_id uuid, owner_id uuid, units int, unit_price bigint, per_item boolean)
returns bigint
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
  needed constant bigint := open_hold.units * open_hold.unit_price;
  there bigint;
begin
  -- LOCK: the account; the caller has locked no job yet but the one it is inserting
  select a.available into there from public.credit_accounts a
  where a.owner_id = open_hold.owner_id for no key update;
  if coalesce(there, 0) < needed then
    perform processor.fail('PT402',
      format('insufficient credits: %s needed, %s available', needed, coalesce(there, 0)),
      json_build_object('needed', needed, 'available', coalesce(there, 0))::text,
      'Grant credits with processor.grant_credits(owner_id, amount, reason), or ask for fewer items.');
  end if;
  update public.credit_accounts a
  set available = a.available - needed, held = a.held + needed, updated_at = processor.now()
  where a.owner_id = open_hold.owner_id;
  insert into public.credit_holds (job_id, owner_id, units, unit_price, per_item)
  values (open_hold.job_id, open_hold.owner_id, open_hold.units, open_hold.unit_price, open_hold.per_item);
  insert into public.credit_entries (owner_id, kind, amount, job_id)
  values (open_hold.owner_id, 'reserve', needed, open_hold.job_id);
  return needed;
end
$$;
comment on function processor.open_hold(uuid, uuid, int, bigint, boolean) is
  'Reserve units × unit_price for a new job, or raise PT402 saying what was needed and what was there. Returns the amount.';

create or replace function processor.capture_units(job_id uuid, units int[], per_item boolean)
returns bigint
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
declare
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
    insert into public.credit_captures (job_id, unit)
    select capture_units.job_id, u from unnest(capture_units.units) u order by u
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
language sql
set search_path = ''
as $$
  insert into public.credit_captures (job_id, unit)
  select h.job_id, 1 from public.credit_holds h
  where h.job_id = any (capture_jobs.job_ids) and not h.per_item and h.closed_at is null
  on conflict do nothing
$$;
comment on function processor.capture_jobs(uuid[]) is 'Take the tickets of jobs that complete and are priced per job.';

create or replace function processor.open_holds(holds public.credit_holds[])
returns void
language sql
set search_path = ''
as $$
  select processor.open_hold(h.job_id, h.owner_id, h.units, h.unit_price, h.per_item) from unnest(open_holds.holds) h
$$;
comment on function processor.open_holds(public.credit_holds[]) is 'stop-gap';

create or replace function processor.settle_holds(job_ids uuid[])
returns void
language plpgsql
set search_path = ''
as $$
#variable_conflict use_column
begin
  -- LOCK: the caller has locked accounts and jobs. `for no key update` waits for running captures.
  perform 1 from public.credit_holds h
  where h.job_id = any (settle_holds.job_ids) and h.closed_at is null
  order by h.job_id for no key update;

  with closed as (
    update public.credit_holds h
    set captured = t.taken * h.unit_price,
      released = (h.units - t.taken) * h.unit_price,
      closed_at = processor.now()
    from (
      select o.job_id, (select count(*) from public.credit_captures c where c.job_id = o.job_id) as taken
      from public.credit_holds o
      where o.job_id = any (settle_holds.job_ids) and o.closed_at is null
    ) t
    where h.job_id = t.job_id
    returning h.job_id, h.owner_id, h.captured, h.released
  ),
  journal as (
    insert into public.credit_entries (owner_id, kind, amount, job_id)
    select c.owner_id, e.kind, e.amount, c.job_id
    from closed c
    cross join lateral (values ('capture', c.captured), ('release', c.released)) e (kind, amount)
    where e.amount > 0
    order by c.job_id, e.kind
  )
  update public.credit_accounts a
  set held = a.held - s.captured - s.released,
    spent = a.spent + s.captured,
    available = a.available + s.released,
    updated_at = processor.now()
  from (select c.owner_id, sum(c.captured)::bigint as captured, sum(c.released)::bigint as released from closed c group by 1) s
  where a.owner_id = s.owner_id;
end
$$;
comment on function processor.settle_holds(uuid[]) is
  'Close the open holds of jobs that are ending: what has a ticket is spent, the rest is available again. '
  'end_job() has written the same amounts to the job''s row.';
