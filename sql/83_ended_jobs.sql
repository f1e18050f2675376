-- Jobs that have ended, for daemons that tell others of it (over MQTT): each tells of what it ended itself, and one of them, the
-- reader, of all that nobody alive answers for: jobs cancelled before their claim, ended by a rescue, or by a worker that
-- died before it had told of them, or that tells nobody anything.

create table if not exists processor.event_reader (
  only_one boolean primary key default true,
  worker_id uuid,
  read_at timestamptz,
  told_at timestamptz not null,
  told_id uuid not null default '00000000-0000-0000-0000-000000000000',
  horizon timestamptz not null,
  next_horizon timestamptz not null,
  next_xid xid8 not null,
  answer bigint not null default 0,
  answer_at timestamptz,
  answer_id uuid,
  constraint event_reader_is_one_row check (only_one)
);
comment on table processor.event_reader is 'Who tells of the jobs that nobody else answers for, and how far that has come: one row.';
comment on column processor.event_reader.only_one is 'true.';
comment on column processor.event_reader.worker_id is 'The worker that reads.';
comment on column processor.event_reader.read_at is 'When it read last: after 60 s another may.';
comment on column processor.event_reader.told_at is 'All such jobs that ended before have been told of.';
comment on column processor.event_reader.told_id is 'Of those that ended at told_at, the ones up to this id.';
comment on column processor.event_reader.horizon is 'Every transaction that ended jobs before is over: nothing of then will turn up.';
comment on column processor.event_reader.next_horizon is 'The same, as soon as the transactions that are older than next_xid are over.';
comment on column processor.event_reader.next_xid is 'The transaction that wrote next_horizon.';

comment on column processor.event_reader.answer is 'The number of the last answer, by which its reader says that it has told of all in it.';
comment on column processor.event_reader.answer_at is 'The end of the last job in it, or the horizon if there were no more.';
comment on column processor.event_reader.answer_id is 'The last job in it of that time.';

create table if not exists processor.event_publishers (
  worker_id uuid primary key,
  told_at timestamptz not null,
  told_id uuid not null default '00000000-0000-0000-0000-000000000000',
  ended boolean not null default false
);
comment on table processor.event_publishers is
  'The workers that tell of the jobs they end, how far each has come; it is kept of the dead until the reader has caught up with it.';
comment on column processor.event_publishers.worker_id is 'The worker.';
comment on column processor.event_publishers.told_at is 'All its jobs that ended before have been told of.';
comment on column processor.event_publishers.told_id is 'Of those that ended at told_at, the ones up to this id.';
comment on column processor.event_publishers.ended is 'The reader has found it dead, and answers for it.';

create or replace function processor.elect_event_reader(worker_id uuid, answer bigint)
returns boolean
language plpgsql
set search_path = '', pg_temp
as $$
declare
  moment constant timestamptz := processor.now();
  r processor.event_reader;
begin
  insert into processor.event_reader (told_at, horizon, next_horizon, next_xid)
  values (moment, moment, moment, pg_current_xact_id()) on conflict (only_one) do nothing;
  select * into r from processor.event_reader;
  if r.worker_id <> elect_event_reader.worker_id and r.read_at > moment - interval '60 seconds'
    and exists (select from public.job_workers w where w.id = r.worker_id and w.lease_expires_at >= moment)
  then
    return false;
  end if;
  if r.worker_id = elect_event_reader.worker_id and r.answer = elect_event_reader.answer then
    -- what the last answer said has been told; who died since was not part of it
    update processor.event_publishers p set told_at = r.answer_at, told_id = r.answer_id
    where p.ended and (p.told_at, p.told_id) < (r.answer_at, r.answer_id);
    delete from processor.event_publishers p where p.ended and p.told_at >= r.horizon;
    if (r.answer_at, r.answer_id) > (r.told_at, r.told_id) then
      r.told_at := r.answer_at;
      r.told_id := r.answer_id;
    end if;
  end if;
  -- a job's end is visible when its transaction is over, and its time is from before: whatever began before us must be over.
  -- What somebody leaves open for minutes is not waited for
  if pg_snapshot_xmin(pg_current_snapshot()) >= r.next_xid or r.next_horizon < moment - interval '5 minutes' then
    r.horizon := r.next_horizon;
    r.next_horizon := moment;
    r.next_xid := pg_current_xact_id();
  end if;
  update processor.event_publishers p set ended = true
  where not p.ended and p.worker_id <> elect_event_reader.worker_id
    and not exists (select from public.job_workers w where w.id = p.worker_id and w.lease_expires_at >= moment);
  update processor.event_reader x
  set worker_id = elect_event_reader.worker_id, read_at = moment, told_at = r.told_at, told_id = r.told_id,
    horizon = r.horizon, next_horizon = r.next_horizon, next_xid = r.next_xid
  where x.only_one;
  return true;
end
$$;
comment on function processor.elect_event_reader(uuid, bigint) is
  'Whether this worker is the reader, which it becomes if none lives; what was in the last answer has been told if it says so.';

create or replace function public.read_ended_jobs(
  worker_id uuid, told_at timestamptz default null, answer bigint default null, own boolean default false,
  after_at timestamptz default null, after_id uuid default null, batch int default 0)
