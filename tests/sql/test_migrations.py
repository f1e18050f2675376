"""Every older database becomes the same as a new one, and loses nothing on the way."""

import json
from uuid import UUID

import pytest

from processor import schema
from processor.rpc import SCHEMA_VERSION
from tests.sql.harness import ALICE, BOB, OLD_VERSIONS, Worker, done


async def rows_of(project):
    """Return all rows of all tables of the schema."""
    tables = await project.rows(
        "select schemaname || '.' || tablename as name from pg_tables "
        "where schemaname in ('public', 'processor')"
    )
    return {
        table["name"]: [
            row["row"] for row in await project.rows(f"select to_jsonb(t) as row from {table['name']} t")
        ]
        for table in tables
    }


def in_columns_of(rows, old):
    """Return rows in an order of their own, with the columns that old ones have."""
    return sorted(json.dumps({column: row[column] for column in old[0]}) for row in rows)


def test_every_older_version_is_kept():
    assert list(range(1, SCHEMA_VERSION)) == OLD_VERSIONS


async def test_a_new_database_is_as_the_tests_have_it(blank, database, dump):
    new = await blank()
    await schema.apply(new.dsn)
    assert await dump(new) == await dump(database)


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_an_upgraded_database_is_the_same_as_a_new_one(version, old, database, dump):
    upgraded = await old(version)
    await schema.apply(upgraded.dsn)
    assert await dump(upgraded) == await dump(database)
    assert (await schema.status(upgraded.dsn)).problems == ()


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_what_is_printed_upgrades_a_database_too_and_may_be_pasted_twice(version, old, database, dump):
    upgraded = await old(version)
    for _ in range(2):
        await upgraded.projects[0].connection.execute(schema.script(schema.migrations()))
    assert await dump(upgraded) == await dump(database)


async def test_what_is_printed_makes_a_new_database(blank, database, dump):
    new = await blank()
    await new.projects[0].connection.execute(schema.script(schema.migrations()))
    assert await dump(new) == await dump(database)


async def test_a_migration_does_nothing_where_it_is_not_needed(blank, database, dump):
    databases = [await blank(), database]
    before = [await dump(each) for each in databases]
    for each in databases:
        project = await each.project()
        for migration in schema.migrations():
            if not migration.outside:
                await project.connection.execute(migration.text)
    assert [await dump(each) for each in databases] == before


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_an_upgrade_keeps_every_row(version, old):
    database = await old(version)
    [project] = database.projects
    before = await rows_of(project)
    assert all(before.values()), f"a table without rows in version {version}"

    await schema.apply(database.dsn)

    after = await rows_of(project)
    for table, rows in before.items():
        assert in_columns_of(after[table], rows) == in_columns_of(rows, rows)
    assert await project.faults() == []


async def test_jobs_of_version_1_go_on_where_they_were(old):
    database = await old(1)
    [project] = database.projects
    await schema.apply(database.dsn)

    async def tagged(tag):
        return await project.sql("select to_jsonb(j) from public.jobs j where tags = array[$1]", tag)

    async def claim(worker):
        return sorted(job["tags"][0] for job in await worker.claim(100))

    # its worker finishes the job that was half done, and is paid for the other half
    available, held, spent = await project.balance(ALICE)
    worker = Worker(project, UUID("00000000-0000-4000-8000-00000000000a"))
    ended = await worker.finish(await tagged("processing"), items=[done("fr")])
    assert (ended["stale"], ended["status"]) == (False, "completed")
    assert await project.balance(ALICE) == (available, held - 6, spent + 6)

    # what was waiting is claimed, what waits for its time or its queue is not
    assert await claim(worker) == ["failed", "waiting"]
    await project.sql("update public.job_queues set paused = false")
    assert await claim(await project.worker()) == ["paused"]
    available, held, spent = await project.balance(ALICE)
    await project.cancel(await tagged("later"))
    assert await project.balance(ALICE) == (available + held, 0, spent)

    # what ended can be repeated, and keys are still known
    await project.retry(await tagged("partial"))
    again = await project.create("render", payload={"n": 6}, idempotency_key="six", tags=["retrying"])
    assert again["id"] == (await tagged("retrying"))["id"]
    granted = await project.grant(ALICE, 1000, reason="welcome", idempotency_key="order-1")
    assert granted["issued"] == 1000
    assert (await project.balance(BOB))[2] == 10
    assert await project.faults() == []


async def test_jobs_of_version_2_go_on_where_they_were(old):
    database = await old(2)
    [project] = database.projects
    await schema.apply(database.dsn)

    async def tagged(tag):
        return await project.sql("select to_jsonb(j) from public.jobs j where tags = array[$1]", tag)

    worker = Worker(project, UUID("00000000-0000-4000-8000-00000000000a"))
    available, held, spent = await project.balance(ALICE)
    ended = await worker.finish(await tagged("processing"), items=[done("fr")])
    assert (ended["stale"], ended["status"]) == (False, "completed")
    assert await project.balance(ALICE) == (available, held - 6, spent + 6)

    # a parent hears of the end of its children
    parent = await tagged("waiting for children")
    assert (parent["children_total"], parent["children_open"]) == (2, 2)
    await worker.finish(await tagged("child"), items=[done("de")])
    assert (await tagged("waiting for children"))["children_open"] == 1
    available, held, spent = await project.balance(ALICE)
    await project.cancel(await tagged("last child"))
    assert (await tagged("waiting for children"))["error_code"] == "CHILD_FAILED"
    assert await project.balance(ALICE) == (available + 10 + 3, held - 10 - 3, spent)

    # checkpoints go with a retry of what is open, and all of it can be done again
    partial = await tagged("partial")
    again = await project.retry(partial)
    assert again["items_total"] == 1
    copied = "select name from public.job_checkpoints where job_id = $1"
    assert await project.sql(copied, UUID(again["id"])) == "fetch"
    assert await project.faults() == []


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_a_worker_of_an_older_version_works_on_and_one_of_the_last_may_start_anew(version, old):
    database = await old(version)
    [project] = database.projects
    await project.sql("select set_config('processor.now', '', false)")
    await project.kind("print")
    worker = await project.worker(name="old", schema_version=version, queues=["new"])
    jobs = [await project.create("print", queue="new") for _ in range(3)]
    [mine] = await worker.claim(1)
    await schema.apply(database.dsn)

    assert (await worker.heartbeat(mine))["lost"] == []
    assert (await worker.finish(mine))["status"] == "completed"
    [another, _] = await worker.claim(2)
    assert (await worker.release(another))[0]["stale"] is False
    assert await worker.deregister() == 1

    if version < SCHEMA_VERSION - 1:
        async with project.refused("JQ013", f"this worker needs {version}", "Upgrade the worker"):
            await project.worker(name="old", schema_version=version)
        return
    anew = await project.worker(name="old", schema_version=version, queues=["new"])
    assert {job["id"] for job in await anew.claim(10)} == {job["id"] for job in jobs[1:]}
