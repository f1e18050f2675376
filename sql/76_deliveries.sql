-- Delivering: what the handler of webhook.deliver asks before a try and reports after it. The waits that an endpoint's rate_limit or
-- its open circuit ask for are snoozes, which cost no attempt.
--
-- LOCK: job (read only), delivery, endpoint, its tokens. Nothing else locks an endpoint together with anything.

create or replace function processor.webhook_tokens(e public.webhook_endpoints, moment timestamptz)
returns double precision
language sql
stable
set search_path = '', pg_temp
as $$
  -- a full bucket to begin with
  select coalesce((
    select processor.refill(t.tokens, t.counted_at, e.rate_limit, e.rate_period, webhook_tokens.moment)
    from processor.webhook_tokens t where t.endpoint_id = e.id
  ), e.rate_limit)
$$;
comment on function processor.webhook_tokens(public.webhook_endpoints, timestamptz) is
  'How many tries to an endpoint with a rate_limit may begin at a moment; negative: so many wait for a token that is theirs.';

create or replace function processor.take_webhook_token(e public.webhook_endpoints, moment timestamptz)
returns timestamptz
language plpgsql
set search_path = '', pg_temp
as $$
declare
  remaining constant double precision := processor.webhook_tokens(e, take_webhook_token.moment) - 1;
begin
  -- LOCK: the caller holds the endpoint
  insert into processor.webhook_tokens as t (endpoint_id, tokens, counted_at)
  values (e.id, remaining, take_webhook_token.moment)
  on conflict (endpoint_id) do update set tokens = excluded.tokens, counted_at = excluded.counted_at;
  return take_webhook_token.moment + greatest(0, -remaining - 1e-9) * e.rate_period / e.rate_limit; -- sums of fractions are not exact
end
$$;
comment on function processor.take_webhook_token(public.webhook_endpoints, timestamptz) is
  'Take a token from an endpoint''s bucket, and say when it is there: whoever has to wait has a place in the line, so that those who wait '
  'do not all come back for each token.';

create or replace function processor.webhook_wait(until timestamptz, moment timestamptz, reason text)
returns jsonb
language sql
volatile
set search_path = '', pg_temp
as $$
  -- at most a quarter of an hour, as a limit may be lifted or a circuit be closed meanwhile; and not all at once
  select jsonb_build_object('go', false, 'reason', webhook_wait.reason, 'wait_seconds', round((
    least(900, greatest(0, extract(epoch from webhook_wait.until - webhook_wait.moment)))
    * case webhook_wait.reason when 'circuit_open' then 1 + random() / 10 else 1 end + 0.05)::numeric, 3))
$$;
comment on function processor.webhook_wait(timestamptz, timestamptz, text) is 'The answer that a try has to wait.';

create or replace function public.begin_delivery(worker_id uuid, job_id uuid, attempt int)
returns jsonb
language plpgsql
security definer -- the worker's role has no right to read secrets
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  j record;
  e public.webhook_endpoints;
  d processor.webhook_deliveries;
  probing boolean := false;
begin
  -- THE FENCE: still running, by this worker, in this attempt
  select x.created_at, x.queue, x.failures into j from public.jobs x
  where x.id = begin_delivery.job_id and x.kind = 'webhook.deliver' and x.status = 'processing'
    and x.worker_id = begin_delivery.worker_id and x.attempt = begin_delivery.attempt;
  if not found then
    return jsonb_build_object('go', false, 'stale', true);
  end if;
  perform processor.note_deliveries(array[begin_delivery.job_id]); -- a retry was made without
  -- LOCK: the delivery
  select * into d from processor.webhook_deliveries x where x.job_id = begin_delivery.job_id for no key update;
  select * into e from public.webhook_endpoints x where x.id = d.endpoint_id;
  if not found or not e.enabled then
    return jsonb_build_object('go', false, 'gone', true, 'reason', case when e.id is null then 'removed' else 'disabled' end);
  end if;

  if d.attempt is distinct from begin_delivery.attempt then -- else its answer was lost, and it is the same again
    if e.rate_limit is not null or e.opened_until is not null then
      -- LOCK: the endpoint
      select * into e from public.webhook_endpoints x where x.id = d.endpoint_id for no key update;
      if e.opened_until > moment then
        -- waiting costs no attempt, so it must end by the clock: when a day, or all retries of the queue, would have been over
        if j.created_at < moment - greatest(interval '1 day',
          (select sum(r) from public.job_queues q cross join unnest(q.retry_delays) r where q.name = j.queue))
        then
          return jsonb_build_object('go', false, 'gone', true, 'reason', 'expired');
        end if;
        return processor.webhook_wait(e.opened_until, moment, 'circuit_open');
      end if;
      if e.rate_limit is not null then
        if d.due_at is null then
          d.due_at := processor.take_webhook_token(e, moment);
          update processor.webhook_deliveries x set due_at = d.due_at where x.job_id = d.job_id;
        end if;
        if d.due_at > moment then
          return processor.webhook_wait(d.due_at, moment, 'rate_limited');
        end if;
      end if;
      if e.opened_until is not null then
        -- half open: this one tries, the others wait until it has ended, or its worker is lost with it
        probing := true;
        update public.webhook_endpoints x set opened_until = moment + e.timeout + interval '30 seconds' where x.id = e.id;
      end if;
    end if;
    update processor.webhook_deliveries x
    set attempt = begin_delivery.attempt, probe = probing, due_at = null, begun_at = moment, ended_at = null, http_status = null,
      seconds = null
    where x.job_id = d.job_id;
  end if;
  return jsonb_build_object('go', true, 'url', e.url, 'timeout_seconds', extract(epoch from e.timeout), 'allow_http', e.allow_http,
    'retry_seconds', extract(epoch from processor.retry_delay(j.queue, j.failures + 1)), 'secrets', (
      select jsonb_agg(s.secret order by s.id desc) from processor.webhook_secrets s
      where s.endpoint_id = e.id and (s.expires_at is null or s.expires_at > moment)
    ));
