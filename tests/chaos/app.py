"""The application under chaos: every way a job can go, told to a witness as it happens.

Before each thing that a handler does outside it makes a call through its context, without a pause in
between: a handler whose job belongs to somebody else by then gets no further.
"""

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO

from pydantic import BaseModel

from processor import Discard, JobContext, JobItem, Processor, Retry, Snooze, SyncJobContext

HOST, PORT = os.environ.get("CHAOS_WITNESS", "nobody:0").split(":")
QUEUE = "chaos"
PARTS = 3
"""Children of a parent."""
BAD_ITEM = "item0"

app = Processor()


class Task(BaseModel):
    """What a job carries; ``n`` comes back in its result."""

    n: int = 0
    seconds: float = 0.1
    steps: int = 1


class Testimony:
    """What one attempt tells the witness."""

    def __init__(
        self, job: JobContext[Task], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._job = job
        self._reader, self._writer = reader, writer
        self._turn = asyncio.Lock()

    async def did(self, what: str) -> None:
        """Do something outside."""
        async with self._turn:
            self._job.progress(0.5, 1.0)
            await self.tell({"did": what})

    async def tell(self, line: dict[str, Any]) -> None:
        self._writer.write(json.dumps(line).encode() + b"\n")
        if not await self._reader.readline():
            raise ConnectionResetError("the witness is gone")


@contextlib.asynccontextmanager
async def witnessed(job: JobContext[Task]) -> AsyncIterator[Testimony]:
    """Let the witness see an attempt from its begin to its end, however it ends."""
    reader, writer = await asyncio.open_connection(HOST, int(PORT))
    try:
        testimony = Testimony(job, reader, writer)
        await testimony.tell({"begin": str(job.id), "attempt": job.attempt, "pid": os.getpid()})
        yield testimony
        await testimony.tell({"end": "returned"})
    except (Retry, Snooze, Discard) as decision:
        await testimony.tell({"end": type(decision).__name__})
        raise
    finally:
        writer.transport.abort()  # now, and not when this task has its next turn


class BlockingTestimony:
    """What one attempt of a plain function tells the witness."""

    def __init__(self, job: SyncJobContext[Task], stream: BinaryIO) -> None:
        self._job = job
        self._stream = stream

    def did(self, what: str) -> None:
        """Do something outside."""
        self._job.progress(0.5, 1.0)
        self.tell({"did": what})

    def tell(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line).encode() + b"\n")
        if not self._stream.readline():
            raise ConnectionResetError("the witness is gone")


@contextlib.contextmanager
def witnessed_blocking(job: SyncJobContext[Task]) -> Iterator[BlockingTestimony]:
    """Let the witness see an attempt of a plain function from its begin to its end."""
    with (
        socket.create_connection((HOST, int(PORT))) as connection,
        connection.makefile("rwb", buffering=0) as stream,
    ):
        testimony = BlockingTestimony(job, stream)
        testimony.tell({"begin": str(job.id), "attempt": job.attempt, "pid": os.getpid()})
        yield testimony
        testimony.tell({"end": "returned"})


def job(name: str, **options: Any) -> Any:
    return app.job(f"chaos.{name}", queue=QUEUE, **options)


@job("plain")
async def plain(job: JobContext[Task]) -> dict[str, int]:
    async with witnessed(job) as witness:
        await asyncio.sleep(job.payload.seconds)
        await witness.did("work")
    return {"n": job.payload.n}


@job("priced", credits_per_job=5)
async def priced(job: JobContext[Task]) -> dict[str, int]:
    async with witnessed(job) as witness:
        await witness.did("work")
        await asyncio.sleep(job.payload.seconds)
    return {"n": job.payload.n}


@job("items", credits_per_item=2, item_concurrency=2)
async def items(job: JobContext[Task]) -> dict[str, Any]:
    async with witnessed(job) as witness:

        async def one(item: JobItem[Task]) -> str:
            await asyncio.sleep(job.payload.seconds)
            await witness.did(item.key)
            return item.key.upper()

        return await job.each(one)


@job("failing_items", credits_per_item=3)
async def failing_items(job: JobContext[Task]) -> dict[str, Any]:
    """Do every item but the first, which fails for good."""
    async with witnessed(job) as witness:

        async def one(item: JobItem[Task]) -> str:
            await asyncio.sleep(job.payload.seconds)
            if item.key == BAD_ITEM:
                raise Discard("not this one")
            await witness.did(item.key)
            return item.key.upper()

        return await job.each(one)


@job("retried", credits_per_job=1)
async def retried(job: JobContext[Task]) -> dict[str, int]:
    async with witnessed(job) as witness:
        if job.attempt == 1:
            raise Retry("once more", delay=0.2)
        await witness.did("work")
    return {"n": job.payload.n}


@job("snoozed")
async def snoozed(job: JobContext[Task]) -> dict[str, int]:
    async with witnessed(job) as witness:
        if job.attempt == 1:
            raise Snooze(0.3)
        await witness.did("work")
    return {"n": job.payload.n}


@job("hopeless", credits_per_job=4)
async def hopeless(job: JobContext[Task]) -> None:
    async with witnessed(job) as witness:
        await witness.did("work")
        raise Discard("hopeless")


@job("long", credits_per_job=2)
async def long(job: JobContext[Task]) -> dict[str, int]:
    """Work in steps, each seen by the witness."""
    async with witnessed(job) as witness:
        for step in range(job.payload.steps):
            await asyncio.sleep(job.payload.seconds)
            await witness.did(f"step {step}")
            job.log.info("a step", step=step)
    return {"n": job.payload.n}


def in_steps(job: SyncJobContext[Task]) -> dict[str, int]:
    """Work in steps, as ``long`` does, blocking."""
    with witnessed_blocking(job) as witness:
        for step in range(job.payload.steps):
            # not time.sleep: on a moved clock the library that moves it refuses to wait for a moment in time
            select.select([], [], [], job.payload.seconds)
            witness.did(f"step {step}")
    return {"n": job.payload.n}


@job("thread", credits_per_job=2)
def thread(job: SyncJobContext[Task]) -> dict[str, int]:
    return in_steps(job)


@job("process", credits_per_job=2, process=True)
def process(job: SyncJobContext[Task]) -> dict[str, int]:
    return in_steps(job)


@job("checkpoints", credits_per_job=2)
async def checkpoints(job: JobContext[Task]) -> dict[str, int]:
    """Take steps that count once, and forget all else after the first attempt."""
    async with witnessed(job) as witness:

        async def take(step: int) -> int:
            await asyncio.sleep(job.payload.seconds)
            await witness.did(f"step {step}")
            return step

        taken = [await job.checkpoint(f"step {step}", take, step) for step in range(job.payload.steps)]
        if job.attempt == 1:
            raise Retry("once more", delay=0.2)
    return {"n": job.payload.n + sum(taken) - sum(range(job.payload.steps))}


@job("parent", credits_per_job=1)
async def parent(job: JobContext[Task]) -> dict[str, int]:
    # what waits has ended: only what comes after is this handler's work
    await job.spawn_all(
        {"kind": "chaos.part", "payload": {"n": job.payload.n + part}} for part in range(PARTS)
    )
    parts = job.join()
    async with witnessed(job) as witness:
        await witness.did("work")
    return {"n": sum(part.result["n"] for part in parts if part.status == "completed")}


@job("part", credits_per_job=1)
async def part(job: JobContext[Task]) -> dict[str, int]:
    async with witnessed(job) as witness:
        await witness.did("work")
        await asyncio.sleep(job.payload.seconds)
    return {"n": job.payload.n}
