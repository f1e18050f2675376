"""``processor bench``: measure this machine. Here: ``latency``, with real processes in local mode."""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from processor import JobContext, Processor
from processor.cli.bench_sql import sql

app = typer.Typer(help="Measure this machine, with servers and processes of its own.", no_args_is_help=True)
app.command()(sql)
out = Console(highlight=False)
err = Console(highlight=False, stderr=True)

KIND = "bench.latency"
WARM_UP = 10
START_SECONDS = 90.0
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
        report = asyncio.run(_measure(jobs))
    except _BenchError as error:
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


class _BenchError(Exception):
    """The measurement could not be made; the message says why."""


async def _measure(jobs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="processor-bench-") as directory:
        return _report(await _samples(jobs, directory))


async def _samples(jobs: int, directory: str) -> list[tuple[float, str]]:
    async with _process("dev", "--json", "--port", "0", "--data-dir", directory) as stack:
        project = await _first(stack, lambda line: "service_role_key" in line, START_SECONDS)
        key = project["service_role_key"]
        environment = {
            "SUPABASE_URL": project["url"],
            "SUPABASE_SERVICE_ROLE_KEY": key,
            "PROCESSOR_LOG_FORMAT": "json",
            "PROCESSOR_LOG_LEVEL": "info",
        }
        async with (
            _process("run", f"{__name__}:target", **environment) as lines,
            httpx.AsyncClient(
                base_url=f"{project['url']}/rest/v1",
                headers={"apikey": key, "Authorization": f"Bearer {key}"},
                timeout=JOB_SECONDS,
            ) as api,
        ):
            await _first(
                lines,
                lambda line: line.get("event") == "feed.mode" and line.get("mode") == "realtime",
                START_SECONDS,
            )
            return [await _one(api, lines) for _ in range(jobs + WARM_UP)][WARM_UP:]


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


async def _one(api: httpx.AsyncClient, lines: AsyncIterator[dict[str, Any]]) -> tuple[float, str]:
    # a pause of changing length: the daemon is idle again, and no rhythm of its own is hit every time
    await asyncio.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - not for secrets
    answer = await api.post("/rpc/create_job", json={"kind": KIND})
    if answer.is_error:
        raise _BenchError(f"create_job answered {answer.status_code}: {answer.text}")
    row = answer.json()

    def about(event: str) -> Any:
        return lambda line: line.get("event") == event and line.get("job_id") == row["id"]

    started = await _first(lines, about("job.started"), JOB_SECONDS)
    await _first(lines, about("job.finished"), JOB_SECONDS)
    created = datetime.fromisoformat(row["created_at"]).timestamp()
    return (started["started_at"] - created) * 1000, started["wake"]


async def _first(lines: AsyncIterator[dict[str, Any]], wanted: Any, seconds: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(seconds):
            async for line in lines:
                if wanted(line):
                    return line
    except TimeoutError:
        raise _BenchError(f"nothing of what was awaited was seen for {seconds:g} s") from None
    raise _BenchError("the process that was measured has ended; its own words stand above")


@asynccontextmanager
async def _process(*arguments: str, **environment: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Run ``processor …`` and read the JSON lines it prints or logs; it is stopped on the way out."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "processor",
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, **environment},
    )
    try:
        yield _json_lines(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _json_lines(process: Process) -> AsyncIterator[dict[str, Any]]:
    if process.stdout is None:
        raise _BenchError("no output to read")
    async for raw in process.stdout:
        try:
            line = json.loads(raw)
        except ValueError:
            err.print(raw.decode(errors="replace").rstrip(), markup=False)  # words for people: pass them on
            continue
        if isinstance(line, dict):
            yield line
