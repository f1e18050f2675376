"""Handlers whose lives are told to others; names carry TEST_PREFIX."""

import asyncio
import os

from pydantic import BaseModel

from processor import JobContext, JobItem, Processor, Retry

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()


class Greeting(BaseModel):
    name: str


def job(name: str, **options):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


@job("greet")
async def greet(job: JobContext[Greeting]) -> dict:
    return {"hello": job.payload.name}


@job("nap")
async def nap(job: JobContext) -> None:
    await asyncio.sleep(job.payload.get("seconds", 0.02))


@job("again")
async def again(job: JobContext) -> int:
    """Succeed in the second attempt."""
    if job.attempt == 1:
        raise Retry("not yet", delay=2)
    return job.attempt


@job("steps")
async def steps(job: JobContext) -> None:
    for step in range(1, 11):
        job.progress(step, 10, f"step {step}")
        await asyncio.sleep(0.05)


@job("items")
async def items(job: JobContext) -> None:
    async def one(item: JobItem) -> str:
        return item.key

    await job.each(one)
