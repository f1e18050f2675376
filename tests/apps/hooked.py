"""Handlers with hooks of every sort; names carry TEST_PREFIX."""

import asyncio
import os
import time
from typing import Any

import structlog
from pydantic import BaseModel

from processor import Cancel, Discard, Ended, JobContext, JobError, JobItem, Processor, Snooze, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()
log = structlog.get_logger("tests.hooked")


@app.resource
def mailer() -> list[str]:
    return ["a mailer"]


def facts(ended: Ended) -> dict[str, Any]:
    return {
        "status": ended.status,
        "result": ended.result,
        "code": ended.error_code,
        "message": ended.error_message,
        "run_at": ended.run_at and ended.run_at.isoformat(),
        "payload": ended.job.payload,
    }


async def succeeded(ended: Ended, mailer: list[str]) -> None:
    row = await ended.supabase.table("jobs").select("status").eq("id", str(ended.job.id)).single().execute()
    log.info("succeeded", stored=row.data["status"], mailer=mailer, **facts(ended))


def failed(ended: Ended, mailer: list[str]) -> None:
    row = ended.supabase.table("jobs").select("status").eq("id", str(ended.job.id)).single().execute()
    log.info("failed", stored=row.data["status"], mailer=mailer, **facts(ended))


async def retried(ended: Ended) -> None:
    log.info("retried", **facts(ended))


def job(name: str, **options: Any):
    hooks = {"on_success": succeeded, "on_failure": failed, "on_retry": retried, **options}
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **hooks)


class Card(BaseModel):
    how: str


def end(how: str, attempt: int) -> str:
    match how:
        case "later" if attempt == 1:
            raise JobError("not yet", code="NOT_YET", retryable=True, retry_after=0.1)
        case "never":
            raise Discard("hopeless")
        case "crash":
            raise RuntimeError("boom")
    return "well"


@job("loop")
async def loop(job: JobContext[Card]) -> str:
    """End as the payload says, in the loop."""
    match job.payload.how:
        case "snooze" if job.attempt == 1:
            raise Snooze(0.1)
        case "cancel":
            raise Cancel("no need")
    return end(job.payload.how, job.attempt)


@job("thread")
def thread(job: SyncJobContext[Card]) -> str:
    """End as the payload says, in a thread."""
    return end(job.payload.how, job.attempt)


@job("process", process=True)
def process(job: SyncJobContext[Card]) -> str:
    """End as the payload says, in a process."""
    return end(job.payload.how, job.attempt)


@job("items")
async def items(job: JobContext) -> dict[str, Any]:
    """Do the items that are not bad."""

    async def one(item: JobItem) -> str:
        if item.key == "bad":
            raise Discard("not this one")
        return item.key

    return await job.each(one)


@job("stuck", timeout=0.2)
async def stuck(job: JobContext) -> None:
    await asyncio.sleep(60)


async def breaks(ended: Ended) -> None:
    match ended.job.payload["hook"]:
        case "raise":
            raise ValueError("a broken hook")
        case "exit":
            raise SystemExit(3)
        case "cancel":
            raise asyncio.CancelledError
        case "decision":
            raise Discard("hooks decide nothing")


def breaks_in_a_thread(ended: Ended) -> Any:
    match ended.job.payload["hook"]:
        case "raise":
            raise ValueError("a broken hook")
        case "exit":
            raise SystemExit(3)
        case "stop":
            raise StopIteration
    return breaks(ended)


@job("broken", on_success=breaks)
async def broken(job: JobContext) -> str:
    return "well"


@job("broken_thread", on_success=breaks_in_a_thread)
async def broken_thread(job: JobContext) -> str:
    return "well"


async def slow(ended: Ended) -> None:
    log.info("slow.began")
    try:
        await asyncio.sleep(ended.job.payload["seconds"])
    except asyncio.CancelledError:
        log.info("slow.cancelled")
        raise
    log.info("slow.ended")


def slow_in_a_thread(ended: Ended) -> None:
    log.info("slow.began")
    time.sleep(ended.job.payload["seconds"])
    log.info("slow.ended")


@job("slow", on_success=slow)
async def quick(job: JobContext) -> None:
    """Have a hook that takes its time."""


@job("slow_thread", on_success=slow_in_a_thread)
async def quick_too(job: JobContext) -> None:
    """Have a hook that nobody can stop."""
