"""How the schema gets into a database: all or nothing, while jobs run, and again after an interruption."""

import asyncio
import time
from contextlib import asynccontextmanager

import asyncpg
import pytest

from processor import schema
from processor.rpc import SCHEMA_VERSION
from processor.schema import SchemaError
from processor.schema.drift import problems
from processor.schema.files import OUTSIDE, File, Migration, Step, steps
from processor.schema.install import installed_version, upgrade
from tests.sql.harness import ALICE

NEXT = SCHEMA_VERSION + 1
ADD_COLUMN = Migration(
    f"{NEXT:04}_1_column.sql", "alter table public.jobs add column if not exists colour text;"
)
FILL_COLUMN = Migration(
    f"{NEXT:04}_2_fill.sql", "update public.jobs set colour = 'red' where colour is null;"
)
BUILD_INDEX = Migration(
    f"{NEXT:04}_3_index.sql",
    f"""{OUTSIDE}
-- a comment; with a semicolon
create index concurrently if not exists jobs_colour_idx
  on public.jobs (colour);
create index concurrently if not exists jobs_pending_idx on public.jobs (id);
""",
)
BROKEN = File("90_broken.sql", "create table public.half (id int); select 1 / 0;")


async def has_colour(project):
    return await project.sql(
        "select exists (select from information_schema.columns where column_name = 'colour')"
    )


async def indexes(project):
    rows = await project.rows("""
        select indexrelid::regclass::text as name, indisvalid from pg_index
        where indrelid = 'public.jobs'::regclass
    """)
    return {row["name"]: row["indisvalid"] for row in rows}


async def test_migrations_run_in_their_order_and_before_the_files(database):
    project = await database.project()
    await project.kind("echo")
    await project.create("echo")
    await upgrade(project.connection, steps(SCHEMA_VERSION, [ADD_COLUMN, FILL_COLUMN]))
    assert await project.sql("select colour from public.jobs") == "red"
    assert await problems(project.connection) == []


def test_only_what_cannot_run_in_a_transaction_divides_an_upgrade():
    every = [ADD_COLUMN, FILL_COLUMN, BUILD_INDEX, Migration(f"{NEXT:04}_4_x.sql", "select 1;")]
    files = schema.sql_files()
    assert steps(None, every) == [Step(tuple(files))]
    assert steps(NEXT, every) == [Step(tuple(files))]
    assert steps(SCHEMA_VERSION, every) == [
        Step((ADD_COLUMN, FILL_COLUMN)),
        Step((BUILD_INDEX,), outside=True),
        Step((every[3], *files)),
    ]
    assert [statement[:60] for statement in BUILD_INDEX.statements] == [
        "create index concurrently if not exists jobs_colour_idx\n  on",
        "create index concurrently if not exists jobs_pending_idx on ",
    ]


async def test_a_file_that_is_refused_leaves_everything_as_it_was(database):
    project = await database.project()
    with pytest.raises(
        SchemaError, match=r"90_broken\.sql was refused, nothing has changed: division by zero"
    ):
        await upgrade(project.connection, [Step((ADD_COLUMN, BROKEN))])
    assert not await has_colour(project)
    assert await project.sql("select to_regclass('public.half')") is None


async def test_what_was_interrupted_is_done_when_it_is_applied_again(database):
    project = await database.project()
    todo = steps(SCHEMA_VERSION, [ADD_COLUMN, BUILD_INDEX])
    with pytest.raises(SchemaError, match=r"90_broken\.sql"):
        await upgrade(project.connection, [*todo[:2], Step((BROKEN,))])
    assert await has_colour(project)
    await upgrade(project.connection, todo)
    assert (await indexes(project))["jobs_colour_idx"] is True


async def test_an_index_whose_building_was_interrupted_is_built_anew(database):
    project = await database.project()
    await project.kind("echo")
    await project.create("echo")
    await project.create("echo")

    async def interrupt():
        await project.connection.execute("drop index public.jobs_pending_idx")
        with pytest.raises(asyncpg.UniqueViolationError):
            await project.connection.execute(
                "create unique index concurrently jobs_pending_idx on public.jobs ((1))"
            )
        assert (await indexes(project))["jobs_pending_idx"] is False

    await interrupt()
    await schema.apply(database.dsn)
    assert (await indexes(project))["jobs_pending_idx"] is True
    assert await problems(project.connection) == []

    await interrupt()
    await project.connection.execute(ADD_COLUMN.text)
    await upgrade(project.connection, [Step((BUILD_INDEX,), outside=True)])
    assert (await indexes(project))["jobs_pending_idx"] is True


