"""``processor bench drain``: how fast a backlog of jobs that do nothing is worked off, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from processor import JobContext, Processor
from processor.cli.bench_cpu import AVAILABLE, PARTS, cpu_seconds, per_job
from processor.cli.bench_processes import BenchError, Scene, call, err, running

KIND = "bench.drain"
QUEUE = "bench"
WARM_UP = 2_000
AT_ONCE = 5_000
"""Jobs created in one call."""
LOOK_SECONDS = 0.1
CALM_SECONDS = 0.3
LONGEST_SECONDS = 600.0

target = Processor()
"""What the measured daemon runs: a handler that does nothing."""


@target.job(KIND, queue=QUEUE, public=False)
async def nothing(job: JobContext[dict[str, Any]]) -> None:
    """Return at once: what is measured is the way here and back."""


def drain(
    *,
    jobs: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many jobs to drain.")] = 20_000,
    slots: Annotated[int, typer.Option(min=1, max=1000, help="PROCESSOR_SLOTS of the daemon.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Jobs per second of one daemon with a backlog, everything in it: HTTP, Realtime, handlers, logs.

    The jobs are created while their queue is paused. From the moment it is resumed, of which the daemon
    hears by Realtime, to the end of the last job, by the rows. The daemon has its defaults, but for the
    slots: its log, of two lines a job, goes into a pipe. CPU time is that of each process.
    """
    try:
        report = asyncio.run(_measure(jobs, slots))
    except BenchError as error:
        err.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table(f"{report['jobs']} jobs, {report['slots']} slots", "", box=None)
    table.add_row("drained", f"{report['jobs_per_s']:.0f} jobs/s")
    for name, microseconds in (report["cpu_us_per_job"] or {}).items():
        table.add_row(f"CPU a job: {PARTS.get(name, name)}", f"{microseconds:.0f} us")
    Console(highlight=False).print(table)


async def _measure(jobs: int, slots: int) -> dict[str, Any]:
    async with running(f"{__name__}:target", PROCESSOR_SLOTS=str(slots)) as scene:
        reading = asyncio.create_task(scene.daemon.read_on(), name="bench-log")
        try:
            for number in (min(jobs, WARM_UP), jobs):
                began = _cpu(scene)
                await _create(scene, number)
                created = _cpu(scene)
                seconds = await _drain(scene, number)
                drained = _cpu(scene)
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
    return {
        "jobs": jobs,
        "slots": slots,
        "seconds": round(seconds, 3),
        "jobs_per_s": round(jobs / seconds, 1),
        "cpu_us_per_job": per_job(created, drained, jobs),
        "create_cpu_us_per_job": per_job(began, created, jobs),
    }


async def _create(scene: Scene, jobs: int) -> None:
    """Make a backlog, and wait until the daemon has read the events that tell it so, one a job."""
    await call(scene.api, "PATCH", f"/job_queues?name=eq.{QUEUE}", {"paused": True})
    for start in range(0, jobs, AT_ONCE):
        some = [{"kind": KIND}] * min(AT_ONCE, jobs - start)
        await call(scene.api, "POST", "/rpc/create_jobs", {"jobs": some})
    busy = jobs / 1000 if not AVAILABLE else math.inf
    while busy > 0.1 * CALM_SECONDS:
        before = sum(_cpu(scene).values())
        await asyncio.sleep(CALM_SECONDS)
        busy = sum(_cpu(scene).values()) - before if AVAILABLE else busy - CALM_SECONDS


async def _drain(scene: Scene, jobs: int) -> float:
    """Have a backlog worked off; return the seconds from its queue's resumption to the last job's end."""
    api, resumed = scene.api, time.time()
    await call(api, "PATCH", f"/job_queues?name=eq.{QUEUE}", {"paused": False})
    unfinished = f"/jobs?select=id&queue=eq.{QUEUE}&status=in.(pending,processing)&limit=1"
    deadline = time.monotonic() + LONGEST_SECONDS
    while await call(api, "GET", unfinished):
        if time.monotonic() > deadline:
            raise BenchError(f"{jobs} jobs were not drained within {LONGEST_SECONDS:g} s")
        await asyncio.sleep(LOOK_SECONDS)
    if await call(api, "GET", f"/jobs?select=id&queue=eq.{QUEUE}&status=neq.completed&limit=1"):
        raise BenchError("some jobs did not complete; the daemon's log says why")
    latest = f"/jobs?select=finished_at&queue=eq.{QUEUE}&order=finished_at.desc&limit=1"
    return datetime.fromisoformat((await call(api, "GET", latest))[0]["finished_at"]).timestamp() - resumed


def _cpu(scene: Scene) -> dict[str, float]:
    return cpu_seconds(scene.stack.pid, scene.daemon.pid)
