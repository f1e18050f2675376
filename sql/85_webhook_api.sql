-- Webhooks for operators, in the SQL editor and over the API: add, look, rotate, redeliver. An endpoint is named by its name or its id.

create or replace function processor.find_webhook(endpoint text)
returns public.webhook_endpoints
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
begin
  -- LOCK: the endpoint
  select * into e from public.webhook_endpoints x
  where x.name = find_webhook.endpoint or x.id::text = lower(find_webhook.endpoint)
  order by (x.name = find_webhook.endpoint) desc limit 1 for no key update;
  if not found then
    perform processor.fail('JQ006', format('unknown webhook: %s', coalesce(left(find_webhook.endpoint, 100), 'null')), '',
      'Give the name or the id of an endpoint: see select name from public.webhook_endpoints.');
  end if;
  return e;
end
$$;
comment on function processor.find_webhook(text) is 'An endpoint by its name or its id, locked; JQ006 if there is none.';

create or replace function public.add_webhook(name text, url text, events text[] default '{*}', queues text[] default null,
  kinds text[] default null, owner_id uuid default null, rate_limit int default null, rate_seconds numeric default 60,
  timeout_seconds numeric default 15, allow_http boolean default false, description text default '')
returns jsonb
language plpgsql
security definer -- nobody but the owner of schema processor may read secrets
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
begin
  perform processor.check_operator();
  perform processor.check_range('rate_seconds', add_webhook.rate_seconds, 1, 86400),
    processor.check_range('timeout_seconds', add_webhook.timeout_seconds, 1, 30);
  insert into public.webhook_endpoints (name, url, events, queues, kinds, owner_id, rate_limit, rate_period, timeout, allow_http,
    description)
  values (add_webhook.name, add_webhook.url, coalesce(add_webhook.events, '{*}'), add_webhook.queues, add_webhook.kinds,
    add_webhook.owner_id, add_webhook.rate_limit, make_interval(secs => coalesce(add_webhook.rate_seconds, 60)::double precision),
    make_interval(secs => coalesce(add_webhook.timeout_seconds, 15)::double precision), coalesce(add_webhook.allow_http, false),
    coalesce(add_webhook.description, ''))
  on conflict on constraint webhook_endpoints_name_is_taken do nothing
  returning * into e;
  if e.id is null then
    perform processor.fail('JQ006', format('there is a webhook %s already', add_webhook.name), '',
      'Choose another name, or remove that one first: select public.remove_webhook(…).');
  end if;
  return to_jsonb(e) || jsonb_build_object('secret', (
    select s.secret from processor.webhook_secrets s where s.endpoint_id = e.id order by s.id desc limit 1
  ));
end
$$;
comment on function public.add_webhook(text, text, text[], text[], text[], uuid, int, numeric, numeric, boolean, text) is
  'Tell somebody of what becomes of jobs, for operators: the row of webhook_endpoints, and its secret, which is shown this once. The '
  'receiver checks signatures with it (Standard Webhooks).';

create or replace function public.remove_webhook(endpoint text)
returns public.webhook_endpoints
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
begin
  perform processor.check_operator();
  e := processor.find_webhook(remove_webhook.endpoint);
  delete from public.webhook_endpoints x where x.id = e.id;
  return e;
end
$$;
comment on function public.remove_webhook(text) is
  'The end of an endpoint, for operators: nothing is made for it, and what waits is given up when its turn comes.';

create or replace function public.enable_webhook(endpoint text)
returns public.webhook_endpoints
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
begin
  perform processor.check_operator();
  e := processor.find_webhook(enable_webhook.endpoint);
  update public.webhook_endpoints x
  set enabled = true, consecutive_failures = 0, times_opened = 0, opened_until = null
  where x.id = e.id
  returning * into e;
  return e;
end
$$;
comment on function public.enable_webhook(text) is
  'Tell an endpoint again, for operators; also closes its circuit, so that the next try comes at once.';

create or replace function public.disable_webhook(endpoint text)
returns public.webhook_endpoints
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
begin
  perform processor.check_operator();
  e := processor.find_webhook(disable_webhook.endpoint);
  update public.webhook_endpoints x set enabled = false where x.id = e.id returning * into e;
  return e;
