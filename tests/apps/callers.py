"""Handlers of every sort, which do the same things; names carry TEST_PREFIX, files go to TEST_DIRECTORY."""

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog
from pydantic import BaseModel

from processor import (
    Discard,
    JobContext,
    JobError,
    JobItem,
    JobStopped,
    Processor,
    Retry,
    Snooze,
    SyncJobContext,
    SyncJobItem,
)

PREFIX = os.environ.get("TEST_PREFIX", "test")
DIRECTORY = Path(os.environ.get("TEST_DIRECTORY", "/nonexistent"))
app = Processor()


def job(name: str, **options):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


class Card(BaseModel):
    title: str


class FussyError(Exception):
    """Cannot be rebuilt from what it keeps."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("fussy")


def fuss() -> None:
    raise FussyError(seconds=3)


app.error(FussyError, "FUSSY", retryable=False)


class Witness:
    """Lines in a file, one for each thing that happens."""

    def __init__(self, name: str) -> None:
        self._path = DIRECTORY / name

    def says(self, what: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{os.getpid()} {what}\n")


# -- everything a context offers ------------------------------------------------------------------


def everything(job: SyncJobContext[Card]) -> dict:
    """Use all of it, and say what it gave."""
    job.log.info("greeting", to=job.payload.title)
    job.progress(1, 2, "half")
    rows = job.supabase.table("jobs").select("id").eq("id", str(job.id)).execute().data
    child = job.spawn(f"{PREFIX}.child_thread", key="one") if job.attempt == 1 else None
    done = job.each(lambda item: item.key.upper(), concurrency=2)
    return {
        "title": job.payload.title,
        "attempt": job.attempt,
        "kind": job.kind,
        "row": rows == [{"id": str(job.id)}],
        "child": child is not None and job.children == (child,),
        "items": done,
        "thread": threading.current_thread() is threading.main_thread(),
        "pid": os.getpid(),
    }


@job("everything_thread")
def everything_thread(job: SyncJobContext[Card]) -> dict:
    return everything(job)


@job("everything_process", process=True)
def everything_process(job: SyncJobContext[Card]) -> dict:
    return everything(job)


@job("child_thread")
def child_thread(job: SyncJobContext) -> str:
    return "child"


# -- ways to end ----------------------------------------------------------------------------------


def end(job: SyncJobContext) -> object:
    match job.payload["how"]:
        case "retry" if job.attempt == 1:
            raise Retry("not yet", delay=0.2)
        case "snooze" if job.attempt == 1:
            job.snooze(0.2, "a nap")
        case "discard":
            raise Discard("hopeless")
        case "code":
            raise JobError("the card is too long", code="CARD_TOO_LONG", retryable=False)
        case "fussy":
            try:
                fuss()
            except FussyError as error:
                raise RuntimeError("outer") from error
        case "crash":
            raise RuntimeError("boom")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "object":
            return threading.Lock()
        case "nan":
            return float("nan")
        case "decision":
            return Snooze(5)
        case "nested":
            job.checkpoint("a", lambda: job.checkpoint("a", dict))
        case "segfault":
            ctypes.string_at(0)
        case "_exit":
            os._exit(7)
        case "killed":
            os.kill(os.getpid(), 9)
        case "log":
            logging.getLogger("some.library").warning("from %s", "stdlib")
            structlog.get_logger("mine").info("mine.event", number=1)
            job.log.warning("for the owner", n=1)
    return {"attempt": job.attempt}


@job("end_thread")
def end_thread(job: SyncJobContext) -> object:
    return end(job)


@job("end_process", process=True)
def end_process(job: SyncJobContext) -> object:
    return end(job)


def items(job: SyncJobContext) -> dict:
    """Do each item as its payload says."""
    threads: set[int] = set()

    def one(item: SyncJobItem) -> str:
        how = item.payload or {}
        threads.add(threading.get_ident())
        item.progress(1, 2)
        if how.get("fail") == "for good":
            raise Discard("not this one")
        if how.get("fail") == "once" and item.attempts == 0:
            raise Retry("later", delay=0.2)
        if how.get("fail") == "snooze" and item.job.attempt == 1:
            item.job.snooze(0.2)
        time.sleep(how.get("seconds", 0))
        return item.key.upper()

    done = job.each(one, concurrency=job.payload.get("concurrency"))
    return {"done": done, "own_thread": threads == {threading.get_ident()}, "threads": len(threads)}


@job("items_thread", item_concurrency=2)
def items_thread(job: SyncJobContext) -> dict:
    return items(job)


@job("items_process", item_concurrency=2, process=True)
def items_process(job: SyncJobContext) -> dict:
    return items(job)


# -- being stopped --------------------------------------------------------------------------------


@job("wait_async")
async def wait_async(job: JobContext) -> None:
    """Wait for the cancellation."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        job.log.warning("stopped", at=time.time())
        raise


