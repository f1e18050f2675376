-- What happens in a database of version 3 before it is upgraded: jobs in every state, one half done by a living worker,
-- parents and children, checkpoints, lots that burn and expire, a refund, schedules, queues with every limit. Frozen.
do $$
declare
  alice constant uuid := 'a11ce000-0000-4000-8000-000000000001';
  bob constant uuid := 'b0b00000-0000-4000-8000-000000000002';
  worker constant uuid := '00000000-0000-4000-8000-00000000000a';
  job public.jobs;
  claimed json;
  report jsonb;
begin
  insert into public.job_queues (name, max_attempts, max_processing) values ('default', 2, 50);
  insert into public.job_queues (name, paused, max_processing, retry_delays) values ('slow', true, 3, '{1 s, 5 min}');
  insert into public.job_queues (name, rate_limit, rate_period) values ('metered', 60, interval '1 minute');
  insert into public.job_queues (name, max_processing_per_owner, max_pending_per_owner) values ('fair', 2, 100);
  insert into public.job_kinds (kind, queue, public, credits_per_item, description, payload_schema)
  values ('translate', 'default', true, 3, 'Translate a text', '{"type": "object", "properties": {"n": {"type": "integer"}}}');
  insert into public.job_kinds (kind, queue, public, credits_per_job) values ('render', 'fair', true, 10);
  insert into public.job_kinds (kind, queue) values ('echo', 'slow'), ('ping', 'metered');
  perform processor.grant_credits(alice, 1000, 'welcome', 'order-1');
  perform processor.grant_credits(alice, 50, 'by mistake', 'order-2');
  perform processor.grant_credits(alice, 20, 'trial', 'order-3', 10, processor.now() + interval '1 day');
  perform processor.grant_credits(bob, 100);
  perform processor.undo_grant(
    (select id from public.credit_entries where idempotency_key = 'order-2'), 'granted by mistake');
  insert into public.job_schedules (name, cron, timezone, kind, payload, catch_up)
  values ('nightly', '0 3 * * *', 'Europe/Berlin', 'echo', '{"days": 1}', 'all');
  insert into public.job_schedules (name, cron, kind, paused, next_run_at)
  values ('weekly', '0 6 * * MON', 'ping', true, timestamptz '2030-01-07 06:00:00+00');
  perform public.register_worker(jsonb_build_object('id', worker, 'name', 'old', 'schema_version', 3, 'slots', 100,
    'lease_seconds', 3600, 'queues', '["default", "fair", "metered"]'::jsonb, 'kinds', '[]'::jsonb, 'transport', 'polling'));
  update public.job_workers set kinds = '{translate,render,ping}';

  perform public.create_job('translate', '{"n": 1}', '["de", "fr", "it"]', owner_id => alice, tags => '{completed}');
  perform public.create_job('translate', '{"n": 2}', '["de", "fr"]', owner_id => alice, tags => '{partial}');
  perform public.create_job('translate', '{"n": 3}', '["de", "fr"]', owner_id => bob, tags => '{failed}');
  perform public.create_job('render', '{"n": 4}', owner_id => bob, tags => '{completed}');
  perform public.create_job('render', '{"n": 5}', owner_id => alice, tags => '{cancelled}');
  perform public.create_job('ping', '{"n": 6}', tags => '{retrying}', idempotency_key => 'six');
  perform public.create_job('translate', '{"n": 7}', '["de", "fr"]', owner_id => alice, tags => '{processing}');
  perform public.create_job('translate', '{"n": 8}', '["de"]', owner_id => alice, tags => '{waiting for children}',
    children => '[{"kind": "translate", "items": ["de"], "tags": ["child"]},
      {"kind": "render", "tags": ["last child"], "delay_seconds": 9000}]',
    on_child_failure => 'fail');
  claimed := public.claim_jobs(worker, gen_random_uuid(), array['default', 'fair', 'metered'], 100);
  for job in select * from public.jobs j where j.status = 'processing' order by j.id loop
    report := jsonb_build_object('id', job.id, 'attempt', 1);
    perform public.append_job_logs(worker, jsonb_build_array(report || '{"level": "info", "message": "began"}'));
    perform public.save_checkpoints(worker, jsonb_build_array(report || '{"name": "fetch", "result": {"pages": 3}}'));
    if job.tags = '{completed}' then
      perform public.finish_jobs(worker, jsonb_build_array(report || jsonb_build_object('outcome', 'done', 'result', 42,
        'items', (select jsonb_agg(jsonb_build_object('key', i.key, 'status', 'completed', 'result', 'good'))
          from public.job_items i where i.job_id = job.id))));
    elsif job.tags = '{partial}' then
      perform public.finish_jobs(worker, jsonb_build_array(report || '{"outcome": "done", "items": [
        {"key": "de", "status": "completed"}, {"key": "fr", "status": "failed", "error_code": "REJECTED"}]}'));
    elsif job.tags = '{failed}' then
      perform public.finish_jobs(worker, jsonb_build_array(report || '{"outcome": "fail", "error_code": "REJECTED"}'));
      perform public.retry_job(job.id);
    elsif job.tags = '{cancelled}' then
      perform public.cancel_job(job.id);
      perform public.finish_jobs(worker, jsonb_build_array(report || '{"outcome": "cancelled"}'));
    elsif job.tags = '{retrying}' then
      perform public.finish_jobs(worker, jsonb_build_array(report || '{"outcome": "retry", "error_code": "UPSTREAM_TIMEOUT"}'));
    else
      perform public.report_progress(worker, jsonb_build_array(report || '{"progress": 0.3, "message": "half way"}'));
      perform public.finish_items(worker, jsonb_build_array(report || '{"items": [{"key": "de", "status": "completed"}]}'));
    end if;
  end loop;
  perform processor.refund_credits(
    (select j.id from public.jobs j where j.kind = 'render' and j.tags = '{completed}'), 4, 'bad colours', 'support-1');
  perform public.create_job('translate', '{"n": 9}', '["de"]', owner_id => bob, tags => '{waiting}', unique_key => 'nine');
  perform public.create_job('render', '{"n": 10}', owner_id => alice, tags => '{later}', run_at => now() + interval '1 day');
  perform public.create_job('echo', '{"n": 11}', tags => '{paused}', priority => 5);
  perform public.cancel_job((public.create_job('echo', '{"n": 12}', tags => '{cancelled}')).id);
end
$$;
