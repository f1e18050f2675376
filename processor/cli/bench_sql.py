"""``processor bench sql``: how much the SQL functions themselves do, on this machine, without a daemon."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
import typer
from rich.console import Console
from rich.table import Table

from processor.cli.bench_client import Client, mean_cpu_ms, median_ms
from processor.cli.bench_database import (
    FREE_KIND,
    PAID_KIND,
    SETTINGS,
    load,
    make_project,
    replace_all,
    running_server,
)
from processor.local.postgres import PostgresError

CONNECTIONS = 2
BATCH = 1000
CLAIM_LIMIT = 100
CLAIMS = 80
WARM_UP = 8
# one hot account is the worst case: every settlement takes turns at its row
OWNER = UUID("0a57e600-0000-4000-8000-000000000001")

Result = TypeVar("Result")

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)


def sql(
    *,
    jobs: Annotated[int, typer.Option(min=BATCH, help="How many jobs each rate is measured with.")] = 100_000,
    rows: Annotated[
        int,
        typer.Option(min=0, help="Also time claims at 10³, 10⁴, … up to so many finished rows."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Straight SQL: jobs created, claimed and finished in batches of 1,000 over two connections.

    PostgreSQL is started for it, with durable commits, in TMPDIR. With --rows: how long a claim of 100
    takes beside so many finished and a tenth as many pending rows, with fresh, stale and no statistics, and
    how many times as long as in an empty table that is.
    """
    try:
        report = asyncio.run(_measure(jobs, rows))
    except (PostgresError, asyncpg.PostgresError) as error:
        err.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    except asyncio.CancelledError as error:
        raise typer.Exit(143) from error  # SIGTERM, as a shell would say it
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)


async def _measure(jobs: int, rows: int) -> dict[str, Any]:
    async with running_server() as postgres:
        dsn = await make_project(postgres, "rates")
        report: dict[str, Any] = {
            "jobs": jobs,
            "connections": CONNECTIONS,
            "batch": BATCH,
            "settings": SETTINGS,
        }
        report |= await _rates(dsn, jobs)
        if rows:
            large = await make_project(postgres, "large")
            empty = await make_project(postgres, "empty")
            report |= await _claims_by_size(large, empty, rows)
        return report


# rates


async def _rates(dsn: str, jobs: int) -> dict[str, Any]:
    clients = [await Client.connect(dsn) for _ in range(CONNECTIONS)]
    try:
        await _grant(dsn, jobs)
        return await _rate(clients, jobs, "", {"kind": FREE_KIND}) | await _rate(
            clients, jobs, "_credits", {"kind": PAID_KIND, "owner_id": str(OWNER)}
        )
    finally:
        for client in clients:
            await client.close()