end
$$;
comment on function public.begin_delivery(uuid, uuid, int) is
  'Ask before a try of a delivery that the worker holds: {"go": true, "url", "secrets", "timeout_seconds", "allow_http", '
  '"retry_seconds"}, the current secret first; or {"go": false} with "wait_seconds" and "reason" (rate_limited, circuit_open): '
  'snooze; or "gone" and "reason" (removed, disabled, expired: the circuit is open and it is more than a day old): give up; '
  'or "stale": not the worker''s.';

create or replace function processor.circuit_wait(times_opened int)
returns interval
language sql
immutable
set search_path = '', pg_temp
as $$
  select least(interval '1 hour', interval '1 minute' * 2 ^ least(circuit_wait.times_opened, 6))
$$;
comment on function processor.circuit_wait(int) is
  'How long a circuit stays open that has opened so often before: 1, 2, 4, 8, 16 and 32 minutes, then an hour.';

create or replace function public.end_delivery(worker_id uuid, job_id uuid, attempt int, succeeded boolean, status int default null,
  error text default null, seconds double precision default null)
returns void
language plpgsql
security definer -- the worker's role has no right to write tables
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  moment constant timestamptz := processor.now();
  d processor.webhook_deliveries;
begin
  -- LOCK: the delivery. THE FENCE: still running, by this worker, in this attempt, whose try has not ended
  select * into d from processor.webhook_deliveries x
  where x.job_id = end_delivery.job_id and x.attempt = end_delivery.attempt and x.ended_at is null and exists (
    select from public.jobs j
    where j.id = x.job_id and j.status = 'processing' and j.worker_id = end_delivery.worker_id and j.attempt = end_delivery.attempt
  )
  for no key update;
  if not found then
    return; -- repeated, or late: it changes nothing
  end if;
  update processor.webhook_deliveries x
  set ended_at = moment, http_status = end_delivery.status, seconds = end_delivery.seconds
  where x.job_id = d.job_id;
  -- LOCK: the endpoint
  if end_delivery.succeeded then
    update public.webhook_endpoints e
    set consecutive_failures = 0, times_opened = 0, opened_until = null, last_success_at = moment, last_status = end_delivery.status
    where e.id = d.endpoint_id;
    return;
  end if;
  update public.webhook_endpoints e
  set consecutive_failures = e.consecutive_failures + 1,
    last_failure_at = moment,
    last_status = end_delivery.status,
    last_error = left(coalesce(end_delivery.error, 'answered ' || end_delivery.status, 'no answer'), 500),
    enabled = e.enabled and end_delivery.status is distinct from 410, -- Gone: whoever was there wants no more
    -- what began before the circuit opened says nothing new
    times_opened = e.times_opened + o.opens::int,
    opened_until = case when o.opens then moment + processor.circuit_wait(e.times_opened) else e.opened_until end
  from (
    select x.id, d.probe or (x.opened_until is null and x.consecutive_failures >= 4) as opens
    from public.webhook_endpoints x where x.id = d.endpoint_id for no key update
  ) o
  where e.id = o.id;
end
$$;
comment on function public.end_delivery(uuid, uuid, int, boolean, int, text, double precision) is
  'Report how a try ended that begin_delivery() let go: status is the HTTP status, null without an answer. Five failures in a row open '
  'the endpoint''s circuit, for a minute, then twice as long each time, up to an hour; 410 Gone disables it. Repeated or late, it changes '
  'nothing.';
