"""Handlers that make spans of their own, wherever they run; names and queues carry TEST_PREFIX."""

import os

from opentelemetry import propagate, trace

from processor import JobContext, Processor, Retry, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()
tracer = trace.get_tracer("tests.apps.traced")


def around() -> dict[str, str]:
    """Return the trace that the running code is in, as it would be told to others."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@app.job(f"{PREFIX}.family", queue=PREFIX)
async def family(job: JobContext) -> dict:
    with tracer.start_as_current_span("family's own"):
        await job.spawn(f"{PREFIX}.thread")
    with tracer.start_as_current_span("family's other"):
        await job.spawn(f"{PREFIX}.process")
    return {"given": dict(job.trace_context or {})}


@app.job(f"{PREFIX}.thread", queue=PREFIX)
def thread(job: SyncJobContext) -> dict:
    with tracer.start_as_current_span("thread's own"):
        return around()


@app.job(f"{PREFIX}.process", queue=PREFIX, process=True)
def process(job: SyncJobContext) -> dict:
    return around() | {"given": dict(job.trace_context or {})}


@app.job(f"{PREFIX}.second", queue=PREFIX)
async def second(job: JobContext) -> None:
    if job.attempt == 1:
        raise Retry(delay=0)
