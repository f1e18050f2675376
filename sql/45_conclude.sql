-- How an attempt goes on record. Whatever ends a job or makes it pending again states a verdict, and conclude() carries
-- verdicts out, a thousand as easily as one: the rows, the items, the credits, the parents and the children.

do $$
begin
  if to_regtype('processor.verdict') is null then
    create type processor.verdict as (
      job_id uuid,
      status text,
      run_at timestamptz,
      result jsonb,
      error_code text,
      error_message text,
      progress_message text,
      note jsonb,
      failed boolean,
      crashed boolean
    );
  end if;
end
$$;
comment on type processor.verdict is 'What becomes of a job: a terminal status, or pending and when to run.';
comment on column processor.verdict.job_id is 'The job.';
comment on column processor.verdict.status is 'Its new status: pending or a terminal one.';
comment on column processor.verdict.run_at is 'If pending: not before this time.';
comment on column processor.verdict.result is 'What the handler returned; null keeps what is there.';
comment on column processor.verdict.error_code is 'Why: a stable code. If pending, null keeps what is there.';
comment on column processor.verdict.error_message is 'The same in words.';
comment on column processor.verdict.progress_message is 'For people; null keeps what is there.';
comment on column processor.verdict.note is 'What to append to the job''s errors: {"code", "message"}.';
comment on column processor.verdict.failed is 'Whether the attempt counts as failed.';
comment on column processor.verdict.crashed is
  'Whether the worker was lost with the job; false: the attempt ended by itself; null: neither.';

create or replace function processor.ending(job_id uuid, status text, error_code text, error_message text)
returns processor.verdict
language sql
immutable
set search_path = '', pg_temp
as $$
  select row(job_id, status, null, null, error_code, error_message, null, null, false, false)::processor.verdict
$$;
comment on function processor.ending(uuid, text, text, text) is 'The verdict that a job ends, without having failed an attempt.';

create or replace function processor.requeueing(job_id uuid, run_at timestamptz)
returns processor.verdict
language sql
immutable
set search_path = '', pg_temp
as $$
  select row(job_id, 'pending', run_at, null, null, null, null, null, false, null)::processor.verdict
$$;
comment on function processor.requeueing(uuid, timestamptz) is 'The verdict that a job is pending again and has not failed an attempt.';

create or replace function processor.lock_jobs(job_ids uuid[], owners uuid[] default '{}')
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  ids uuid[] := lock_jobs.job_ids;
  payers uuid[];
  parents uuid[];
begin
  -- what is read here before locking never changes, or changes towards needing fewer locks. Free jobs too may be given children
  -- that are not, while we wait.
  select array_agg(distinct j.owner_id) filter (where j.owner_id is not null and j.finished_at is null),
    array_agg(distinct j.parent_id) filter (where j.parent_id is not null)
  into payers, parents
  from public.jobs j where j.id = any (ids);
  while parents is not null loop
    ids := ids || parents;
    select array_agg(distinct j.parent_id) filter (where j.parent_id is not null) into parents
    from public.jobs j where j.id = any (parents);
  end loop;
  payers := payers || lock_jobs.owners;
  -- LOCK: accounts, then jobs with their ancestors, whom the end of a child concerns. A child has its parent's owner.
  if cardinality(payers) > 0 then
    perform 1 from public.credit_accounts a where a.owner_id = any (payers) order by a.owner_id for no key update;
  end if;
  perform 1 from public.jobs j where j.id = any (ids) order by j.id for no key update;
end
$$;
comment on function processor.lock_jobs(uuid[], uuid[]) is
  'Lock jobs and all that their end may touch, in the one order: accounts (and those of owners) before jobs, each ascending.';

