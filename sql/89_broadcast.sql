-- The feed's other way: messages that the database itself sends, for projects beyond the limits of Postgres Changes.
--
-- One message a statement, however many jobs it makes pending, and only while a worker listens that serves their queues;
-- a message names queues and carries no job. Without such a worker each trigger costs one look into an empty index.
-- realtime.send() belongs to Supabase: where it is missing or fails, nothing of ours does.

create or replace function processor.send(topic text, event text, payload jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  -- on a private topic: who may hear it, the policies on realtime.messages say
  perform realtime.send(send.payload, send.event, send.topic, true);
exception when others then -- a message that is lost costs a worker time; it must cost nobody the transaction
  raise warning 'realtime.send failed: % (%)', sqlerrm, sqlstate;
end
$$;
comment on function processor.send(text, text, jsonb) is 'Send a message to workers whose feed is broadcast. Never fails.';

create or replace function processor.send_queues(queues text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  served jsonb;
begin
  select jsonb_agg(q.queue order by q.queue) into served
  from (select distinct unnest(send_queues.queues) as queue) q
  where exists (
    select from public.job_workers w
    where w.transport = 'broadcast' and w.lease_expires_at > processor.now() and q.queue = any (w.queues)
  );
  if served is not null then
    perform processor.send('processor:jobs', 'look', jsonb_build_object('queues', served));
  end if;
end
$$;
comment on function processor.send_queues(text[]) is
  'Have workers whose feed is broadcast look at these queues, as far as one of them serves them.';

create or replace function processor.somebody_listens()
returns boolean
language plpgsql
stable
set search_path = '', pg_temp
as $$
begin
  -- workers are locked before jobs, and who asks here has locked jobs: where there has never been a listener, one look at
  -- the size of their index, whose lock is not kept, spares the table. An index without entries is one page
  if pg_relation_size(to_regclass('public.job_workers_broadcast_idx')) <= current_setting('block_size')::bigint then
    return false;
  end if;
  return exists (select from public.job_workers w where w.transport = 'broadcast');
end
$$;
comment on function processor.somebody_listens() is 'Whether there is a worker whose feed is broadcast.';

create or replace function public.tell_of_jobs()
returns trigger
language plpgsql
security definer -- whoever makes jobs has no right to see workers, nor to send
set search_path = '', pg_temp
as $$
begin
  if processor.somebody_listens() then
    -- what waits for its children changes with each that ends, and cannot run before the last
    perform processor.send_queues(array(
      select distinct c.queue from changed c where c.status = 'pending' and c.run_at < processor.never()
    ));
  end if;
  return null;
end
$$;
comment on function public.tell_of_jobs() is 'The trigger that tells workers whose feed is broadcast of pending jobs.';

create or replace function public.tell_of_queues()
returns trigger
language plpgsql
security definer -- whoever turns the knobs of a queue has no right to send
set search_path = '', pg_temp
as $$
begin
  if processor.somebody_listens() then
    perform processor.send_queues(array(select c.name from changed c where not c.paused));
  end if;
  return null;
end
$$;
comment on function public.tell_of_queues() is 'The trigger that tells workers whose feed is broadcast of changed queues.';

create or replace function public.tell_worker()
returns trigger
language plpgsql
security definer -- whoever cancels a job has no right to send
set search_path = '', pg_temp
as $$
begin
  perform processor.send('processor:worker:' || new.id, 'worker', jsonb_build_object(
    'id', new.id, 'heartbeat_at', new.heartbeat_at, 'inbox', new.inbox, 'draining', new.draining));
  return null;
end
$$;
comment on function public.tell_worker() is
  'The trigger that tells a worker whose feed is broadcast of its own row: its inbox, and the echo of its heartbeat.';

-- statements, not rows; a condition that no other worker's row meets. Only what is missing or differs: making a trigger
-- locks the table, and jobs run while this is applied
do $$
declare
  wanted record;
begin
  for wanted in
    select w.relation, w.name, w.definition
    from (values
      ('public.jobs', 'jobs_tell_when_made', 'after insert on public.jobs'
        ' referencing new table as changed for each statement execute function public.tell_of_jobs()'),
      ('public.jobs', 'jobs_tell_when_changed', 'after update on public.jobs'
        ' referencing new table as changed for each statement execute function public.tell_of_jobs()'),
      ('public.job_queues', 'job_queues_tell_when_changed', 'after update on public.job_queues'
        ' referencing new table as changed for each statement execute function public.tell_of_queues()'),
      ('public.job_workers', 'job_workers_tell_when_changed', 'after update on public.job_workers'
        ' for each row when ((new.transport = ''broadcast''::text)) execute function public.tell_worker()')
    ) w (relation, name, definition)
    where not exists (
      select from pg_catalog.pg_trigger t
      where t.tgrelid = w.relation::regclass and t.tgname = w.name
        and replace(lower(pg_catalog.pg_get_triggerdef(t.oid)), 'public.', '') -- which is said if the search_path lacks it
          = replace(format('create trigger %s %s', w.name, w.definition), 'public.', '')
    )
  loop
    execute format('create or replace trigger %I %s', wanted.name, wanted.definition);
  end loop;
end
$$;

do $$
declare
  -- by the catalog: who may not use the schema may not name its tables
  messages constant oid := (
    select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'realtime' and c.relname = 'messages'
  );
  policy record;
begin
  if messages is null then
    return; -- not a database that Realtime works with
  end if;
  -- service_role needs neither rights nor policies. The table is Supabase's: hosted projects may keep us from granting
  begin
    grant usage on schema realtime to job_processor;
    grant select, insert on realtime.messages to job_processor;
  exception when insufficient_privilege then
    null;
  end;
  if not has_table_privilege('job_processor', messages, 'select') then
    raise notice 'job_processor may not read realtime.messages: workers with its token cannot use the broadcast feed';
  end if;
  -- only what is missing: others send while this runs, and a policy locks the table
  for policy in
    select w.name, w.definition
    from (values
      ('processor_topics_are_heard_by_workers',
        $policy$for select to job_processor using (topic like 'processor:%' and extension = 'broadcast')$policy$),
      ('processor_topics_are_probed_by_workers',
        $policy$for insert to job_processor with check (topic like 'processor:worker:%' and extension = 'broadcast')$policy$),
      -- an application's own policies may open every topic to its users
      ('processor_topics_are_for_workers_alone',
        $policy$as restrictive for all to public using (topic not like 'processor:%' or current_user = 'job_processor')$policy$)
    ) w (name, definition)
    where not exists (
      select from pg_catalog.pg_policy p where p.polrelid = messages and p.polname = w.name
    )
  loop
    begin
      execute format('create policy %I on realtime.messages %s', policy.name, policy.definition);
    exception when insufficient_privilege then
      raise warning 'the policy % on realtime.messages could not be made: apply the schema as postgres', policy.name;
    end;
  end loop;
end
$$;