end
$$;
comment on function public.disable_webhook(text) is
  'Tell an endpoint no more, for operators: nothing is made for it, and what waits is given up when its turn comes. To hold deliveries '
  'back for a while, pause queue webhooks.';

create or replace function public.rotate_webhook(endpoint text, overlap_seconds numeric default 86400)
returns jsonb
language plpgsql
security definer -- nobody but the owner of schema processor may read secrets
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  until timestamptz;
  e public.webhook_endpoints;
  made text;
begin
  perform processor.check_operator();
  perform processor.check_range('overlap_seconds', coalesce(rotate_webhook.overlap_seconds, 86400), 0, 2592000);
  until := moment + make_interval(secs => coalesce(rotate_webhook.overlap_seconds, 86400)::double precision);
  e := processor.find_webhook(rotate_webhook.endpoint);
  delete from processor.webhook_secrets s where s.endpoint_id = e.id and s.expires_at <= moment;
  update processor.webhook_secrets s set expires_at = least(s.expires_at, until) where s.endpoint_id = e.id;
  insert into processor.webhook_secrets (endpoint_id, secret) values (e.id, processor.new_webhook_secret()) returning secret into made;
  return jsonb_build_object('id', e.id, 'name', e.name, 'secret', made, 'previous_valid_until', until);
end
$$;
comment on function public.rotate_webhook(text, numeric) is
  'A new secret for an endpoint, for operators: it is shown this once, and signs from now on. The one before signs beside it for '
  'overlap_seconds (a day; 0: no longer), in which the receiver takes the new one.';

create or replace function processor.redeliver_webhook(job_id uuid)
returns public.jobs
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  last public.jobs;
  later uuid;
begin
  select * into last from public.jobs j where j.id = redeliver_webhook.job_id and j.kind = 'webhook.deliver';
  if not found then
    perform processor.fail('JQ008', format('delivery not found: %s', redeliver_webhook.job_id), '',
      'Give the id of a job of kind webhook.deliver: see select job_id from public.read_webhook_deliveries().');
  end if;
  loop -- what was redelivered before is not redelivered again, but its last repetition
    select max(j.id::text)::uuid into later from public.jobs j where j.retry_of = last.id;
    exit when later is null;
    select * into last from public.jobs j where j.id = later;
  end loop;
  if last.finished_at is null then
    return last; -- it is on its way
  end if;
  if not exists (select from public.webhook_endpoints e where e.id::text = last.payload ->> 'endpoint_id' and e.enabled) then
    perform processor.fail('JQ009', 'the endpoint of this delivery is disabled or removed', '', 'Enable it first.');
  end if;
  -- LOCK: none on the old job, which being terminal cannot change
  select a.job_id into later
  from processor.add_jobs(
    jsonb_build_array(case when last.status = 'completed' then processor.whole_repetition(last) else processor.repetition(last) end),
    internal => true) a;
  perform processor.note_deliveries(array[later]);
  select * into last from public.jobs j where j.id = later;
  return last;
end
$$;
comment on function processor.redeliver_webhook(uuid) is
  'Deliver once more what was given up, or has been delivered: a new job with the same message id, by which the receiver knows it. '
  'One that is on its way is returned as it is.';

create or replace function public.redeliver_webhook(job_id uuid)
returns public.jobs
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
  perform processor.check_operator();
  return processor.redeliver_webhook(redeliver_webhook.job_id);
end
$$;
comment on function public.redeliver_webhook(uuid) is
  'processor.redeliver_webhook() for operators: a delivery that ended once more, with the same message id.';

create or replace function public.test_webhook(endpoint text)
returns public.jobs
language plpgsql
security definer -- nobody but the owner of schema processor may use it
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  e public.webhook_endpoints;
  made public.jobs;
