"""Real daemons that end, one way or another, while the API is away: what they had done is not done again."""

import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from processor.spool import files
from tests import places
from tests.faults import FaultProxy


class Island(places.Place):
    """A spool directory, and daemons that reach the API through a proxy."""

    target = "tests.apps.behaviours:app"

    def __init__(self, stack, proxy: FaultProxy, directory: Path, rest, eventually) -> None:
        super().__init__(stack, rest, eventually)
        self.proxy = proxy
        self.directory = directory

    def environment(self, **settings: str) -> dict[str, str]:
        mine = {"SUPABASE_URL": self.proxy.url, "PROCESSOR_SPOOL_DIR": str(self.directory)}
        return super().environment(**{**mine, **settings})

    async def row(self, job_id: str) -> dict[str, Any]:
        query = self.rest.table("jobs").select("*, job_items(*)").eq("id", job_id)
        return (await query.single().execute()).data

    async def becomes(self, job_id: str, status: str, within: float = 30.0) -> dict[str, Any]:
        return await super().becomes(job_id, status, within)

    def take_the_api_away(self) -> None:
        self.proxy.refuse("http")
        self.proxy.cut("http")

    async def keeps(self, *job_ids: str, within: float = 15.0) -> None:
        """Wait until an outcome of each of these jobs is on disk."""
        await self.eventually(
            lambda: all(
                any(job_id.encode() in path.read_bytes() for path in files(self.directory))
                for job_id in job_ids
            ),
            within=within,
        )


@pytest.fixture
async def island(stack, service, eventually, tmp_path: Path) -> AsyncIterator[Island]:
    async with FaultProxy(stack.url) as proxy:
        yield Island(stack, proxy, tmp_path / "spool", service, eventually)


async def test_what_was_done_before_kill_9_is_handed_in_by_the_next_daemon_and_paid_once(
    island: Island, admin: asyncpg.Connection, new_user
) -> None:
    user = await new_user(credits=10)
    keys = [{"key": "a"}, {"key": "b", "payload": {"seconds": 0.5}}]
    async with island.daemon(PROCESSOR_LEASE_SECONDS="5") as daemon:
        await daemon.ready()
        done = await island.create("wait", {"seconds": 0.5})
        half = await island.create("items", items=keys, owner_id=user.id)
        for job_id in (done, half):
            await daemon.event("job.started", job_id=job_id)
        island.take_the_api_away()
        await island.keeps(done, half)
        daemon.process.kill()
        await daemon.ended()
    assert (await island.row(done))["status"] == "processing"

    await island.proxy.heal()
    async with island.daemon(PROCESSOR_LEASE_SECONDS="3") as heir:
        told = await heir.event("spool.replayed")
        assert (told["stale"], told["refused"]) == (0, 0)
        row = await island.row(done)
        assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "waited")
        # the other one's handler waited for the API itself: it goes back with its lease, all items done
        await heir.event("job.started", job_id=half, attempt=2, items=0, within=30)
        row = await island.becomes(half, "completed")
        assert [(item["key"], item["attempts"]) for item in row["job_items"]] == [("a", 1), ("b", 1)]
        assert (row["credits_captured"], row["credits_refunded"]) == (2, 0)
        assert heir.all("job.started", job_id=done) == []
    assert await admin.fetch("select * from processor.check_credits()") == []
    assert files(island.directory) == []


async def test_sigterm_without_the_api_leaves_results_for_the_next_start(
    island: Island, admin: asyncpg.Connection
) -> None:
    async with island.daemon(PROCESSOR_GRACE_SECONDS="3") as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        done = await island.create("wait", {"seconds": 0.5})
        cut_off = await island.create("wait", {"seconds": 30})
        for job_id in (done, cut_off):
            await daemon.event("job.started", job_id=job_id)
        island.take_the_api_away()
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=40) == 0
        told = await daemon.event("daemon.results_kept", outcomes=2)
        assert told["directory"] == str(island.directory)

    # an heir that finds no API waits for it, unless it is told to stop
    async with island.daemon() as waiting:
        await waiting.event("rpc.repeated", function="finish_jobs")
        waiting.signal(signal.SIGTERM)
        assert await waiting.ended() == 0
        assert waiting.all("daemon.ready") == []

    await island.proxy.heal()
    workers = "select count(*) from public.job_workers where id = $1::uuid"
    assert await admin.fetchval(workers, worker_id) == 1  # leaving would have given the jobs back
    async with island.daemon() as heir:
        await heir.event("spool.replayed", taken=2)
        row = await island.row(done)
        assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "waited")
        await heir.event("job.started", job_id=cut_off, attempt=2)
        row = await island.row(cut_off)
        assert (row["failures"], row["crashes"]) == (0, 0)  # given back, not rescued


