-- Webhooks: whom to tell of what becomes of jobs. A delivery is a job itself, of queue webhooks, and is made in the transaction of
-- what it tells: none is lost, and none is about something that was rolled back. Workers with PROCESSOR_WEBHOOKS=true deliver.
--
-- An endpoint is read, never locked, by what makes deliveries; its counters are written by end_delivery() alone.

create table if not exists public.webhook_endpoints (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  url text not null,
  events text[] not null default '{*}',
  queues text[],
  kinds text[],
  owner_id uuid,
  enabled boolean not null default true,
  allow_http boolean not null default false,
  timeout interval not null default interval '15 seconds',
  rate_limit int,
  rate_period interval not null default interval '1 minute',
  description text not null default '',
  consecutive_failures int not null default 0,
  times_opened int not null default 0,
  opened_until timestamptz,
  last_success_at timestamptz,
  last_failure_at timestamptz,
  last_status int,
  last_error text,
  created_at timestamptz not null default processor.now(),
  updated_at timestamptz not null default processor.now(),
  constraint webhook_endpoints_name_is_taken unique (name),
  constraint webhook_endpoints_name_is_plain check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
  constraint webhook_endpoints_events_are_given check (cardinality(events) > 0),
  constraint webhook_endpoints_timeout_is_sane check (timeout between interval '1 second' and interval '30 seconds'),
  constraint webhook_endpoints_rate_is_sane check (
    rate_limit between 1 and 1000000000 and rate_period between interval '1 second' and interval '1 day'
  ),
  constraint webhook_endpoints_counters_are_not_negative check (consecutive_failures >= 0 and times_opened >= 0)
);
-- every end of a job looks whether anybody wants to hear of it
create index if not exists webhook_endpoints_enabled_idx on public.webhook_endpoints (id) where enabled;
comment on table public.webhook_endpoints is
  'Who is told of what becomes of jobs, by a signed POST. Operators change it at any time; what is made before is delivered to what the '
  'row says then. Secrets are elsewhere: add_webhook() and rotate_webhook() show one once.';
comment on column public.webhook_endpoints.id is 'What deliveries name it by.';
comment on column public.webhook_endpoints.name is 'What people call it: lower case letters, digits, dot, dash, underscore.';
comment on column public.webhook_endpoints.url is
  'Where to: https, or http if allow_http. Which addresses it may lead to, the worker decides.';
comment on column public.webhook_endpoints.events is
  'What it wants: job.completed, job.partial, job.failed, job.cancelled, job.retrying (an attempt failed, another comes), or * for all.';
comment on column public.webhook_endpoints.queues is 'Only of jobs of these queues; null: of all.';
comment on column public.webhook_endpoints.kinds is 'Only of jobs of these kinds; null: of all.';
comment on column public.webhook_endpoints.owner_id is 'Only of jobs of this owner, who may read the row; null: of everybody''s.';
comment on column public.webhook_endpoints.enabled is
  'false: nothing is made for it, and what waits is given up. An answer of 410 Gone sets it.';
comment on column public.webhook_endpoints.allow_http is 'true: the URL may be http, which anybody on the way can read.';
comment on column public.webhook_endpoints.timeout is 'How long a try may take in all.';
comment on column public.webhook_endpoints.rate_limit is
  'How many tries may begin in each rate_period, and at once after a rest; null: no limit.';
comment on column public.webhook_endpoints.rate_period is 'The time that rate_limit is about.';
comment on column public.webhook_endpoints.description is 'What it is for, for people.';
comment on column public.webhook_endpoints.consecutive_failures is 'How many tries in a row have failed. At 5 the circuit opens.';
comment on column public.webhook_endpoints.times_opened is
  'How many times in a row the circuit has opened: each wait is twice the one before.';
comment on column public.webhook_endpoints.opened_until is
  'Not null: the circuit is open. Nothing is tried before this time; then one try is let through, and closes it if it succeeds.';
comment on column public.webhook_endpoints.last_success_at is 'When a try succeeded last.';
comment on column public.webhook_endpoints.last_failure_at is 'When a try failed last.';
comment on column public.webhook_endpoints.last_status is 'The HTTP status of the last answer; null: there was none.';
comment on column public.webhook_endpoints.last_error is 'Why the last failed try failed, at most 500 characters.';
comment on column public.webhook_endpoints.created_at is 'When it was added.';
comment on column public.webhook_endpoints.updated_at is 'When somebody changed what it wants or where it is.';

