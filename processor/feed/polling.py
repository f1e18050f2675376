"""Polling: the feed's other way to say "look", for as long as Realtime cannot be trusted."""

import asyncio
import random
from collections.abc import Callable

_SHORTEST = 0.8
"""The shortest pause, as a share of the interval: workers spread out, and none waits longer than it."""


class Poller:
    """Calls `poll` at once when resumed, then again after every jittered interval, until paused.

    :param poll: called in the event loop; must not raise
    :param interval: the longest pause between two calls, in seconds
    """

    def __init__(self, poll: Callable[[], None], interval: float) -> None:
        self._poll = poll
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Poll now, and from now on. Does nothing while it polls already."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="feed-poller")

    def pause(self) -> None:
        """Poll no more until resumed. Does nothing while paused."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> None:
        while True:
            self._poll()
            await asyncio.sleep(self._interval * random.uniform(_SHORTEST, 1))  # noqa: S311  jitter, no secret