returns jsonb
language plpgsql
security definer -- the worker's role writes no tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_sort = off -- without statistics the planner would sort all that has ended instead of reading jobs_finished_idx
set jit = off
as $$
declare
  last_id constant uuid := uuid 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  moment constant timestamptz := processor.now();
  reading boolean := false;
  r processor.event_reader;
  me processor.event_publishers;
  since timestamptz;
  edge timestamptz := moment;
  found_jobs jsonb;
  count bigint;
  last record;
begin
  if not exists (select from public.job_workers w where w.id = read_ended_jobs.worker_id) then
    perform processor.fail('JQ011', format('unknown worker: %s', read_ended_jobs.worker_id), '', 'Register again.');
  end if;
  perform processor.check_range('batch', read_ended_jobs.batch, 0, 1000);
  insert into processor.event_publishers as p (worker_id, told_at)
  values (read_ended_jobs.worker_id, coalesce(read_ended_jobs.told_at, moment))
  on conflict on constraint event_publishers_pkey do update
  set told_at = greatest(p.told_at, excluded.told_at), ended = false
  where p.ended or p.told_at < read_ended_jobs.told_at;
  if read_ended_jobs.batch = 0 then
    return jsonb_build_object('now', moment, 'horizon', moment, 'reader', false, 'jobs', jsonb '[]');
  end if;
  -- LOCK: a word of its own, until the end of the transaction: who reads is decided by one at a time
  perform pg_advisory_xact_lock(hashtextextended('processor.read_ended_jobs', 0));
  reading := processor.elect_event_reader(read_ended_jobs.worker_id, read_ended_jobs.answer);
  select * into me from processor.event_publishers p where p.worker_id = read_ended_jobs.worker_id;
  if (read_ended_jobs.after_at, read_ended_jobs.after_id) > (me.told_at, me.told_id) then
    me.told_at := read_ended_jobs.after_at;
    me.told_id := read_ended_jobs.after_id;
  end if;
  if reading then
    select * into r from processor.event_reader;
    edge := r.horizon;
    select least(min(p.told_at), r.told_at) into since from processor.event_publishers p where p.ended;
  end if;
  if read_ended_jobs.own then
    since := least(since, me.told_at);
  end if;
  if since is null then -- nothing to tell
    return jsonb_build_object('now', moment, 'horizon', moment, 'reader', false, 'jobs', jsonb '[]');
  end if;
  since := greatest(since, moment - interval '7 days'); -- when it was switched off for long: what nobody waits for any more

  select jsonb_agg(jsonb_build_object(
      'id', e.id, 'queue', e.queue, 'kind', e.kind, 'owner_id', e.owner_id, 'worker_id', e.worker_id, 'status', e.status,
      'attempt', e.attempt, 'finished_at', e.finished_at, 'error_code', e.error_code, 'error_message', e.error_message,
      'items_total', e.items_total, 'items_done', e.items_done, 'items_failed', e.items_failed,
      'credits_captured', e.credits_captured, 'credits_refunded', e.credits_refunded, 'trace_context', e.trace_context
    ) order by e.finished_at, e.id), count(*)
  into found_jobs, count
  from (
    select x.* from processor.queue_names() n
    cross join lateral (
      select j.id, j.queue, j.kind, j.owner_id, j.worker_id, j.status, j.attempt, j.finished_at, j.error_code, j.error_message,
        j.items_total, j.items_done, j.items_failed, j.credits_captured, j.credits_refunded, j.trace_context
      from public.jobs j
      left join processor.event_publishers p on p.worker_id = j.worker_id
      where j.queue = n and j.finished_at is not null and j.finished_at >= since and j.finished_at <= edge
        and case
          when p.worker_id is null then reading and (j.finished_at, j.id) > (r.told_at, r.told_id)
          when p.worker_id = me.worker_id then read_ended_jobs.own and (j.finished_at, j.id) > (me.told_at, me.told_id)
          else reading and p.ended and (j.finished_at, j.id) > (p.told_at, p.told_id)
        end
      order by j.finished_at, j.id limit read_ended_jobs.batch
    ) x
    order by x.finished_at, x.id limit read_ended_jobs.batch
  ) e;
  if count = read_ended_jobs.batch then
    select (found_jobs -> -1 ->> 'finished_at')::timestamptz as at, (found_jobs -> -1 ->> 'id')::uuid as id into last;
  else
    select edge as at, last_id as id into last;
  end if;
  if reading then
    r.answer := r.answer + 1;
    update processor.event_reader x set answer = r.answer, answer_at = last.at, answer_id = last.id where x.only_one;
  end if;
  return jsonb_build_object('now', moment, 'horizon', edge, 'reader', reading, 'jobs', coalesce(found_jobs, '[]'), 'answer', r.answer,
    'after_at', last.at, 'after_id', last.id, 'more', count = read_ended_jobs.batch);
end
$$;
comment on function public.read_ended_jobs(uuid, timestamptz, bigint, boolean, timestamptz, uuid, int) is
  'A worker that tells of its jobs'' ends has done so for all before told_at. At most batch jobs that it is to tell of beside them, in the '
  'order of their ends: of those that nobody answers for if it is the reader, of its own if it wants them (it may have missed some). '
  'The next call says by the number of this answer that it has told of them, and gets the same again otherwise; of its own it gets those '
  'after (after_at, after_id).';
