"""A database to measure: PostgreSQL set up as for production, the schema in it, rows in bulk."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg

from processor import schema
from processor.local.postgres import Postgres
from processor.rpc import SCHEMA_VERSION

QUEUE = "bench"
FREE_KIND = "bench.free"
PAID_KIND = "bench.paid"
LEASE_SECONDS = 3600

SETTINGS = {
    "shared_buffers": "1GB",
    "effective_cache_size": "3GB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "random_page_cost": "1.1",
}
"""What a small production server has; all else is PostgreSQL's default, so commits are durable (fsync and
synchronous_commit on). wal_level is logical, as Realtime needs it."""

# What a worker leaves behind: a payload and a result of some hundred bytes, one of many owners. $3 rows in
# all, a million a day, so that ids, which hold the time of creation, grow with the times.
FINISHED = """
    insert into public.jobs (id, queue, kind, owner_id, status, payload, result, progress,
      attempt, max_attempts, run_at, created_at, started_at, finished_at, updated_at,
      worker_id, claim_id, input_digest)
    select
      encode(substring(int8send((extract(epoch from t) * 1000)::bigint) from 3)
        || substring(uuid_send(gen_random_uuid()) from 7), 'hex')::uuid,
      $4, $5, md5((n % 10000)::text)::uuid, 'completed',
      jsonb_build_object('document', 'documents/' || n || '.md', 'language', 'de',
        'options', '{"tone": "formal"}'::jsonb),
      jsonb_build_object('path', 'translated/' || n || '.de.md', 'characters', 1000 + n % 5000), 1,
      1, 4, t, t, t, t, t,
      md5((n % 20)::text)::uuid, md5((n / 10)::text)::uuid, sha256(int8send(n))
    from generate_series($1::bigint, $2::bigint) n
    cross join lateral (select now() - ($3 - n) * interval '0.0864 s' as t) x
"""
# The last of $3 became due a moment ago, the first so many milliseconds ago.
PENDING = """
    insert into public.jobs (queue, kind, payload,
      max_attempts, run_at, created_at, updated_at, input_digest)
    select $4, $5, jsonb_build_object('document', 'documents/' || n || '.md', 'language', 'de'),
      4, t, t, t, sha256(int8send(n))
    from generate_series($1::bigint, $2::bigint) n
    cross join lateral (select now() - ($3 - n) * interval '1 millisecond' as t) x
"""


@asynccontextmanager
async def running_server() -> AsyncIterator[Postgres]:
    """Run a PostgreSQL of our own with ``SETTINGS``; TMPDIR says on which disk."""
    if (task := asyncio.current_task()) is not None:  # who ends us does not want to keep gigabytes
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="processor-bench-") as directory:
        postgres = Postgres(Path(directory))
        try:
            await postgres.start()
            admin = await asyncpg.connect(postgres.dsn())
            for name, value in SETTINGS.items():
                await admin.execute(f"alter system set {name} = '{value}'")
            await admin.close()
            await postgres.stop()
            await postgres.start()
            yield postgres
        finally:
            await postgres.stop()


async def make_project(postgres: Postgres, name: str) -> str:
    """Make a database that is a Supabase project with the schema; return the superuser's address of it."""
    admin = await asyncpg.connect(postgres.dsn())
    try:
        await admin.execute(f"create database {name}")
    finally:
        await admin.close()
    dsn = postgres.dsn(name)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute((files("processor.local") / "bootstrap.sql").read_text(encoding="utf-8"))
    finally:
        await connection.close()
    await schema.apply(dsn)
    return dsn


async def register_worker(connection: asyncpg.Connection) -> UUID:
    """Enter a worker that serves ``QUEUE`` and its two kinds: one is free, the other costs a credit a job."""
    worker_id = uuid4()
    await connection.execute(
        """
        select public.register_worker(jsonb_build_object('id', $1::uuid, 'name', 'bench', 'slots', 1000,
          'lease_seconds', $2::int, 'schema_version', $3::int, 'queues', jsonb_build_array($4::text),
          'kinds', jsonb_build_array(
            jsonb_build_object('kind', $5::text, 'queue', $4::text),
            jsonb_build_object('kind', $6::text, 'queue', $4::text, 'credits_per_job', 1))))
        """,
        *(worker_id, LEASE_SECONDS, SCHEMA_VERSION, QUEUE, FREE_KIND, PAID_KIND),
    )
    return worker_id


async def load(dsn: str, *, finished: int = 0, pending: int = 0) -> None:
    """Write so many rows straight into the table, by two connections at once."""
    for statement, rows in ((FINISHED, finished), (PENDING, pending)):
        half = rows // 2
        await asyncio.gather(
            _insert(dsn, statement, 1, half, rows), _insert(dsn, statement, half + 1, rows, rows)
        )


async def replace_all(dsn: str, *, finished: int) -> None:
    """Empty the table and write so many finished rows; making the indexes afterwards halves the time."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("truncate public.jobs cascade")
        indexes = await connection.fetch("""
            select i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid) as definition
            from pg_index i where i.indrelid = 'public.jobs'::regclass and not i.indisprimary order by 1
        """)
        for index in indexes:
            await connection.execute(f"drop index {index['name']}")
        await load(dsn, finished=finished)
        for index in indexes:
            await connection.execute(index["definition"], timeout=None)
    finally:
        await connection.close()


async def _insert(dsn: str, statement: str, first: int, last: int, rows: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        # half a million a transaction: checkpoints and vacuums find something to do in between
        for start in range(first, last + 1, 500_000):
            end = min(start + 499_999, last)
            await connection.execute(statement, start, end, rows, QUEUE, FREE_KIND, timeout=None)
    finally:
        await connection.close()
