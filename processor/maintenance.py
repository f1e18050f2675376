"""Housekeeping: every few minutes, what would otherwise pile up in the database is cleared away.

Every daemon comes by; the database lets one at a time do the work, in bounded batches. ``processor maintain``
does one round from a timer, which also works when every daemon is dead.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from processor.errors import ApiError
from processor.rpc import Rpc

BATCH = 1000
"""How many rows one call may take away: a fraction of a second."""
RESCUED = 100
"""How many jobs one call may take from dead workers: each ends or begins anew, with its items and credits."""
MAX_BATCHES = 100
"""How many calls a round may make for one task: some seconds. What is left waits for the next round."""

log = structlog.get_logger("processor.maintenance")


class Maintenance:
    """Makes a round every ``seconds``, give or take a fifth, the first after one such time."""

    def __init__(self, rpc: Rpc, seconds: float) -> None:
        self._rpc = rpc
        self._seconds = seconds

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            # jittered: daemons that were started together come one after the other
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            await clear_away(self._rpc)


async def clear_away(rpc: Rpc) -> dict[str, str]:
    """Delete jobs and expire credits whose time is over; return why a task failed, by its name."""
    failed = {}
    for name, task in (("prune_jobs", rpc.prune_jobs), ("expire_credits", rpc.expire_credits)):
        try:
            await _in_batches(name, task, BATCH)
        except ApiError as error:
            log.warning("maintenance.failed", task=name, error=str(error))
            failed[name] = str(error)
    return failed


async def rescue(rpc: Rpc) -> int:
    """Take jobs from dead workers if none is alive to do it; return how many are alive.

    Raises:
        ApiError: the project cannot be asked, or refuses.

    """
    alive = 0

    async def batch(size: int) -> int:
        nonlocal alive
        answer = await rpc.rescue_jobs(size)
        alive = answer.alive
        return answer.rescued

    await _in_batches("rescue_jobs", batch, RESCUED)
    return alive


async def _in_batches(name: str, task: Callable[[int], Awaitable[int]], size: int) -> None:
    done = 0
    for _ in range(MAX_BATCHES):
        count = await task(size)
        done += count
        if count < size:
            break
    if done:
        log.info("maintenance.done", task=name, count=done)
