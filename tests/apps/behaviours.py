"""Handlers that behave in every way the daemon must cope with; names carry TEST_PREFIX."""

import asyncio
import os
import threading
import time

from pydantic import BaseModel, field_validator

from processor import Cancel, Discard, JobContext, JobError, JobItem, Processor, Retry, Snooze, __version__

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()
runs = 0


class Greeting(BaseModel):
    name: str


def job(name: str, **options):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


class Picky(BaseModel):
    card: dict

    @field_validator("card")
    @classmethod
    def _has_a_title(cls, card: dict) -> dict:
        return {"title": card["title"]}  # KeyError is not what pydantic expects of a validator


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class VagueError(Exception):
    pass


app.error(VagueError, "VAGUE", retry_after=lambda error: error.seconds)


@job("greet")
async def greet(job: JobContext[Greeting]) -> dict:
    """Say hello."""
    job.log.info("greeting", to=job.payload.name)
    return {"hello": job.payload.name}


@job("wait", timeout=60)
async def wait(job: JobContext) -> str:
    """Wait for the payload's seconds, and say how it was told to stop."""
    try:
        await asyncio.sleep(job.payload.get("seconds", 30))
    except asyncio.CancelledError:
        job.log.warning("stopped", cancelled=job.cancelled.is_set())
        raise
    return "waited"


@job("linger")
async def linger(job: JobContext) -> dict:
    """Say that it runs, last for the payload's seconds, and tell who did it."""
    job.log.info("lingering")
    await asyncio.sleep(job.payload["seconds"])
    return {"name": os.environ.get("PROCESSOR_NAME"), "version": __version__}


@job("slow", timeout=0.3)
async def slow(job: JobContext) -> None:
    await asyncio.sleep(30)


@job("stubborn", timeout=0.2)
async def stubborn(job: JobContext) -> str:
    """Swallow every cancellation for a while."""
    for _ in range(40):
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue
    return "too late"


@job("deaf", timeout=0.2)
async def deaf(job: JobContext) -> None:
    """Swallow every cancellation, for ever."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


@job("blocking")
async def blocking(job: JobContext) -> None:
    """Wait for a thread that cannot be cancelled."""
    await asyncio.to_thread(time.sleep, 60)


@job("end")
async def end(job: JobContext) -> object:
    """End in the way the payload says."""
    first = job.attempt == 1
    match job.payload["how"]:
        case "retry" if first:
            raise Retry("not yet", delay=0.2)
        case "snooze" if first:
            raise Snooze(0.2)
        case "cancel":
            raise Cancel("no need any more")
        case "discard":
            raise Discard("hopeless")
        case "crash":
            raise RuntimeError("boom")
        case "unspeakable":
            raise UnspeakableError
        case "vague":
            raise VagueError("no seconds in it")
        case "code":
            raise JobError("the card is too long", code="CARD_TOO_LONG", retryable=False)
        case "nan":
            return float("nan")
        case "nul":
            return "a\x00b"
        case "huge":
            return "x" * 2_000_000
        case "exit":
            raise SystemExit(3)
        case "return_decision":
            return Snooze(5)
        case "table":
            answer = await job.supabase.table("jobs").select("id").eq("id", str(job.id)).execute()
            return answer.data
    return {"attempt": job.attempt}


@job("items", item_concurrency=2, credits_per_item=1)
async def items(job: JobContext) -> dict:
    """Do each item as its payload says."""

    async def one(item: JobItem) -> str:
        how = item.payload or {}
        item.progress(1, 2)
        if how.get("fail") == "for good":
            raise Discard("not this one")
        if how.get("fail") == "nul":
            return "\x00"
        if how.get("fail") == "once" and item.attempts == 0:
            raise Retry("later", delay=0.2)
        await asyncio.sleep(how.get("seconds", 0))
        return item.key.upper()

    return await job.each(one)


@job("picky")
async def picky(job: JobContext[Picky]) -> None:
    """Have a payload whose validator crashes."""


@job("echo")
async def echo(job: JobContext) -> str:
    """Say what kind of thing came as "n"."""
    return type(job.payload["n"]).__name__


@job("twice")
async def twice(job: JobContext) -> list:
    """Go through the items twice, and count the calls."""
    calls: list[str] = []

    async def one(item: JobItem) -> str:
        calls.append(item.key)
        if item.key == "lost":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return item.key

    return [await job.each(one), await job.each(one), calls]


@job("chatter")
async def chatter(job: JobContext) -> int:
    """Report progress far too often."""
    for step in range(200):
        job.progress(step, 200, f"step {step}")
        await asyncio.sleep(0.01)
    return threading.active_count()


@job("block_the_loop")
async def block_the_loop(job: JobContext) -> None:
    """Do what no handler may: block everybody."""
    job.log.info("blocking")
    time.sleep(job.payload["seconds"])  # noqa: ASYNC251 - that is it
