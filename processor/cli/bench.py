"""``processor bench``: measure this machine. Here: ``latency``, with real processes in local mode."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from processor import JobContext, Processor
from processor.cli.bench_drain import drain
from processor.cli.bench_processes import BenchError, Scene, call, err, running
from processor.cli.bench_sql import sql

app = typer.Typer(help="Measure this machine, with servers and processes of its own.", no_args_is_help=True)
app.command()(sql)
app.command()(drain)
out = Console(highlight=False)

KIND = "bench.latency"
WARM_UP = 10
JOB_SECONDS = 30.0

target = Processor()
"""What the measured daemon runs: a handler that does nothing."""


@target.job(KIND, queue="bench", public=False)
async def nothing(job: JobContext[dict[str, Any]]) -> None:
    """Return at once: what is measured is the way here."""


@app.command()
def latency(
    *,
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="How many jobs to measure.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Insert → handler started, with an idle daemon.

    From the row's created_at, which is taken before its transaction commits, to the moment the daemon
    calls the handler: commit, WAL, Realtime, claim and dispatch are all in it. One job at a time.
    """
    try:
        report = _report(asyncio.run(_samples(jobs)))
    except BenchError as error:
        err.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table("insert → handler started", "", box=None)
    for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms"):
        table.add_row(name.removesuffix("_ms"), f"{report[name]:.1f} ms")
    table.add_row("woken by Realtime", f"{report['realtime_share']:.1%} of {report['jobs']} jobs")
    out.print(table)


async def _samples(jobs: int) -> list[tuple[float, str]]:
    async with running(f"{__name__}:target") as scene:
        return [await _one(scene) for _ in range(jobs + WARM_UP)][WARM_UP:]


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


async def _one(scene: Scene) -> tuple[float, str]:
    # a pause of changing length: the daemon is idle again, and no rhythm of its own is hit every time
    await asyncio.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - not for secrets
    row = await call(scene.api, "POST", "/rpc/create_job", {"kind": KIND})

    def about(event: str) -> Any:
        return lambda line: line.get("event") == event and line.get("job_id") == row["id"]

    started = await scene.daemon.first(about("job.started"), JOB_SECONDS)
    await scene.daemon.first(about("job.finished"), JOB_SECONDS)
    created = datetime.fromisoformat(row["created_at"]).timestamp()
    return (started["started_at"] - created) * 1000, started["wake"]
