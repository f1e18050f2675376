"""Handlers that log as application code does: with the standard library's loggers, wherever they run."""

import asyncio
import logging
import os
import threading

import structlog

from processor import JobContext, JobItem, Processor, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "loggers")
KEY = os.environ.get("SUPABASE_SERVICE_ROLE_KEY", "")
app = Processor()
log = logging.getLogger("shop.checkout")


@app.job(f"{PREFIX}.talk_async", queue=PREFIX)
async def talk_async(job: JobContext) -> None:
    """Log in the loop, in a task, in a thread, through structlog, and in an item."""
    log.info("in the handler")
    await asyncio.create_task(_say("in a task"))
    await asyncio.to_thread(log.info, "in a thread")
    structlog.get_logger().info("by structlog")
    log.warning("asked with %s", KEY)

    async def one(item: JobItem) -> None:
        log.info("item %s", item.key)

    await job.each(one)


@app.job(f"{PREFIX}.talk_thread", queue=PREFIX)
def talk_thread(job: SyncJobContext) -> None:
    """Log in a handler's thread."""
    log.info("in the handler")
    log.warning("asked with %s", KEY)


@app.job(f"{PREFIX}.talk_process", queue=PREFIX, process=True)
def talk_process(job: SyncJobContext) -> None:
    """Log in a handler's process, and in the threads of its items."""
    log.info("in the handler")
    log.warning("asked with %s", KEY)
    job.each(lambda item: log.info("item %s in %s", item.key, threading.current_thread().name))


@app.job(f"{PREFIX}.nag", queue=PREFIX)
async def nag(job: JobContext) -> None:
    """Warn of the same, over and over."""
    for number in range(job.payload["times"]):
        log.warning("the shop is closed, customer %s", number)


async def _say(what: str) -> None:
    log.info(what)
