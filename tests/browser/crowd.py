"""A user with a great many jobs, for a test and for the benchmark: one by one they would take minutes."""

import asyncpg

FILL = """
with made as (
  select n, clock_timestamp() - make_interval(secs => ($2 - n) * 0.5) as at, n % 10 = 0 as fails
  from generate_series(1, $2) n
), numbered as (
  select m.*, encode(int8send(((extract(epoch from m.at) * 1000)::bigint << 16) | 28672 | (m.n % 4096))
    || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid as id
  from made m
)
insert into public.jobs (id, queue, kind, owner_id, status, payload, result, attempt, max_attempts, progress,
  created_at, run_at, started_at, finished_at, updated_at, error_code, error_message)
select id, 'default', 'crowd', $1, case when fails then 'failed' else 'completed' end, '{}', '{}', 1, 4, 1,
  at, at, at, at, at,
  case when fails then 'UPSTREAM_TIMEOUT' end, case when fails then 'no answer in 30 s' end
from numbered order by n
"""


async def fill(admin: asyncpg.Connection, owner_id: str, jobs: int) -> None:
    """Give somebody so many ended jobs, half a second apart, a tenth of them failed."""
    await admin.execute("insert into public.job_queues (name) values ('default') on conflict do nothing")
    await admin.execute(FILL, owner_id, jobs, timeout=120)
    await admin.execute("analyze public.jobs")
