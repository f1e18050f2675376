"""A real daemon's start, rest and end: signals, quiet, due times, health, lost leases."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from tests import places
from tests.daemons import Daemon

TARGET = "tests.apps.behaviours:app"


class Place(places.Place):
    """A place whose handlers behave in every way."""

    target = TARGET


@pytest.fixture
def place(stack, service, eventually: Callable[..., Awaitable[Any]]) -> Place:
    return Place(stack, service, eventually)


def launch_with_closed_input(place: Place) -> Daemon:
    clean = {n: value for n, value in os.environ.items() if not n.startswith(("SUPABASE", "PROCESSOR"))}
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" "$@" <&-', sys.executable, "-m", "processor", "run", TARGET],
        env=clean
        | {
            "SUPABASE_URL": place.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": place.stack.service_role_key,
            "TEST_PREFIX": place.queue,
            "PROCESSOR_LOG_FORMAT": "json",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return Daemon(process)


async def test_a_daemon_whose_standard_input_is_closed_works_and_leaves_in_order(place: Place) -> None:
    daemon = launch_with_closed_input(place)
    try:
        await daemon.ready()
        await place.becomes(await place.create("greet", {"name": "x"}), "completed")
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0, daemon.log()
    finally:
        await daemon.close()


async def test_sigterm_lets_a_running_job_finish_and_leaves(place: Place, admin: asyncpg.Connection) -> None:
    async with place.daemon() as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        job_id = await place.create("wait", {"seconds": 0.7})
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        await daemon.event("daemon.stopping")
        late = await place.create("greet", {"name": "x"})
        assert await daemon.ended() == 0
        assert (await place.row(job_id))["result"] == "waited"
        assert (await place.row(late))["status"] == "pending"
        assert (
            await admin.fetchval("select count(*) from public.job_workers where id = $1::uuid", worker_id)
            == 0
        )


async def test_what_outlives_the_grace_goes_back_without_costing_an_attempt(place: Place) -> None:
    async with place.daemon(PROCESSOR_GRACE_SECONDS="0.2") as daemon:
        await daemon.ready()
        job_id = await place.create("wait", {"seconds": 30})
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        await daemon.event("job.released", job_id=job_id)
    row = await place.row(job_id)
    assert (row["status"], row["failures"], row["worker_id"]) == ("pending", 0, None)


async def test_a_second_signal_hurries(place: Place) -> None:
    async with place.daemon(PROCESSOR_GRACE_SECONDS="60") as daemon:
        await daemon.ready()
        job_id = await place.create("wait", {"seconds": 30})
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGINT)
        await daemon.event("daemon.stopping")
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=5) == 0
    assert (await place.row(job_id))["status"] == "pending"


async def test_a_job_due_later_starts_at_its_time_without_polling(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        due = datetime.now(UTC) + timedelta(seconds=1.5)
        job_id = await place.create("greet", {"name": "x"}, run_at=due.isoformat())
        started = await daemon.event("job.started", job_id=job_id)
        assert 0 <= started["started_at"] - due.timestamp() < 0.05
        assert started["wake"] == "due"
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert (await daemon.event("daemon.stopped"))["calls"]["claim_jobs"] <= 6


async def test_an_idle_daemon_is_quiet(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        await asyncio.sleep(8)  # the passing of time is what is tested
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        calls = (await daemon.event("daemon.stopped"))["calls"]
    # to begin: register, look once, look again when Realtime is there; then heartbeats, 30 s apart
    assert calls.pop("deregister_worker") == 1
    assert calls["claim_jobs"] <= 3
    assert calls["heartbeat_worker"] <= 4
    assert sum(calls.values()) <= 8


async def test_health_says_ok_while_it_works_and_why_not_while_it_stops(place: Place) -> None:
    async with place.daemon(PROCESSOR_HTTP_PORT="0") as daemon:
        url = (await (await daemon.ready()).event("daemon.listening"))["url"]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            checks = dict.fromkeys(("background", "heartbeats", "claims"), "ok")
            assert (await http.get("/healthz")).json() == {"status": "ok", "checks": checks}

            async def ready() -> bool:
                return (await http.get("/readyz")).status_code == 200

            await place.eventually(ready)
            job_id = await place.create("wait", {"seconds": 1})
            await daemon.event("job.started", job_id=job_id)
            daemon.signal(signal.SIGTERM)
            await daemon.event("daemon.stopping")
            answer = await http.get("/readyz")
            assert (answer.status_code, answer.json()["checks"]["accepting"]) == (503, "it is stopping")
            assert (await http.get("/healthz")).status_code == 200
        assert await daemon.ended() == 0


async def test_status_tells_what_it_is_doing_and_why_it_takes_no_work(place: Place) -> None:
    async with place.daemon(PROCESSOR_HTTP_PORT="0", PROCESSOR_NAME="web-1") as daemon:
        url = (await (await daemon.ready()).event("daemon.listening"))["url"]
        job_id = await place.create("wait", {"seconds": 30})
        await daemon.event("job.started", job_id=job_id)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            told = (await http.get("/status")).json()
            assert (told["ready"], told["why_not"]) == (True, {})
            assert (told["name"], told["pid"], told["slots"]) == ("web-1", daemon.process.pid, 3)
            assert told["worker_id"] == daemon.all("daemon.ready")[0]["worker_id"]
            assert (told["running"], told["running_kinds"]) == (1, {f"{place.queue}.wait": 1})
            assert (told["feed"]["mode"], told["feed"]["connections"]) == ("realtime", 1)
            assert 0 < told["lease_left_seconds"] <= 90
            assert told["spool"] == {"records": 0, "bytes": 0, "oldest_seconds": 0}
            assert told["calls"]["register_worker"] == 1
            assert job_id not in json.dumps(told)
            daemon.signal(signal.SIGTERM)
            await daemon.event("daemon.stopping")
            told = (await http.get("/status")).json()
            assert (told["ready"], told["why_not"]) == (False, {"accepting": "it is stopping"})
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0


async def test_a_forgotten_worker_registers_again_and_goes_on(
    place: Place, admin: asyncpg.Connection
) -> None:
    async with place.daemon(PROCESSOR_LEASE_SECONDS="3") as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        await admin.execute("delete from public.job_workers where id = $1::uuid", worker_id)
        job_id = await place.create("greet", {"name": "x"})
        assert (await place.becomes(job_id, "completed"))["attempt"] == 1


async def test_a_frozen_daemon_gives_up_what_another_has_rescued(place: Place) -> None:
    async with place.daemon(PROCESSOR_LEASE_SECONDS="3") as first:
        await first.ready()
        job_id = await place.create("wait", {"seconds": 8})
        await first.event("job.started", job_id=job_id)
        first.signal(signal.SIGSTOP)
        try:
            async with place.daemon(PROCESSOR_LEASE_SECONDS="3") as second:
                await second.ready()
                await second.event("job.started", job_id=job_id, attempt=2)
                first.signal(signal.SIGCONT)
                await first.event("job.lost", job_id=job_id)
                second.signal(signal.SIGTERM)
                assert (await place.becomes(job_id, "completed", within=20))["attempt"] == 2
        finally:
            first.signal(signal.SIGCONT)
        assert first.all("job.finished", job_id=job_id) == []


async def test_jobs_waiting_before_the_start_are_found_by_the_first_look(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
    job_id = await place.create("greet", {"name": "x"})
    began = time.monotonic()
    async with place.daemon() as daemon:
        assert (await daemon.event("job.started", job_id=job_id))["wake"] == "sweep"
        await place.becomes(job_id, "completed")
    assert time.monotonic() - began < 10


async def test_without_realtime_it_polls(place: Place) -> None:
    async with place.daemon(PROCESSOR_FEED="polling", PROCESSOR_POLL_SECONDS="0.3") as daemon:
        await daemon.event("daemon.ready")
        # the first sweep, a heartbeat or the claim after the last job may be quicker, but not every time
        for _ in range(10):
            job_id = await place.create("greet", {"name": "x"})
            await daemon.event("job.finished", job_id=job_id)
            if daemon.all("job.started", wake="polling"):
                break
        assert daemon.all("job.started", wake="polling")
        assert not daemon.all("feed.mode")


@pytest.mark.parametrize("kind", ["deaf", "blocking"])
async def test_a_handler_that_cannot_be_stopped_does_not_keep_the_process(place: Place, kind: str) -> None:
    async with place.daemon(PROCESSOR_GRACE_SECONDS="0", PROCESSOR_CANCEL_GRACE_SECONDS="0.2") as daemon:
        await daemon.ready()
        job_id = await place.create(kind)
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=12) == 0
        await daemon.event("daemon.stopped")
