-- The numbered files follow in the same transaction.
--
-- Credits come in lots now. What an account had is its first lot: of it is what is available, and what jobs hold that
-- have not ended. What they reserved names that lot, so that they can give it back. Older entries name none.
--
-- And what version 2 has no more, or with other arguments or results.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 2 then
    return;
  end if;

  -- nothing to do after the file before this one; everything when this is pasted
  alter table public.jobs
    validate constraint jobs_children_add_up,
    validate constraint jobs_on_child_failure_is_known;

  alter table public.credit_entries validate constraint credit_entries_kind_is_known;

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
  insert into public.credit_lots (owner_id, amount, remaining)
  select a.owner_id, a.available + a.held, a.available from public.credit_accounts a
  where a.available + a.held > 0 and not exists (select from public.credit_lots l where l.owner_id = a.owner_id)
  order by a.owner_id;
  update public.credit_entries e
  set lot_id = l.id
  from public.credit_holds h join public.credit_lots l on l.owner_id = h.owner_id
  where h.closed_at is null and e.job_id = h.job_id and e.kind = 'reserve' and e.lot_id is null;

  alter table public.credit_holds set (fillfactor = 50);
  drop index if exists public.credit_holds_open_idx;
  drop index if exists public.jobs_due_idx;
  drop index if exists public.jobs_claim_idx;

  drop function if exists public.create_job(
    text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[]);
  drop function if exists public.grant_credits(uuid, bigint, text, text);
  drop function if exists processor.grant_credits(uuid, bigint, text, text);
  drop function if exists processor.open_hold(uuid, uuid, int, bigint, boolean);
  drop function if exists public.claim_jobs(uuid, uuid, text[], int);
  drop function if exists public.finish_jobs(uuid, jsonb);
  drop function if exists processor.claimed(uuid[]);
  drop function if exists processor.insert_job(public.jobs, jsonb);
  drop function if exists processor.end_job(uuid, text, jsonb, text, text);
  drop function if exists processor.requeue_job(uuid, timestamptz);
  drop function if exists processor.note_error(uuid, text, text);
  drop function if exists processor.lock_own_job(uuid);
  drop function if exists processor.lock_accounts(uuid[]);
  drop function if exists processor.finish_held_job(uuid, jsonb);
  drop function if exists processor.retry_delay(public.jobs);
end
$migration$;
