"""A client: one connection that is opened again whenever it is lost, and the calls made through it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg

from bench.stress.journal import Journal

if TYPE_CHECKING:
    from bench.stress.world import World

# what a client may be told when others are at work: see processor.fail()
EXPECTED = {"JQ008", "JQ009", "JQ011", "JQ012", "JQ014", "PT402"}
# the internal one is what asyncpg says when a connection ends between two of its messages
GONE = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
STUCK_SECONDS = 10.0
OWNERS = [f"a11ce000-0000-4000-8000-00000000000{n}" for n in range(4)]
KINDS = ("translate", "translate", "report", "free", "prunable")
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl")


def any_job(chance: random.Random) -> dict[str, Any]:
    """Return a job of some kind, with items if it is paid by them."""
    job = {"kind": chance.choice(KINDS), "payload": {"n": chance.randint(1, 9)}}
    return job | (
        {"items": chance.sample(LANGUAGES, chance.randint(1, 6))} if job["kind"] == "translate" else {}
    )


class LostError(Exception):
    """The connection is gone, and nobody knows whether the call was carried out."""


class RefusedError(Exception):
    """The database has said no, with a code of ours."""


class Client:
    """One connection and what it does until the run ends."""

    role: str | None = None

    def __init__(self, world: World, journal: Journal, seed: str) -> None:
        self.world = world
        self.journal = journal
        self.random = random.Random(seed)
        self.connection: asyncpg.Connection | None = None

    async def run(self) -> None:
        """Take steps until the run is over."""
        while self.world.running:
            try:
                await self.step()
            except LostError:
                self.journal.lost += 1
            except RefusedError:
                await asyncio.sleep(0.01)
        await self.close()

    async def step(self) -> None:
        """Do something; the next step follows at once."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """Return what PostgREST would set for a request."""
        return {"role": self.role} if self.role else {}

    async def call(self, query: str, *arguments: Any, name: str | None = None) -> Any:
        """Run a query once; raise ``LostError`` when its answer will not come, ``RefusedError`` for a no."""
        started = time.monotonic()
        try:
            connection = await self._connected()
            started = time.monotonic()
            async with asyncio.timeout(STUCK_SECONDS):
                rows = await connection.fetch(query, *arguments)
        except TimeoutError:
            self.journal.violation(f"stuck for {STUCK_SECONDS:.0f} s: {query}")
            await self.close()
            raise LostError from None
        except GONE as error:
            await self.close()
            raise LostError from error
        except asyncpg.PostgresError as error:
            code = error.sqlstate or "?????"
            if code in {"57P01", "57P02", "57P03"}:
                await self.close()
                raise LostError from error
            self.journal.refusals[code] += 1
            if code not in EXPECTED:
                self.journal.violation(f"{code} from {query}: {error}")
            raise RefusedError(code) from error
        self.journal.answered(name or re.sub(r"^select |\(.*", "", query), time.monotonic() - started)
        return rows[0][0] if len(rows) == 1 and len(rows[0]) == 1 else rows

    async def function(self, function: str, **arguments: Any) -> Any:
        """Call a function with named arguments; return what it returns, as JSON."""
        names = ", ".join(f'"{name}" => ${n}' for n, name in enumerate(arguments, 1))
        schema = "" if "." in function else "public."
        told = await self.call(
            f"select to_jsonb({schema}{function}({names}))", *arguments.values(), name=function
        )
        if isinstance(told, dict) and told.get("id", told) is None:
            self.journal.violation(f"{function} answered with an empty row: {arguments}")
            raise RefusedError("empty")
        return told

    async def surely(self, function: str, **arguments: Any) -> Any:
        """Call a function again until there is an answer, as a client does that must know."""
        while True:
            try:
                return await self.function(function, **arguments)
            except LostError:
                self.journal.lost += 1
                if self.world.over:
                    raise

    async def close(self) -> None:
        """Leave without waiting for what runs."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.terminate()

    async def _connected(self) -> asyncpg.Connection:
        if self.connection is None:
            await self.world.up.wait()
            settings = {"application_name": "stress", "deadlock_timeout": "100ms"} | self.settings()
            connection = await asyncpg.connect(self.world.dsn(), server_settings=settings, timeout=10)
            self.connection = connection
            await connection.set_type_codec(
                "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
            )
        return self.connection


class User(Client):
    """A signed-in user: creates jobs under a key, cancels and retries some of them."""

    role = "authenticated"

    def __init__(self, world: World, journal: Journal, seed: str, owner: str) -> None:
        super().__init__(world, journal, seed)
        self.owner = owner
        self.jobs: list[str] = []

    def settings(self) -> dict[str, str]:
        """Return the claims of the user's token too."""
        claims = json.dumps({"sub": self.owner, "role": self.role})
        return super().settings() | {"request.jwt.claims": claims}

    async def step(self) -> None:
        """Create a job, or change one's mind about an earlier one."""
        if self.jobs and self.random.random() < 0.35:
            job = self.random.choice(self.jobs[-50:])
            if self.random.random() < 0.6:
                self.journal.job_seen(await self.function("cancel_job", job_id=job))
            else:
                self.journal.job_retried(job, await self.function("retry_job", job_id=job))
            return
        await self.create()
        await asyncio.sleep(self.random.random() * 0.01)

    async def create(self, **arguments: Any) -> None:
        """Create a job, with children at times, or many at once; again and again until they are there."""
        chance = self.random.random()
        if chance < 0.1:
            wanted = [self.wanted() | arguments for _ in range(self.random.randint(2, 12))]
            told = await self.surely("create_jobs", jobs=wanted)
            self.journal.created |= {job["id"] for job in told}
            self.jobs += [job["id"] for job in told]
            return
        if chance < 0.25:
            children = [any_job(self.random) for _ in range(self.random.randint(1, 4))]
            arguments |= {"children": children, "on_child_failure": self.random.choice(["continue", "fail"])}
        job = await self.surely("create_job", **self.wanted(), **arguments)
        self.journal.job_seen(job)
        self.jobs.append(job["id"])

    def wanted(self) -> dict[str, Any]:
        """Return a job to create; some share a key of which only one may be on its way."""
        job = any_job(self.random) | {"idempotency_key": str(uuid4()), "priority": self.random.randint(0, 3)}
        if self.random.random() < 0.1:
            job["unique_key"] = f"u{self.random.randint(1, 5)}"
            job["on_conflict"] = self.random.choice(["error", "replace", "return"])
        return job


class Server(User):
    """An application's server: creates jobs for any owner and for none, many in one transaction."""

    role = "service_role"

    def settings(self) -> dict[str, str]:
        """Return no user's claims."""
        return Client.settings(self)

    async def step(self) -> None:
        """Create for somebody, or for nobody."""
        if self.random.random() < 0.2:
            self.journal.job_seen(
                await self.function("cancel_job", job_id=self.random.choice(self.jobs or OWNERS))
            )
            return
        await self.create(
            owner_id=self.random.choice([*OWNERS, None]), max_attempts=self.random.choice([1, 3])
        )
