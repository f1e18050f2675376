"""The schema in real PostgreSQL servers: the wheel's and, where it is installed, the oldest supported one."""

import asyncio
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from pytest_asyncio import is_async_test

from processor.local.postgres import Postgres
from tests.sql.harness import BOOTSTRAP, NOON, SQL_FILES, VERSIONS, Database, Project, connect, fixture

AUTHENTICATOR = "authenticators-password"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SERVERS = {"wheel": None} | ({"debian15": DEBIAN_15} if DEBIAN_15.exists() else {})


@dataclass
class Server:
    """A running server whose database ``jobs_template`` has the schema."""

    postgres: Postgres
    connection: asyncpg.Connection
    """To ``jobs_shared``, for the tests that roll back: one for all, because a new one is slow at first."""

    def dsn(self, database: str) -> str:
        return self.postgres.dsn(database)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this directory in the loop that holds their server."""
    for item in items:
        if is_async_test(item) and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@fixture(scope="session", params=SERVERS)
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    directory = tmp_path_factory.mktemp(f"postgres-{request.param}")
    postgres = Postgres(directory, bin_dir=SERVERS[request.param], durable=False)
    await postgres.start()
    try:
        await _make_template(postgres)
        connection = await connect(postgres.dsn("jobs_shared"))
        yield Server(postgres, connection)
        await connection.close()
    finally:
        await postgres.stop()


async def _make_template(postgres: Postgres) -> None:
    admin = await connect(postgres.dsn())
    try:
        await admin.execute("create database jobs_template")
        template = await connect(postgres.dsn("jobs_template"))
        try:
            for file in (BOOTSTRAP, *SQL_FILES):
                await template.execute(file.read_text(encoding="utf-8"))
        finally:
            await template.close()
        await admin.execute(f"alter role authenticator password '{AUTHENTICATOR}'")
        await admin.execute("create database jobs_shared template jobs_template")
    finally:
        await admin.close()


@fixture
async def project(server: Server) -> AsyncIterator[Project]:
    """Give a project at noon, in a transaction that is rolled back at the end."""
    transaction = server.connection.transaction()
    await transaction.start()
    try:
        project = Project(server.connection)
        await project.at(NOON)
        yield project
    finally:
        await transaction.rollback()
        # cached statements may refer to what was rolled back
        await server.connection.reload_schema_state()


@fixture
async def database(server: Server) -> AsyncIterator[Database]:
    """Give a database of the test's own, for several connections that commit."""
    name = f"test_{uuid4().hex}"
    admin = await connect(server.dsn("postgres"))
    try:
        await admin.execute(f"create database {name} template jobs_template")
        database = Database(
            server.dsn(name), server.postgres.dsn(name, user="authenticator", password=AUTHENTICATOR), []
        )
        try:
            yield database
        finally:
            await database.close()
            await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@fixture
async def blank(server):
    """Make databases of the test's own that are blank Supabase projects."""
    admin = await connect(server.dsn("postgres"))
    made = {}

    async def make():
        name = f"blank_{uuid4().hex}"
        await admin.execute(f"create database {name}")
        made[name] = Database(server.dsn(name), "", [])
        project = await made[name].project()
        await project.connection.execute(BOOTSTRAP.read_text())
        return made[name]

    yield make
    for name, database in made.items():
        await database.close()
        await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@fixture
async def old(blank):
    """Make a database of an older version in which things have happened."""

    async def make(version):
        database = await blank()
        for name in (f"{version}.sql", f"{version}.data.sql"):
            await database.projects[0].connection.execute((VERSIONS / name).read_text())
        return database

    return make


@fixture
async def dump(server):
    """Return what pg_dump says of the schema of a database, without the lines that no two dumps share."""

    async def dump(database):
        process = await asyncio.create_subprocess_exec(
            server.postgres.bin_dir / "pg_dump", "--schema-only", f"--dbname={database.dsn}", stdout=PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        return [line for line in said.decode().splitlines() if not re.match(r"\\(un)?restrict ", line)]

    return dump
