-- Schedules: jobs that are made by the clock.
--
-- A worker computes when a cron expression comes next, because PostgreSQL cannot; who makes the job, and whether, is
-- decided here. next_run_at is what workers compare and swap: a tick that one of them has moved is nobody else's, so
-- any number of workers makes one job per tick. No worker needs to handle the kind, or to have declared the schedule.

create table if not exists public.job_schedules (
  name text primary key,
  cron text not null,
  timezone text not null default 'UTC',
  kind text not null,
  queue text,
  payload jsonb not null default '{}',
  items jsonb,
  owner_id uuid,
  priority int not null default 0,
  paused boolean not null default false,
  catch_up text not null default 'last',
  next_run_at timestamptz,
  last_run_at timestamptz,
  last_job_id uuid,
  problem text,
  declared jsonb not null default '{}',
  created_at timestamptz not null default processor.now(),
  constraint job_schedules_name_is_plain check (name ~ '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,89}$'),
  constraint job_schedules_catch_up_is_known check (catch_up in ('none', 'last', 'all'))
);
-- what is due and what must be computed first; few rows, unless every user of an application has schedules of their own
create index if not exists job_schedules_next_idx on public.job_schedules (next_run_at) where not paused;
comment on table public.job_schedules is
  'One row per schedule: declared by handlers, or inserted here. Change a row and the workers obey it at their next heartbeat.';
comment on column public.job_schedules.name is 'What people call it; the default of a declared one is its kind.';
comment on column public.job_schedules.cron is
  'Minute, hour, day of month, month, weekday: 0 3 * * * is every day at 3:00, */15 * * * * every quarter of an hour.';
comment on column public.job_schedules.timezone is
  'Whose clock it follows, a name of pg_timezone_names. An hour that is left out in spring runs right after it; a fixed '
  'hour that comes twice in autumn runs the first time.';
comment on column public.job_schedules.kind is 'What its jobs are.';
comment on column public.job_schedules.queue is 'Where they run; null: where the kind does.';
comment on column public.job_schedules.payload is 'What they are given.';
comment on column public.job_schedules.items is 'Their items, as create_job takes them; null: none.';
comment on column public.job_schedules.owner_id is
  'Whose jobs they are, and who pays for them; null: the application''s own, which cost nothing.';
comment on column public.job_schedules.priority is 'Their priority.';
comment on column public.job_schedules.paused is
  'true: makes no jobs. Afterwards it goes on with the next time to come: what a pause left out is not caught up.';
comment on column public.job_schedules.catch_up is
  'What happens to times at which no worker was alive. last: however many they were, one job, for the last of them. '
  'all: a job for each. none: what is more than a minute late is left out.';
comment on column public.job_schedules.next_run_at is
  'The tick: when it makes its next job; null: a worker will compute it, unless there is a problem. May be set, to run once at '
  'another time.';
comment on column public.job_schedules.last_run_at is 'When it last made a job.';
comment on column public.job_schedules.last_job_id is 'That job.';
comment on column public.job_schedules.problem is 'Why it made no job the last time, or cannot run at all; null: all is well.';
comment on column public.job_schedules.declared is
  'What the handler last declared: a column that still equals it follows the next declaration.';
comment on column public.job_schedules.created_at is 'When it was made.';