create or replace function processor.request_cancel(job_ids uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  workers uuid[];
begin
  -- LOCK: the caller holds the jobs; workers, by id
  with asked as (
    update public.jobs j set cancel_requested_at = processor.now(), updated_at = processor.now()
    where j.id = any (request_cancel.job_ids) and j.status = 'processing' and j.cancel_requested_at is null
    returning j.worker_id
  )
  select array_agg(distinct a.worker_id) into workers from asked a;
  perform 1 from public.job_workers w where w.id = any (workers) order by w.id for no key update;
  update public.job_workers w set inbox = w.inbox + 1 where w.id = any (workers);
end
$$;
comment on function processor.request_cancel(uuid[]) is 'Ask the workers of running jobs to stop them.';

create or replace function processor.cancel_children(parents uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  verdicts processor.verdict[];
  running uuid[];
begin
  -- LOCK: jobs, waiting for none, as they are out of order: a child that somebody has in hand runs to its end
  select array_agg(processor.ending(c.id, 'cancelled', 'CANCELLED', 'cancelled because its parent ended ' || c.parent_status))
      filter (where c.status = 'pending'),
    array_agg(c.id) filter (where c.status = 'processing')
  into verdicts, running
  from (
    select j.id, j.status, p.status as parent_status
    from public.jobs j
    join public.jobs p on p.id = j.parent_id
    where j.parent_id = any (cancel_children.parents) and j.finished_at is null
    order by j.id for no key update of j skip locked
  ) c;
  perform processor.conclude(verdicts);
  perform processor.request_cancel(running);
end
$$;
comment on function processor.cancel_children(uuid[]) is
  'Cancel the open children of jobs that did not complete: what waits ends, what runs is asked to stop.';

create or replace function processor.tell_parents(children uuid[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  failing processor.verdict[];
begin
  -- LOCK: the caller holds the parents, see lock_jobs()
  with told as (
    update public.jobs p
    set children_open = p.children_open - t.ended,
      children_failed = p.children_failed + t.failed,
      run_at = case
        when p.status = 'pending' and p.run_at = processor.never() and p.children_open = t.ended then processor.now()
        else p.run_at end,
      updated_at = processor.now()
    from (
      select c.parent_id, count(*)::int as ended, (count(*) filter (where c.status <> 'completed'))::int as failed
      from public.jobs c where c.id = any (tell_parents.children) group by 1
    ) t
    where p.id = t.parent_id
    returning p.id, p.items_done, p.children_failed, p.children_total,
      p.status = 'pending' and p.on_child_failure = 'fail' and t.failed > 0 as fails
  )
  select array_agg(processor.ending(t.id, case when t.items_done > 0 then 'partial' else 'failed' end, 'CHILD_FAILED',
    format('%s of %s children did not complete', t.children_failed, t.children_total)) order by t.id)
  into failing
  from told t where t.fails;
  perform processor.conclude(failing);
end
$$;
comment on function processor.tell_parents(uuid[]) is
  'Tell the parents of jobs that have ended: the last one wakes a waiting parent, and one that failed may end it.';

create or replace function processor.conclude(verdicts processor.verdict[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  ending uuid[];
  reopening uuid[];
  paying uuid[];
  settling uuid[];
  children uuid[];
  parents uuid[];
begin
  if coalesce(cardinality(conclude.verdicts), 0) = 0 then
    return;
  end if;
  -- LOCK: the caller holds accounts, jobs and their ancestors, see lock_jobs()
  select array_agg(j.id) filter (where v.status <> 'pending' and j.items_total > j.items_done),
    array_agg(j.id) filter (where v.status = 'pending' and j.items_failed > 0),
    array_agg(j.id) filter (where v.status = 'completed' and j.credits_held > 0),
    array_agg(j.id) filter (where v.status <> 'pending' and j.credits_held + j.credits_captured > 0),
    array_agg(j.id) filter (where v.status <> 'pending' and j.parent_id is not null),
    array_agg(j.id) filter (where v.status in ('partial', 'failed', 'cancelled') and j.children_open > 0)
  into ending, reopening, paying, settling, children, parents
  from unnest(conclude.verdicts) v join public.jobs j on j.id = v.job_id;

  if ending is not null then -- open items end with their job
    update public.job_items i
    set status = case when v.status = 'cancelled' then 'cancelled' else 'failed' end,
      error_code = coalesce(i.error_code, v.error_code),
      error_message = coalesce(i.error_message, left(v.error_message, 2000)),
      updated_at = moment
    from unnest(conclude.verdicts) v
    where v.job_id = any (ending) and i.job_id = v.job_id and i.status = 'pending';
  end if;
  if reopening is not null then -- what failed in a way worth trying again is open again
    update public.job_items i
    set status = 'pending', progress = 0, updated_at = moment
    where i.job_id = any (reopening) and i.status = 'failed' and i.error_retryable;
  end if;

  update public.jobs j
  set status = v.status,
    result = coalesce(v.result, j.result),
    progress = case when v.status = 'completed' then 1 else j.progress end,
    progress_message = coalesce(v.progress_message, j.progress_message),
    items_failed = case when j.items_total = j.items_done then 0 else (
      select count(*) from public.job_items i where i.job_id = j.id and i.status = 'failed') end,
    failures = j.failures + v.failed::int,
    crashes = case
      when v.crashed then j.crashes + 1
      when v.status = 'pending' and not v.crashed then 0 -- it can be run without harm
      else j.crashes end,
    run_at = coalesce(v.run_at, j.run_at),
    finished_at = case when v.status <> 'pending' then moment end,
    updated_at = moment,
    worker_id = case when v.status <> 'pending' then j.worker_id end,
    claim_id = case when v.status <> 'pending' then j.claim_id end,
    error_code = case when v.status = 'pending' and v.error_code is null then j.error_code else v.error_code end,
    error_message = case when v.status = 'pending' and v.error_code is null then j.error_message else left(v.error_message, 2000) end,
    error_retryable = case
      when v.error_code is not null then v.status = 'pending'
      when v.status = 'pending' then j.error_retryable end,
    errors = case when v.note is null then j.errors else
      case when jsonb_array_length(j.errors) >= 20 then j.errors - 0 else j.errors end || jsonb_build_object(
        'attempt', j.attempt, 'code', v.note ->> 'code', 'message', left(v.note ->> 'message', 2000), 'at', moment) end,
    -- what is still held when a job completes is its own price: that of items is captured with them
    credits_captured = j.credits_captured + case when v.status = 'completed' then j.credits_held else 0 end,
    credits_refunded = j.credits_refunded + case when v.status not in ('pending', 'completed') then j.credits_held else 0 end,
    credits_held = case when v.status = 'pending' then j.credits_held else 0 end
  from unnest(conclude.verdicts) v
  where j.id = v.job_id;

  if settling is not null then
    if paying is not null then
      perform processor.capture_jobs(paying);
    end if;
    perform processor.settle_holds(settling);
  end if;
  if exists (select from public.webhook_endpoints e where e.enabled) then
    perform processor.announce(conclude.verdicts);
  end if;
  if children is not null then
    perform processor.tell_parents(children);
  end if;
  if parents is not null then
    perform processor.cancel_children(parents);
  end if;
end
$$;
comment on function processor.conclude(processor.verdict[]) is
  'Carry verdicts out, at most one a job: rows, items, credits, webhooks, parents, children. The caller has called lock_jobs().';