create table if not exists processor.webhook_secrets (
  id bigint generated always as identity primary key,
  endpoint_id uuid not null references public.webhook_endpoints (id) on delete cascade,
  secret text not null,
  created_at timestamptz not null default processor.now(),
  expires_at timestamptz,
  constraint webhook_secrets_are_standard check (secret ~ '^whsec_[A-Za-z0-9+/]{32,88}={0,2}$')
);
create index if not exists webhook_secrets_endpoint_idx on processor.webhook_secrets (endpoint_id, id desc);
comment on table processor.webhook_secrets is
  'What signs: the current secret of each endpoint, and earlier ones that still sign beside it. Only a worker that holds a delivery to the '
  'endpoint is told them.';
comment on column processor.webhook_secrets.id is 'Grows: the newest is the current one.';
comment on column processor.webhook_secrets.endpoint_id is 'Whose it is.';
comment on column processor.webhook_secrets.secret is 'whsec_ and the base64 of 32 random bytes, as Standard Webhooks has it.';
comment on column processor.webhook_secrets.created_at is 'When it was made.';
comment on column processor.webhook_secrets.expires_at is 'Until when it signs beside its successor; null: it is the current one.';

create table if not exists processor.webhook_tokens (
  endpoint_id uuid primary key references public.webhook_endpoints (id) on delete cascade,
  tokens double precision not null,
  counted_at timestamptz not null
);
comment on table processor.webhook_tokens is 'The token buckets of endpoints with a rate_limit.';
comment on column processor.webhook_tokens.endpoint_id is 'The endpoint.';
comment on column processor.webhook_tokens.tokens is
  'How many tries could begin at that moment; negative: so many wait for a token that is theirs.';
comment on column processor.webhook_tokens.counted_at is 'The moment.';

create table if not exists processor.webhook_deliveries (
  job_id uuid primary key references public.jobs (id) on delete cascade,
  endpoint_id uuid not null,
  message_id text not null,
  event text not null,
  subject_id uuid,
  due_at timestamptz,
  attempt int,
  probe boolean not null default false,
  begun_at timestamptz,
  ended_at timestamptz,
  http_status int,
  seconds double precision
);
create index if not exists webhook_deliveries_endpoint_idx on processor.webhook_deliveries (endpoint_id, job_id desc);
comment on table processor.webhook_deliveries is 'What is known of a delivery beside its job: what it is about, and its last try.';
comment on column processor.webhook_deliveries.job_id is 'The job that delivers.';
comment on column processor.webhook_deliveries.endpoint_id is 'Where to. The endpoint may be gone.';
comment on column processor.webhook_deliveries.message_id is
  'The same in every try and redelivery: receivers know by it what they have had.';
comment on column processor.webhook_deliveries.event is 'The type of the event.';
comment on column processor.webhook_deliveries.subject_id is 'The job that it is about; null: a test.';
comment on column processor.webhook_deliveries.due_at is
  'When the next try may begin by the endpoint''s rate_limit: its token is taken already.';
comment on column processor.webhook_deliveries.attempt is 'The attempt of the job in which the last try began; null: none has.';
comment on column processor.webhook_deliveries.probe is 'Whether that try is the one that an open circuit lets through.';
comment on column processor.webhook_deliveries.begun_at is 'When the last try began.';
comment on column processor.webhook_deliveries.ended_at is 'When it ended; null: it runs, or its worker was lost with it.';
comment on column processor.webhook_deliveries.http_status is 'What it was answered; null: nothing.';
comment on column processor.webhook_deliveries.seconds is 'How long it took.';

