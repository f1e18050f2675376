"""Handlers that kill their worker, blurt out its key, or reach for its other parts."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests import places
from tests.daemons import Daemon


class Place(places.Place):
    """A place whose handlers are dangerous; its leases are short."""

    target = "tests.apps.hazards:app"

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(**{"PROCESSOR_LEASE_SECONDS": "3", **settings})

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[Daemon]:
        async with super().daemon(**settings) as daemon:
            await daemon.event("daemon.ready", within=30)
            yield daemon

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[list[Daemon]]:
        """Start a daemon whenever there is none, as systemd would; give those there were."""
        daemons: list[Daemon] = []

        async def supervise() -> None:
            while True:
                daemons.append(await self.launch())
                await daemons[-1].ended(within=90)

        task = asyncio.create_task(supervise(), name="supervisor")
        try:
            yield daemons
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.wait([task])
            for daemon in daemons:
                await daemon.close()


@pytest.fixture
def place(stack, service, eventually: Callable[..., Awaitable[Any]]) -> Place:
    return Place(stack, service, eventually)


def killed(daemons: list[Daemon]) -> int:
    return sum(daemon.process.poll() == -signal.SIGKILL for daemon in daemons)


async def test_a_job_that_kills_two_workers_ends_and_is_refunded_and_no_other_is_harmed(
    place: Place, new_user
) -> None:
    user = await new_user(credits=10)
    async with place.daemon() as first:  # makes the kinds known
        assert (await place.ended(await place.create("innocent")))["status"] == "completed"
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
    poison = await place.create("poison", owner_id=user.id)
    async with place.supervised() as daemons:
        row = await place.ended(poison, within=60)
        assert (row["status"], row["error_code"], row["crashes"]) == ("failed", "WORKER_CRASHED", 2)
        assert (row["credits_captured"], row["credits_refunded"]) == (0, 3)
        assert killed(daemons) == 2
        assert (await place.ended(await place.create("innocent")))["crashes"] == 0
        assert killed(daemons) == 2


async def test_jobs_that_shared_every_worker_with_a_poisonous_one_complete(place: Place) -> None:
    async with place.daemon() as first:
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
    poison = await place.create("poison", {"company": 2})
    innocents = [await place.create("innocent", {"seconds": 1}) for _ in range(2)]
    async with place.supervised() as daemons:
        row = await place.ended(poison, within=90)
        assert (row["status"], row["error_code"]) == ("failed", "WORKER_CRASHED")
        assert 2 <= killed(daemons) <= 3
        for job_id in innocents:
            row = await place.ended(job_id, within=30)
            assert (row["status"], row["result"]) == ("completed", "unharmed")
        assert killed(daemons) <= 3


@pytest.mark.parametrize("status", [401, 500])
async def test_the_key_appears_nowhere_however_a_handler_blurts_it_out(place: Place, status: int) -> None:
    key = place.stack.service_role_key
    async with place.daemon() as daemon:
        row = await place.ended(await place.create("leak", {"status": status}, max_attempts=1))
        await daemon.event("job.finished", job_id=row["id"])
        logs = (await place.rest.table("job_logs").select("*").eq("job_id", row["id"]).execute()).data
        said = daemon.log()
    assert row["error_code"] == ("AUTH_FAILED" if status == 401 else "HANDLER_CRASHED")
    assert logs
    assert logs[0]["fields"] == {"headers": {"apikey": "[redacted]"}}
    assert "job.log" in said
    for text in (str(row), str(logs), said):
        assert "[redacted]" in text
        assert key not in text
        assert key[len(key) // 2 :] not in text
        assert "hunter2" not in text


async def test_what_asyncio_lets_through_a_task_is_the_handlers_failure(place: Place) -> None:
    async with place.daemon() as daemon:
        row = await place.ended(await place.create("interrupt", max_attempts=1))
        assert (row["status"], row["error_code"]) == ("failed", "HANDLER_CRASHED")
        assert "KeyboardInterrupt" in row["error_message"]
        job_id = await place.create("interrupt", items=["bad", "good", "worse"], max_attempts=1)
        row = await place.ended(job_id)
        assert (row["status"], row["items_done"], row["error_code"]) == ("partial", 1, "ITEMS_FAILED")
        assert daemon.process.poll() is None


async def test_a_health_server_that_ends_by_itself_ends_the_daemon_loudly(place: Place) -> None:
    async with place.daemon(PROCESSOR_HTTP_PORT="0") as daemon:
        url = (await daemon.event("daemon.listening"))["url"]
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{url}/healthz")).status_code == 200
        await place.create("unplug")
        assert (await daemon.event("daemon.task_died"))["task"] == "web"
        assert await daemon.ended(within=30) == 1
