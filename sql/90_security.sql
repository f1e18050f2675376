-- Who may do what. Everything is refused first, then granted one by one.

revoke all on schema processor from public, anon, authenticated, service_role, job_processor;
grant usage on schema public to anon, authenticated, service_role, job_processor;

do $$
declare
  -- whoever else holds rights got them from the operator, and keeps them
  api constant text := 'public, anon, authenticated, service_role, job_processor';
  tables constant text[] := array[ -- and views
    'jobs', 'job_items', 'job_checkpoints', 'job_logs', 'job_queues', 'job_kinds', 'job_schedules', 'job_workers',
    'credit_accounts', 'credit_lots', 'credit_entries', 'credit_holds', 'credit_captures', 'credit_statement',
    'webhook_endpoints'
  ];
  functions constant text[] := array[
    'create_job', 'create_jobs', 'cancel_job', 'retry_job', 'grant_credits', 'refund_credits', 'expire_credits',
    'tell_of_jobs', 'tell_of_queues', 'tell_worker',
    'register_worker', 'rescue_jobs', 'heartbeat_worker', 'claim_jobs',
    'report_progress', 'append_job_logs', 'save_checkpoints', 'read_checkpoint', 'finish_items', 'finish_jobs', 'release_jobs',
    'spawn_jobs', 'deregister_worker', 'prune_jobs', 'guard_schedule', 'run_due_schedules', 'check_installation',
    'read_queues', 'read_workers', 'read_schedules', 'read_errors', 'read_error_rates', 'read_throughput', 'read_credit_days',
    'read_jobs', 'read_job', 'pause_queue', 'resume_queue', 'set_queue_limits', 'drain_worker', 'pause_schedule', 'resume_schedule',
    'run_schedule', 'check_credits', 'read_alerts', 'take_alerts', 'settle_alerts', 'read_metrics', 'read_ended_jobs',
    'guard_webhook', 'begin_delivery', 'end_delivery', 'add_webhook', 'remove_webhook', 'enable_webhook', 'disable_webhook',
    'rotate_webhook', 'redeliver_webhook', 'test_webhook', 'read_webhooks', 'read_webhook_deliveries'
  ];
  o record;
begin
  -- default privileges may have given anything to anybody when an object was made, and nothing revokes them as a
  -- whole: `alter default privileges in schema` would not even take PUBLIC's right to execute. So each by name
  for o in
    select 'schema' as kind, n.oid::regnamespace::text as name, n.nspowner as owner
    from pg_catalog.pg_namespace n where n.nspname = 'processor'
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text, c.relowner
    from pg_catalog.pg_class c
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and (
      c.relnamespace = 'processor'::regnamespace
      or (c.relnamespace = 'public'::regnamespace and (c.relname = any (tables) or exists (
        select from pg_catalog.pg_depend d join pg_catalog.pg_class t on t.oid = d.refobjid
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
          and t.relnamespace = 'public'::regnamespace and t.relname = any (tables)
      )))
    )
    union all
    select 'type', t.oid::regtype::text, t.typowner
    from pg_catalog.pg_type t
    where t.typnamespace = 'processor'::regnamespace and t.typtype in ('c', 'd', 'e')
      and (t.typrelid = 0 or (select c.relkind from pg_catalog.pg_class c where c.oid = t.typrelid) = 'c')
    union all
    select 'function', p.oid::regprocedure::text, p.proowner
    from pg_catalog.pg_proc p
    where p.pronamespace = 'processor'::regnamespace
      or (p.pronamespace = 'public'::regnamespace and p.proname = any (functions))
  loop
    if o.owner <> (select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'processor') then
      -- whoever owns a table can give it a trigger, which our functions would run with their own rights
      raise exception '% % belongs to %, not to % as schema processor does', o.kind, o.name, o.owner::regrole,
        (select n.nspowner::regrole from pg_catalog.pg_namespace n where n.nspname = 'processor')
        using hint = 'Apply the schema with one role, always the same. Whose object is it? If it is yours: alter … owner to ….';
    end if;
    execute format('revoke all on %s %s from %s', o.kind, o.name, api);
  end loop;
  for o in
    select c.oid::regclass as name, c.relnamespace = 'public'::regnamespace as exposed
    from pg_catalog.pg_class c
    where c.relkind in ('r', 'p')
      and (c.relnamespace = 'processor'::regnamespace or (c.relnamespace = 'public'::regnamespace and c.relname = any (tables)))
  loop
    execute format('alter table %s enable row level security', o.name);
    if o.exposed then
      execute format('grant select on table %s to service_role', o.name);
    end if;
  end loop;
