-- outside a transaction
-- What reads every job and every entry, while jobs run. Version 1 goes on working until the next file.

alter table public.jobs validate constraint jobs_children_add_up;
alter table public.jobs validate constraint jobs_on_child_failure_is_known;
alter table public.credit_entries validate constraint credit_entries_kind_is_known;
create index concurrently if not exists jobs_pending_idx on public.jobs (queue, kind, priority desc, run_at, id)
  where status = 'pending';
create index concurrently if not exists jobs_turns_idx on public.jobs (queue, owner_id, priority desc, run_at, id)
  where status = 'pending';
create index concurrently if not exists jobs_parent_idx on public.jobs (parent_id) where parent_id is not null;
create index concurrently if not exists jobs_suspects_idx on public.jobs (queue, priority desc, run_at, id)
  where status = 'pending' and crashes > 1;
