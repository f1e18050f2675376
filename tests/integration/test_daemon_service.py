"""What an operator expects of a service: ready when able, a status, and one daemon of a name."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests import places
from tests.daemons import Daemon


class Place(places.Place):
    """A place whose handlers behave in every way."""

    target = "tests.apps.behaviours:app"


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


async def test_the_service_manager_hears_of_readiness_after_the_first_look_and_of_the_drain(
    place: Place, tmp_path: Path
) -> None:
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)

        async def until(*words: str) -> str:
            while True:
                text = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 65536), 30)
                heard.append(text.decode())
                if all(word in heard[-1] for word in words):
                    return heard[-1]

        waiting = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        async with place.daemon(**waiting) as daemon:
            await until("STATUS=not ready:", "EXTEND_TIMEOUT_USEC=")
            await until("READY=1", "WATCHDOG=1")
            await daemon.event("daemon.ready")
            job_id = await place.create("wait", {"seconds": 1})
            await daemon.event("job.started", job_id=job_id)
            await until("1 of 3 running")
            daemon.signal(signal.SIGTERM)
            await until("STOPPING=1", "stopping, 1 of 3 running", "EXTEND_TIMEOUT_USEC=")
            assert await daemon.ended() == 0
            assert (await place.row(job_id))["status"] == "completed"
    assert "READY=1" not in heard[0]


async def test_a_second_daemon_of_a_name_is_refused_and_a_crashed_one_comes_back(place: Place) -> None:
    async with place.daemon(PROCESSOR_NAME=place.queue) as first:
        await first.event("daemon.ready")
        async with place.daemon(PROCESSOR_NAME=place.queue) as second:
            assert await second.ended() == 2
            assert f"a daemon called '{place.queue}' already works" in second.log()
        first.signal(signal.SIGKILL)
        await first.ended()
        async with place.daemon(PROCESSOR_NAME=place.queue) as third:
            await third.event("daemon.ready")


async def test_three_that_start_at_once_are_three_and_of_one_name_are_one(place: Place) -> None:
    names = [f"{place.queue}-{number}" for number in (1, 2, 3)]
    twins = [f"{place.queue}-same"] * 3
    daemons = await asyncio.gather(*(place.launch(PROCESSOR_NAME=name) for name in names + twins))
    try:
        await asyncio.gather(*(daemon.event("daemon.ready") for daemon in daemons[:3]))

        def refused() -> list[Daemon]:
            return [daemon for daemon in daemons[3:] if daemon.process.poll() == 2]

        await place.eventually(lambda: len(refused()) == 2, within=30)
        [left] = [daemon for daemon in daemons[3:] if daemon not in refused()]
        await left.event("daemon.ready")
        workers = (await place.rest.rpc("read_workers", {}).execute()).data
        alive = [w["name"] for w in workers if w["alive"] and w["name"].startswith(place.queue)]
        assert sorted(alive) == sorted({*names, *twins})
    finally:
        await asyncio.gather(*(daemon.close() for daemon in daemons))
