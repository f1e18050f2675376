"""Until when this process may believe that the jobs it runs are its own."""

import math
import time
from collections.abc import Callable

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Boot time goes on while the machine is suspended, which the loop's clock does not everywhere."""


def clock() -> float:
    """Return seconds of the clock on which leases end; every process of the machine reads the same."""
    return time.clock_gettime(_CLOCK)


class Hold:
    """The end of the lease, for whoever must not act after it: asking costs a look at the clock.

    A process that was frozen finds it over before anybody could tell it so.
    """

    def __init__(self) -> None:
        self.ends = -math.inf
        self._listeners: list[Callable[[float], None]] = []

    @property
    def holds(self) -> bool:
        """Whether it still is ours; may be asked from any thread."""
        return clock() < self.ends

    def extend(self, ends: float) -> None:
        """Hold it until ``ends`` of :func:`clock`."""
        self.ends = ends
        for listener in self._listeners:
            listener(ends)

    def on_extended(self, listener: Callable[[float], None]) -> None:
        """Tell ``listener`` every new end."""
        self._listeners.append(listener)
