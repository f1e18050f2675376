"""The application of the acceptance tests: handlers that leave traces others can read."""

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from processor import Discard, JobContext, Processor

QUEUE = os.environ.get("SHOP_QUEUE", "shop")
TRACES = Path(os.environ["SHOP_TRACES"])
"""A directory: one line per thing done, in a file per kind of thing; appends are atomic."""

app = Processor()


class Order(BaseModel):
    """What a job of the shop carries."""

    seconds: float = Field(0.0, ge=0)
    fail: list[str] = []
    name: str = ""


def trace(what: str, *words: Any) -> None:
    """Append a line to a trace file; one write of one line is atomic."""
    line = " ".join(str(word) for word in (*words, os.getpid())) + "\n"
    descriptor = os.open(TRACES / what, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@app.job(f"{QUEUE}.pack", queue=QUEUE, credits_per_item=2, item_concurrency=3, public=True)
async def pack(job: JobContext[Order]) -> dict[str, Any]:
    """Pack every item; those named in ``fail`` fail for good."""
    trace("jobs", "start", job.id, job.attempt)
    job.log.info("packing", items=len(job.items))

    async def one(item: Any) -> dict[str, str]:
        trace("items", "start", job.id, item.key)
        try:
            await asyncio.sleep(job.payload.seconds)
        finally:
            trace("items", "stop", job.id, item.key)
        if item.key in job.payload.fail:
            raise Discard(f"{item.key} is out of stock")
        trace("packed", job.id, item.key)
        return {"packed": item.key}

    try:
        return await job.each(one)
    finally:
        trace("jobs", "stop", job.id, job.attempt)


@app.job(f"{QUEUE}.greet", queue=QUEUE, credits_per_job=5, public=True)
async def greet(job: JobContext[Order]) -> dict[str, str]:
    """Wait, then greet."""
    trace("greetings", "start", job.id)
    await asyncio.sleep(job.payload.seconds)
    trace("greetings", "done", job.id)
    return {"hello": job.payload.name}
