"""A user with a great many jobs, made where making them one by one would take minutes. The benchmark uses it, too."""

import asyncpg

FILL = """
with made as (
  select n, clock_timestamp() - make_interval(secs => ($2 - n) * 0.5) as at from generate_series(1, $2) n
)
insert into public.jobs (id, queue, kind, owner_id, status, payload, result, attempt, max_attempts, created_at, run_at,
  started_at, finished_at, updated_at, progress, error_code, error_message)
select encode(int8send(((extract(epoch from at) * 1000)::bigint << 16) | 28672 | (n % 4096))
    || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid,
  'default', 'crowd', $1, case when n % 10 = 0 then 'failed' else 'completed' end, '{}', '{}', 1, 4, at, at, at, at, at, 1,
  case when n % 10 = 0 then 'UPSTREAM_TIMEOUT' end, case when n % 10 = 0 then 'no answer in 30 s' end
from made order by n
"""


async def fill(admin: asyncpg.Connection, owner_id: str, jobs: int) -> None:
    """Give somebody so many ended jobs, half a second apart, a tenth of them failed."""
    await admin.execute(
        "insert into public.job_queues (name) values ('default') on conflict do nothing"
    )
    await admin.execute(FILL, owner_id, jobs, timeout=120)
    await admin.execute("analyze public.jobs")
