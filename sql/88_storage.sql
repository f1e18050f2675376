-- How the tables are stored: room for updates, where large values go, when to vacuum. The figures behind it stand in
-- ARCHITECTURE.md, and bench/ measures them again. One statement a table: the options keep their order, however often it runs.

-- LOCK: share update exclusive on each table: neither reads nor writes wait
alter table public.jobs set (
  -- progress and items change rows in place (HOT): room for a new version of a job beside the old one
  fillfactor = 70,
  -- a row of more than 2 kB keeps 512 bytes; payload and result move out, and a transition does not write them again
  toast_tuple_target = 512,
  -- a claim passes the index entries of jobs that were claimed before, until a vacuum takes them away: vacuum after some ten
  -- thousand transitions, not after a fifth of all jobs that were ever kept, and with the indexes every time
  autovacuum_vacuum_scale_factor = 0.001,
  autovacuum_vacuum_threshold = 20000,
  vacuum_index_cleanup = on,
  autovacuum_vacuum_cost_limit = 1000,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_analyze_threshold = 10000
);
alter table public.job_items set (
  fillfactor = 80,
  toast_tuple_target = 512,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_cost_limit = 1000
);
-- a handful of rows that change all day: their old versions go with the next look at the page, if they are in one page
alter table public.job_workers set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table public.job_queues set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