create or replace function public.guard_schedule()
returns trigger
language plpgsql
security definer -- whoever may write schedules may not use schema processor
set search_path = '', pg_temp
as $$
begin
  perform processor.check_name('schedule', new.name, '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,89}$');
  if coalesce(length(new.cron), 0) > 200 or new.cron !~ '^\s*\S+(\s+\S+){4}\s*$' then
    perform processor.fail('JQ006', format('schedule %s: %s is not a cron expression', new.name, left(new.cron, 100)), '',
      'Five fields: minute, hour, day of month, month, weekday. 0 3 * * * is every day at 3:00.');
  end if;
  perform processor.check_choice(format('schedule %s: catch_up', new.name), new.catch_up, array['none', 'last', 'all']);
  if jsonb_typeof(new.payload) <> 'object' then
    perform processor.fail('JQ003', format('schedule %s: payload must be a JSON object, this is %s', new.name, jsonb_typeof(new.payload)),
      '', 'Wrap it: {"value": …}.');
  end if;
  -- the view reads all files of the time zone database (50 ms), so it is asked about new names only
  if new.timezone <> 'UTC' and (tg_op = 'INSERT' or new.timezone <> old.timezone)
    and not exists (select from pg_catalog.pg_timezone_names z where z.name = new.timezone)
  then
    perform processor.fail('JQ006', format('schedule %s: there is no time zone %s', new.name, left(new.timezone, 100)), '',
      'Give a name such as Europe/Berlin: select name from pg_timezone_names where name ilike ''%…%''.');
  end if;
  if tg_op = 'UPDATE' then
    -- another plan, or the end of a pause: the next time is computed anew, from now on
    if (new.cron, new.timezone) is distinct from (old.cron, old.timezone) or (old.paused and not new.paused) then
      new.next_run_at := null;
      new.problem := null;
    elsif (new.kind, new.queue, new.payload, new.items, new.owner_id)
      is distinct from (old.kind, old.queue, old.payload, old.items, old.owner_id)
    then
      new.problem := null;
    end if;
  end if;
  return new;
end
$$;
comment on function public.guard_schedule() is
  'What a row of job_schedules must be, whoever writes it; and a changed plan is computed anew.';

create or replace trigger job_schedules_guard
before insert or update of name, cron, timezone, kind, queue, payload, items, owner_id, paused, catch_up on public.job_schedules
for each row execute function public.guard_schedule();

create or replace function processor.declare_schedule(schedule jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  wanted jsonb;
  kept jsonb;
  s public.job_schedules;
begin
  -- only what a handler may say, in one form: paused is the operators' word, and nobody's credits are declared away
  select to_jsonb(r) into wanted
  from jsonb_to_record('{"timezone": "UTC", "payload": {}, "priority": 0, "catch_up": "last"}' || declare_schedule.schedule)
    r (name text, cron text, timezone text, kind text, queue text, payload jsonb, items jsonb, priority int, catch_up text);
  -- LOCK: the schedule
  select * into s from public.job_schedules x where x.name = wanted ->> 'name' for no key update;
  if not found then
    perform processor.check_name('kind', wanted ->> 'kind', '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$');
    insert into public.job_schedules (name, cron, timezone, kind, queue, payload, items, priority, catch_up, declared)
    select r.name, r.cron, r.timezone, r.kind, r.queue, r.payload, r.items, r.priority, r.catch_up, wanted
    from jsonb_populate_record(null::public.job_schedules, wanted) r
    on conflict on constraint job_schedules_pkey do nothing; -- another worker declared it a moment ago
  elsif s.declared <> wanted then
    -- a value that still is what was declared follows the new declaration; one that an operator set stays
    select coalesce(jsonb_object_agg(c.key, c.value), '{}') into kept
    from jsonb_each(to_jsonb(s)) c
    where wanted ? c.key and c.value is distinct from s.declared -> c.key;
    update public.job_schedules x
    set (cron, timezone, kind, queue, payload, items, priority, catch_up) = (
        select r.cron, r.timezone, r.kind, r.queue, r.payload, r.items, r.priority, r.catch_up
        from jsonb_populate_record(null::public.job_schedules, wanted || kept) r
      ),
      declared = wanted
    where x.name = s.name;
  end if;
end
$$;
comment on function processor.declare_schedule(jsonb) is
  'Write a handler''s declaration to job_schedules, keeping what an operator changed.';

create or replace function processor.declare_schedules(schedules jsonb)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  -- LOCK: schedules, by name
  perform processor.declare_schedule(d)
  from jsonb_array_elements(coalesce(nullif(declare_schedules.schedules, 'null'), '[]')) d
  order by d ->> 'name';
  -- a new worker may be able to compute what the others could not
  update public.job_schedules s set problem = null
  from (
    select x.name from public.job_schedules x where x.next_run_at is null and x.problem is not null
    order by x.name for no key update
  ) l
  where s.name = l.name;
end
$$;
comment on function processor.declare_schedules(jsonb) is
  'What register_worker does with the schedules that a worker declares; null: none.';