async def test_a_migration_outside_a_transaction_that_fails_says_that_others_are_done(database):
    project = await database.project()
    with pytest.raises(SchemaError, match=r"3_index.sql was refused, what came before is done.*colour"):
        await upgrade(project.connection, [Step((BUILD_INDEX,), outside=True)])


async def test_a_newer_database_is_refused(database):
    project = await database.project()
    await project.connection.execute(f"""
        create or replace function processor.schema_version() returns int language sql as 'select {NEXT}'
    """)
    with pytest.raises(
        SchemaError, match=f"version {NEXT} of the schema, newer than version {SCHEMA_VERSION}"
    ):
        await schema.apply(database.dsn)
    with pytest.raises(asyncpg.RaiseError, match="newer"):
        await project.connection.execute(schema.script(schema.migrations()))
    await project.connection.execute("rollback")
    assert await installed_version(project.connection) == NEXT


async def test_two_at_a_time_both_succeed(database):
    await asyncio.gather(*(schema.apply(database.dsn) for _ in range(3)))


async def test_who_is_in_the_way_is_named_and_nobody_waits_for_long(database):
    holder, applier, other = [await database.project() for _ in range(3)]
    await holder.kind("echo")
    await holder.connection.execute("begin; update public.job_kinds set description = 'busy'")

    applying = asyncio.create_task(upgrade(applier.connection, steps(SCHEMA_VERSION, []), patience=0))
    began = time.monotonic()
    while not applying.done():
        await other.sql("select count(*) from public.job_queues")
    with pytest.raises(SchemaError) as caught:
        await applying
    pid = holder.connection.get_server_pid()
    assert f"public.job_kinds is in use, nothing has changed: process {pid} (postgres, " in str(caught.value)
    assert "idle in transaction" in str(caught.value)
    assert time.monotonic() - began < 5

    applying = asyncio.create_task(upgrade(applier.connection, steps(SCHEMA_VERSION, [])))
    await holder.connection.execute("commit")
    await applying


@asynccontextmanager
async def traffic(database, connections):
    """Have jobs created, claimed and finished all the time; fail when a call fails."""
    rounds = [0] * connections
    stop = asyncio.Event()

    async def work(number):
        project = await database.project()
        worker = await project.worker()
        while not stop.is_set():
            await project.create("paid", owner_id=ALICE)
            for job in await worker.claim(5):
                await worker.finish(job)
            rounds[number] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(work(number), name=f"traffic-{number}")
        try:
            yield rounds
        finally:
            stop.set()


async def test_applied_again_it_leaves_alone_the_triggers_whose_making_would_lock_tables(database):
    project = await database.project()
    triggers = "select tgname, xmin::text from pg_trigger where tgname like '%tell%' order by tgname"
    before = await project.connection.fetch(triggers)
    assert len(before) == 4
    await schema.apply(database.dsn)
    assert await project.connection.fetch(triggers) == before
    await project.connection.execute(
        "create or replace trigger jobs_tell_when_made after insert on public.jobs"
        " for each statement execute function public.tell_of_queues()"
    )
    await schema.apply(database.dsn)
    changed = dict(await project.connection.fetch(triggers)).items() ^ dict(before).items()
    assert {name for name, _ in changed} == {"jobs_tell_when_made"}
    assert await problems(project.connection) == []


async def test_it_is_applied_while_jobs_run_and_no_call_of_theirs_fails(database):
    project = await database.project()
    await project.kind("paid", credits_per_job=1)
    await project.grant(ALICE, 1_000_000)
    async with traffic(database, 4) as rounds:
        for _ in range(3):
            before = sum(rounds)
            await schema.apply(database.dsn)
            while sum(rounds) < before + 20:  # noqa: ASYNC110 - yields to the others, waits for none
                await asyncio.sleep(0)
    assert await project.faults() == []
    assert await problems(project.connection) == []
    assert await project.sql("select deadlocks from pg_stat_database where datname = current_database()") == 0
