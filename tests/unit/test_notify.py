"""What the service manager is told, and when it is told nothing."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processor import notify
from processor.notify import Activity, Announcer


class Manager:
    """The service manager's end of the line."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address)

    async def message(self) -> dict[str, str]:
        text = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 65536), 10)
        return dict(line.split("=", 1) for line in text.decode().splitlines())

    async def until(self, **fields: str) -> dict[str, str]:
        while True:
            message = await self.message()
            if fields.items() <= message.items():
                return message

    def drop(self) -> None:
        """Forget what was sent so far."""
        try:
            while True:
                self.socket.recv(65536)
        except BlockingIOError:
            pass


class Daemon:
    """What an announcer looks at."""

    def __init__(self) -> None:
        self.problem: str | None = "not yet\nat all"
        self.standstill: str | None = None
        self.stopping = False
        self.activity = Activity("polling", 0, 3, 0)

    def announcer(self, environment: dict[str, str]) -> Announcer | None:
        return Announcer.of(
            environment,
            ready=lambda: {"first": None, "second": self.problem},
            alive=lambda: {"claims": self.standstill},
            stopping=lambda: self.stopping,
            activity=lambda: self.activity,
        )


@pytest.fixture
def manager(tmp_path: Path):
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(notify, "_CHANGING_SECONDS", 0.01)


@asynccontextmanager
async def announcing(daemon: Daemon, address: str) -> AsyncIterator[Announcer]:
    announcer = daemon.announcer({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000"})
    assert announcer is not None
    task = asyncio.create_task(announcer.run(), name="announcer")
    try:
        yield announcer
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_it_is_ready_when_nothing_keeps_it_from_working_and_has_time_until_then(
    manager: Manager, tmp_path: Path
) -> None:
    daemon = Daemon()
    async with announcing(daemon, str(tmp_path / "notify")):
        first = await manager.message()
        assert first["STATUS"] == "not ready: second: not yet at all"
        assert first["EXTEND_TIMEOUT_USEC"] == "30000000"
        assert "READY" not in first
        daemon.problem = None
        ready = await manager.until(READY="1")
        assert ready["STATUS"] == "polling, 0 of 3 running, 0 done/min"
        assert "EXTEND_TIMEOUT_USEC" not in ready


async def test_it_stays_ready_and_alive_while_something_is_wrong_that_a_restart_would_not_mend(
    manager: Manager, tmp_path: Path
) -> None:
    daemon = Daemon()
    async with announcing(daemon, str(tmp_path / "notify")):
        daemon.problem = None
        await manager.until(READY="1")
        daemon.problem = "the API is away"
        later = await manager.until(STATUS="not ready: second: the API is away")
        assert (later["READY"], later["WATCHDOG"]) == ("1", "1")


async def test_the_status_counts_what_is_done_in_a_minute(manager: Manager, tmp_path: Path) -> None:
    daemon = Daemon()
    daemon.problem, daemon.activity = None, Activity("realtime", 2, 3, 100)
    async with announcing(daemon, str(tmp_path / "notify")):
        await manager.until(STATUS="realtime, 2 of 3 running, 0 done/min")
        daemon.activity = Activity("realtime", 1, 3, 107)
        await manager.until(STATUS="realtime, 1 of 3 running, 7 done/min")


async def test_the_watchdog_is_not_fed_while_a_loop_stands_still(manager: Manager, tmp_path: Path) -> None:
    daemon = Daemon()
    daemon.problem = None
    async with announcing(daemon, str(tmp_path / "notify")):
        await manager.until(WATCHDOG="1")
        daemon.standstill = "no claim has begun"
        manager.drop()
        assert "WATCHDOG" not in await manager.message()
        assert "WATCHDOG" not in await manager.message()
        daemon.standstill = None
        await manager.until(WATCHDOG="1")


async def test_a_stop_is_told_at_once_and_has_time_as_long_as_it_lives(
    manager: Manager, tmp_path: Path
) -> None:
    daemon = Daemon()
    daemon.problem = None
    async with announcing(daemon, str(tmp_path / "notify")) as announcer:
        await manager.until(READY="1")
        manager.drop()
        daemon.stopping = True
        announcer.stop()
        told = await manager.message()
        assert (told["STOPPING"], told["STATUS"]) == ("1", "stopping, 0 of 3 running")
        assert "EXTEND_TIMEOUT_USEC" in told
        assert "READY" not in told


async def test_an_abstract_address_is_spoken_to(tmp_path: Path) -> None:
    name = f"processor-test-{os.getpid()}-{tmp_path.name}"
    manager = Manager(f"\0{name}")
    try:
        async with announcing(Daemon(), f"@{name}"):
            assert "STATUS" in await manager.message()
    finally:
        manager.socket.close()


async def test_a_manager_that_is_away_costs_nothing_and_hears_the_next_message(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    async with announcing(Daemon(), address):
        await asyncio.sleep(0)  # the first message finds nobody
        manager = Manager(address)
        try:
            await manager.message()
        finally:
            manager.socket.close()


def test_without_a_manager_nothing_is_announced() -> None:
    assert Daemon().announcer({}) is None


@pytest.mark.parametrize(
    ("environment", "pause"),
    [
        ({}, 0.02),
        ({"WATCHDOG_USEC": "30000"}, 0.01),
        ({"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}, 0.02),
        ({"WATCHDOG_USEC": "0"}, 0.02),
        ({"WATCHDOG_USEC": "soon"}, 0.02),
    ],
)
def test_it_speaks_three_times_in_the_watchdogs_time(environment: dict[str, str], pause: float) -> None:
    announcer = Daemon().announcer({"NOTIFY_SOCKET": "/nowhere", **environment})
    assert announcer is not None
    assert announcer._pause == pytest.approx(pause)
    announcer._notifier.close()
