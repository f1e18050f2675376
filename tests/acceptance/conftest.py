"""A shop per test: a queue of its own on the shared stack, with daemons that serve it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from postgrest import AsyncPostgrestClient

from tests.conftest import NewUser, RunningStack
from tests.daemons import Daemon


@dataclass
class Shop:
    """One queue with its kinds, and what its handlers leave behind."""

    stack: RunningStack
    service: AsyncPostgrestClient
    traces: Path
    daemons: list[Daemon] = field(default_factory=list, repr=False)
    queue: str = field(default_factory=lambda: f"shop-{uuid4().hex[:8]}")

    async def daemon(self, *, url: str | None = None, realtime: bool = True, **settings: str) -> Daemon:
        """Start a daemon for this shop and wait until it takes jobs, woken by Realtime where it can be."""
        environment = {
            "SUPABASE_URL": url or self.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
            "SHOP_QUEUE": self.queue,
            "SHOP_TRACES": str(self.traces),
        }
        daemon = await Daemon.start("tests.acceptance.shop:app", environment | settings)
        self.daemons.append(daemon)
        await (daemon.ready() if realtime else daemon.event("daemon.ready"))
        return daemon

    async def create(
        self, kind: str, payload: dict[str, Any] | None = None, *, by: NewUser | None = None, **more: Any
    ) -> Any:
        """Create a job, as a user or as the service; return its row."""
        arguments = {"kind": f"{self.queue}.{kind}", "payload": payload or {}, **more}
        rest = self.service if by is None else by.rest
        return (await rest.rpc("create_job", arguments).execute()).data

    async def job(self, job_id: str) -> dict[str, Any]:
        """Read a job's row."""
        rows = (await self.service.table("jobs").select("*").eq("id", job_id).execute()).data
        assert len(rows) == 1, f"job {job_id}: {rows}"
        return rows[0]

    async def items(self, job_id: str) -> dict[str, dict[str, Any]]:
        """Read a job's items, by key."""
        rows = (await self.service.table("job_items").select("*").eq("job_id", job_id).execute()).data
        return {row["key"]: row for row in rows}

    async def jobs(self) -> list[dict[str, Any]]:
        """Read all jobs of the shop."""
        return (await self.service.table("jobs").select("*").eq("queue", self.queue).execute()).data

    def traced(self, what: str) -> list[list[str]]:
        """Return the lines of a trace file, split into words."""
        path = self.traces / what
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
async def shop(stack: RunningStack, service: AsyncPostgrestClient, tmp_path: Path) -> AsyncIterator[Shop]:
    it = Shop(stack, service, tmp_path)
    yield it
    for daemon in it.daemons:
        await daemon.close()
