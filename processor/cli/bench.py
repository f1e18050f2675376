"""``processor bench``: measure this machine. Here: ``latency``, with real processes in local mode."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from processor import JobContext, Processor
from processor.cli.bench_drain import drain
from processor.cli.bench_processes import ANSWER_SECONDS, BenchError, Scene, err, running
from processor.cli.bench_sql import sql

app = typer.Typer(help="Measure this machine, with servers and processes of its own.", no_args_is_help=True)
app.command()(sql)
app.command()(drain)
out = Console(highlight=False)

KIND = "bench.latency"
WARM_UP = 10
JOB_SECONDS = 30.0

target = Processor()
"""What the measured daemon runs: a handler that says when it was called."""


@target.job(KIND, queue="bench", public=False)
async def say_when(job: JobContext[dict[str, Any]]) -> None:
    """Write the time into the daemon's output, which is read as its log is."""
    called_at = time.time()
    print(json.dumps({"event": "bench.called", "job_id": str(job.id), "called_at": called_at}), flush=True)  # noqa: T201


@app.command()
def latency(
    *,
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="How many jobs to measure.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Insert → handler called, with an idle daemon.

    From the row's created_at, which is taken before its transaction commits, to the handler's first line:
    commit, WAL, Realtime, claim and dispatch are all in it. One job at a time.
    """
    try:
        report = _report(asyncio.run(_samples(jobs)))
    except BenchError as error:
        err.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table("insert → handler called", "", box=None)
    for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms"):
        table.add_row(name.removesuffix("_ms"), f"{report[name]:.1f} ms")
    table.add_row("woken by Realtime", f"{report['realtime_share']:.1%} of {report['jobs']} jobs")
    out.print(table)


async def _samples(jobs: int) -> list[tuple[float, str]]:
    async with running(f"{__name__}:target") as scene:
        caller = http.client.HTTPConnection(
            scene.api.base_url.host, scene.api.base_url.port or 80, timeout=ANSWER_SECONDS
        )
        try:
            return [await _one(scene, caller) for _ in range(jobs + WARM_UP)][WARM_UP:]
        finally:
            caller.close()


def _report(samples: list[tuple[float, str]]) -> dict[str, Any]:
    times = [milliseconds for milliseconds, _ in samples]
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {
        "jobs": len(samples),
        "p50_ms": round(cuts[49], 2),
        "p90_ms": round(cuts[89], 2),
        "p99_ms": round(cuts[98], 2),
        "max_ms": round(max(times), 2),
        "realtime_share": sum(wake == "realtime" for _, wake in samples) / len(samples),
    }


async def _one(scene: Scene, caller: http.client.HTTPConnection) -> tuple[float, str]:
    # a pause of changing length: the daemon is idle again, and no rhythm of its own is hit every time
    await asyncio.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - not for secrets
    headers = {**scene.api.headers, "Content-Type": "application/json"}
    caller.request("POST", "/rest/v1/rpc/create_job", json.dumps({"kind": KIND}), headers)
    # the answer is left where it is until the handler runs: elsewhere the caller has a processor of its own
    started = await scene.daemon.first(_event("job.started"), JOB_SECONDS)
    called = await scene.daemon.first(_event("bench.called"), JOB_SECONDS)
    await scene.daemon.first(_event("job.finished"), JOB_SECONDS)
    answer = caller.getresponse()
    row = json.loads(answer.read())
    if called["job_id"] != row.get("id"):
        raise BenchError(f"another job ran than the one that was made: {row}")
    created = datetime.fromisoformat(row["created_at"]).timestamp()
    return (called["called_at"] - created) * 1000, started["wake"]


def _event(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("event") == name