begin
  perform processor.check_operator();
  e := processor.find_webhook(test_webhook.endpoint);
  if not e.enabled then
    perform processor.fail('JQ009', format('webhook %s is disabled', e.name), '', 'Enable it first.');
  end if;
  select a.job_id into made.id
  from processor.add_jobs(jsonb_build_array(jsonb_build_object('kind', 'webhook.deliver', 'queue', 'webhooks', 'payload',
    jsonb_build_object('endpoint_id', e.id, 'message_id', 'msg_' || replace(processor.uuid7()::text, '-', ''), 'event', jsonb_build_object(
      'type', 'webhook.test', 'timestamp', processor.now(), 'data', jsonb_build_object('endpoint', e.name))))),
    internal => true) a;
  perform processor.note_deliveries(array[made.id]);
  select * into made from public.jobs j where j.id = made.id;
  return made;
end
$$;
comment on function public.test_webhook(text) is
  'Send an endpoint an event of type webhook.test, for operators, whatever events it wants: returns the job that delivers it.';

create or replace view processor.webhook_health with (security_invoker = on) as
with moment as materialized (select processor.now() as now),
open as materialized (
  select d.endpoint_id, count(*) as waiting, min(j.created_at) as oldest
  from public.jobs j join processor.webhook_deliveries d on d.job_id = j.id
  where j.status in ('pending', 'processing') and j.queue = 'webhooks'
  group by 1
),
dead as materialized (
  select d.endpoint_id, count(*) as given_up
  from moment m
  join public.jobs j on j.queue = 'webhooks' and j.status in ('failed', 'cancelled')
    and j.finished_at between m.now - interval '1 day' and m.now
  join processor.webhook_deliveries d on d.job_id = j.id
  group by 1
)
select e.id, e.name, e.url, e.events, e.queues, e.kinds, e.owner_id, e.description,
  case
    when not e.enabled then 'disabled'
    when e.opened_until is not null then 'circuit_open'
    when e.consecutive_failures > 0 then 'failing'
    when e.last_success_at is null then 'new'
    else 'ok'
  end as state,
  coalesce(o.waiting, 0) as waiting, m.now - o.oldest as oldest_age, coalesce(g.given_up, 0) as given_up_last_day,
  e.consecutive_failures, e.opened_until, e.last_success_at, e.last_failure_at, e.last_status, e.last_error, e.rate_limit, e.rate_period,
  s.secrets
from moment m
cross join public.webhook_endpoints e
left join open o on o.endpoint_id = e.id
left join dead g on g.endpoint_id = e.id
cross join lateral (
  select count(*) as secrets from processor.webhook_secrets x
  where x.endpoint_id = e.id and (x.expires_at is null or x.expires_at > m.now)
) s;
comment on view processor.webhook_health is 'Whether webhooks arrive: one row per endpoint.';
comment on column processor.webhook_health.id is 'The endpoint.';
comment on column processor.webhook_health.name is 'Its name.';
comment on column processor.webhook_health.url is 'Where it is.';
comment on column processor.webhook_health.events is 'What it wants.';
comment on column processor.webhook_health.queues is 'Of which queues; null: of all.';
comment on column processor.webhook_health.kinds is 'Of which kinds; null: of all.';
comment on column processor.webhook_health.owner_id is 'Of whose jobs; null: of everybody''s.';
comment on column processor.webhook_health.description is 'What it is for.';
comment on column processor.webhook_health.state is
  'ok; new: nothing was delivered yet; failing: the last try failed; circuit_open: nothing is tried before opened_until; disabled.';
comment on column processor.webhook_health.waiting is 'Deliveries that have not ended.';
comment on column processor.webhook_health.oldest_age is 'How long the oldest of them has been there.';
comment on column processor.webhook_health.given_up_last_day is
  'Deliveries given up in the last 24 hours: redeliver_webhook() repeats one.';
comment on column processor.webhook_health.consecutive_failures is 'As in webhook_endpoints.';
comment on column processor.webhook_health.opened_until is 'As in webhook_endpoints.';
comment on column processor.webhook_health.last_success_at is 'As in webhook_endpoints.';
comment on column processor.webhook_health.last_failure_at is 'As in webhook_endpoints.';
comment on column processor.webhook_health.last_status is 'As in webhook_endpoints.';
comment on column processor.webhook_health.last_error is 'As in webhook_endpoints.';
comment on column processor.webhook_health.rate_limit is 'As in webhook_endpoints.';
comment on column processor.webhook_health.rate_period is 'As in webhook_endpoints.';
comment on column processor.webhook_health.secrets is 'How many secrets sign: 2 while one is rotated.';

