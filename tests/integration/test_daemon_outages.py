"""What a real daemon does when the API goes away under it, and comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.daemons import Daemon
from tests.faults import FaultProxy

LEASE = 3.0


class Shore:
    """A daemon that reaches the API through a proxy, and the API as others reach it."""

    def __init__(self, daemon: Daemon, proxy: FaultProxy, queue: str, rest, eventually) -> None:
        self.daemon = daemon
        self.proxy = proxy
        self.queue = queue
        self.rest = rest
        self.eventually = eventually

    async def create(self, kind: str, payload: dict[str, Any]) -> str:
        arguments = {"kind": f"{self.queue}.{kind}", "queue": self.queue, "payload": payload}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def becomes(self, job_id: str, status: str, within: float = 15.0) -> dict[str, Any]:
        async def has_become() -> dict[str, Any] | None:
            row = (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data
            return row if row["status"] == status else None

        return await self.eventually(has_become, within=within)

    async def quiet(self) -> None:
        """Wait until the daemon has nothing more to ask, heartbeats aside."""
        seen = -1
        while (now := sum(self.proxy.requests.values())) != seen:
            seen = now
            await asyncio.sleep(0.5)

    def take_the_api_away(self) -> None:
        self.proxy.refuse("http")
        self.proxy.cut("http")


@contextlib.asynccontextmanager
async def shore(stack, service, eventually, **environment: str) -> AsyncIterator[Shore]:
    queue = f"q{uuid4().hex[:8]}"
    async with FaultProxy(stack.url) as proxy:
        daemon = await Daemon.start(
            "tests.apps.behaviours:app",
            {
                "SUPABASE_URL": proxy.url,
                "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
                "TEST_PREFIX": queue,
                **environment,
            },
        )
        try:
            await daemon.ready()
            yield Shore(daemon, proxy, queue, service, eventually)
        finally:
            await daemon.close()


@pytest.fixture
async def calm(stack, service, eventually) -> AsyncIterator[Shore]:
    async with shore(stack, service, eventually) as place:
        yield place


@pytest.fixture
async def hasty(stack, service, eventually) -> AsyncIterator[Shore]:
    async with shore(stack, service, eventually, PROCESSOR_LEASE_SECONDS=str(LEASE)) as place:
        yield place


async def test_a_result_waits_for_the_api_to_come_back(calm: Shore) -> None:
    job_id = await calm.create("wait", {"seconds": 0.5})
    await calm.daemon.event("job.started", job_id=job_id)
    calm.take_the_api_away()
    await calm.daemon.event("rpc.repeated", function="finish_jobs")
    await calm.proxy.heal()
    row = await calm.becomes(job_id, "completed")
    assert (row["result"], row["attempt"]) == ("waited", 1)


async def test_a_claim_whose_answer_was_lost_is_repeated_and_orphans_nothing(calm: Shore) -> None:
    await calm.quiet()
    calm.proxy.drop("down", "http")
    job_id = await calm.create("greet", {"name": "x"})
    await calm.becomes(job_id, "processing")
    assert calm.daemon.all("job.started") == []
    calm.proxy.cut("http")
    await calm.daemon.event("rpc.repeated", function="claim_jobs")
    await calm.proxy.heal()
    assert (await calm.becomes(job_id, "completed"))["attempt"] == 1
    assert len(calm.daemon.all("job.started", job_id=job_id)) == 1


async def test_handlers_are_stopped_before_the_lease_ends_and_their_jobs_go_back(hasty: Shore) -> None:
    job_id = await hasty.create("wait", {"seconds": 30})
    await hasty.daemon.event("job.started", job_id=job_id)
    hasty.take_the_api_away()
    await hasty.daemon.event("lease.fenced", running=1, within=LEASE + 1)
    await hasty.daemon.event("job.lost", job_id=job_id)
    await hasty.proxy.heal()
    await hasty.daemon.event("lease.renewed")
    await hasty.daemon.event("job.started", job_id=job_id, attempt=2, within=20)
    assert hasty.daemon.all("job.finished", job_id=job_id) == []


async def test_sigterm_without_the_api_still_ends(calm: Shore) -> None:
    calm.take_the_api_away()
    calm.daemon.process.terminate()
    assert await calm.daemon.ended(within=20) == 0
    await calm.daemon.event("daemon.not_deregistered")
