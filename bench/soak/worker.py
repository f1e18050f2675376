"""The daemon that is watched: handlers of several kinds, and a count of what is in it, on SIGUSR2."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import sys
import threading
from typing import Any

import processor.daemon
from processor import JobContext, JobItem, Processor, Retry, config, log
from processor.feed.timings import FeedTimings

KINDS = {"nothing": 90, "talk": 4, "items": 2, "again": 2, "crash": 1, "family": 1}
"""Of a hundred jobs, how many are of each kind."""

app = Processor()


def job(name: str) -> Any:
    """Declare a handler of the soak."""
    return app.job(f"soak.{name}", queue="soak", public=False)


@job("nothing")
async def nothing(job: JobContext) -> None:
    """Do nothing."""


@job("talk")
async def talk(job: JobContext) -> dict[str, Any]:
    """Report progress and write lines, in more than one turn of the loop."""
    for step in range(3):
        job.progress(step, 3, f"step {step}")
        job.log.info("talking", step=step, payload=job.payload)
        await asyncio.sleep(0.01)
    return {"said": 3}


@job("items")
async def items(job: JobContext) -> dict[str, Any]:
    """Do three items."""

    async def one(item: JobItem) -> str:
        item.progress(0.5)
        return item.key.upper()

    return await job.each(one)


@job("again")
async def again(job: JobContext) -> int:
    """Succeed the second time."""
    if job.attempt == 1:
        raise Retry("not yet", delay=0)
    return job.attempt


@job("crash")
async def crash(job: JobContext) -> None:
    """Fail with a traceback that holds on to something."""
    ballast = "x" * 100_000
    raise ValueError(f"no use: {len(ballast)}")


@job("family")
async def family(job: JobContext) -> list[str]:
    """Have a child, and wait for it."""
    await job.spawn("soak.nothing", {"of": str(job.id)})
    return [child.status for child in job.join()]


def count() -> None:
    """Print how much there is of everything that could leak."""
    there = {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "blocks": sys.getallocatedblocks(),
    }
    print(json.dumps(there), flush=True)


async def main() -> int:
    """Run the daemon, with a feed that comes back as fast as it can."""
    processor.daemon.FeedTimings = functools.partial(FeedTimings, backoff_base=0.02)  # type: ignore[assignment,misc]
    settings = config.load()
    log.set_up(settings.log_level, settings.log_format, settings.secrets)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, count)
    return await processor.daemon.Daemon(app, settings).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
