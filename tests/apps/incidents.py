"""Handlers that fail as nobody expects, and as they mean to; names carry TEST_PREFIX."""

import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
from pydantic import BaseModel

from processor import Cancel, Discard, Ended, JobContext, JobError, JobItem, Processor, Retry, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()
blown = anyio.Event()


class FlatError(Exception):
    """What the application knows."""


app.error(FlatError, "FLAT", retryable=False)


def job(name: str, **options: Any):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


@app.resource
async def fuse() -> AsyncIterator[None]:
    """End when a job says so."""
    async with anyio.create_task_group() as group:
        group.start_soon(_burn)
        yield


async def _burn() -> None:
    await blown.wait()
    raise RuntimeError("the fuse is blown")


class Number(BaseModel):
    number: int


def quoting(text: str) -> None:
    """Raise what tells more than it should, in its text and in its locals."""
    local = f"local {text}"
    key = os.environ["SUPABASE_SERVICE_ROLE_KEY"]
    problem = None
    try:
        Number.model_validate({"number": text * 10})
    except ValueError as error:
        problem = error
    raise RuntimeError(f"cannot read {text!r} with {key} ({len(local)}): {problem}")


@job("crash")
async def crash(job: JobContext) -> None:
    quoting(job.payload["text"])


@job("crash_in_a_process", process=True)
def crash_in_a_process(job: SyncJobContext) -> None:
    quoting(job.payload["text"])


@job("items")
async def items(job: JobContext) -> dict[str, Any]:
    async def one(item: JobItem) -> None:
        quoting(item.payload["text"])

    return await job.each(one)


@job("mean")
async def mean(job: JobContext) -> None:
    """Fail as the handler means to."""
    match job.payload["how"]:
        case "code":
            raise JobError("too long", code="TOO_LONG", retryable=False)
        case "discard":
            raise Discard("hopeless")
        case "cancel":
            raise Cancel("no need")
        case "retry":
            raise Retry("not yet", delay=0)
        case "rule":
            raise FlatError
        case "timeout":
            raise TimeoutError


async def broken(ended: Ended) -> None:
    raise ValueError(f"about {ended.job.payload['text']}")


@job("hooked", on_success=broken)
async def hooked(job: JobContext) -> None:
    """Have a hook that is broken."""


@job("blow")
async def blow(job: JobContext, fuse: None) -> None:
    """End a part of the daemon."""
    blown.set()
