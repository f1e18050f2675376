"""``processor bench sql``: how much the SQL functions themselves do, on this machine, without a daemon."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import typer
from rich.console import Console
from rich.table import Table

from processor.cli.bench_database import (
    FREE_KIND,
    PAID_KIND,
    SETTINGS,
    load,
    make_project,
    register_worker,
    replace_all,
    running_server,
)
from processor.local.postgres import PostgresError

CONNECTIONS = 2
BATCH = 1000
CLAIM_LIMIT = 100
CLAIMS = 40
WARM_UP = 8
# one hot account is the worst case: every settlement takes turns at its row
OWNER = UUID("0a57e600-0000-4000-8000-000000000001")

out = Console(highlight=False)
err = Console(highlight=False, stderr=True)

CREATE = """
    select count(made.id) from jsonb_array_elements($1::jsonb) j
    cross join lateral public.create_job(
      kind => j ->> 'kind', payload => j -> 'payload', owner_id => (j ->> 'owner_id')::uuid) made
"""
CLAIM = 'select public.claim_jobs(worker_id => $1, request_id => $2, "limit" => $3)'
CALLS = ("create", "claim", "finish")
FINISH = "select public.finish_jobs(worker_id => $1, results => $2)"


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
    clients = [await _Client.connect(dsn) for _ in range(CONNECTIONS)]
    try:
        await _grant(dsn, jobs)
        return await _rate(clients, jobs, "", {"kind": FREE_KIND}) | await _rate(
            clients, jobs, "_credits", {"kind": PAID_KIND, "owner_id": str(OWNER)}
        )
    finally:
        for client in clients:
            await client.connection.close()


async def _rate(clients: list[_Client], jobs: int, name: str, job: dict[str, str]) -> dict[str, Any]:
    for client in clients:
        client.forget()
    batch = json.dumps([job | {"payload": _payload(number)} for number in range(BATCH)])
    batches = iter(range(jobs // BATCH))
    creating = await _together(client.create(batch, batches) for client in clients)
    draining = await _together(client.drain() for client in clients)
    finished = sum(client.finished for client in clients)
    report: dict[str, Any] = {
        f"enqueue{name}_per_s": round(finished / creating),
        f"drain{name}_per_s": round(finished / draining),
    }
    for call in CALLS:
        report[f"{call}{name}_ms_per_1000"] = _median(clients, call)
        report[f"{call}{name}_cpu_ms_per_1000"] = _cpu(clients, call)
    return report


def _payload(number: int) -> dict[str, str]:
    return {"document": f"documents/{number}.md", "language": "de"}


async def _grant(dsn: str, credits_: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("select processor.grant_credits($1, $2)", OWNER, credits_)
    finally:
        await connection.close()


class _Client:
    """One connection, as a worker of its own; keeps what each call took, in milliseconds."""

    def __init__(self, connection: asyncpg.Connection, worker_id: UUID) -> None:
        self.connection = connection
        self.worker_id = worker_id
        self._schedstat = Path(f"/proc/{connection.get_server_pid()}/schedstat")
        self.forget()

    @classmethod
    async def connect(cls, dsn: str) -> _Client:
        connection = await asyncpg.connect(dsn)
        worker_id = await register_worker(connection)
        await connection.execute("set role service_role")
        return cls(connection, worker_id)

    def forget(self) -> None:
        self.finished = 0
        self.took: dict[str, list[float]] = {call: [] for call in CALLS}
        self.cpu: dict[str, list[float]] = {call: [] for call in CALLS}

    async def create(self, batch: str, batches: Iterator[int]) -> None:
        """Create batches for as long as there are some to take."""
        for _ in batches:
            await self._timed("create", CREATE, batch)

    async def drain(self) -> None:
        """Claim and finish until nothing is left."""
        while True:
            answer = json.loads(await self._timed("claim", CLAIM, self.worker_id, uuid4(), BATCH))
            if not answer["jobs"]:
                self.took["claim"].pop()
                self.cpu["claim"].pop()
                return
            results = [
                {"id": job["id"], "attempt": job["attempt"], "outcome": "done"} for job in answer["jobs"]
            ]
            await self._timed("finish", FINISH, self.worker_id, json.dumps(results))
            self.finished += len(results)

    async def _timed(self, name: str, statement: str, *arguments: Any) -> Any:
        worked, started = self._cpu_ms(), time.perf_counter()
        answer = await self.connection.fetchval(statement, *arguments)
        self.took[name].append((time.perf_counter() - started) * 1000)
        self.cpu[name].append(self._cpu_ms() - worked)
        return answer

    def _cpu_ms(self) -> float:
        """Return how long the server's process has been on a processor; what Linux alone tells."""
        return int(self._schedstat.read_text().split()[0]) / 1e6 if self._schedstat.exists() else math.nan


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> float:
    """Let all work at once; return the seconds until the last has ended."""
    started = time.perf_counter()
    await asyncio.gather(*work)
    return time.perf_counter() - started


