-- Schedules at work: what is due, which jobs that makes, and what operators can do and see.

create or replace function processor.next_schedule_at()
returns timestamptz
language plpgsql -- keeps its plan between calls
stable
set search_path = '', pg_temp
as $$
begin
  if exists (select from public.job_schedules s where not s.paused and s.next_run_at is null and s.problem is null) then
    return processor.now();
  end if;
  return (select min(s.next_run_at) from public.job_schedules s where not s.paused);
end
$$;
comment on function processor.next_schedule_at() is
  'When a worker should next call run_due_schedules(): the past means now, null means that there is nothing to do.';

create or replace function processor.scheduled_job(schedule public.job_schedules, tick timestamptz default null)
returns jsonb
language plpgsql
immutable
set search_path = '', pg_temp
as $$
declare
  tick_name constant text := replace(
    to_char(scheduled_job.tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000', '');
begin
  return jsonb_build_object(
    'kind', schedule.kind,
    'payload', schedule.payload,
    'items', schedule.items,
    'queue', schedule.queue,
    'priority', schedule.priority,
    'owner_id', schedule.owner_id,
    'idempotency_key', 'schedule:' || schedule.name || ':' || tick_name,
    'tags', array_remove(array['schedule:' || schedule.name, 'tick:' || tick_name], null)
  );
end
$$;
comment on function processor.scheduled_job(public.job_schedules, timestamptz) is
  'A schedule''s job as create_jobs takes it, for one tick; null: for no tick, as often as asked.';

create or replace function processor.plan_ticks(names text[], ticks jsonb, room int, failed jsonb)
returns table (name text, steps int, next_run_at timestamptz, problem text, jobs jsonb)
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  planned int := 0;
  wanted boolean;
  s public.job_schedules;
  t record;
begin
  -- LOCK: the caller holds the schedules. Those that had a problem come first: if they still have it, that is found at once
  for s in select * from public.job_schedules x where x.name = any (plan_ticks.names) order by x.problem is null, x.name loop
    name := s.name;
    steps := 0;
    next_run_at := s.next_run_at;
    problem := null;
    jobs := '[]'::jsonb;
    for t in
      select (e.value ->> 'tick')::timestamptz as tick, (e.value ->> 'next')::timestamptz as next,
        left(e.value ->> 'problem', 500) as problem
      from jsonb_array_elements(plan_ticks.ticks) with ordinality e
      where e.value ->> 'name' = s.name
      order by e.ordinality
    loop
      -- another worker has moved it, somebody has changed it, or its time has not come
      exit when s.paused or next_run_at is distinct from t.tick or t.tick > moment;
      exit when t.next <= t.tick or (t.next is null and t.problem is null);
      wanted := t.tick is not null and not plan_ticks.failed ? s.name and case s.catch_up
        when 'all' then true
        when 'last' then t.next is null or t.next > moment
        when 'none' then t.tick >= moment - interval '1 minute'
      end;
      if wanted then
        exit when planned >= plan_ticks.room;
        planned := planned + 1;
        jobs := jobs || processor.scheduled_job(s, t.tick);
      end if;
      steps := steps + 1;
      next_run_at := t.next;
      problem := t.problem;
    end loop;
    if steps > 0 then
      return next;
    end if;
  end loop;
end
$$;
comment on function processor.plan_ticks(text[], jsonb, int, jsonb) is
  'How far each schedule goes with these ticks, and which jobs that makes, at most room of them in all: for every tick that has come, '
  'or the last, or those that are not late, as catch_up says; for those that failed (by name) none. Ticks that are not a schedule''s '
  'next one are left alone.';

create or replace function public.run_due_schedules(worker_id uuid, ticks jsonb default '[]')
returns jsonb
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment timestamptz;
  names text[];
  room int := 100;
  plan jsonb;
  jobs jsonb;
  made jsonb := '[]'::jsonb;
  failed jsonb := '{}'::jsonb;
  first text;
  hint text;
begin
  if not exists (select from public.job_workers w where w.id = run_due_schedules.worker_id) then
    perform processor.fail('JQ011', format('unknown worker: %s', run_due_schedules.worker_id), '', 'Register again.');
  end if;
  if coalesce(jsonb_typeof(run_due_schedules.ticks), '') <> 'array' then
    perform processor.fail('JQ006', 'ticks must be an array', '',
      'Give [{"name", "tick", "next"}, …], or leave it out to learn what is due.');
  end if;
  perform processor.check_range('the number of ticks', jsonb_array_length(run_due_schedules.ticks), 0, 1000);
  -- LOCK: schedules, by name, waiting for none: one that another worker has in hand is run there. Then what add_jobs locks
  select array_agg(l.name) into names from (
    select s.name from public.job_schedules s
    where s.name in (select e.value ->> 'name' from jsonb_array_elements(run_due_schedules.ticks) e)
    order by s.name for no key update skip locked
  ) l;

  loop
    select coalesce(jsonb_agg(p), '[]') into plan from processor.plan_ticks(names, run_due_schedules.ticks, room, failed) p;
    select coalesce(jsonb_agg(j.value order by e.ordinality, j.ordinality), '[]'), min(e.value ->> 'name') into jobs, first
    from jsonb_array_elements(plan) with ordinality e
    cross join lateral jsonb_array_elements(e.value -> 'jobs') with ordinality j;
    exit when jobs = '[]';
    begin
      select coalesce(jsonb_agg(jsonb_build_object('id', a.job_id, 'created', a.created) order by a.n), '[]') into made
      from processor.add_jobs(jobs, internal => true) a;
      exit;
    exception when others then
      -- what passes by itself is tried again, by the caller or at the next call
      if left(sqlstate, 2) in ('08', '40', '53', '55', '57', '58', 'XX') then
        raise;
      end if;
      -- all or none: so one alone, which shows whether the problem is its own. If so the others go on without it, else they
      -- follow in the next calls
      if jsonb_array_length(jobs) > 1 then
        room := 1;
      else
        get stacked diagnostics hint = pg_exception_hint;
        failed := failed || jsonb_build_object(first, concat_ws('. ', sqlerrm, nullif(hint, '')));
        room := 100;
      end if;
    end;
  end loop;

  moment := processor.now();
  update public.job_schedules s
  set next_run_at = p.next_run_at,
    last_run_at = case when p.job_id is null then s.last_run_at else moment end,
    last_job_id = coalesce(p.job_id, s.last_job_id),
    problem = nullif(concat_ws('. ', p.problem, failed ->> s.name), '')
  from (
    select e.value ->> 'name' as name, (e.value ->> 'next_run_at')::timestamptz as next_run_at, e.value ->> 'problem' as problem,
      l.last, (made -> (l.last - 1) ->> 'id')::uuid as job_id
    from jsonb_array_elements(plan) with ordinality e
    cross join lateral ( -- its last job is the one up to which its own and those before it reach
      select case when e.value -> 'jobs' <> '[]' then sum(jsonb_array_length(b.value -> 'jobs')) end::int as last
      from jsonb_array_elements(plan) with ordinality b where b.ordinality <= e.ordinality
    ) l
  ) p
  where s.name = p.name;

  return jsonb_build_object(
    'now', moment,
    'created', coalesce((select jsonb_agg(m -> 'id') from jsonb_array_elements(made) m where (m -> 'created')::boolean), '[]'),
    'moved', jsonb_array_length(plan),
    'problems', coalesce((
      select jsonb_object_agg(s.name, s.problem)
      from jsonb_array_elements(plan) e join public.job_schedules s on s.name = e.value ->> 'name'
      where s.problem is not null
    ), '{}'),
    'next_at', processor.next_schedule_at(),
    'due', coalesce((
      select jsonb_agg(jsonb_build_object(
        'name', d.name, 'cron', d.cron, 'timezone', d.timezone, 'tick', d.next_run_at,
        'after', case when d.next_run_at is null then moment
          when d.catch_up = 'none' then greatest(d.next_run_at, moment - interval '1 minute')
          else d.next_run_at end
      ))
      from (
        select * from public.job_schedules s
        where not s.paused and (s.next_run_at <= moment or (s.next_run_at is null and s.problem is null))
        order by s.next_run_at nulls first, s.name
        limit 100
      ) d
    ), '[]')
  );
end
$$;
comment on function public.run_due_schedules(uuid, jsonb) is
  'Make the jobs whose time has come. ticks: [{"name", "tick", "next", "problem"}], in order: for a schedule whose next_run_at is tick '
  '(null: not computed yet) the next time is next, or cannot be computed because of problem. Returns what was made, how many schedules '
  'moved, why some made no job, what is due and must be computed first (the first time after "after", and on until now), and when '
  'to come back.';

create or replace function processor.find_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules;
begin
  -- LOCK: the schedule
  select * into s from public.job_schedules x where x.name = find_schedule.name for no key update;
  if not found then
    perform processor.fail('JQ006', format('unknown schedule: %s', coalesce(left(find_schedule.name, 100), 'null')), '',
      'See select schedule from processor.schedule_health.');
  end if;
  return s;
end
$$;
comment on function processor.find_schedule(text) is 'Lock a schedule, or raise JQ006.';

create or replace function processor.pause_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules := processor.find_schedule(pause_schedule.name);
begin
  update public.job_schedules x set paused = true where x.name = s.name returning * into s;
  return s;
end
$$;
comment on function processor.pause_schedule(text) is
  'The schedule makes no more jobs; those that it made go on: select * from processor.pause_schedule(''nightly'').';

create or replace function processor.resume_schedule(name text)
returns public.job_schedules
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules := processor.find_schedule(resume_schedule.name);
begin
  update public.job_schedules x set paused = false where x.name = s.name returning * into s;
  return s;
end
$$;
comment on function processor.resume_schedule(text) is
  'The end of pause_schedule(): it goes on with the next time to come, what was left out is not caught up.';

create or replace function processor.run_schedule(name text)
returns public.jobs
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  s public.job_schedules;
  job public.jobs;
begin
  -- LOCK: the schedule, then what add_jobs locks
  s := processor.find_schedule(run_schedule.name);
  -- internal: an operator who is a signed-in user makes jobs of others, too
  select a.job_id into job.id from processor.add_jobs(jsonb_build_array(processor.scheduled_job(s)), internal => true) a;
  select * into job from public.jobs j where j.id = job.id;
  update public.job_schedules x
  set last_run_at = processor.now(), last_job_id = job.id, problem = case when x.next_run_at is null then x.problem end
  where x.name = s.name;
  return job;
end
$$;
comment on function processor.run_schedule(text) is
  'Make a job of the schedule now, once more, paused or not; the plan stays: select id from processor.run_schedule(''nightly'').';

create or replace view processor.schedule_health with (security_invoker = on) as
with moment as materialized (select processor.now() as now),
judged as (
  select s.*, m.now,
    case
      when s.paused then 'paused'
      when s.problem is not null then 'problem'
      when s.next_run_at < m.now - interval '1 minute' then 'overdue'
      when s.next_run_at is null and s.created_at < m.now - interval '5 minutes' then 'overdue'
      when s.next_run_at is null then 'new'
      else 'ok'
    end as state
  from moment m cross join public.job_schedules s
)
select s.name as schedule, s.state,
  case s.state
    when 'paused' then format('resume_schedule(''%s'') lets it go on', s.name)
    when 'problem' then s.problem || case when s.next_run_at is null then ' (until somebody changes it, or a worker starts)' else '' end
    when 'overdue' then 'no worker has run it: see whether one is alive in worker_health'
    when 'new' then 'a worker computes its next time at its next heartbeat'
  end as why,
  s.kind, s.queue, s.cron, s.timezone, s.next_run_at, s.next_run_at - s.now as next_in,
  s.last_run_at, s.last_job_id, j.status as last_status, s.catch_up, s.declared <> '{}' as declared
from judged s
left join public.jobs j on j.id = s.last_job_id;
comment on view processor.schedule_health is
  'What runs when, and what does not: one row per schedule. select * from processor.schedule_health order by next_run_at.';
comment on column processor.schedule_health.schedule is 'Its name.';
comment on column processor.schedule_health.state is
  'ok, paused, problem (it made no job, or cannot run at all), overdue (no worker looks), new (not computed yet).';
comment on column processor.schedule_health.why is 'The same in words, with what to do; null where all is well.';
comment on column processor.schedule_health.kind is 'What its jobs are.';
comment on column processor.schedule_health.queue is 'Where they run; null: where the kind does.';
comment on column processor.schedule_health.cron is 'Its plan.';
comment on column processor.schedule_health.timezone is 'Whose clock the plan follows.';
comment on column processor.schedule_health.next_run_at is 'When it makes its next job.';
comment on column processor.schedule_health.next_in is 'In how long that is; negative: it is late.';
comment on column processor.schedule_health.last_run_at is 'When it last made a job.';
comment on column processor.schedule_health.last_job_id is 'That job.';
comment on column processor.schedule_health.last_status is 'What became of it; null: none yet, or pruned.';
comment on column processor.schedule_health.catch_up is 'What happens to times at which no worker was alive.';
comment on column processor.schedule_health.declared is 'Whether a handler declares it; false: somebody inserted it.';
