-- What happens in a database of version 1 before it is upgraded: jobs in every state, one half done by a living
-- worker, credits granted, held, spent, given back and taken back, logs, a queue with settings of its own. Frozen.
do $$
declare
  alice constant uuid := 'a11ce000-0000-4000-8000-000000000001';
  bob constant uuid := 'b0b00000-0000-4000-8000-000000000002';
  worker constant uuid := '00000000-0000-4000-8000-00000000000a';
  job public.jobs;
  claimed jsonb;
  report jsonb;
begin
  insert into public.job_queues (name, max_attempts) values ('default', 2);
  insert into public.job_queues (name, paused, max_processing, retry_delays) values ('slow', true, 3, '{1 s, 5 min}');
  insert into public.job_kinds (kind, queue, public, credits_per_item) values ('translate', 'default', true, 3);
  insert into public.job_kinds (kind, queue, public, credits_per_job) values ('render', 'default', true, 10);
  insert into public.job_kinds (kind, queue) values ('echo', 'slow');
  perform processor.grant_credits(alice, 1000, 'welcome', 'order-1');
  perform processor.grant_credits(alice, 50, 'by mistake', 'order-2');
  perform processor.grant_credits(bob, 100);
  perform processor.undo_grant(
    (select id from public.credit_entries where idempotency_key = 'order-2'), 'granted by mistake');
  perform public.register_worker(jsonb_build_object('id', worker, 'name', 'old', 'schema_version', 1, 'slots', 100,
    'lease_seconds', 3600, 'queues', jsonb_build_array('default'), 'kinds', '[]'::jsonb));
  update public.job_workers set kinds = '{translate,render}';

  perform public.create_job('translate', '{"n": 1}', '["de", "fr", "it"]', owner_id => alice, tags => '{completed}');
  perform public.create_job('translate', '{"n": 2}', '["de", "fr"]', owner_id => alice, tags => '{partial}');
  perform public.create_job('translate', '{"n": 3}', '["de", "fr"]', owner_id => bob, tags => '{failed}');
  perform public.create_job('render', '{"n": 4}', owner_id => bob, tags => '{completed}');
  perform public.create_job('render', '{"n": 5}', owner_id => alice, tags => '{cancelled}');
  perform public.create_job('render', '{"n": 6}', tags => '{retrying}', idempotency_key => 'six');
  perform public.create_job('translate', '{"n": 7}', '["de", "fr"]', owner_id => alice, tags => '{processing}');
  claimed := public.claim_jobs(worker, gen_random_uuid(), array['default'], 100) -> 'jobs';
  for job in select * from public.jobs loop
    report := jsonb_build_object('id', job.id, 'attempt', 1);
    perform public.append_job_logs(worker, jsonb_build_array(report || '{"level": "info", "message": "began"}'));
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
  perform public.create_job('translate', '{"n": 8}', '["de"]', owner_id => bob, tags => '{waiting}', unique_key => 'eight');
  perform public.create_job('render', '{"n": 9}', owner_id => alice, tags => '{later}', run_at => now() + interval '1 day');
  perform public.create_job('echo', '{"n": 10}', tags => '{paused}', priority => 5);
  perform public.cancel_job((public.create_job('echo', '{"n": 11}', tags => '{cancelled}')).id);
end
$$;
