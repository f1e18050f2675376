-- Who has been told of what is wrong. Every machine of a fleet asks every few minutes; people hear of each thing once, again while it
-- lasts, and once more when it is over. So the database remembers what was told, and gives it out for telling to one machine at a time.

create table if not exists processor.told_alerts (
  alert text not null,
  about text not null,
  severity text not null,
  summary text not null,
  since timestamptz not null,
  reported boolean not null,
  seen_at timestamptz not null,
  told_at timestamptz,
  taken_at timestamptz,
  taken_by uuid,
  taken_as text,
  constraint told_alerts_pkey primary key (alert, about),
  constraint told_alerts_taken_together check (num_nulls(taken_at, taken_by, taken_as) in (0, 3))
);
comment on table processor.told_alerts is 'What is wrong, or was until somebody is told that it is over.';
comment on column processor.told_alerts.alert is 'Its name, as public.read_alerts() has it.';
comment on column processor.told_alerts.about is 'Which queue, worker, schedule, webhook or task; empty: all.';
comment on column processor.told_alerts.severity is 'critical or warning.';
comment on column processor.told_alerts.summary is 'What it means and what to do, as it was seen last.';
comment on column processor.told_alerts.since is 'From when on, or when it was first seen.';
comment on column processor.told_alerts.reported is 'Whether a machine found it; the database sees the others itself.';
comment on column processor.told_alerts.seen_at is 'When it was last found.';
comment on column processor.told_alerts.told_at is 'When somebody was last told; null: not yet.';
comment on column processor.told_alerts.taken_at is 'When it was given out for telling; null: it is not, or that was settled.';
comment on column processor.told_alerts.taken_by is 'The request that got it.';
comment on column processor.told_alerts.taken_as is 'firing or resolved: what that request was to tell.';

create or replace function processor.read_findings(findings jsonb)
returns table (alert text, severity text, about text, summary text)
language plpgsql
stable
rows 10
set search_path = '', pg_temp
as $$
#variable_conflict use_column
begin
  if jsonb_typeof(read_findings.findings) is distinct from 'array' or jsonb_array_length(read_findings.findings) > 20 then
    perform processor.fail('JQ006', 'findings is not an array of at most 20');
  end if;
  perform processor.check_name('alert', f.alert, '^Processor[A-Za-z]{1,50}$'),
    processor.check_choice('severity', coalesce(f.severity, 'null'), array['critical', 'warning'])
  from jsonb_to_recordset(read_findings.findings) f (alert text, severity text);
  return query
  select f.alert, f.severity, coalesce(left(f.about, 200), ''), coalesce(left(f.summary, 2000), '')
  from jsonb_to_recordset(read_findings.findings) f (alert text, severity text, about text, summary text);
end
$$;
comment on function processor.read_findings(jsonb) is
  'What a machine reports, as rows; JQ006 if it is not [{alert, severity, about, summary}].';

create or replace function processor.note_alerts(wrong jsonb)
returns void
language sql
set search_path = '', pg_temp
as $$
  insert into processor.told_alerts as t (alert, about, severity, summary, since, reported, seen_at)
  select w.alert, w.about, w.severity, w.summary, coalesce(w.since, processor.now()), w.reported, processor.now()
  from jsonb_to_recordset(note_alerts.wrong)
    w (alert text, about text, severity text, summary text, since timestamptz, reported boolean)
  on conflict on constraint told_alerts_pkey do update
  set severity = excluded.severity, summary = excluded.summary, reported = excluded.reported, seen_at = excluded.seen_at,
    -- it is back while people are told that it is over: that will be news
    told_at = case when t.taken_as = 'resolved' then null else t.told_at end
$$;
comment on function processor.note_alerts(jsonb) is 'Remember what is wrong now; since when stays what it was.';

create or replace function processor.due_alerts(wrong jsonb, request_id uuid, repeat_after interval)
returns table (alert text, about text, state text)
language sql
stable
set search_path = '', pg_temp
as $$
  select t.alert, t.about, j.state
  from processor.told_alerts t
  cross join lateral (
    select case
      when exists (
        select from jsonb_to_recordset(due_alerts.wrong) w (alert text, about text) where w.alert = t.alert and w.about = t.about
      ) then 'firing'
      -- another machine may not see what one of them has reported: it is over when nobody has for three rounds
      when t.reported and t.seen_at > processor.now() - interval '15 minutes' then 'firing'
      else 'resolved'
    end as state
  ) j
  -- whoever took it has died if it has not said within two minutes that it was told
  where (t.taken_at is null or t.taken_by = due_alerts.request_id or t.taken_at < processor.now() - interval '2 minutes')
    and (j.state = 'resolved' or t.told_at is null or t.told_at <= processor.now() - due_alerts.repeat_after)
  order by t.severity, t.alert, t.about
