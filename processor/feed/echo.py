"""The echo: the worker's own heartbeat, which must come back as a change of its row."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

_ROUNDING = timedelta(milliseconds=10)
"""The time of a heartbeat comes by two ways, each with a precision of its own."""

_UNREAD = 0.1
"""Seconds after its deadline in which an echo counts: it may lie unread if a handler blocked the loop."""


class Echo:
    """Waits for one heartbeat at a time.

    :param timeout: how long one may take to come back, in seconds
    :param missed: called when it has not
    :param came: called when it has, with the seconds since it was known of here
    """

    def __init__(
        self, timeout: float, missed: Callable[[], None], came: Callable[[float], None] = lambda _took: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._missed = missed
        self._came = came
        self._since = 0.0
        self._latest: datetime | None = None
        self._awaited: tuple[datetime, asyncio.TimerHandle] | None = None

    @property
    def awaited(self) -> datetime | None:
        """The heartbeat that is waited for."""
        return self._awaited[0] if self._awaited else None

    def expect(self, at: datetime) -> None:
        """Wait for the heartbeat the server made at this time (its clock), unless one is awaited already."""
        if self._awaited is None and not self._has_come(at):
            self._since = time.monotonic()
            self._awaited = (at, self._loop.call_later(self._timeout, self._read_on))

    def heard(self, at: datetime) -> None:
        """Take note of a heartbeat that came back."""
        self._latest = max(at, self._latest or at)
        if self._awaited and self._has_come(self._awaited[0]):
            self.cancel()
            self._came(time.monotonic() - self._since)

    def cancel(self) -> None:
        """Wait no more."""
        awaited, self._awaited = self._awaited, None
        if awaited:
            awaited[1].cancel()

    def _has_come(self, at: datetime) -> bool:
        return self._latest is not None and self._latest >= at - _ROUNDING

    def _read_on(self) -> None:
        if self._awaited:
            self._awaited = (self._awaited[0], self._loop.call_later(_UNREAD, self._missed))
