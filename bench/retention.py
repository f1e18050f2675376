"""Measure what keeping finished jobs costs, and what taking them away does.

Run it with ``python bench/retention.py --rows 1000000 10000000``. For each size: bytes on disk per job, what
claim and finish cost beside so many, how long the views of operators, pruning and a vacuum take. Before that,
jobs that went through all functions show what indexes weigh that were not made in one go, and claims from a
backlog show how they slow down between two vacuums.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from processor.cli.bench_client import Client, mean_cpu_ms
from processor.cli.bench_database import FREE_KIND, load, make_project, replace_all, running_server

BATCH = 1000
VIEWS = ("queue_health", "stuck_jobs", "worker_health", "error_summary", "throughput", "credit_summary")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Give a superuser's connection."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def sizes(connection: asyncpg.Connection, jobs: int) -> None:
    """Print the bytes per job of the table and of each index."""
    table = await connection.fetchval("select pg_table_size('public.jobs')")
    rows = await connection.fetch("""
        select replace(relname, 'jobs_', '') as name, pg_relation_size(i.indexrelid) as bytes
        from pg_index i join pg_class c on c.oid = i.indexrelid
        where i.indrelid = 'public.jobs'::regclass order by 2 desc
    """)
    indexes = ", ".join(f"{row['name']} {row['bytes'] / jobs:.0f}" for row in rows if row["bytes"] > jobs)
    total = table + sum(row["bytes"] for row in rows)
    print(f"  disk: {total / jobs:.0f} B a job: table {table / jobs:.0f}, {indexes}")


async def through_the_functions(dsn: str, jobs: int) -> None:
    """Create, claim and finish so many jobs, vacuuming as autovacuum would."""
    print(f"{jobs:,} jobs through the functions, a vacuum after every 20,000")
    client = await Client.connect(dsn)
    owners = [f"00000000-0000-4000-8000-{number:012}" for number in range(1000)]
    async with connected(dsn) as admin:
        for done in range(0, jobs, BATCH):
            batch = [
                {"kind": FREE_KIND, "owner_id": owners[(done + n) % 1000], "payload": payload(done + n)}
                for n in range(BATCH)
            ]
            await client.create(json.dumps(batch))
            await client.finish(await client.claim(BATCH), {"path": f"translated/{done}.de.md"})
            if done % 20_000 == 0:
                await admin.execute("vacuum public.jobs")
        await sizes(admin, jobs)
    await client.close()


def payload(number: int) -> dict[str, object]:
    """Make a payload of some hundred bytes."""
    return {"document": f"documents/{number}.md", "language": "de", "options": {"tone": "formal"}}


async def between_vacuums(dsn: str) -> None:
    """Print what a claim of 100 costs after so many others, from the same backlog, since the last vacuum."""
    print("a claim of 100 from a backlog, by how many were claimed from it since the last vacuum")
    async with connected(dsn) as admin:
        await admin.execute("truncate public.jobs cascade")
        await admin.execute("alter table public.jobs set (autovacuum_enabled = off)")
        await load(dsn, pending=400_000)
        await admin.execute("vacuum (analyze) public.jobs")
        client = await Client.connect(dsn)
        before = 0
        for claimed in (0, 10_000, 50_000, 100_000, 200_000):
            await admin.execute(
                """
                update public.jobs set status = 'completed', started_at = now(), finished_at = now()
                where id in (select id from public.jobs where status = 'pending' order by run_at limit $1)
                """,
                claimed - before,
            )
            before = claimed
            print(f"  {claimed:,}: {await claim_cpu(client):.1f} ms of CPU")
        await admin.execute("vacuum public.jobs")
        print(f"  after a vacuum: {await claim_cpu(client):.1f} ms of CPU")
        await client.close()


async def claim_cpu(client: Client) -> float:
    """Return what a claim of 100 that is rolled back costs the server."""
    for number in range(25):
        if number == 5:
            client.forget()
        transaction = client.connection.transaction()
        await transaction.start()
        await client.claim(100)
        await transaction.rollback()
    return statistics.median(client.cpu["claim"])


async def beside_finished(dsn: str, rows: int) -> None:
    """Measure everything with so many finished jobs in the table."""
    async with connected(dsn) as admin:
        started = time.perf_counter()
        await replace_all(dsn, finished=rows)
        print(f"{rows:,} finished jobs, loaded in {time.perf_counter() - started:.0f} s")
        await timed(admin, "vacuum (analyze), the first", "vacuum (analyze) public.jobs")
        await sizes(admin, rows)
        await drain(dsn)
        for view in VIEWS:
            await timed(
                admin, f"view {view}", f"select count(*) from (select * from processor.{view} offset 0) v"
            )
        await prune(admin, rows)
        await timed(admin, "vacuum after pruning", "vacuum public.jobs")
        await sizes(admin, rows)


async def timed(connection: asyncpg.Connection, what: str, statement: str) -> None:
    """Run a statement and print how long it took."""
    started = time.perf_counter()
    await connection.execute(statement, timeout=None)
    print(f"  {what}: {time.perf_counter() - started:.2f} s")


async def drain(dsn: str) -> None:
    """Print what creating, claiming and finishing cost here."""
    client = await Client.connect(dsn)
    for _ in range(10):
        await client.create(json.dumps([{"kind": FREE_KIND, "payload": payload(n)} for n in range(BATCH)]))
        await client.finish(await client.claim(BATCH))
    calls = ", ".join(f"{call} {mean_cpu_ms([client], call)} ms" for call in ("create", "claim", "finish"))
    print(f"  CPU per 1,000: {calls}")
    await client.close()


async def prune(connection: asyncpg.Connection, rows: int) -> None:
    """Take away a tenth without a vacuum in between; print the rate and how it changes."""
    await connection.execute("update public.job_queues set retain_for = interval '1 hour'")
    took = []
    pruned = 0
    wal = await connection.fetchval("select pg_current_wal_insert_lsn()")
    while pruned < rows // 10:
        started = time.perf_counter()
        gone = await connection.fetchval("select processor.prune_jobs($1)", BATCH)
        took.append(time.perf_counter() - started)
        pruned += gone
        if gone < BATCH:
            break
    written = await connection.fetchval("select pg_current_wal_insert_lsn() - $1::pg_lsn", wal)
    tenth = max(len(took) // 10, 1)
    first, last = (statistics.median(calls) * 1000 for calls in (took[:tenth], took[-tenth:]))
    print(
        f"  pruned {pruned:,} at {pruned / sum(took):,.0f}/s, {written / max(pruned, 1):.0f} B of log a job"
    )
    print(f"  a call for {BATCH:,} took {first:.0f} ms at first, {last:.0f} ms at last")


async def main(rows: list[int]) -> None:
    """Measure, print as it goes."""
    async with running_server() as postgres:
        dsn = await make_project(postgres, "retention")
        (await Client.connect(dsn)).connection.terminate()  # its queue and kinds are there now
        await through_the_functions(dsn, 100_000)
        await between_vacuums(dsn)
        for size in rows:
            await beside_finished(dsn, size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000], help="how many finished jobs")
    asyncio.run(main(parser.parse_args().rows))
