"""An application whose handlers share resources and have middleware; TEST_BREAK says what goes wrong."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import structlog

from processor import JobContext, JobError, Processor, Snooze, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "test")
BREAK = os.environ.get("TEST_BREAK")
app = Processor()
log = structlog.get_logger("app")


@contextlib.contextmanager
def said(name: str) -> Iterator[None]:
    log.info("up", what=name)
    try:
        yield
    finally:
        log.info("down", what=name)


@app.resource
async def folder() -> AsyncIterator[list[str]]:
    """Be what another one needs."""
    with said("folder"):
        yield ["weights"]


@app.resource
def model(folder: list[str]) -> Iterator[dict[str, Any]]:
    """Block while it starts."""
    if BREAK == "slow":
        log.info("loading")
        time.sleep(30)
    if BREAK == "start":
        raise FileNotFoundError("no such weights")
    with said("model"):
        yield {"from": folder[0], "thread": threading.current_thread().name}
        if BREAK == "stop":
            raise RuntimeError("cannot be put down")


@app.resource
async def limit() -> int:
    """Have nothing to stop."""
    return 3


@app.resource
async def fuse() -> AsyncIterator[asyncio.Event]:
    """End by itself when it is blown."""
    blown = asyncio.Event()

    async def watch() -> None:
        await blown.wait()
        raise ConnectionError("the fuse is blown")

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="watch")
        yield blown
        watching.cancel()


@app.resource
async def unused() -> None:
    """Never be started: no handler of this queue needs it."""
    raise AssertionError("nobody needs it")


@app.middleware
async def outer(job: JobContext, call_next: Any, limit: int) -> Any:
    """Speak first and last, and add to the result."""
    job.log.info("outer", limit=limit)
    result = await call_next(job)
    job.log.info("outer is back")
    return {"outer": result} if isinstance(result, dict) else result


@app.middleware
async def inner(job: JobContext, call_next: Any) -> Any:
    """Do what the payload says instead of, or after, calling the handler."""
    job.log.info("inner")
    match job.payload.get("inner"):
        case "skip":
            return "skipped"
        case "snooze" if job.attempt == 1:
            raise Snooze(0)
        case "hang":
            await asyncio.sleep(60)
        case "refuse":
            raise JobError("not for you", code="NOT_FOR_YOU", retryable=False)
    try:
        return await call_next(job)
    except KeyError as error:
        raise JobError(f"{error} is missing", code="LACKING", retryable=False) from error


@app.job(f"{PREFIX}.use", queue=PREFIX)
async def use(job: JobContext, model: dict, fuse: asyncio.Event, extra: str = "default") -> dict:
    """Use what is shared."""
    job.log.info("handler")
    if job.payload.get("lack"):
        return job.payload["nothing"]
    if job.payload.get("blow"):
        fuse.set()
    await asyncio.sleep(job.payload.get("seconds", 0))
    return {"model": model, "extra": extra}


@app.job(f"{PREFIX}.plain", queue=PREFIX)
def plain(job: SyncJobContext, limit: int) -> dict:
    """Use what is shared from a thread."""
    job.log.info("handler")
    return {"limit": limit}


@app.job(f"{PREFIX}.heavy", queue=PREFIX, process=True, timeout=1)
def heavy(job: SyncJobContext) -> dict:
    """Run where no resource is."""
    job.log.info("handler")
    return {}


@app.job(f"{PREFIX}.elsewhere", queue=f"{PREFIX}.elsewhere")
async def elsewhere(job: JobContext, unused: None) -> None:
    """Be served by nobody here."""
