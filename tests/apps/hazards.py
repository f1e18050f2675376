"""Handlers that are dangerous to their worker, or to secrets; names carry TEST_PREFIX."""

import asyncio
import os
import signal

import httpx

from processor import JobContext, JobItem, Processor

PREFIX = os.environ.get("TEST_PREFIX", "hazards")
app = Processor()
company = 0


def job(name: str, **options):
    return app.job(f"{PREFIX}.{name}", queue=PREFIX, **options)


@job("poison", credits_per_job=3)
async def poison(job: JobContext) -> None:
    """Kill the worker, when so many others run beside it, or alone."""
    for _ in range(100):
        if company >= job.payload.get("company", 0):
            break
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@job("innocent")
async def innocent(job: JobContext) -> str:
    """Be there for a while."""
    global company  # noqa: PLW0603 - what the poison counts
    company += 1
    await asyncio.sleep(job.payload.get("seconds", 0))
    return "unharmed"


@job("leak")
async def leak(job: JobContext) -> None:
    """Say the worker's key in every way there is."""
    key = os.environ["SUPABASE_SERVICE_ROLE_KEY"]
    asking = f"asking with {key}"
    job.log.info(asking, headers={"apikey": key})
    job.progress(0.5, message=f"with {key}")
    request = httpx.Request("GET", f"https://upstream.test/v1?apikey={key}", headers={"apikey": key})
    response = httpx.Response(job.payload["status"], request=request)
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise ValueError(f"postgresql://bob:hunter2@db refused {request.headers.raw}") from (
            error if job.payload["status"] == 401 else None
        )


@job("interrupt", item_concurrency=2)
async def interrupt(job: JobContext) -> dict:
    """Raise what asyncio lets through a task."""

    async def one(item: JobItem) -> str:
        if item.key == "bad":
            raise KeyboardInterrupt
        if item.key == "worse":
            raise GeneratorExit
        return item.key

    if job.items:
        return await job.each(one)
    raise KeyboardInterrupt


@job("unplug")
async def unplug(job: JobContext) -> None:
    """End the task of the health server, as an error in it would."""
    next(task for task in asyncio.all_tasks() if task.get_name() == "web").cancel()