end
$$;

-- tables: users read what is theirs, the service reads all and turns the knobs, nobody writes the rest
grant select on public.jobs, public.job_items, public.job_logs, public.job_kinds,
  public.credit_accounts, public.credit_lots, public.credit_entries, public.credit_holds, public.credit_captures,
  public.credit_statement, public.webhook_endpoints to authenticated;
-- no row of these but to operators, see the policies
grant select on public.job_queues, public.job_workers, public.job_schedules to authenticated;
grant select on public.credit_statement to service_role;
grant insert, update, delete on public.job_queues, public.job_kinds, public.job_schedules, public.webhook_endpoints to service_role;
grant update (draining) on public.job_workers to service_role;
-- the least-privilege worker reads what it subscribes to
grant select on public.jobs, public.job_queues, public.job_schedules, public.job_workers to job_processor;

-- a policy calls what it names with the rights of whoever reads; to be named once is enough, so nobody needs the schema
grant execute on function processor.is_operator() to authenticated;
-- the default of a column is computed with the rights of whoever inserts
grant execute on function processor.now() to service_role;
-- functions: clients
grant execute on function
  public.create_job(text, jsonb, jsonb, text, int, timestamptz, text, text, uuid, int, numeric, text[], numeric, text, uuid, jsonb, text,
    jsonb),
  public.create_jobs(jsonb),
  public.cancel_job(uuid),
  public.retry_job(uuid, boolean)
to authenticated, service_role;
-- functions: workers
grant execute on function
  public.register_worker(jsonb),
  public.rescue_jobs(int),
  public.heartbeat_worker(uuid, uuid[], text),
  public.claim_jobs(uuid, uuid, text[], int),
  public.report_progress(uuid, jsonb),
  public.append_job_logs(uuid, jsonb),
  public.save_checkpoints(uuid, jsonb),
  public.read_checkpoint(uuid, jsonb, text),
  public.finish_items(uuid, jsonb),
  public.finish_jobs(uuid, jsonb),
  public.release_jobs(uuid, jsonb),
  public.spawn_jobs(uuid, jsonb, jsonb, text),
  public.deregister_worker(uuid),
  public.prune_jobs(int),
  public.run_due_schedules(uuid, jsonb),
  public.expire_credits(int),
  public.check_installation(),
  public.read_alerts(int),
  public.take_alerts(uuid, jsonb, int, double precision),
  public.settle_alerts(uuid, boolean),
  public.read_metrics(uuid),
  public.begin_delivery(uuid, uuid, int),
  public.end_delivery(uuid, uuid, int, boolean, int, text, double precision),
  public.read_ended_jobs(uuid, timestamptz, bigint, boolean, timestamptz, uuid, int)
to service_role, job_processor;
-- functions: operators, who may be signed-in users; each asks who is calling
grant execute on function
  public.read_queues(),
  public.read_workers(),
  public.read_schedules(),
  public.read_errors(int),
  public.read_error_rates(int),
  public.read_throughput(int),
  public.read_credit_days(int),
  public.read_jobs(text[], text, text, uuid, int),
  public.read_job(uuid),
  public.pause_queue(text),
  public.resume_queue(text),
  public.set_queue_limits(text, jsonb),
  public.drain_worker(text),
  public.pause_schedule(text),
  public.resume_schedule(text),
  public.run_schedule(text),
  public.check_credits(),
  public.add_webhook(text, text, text[], text[], text[], uuid, int, numeric, numeric, boolean, text),
  public.remove_webhook(text),
  public.enable_webhook(text),
  public.disable_webhook(text),
  public.rotate_webhook(text, numeric),
  public.redeliver_webhook(uuid),
  public.test_webhook(text),
  public.read_webhooks(),
  public.read_webhook_deliveries(text, text[], uuid, int)