create or replace function public.read_webhooks()
returns table (id uuid, name text, url text, events text[], queues text[], kinds text[], owner_id uuid, description text, state text,
  waiting bigint, oldest_seconds double precision, given_up_last_day bigint, consecutive_failures int, opened_until timestamptz,
  last_success_at timestamptz, last_failure_at timestamptz, last_status int, last_error text, rate_limit int,
  rate_seconds double precision, secrets bigint)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
rows 20
set search_path = '', pg_temp
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
begin
  perform processor.check_operator();
  return query
  select h.id, h.name, h.url, h.events, h.queues, h.kinds, h.owner_id, h.description, h.state, h.waiting,
    extract(epoch from h.oldest_age)::double precision, h.given_up_last_day, h.consecutive_failures, h.opened_until, h.last_success_at,
    h.last_failure_at, h.last_status, h.last_error, h.rate_limit, extract(epoch from h.rate_period)::double precision, h.secrets
  from processor.webhook_health h
  order by h.name;
end
$$;
comment on function public.read_webhooks() is 'processor.webhook_health for operators: who is told, and whether it arrives.';

create or replace function public.read_webhook_deliveries(endpoint text default null, statuses text[] default null,
  before uuid default null, "limit" int default 20)
returns table (job_id uuid, webhook text, message_id text, event text, subject_id uuid, status text, attempt int, failures int,
  max_attempts int, run_at timestamptz, created_at timestamptz, finished_at timestamptz, http_status int, seconds double precision,
  error_code text, error_message text, retry_of uuid)
language plpgsql
stable
security definer -- nobody but the owner of schema processor may use it
rows 20
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
-- "limit" is a keyword and the name that callers know: @plpgsql_check_options: other_warnings = off
declare
  wanted uuid;
begin
  perform processor.check_operator();
  perform processor.check_range('limit', coalesce(read_webhook_deliveries."limit", 0), 1, 500);
  perform processor.check_choice('status', s, array['pending', 'processing', 'completed', 'partial', 'failed', 'cancelled'])
  from unnest(read_webhook_deliveries.statuses) s;
  if read_webhook_deliveries.endpoint is not null then
    select x.id into wanted from public.webhook_endpoints x
    where x.name = read_webhook_deliveries.endpoint or x.id::text = lower(read_webhook_deliveries.endpoint);
    if not found then -- one that was removed is known by its id
      select x.endpoint_id into wanted from processor.webhook_deliveries x
      where x.endpoint_id::text = lower(read_webhook_deliveries.endpoint) limit 1;
    end if;
    if wanted is null then
      perform processor.fail('JQ006', format('unknown webhook: %s', left(read_webhook_deliveries.endpoint, 100)), '',
        'Give the name or the id of an endpoint: see select name from public.webhook_endpoints.');
    end if;
  end if;
  return query
  select d.job_id, coalesce(e.name, d.endpoint_id::text), d.message_id, d.event, d.subject_id, j.status, j.attempt, j.failures,
    j.max_attempts, j.run_at, j.created_at, j.finished_at, d.http_status, d.seconds, j.error_code, j.error_message, j.retry_of
  from processor.webhook_deliveries d
  join public.jobs j on j.id = d.job_id
  left join public.webhook_endpoints e on e.id = d.endpoint_id
  where (wanted is null or d.endpoint_id = wanted)
    and (read_webhook_deliveries.before is null or d.job_id < read_webhook_deliveries.before)
    and (read_webhook_deliveries.statuses is null or j.status = any (read_webhook_deliveries.statuses))
  order by d.job_id desc
  limit read_webhook_deliveries."limit";
end
$$;
comment on function public.read_webhook_deliveries(text, text[], uuid, int) is
  'Deliveries for operators, the newest first: of one endpoint (by name or id) or of all. before: the last job_id of the page before. '
  'limit: 1 to 500. http_status and seconds are those of the last try.';
