-- What Realtime may tell: the tables that frontends watch and that wake the workers. Safe to run twice.

do $$
declare
  t text;
begin
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
  foreach t in array array['jobs', 'job_items', 'job_logs', 'job_queues', 'job_workers', 'credit_accounts'] loop
    -- replica identity default, on purpose: an update carries the new row and the old key, which is all that
    -- wake-ups and frontends use; `full` would write every old payload to the WAL again, and a delete, to which
    -- Realtime applies no RLS, would show whole rows to strangers
    execute format('alter table public.%I replica identity default', t);
    if not exists (
      select from pg_catalog.pg_publication_tables p
      where p.pubname = 'supabase_realtime' and p.schemaname = 'public' and p.tablename = t
    ) then
      execute format('alter publication supabase_realtime add table public.%I', t);
    end if;
  end loop;
end
$$;

-- PostgREST learns of new functions
notify pgrst, 'reload schema';