to authenticated, service_role;
-- functions: a server that sells credits
grant execute on function
  public.grant_credits(uuid, bigint, text, text, int, timestamptz),
  public.refund_credits(uuid, bigint, text, text)
to service_role;

-- rows: one policy per table and reader; service_role bypasses them
drop policy if exists jobs_are_read_by_their_owner on public.jobs;
create policy jobs_are_read_by_their_owner on public.jobs
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists job_items_are_read_by_the_jobs_owner on public.job_items;
create policy job_items_are_read_by_the_jobs_owner on public.job_items
  for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.owner_id = (select auth.uid())));
drop policy if exists job_logs_are_read_by_the_jobs_owner on public.job_logs;
create policy job_logs_are_read_by_the_jobs_owner on public.job_logs
  for select to authenticated
  using (exists (select from public.jobs j where j.id = job_id and j.owner_id = (select auth.uid())));
drop policy if exists public_job_kinds_are_read_by_users on public.job_kinds;
create policy public_job_kinds_are_read_by_users on public.job_kinds
  for select to authenticated using (public);
drop policy if exists credit_accounts_are_read_by_their_owner on public.credit_accounts;
create policy credit_accounts_are_read_by_their_owner on public.credit_accounts
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_lots_are_read_by_their_owner on public.credit_lots;
create policy credit_lots_are_read_by_their_owner on public.credit_lots
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_entries_are_read_by_their_owner on public.credit_entries;
create policy credit_entries_are_read_by_their_owner on public.credit_entries
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_holds_are_read_by_their_owner on public.credit_holds;
create policy credit_holds_are_read_by_their_owner on public.credit_holds
  for select to authenticated using (owner_id = (select auth.uid()));
drop policy if exists credit_captures_are_read_by_the_holds_owner on public.credit_captures;
create policy credit_captures_are_read_by_the_holds_owner on public.credit_captures
  for select to authenticated
  using (exists (select from public.credit_holds h where h.job_id = credit_captures.job_id and h.owner_id = (select auth.uid())));
-- not so jobs: an "or" beside the owner would spoil the index; operators read them with read_jobs()
drop policy if exists job_queues_are_read_by_operators on public.job_queues;
create policy job_queues_are_read_by_operators on public.job_queues
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists job_workers_are_read_by_operators on public.job_workers;
create policy job_workers_are_read_by_operators on public.job_workers
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists job_schedules_are_read_by_operators on public.job_schedules;
create policy job_schedules_are_read_by_operators on public.job_schedules
  for select to authenticated using ((select processor.is_operator()));
drop policy if exists webhook_endpoints_are_read_by_operators_and_their_owner on public.webhook_endpoints;
create policy webhook_endpoints_are_read_by_operators_and_their_owner on public.webhook_endpoints
  for select to authenticated using (owner_id = (select auth.uid()) or (select processor.is_operator()));
drop policy if exists jobs_are_read_by_workers on public.jobs;
create policy jobs_are_read_by_workers on public.jobs for select to job_processor using (true);
drop policy if exists job_queues_are_read_by_workers on public.job_queues;
create policy job_queues_are_read_by_workers on public.job_queues for select to job_processor using (true);
drop policy if exists job_workers_are_read_by_workers on public.job_workers;
create policy job_workers_are_read_by_workers on public.job_workers for select to job_processor using (true);
drop policy if exists job_schedules_are_read_by_workers on public.job_schedules;
create policy job_schedules_are_read_by_workers on public.job_schedules for select to job_processor using (true);
