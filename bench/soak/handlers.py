"""The handlers of the soak: every way there is to be called, and to end."""

from __future__ import annotations

import asyncio
from typing import Any

from processor import JobContext, JobItem, Processor, Retry, SyncJobContext

KINDS = {
    "nothing": 850,
    "talk": 40,
    "items": 20,
    "again": 20,
    "steps": 20,
    "thread": 20,
    "crash": 15,
    "family": 14,
    "process": 1,
}
"""Of a thousand jobs, how many are of each kind. Starting processes takes longer than all the others."""

app = Processor()


def job(name: str, **options: Any) -> Any:
    """Declare a handler of the soak."""
    return app.job(f"soak.{name}", queue="soak", public=False, **options)


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


@job("steps")
async def steps(job: JobContext) -> list[int]:
    """Take steps, and come back after the first of them."""
    numbers = [await job.checkpoint("one", int, 1)]
    if job.attempt == 1:
        raise Retry("the other step is for the next attempt", delay=0)
    return [*numbers, await job.checkpoint("two", int, 2)]


@job("thread")
def thread(job: SyncJobContext) -> str:
    """Run in a thread."""
    job.progress(0.5)
    job.log.info("in a thread")
    return "woven"


@job("process", process=True)
def process(job: SyncJobContext) -> int:
    """Run in a process."""
    return sum(range(10_000))
