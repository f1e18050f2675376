"""The world: a stack whose parts can be killed, daemons that reach it through proxies, and the witness."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg

from processor.local.postgres import Postgres
from tests.chaos.clock import Clock
from tests.chaos.levels import CHILDREN, Level
from tests.chaos.witness import Witness
from tests.conftest import DevProcess, RunningStack
from tests.daemons import Daemon
from tests.faults import FaultProxy

TARGET = "tests.chaos.app:app"
DAEMONS = 2
LEASE = 5.0
PATIENCE = 60.0
"""Seconds that anything may take which must happen."""

# what happens to rows is written down in the transaction in which it happens
RECORD = """
    create schema chaos;
    create table chaos.ends (job_id uuid not null, status text not null, attempt int not null);
    create table chaos.items_done (job_id uuid not null, key text not null);
    create function chaos.note_end() returns trigger language plpgsql security definer set search_path = ''
      as $$ begin insert into chaos.ends values (new.id, new.status, new.attempt); return null; end $$;
    create function chaos.note_item() returns trigger language plpgsql security definer set search_path = ''
      as $$ begin insert into chaos.items_done values (new.job_id, new.key); return null; end $$;
    create trigger note_end after update of status on public.jobs for each row
      when (old.status in ('pending', 'processing') and new.status not in ('pending', 'processing'))
      execute function chaos.note_end();
    create trigger note_item after update of status on public.job_items for each row
      when (old.status <> 'completed' and new.status = 'completed') execute function chaos.note_item();
"""


@dataclass(slots=True)
class Member:
    """A place in the fleet: a proxy, and the daemon that is behind it at the moment."""

    name: str
    proxy: FaultProxy
    clock: Clock | None
    spool: Path
    feed: str = "postgres_changes"
    daemon: Daemon | None = None

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the daemon has logged."""
        return [] if self.daemon is None else self.daemon.events

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.process.pid


@dataclass(slots=True)
class Freeze:
    """A process that stood still, by ``time.monotonic()``."""

    pid: int
    began: float
    ended: float = float("inf")


@dataclass(slots=True)
class Mishaps:
    """What was done to the world, as far as a judge must know it."""

    freezes: list[Freeze] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    """Of daemons that ended without having been killed."""
    late_starts: int = 0
    """How often a daemon found no API when it started, and was started again."""


