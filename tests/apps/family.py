"""Handlers that fan out to children and fan in what these made; names and queues carry TEST_PREFIX."""

import asyncio
import os

from processor import Discard, JobContext, JobItem, Processor, Wait

PREFIX = os.environ.get("TEST_PREFIX", "test")
PAGES = f"{PREFIX}.pages"
"""The children's queue: another than the parents', so that another daemon may serve it."""
app = Processor()


def job(name: str, *, queue: str = PREFIX, **options):
    return app.job(f"{PREFIX}.{name}", queue=queue, **options)


@job("book", credits_per_job=5)
async def book(job: JobContext) -> dict:
    """Have each page counted, and add up."""
    pages = [{"kind": f"{PREFIX}.page", "payload": page} for page in job.payload["pages"]]
    await job.spawn_all(pages, on_child_failure=job.payload.get("on_child_failure"))
    if job.payload.get("hang") and job.attempt == 1:
        job.log.info("spawned")
        await asyncio.sleep(60)
    children = job.join()
    return {
        "words": sum(child.result or 0 for child in children),
        "pages": [[child.status, child.error_code] for child in children],
    }


@job("page", queue=PAGES, credits_per_job=2)
async def page(job: JobContext) -> int:
    """Count the words of one page, or end as the payload says."""
    if job.payload.get("fail"):
        raise Discard("the page is torn")
    try:
        await asyncio.sleep(job.payload.get("seconds", 0))
    except asyncio.CancelledError:
        job.log.info("page stopped", cancelled=job.cancelled.is_set())
        raise
    return len(job.payload["text"].split())


@job("two_stages")
async def two_stages(job: JobContext) -> list:
    """Make a second generation of what the first one came to, one child at a time."""
    first = [await job.spawn(f"{PREFIX}.page", {"text": "a " * n}) for n in range(1, 4)]
    job.join()
    words = sum(child.result for child in first)
    last = await job.spawn(f"{PREFIX}.page", {"text": "b " * words}, key="sum")
    again = await job.spawn(f"{PREFIX}.page", {"text": "b " * words}, key="sum")
    job.join()
    return [[child.result for child in job.children], last.result, again.id == last.id, job.attempt]


@job("generations")
async def generations(job: JobContext) -> int:
    """Be the parent of a job of the same kind, down to nobody."""
    below = job.payload["below"]
    if below:
        await job.spawn(f"{PREFIX}.generations", {"below": below - 1})
    return 1 + sum(child.result for child in job.join())


@job("gather")
async def gather(job: JobContext) -> list:
    """Fan in children that others made with the job."""
    return [child.result for child in job.join()]


@job("impatient")
async def impatient(job: JobContext) -> None:
    """Wait for nobody."""
    raise Wait


@job("restless")
async def restless(job: JobContext) -> None:
    """Wait again for children who have all ended."""
    await job.spawn(f"{PREFIX}.page", {"text": "a"})
    raise Wait


@job("items", item_concurrency=2)
async def items(job: JobContext) -> dict:
    """Have a child for every item; the first one found open makes all wait."""

    async def one(item: JobItem) -> int:
        child = await job.spawn(f"{PREFIX}.page", {"text": item.key}, key=item.key)
        if not child.ended:
            raise Wait("for the page of an item")
        return child.result

    return await job.each(one)


@job("bad")
async def bad(job: JobContext) -> None:
    """Spawn what cannot be a child."""
    good = {"kind": f"{PREFIX}.page", "payload": {"text": "good"}}
    await job.spawn_all([good, {"kind": f"{PREFIX}.page", **job.payload["child"]}])


@job("fickle")
async def fickle(job: JobContext) -> None:
    """Spawn something else in every attempt."""
    await job.spawn(f"{PREFIX}.page", {"text": f"attempt {job.attempt}"})
    job.join()


@job("odd")
async def odd(job: JobContext) -> None:
    """Spawn what JSON cannot hold."""
    await job.spawn(f"{PREFIX}.page", {"text": float("nan")})


@job("none")
async def none(job: JobContext) -> list:
    """Fan out to nobody."""
    return [await job.spawn_all([]), job.join()]