async def test_what_another_has_done_meanwhile_stands_and_is_told(island: Island, tmp_path: Path) -> None:
    async with island.daemon(PROCESSOR_LEASE_SECONDS="3") as daemon:
        await daemon.ready()
        job_id = await island.create("wait", {"seconds": 0.5})
        await daemon.event("job.started", job_id=job_id)
        island.take_the_api_away()
        await island.keeps(job_id)
        daemon.process.kill()
        await daemon.ended()
    elsewhere = {"SUPABASE_URL": island.stack.url, "PROCESSOR_SPOOL_DIR": str(tmp_path / "elsewhere")}
    async with island.daemon(PROCESSOR_LEASE_SECONDS="3", **elsewhere) as rescuer:
        await rescuer.event("job.started", job_id=job_id, attempt=2, within=30)
        before = await island.becomes(job_id, "completed")
    await island.proxy.heal()
    async with island.daemon() as heir:
        told = await heir.event("spool.stale", job_id=job_id)
        assert (told["attempt"], told["status"]) == (1, "completed")
        await heir.event("spool.replayed", taken=0, stale=1)
    assert await island.row(job_id) == before
    assert files(island.directory) == []


async def test_what_was_done_is_offered_after_the_lease_has_ended_too(island: Island) -> None:
    async with island.daemon(PROCESSOR_LEASE_SECONDS="3") as daemon:
        await daemon.ready()
        done = await island.create("wait", {"seconds": 0.5})
        running = await island.create("wait", {"seconds": 60})
        for job_id in (done, running):
            await daemon.event("job.started", job_id=job_id)
        island.take_the_api_away()
        await daemon.event("lease.fenced", running=2)
        await island.keeps(done)
        await island.proxy.heal()
        assert (await island.becomes(done, "completed"))["attempt"] == 1
        await daemon.event("spool.drained")
        assert len(daemon.all("job.started", job_id=done)) == 1


async def test_without_api_and_disk_results_are_lost_and_it_says_so(island: Island) -> None:
    async with island.daemon(PROCESSOR_GRACE_SECONDS="0.2", PROCESSOR_CANCEL_GRACE_SECONDS="0.2") as daemon:
        await daemon.ready()
        job_id = await island.create("wait", {"seconds": 0.5})
        await daemon.event("job.started", job_id=job_id)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        island.take_the_api_away()
        told = await daemon.event("spool.failed")
        assert "File too large" in told["error"]
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=60) == 1
        await daemon.event("daemon.results_lost", outcomes=1)
    assert files(island.directory) == []


async def test_daemons_share_a_directory_and_the_living_look_after_the_dead(island: Island) -> None:
    async with (
        island.daemon(PROCESSOR_LEASE_SECONDS="60") as dying,
        island.daemon(PROCESSOR_LEASE_SECONDS="3", PROCESSOR_QUEUES=island.queue) as living,
    ):
        for daemon in (dying, living):
            await daemon.ready()
        jobs = [await island.create("wait", {"seconds": 1.5}) for _ in range(6)]
        of = {}
        for job_id in jobs:
            await island.eventually(
                lambda job_id=job_id: (
                    dying.all("job.started", job_id=job_id) or living.all("job.started", job_id=job_id)
                ),
                within=15,
            )
            of[job_id] = dying if dying.all("job.started", job_id=job_id) else living
        island.take_the_api_away()
        await island.keeps(*jobs)
        assert len(files(island.directory)) == 2
        dying.process.kill()
        await dying.ended()
        await island.proxy.heal()
        await living.event("spool.replayed", stale=0, within=30)
        for job_id in jobs:
            assert (await island.becomes(job_id, "completed"))["attempt"] == 1
        assert {job_id for job_id in jobs if of[job_id] is living} == {
            event["job_id"] for event in living.all("job.started")
        }
        await living.event("spool.drained")
    assert files(island.directory) == []
