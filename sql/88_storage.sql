-- How the tables are stored: room for updates, where large values go, when to vacuum. ARCHITECTURE.md has the figures behind
-- it, and bench/ measures them again. One statement a table: the options keep their order, however often this runs.
-- Tables that are not named here are small or hardly change: PostgreSQL's defaults are right for them.

-- LOCK: share update exclusive on each table: neither reads nor writes wait
alter table public.jobs set (
  -- progress is written in place (HOT): room for new versions of jobs beside the old ones
  fillfactor = 70,
  -- of a row above 2 kB only 512 bytes stay: payload and result move out, and a transition does not write them again
  toast_tuple_target = 512,
  -- a claim passes the places in the index of all that was claimed since the last vacuum. So vacuum after some ten thousand
  -- transitions, not after a fifth of all that was ever kept, and the indexes each time
  autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_scale_factor = 0.001,
  vacuum_index_cleanup = on,
  autovacuum_vacuum_cost_limit = 1000,
  autovacuum_analyze_threshold = 10000,
  autovacuum_analyze_scale_factor = 0.02
);
-- items change in place as well; nothing looks for them but by their job
alter table public.job_items set (
  fillfactor = 80,
  toast_tuple_target = 512,
  autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_cost_limit = 1000
);
-- a handful of rows, changed all day: the next look at the page clears what was there before, if it all is on one page
alter table public.job_workers set (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
alter table processor.queue_tokens set (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
-- written once, and taken away with their job: as often as pruning leaves something
alter table public.job_logs set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
alter table public.credit_captures set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
alter table public.job_checkpoints set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
-- changed once, when it is closed
alter table public.credit_holds set (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.02);
-- the journal only grows, for ever: freeze it in small portions, not a fifth of it at once
alter table public.credit_entries set (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
