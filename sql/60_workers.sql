-- A worker's life: register, heartbeat (which also rescues), deregister.

create or replace function processor.declare_kind(kind jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_name('kind', declare_kind.kind ->> 'kind', '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$');
  perform processor.check_range('credits_per_job', (declare_kind.kind ->> 'credits_per_job')::numeric, 0, 1000000000);
  perform processor.check_range('credits_per_item', (declare_kind.kind ->> 'credits_per_item')::numeric, 0, 1000000000);
  perform processor.check_range('max_items', (declare_kind.kind ->> 'max_items')::numeric, 0, 10000);
  if (declare_kind.kind ->> 'credits_per_job')::numeric > 0 and (declare_kind.kind ->> 'credits_per_item')::numeric > 0 then
    perform processor.fail('JQ006', format('kind %s declares two prices', declare_kind.kind ->> 'kind'), '',
      'A kind is priced per job or per item, not both.');
  end if;
  -- LOCK: the caller has made the queues, and declares kinds in the order of their names
  insert into public.job_kinds as k (kind, queue, public, credits_per_job, credits_per_item, max_items,
    payload_schema, description, declared)
  values (
    declare_kind.kind ->> 'kind',
    declare_kind.kind ->> 'queue',
    coalesce((declare_kind.kind ->> 'public')::boolean, false),
    coalesce((declare_kind.kind ->> 'credits_per_job')::bigint, 0),
    coalesce((declare_kind.kind ->> 'credits_per_item')::bigint, 0),
    coalesce((declare_kind.kind ->> 'max_items')::int, 10000),
    coalesce(declare_kind.kind -> 'payload_schema', '{}'),
    coalesce(declare_kind.kind ->> 'description', ''),
    declare_kind.kind
  )
  on conflict on constraint job_kinds_pkey do update set
    -- a value that still is what was declared follows the new declaration; one an operator set stays
    queue = case when k.queue = k.declared ->> 'queue' then excluded.queue else k.queue end,
    public = case when k.public = coalesce((k.declared ->> 'public')::boolean, false) then excluded.public else k.public end,
    credits_per_job = case
      when k.credits_per_job = coalesce((k.declared ->> 'credits_per_job')::bigint, 0)
        and k.credits_per_item = coalesce((k.declared ->> 'credits_per_item')::bigint, 0)
      then excluded.credits_per_job else k.credits_per_job end,
    credits_per_item = case
      when k.credits_per_job = coalesce((k.declared ->> 'credits_per_job')::bigint, 0)
        and k.credits_per_item = coalesce((k.declared ->> 'credits_per_item')::bigint, 0)
      then excluded.credits_per_item else k.credits_per_item end,
    max_items = case when k.max_items = coalesce((k.declared ->> 'max_items')::int, 10000) then excluded.max_items else k.max_items end,
    payload_schema = excluded.payload_schema,
    description = case when k.description = coalesce(k.declared ->> 'description', '') then excluded.description else k.description end,
    declared = excluded.declared,
    updated_at = processor.now()
  where k.declared is distinct from excluded.declared;
end
$$;
comment on function processor.declare_kind(jsonb) is 'Write a handler''s declaration to job_kinds, keeping what an operator changed.';

create or replace function public.register_worker(worker jsonb)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  w public.job_workers;
  wanted constant int := (register_worker.worker ->> 'schema_version')::int;
begin
  if coalesce(wanted not between processor.oldest_worker_version() and processor.schema_version(), true) then
    perform processor.fail('JQ013',
      format('the database has schema version %s and serves workers of versions %s to %s, this worker needs %s', processor.schema_version(),
        processor.oldest_worker_version(), processor.schema_version(), coalesce(wanted::text, 'none')), '',
      case when wanted < processor.oldest_worker_version() then 'Upgrade the worker: pip install --upgrade supabase-job-processor'
        else 'Run: processor schema apply --database-url … with the package version that the worker has.' end);
  end if;
  if register_worker.worker ->> 'id' is null or register_worker.worker ->> 'slots' is null
    or register_worker.worker ->> 'lease_seconds' is null
  then
    perform processor.fail('JQ006', 'a worker needs id, slots and lease_seconds');
  end if;
  perform processor.check_range('slots', (register_worker.worker ->> 'slots')::numeric, 1, 10000);
  perform processor.check_range('lease_seconds', (register_worker.worker ->> 'lease_seconds')::numeric, 1, 3600);
  perform processor.check_feed(register_worker.worker ->> 'feed');
  perform processor.check_transport(register_worker.worker ->> 'transport');
  perform processor.declare_schedules(register_worker.worker -> 'schedules');
  -- LOCK: queues, by name
  perform processor.make_queues(array(
    select jsonb_array_elements_text(register_worker.worker -> 'queues')
    union
    select k ->> 'queue' from jsonb_array_elements(register_worker.worker -> 'kinds') k
  ));
  perform processor.declare_kind(k) from jsonb_array_elements(register_worker.worker -> 'kinds') k order by k ->> 'kind';

  insert into public.job_workers as w (id, name, host, pid, version, queues, kinds, slots, feed, lease, lease_expires_at,
    transport)
  select (register_worker.worker ->> 'id')::uuid,
    coalesce(register_worker.worker ->> 'name', 'worker'),
    coalesce(register_worker.worker ->> 'host', ''),
    (register_worker.worker ->> 'pid')::int,
    coalesce(register_worker.worker ->> 'version', ''),
    array(select jsonb_array_elements_text(register_worker.worker -> 'queues')),
    array(select k ->> 'kind' from jsonb_array_elements(register_worker.worker -> 'kinds') k),
    (register_worker.worker ->> 'slots')::int,
    coalesce(register_worker.worker ->> 'feed', 'polling'),
    l.lease,
    processor.now() + l.lease,
    coalesce(register_worker.worker ->> 'transport', 'postgres_changes')
  from (select make_interval(secs => (register_worker.worker ->> 'lease_seconds')::double precision) as lease) l
  on conflict on constraint job_workers_pkey do update set
    heartbeat_at = processor.now(), lease_expires_at = excluded.lease_expires_at, lease = excluded.lease,
    queues = excluded.queues, kinds = excluded.kinds, slots = excluded.slots, feed = excluded.feed, transport = excluded.transport
  returning * into w;
  return jsonb_build_object('now', processor.now(), 'lease_expires_at', w.lease_expires_at, 'schema_version', processor.schema_version());
end
$$;
comment on function public.register_worker(jsonb) is
  'Enter a worker and its handlers'' declarations. The worker chooses its id (a uuid), so asking twice is harmless.';

create or replace function processor.rescue_jobs(max_jobs int default 100)
returns int
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  seen uuid[];
  concerned uuid[];
  ids uuid[];
begin
  -- the usual case: no lease is over, one look at what runs; a worker whose row is gone is lost too
  select array_agg(c.id) into seen from (
    select j.id from public.jobs j
    left join public.job_workers w on w.id = j.worker_id
    where j.status = 'processing' and (w.id is null or w.lease_expires_at < moment)
    limit rescue_jobs.max_jobs
  ) c;
  if seen is null then
    delete from public.job_workers w
    where w.lease_expires_at < moment - interval '1 day'
      and not exists (select from public.jobs j where j.worker_id = w.id and j.status = 'processing');
    return 0;
  end if;

  -- LOCK: accounts, then jobs with their ancestors; one that somebody else has in hand is left to the next heartbeat
  perform 1 from public.credit_accounts a
  where a.owner_id in (select j.owner_id from public.jobs j where j.id = any (seen))
  order by a.owner_id for no key update;
  with recursive family as (
    select j.id, j.parent_id from public.jobs j where j.id = any (seen)
    union
    select p.id, p.parent_id from family f join public.jobs p on p.id = f.parent_id
  )
  select array_agg(f.id) into concerned from family f;
  select array_agg(l.id) into ids from (
    select j.id from public.jobs j where j.id = any (concerned) order by j.id for no key update skip locked
  ) l;
  select array_agg(j.id) into ids
  from public.jobs j
  left join public.job_workers w on w.id = j.worker_id
  where j.id = any (ids) and j.id = any (seen) and j.status = 'processing' and (w.id is null or w.lease_expires_at < moment)
    and (j.parent_id is null or cardinality(ids) = cardinality(concerned));

  perform processor.conclude(array(
    select row(j.id,
      case when j.cancel_requested_at is not null then 'cancelled'
        when not g.guilty then 'pending'
        when j.items_done > 0 then 'partial'
        else 'failed' end,
      case when j.cancel_requested_at is null and not g.guilty then moment end,
      null,
      case when j.cancel_requested_at is not null then 'CANCELLED' when g.guilty then 'WORKER_CRASHED' end,
      case when j.cancel_requested_at is not null then 'cancelled while its worker was lost'
        when g.guilty then format('%s workers in a row were lost while running it', j.crashes + 1) end,
      null,
      jsonb_build_object('code', 'LEASE_LOST', 'message', format('worker %s stopped renewing its lease', j.worker_id)),
      false,
      j.cancel_requested_at is null and j.kind <> 'webhook.deliver' -- which runs nothing of the application: it is never the cause
    )::processor.verdict
    from public.jobs j
    cross join lateral (
      -- the second time it is the cause, unless another job that has lost a worker was there too: then the third time, because
      -- since then they ran apart (pick_suspect)
      select j.crashes > 1 or (j.crashes = 1 and not exists (
        select from public.jobs o
        where o.worker_id = j.worker_id and o.status = 'processing' and o.crashes > 0 and o.id <> j.id
      )) as guilty
    ) g
    where j.id = any (ids) order by j.id
  ));
  return coalesce(cardinality(ids), 0);
end
$$;
comment on function processor.rescue_jobs(int) is
  'Take jobs from workers whose lease is over: pending again, or ended if they are what workers are lost by (see jobs.crashes). '
  'Every heartbeat calls it; call it yourself when no worker is alive.';

create or replace function public.rescue_jobs(batch int default 100)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  alive int;
  rescued int := 0;
begin
  perform processor.check_range('batch', rescue_jobs.batch, 1, 1000);
  select count(*) into alive from public.job_workers w where w.lease_expires_at >= processor.now();
  if alive = 0 then -- the heartbeats of the living do it
    rescued := processor.rescue_jobs(rescue_jobs.batch);
  end if;
  return jsonb_build_object('alive', alive, 'rescued', rescued);
end
$$;
comment on function public.rescue_jobs(int) is
  'For a timer (processor maintain), when no worker is alive: what processor.rescue_jobs() does, for at most batch jobs. While one is '
  'alive it does nothing. Returns how many workers are alive and how many jobs it took from the dead.';

create or replace function public.heartbeat_worker(worker_id uuid, running uuid[] default '{}', feed text default 'polling')
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  w public.job_workers;
  rescued int := 0;
  running_now constant uuid[] := coalesce(heartbeat_worker.running, '{}');
  answer jsonb;
begin
  perform processor.check_feed(heartbeat_worker.feed);
  select * into w from public.job_workers x where x.id = heartbeat_worker.worker_id;
  if not found then
    perform processor.fail('JQ011', format('unknown worker: %s', heartbeat_worker.worker_id), '', 'Register again.');
  end if;
  -- whoever had lapsed only renews: after an outage of everything nobody rescues the living
  if w.lease_expires_at >= processor.now() then
    begin -- a job that cannot be rescued must not cost the living their leases
      rescued := processor.rescue_jobs();
    exception when others then
      raise warning 'rescue_jobs failed: % (%)', sqlerrm, sqlstate;
    end;
  end if;
  update public.job_workers x
  set heartbeat_at = processor.now(), lease_expires_at = processor.now() + x.lease,
    running = cardinality(running_now), feed = coalesce(heartbeat_worker.feed, x.feed)
  where x.id = w.id
  returning * into w;
  if not found then -- it was forgotten a moment ago
    perform processor.fail('JQ011', format('unknown worker: %s', heartbeat_worker.worker_id), '', 'Register again.');
  end if;

  with owned as (
    select j.id, j.attempt, j.started_at,
      -- a child that somebody had in hand when its parent ended was not asked to stop
      j.cancel_requested_at is not null or p.status in ('partial', 'failed', 'cancelled') as unwanted
    from public.jobs j left join public.jobs p on p.id = j.parent_id
    where j.worker_id = w.id and j.status = 'processing'
  )
  select jsonb_build_object(
    'now', processor.now(),
    'heartbeat_at', w.heartbeat_at,
    'lease_expires_at', w.lease_expires_at,
    'next_due_at', processor.next_due_at(w),
    'next_schedule_at', processor.next_schedule_at(),
    'next_rescue_at', (
      select min(o.lease_expires_at) from public.job_workers o
      where o.id <> w.id and o.lease_expires_at >= w.heartbeat_at
        and exists (select from public.jobs j where j.worker_id = o.id and j.status = 'processing')
    ),
    'draining', w.draining,
    'inbox', w.inbox,
    'rescued', rescued,
    'cancel', coalesce((select jsonb_agg(o.id) from owned o where o.unwanted), '[]'),
    'lost', coalesce((select jsonb_agg(r) from unnest(running_now) r where r not in (select o.id from owned o)), '[]'),
    -- a job claimed a moment ago may not have reached the worker yet
    'unknown', coalesce((
      select jsonb_agg(jsonb_build_object('id', o.id, 'attempt', o.attempt)) from owned o
      where o.id <> all (running_now) and o.started_at < processor.now() - interval '10 seconds'
    ), '[]')
  ) into answer;
  return answer;
end
$$;
comment on function public.heartbeat_worker(uuid, uuid[], text) is
  'Renew the lease, rescue what dead workers held, and learn: jobs to cancel, jobs lost, jobs forgotten, when the next one is due, '
  'and when the next of the other workers that hold jobs would be lost.';

create or replace function public.deregister_worker(worker_id uuid)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  left_behind jsonb;
  released int;
begin
  select coalesce(jsonb_agg(jsonb_build_object('id', j.id, 'attempt', j.attempt)), '[]') into left_behind
  from public.jobs j where j.worker_id = deregister_worker.worker_id and j.status = 'processing';
  released := jsonb_array_length(public.release_jobs(deregister_worker.worker_id, left_behind));
  delete from public.job_workers w where w.id = deregister_worker.worker_id;
  return jsonb_build_object('released', released);
end
$$;
comment on function public.deregister_worker(uuid) is 'Leave: what the worker still holds is released, its row goes.';