def _median(clients: list[_Client], name: str) -> float:
    return round(statistics.median(took for client in clients for took in client.took[name]), 2)


def _cpu(clients: list[_Client], name: str) -> float | None:
    mean = statistics.fmean(worked for client in clients for worked in client.cpu[name])
    return None if math.isnan(mean) else round(mean, 2)


# claims by size of the table


async def _claims_by_size(large: str, empty: str, rows: int) -> dict[str, Any]:
    """Time claims in a large and an empty table by turns, so that both meet the same noise.

    Statistics are "stale" when they were taken before the pending rows came, "none" when never taken.
    """
    await load(empty, pending=CLAIM_LIMIT)
    small: list[float] = []
    times: dict[str, dict[str, float]] = {"fresh": {}, "stale": {}, "none": {}}
    ratios: dict[str, dict[str, float]] = {"fresh": {}, "stale": {}, "none": {}}
    size = min(1000, rows)
    while size <= rows:
        await _fill(large, size)
        for state in ("stale", "fresh", "none"):
            await _statistics(large, state)
            here, there = await _claims_by_turns(large, empty)
            times[state][str(size)] = round(statistics.median(here), 2)
            ratios[state][str(size)] = round(statistics.median(here) / statistics.median(there), 2)
            small += there
        size *= 10
    base = {"0": round(statistics.median(small), 2)}
    return {
        "claim_ms": base | times["fresh"],
        "claim_ms_stale_statistics": base | times["stale"],
        "claim_ms_no_statistics": base | times["none"],
        "claim_ratio": {
            size: max(of_state[size] for of_state in ratios.values()) for size in ratios["fresh"]
        },
    }


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


async def _claims_by_turns(large: str, empty: str) -> tuple[list[float], list[float]]:
    clients = [await _Client.connect(dsn) for dsn in (large, empty)]
    try:
        for number in range(WARM_UP + CLAIMS):
            for client in clients:
                await _claim_and_roll_back(client)
            if number + 1 == WARM_UP:
                for client in clients:
                    client.forget()
        return clients[0].took["claim"], clients[1].took["claim"]
    finally:
        for client in clients:
            await client.connection.close()


async def _claim_and_roll_back(client: _Client) -> None:
    transaction = client.connection.transaction()
    await transaction.start()
    await client._timed("claim", CLAIM, client.worker_id, uuid4(), CLAIM_LIMIT)  # noqa: SLF001 - same file
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
        "finished rows", "claim of 100", "stale statistics", "none", "times an empty table", box=None
    )
    for size, milliseconds in report["claim_ms"].items():
        claims.add_row(
            f"{int(size):,}",
            f"{milliseconds:.1f} ms",
            f"{report['claim_ms_stale_statistics'][size]:.1f} ms",
            f"{report['claim_ms_no_statistics'][size]:.1f} ms",
            f"{report['claim_ratio'][size]:.2f}" if size in report["claim_ratio"] else "",
        )
    out.print(claims)
