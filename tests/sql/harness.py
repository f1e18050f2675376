"""The schema in a real PostgreSQL, and words to use it with, so that tests read as sentences."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from processor.rpc import SCHEMA_VERSION

ROOT = Path(__file__).parents[2]
SQL_FILES = sorted((ROOT / "sql").glob("*.sql"))
VERSIONS = Path(__file__).with_name("versions")
OLD_VERSIONS = sorted(int(path.stem) for path in VERSIONS.glob("*.sql") if path.stem.isdigit())
BOOTSTRAP = ROOT / "processor" / "local" / "bootstrap.sql"

ALICE = UUID("a11ce000-0000-4000-8000-000000000001")
BOB = UUID("b0b00000-0000-4000-8000-000000000002")
OPERATOR = UUID("0b0e0000-0000-4000-8000-000000000003")
"""A signed-in user whose token says that he is an operator."""
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

TABLES = (
    "jobs",
    "job_items",
    "job_checkpoints",
    "job_logs",
    "job_queues",
    "job_kinds",
    "job_schedules",
    "job_workers",
    "credit_accounts",
    "credit_lots",
    "credit_entries",
    "credit_holds",
    "credit_captures",
    "webhook_endpoints",
)

Row = dict[str, Any]

# fixtures run in the loop that holds the server, as the tests do
fixture = partial(pytest_asyncio.fixture, loop_scope="session")


class Project:
    """One connection to a database with the schema: every call is a transaction, or a part of an open one."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def sql(self, query: str, *arguments: Any) -> Any:
        """Run a statement; return the first value of its first row."""
        return await self.connection.fetchval(query, *arguments)

    async def rows(self, query: str, *arguments: Any) -> list[Row]:
        return [dict(row) for row in await self.connection.fetch(query, *arguments)]

    async def call(self, function: str, *, by: UUID | str | None = None, **arguments: Any) -> Any:
        """Call a function with named arguments, as PostgREST would, ``by`` a user, a role or the operator."""
        names = ", ".join(f'"{name}" => ${number}' for number, name in enumerate(arguments, 1))
        schema = "" if "." in function else "public."
        async with self.acting(by):
            return await self.sql(f"select to_jsonb({schema}{function}({names}))", *arguments.values())

    @asynccontextmanager
    async def acting(self, by: UUID | str | None, *, api: bool = False) -> AsyncIterator[None]:
        """Do the block as a user (by id), with a role or as the operator (None), in a transaction of its own.

        ``api`` also makes the session authenticator's, as PostgREST's are.
        """
        async with self.connection.transaction():
            if by is not None:
                role = by if isinstance(by, str) else "authenticated"
                claims = {"role": role} | ({"sub": str(by)} if isinstance(by, UUID) else {})
                if by == OPERATOR:
                    claims["app_metadata"] = {"is_operator": True}
                session = "set local session authorization authenticator; " if api else ""
                await self.connection.execute(f"{session}set local role {role}")
                await self.sql("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
            yield
            if by is not None:
                await self.connection.execute(
                    "reset role; reset session authorization; set local request.jwt.claims = ''"
                )

    @asynccontextmanager
    async def refused(self, code: str, *words: str) -> AsyncIterator[None]:
        """Expect the block to raise this SQLSTATE with these words in its message, and to change nothing."""
        before = await self.counts()
        with pytest.raises(asyncpg.PostgresError) as caught:
            async with self.connection.transaction():
                yield
        error = caught.value
        assert error.sqlstate == code, f"{error.sqlstate}: {error}"
        for word in words:
            assert word in str(error)
        for text in (str(error), error.detail or "", error.hint or ""):
            assert len(text) < 1000, "an error never prints a whole payload"
        assert await self.counts() == before

    async def counts(self) -> Row:
        union = " union all ".join(f"select '{t}', count(*) from public.{t}" for t in TABLES)
        return dict(await self.connection.fetch(union))

    # time

    async def at(self, moment: datetime) -> None:
        """Make it this time, until the transaction or connection ends."""
        await self.sql("select set_config('processor.now', $1, false)", moment.isoformat())

    async def later(self, **duration: float) -> datetime:
        """Let time pass."""
        moment = await self.now() + timedelta(**duration)
        await self.at(moment)
        return moment

    async def now(self) -> datetime:
        return await self.sql("select processor.now()")

    # what operators do

    async def queue(self, name: str = "default", **columns: Any) -> None:
        """Make or change a queue."""
        await self._upsert("job_queues", "name", {"name": name} | columns)

    async def kind(self, kind: str = "echo", *, queue: str = "default", **columns: Any) -> None:
        """Make or change a kind: public and free unless said otherwise."""
        await self.sql("insert into public.job_queues (name) values ($1) on conflict do nothing", queue)
        await self._upsert("job_kinds", "kind", {"kind": kind, "queue": queue, "public": True} | columns)

    async def read(self, function: str, *, by: UUID | str | None = None, **arguments: Any) -> list[Any]:
        """Call a function that returns rows; each as PostgREST would give it."""
        names = ", ".join(f'"{name}" => ${number}' for number, name in enumerate(arguments, 1))
        async with self.acting(by):
            rows = await self.rows(
                f"select to_jsonb(r) as row from public.{function}({names}) r", *arguments.values()
            )
        return [row["row"] for row in rows]

    async def _upsert(self, table: str, key: str, columns: Row) -> None:
        names = ", ".join(columns)
        values = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
        await self.sql(
            f"insert into public.{table} ({names}) values ({values}) "
            f"on conflict ({key}) do update set {changes}",
            *columns.values(),
        )

    async def grant(self, owner: UUID, amount: int, **arguments: Any) -> Row:
        return await self.call("processor.grant_credits", owner_id=owner, amount=amount, **arguments)

    # what clients do

    async def create(self, kind: str = "echo", *, by: UUID | str | None = None, **arguments: Any) -> Row:
        return await self.call("create_job", by=by, kind=kind, **arguments)

    async def cancel(self, job: Row, *, by: UUID | str | None = None) -> Row:
        return await self.call("cancel_job", by=by, job_id=job["id"])

    async def retry(self, job: Row, *, by: UUID | str | None = None, **arguments: Any) -> Row:
        return await self.call("retry_job", by=by, job_id=job["id"], **arguments)

    # what is there

    async def job(self, job: Row) -> Row:
        return await self.sql("select to_jsonb(j) from public.jobs j where id = $1", job["id"])

    async def items(self, job: Row) -> dict[str, Row]:
        rows = await self.rows(
            "select to_jsonb(i) as item from public.job_items i where job_id = $1 order by position",
            job["id"],
        )
        return {row["item"]["key"]: row["item"] for row in rows}

    async def balance(self, owner: UUID) -> tuple[int, int, int]:
        """Return what an owner has: available, held, spent."""
        row = await self.connection.fetchrow(
            "select available, held, spent from public.credit_accounts where owner_id = $1", owner
        )
        return tuple(row) if row else (0, 0, 0)

    async def faults(self) -> list[Row]:
        return await self.rows("select * from processor.check_credits()")

    async def worker(self, **declaration: Any) -> "Worker":
        """Register a worker, by default for all kinds and queues there are."""
        kinds = await self.rows("select kind, queue from public.job_kinds order by 1")
        queues = [row["name"] for row in await self.rows("select name from public.job_queues order by 1")]
        declared = {
            "id": str(uuid4()),
            "name": "test",
            "schema_version": SCHEMA_VERSION,
            "queues": queues,
            "kinds": [],
            "slots": 100,
            "lease_seconds": 90,
        } | declaration
        await self.call("register_worker", worker=declared)
        if not declared["kinds"]:
            # what operators made is served as it is: a declaration would be followed
            await self.sql(
                "update public.job_workers set kinds = $1 where id = $2",
                [row["kind"] for row in kinds],
                declared["id"],
            )
        return Worker(self, UUID(declared["id"]))


class Worker:
    """A registered worker: calls the functions with its id."""

    def __init__(self, project: Project, worker_id: UUID) -> None:
        self.project = project
        self.id = worker_id

    def through(self, project: Project) -> "Worker":
        """Return the same worker, calling through another connection."""
        return Worker(project, self.id)

    async def _call(self, function: str, **arguments: Any) -> Any:
        return await self.project.call(function, worker_id=self.id, **arguments)

    async def claim(
        self, limit: int = 1, *, request: UUID | None = None, queues: list[str] | None = None
    ) -> list[Row]:
        answer = await self.claim_answer(limit, request=request, queues=queues)
        return answer["jobs"]

    async def claim_answer(
        self, limit: int = 1, *, request: UUID | None = None, queues: list[str] | None = None
    ) -> Row:
        return await self._call("claim_jobs", request_id=request or uuid4(), queues=queues, limit=limit)

    async def finish(self, job: Row, outcome: str = "done", **report: Any) -> Row:
        [answer] = await self.finish_all([fence(job) | {"outcome": outcome} | report])
        return answer

    async def finish_all(self, results: list[Row]) -> list[Row]:
        return await self._call("finish_jobs", results=results)

    async def finish_items(self, job: Row, *items: Row) -> Row:
        answer = await self.finish_items_answer([fence(job) | {"items": list(items)}])
        return answer["results"][0]

    async def finish_items_answer(self, results: list[Row]) -> Row:
        return await self._call("finish_items", results=results)

    async def progress(self, job: Row, progress: float | None = None, **report: Any) -> Row:
        return await self._call("report_progress", reports=[fence(job) | {"progress": progress} | report])

    async def log(self, job: Row, *messages: str, **fields: Any) -> int:
        lines = [fence(job) | {"level": "info", "message": message} | fields for message in messages]
        return (await self._call("append_job_logs", logs=lines))["stored"]

    async def release(self, *jobs: Row) -> list[Row]:
        return await self._call("release_jobs", jobs=[fence(job) for job in jobs])

    async def heartbeat(self, *running: Row, feed: str = "polling") -> Row:
        return await self._call("heartbeat_worker", running=[job["id"] for job in running], feed=feed)

    async def deregister(self) -> int:
        return (await self._call("deregister_worker"))["released"]

    async def row(self) -> Row:
        return await self.project.sql("select to_jsonb(w) from public.job_workers w where id = $1", self.id)


def fence(job: Row) -> Row:
    return {"id": job["id"], "attempt": job["attempt"]}


def done(key: str, result: Any = None) -> Row:
    """Report an item that completed."""
    return {"key": key, "status": "completed", "result": result}


def failed(key: str, *, retryable: bool = False) -> Row:
    """Report an item that failed."""
    return {
        "key": key,
        "status": "failed",
        "error_code": "UPSTREAM_UNAVAILABLE" if retryable else "REJECTED",
        "error_message": f"{key} failed",
        "error_retryable": retryable,
    }


async def connect(dsn: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(dsn)
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    return connection


@dataclass
class Database:
    """A database with the schema, of one test."""

    dsn: str
    api_dsn: str
    """As authenticator, the role that PostgREST's sessions log in as."""
    projects: list[Project]

    async def project(self) -> Project:
        """Open another connection, which commits."""
        self.projects.append(Project(await connect(self.dsn)))
        return self.projects[-1]

    async def close(self) -> None:
        for project in self.projects:
            await project.connection.close()


async def until_waiting(observer: Project, waiter: Project) -> None:
    """Return when a connection waits for a lock."""
    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
    async with asyncio.timeout(10):
        while not await observer.sql(waits, waiter.connection.get_server_pid()):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
