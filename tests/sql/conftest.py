"""The schema in real PostgreSQL servers: the wheel's and, where it is installed, the oldest supported one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from processor.local.postgres import Postgres
from tests.sql.harness import BOOTSTRAP, NOON, SQL_FILES, Database, Project, connect

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SERVERS = {"wheel": None} | ({"debian15": DEBIAN_15} if DEBIAN_15.exists() else {})


@dataclass
class Server:
    """A running server whose database ``jobs_template`` has the schema."""

    postgres: Postgres
    run: Callable[[Coroutine[Any, Any, Any]], Any]

    def dsn(self, database: str) -> str:
        return self.postgres.dsn(database)


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(f"postgres-{request.param}")
    postgres = Postgres(directory, bin_dir=SERVERS[request.param], durable=False)
    # start and stop must see the same loop, and no test's loop lives as long
    with asyncio.Runner() as runner:
        runner.run(postgres.start())
        try:
            runner.run(_make_template(postgres))
            yield Server(postgres, runner.run)
        finally:
            runner.run(postgres.stop())


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
        await admin.execute("create database jobs_shared template jobs_template")
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def project(server: Server) -> AsyncIterator[Project]:
    """Give a project at noon, in a transaction that is rolled back at the end."""
    connection = await connect(server.dsn("jobs_shared"))
    try:
        transaction = connection.transaction()
        await transaction.start()
        project = Project(connection)
        await project.at(NOON)
        yield project
        if not connection.is_closed():
            await transaction.rollback()
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def database(server: Server) -> AsyncIterator[Database]:
    """Give a database of the test's own, for several connections that commit."""
    name = f"test_{uuid4().hex}"
    admin = await connect(server.dsn("postgres"))
    try:
        await admin.execute(f"create database {name} template jobs_template")
        database = Database(server.dsn(name), [])
        try:
            yield database
        finally:
            await database.close()
            await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()
