"""Run the stress, print a report, exit with 1 if anything was wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from bench.stress.clients import OWNERS, Client, LostError, Server, User
from bench.stress.journal import Journal
from bench.stress.judge import judge
from bench.stress.operators import Auditor, Operator
from bench.stress.workers import Worker, fence
from bench.stress.world import World

DRAIN_SECONDS = 20.0
PATIENCE_SECONDS = 15.0


class Sweeper(Worker):
    """The last worker: everything it gets is done well."""

    async def drain(self) -> None:
        """Work until nothing is pending or processing."""
        deadline = time.monotonic() + DRAIN_SECONDS
        await self.ask(
            "update public.job_queues set paused = false, max_processing = null, rate_limit = null"
        )
        open_jobs = "select count(*) from public.jobs where status in ('pending', 'processing')"
        while left := await self.ask(open_jobs):
            if time.monotonic() > deadline:
                self.journal.violation(f"not drained after {DRAIN_SECONDS:.0f} s: {left} jobs are open")
                return
            await self.register()
            await self.heartbeat()
            await self.claim_all()

    async def claim_all(self) -> None:
        """Claim what there is and complete it."""
        answer = await self.function("claim_jobs", worker_id=self.id, request_id=self.id, limit=500)
        reports = []
        for job in answer["jobs"]:
            self.journal.job_claimed(job, self.id)
            items = [{"key": item["key"], "status": "completed"} for item in job["items"]]
            reports.append(fence(job) | {"outcome": "done", "items": items})
        told = await self.function("finish_jobs", worker_id=self.id, results=reports)
        for report, answer in zip(reports, told, strict=True):
            self.told(report, answer)
        if not reports:
            await asyncio.sleep(0.05)

    async def ask(self, query: str) -> Any:
        """Ask as the operator."""
        connection = await asyncpg.connect(self.world.dsn())
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()


def cast(world: World, journal: Journal, seed: int) -> list[Client]:
    """Return the clients: fourteen connections, and a second one of each worker."""
    users = [User(world, journal, f"{seed} user {n}", OWNERS[n % 3]) for n in range(4)]
    servers = [Server(world, journal, f"{seed} server", OWNERS[3])]
    workers = [Worker(world, journal, f"{seed} worker {n}", lease=1 + n % 2) for n in range(6)]
    operators = [Operator(world, journal, f"{seed} operator {n}") for n in range(2)]
    return [*users, *servers, *workers, *operators, Auditor(world, journal, f"{seed} auditor")]


async def run(seconds: float, seed: int, directory: Path, bin_dir: Path | None) -> dict[str, Any]:
    """Run it all; return the report."""
    journal = Journal()
    world = World(directory, journal, bin_dir=bin_dir)
    await world.start()
    try:
        clients = cast(world, journal, seed)
        tasks = [asyncio.create_task(c.run(), name=f"{type(c).__name__} {n}") for n, c in enumerate(clients)]
        killer = asyncio.create_task(world.kill_connections(f"{seed} killer"), name="killer")
        await asyncio.sleep(seconds / 2)
        started = time.monotonic()
        await world.crash()
        recovery = time.monotonic() - started
        await asyncio.sleep(max(0.0, seconds / 2 - recovery))
        world.running = False
        done, late = await asyncio.wait([*tasks, killer], timeout=PATIENCE_SECONDS)
        world.over = True
        for task in late:
            journal.violation(f"{task.get_name()} did not come to an end")
            task.cancel()
        for task in done:
            if (error := task.exception()) is not None and not isinstance(error, LostError):
                journal.violation(f"{task.get_name()} ended with {error!r}")
        sweeper = Sweeper(world, journal, f"{seed} sweeper", lease=60)
        await sweeper.drain()
        await sweeper.close()
        connection = await asyncpg.connect(world.dsn())
        try:
            for line in await judge(connection, journal):
                journal.violation(line)
            jobs = await connection.fetchval("select count(*) from public.jobs")
            pruned = await connection.fetchval("select count(*) from stress.pruned")
        finally:
            await connection.close()
    finally:
        await world.stop()
    return {
        "ok": not journal.violations,
        "seconds": seconds,
        "seed": seed,
        "connections": len(clients),
        "calls": sum(journal.calls.values()),
        "lost_answers": journal.lost,
        "stale_reports": journal.stale,
        "kills": world.kills,
        "crashes": world.crashes,
        "recovery_seconds": round(recovery, 2),
        "deadlocks": world.deadlocks,
        "jobs": jobs,
        "pruned": pruned,
        "acknowledged": {
            "creates": len(journal.created),
            "ends": len(journal.ended),
            "items": sum(map(len, journal.captured.values())),
            "grants": len(journal.grants),
            "claims": len(journal.claimed),
        },
        "refusals": dict(journal.refusals.most_common()),
        "by_function": dict(journal.calls.most_common()),
        "slowest_ms": {
            name: round(seconds * 1000)
            for name, seconds in sorted(journal.slowest.items(), key=lambda item: -item[1])
        },
        "violations": journal.violations,
    }


def main() -> None:
    """Read the arguments, run, report."""
    parser = argparse.ArgumentParser(prog="scripts/stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the clients work")
    parser.add_argument("--seed", type=int, default=1, help="what the clients' choices follow from")
    parser.add_argument("--bin-dir", type=Path, help="PostgreSQL's binaries, if not the embedded ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stress-") as directory:
        report = asyncio.run(run(arguments.seconds, arguments.seed, Path(directory), arguments.bin_dir))
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}: " + ", ".join(f"{key} {number:,}" for key, number in value.items()))
        elif name == "violations":
            print("violations:", *(value or ["none"]), sep="\n  ")
        else:
            print(f"{name}: {value}")
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
