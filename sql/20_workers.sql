-- Workers: one row per daemon process. The row is the lease.

create table if not exists public.job_workers (
  id uuid primary key,
  name text not null,
  host text not null default '',
  pid int,
  version text not null default '',
  queues text[] not null,
  kinds text[] not null,
  slots int not null,
  running int not null default 0,
  feed text not null default 'polling',
  lease interval not null,
  started_at timestamptz not null default processor.now(),
  heartbeat_at timestamptz not null default processor.now(),
  lease_expires_at timestamptz not null,
  draining boolean not null default false,
  inbox bigint not null default 0,
  transport text not null default 'postgres_changes',
  constraint job_workers_slots_are_sane check (slots between 1 and 10000),
  constraint job_workers_feed_is_known check (feed in ('realtime', 'polling')),
  constraint job_workers_lease_is_sane check (lease between interval '1 second' and interval '1 hour'),
  constraint job_workers_transport_is_known check (transport in ('postgres_changes', 'broadcast', 'polling'))
);
create index if not exists job_workers_broadcast_idx on public.job_workers (id) where transport = 'broadcast';
comment on table public.job_workers is
  'The living daemons. One update per heartbeat renews the lease of all jobs a worker holds.';
comment on column public.job_workers.id is 'Chosen by the worker when it starts.';
comment on column public.job_workers.name is 'What people call it.';
comment on column public.job_workers.host is 'The machine it runs on.';
comment on column public.job_workers.pid is 'Its process on that machine.';
comment on column public.job_workers.version is 'The version of its package.';
comment on column public.job_workers.queues is 'The queues it serves.';
comment on column public.job_workers.kinds is 'The kinds it has handlers for: it claims no others.';
comment on column public.job_workers.slots is 'How many jobs it runs at once.';
comment on column public.job_workers.running is 'How many jobs it ran at its last heartbeat.';
comment on column public.job_workers.feed is 'How the worker learns of new jobs at the moment: realtime or polling.';
comment on column public.job_workers.lease is 'How far each heartbeat moves lease_expires_at.';
comment on column public.job_workers.started_at is 'When it registered.';
comment on column public.job_workers.heartbeat_at is 'When it was last heard of.';
comment on column public.job_workers.lease_expires_at is 'After this its jobs may be rescued by others.';
comment on column public.job_workers.draining is 'true: the worker claims no more; set it from the SQL editor before a migration.';
comment on column public.job_workers.inbox is
  'Grows when somebody wants the worker''s attention, such as a cancel: the worker sees its row change and asks at once.';
comment on column public.job_workers.transport is
  'How the worker wants to learn of new jobs: postgres_changes, broadcast (messages are sent only while such a worker lives) or polling.';
