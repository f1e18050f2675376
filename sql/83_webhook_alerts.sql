-- Webhooks that do not arrive, in words, for read_alerts(); read_metrics() counts what is told here. Of an endpoint people read its
-- name and its host: the rest of its URL, and what its receiver says, may have a secret in it.

create or replace function processor.webhook_failing_since(e public.webhook_endpoints)
returns timestamptz
language sql
stable
set search_path = '', pg_temp
as $$
  -- the row does not say when the first try failed; but when a circuit opens again, the waits before are over
  select case when e.consecutive_failures > 0 then
    e.last_failure_at - (
      select coalesce(sum(processor.circuit_wait(n)), interval '0') from generate_series(0, e.times_opened - 2) n
    )
  end
$$;
comment on function processor.webhook_failing_since(public.webhook_endpoints) is
  'From when on, at the latest, nothing has succeeded; null: the last try did, or there was none.';

create or replace function processor.webhook_alerts()
returns table (alert text, severity text, about text, summary text, since timestamptz)
language plpgsql
stable
set search_path = '', pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off -- compiling takes longer than reading
as $$
#variable_conflict use_column
declare
  most constant int := 10000;
  moment constant timestamptz := processor.now();
begin
  return query
  with told as materialized (
    select e.*, format('%s (%s)', e.name, substring(e.url from '//([^/?]+)')) as label, processor.webhook_failing_since(e) as failing_since
    from public.webhook_endpoints e where e.enabled
  ),
  dead as materialized ( -- a day of a receiver that is down may be a million
    select j.id, j.finished_at from public.jobs j
    where j.queue = 'webhooks' and j.status in ('failed', 'partial') and j.finished_at between moment - interval '1 day' and moment
    -- as jobs_not_completed_idx has them: another one would go over all that were delivered
    order by j.finished_at desc, j.status desc limit most
  )
  select 'ProcessorWebhookFailing', 'warning', t.name,
    format('Webhook %s takes nothing, for %s at least: %s tries in a row have failed, the last %s. What is for it waits, and is given up '
      'after about a day. See why: processor webhooks show %s. When that is mended: processor webhooks enable %s, and it is tried at once.',
      t.label, date_trunc('second', moment - t.failing_since), t.consecutive_failures,
      coalesce('was answered ' || t.last_status, 'was not answered'), t.name, t.name),
    t.failing_since
  from told t where t.failing_since < moment - interval '10 minutes'
  union all
  select 'ProcessorWebhooksGivenUp', 'warning', t.name,
    format('%s messages for webhook %s were given up in the last day. See them: processor webhooks deliveries %s --status failed. Send '
      'one again: processor webhooks redeliver; or all: '
      'select * from processor.retry_failed(''webhooks'', processor.now() - interval ''1 day'').',
      case when g.messages < most then g.messages::text else most || ' or more' end, t.label, t.name),
    g.first_at
  from (
    select d.endpoint_id, count(*) as messages, min(x.finished_at) as first_at
    from dead x join processor.webhook_deliveries d on d.job_id = x.id
    -- that is another delivery now
    where not exists (select from public.jobs r where r.retry_of = x.id)
    group by 1
  ) g
  join told t on t.id = g.endpoint_id;
end
$$;
comment on function processor.webhook_alerts() is
  'Which enabled endpoints have taken nothing for 10 minutes, and to which messages were given up within a day and not sent again, of the '
  'last 10,000 that were.';