create or replace function processor.make_queues(names text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  made text[];
begin
  -- LOCK: all queues at once, by name: two workers that start together must not make them in opposite orders
  with made_now as (
    insert into public.job_queues (name)
    select processor.check_name('queue', n.name, '^[a-z0-9][a-z0-9_.-]{0,62}$')
    from (select distinct unnest(make_queues.names) as name) n
    order by n.name
    on conflict do nothing
    returning name
  )
  select array_agg(m.name) into made from made_now m;
  if 'webhooks' = any (made) then -- about 24 hours in all, as Standard Webhooks would have it
    update public.job_queues q
    set max_attempts = 8, timeout = interval '1 minute', retry_delays = array[interval '5 seconds', interval '5 minutes',
      interval '30 minutes', interval '2 hours', interval '5 hours', interval '8 hours', interval '8 hours']
    where q.name = 'webhooks';
  end if;
end
$$;
comment on function processor.make_queues(text[]) is
  'Make the queues that are not there. Queue webhooks is the schema''s own, and is made with delays for deliveries.';

create or replace function processor.check_webhook_url(url text, allow_http boolean)
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  perform processor.check_text('url', check_webhook_url.url, 2000);
  -- an authority without user and password, then a path and a query; where it leads to is known when it is resolved, by the worker
  if coalesce(check_webhook_url.url, '') !~* '^https?://[^/?#@\s\\[:cntrl:]]+(/[^?#\s\\[:cntrl:]]*)?(\?[^#\s\\[:cntrl:]]*)?$' then
    perform processor.fail('JQ006', 'url is not the URL of a webhook', '',
      'Give https://host/path, without user, password, fragment or blanks. The secret signs; it does not belong into the URL.');
  elsif check_webhook_url.url !~* '^https:' and not check_webhook_url.allow_http then
    perform processor.fail('JQ006', 'url is http, which anybody on the way can read', '', 'Give an https URL, or set allow_http.');
  end if;
end
$$;
comment on function processor.check_webhook_url(text, boolean) is
  'Raise JQ006 unless this looks like the URL of a webhook. The URL itself is not told: it may be a secret.';

create or replace function processor.check_webhook_filter(what text, wanted text[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
begin
  if cardinality(check_webhook_filter.wanted) not between 1 and 100 or array_ndims(check_webhook_filter.wanted) > 1
    or exists (select from unnest(check_webhook_filter.wanted) w where w is null or length(w) > 100)
  then
    perform processor.fail('JQ006', format('%s must be a plain list of 1 to 100 names', check_webhook_filter.what), '',
      'Leave it out, or say null, for all.');
  end if;
end
$$;
comment on function processor.check_webhook_filter(text, text[]) is 'Raise JQ006 unless this is a list of names; null passes.';

create or replace function processor.new_webhook_secret()
returns text
language sql
volatile
set search_path = '', pg_temp
as $$
  -- gen_random_uuid() is made for this; three have 366 random bits, of which 256 remain
  select 'whsec_' || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64')
$$;
comment on function processor.new_webhook_secret() is 'A secret as Standard Webhooks has it: whsec_ and the base64 of 32 random bytes.';

create or replace function public.guard_webhook()
returns trigger
language plpgsql
security definer -- whoever may write endpoints may not use schema processor
set search_path = '', pg_temp
as $$
begin
  if tg_when = 'AFTER' then
    insert into processor.webhook_secrets (endpoint_id, secret) values (new.id, processor.new_webhook_secret());
    perform processor.make_queues(array['webhooks']);
    insert into public.job_kinds (kind, queue, description)
    values ('webhook.deliver', 'webhooks', 'Deliver an event to a webhook endpoint. Made by the schema itself.')
    on conflict do nothing;
    return null;
  end if;
  perform processor.check_name('webhook', new.name, '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    processor.check_webhook_url(new.url, new.allow_http),
    processor.check_webhook_filter('events', new.events),
    processor.check_webhook_filter('queues', new.queues),
    processor.check_webhook_filter('kinds', new.kinds),
    processor.check_range('rate_limit', new.rate_limit, 1, 1000000000),
    processor.check_range('rate_period in seconds', extract(epoch from new.rate_period), 1, 86400),
    processor.check_range('timeout in seconds', extract(epoch from new.timeout), 1, 30);
  perform processor.check_choice('an event', e,
    array['*', 'job.completed', 'job.partial', 'job.failed', 'job.cancelled', 'job.retrying'])
  from unnest(new.events) e;
  if tg_op = 'UPDATE' then
    new.updated_at := processor.now();
    if new.url <> old.url or (new.enabled and not old.enabled) then -- what is known of the other is not known of this
      new.consecutive_failures := 0;
      new.times_opened := 0;
      new.opened_until := null;
    end if;
  end if;
  return new;
end
$$;
comment on function public.guard_webhook() is
  'What a row of webhook_endpoints must be, whoever writes it; a new one gets a secret, and the queue for its deliveries is made.';

create or replace trigger webhook_endpoints_guard
before insert or update of name, url, events, queues, kinds, owner_id, enabled, allow_http, timeout, rate_limit, rate_period
on public.webhook_endpoints
for each row execute function public.guard_webhook();
create or replace trigger webhook_endpoints_made
after insert on public.webhook_endpoints
for each row execute function public.guard_webhook();

create or replace function processor.draft_deliveries(verdicts processor.verdict[])
returns processor.draft[]
language plpgsql
set search_path = '', pg_temp
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
begin
  return (
    with told as materialized (
      select j.id, j.queue, j.kind, j.owner_id, j.failures,
        case when v.status = 'pending' then 'job.retrying' else 'job.' || v.status end as type
      from unnest(draft_deliveries.verdicts) v
      join public.jobs j on j.id = v.job_id
      -- a delivery is told to nobody
      where (v.status <> 'pending' or v.failed) and j.queue <> 'webhooks' and j.kind <> 'webhook.deliver'
    ),
    wanted as materialized (
      select t.id, t.type, e.id as endpoint_id, 'msg_' || replace(t.id::text, '-', '')
        || case when t.type = 'job.retrying' then '_' || t.failures else '' end as message_id
      from told t
      join public.webhook_endpoints e on e.enabled
        and (t.type = any (e.events) or '*' = any (e.events))
        and (e.queues is null or t.queue = any (e.queues))
        and (e.kinds is null or t.kind = any (e.kinds))
        and (e.owner_id is null or e.owner_id = t.owner_id)
    ),
    said as materialized ( -- once, for however many endpoints
      select w.id, jsonb_build_object('type', w.type, 'timestamp', moment, 'data', jsonb_build_object(
        'id', j.id, 'queue', j.queue, 'kind', j.kind, 'owner_id', j.owner_id, 'status', j.status, 'attempt', j.attempt, 'tags', j.tags,
        'error_code', j.error_code, 'error_message', j.error_message, 'items_total', j.items_total, 'items_done', j.items_done,
        'items_failed', j.items_failed, 'credits_held', j.credits_held, 'credits_captured', j.credits_captured,
        'credits_refunded', j.credits_refunded, 'created_at', j.created_at, 'started_at', j.started_at, 'finished_at', j.finished_at,
        'trace_context', j.trace_context
      ) || case
        when j.finished_at is null then jsonb_build_object('run_at', j.run_at)
        when j.result is null then '{}'
        when octet_length(j.result::text) > 65536 then '{"result_omitted": true}'
        else jsonb_build_object('result', j.result) end) as event
      from (select distinct x.id, x.type from wanted x) w
      join public.jobs j on j.id = w.id
    )
    select array_agg(jsonb_populate_record(null::processor.draft, jsonb_build_object(
      'n', d.n, 'depth', 0, 'id', processor.uuid7(), 'kind', 'webhook.deliver', 'queue', 'webhooks', 'priority', 0,
      'payload', jsonb_build_object('endpoint_id', d.endpoint_id, 'message_id', d.message_id, 'event', d.event),
      'items_total', 0, 'run_at', moment, 'created_at', moment, 'max_attempts', coalesce(q.max_attempts, 8), 'tags', '[]'::jsonb,
      'idempotency_key', format('webhook/%s/%s', d.endpoint_id, d.message_id), 'on_conflict', 'error', 'on_child_failure', 'continue',
      'units', 1, 'unit_price', 0, 'per_item', false, 'trace_context', d.event #> '{data,trace_context}'
    )) order by d.n)
    from (
      select row_number() over (order by w.id, w.endpoint_id) as n, w.endpoint_id, w.message_id, s.event
      from wanted w join said s on s.id = w.id
    ) d
    left join public.job_queues q on q.name = 'webhooks'
  );
end
$$;
comment on function processor.draft_deliveries(processor.verdict[]) is
  'A job for each endpoint that wants to hear of each verdict, which has been carried out; null: nobody does.';

create or replace function processor.note_deliveries(job_ids uuid[])
returns void
language sql
set search_path = '', pg_temp
as $$
  insert into processor.webhook_deliveries (job_id, endpoint_id, message_id, event, subject_id)
  select j.id, (j.payload ->> 'endpoint_id')::uuid, j.payload ->> 'message_id', j.payload #>> '{event,type}',
    case when j.payload #>> '{event,type}' like 'job.%' then (j.payload #>> '{event,data,id}')::uuid end
  from public.jobs j
  where j.id = any (note_deliveries.job_ids)
  on conflict do nothing
$$;
comment on function processor.note_deliveries(uuid[]) is 'Enter jobs of kind webhook.deliver into webhook_deliveries.';

create or replace function processor.announce(verdicts processor.verdict[])
returns void
language plpgsql
set search_path = '', pg_temp
as $$
declare
  drafts processor.draft[];
begin
  -- LOCK: none. An endpoint is only read, and the new jobs are nobody's, free, and their keys are of jobs that the caller holds
  drafts := processor.draft_deliveries(announce.verdicts);
  if drafts is not null then
    perform processor.note_deliveries(array(select w.job_id from processor.write_drafts(drafts) w where w.created));
  end if;
exception when others then
  if processor.is_server_trouble(sqlstate) then
    raise; -- all of it is to be repeated
  end if;
  -- what a job has come to must not be lost because nobody can be told of it
  raise warning 'webhooks are not told of % job(s): % (%)', cardinality(announce.verdicts), sqlerrm, sqlstate;
end
$$;
comment on function processor.announce(processor.verdict[]) is
  'Make a delivery for each endpoint that wants to hear of each verdict, which conclude() has carried out. Never fails because of an '
  'endpoint.';