$$;
comment on function processor.due_alerts(jsonb, uuid, interval) is
  'What is to be told now: what is new, what has lasted since it was told for so long, and what is over.';

create or replace function public.take_alerts(request_id uuid, findings jsonb default '[]', max_depth int default 20,
  repeat_seconds double precision default 14400)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to look into schema processor
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  alone boolean;
  wrong jsonb;
  told jsonb;
begin
  if take_alerts.request_id is null then
    perform processor.fail('JQ006', 'request_id is null');
  end if;
  perform processor.check_range('repeat_seconds', coalesce(take_alerts.repeat_seconds, 0)::numeric, 60, 604800);
  -- LOCK: a word of its own, until the end of the transaction; whoever finds it taken leaves the telling to the other
  alone := pg_try_advisory_xact_lock(hashtextextended('processor.told_alerts', 0));
  select coalesce(jsonb_agg(to_jsonb(a) order by a.severity, a.alert, a.about), '[]') into wrong
  from (
    select distinct on (x.alert, x.about) x.* from (
      select r.alert, r.severity, r.about, r.summary, r.since, false as reported from public.read_alerts(take_alerts.max_depth) r
      union all
      select f.alert, f.severity, f.about, f.summary, null, true from processor.read_findings(take_alerts.findings) f
    ) x
    order by x.alert, x.about, x.since
  ) a;
  if not alone then
    return jsonb_build_object('wrong', wrong, 'tell', '[]'::jsonb);
  end if;
  perform processor.note_alerts(wrong);
  -- what went by before anybody heard of it
  delete from processor.told_alerts t using processor.due_alerts(wrong, take_alerts.request_id, interval '0') d
  where t.alert = d.alert and t.about = d.about and d.state = 'resolved' and t.told_at is null;
  with taken as (
    update processor.told_alerts t
    set taken_at = processor.now(), taken_by = take_alerts.request_id, taken_as = d.state
    from (
      select * from processor.due_alerts(wrong, take_alerts.request_id, make_interval(secs => take_alerts.repeat_seconds)) limit 100
    ) d
    where t.alert = d.alert and t.about = d.about
    returning t.alert, t.severity, t.about, t.summary, t.since, t.taken_as as state
  )
  select coalesce(jsonb_agg(to_jsonb(x) order by x.severity, x.alert, x.about), '[]') into told from taken x;
  return jsonb_build_object('wrong', wrong, 'tell', told);
end
$$;
comment on function public.take_alerts(uuid, jsonb, int, double precision) is
  'What is wrong now (wrong, with the caller''s own findings [{alert, severity, about, summary}]), and what of it the caller is to tell '
  'people (tell, each with its state firing or resolved): what nobody was told yet, what lasts and was told repeat_seconds ago, and what '
  'is over. It is given to one caller; the same request_id gets it again. Say settle_alerts() afterwards: two minutes later it is given '
  'to another.';

create or replace function public.settle_alerts(request_id uuid, told boolean)
returns int
language plpgsql
security definer -- the worker's role has no right to look into schema processor
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  settled int;
begin
  -- LOCK: the same word; whoever has it has it for a moment
  perform pg_advisory_xact_lock(hashtextextended('processor.told_alerts', 0));
  if settle_alerts.told then
    delete from processor.told_alerts t
    where t.taken_by = settle_alerts.request_id and t.taken_as = 'resolved' and t.told_at is not null;
  end if;
  update processor.told_alerts t
  set told_at = case when settle_alerts.told and t.taken_as = 'firing' then t.taken_at else t.told_at end,
    taken_at = null, taken_by = null, taken_as = null
  where t.taken_by = settle_alerts.request_id;
  get diagnostics settled = row_count;
  return settled;
end
$$;
comment on function public.settle_alerts(uuid, boolean) is
  'What take_alerts() gave to this request was told, or could not be: then it is due again at once. Returns how many go on.';
