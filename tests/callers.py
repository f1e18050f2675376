"""A daemon with handlers of every sort, its queue, and hands to give it work."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from postgrest import AsyncPostgrestClient

from tests.conftest import RunningStack
from tests.daemons import Daemon

TARGET = "tests.apps.callers:app"


class Callers:
    """A queue of its own, daemons for it, and the API to give them work."""

    def __init__(self, stack: RunningStack, rest: AsyncPostgrestClient, eventually, directory: Path) -> None:
        self.stack = stack
        self.rest = rest
        self.eventually: Callable[..., Awaitable[Any]] = eventually
        self.directory = directory
        self.queue = f"q{uuid4().hex[:8]}"

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "SUPABASE_URL": self.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
            "TEST_PREFIX": self.queue,
            "TEST_DIRECTORY": str(self.directory),
            **settings,
        }

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[Daemon]:
        daemon = await Daemon.start(TARGET, self.environment(**settings))
        try:
            yield daemon
        finally:
            await daemon.close()

    async def create(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        arguments = {"kind": f"{self.queue}.{kind}", "queue": self.queue, "payload": payload or {}, **options}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def row(self, job_id: str) -> dict[str, Any]:
        return (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data

    async def ended(self, job_id: str, within: float = 20.0) -> dict[str, Any]:
        async def finished() -> dict[str, Any] | None:
            row = await self.row(job_id)
            return row if row["finished_at"] else None

        return await self.eventually(finished, within=within)

    async def do(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return await self.ended(await self.create(kind, payload, **options))

    def witness(self, name: str) -> list[list[str]]:
        """Return what a handler wrote, line by line, in words; the first is its process."""
        path = self.directory / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether a process is there, and not just waiting for somebody to notice its end."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
