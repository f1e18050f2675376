"""Cards that are translated when a test says so: it writes what becomes of each language into a file."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from processor import JobContext, JobError, JobItem, Processor

PREFIX = os.environ.get("TEST_PREFIX", "test")
ANSWERS = Path(os.environ.get("TEST_ANSWERS", "."))
REFUSAL = 'the translator said <img src="x" onerror="document.title=1"> no'
LOGGED = 'begin <script>document.title = 1</script> with "quotes"'

app = Processor()


class Card(BaseModel):
    """What is translated."""

    title: Annotated[str, Field(min_length=1, max_length=100)]
    text: str = ""


@app.job(f"{PREFIX}.translate", queue=PREFIX, credits_per_item=2, item_concurrency=5, public=True)
async def translate(job: JobContext[Card]) -> dict[str, str]:
    """Translate a card into languages, each when its file says `done`; `fail` is an error for good."""
    job.log.info(LOGGED, card=job.payload.title)

    async def one(item: JobItem[Card]) -> dict[str, str]:
        item.progress(1, 2)
        if await _answer(f"{job.payload.title}.{item.key}") == "fail":
            raise JobError(REFUSAL, code="UPSTREAM_REJECTED", retryable=False)
        return {"title": f"{job.payload.title} in {item.key}"}

    await job.each(one)
    return {"translated": job.payload.title}


@app.job(f"{PREFIX}.endless", queue=PREFIX, credits_per_job=5, public=True)
async def endless(job: JobContext[Card]) -> None:
    """Run until somebody stops it, and leave a file that says when."""
    job.progress(0.5, message="until somebody stops it")
    try:
        await asyncio.Event().wait()
    finally:
        (ANSWERS / f"{job.payload.title}.stopped").touch()


@app.cron("0 3 * * *", kind=f"{PREFIX}.nightly", queue=PREFIX)
async def nightly(job: JobContext) -> None:
    """Give the operator's view a schedule."""


async def _answer(name: str) -> str:
    file = ANSWERS / name
    while not file.exists():  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.02)
    return file.read_text()