class World:
    """PostgreSQL, gateway, daemons and witness; ``async with World(directory) as world``."""

    def __init__(self, directory: Path, *, daemons: int = DAEMONS, lease: float = LEASE) -> None:
        self.lease = lease
        self.witness = Witness()
        self.mishaps = Mishaps()
        self.fleet: list[Member] = []
        self.stack: RunningStack
        self._directory = directory
        self._daemons = daemons
        self._postgres = Postgres(directory / "postgres")
        self._gateway: DevProcess | None = None
        self._cleanup = AsyncExitStack()
        self._supervisor: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        async with self._cleanup:
            await self._start()
            self._cleanup = self._cleanup.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    async def _start(self) -> None:
        self._cleanup.push_async_callback(self._postgres.stop)
        await self._postgres.start()
        self._cleanup.callback(self._stop_gateway)
        await self.start_gateway()
        async with self.database() as database:
            await database.execute(RECORD)
        await self._cleanup.enter_async_context(self.witness)
        for number in range(self._daemons):
            proxy = await self._cleanup.enter_async_context(FaultProxy(self.stack.url, seed=number))
            # one clock is enough: it is a library's, and the others' daemons are as users run them
            clock = Clock.find(self._directory / f"clock-{number}") if number == 0 else None
            # every second one hears of jobs the other way
            feed = "broadcast" if number % 2 else "postgres_changes"
            member = Member(f"daemon {number}", proxy, clock, self._directory / f"spool-{number}", feed)
            self.fleet.append(member)
            self._cleanup.callback(self.kill_daemon, member)
            self.launch_daemon(member)
        self._supervisor = asyncio.create_task(self._supervise(), name="supervisor")
        self._cleanup.callback(self._supervisor.cancel)
        await self.ready()

    # -- the stack --------------------------------------------------------------------------------

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """Connect as the superuser."""
        connection = await asyncpg.connect(self._postgres.tcp_dsn())
        try:
            yield connection
        finally:
            await connection.close()

    async def start_gateway(self) -> None:
        """Start the gateway; again on the port where it was."""
        again = self._gateway is not None
        port = urlsplit(self.stack.url).port if again else 0
        directory = self._directory / "gateway"
        directory.mkdir(exist_ok=True)
        self._gateway = DevProcess(
            directory,
            *("--port", str(port), "--database-url", self._postgres.tcp_dsn()),
            *(["--no-schema"] if again else []),
        )
        self.stack = await asyncio.to_thread(self._gateway.ready)

    def kill_gateway(self) -> None:
        """Kill the gateway, so that it can say no farewell."""
        assert self._gateway is not None
        self._gateway.process.kill()
        self._gateway.stop()

    def _stop_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.stop()

    async def stop_postgres(self) -> None:
        """Stop PostgreSQL in order."""
        await self._postgres.stop()

    async def kill_postgres(self) -> None:
        """Kill PostgreSQL's first process; the others follow by themselves."""
        pid_file = self._directory / "postgres" / "cluster" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        await self._postgres.wait()
        await self._postgres.stop()

    async def start_postgres(self) -> None:
        """Start PostgreSQL where it was: the gateway knows no other address."""
        port = self._postgres.port
        self._postgres._wanted_port = port
        deadline = time.monotonic() + PATIENCE
        while True:
            await self._postgres.start()
            if self._postgres.port == port:
                return
            assert time.monotonic() < deadline, f"port {port} is not to be had any more"
            await self._postgres.stop()

    # -- the daemons ------------------------------------------------------------------------------

    def launch_daemon(self, member: Member) -> None:
        """Start a member's daemon."""
        member.spool.mkdir(exist_ok=True)
        member.daemon = Daemon.launch(
            TARGET,
            {
                "SUPABASE_URL": member.proxy.url,
                "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
                "PROCESSOR_NAME": member.name,
                "PROCESSOR_FEED": member.feed,
                "PROCESSOR_LEASE_SECONDS": str(self.lease),
                "PROCESSOR_POLL_SECONDS": "1",
                "PROCESSOR_HEALTH_SECONDS": "5",
                "PROCESSOR_SLOTS": "8",
                "PROCESSOR_PROCESSES": str(CHILDREN),
                "PROCESSOR_GRACE_SECONDS": "10",
                "PROCESSOR_CANCEL_GRACE_SECONDS": "3",
                "CHAOS_WITNESS": self.witness.address,
                "PROCESSOR_SPOOL_DIR": str(member.spool),
                **(member.clock.environment() if member.clock else {}),
            },
        )

    def kill_daemon(self, member: Member) -> None:
        """Kill -9."""
        daemon, member.daemon = member.daemon, None
        if daemon is not None:
            daemon.end()

    async def _supervise(self) -> None:
        """Start a daemon again that could not start because the API was away, as systemd does."""
        while True:
            for member in self.fleet:
                daemon = member.daemon
                if daemon is None or daemon.process.poll() is None:
                    continue
                if daemon.all("daemon.ready"):
                    raise AssertionError(f"{member.name} ended by itself:\n{daemon.log()}")
                self.mishaps.late_starts += 1
                self.launch_daemon(member)
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def frozen(self, member: Member) -> AsyncIterator[None]:
        """Stop a daemon's process, and let it go on at the end."""
        if not self.is_running(member):  # it could not start, and is started again in a moment
            yield
            return
        freeze = Freeze(member.pid, time.monotonic())
        self.mishaps.freezes.append(freeze)
        os.kill(freeze.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            freeze.ended = time.monotonic()
            with suppress(ProcessLookupError):  # killed meanwhile
                os.kill(freeze.pid, signal.SIGCONT)

    def fill_disk(self, member: Member, *, full: bool) -> None:
        """Let a daemon write nothing more to files, as if the disk were full; or again."""
        soft = 0 if full else resource.RLIM_INFINITY
        resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    async def stop_daemons(self) -> None:
        """End all daemons by SIGTERM; how they end is noted."""
        self._supervisor.cancel()
        for member in self.fleet:
            assert member.daemon is not None
            member.daemon.signal(signal.SIGTERM)
        for member in self.fleet:
            assert member.daemon is not None
            self.mishaps.exit_codes.append(await member.daemon.ended(within=PATIENCE))

    async def ready(self) -> None:
        """Wait until all daemons are up and woken by Realtime."""
        await until(self._all_live, self.describe)

    def _all_live(self) -> bool:
        if self._supervisor.done() and not self._supervisor.cancelled():
            self._supervisor.result()  # raises what it found
        return all(self._is_live(member) for member in self.fleet)

    @staticmethod
    def is_running(member: Member) -> bool:
        """Whether there is a process."""
        return member.daemon is not None and member.daemon.process.poll() is None

    @staticmethod
    def _is_live(member: Member) -> bool:
        if member.daemon is None:
            return False
        modes = member.daemon.all("feed.mode")
        fences = [event["event"] for event in member.daemon.events if event["event"].startswith("lease.")]
        fenced = "lease.fenced" in fences and fences[::-1].index("lease.fenced") < (
            fences[::-1].index("lease.renewed") if "lease.renewed" in fences else len(fences)
        )
        return bool(modes) and modes[-1]["mode"] == "realtime" and not fenced

    async def level(self, member: Member) -> Level:
        """Measure what a member's daemon holds, its tasks by their names."""
        assert member.daemon is not None
        daemon, seen = member.daemon, len(member.daemon.all("daemon.dump"))
        daemon.signal(signal.SIGUSR1)
        await until(lambda: len(daemon.all("daemon.dump")) > seen, self.describe)
        return Level.of(member.pid, [task["name"] for task in daemon.all("daemon.dump")[-1]["tasks"]])

    def describe(self) -> str:
        """Return what a person wants to read when something never happened."""
        lines = [f"{len(self.witness.going_on)} attempts go on"]
        for member in self.fleet:
            lines += [f"-- {member.name}", *map(str, member.events[-15:])]
        return "\n".join(lines)


async def until(condition: Any, describe: Any, within: float = PATIENCE, every: float = 0.05) -> None:
    """Wait until a condition holds; fail with a description after so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s:\n{describe()}"
        await asyncio.sleep(every)
