"""Handlers with durable steps; names carry TEST_PREFIX. A step says "step" whenever it is really taken."""

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from processor import (
    Discard,
    JobContext,
    JobError,
    JobItem,
    Processor,
    Retry,
    Snooze,
    SyncJobContext,
    SyncJobItem,
)

PREFIX = os.environ.get("TEST_PREFIX", "test")
KIB = 1024
app = Processor()


def job(name: str, **options):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


async def taken(job: JobContext, name: str, result: Any = None) -> Any:
    job.log.info("step", step=name)
    return result


@job("chain")
async def chain(job: JobContext) -> list:
    """Take three steps, and end after the second one as the payload says, once."""
    results = [await job.checkpoint("one", taken, job, "one", {"n": 1})]
    results.append(await job.checkpoint("two", taken, job, "two"))
    match job.payload.get("end"):
        case "kill" if job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash" if job.attempt == 1:
            raise JobError("stumbled", code="STUMBLED", retry_after=0)
        case "snooze" if job.attempt == 1:
            raise Snooze(0)
        case "discard" if not job.payload.get("mended") and job.attempt == 1:
            raise Discard("not today")
    results.append(await job.checkpoint("three", lambda: [job.attempt]))
    return results


def sync_steps(job: SyncJobContext) -> list:
    """Take steps that block, with one shared by all items, and stumble after them once."""

    def one(item: SyncJobItem) -> str:
        return item.key + job.checkpoint("token", token, 1, b=2)

    def token(a: int, b: int) -> str:
        job.log.info("step", step="token")
        return f"t{a}{b}"

    results = [job.checkpoint("first", dict, n=(1, 2))]
    if job.attempt == 1:
        results.append(job.each(one))
        raise Retry("and once more", delay=0)
    return [*results, job.checkpoint("token", token, 1, b=2)]


@job("thread")
def thread(job: SyncJobContext) -> list:
    """Take steps in a thread."""
    return sync_steps(job)


@job("process", process=True)
def process(job: SyncJobContext) -> list:
    """Take steps in a process."""
    return sync_steps(job)


@job("values")
async def values(job: JobContext) -> list:
    """Say what a step's result looks like in each of two attempts."""

    def made() -> dict:
        return {"long name": (1, 2.0), "b": datetime(2026, 1, 2, tzinfo=UTC), "a": None, "n": 1e23}

    got = await job.checkpoint("made", made)
    got["n"] += 1
    job.log.info("got", value=json.dumps(await job.checkpoint("made", made) if job.attempt == 2 else got))
    if job.attempt == 1:
        raise Retry("and once more", delay=0)
    return [await job.checkpoint("nothing", taken, job, "nothing"), got["n"]]


@job("shared", item_concurrency=4)
async def shared(job: JobContext) -> dict:
    """Need one step in all items, and one in each."""

    async def token() -> str:
        await taken(job, "token")
        await asyncio.sleep(0)  # let the others come
        return "t"

    async def one(item: JobItem) -> str:
        mine = await job.checkpoint(f"{item.key}/own", taken, job, item.key, item.key.upper())
        return mine + await job.checkpoint("token", token)

    return await job.each(one)


@job("second_try")
async def second_try(job: JobContext) -> list:
    """Take another way when a step has failed."""

    def bad() -> None:
        raise ValueError("no")

    try:
        await job.checkpoint("way", bad)
    except ValueError as error:
        return [str(error), await job.checkpoint("way", taken, job, "way", "the other")]


@job("mistaken")
async def mistaken(job: JobContext) -> None:
    """Make the mistake that the payload names."""
    match job.payload["mistake"]:
        case "loop":
            for number in range(2):
                await job.checkpoint("page", taken, job, "page", number)
        case "nested":

            async def inside() -> None:
                await job.checkpoint("it", inside)

            await job.checkpoint("it", inside)
        case "name":
            await job.checkpoint("x" * 201, taken, job, "long")
        case "nul":
            await job.checkpoint("a\x00b", taken, job, "nul")
        case "call":
            await job.checkpoint(taken, job)
        case "result":
            await job.checkpoint("odd", object)
        case "huge":
            await job.checkpoint("huge", lambda: "x" * KIB * KIB)


@job("big")
async def big(job: JobContext) -> list:
    """Have more results than a claim carries."""
    texts = [
        await job.checkpoint(f"text {n}", taken, job, str(n), str(n) * (KIB * KIB - 2)) for n in range(6)
    ]
    if job.attempt == 1:
        raise Retry("and once more", delay=0)
    return [[text[0], len(text), len(set(text))] for text in texts]


@job("frozen")
async def frozen(job: JobContext) -> int:
    """Block the whole daemon in the first attempt, until a file is there."""

    def blocked() -> int:
        while job.attempt == 1 and not Path(job.payload["file"]).exists():
            time.sleep(0.05)
        return job.attempt

    job.log.info("blocking")
    return await job.checkpoint("slow", blocked)
