"""A queue of a test's own, daemons that serve it, and the API to give them work."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from postgrest import AsyncPostgrestClient

from tests.conftest import RunningStack
from tests.daemons import Daemon


class Place:
    """Subclasses name the application whose handlers do the work, and what its daemons are told."""

    target: str

    def __init__(self, stack: RunningStack, rest: AsyncPostgrestClient, eventually) -> None:
        self.stack = stack
        self.rest = rest
        self.eventually: Callable[..., Awaitable[Any]] = eventually
        self.queue = f"q{uuid4().hex[:8]}"

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "SUPABASE_URL": self.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
            "TEST_PREFIX": self.queue,
            **settings,
        }

    async def launch(self, **settings: str) -> Daemon:
        return await Daemon.start(self.target, self.environment(**settings))

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[Daemon]:
        daemon = await self.launch(**settings)
        try:
            yield daemon
        finally:
            await daemon.close()

    async def create(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        arguments = {"kind": f"{self.queue}.{kind}", "queue": self.queue, "payload": payload or {}, **options}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def row(self, job_id: str) -> dict[str, Any]:
        return (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data

    async def when(
        self, job_id: str, condition: Callable[[dict[str, Any]], bool], within: float
    ) -> dict[str, Any]:
        """Wait until a job's row is as wanted, and return it."""

        async def holds() -> dict[str, Any] | None:
            row = await self.row(job_id)
            return row if condition(row) else None

        return await self.eventually(holds, within=within)

    async def becomes(self, job_id: str, status: str, within: float = 10.0) -> dict[str, Any]:
        return await self.when(job_id, lambda row: row["status"] == status, within)

    async def ended(self, job_id: str, within: float = 20.0) -> dict[str, Any]:
        return await self.when(job_id, lambda row: row["finished_at"] is not None, within)

    async def do(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return await self.ended(await self.create(kind, payload, **options))
