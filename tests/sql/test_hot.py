"""What changes while jobs run is written in place: heartbeats and progress write no index (HOT updates)."""

import asyncio

import pytest

from tests.sql.harness import ALICE, Project, fence

ROUNDS = 50
WRITTEN_WHILE_RUNNING = {
    "jobs": {"progress", "progress_message", "items_done", "items_failed", "updated_at"},
    "job_items": {"status", "progress", "attempts", "result", "credits", "updated_at"},
    "job_workers": {"heartbeat_at", "lease_expires_at", "running", "feed", "inbox"},
}


async def updates(project: Project, table: str) -> tuple[int, int]:
    """Return how many rows of a table were ever updated, and how many of these in place."""
    query = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = $1::regclass"
    await project.sql("select pg_stat_force_next_flush()")
    row = await project.connection.fetchrow(query, f"public.{table}")
    return tuple(row)


async def running(project: Project, how_many: int, **columns):
    """Make jobs like real ones, with items, and let a worker claim them."""
    await project.kind("echo")
    job = {"kind": "echo", "owner_id": str(ALICE), "items": ["de", "fr", "es"]} | columns
    await project.call("create_jobs", jobs=[job | {"idempotency_key": f"job {n}"} for n in range(how_many)])
    worker = await project.worker()
    return worker, await worker.claim(how_many)


async def changed(project: Project, table: str, before: tuple[int, int], wanted: int) -> tuple[int, int]:
    """Return the updates since then, as soon as the statistics know of as many as wanted."""
    async with asyncio.timeout(10):
        while True:
            now = await updates(project, table)
            if now[0] - before[0] >= wanted:
                return now[0] - before[0], now[1] - before[1]
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("bytes_of_payload", [100, 600, 20_000])
@pytest.mark.parametrize(
    ("how_many", "share"),
    # many in one transaction may need more than the page has left, once: then they have spread
    [(3, 1), (20, 0.98)],
)
async def test_progress_is_written_in_place(database, how_many, share, bytes_of_payload):
    project = await database.project()
    worker, jobs = await running(project, how_many, payload={"text": "x" * bytes_of_payload})
    tables = ("jobs", "job_items")
    before = {table: await updates(project, table) for table in tables}

    for step in range(1, ROUNDS + 1):
        progress = {"progress": step / ROUNDS, "message": f"step {step} of {ROUNDS}"}
        items = {"items": [{"key": "fr", "progress": step / ROUNDS}]}
        await worker._call("report_progress", reports=[fence(job) | progress | items for job in jobs])

    for table in tables:
        written, in_place = await changed(project, table, before[table], how_many * ROUNDS)
        assert written == how_many * ROUNDS
        assert in_place >= share * written, table


async def test_heartbeats_write_no_job_and_their_own_row_in_place(database):
    project = await database.project()
    worker, jobs = await running(project, 3)
    before = await updates(project, "jobs"), await updates(project, "job_workers")

    for _ in range(ROUNDS):
        await worker.heartbeat(*jobs)

    assert await changed(project, "job_workers", before[1], ROUNDS) == (ROUNDS, ROUNDS)
    assert await updates(project, "jobs") == before[0]


@pytest.mark.parametrize("table", WRITTEN_WHILE_RUNNING)
async def test_no_index_knows_a_column_that_is_written_while_jobs_run(project, table):
    known = await project.rows(
        """
        select a.attname from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid
        where i.indrelid = $1::regclass and (
          a.attnum = any (i.indkey)
          or pg_get_expr(i.indpred, i.indrelid) ~ ('\\m' || a.attname || '\\M')
          or pg_get_expr(i.indexprs, i.indrelid) ~ ('\\m' || a.attname || '\\M')
        )
        """,
        f"public.{table}",
    )
    assert known
    assert not {row["attname"] for row in known} & WRITTEN_WHILE_RUNNING[table]