async def _rate(clients: list[Client], jobs: int, name: str, job: dict[str, str]) -> dict[str, Any]:
    for client in clients:
        client.forget()
    batch = json.dumps([job | {"payload": _payload(number)} for number in range(BATCH)])
    batches = iter(range(jobs // BATCH))
    creating, _ = await _together(_create(client, batch, batches) for client in clients)
    draining, finished = await _together(_drain(client) for client in clients)
    report: dict[str, Any] = {
        f"enqueue{name}_per_s": round(sum(finished) / creating),
        f"drain{name}_per_s": round(sum(finished) / draining),
    }
    for call in ("create", "claim", "finish"):
        report[f"{call}{name}_ms_per_1000"] = median_ms(clients, call)
        report[f"{call}{name}_cpu_ms_per_1000"] = mean_cpu_ms(clients, call)
    return report


def _payload(number: int) -> dict[str, str]:
    return {"document": f"documents/{number}.md", "language": "de"}


async def _grant(dsn: str, credits_: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("select processor.grant_credits($1, $2)", OWNER, credits_)
    finally:
        await connection.close()


async def _create(client: Client, batch: str, batches: Iterator[int]) -> None:
    for _ in batches:
        await client.create(batch)


async def _drain(client: Client) -> int:
    finished = 0
    while jobs := await client.claim(BATCH):
        await client.finish(jobs)
        finished += len(jobs)
    return finished


async def _together(work: Iterable[Coroutine[Any, Any, Result]]) -> tuple[float, list[Result]]:
    """Let all work at once; return the seconds until the last has ended, and their results."""
    started = time.perf_counter()
    results = await asyncio.gather(*work)
    return time.perf_counter() - started, results


# claims by size of the table


async def _claims_by_size(large: str, empty: str, rows: int) -> dict[str, Any]:
    """Time claims in a large and an empty table by turns, so that both meet the same noise.

    Statistics are "stale" when they were taken before the pending rows came, "none" when never taken.
    """
    await load(empty, pending=CLAIM_LIMIT)
    small: list[float] = []
    times: dict[str, dict[str, float]] = {"stale": {}, "fresh": {}, "none": {}}
    ratios: dict[str, float] = {}
    cpu_ratios: dict[str, float] = {}
    size = min(1000, rows)
    while size <= rows:
        await _fill(large, size)
        name = str(size)
        for state, by_size in times.items():
            await _statistics(large, state)
            here, there = await _claims_by_turns(large, empty)
            by_size[name] = median_ms([here], "claim")
            small += there.milliseconds["claim"]
            ratio, cpu_ratio = _ratio(here.milliseconds, there.milliseconds), _ratio(here.cpu, there.cpu)
            ratios[name] = max(ratio, ratios.get(name, 0))
            cpu_ratios[name] = max(cpu_ratio, cpu_ratios.get(name, 0))
        size *= 10
    base = {"0": round(statistics.median(small), 2)}
    return {
        "claim_ms": base | times["fresh"],
        "claim_ms_stale_statistics": base | times["stale"],
        "claim_ms_no_statistics": base | times["none"],
        "claim_ratio": ratios,
        # what a busy machine does not disturb
        "claim_cpu_ratio": {name: None if math.isnan(ratio) else ratio for name, ratio in cpu_ratios.items()},
    }


def _ratio(here: dict[str, list[float]], there: dict[str, list[float]]) -> float:
    return round(statistics.median(here["claim"]) / statistics.median(there["claim"]), 2)


async def _fill(dsn: str, finished: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        # autovacuum would take statistics behind our back
        await connection.execute("alter table public.jobs set (autovacuum_enabled = off)")
        await replace_all(dsn, finished=finished)
        await connection.execute("vacuum (analyze) public.jobs", timeout=None)
        await load(dsn, pending=max(finished // 10, CLAIM_LIMIT))
    finally:
        await connection.close()


async def _statistics(dsn: str, state: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        if state == "fresh":
            await connection.execute("analyze public.jobs", timeout=None)
        elif state == "none":
            await connection.execute("delete from pg_statistic where starelid = 'public.jobs'::regclass")
    finally:
        await connection.close()


async def _claims_by_turns(large: str, empty: str) -> tuple[Client, Client]:
    clients = [await Client.connect(dsn) for dsn in (large, empty)]
    try:
        for number in range(WARM_UP + CLAIMS):
            for client in clients:
                await _claim_and_roll_back(client)
            if number + 1 == WARM_UP:
                for client in clients:
                    client.forget()
        return clients[0], clients[1]
    finally:
        for client in clients:
            await client.close()


async def _claim_and_roll_back(client: Client) -> None:
    transaction = client.connection.transaction()
    await transaction.start()
    await client.claim(CLAIM_LIMIT)
    await transaction.rollback()


# words for people


def _print(report: dict[str, Any]) -> None:
    table = Table("straight SQL", "jobs/s", "ms per 1,000", "of it the server's CPU", box=None)
    for words, rate, calls in (
        ("created", "enqueue", ("create",)),
        ("claimed and finished", "drain", ("claim", "finish")),
    ):
        for name, price in (("", ""), ("_credits", ", a credit each")):
            table.add_row(
                words + price,
                f"{report[f'{rate}{name}_per_s']:,}",
                " + ".join(f"{report[f'{call}{name}_ms_per_1000']:.0f}" for call in calls),
                " + ".join(f"{report[f'{call}{name}_cpu_ms_per_1000'] or math.nan:.0f}" for call in calls),
            )
    out.print(table)
    if "claim_ms" not in report:
        return
    claims = Table(
        *("finished rows", "claim of 100", "stale statistics", "none", "times an empty table", "by CPU"),
        box=None,
    )
    for size, milliseconds in report["claim_ms"].items():
        claims.add_row(
            f"{int(size):,}",
            f"{milliseconds:.1f} ms",
            f"{report['claim_ms_stale_statistics'][size]:.1f} ms",
            f"{report['claim_ms_no_statistics'][size]:.1f} ms",
            *(f"{report[name].get(size, 1) or math.nan:.2f}" for name in ("claim_ratio", "claim_cpu_ratio")),
        )
    out.print(claims)
