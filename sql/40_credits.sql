-- Credits: accounts, the lots in them, holds with numbered tickets, and the journal.
--
--   event                                        from        to          entries
--   grant      an operator, a payment            issued   →  available   grant, and a lot
--   reserve    a job is created                  available → held        reserve, one per lot
--   capture    an item (or the job) completed    held     →  spent       a ticket; capture when the job ends, one per lot
--   release    the rest, when the job ends       held     →  available   release, one per lot
--              … if its lot has died meanwhile   held     →  expired     release, then expire
--   expire     a lot's time is over              available → expired     expire
--   refund     of what an ended job has spent    spent    →  available   refund, and a lot
--   clawback   an operator undoes a grant        available → issued      clawback, one per lot
--
-- A lot is what one grant gave. Lots burn in this order: the highest priority, then what expires first (what never does,
-- last), then the oldest. A lot dies when its time comes; what jobs hold of it is theirs, what they give back is lost.
--
-- A hold is `units` tickets at a price that never changes. Capturing unit i inserts ticket i: capturing
-- twice is impossible. The account row is touched once when a job is created and once when jobs end,
-- never per item. All amounts are whole numbers of the smallest unit, below 2^53.
--
-- Nobody touches an owner's lots without the lock of the account, so lots need no lock of their own.

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

create table if not exists public.credit_lots (
  id bigint generated always as identity primary key,
  owner_id uuid not null,
  amount bigint not null,
  remaining bigint not null,
  priority int not null default 0,
  expires_at timestamptz,
  exhausted boolean not null generated always as (remaining = 0) stored,
  granted_by bigint,
  created_at timestamptz not null default processor.now(),
  constraint credit_lots_amount_is_positive check (amount > 0),
  constraint credit_lots_remaining_is_a_part check (remaining between 0 and amount)
)
with (fillfactor = 50);
-- The indexes ask for `exhausted` and not for `remaining`: it changes once, so that every other change stays off them (HOT).
-- what burns, in the order of burning
create index if not exists credit_lots_burn_idx on public.credit_lots (owner_id, priority desc, expires_at, id) where not exhausted;
-- what expires next
create index if not exists credit_lots_expiry_idx on public.credit_lots (expires_at) where not exhausted and expires_at is not null;
comment on table public.credit_lots is
  'What each grant (or refund) gave, and what is left of it. Burned by priority (higher first), then expires_at (never is last), '
  'then id.';
comment on column public.credit_lots.id is 'Grows with time.';
comment on column public.credit_lots.owner_id is 'Whose account.';
comment on column public.credit_lots.amount is 'How much it was.';
comment on column public.credit_lots.remaining is 'What of it is available: neither held, spent, expired nor taken back.';
comment on column public.credit_lots.priority is 'Higher burns first, -1000 to 1000: what was given away before what was paid for.';
comment on column public.credit_lots.expires_at is 'When what remains is lost; null: never.';
comment on column public.credit_lots.exhausted is 'Whether nothing remains. A job that ends may give some back.';
comment on column public.credit_lots.granted_by is
  'The entry it came with: a grant or a refund. null: what an account had before there were lots.';
comment on column public.credit_lots.created_at is 'When it was given.';

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
  lot_id bigint,
  constraint credit_entries_kind_is_known check (
    kind in ('grant', 'reserve', 'capture', 'release', 'expire', 'refund', 'clawback')
  ),
  constraint credit_entries_amount_is_positive check (amount > 0),
  constraint credit_entries_clawback_names_its_grant check ((kind = 'clawback') = (undoes is not null))
);
-- no foreign keys: entries outlive jobs, and one to the account would lock its row against every writer
create index if not exists credit_entries_owner_idx on public.credit_entries (owner_id, id desc);
create index if not exists credit_entries_job_idx on public.credit_entries (job_id) where job_id is not null;
create unique index if not exists credit_entries_idempotency_key_idx
  on public.credit_entries (owner_id, idempotency_key) where idempotency_key is not null;
create index if not exists credit_entries_undoes_idx on public.credit_entries (undoes) where undoes is not null;
comment on table public.credit_entries is 'The journal: appended to, never changed.';
comment on column public.credit_entries.id is 'Grows with time.';
comment on column public.credit_entries.owner_id is 'Whose account.';
comment on column public.credit_entries.kind is 'grant, reserve, capture, release, expire, refund or clawback.';
comment on column public.credit_entries.amount is 'How much, always positive.';
comment on column public.credit_entries.job_id is
  'The job it is about; null for a grant, a clawback, and the expiry of what no job held.';
comment on column public.credit_entries.reason is 'Why, in the words of whoever granted, refunded or took it back.';
comment on column public.credit_entries.idempotency_key is 'A grant or refund with the same key happens once.';
comment on column public.credit_entries.created_at is 'When.';
comment on column public.credit_entries.undoes is 'The grant that a clawback takes back, whole or in part.';
comment on column public.credit_entries.lot_id is 'The lot it made, or took from, or gave back to. null: from before there were lots.';

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
)
-- each is written twice, to open and to close it: room for both on the page, and no index on what changes (HOT)
with (fillfactor = 50);
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

create or replace view public.credit_statement with (security_invoker = on) as
select e.id, e.owner_id, e.created_at, e.kind, d.change,
  -- from what is available now, back to what was then: the last lines of a long statement cost no more than those of a short one
  ((select a.available from public.credit_accounts a where a.owner_id = e.owner_id)
    - coalesce(sum(d.change) over (
        partition by e.owner_id order by e.id desc rows between unbounded preceding and 1 preceding
      ), 0))::bigint as balance,
  e.job_id, e.lot_id, e.reason
from public.credit_entries e
cross join lateral (
  select case e.kind
    when 'grant' then e.amount when 'refund' then e.amount when 'release' then e.amount
    when 'reserve' then -e.amount when 'expire' then -e.amount when 'clawback' then -e.amount
    else 0
  end as change
) d;
comment on view public.credit_statement is
  'An owner''s credits line by line: select * from credit_statement order by id desc limit 50. Users see their own lines; whoever '
  'sees all says where owner_id = ….';
comment on column public.credit_statement.id is 'The entry of the journal.';
comment on column public.credit_statement.owner_id is 'Whose account.';
comment on column public.credit_statement.created_at is 'When.';
comment on column public.credit_statement.kind is 'grant, reserve, capture, release, expire, refund or clawback.';
comment on column public.credit_statement.change is 'By how much it changed what is available; 0 for a capture: that was reserved before.';
comment on column public.credit_statement.balance is 'What was available after it.';
comment on column public.credit_statement.job_id is 'The job it is about.';
comment on column public.credit_statement.lot_id is 'The lot it is about.';
comment on column public.credit_statement.reason is 'Why, in the words of whoever granted, refunded or took it back.';
