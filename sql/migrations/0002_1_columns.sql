-- Limits of owners, rates, children, lots: new columns, which cost nothing. What is said of columns of big tables is
-- checked in the next file, because every row must be read for that.

do $migration$
begin
  if to_regprocedure('processor.schema_version()') is null then
    return; -- a new database
  end if;
  if processor.schema_version() >= 2 then
    return;
  end if;

  alter table public.job_queues
    add column if not exists rate_limit int,
    add column if not exists rate_period interval not null default interval '1 minute',
    add column if not exists max_processing_per_owner int,
    add column if not exists max_pending_per_owner int,
    drop constraint if exists job_queues_rate_is_sane,
    drop constraint if exists job_queues_owner_limits_are_positive,
    add constraint job_queues_rate_is_sane check (
      rate_limit between 1 and 1000000000 and rate_period between interval '1 second' and interval '1 day'
    ),
    add constraint job_queues_owner_limits_are_positive check (max_processing_per_owner > 0 and max_pending_per_owner > 0);

  alter table public.jobs
    add column if not exists parent_id uuid,
    add column if not exists children_total int not null default 0,
    add column if not exists children_open int not null default 0,
    add column if not exists children_failed int not null default 0,
    add column if not exists on_child_failure text not null default 'continue';
  if not exists (select from pg_catalog.pg_constraint where conname = 'jobs_children_add_up') then
    alter table public.jobs
      add constraint jobs_children_add_up check (
        children_open >= 0 and children_failed >= 0 and children_open + children_failed <= children_total
      ) not valid,
      add constraint jobs_on_child_failure_is_known check (on_child_failure in ('continue', 'fail')) not valid;
  end if;

  alter table public.job_workers
    add column if not exists transport text not null default 'postgres_changes',
    drop constraint if exists job_workers_transport_is_known,
    add constraint job_workers_transport_is_known check (transport in ('postgres_changes', 'broadcast', 'polling'));

  alter table public.credit_entries add column if not exists lot_id bigint;
  if not exists (
    select from pg_catalog.pg_constraint
    where conname = 'credit_entries_kind_is_known' and pg_get_constraintdef(oid) like '%refund%'
  ) then
    alter table public.credit_entries
      drop constraint if exists credit_entries_kind_is_known,
      add constraint credit_entries_kind_is_known check (
        kind in ('grant', 'reserve', 'capture', 'release', 'expire', 'refund', 'clawback')
      ) not valid;
  end if;
end
$migration$;
