"""The order of things: look at every machine, canaries first, stop at the first failure, go back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from deploy.fleet.host import Machine
from deploy.fleet.inventory import Host, Inventory
from deploy.fleet.ssh import StepError

Tell = Callable[[str, str], None]
"""Hears what happens: the machine's name, and a line."""


class State(StrEnum):
    """What has become of a machine."""

    UNTOUCHED = "untouched"
    REFUSED = "refused"
    UPGRADED = "upgraded"
    WENT_BACK = "went back"
    UNCHANGED = "failed, unchanged"
    FAILED = "failed, went back"
    BROKEN = "BROKEN"


GOOD = {State.UPGRADED, State.WENT_BACK}
BAD = {State.UNCHANGED, State.FAILED, State.BROKEN}


@dataclass(slots=True)
class Report:
    """A machine's line in the table."""

    host: Host
    canary: bool
    state: State = State.UNTOUCHED
    before: str = ""
    """How its daemons were before anything was done."""
    said: str = ""
    """The installer's last words, or why it failed."""
    seconds: float = 0.0


@dataclass(slots=True)
class Rollout:
    """One deployment of a wheel to the machines of an inventory; without a wheel, of what they had before."""

    inventory: Inventory
    archive: bytes
    """What is brought to each machine."""
    wheel: str | None
    """Name of the wheel in the archive; None: every machine goes back to its previous version."""
    sockets: Path
    """An empty directory that only we can enter."""
    tell: Tell
    all_or_nothing: bool = False
    """Whether machines that are upgraded already go back too when another one fails."""
    reports: dict[str, Report] = field(init=False)
    _machines: dict[str, Machine] = field(init=False)
    _stopped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Make a report for each machine, which says that nothing was done there."""
        canaries = {host.name for host in self.inventory.canaries}
        hosts = self.inventory.hosts
        self.reports = {host.name: Report(host, host.name in canaries) for host in hosts}
        self._machines = {host.name: Machine(host, self.inventory, self.sockets) for host in hosts}

    def stop(self) -> None:
        """Begin with no further machine; those that are under way come to their end."""
        self._stopped = True

    async def check(self) -> bool:
        """Look at every machine, changing nothing; return whether all can be deployed to."""

        async def look(name: str) -> None:
            report = self.reports[name]
            try:
                report.before = await self._machines[name].check()
                self.tell(name, f"reached: {report.before}")
            except StepError as error:
                report.state, report.said = State.REFUSED, str(error)
                self.tell(name, str(error))

        await self._each(self.reports, look)
        return all(report.state is not State.REFUSED for report in self.reports.values())

    async def run(self) -> bool:
        """Go through all machines, canaries first; return whether all are as they should be.

        Nothing is begun where one machine cannot be reached: a fleet of two versions is for minutes, not for
        as long as it takes to mend that one.
        """
        if not await self.check():
            return False
        canaries = [name for name, report in self.reports.items() if report.canary]
        others = [name for name, report in self.reports.items() if not report.canary]
        try:
            for wave in (canaries, others):
                await self._each(wave, self._change)
            if self.all_or_nothing and any(r.state in BAD for r in self.reports.values()):
                done = [name for name, report in self.reports.items() if report.state is State.UPGRADED]
                await self._each(done, self._follow_back)
        finally:
            await self._each(self.reports, self._clean)
        return all(report.state in GOOD for report in self.reports.values())

    async def close(self) -> None:
        """Let all connections go."""

        async def let_go(name: str) -> None:
            await self._machines[name].close()

        await self._each(self.reports, let_go)

    async def _each(self, names: Iterable[str], do: Callable[[str], object]) -> None:
        """Do something with machines, so many at the same time as the inventory says."""
        room = asyncio.Semaphore(self.inventory.parallel)

        async def one(name: str) -> None:
            async with room:
                await do(name)  # type: ignore[misc]

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(one(name), name=f"deploy {name}")

    async def _change(self, name: str) -> None:
        if self._stopped:
            return
        report, machine, began = self.reports[name], self._machines[name], time.monotonic()
        before: str | None = None
        try:
            await machine.bring(self.archive)
            before = await machine.version()
            self.tell(name, "goes back" if self.wheel is None else "is upgraded")
            report.said = await (machine.go_back() if self.wheel is None else machine.install(self.wheel))
            await machine.judge(self._watch(report))
            report.state = State.UPGRADED if self.wheel is not None else State.WENT_BACK
            self.tell(name, f"{report.state}: {report.said}")
        except StepError as error:
            self.stop()
            report.said = f"{error} (after: {report.said})" if report.said else str(error)
            self.tell(name, f"failed: {report.said}")
            await self._rescue(report, machine, before)
        finally:
            report.seconds = time.monotonic() - began

    async def _rescue(self, report: Report, machine: Machine, before: str | None) -> None:
        """Bring the previous version back after a failure, unless the installer left the old one in place.

        It is asked again, because a connection that broke says nothing; and to go back from a version that
        was never left would end with the one before it.
        """
        report.state = State.BROKEN
        try:
            if before is None or await machine.version() == before:
                report.state = State.UNCHANGED
            elif self.wheel is not None:
                await self._back(report, machine, State.FAILED)
        except StepError as error:
            report.said = f"{report.said}; what it has now is not known: {error}"
            self.tell(report.host.name, f"BROKEN: {error}")

    async def _follow_back(self, name: str) -> None:
        report = self.reports[name]
        report.said = "another machine failed"
        await self._back(report, self._machines[name], State.WENT_BACK)

    async def _back(self, report: Report, machine: Machine, state: State) -> None:
        try:
            said = await machine.go_back()
            await machine.judge(self.inventory.settle_seconds)
            report.state = state
            self.tell(report.host.name, f"went back: {said}")
        except StepError as error:
            report.state = State.BROKEN
            report.said = f"{report.said}; going back failed too: {error}"
            self.tell(report.host.name, f"BROKEN: going back failed: {error}")

    async def _clean(self, name: str) -> None:
        try:
            await self._machines[name].clean()
        except StepError as error:
            self.tell(name, f"left behind what was brought: {error}")

    def _watch(self, report: Report) -> float:
        return self.inventory.canary_seconds if report.canary else self.inventory.settle_seconds


def counted(reports: Sequence[Report]) -> dict[str, int]:
    """Return how many machines are in each state that occurs."""
    return {state: n for state in State if (n := sum(report.state is state for report in reports))}