def wait(job: SyncJobContext) -> None:
    job.cancelled.wait(60)
    try:
        job.progress(0.5)
    except JobStopped:
        job.log.warning("stopped", at=time.time())
        raise


@job("wait_thread")
def wait_thread(job: SyncJobContext) -> None:
    wait(job)


@job("wait_process", process=True)
def wait_process(job: SyncJobContext) -> None:
    wait(job)


def loop(job: SyncJobContext) -> None:
    """Work on, and catch every exception: only what is no Exception can end it."""
    while True:
        try:
            job.progress(0.5)
            time.sleep(0.02)
        except Exception:  # noqa: BLE001 - what it tests
            continue


@job("loop_thread", timeout=0.5)
def loop_thread(job: SyncJobContext) -> None:
    loop(job)


@job("loop_process", timeout=0.5, process=True)
def loop_process(job: SyncJobContext) -> None:
    loop(job)


@job("deaf_thread", timeout=0.3)
def deaf_thread(job: SyncJobContext) -> None:
    """Look at nothing until a file appears."""
    Witness("deaf").says("begins")
    while not (DIRECTORY / "release").exists():
        time.sleep(0.05)
    try:
        job.progress(1)
    except JobStopped:
        Witness("deaf").says("refused")
        raise
    Witness("deaf").says("passed")


@job("deaf_async", timeout=0.3)
async def deaf_async(job: JobContext) -> None:
    """Swallow every cancellation until a file appears."""
    while not (DIRECTORY / "release").exists():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


@job("deaf_process", timeout=0.3, process=True)
def deaf_process(job: SyncJobContext) -> None:
    """Look at nothing, with a process of its own beside it."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Witness("deaf").says(f"helper {helper.pid}")
    while True:
        try:
            time.sleep(60)
        except JobStopped:
            Witness("deaf").says("terminated")


@job("spin", process=True)
def spin(job: SyncJobContext) -> None:
    """Compute for ever, and look at nothing."""
    Witness("spin").says("begins")
    while True:
        sum(range(1000))


# -- a frozen process -----------------------------------------------------------------------------


def calls_of(job: JobContext, one):
    """Return what a frozen handler does by turns."""
    return {
        "progress": lambda: job.progress(0.5),
        "log": lambda: job.log.info("still here"),
        "each": lambda: job.each(one),
        "supabase": lambda: job.supabase,
        "spawn": lambda: job.spawn(f"{PREFIX}.child_thread", key=f"{job.attempt}-{time.monotonic_ns()}"),
    }


@job("frozen_async")
async def frozen_async(job: JobContext) -> str:
    """Call the context without end, with a witness of when each call began and returned."""
    if (DIRECTORY / "rescue").exists():
        return "rescued"
    witness = Witness("frozen_async")

    async def one(item: JobItem) -> None:
        await asyncio.sleep(0.01)

    while True:
        for name, call in calls_of(job, one).items():
            began = time.time()
            value = call()
            if asyncio.iscoroutine(value):
                await value
            witness.says(f"{name} {began} {time.time()}")
        for _ in range(30):  # frozen in here it goes on before the loop can do anything about it
            time.sleep(0.005)  # noqa: ASYNC251 - it is what blocks the loop
            began = time.time()
            job.progress(0.5)
            witness.says(f"progress {began} {time.time()}")
        await asyncio.sleep(0)


def frozen(job: SyncJobContext, name: str) -> str:
    if (DIRECTORY / "rescue").exists():
        return "rescued"
    witness = Witness(name)
    while True:
        for called, call in calls_of(job, lambda _item: time.sleep(0.01)).items():
            began = time.time()
            call()
            witness.says(f"{called} {began} {time.time()}")
        time.sleep(0.01)


@job("frozen_thread")
def frozen_thread(job: SyncJobContext) -> str:
    return frozen(job, "frozen_thread")


@job("frozen_process", process=True)
def frozen_process(job: SyncJobContext) -> str:
    return frozen(job, "frozen_process")


@job("alone", process=True)
def alone(job: SyncJobContext) -> str:
    """Leave a sign of life for as long as it lives, without asking the daemon anything."""
    if (DIRECTORY / "rescue").exists():
        return "rescued"
    while True:
        Witness("alone").says(str(time.time()))
        time.sleep(0.05)
