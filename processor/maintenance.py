"""Housekeeping: every few minutes, what would otherwise pile up in the database is cleared away.

Every daemon comes by; the database lets one at a time do the work, in bounded batches.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from processor.errors import ApiError
from processor.rpc import Rpc

BATCH = 1000
"""How many rows one call may take away: a fraction of a second."""
MAX_BATCHES = 100
"""How many calls a round may make for one task: some seconds. What is left waits for the next round."""

log = structlog.get_logger("processor.maintenance")


class Maintenance:
    """Makes a round every ``seconds``, give or take a fifth, the first after one such time."""

    def __init__(self, rpc: Rpc, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: dict[str, Callable[[int], Awaitable[int]]] = {
            "prune_jobs": rpc.prune_jobs,
            "expire_credits": rpc.expire_credits,
        }

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            # jittered: daemons that were started together come one after the other
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            for name, task in self._tasks.items():
                try:
                    await _in_batches(name, task)
                except ApiError as error:
                    log.warning("maintenance.failed", task=name, error=str(error))


async def _in_batches(name: str, task: Callable[[int], Awaitable[int]]) -> None:
    done = 0
    for _ in range(MAX_BATCHES):
        count = await task(BATCH)
        done += count
        if count < BATCH:
            break
    if done:
        log.info("maintenance.done", task=name, count=done)
