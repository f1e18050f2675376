"""What the service manager is told: systemd's notifications, one datagram each (``man 3 sd_notify``).

``READY=1`` once the daemon is able to work, ``STATUS=`` for ``systemctl status``, ``WATCHDOG=1`` only while
the loops that matter move, and more time for as long as a start or a drain is under way.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import structlog

_TICK_SECONDS = 10.0
"""Between two messages of a daemon that works."""
_CHANGING_SECONDS = 0.2
"""The same while it starts or stops: whoever waits for that waits no longer than it takes."""
_EXTENSION_SECONDS = 30
"""How long a start or a stop may go on after each message: a process that is frozen sends none."""
_RATE_SECONDS = 60.0
"""The time over which ``done/min`` is counted."""

log = structlog.get_logger("processor.notify")

Checks = Callable[[], Mapping[str, str | None]]
"""Name of a check → why it fails, or None."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What the daemon does at the moment."""

    feed: str
    """How it learns of jobs."""
    running: int
    slots: int
    ended: int
    """Attempts that have ended since the daemon began."""


class Notifier:
    """A line to the service manager; what it cannot take at once is lost, and soon said again."""

    def __init__(self, address: str) -> None:
        # the kernel's abstract names begin with a zero byte
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._failing = False

    def send(self, *fields: str) -> None:
        """Send ``NAME=value`` lines as one message; a failure is logged once until one succeeds."""
        try:
            self._socket.sendto("\n".join(fields).encode(), self._address)
        except OSError as error:
            if not self._failing:
                log.warning("notify.failed", error=str(error))
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Close the line."""
        self._socket.close()


class Announcer:
    """Tells the service manager how the daemon is, until cancelled.

    Args:
        notifier: the line to it.
        watchdog: seconds of silence after which it ends the process; None: it does not look.
        ready: what keeps the daemon from working; ``READY=1`` is sent when nothing does, for the first time.
        alive: what has come to a standstill; while anything has, the watchdog is not fed.
        stopping: whether the daemon is on its way out.
        activity: what it does.

    """

    def __init__(
        self,
        notifier: Notifier,
        watchdog: float | None,
        *,
        ready: Checks,
        alive: Checks,
        stopping: Callable[[], bool],
        activity: Callable[[], Activity],
    ) -> None:
        self._notifier = notifier
        self._pause = _TICK_SECONDS if watchdog is None else min(_TICK_SECONDS, watchdog / 3)
        self._ready = ready
        self._alive = alive
        self._stopping = stopping
        self._activity = activity
        self._was_ready = False
        self._standstill: tuple[str, ...] = ()
        self._ended: deque[tuple[float, int]] = deque()

    @classmethod
    def of(
        cls,
        environment: Mapping[str, str],
        *,
        ready: Checks,
        alive: Checks,
        stopping: Callable[[], bool],
        activity: Callable[[], Activity],
    ) -> Self | None:
        """Return what speaks to the service manager that started this process; None: none wants to hear."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        usec = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(usec) / 1_000_000 if ours and usec.isdecimal() and int(usec) else None
        return cls(
            Notifier(address), watchdog, ready=ready, alive=alive, stopping=stopping, activity=activity
        )

    async def run(self) -> None:
        """Tell it again and again, until cancelled."""
        try:
            while True:
                changing = self._tell()
                await asyncio.sleep(_CHANGING_SECONDS if changing else self._pause)
        finally:
            self._notifier.close()

    def stop(self) -> None:
        """Say at once that the daemon is on its way out, however long the next message would take."""
        self._tell()

    def _tell(self) -> bool:
        """Send one message; say whether the daemon is starting or stopping."""
        failing = _failing(self._ready())
        stopping = self._stopping()
        self._was_ready = self._was_ready or not failing
        fields = [f"STATUS={self._status(failing, stopping=stopping)}"]
        if self._lives():
            fields.append("WATCHDOG=1")
            if stopping or not self._was_ready:
                fields.append(f"EXTEND_TIMEOUT_USEC={_EXTENSION_SECONDS * 1_000_000}")
        if stopping:
            fields.append("STOPPING=1")
        elif self._was_ready:
            fields.append("READY=1")  # again and again: a message may be lost
        self._notifier.send(*fields)
        return stopping or not self._was_ready

    def _lives(self) -> bool:
        standstill = tuple(_failing(self._alive()))
        if standstill != self._standstill:
            self._standstill = standstill
            if standstill:
                log.critical("notify.standstill", reasons=standstill, consequence="the watchdog is not fed")
        return not standstill

    def _status(self, failing: list[str], *, stopping: bool) -> str:
        activity = self._activity()
        running = f"{activity.running} of {activity.slots} running"
        if stopping:
            return f"stopping, {running}"
        if failing:
            # a status is one line
            return " ".join(f"not ready: {'; '.join(failing)}".split())
        return f"{activity.feed}, {running}, {self._rate(activity.ended)} done/min"

    def _rate(self, ended: int) -> int:
        """Return how many attempts ended in the last minute."""
        now = asyncio.get_running_loop().time()
        self._ended.append((now, ended))
        while now - self._ended[0][0] > _RATE_SECONDS:
            self._ended.popleft()
        return ended - self._ended[0][1]


def _failing(checks: Mapping[str, str | None]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in checks.items() if reason is not None]
