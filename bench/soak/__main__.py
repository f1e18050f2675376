"""Run the soak, print a report and a plot, exit with 1 if anything grew or was lost."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from bench.soak import census
from bench.soak.cutter import Cutter
from bench.soak.handlers import KINDS

START_SECONDS = 90.0
RECONNECT_SECONDS = 60.0
DRAIN_SECONDS = 120.0
BATCH = 200
MOST_OPEN = 2000
"""Jobs that wait at the same time: enough to keep the daemon busy."""
LONGEST_LIFE = 0.1
"""Seconds that a connection may live before it is cut."""
OPEN_JOBS = "select count(*) from public.jobs where status in ('pending', 'processing')"


class Soak:
    """One daemon, its project, and what is done to them."""

    def __init__(self, options: argparse.Namespace, stack: dict[str, Any], cutter: Cutter) -> None:
        self.options = options
        self.stack = stack
        self.cutter = cutter
        self.random = random.Random(options.seed)
        self.reconnects = 0
        self.created = 0
        self.finished = 0
        self.samples: list[census.Sample] = []
        self.began = time.monotonic()

    @property
    def way(self) -> float:
        """How much of it is done, as a share."""
        shares = [(self.reconnects, self.options.reconnects), (self.finished, self.options.jobs)]
        return min((done / wanted for done, wanted in shares if wanted), default=1.0)

    async def cut(self) -> None:
        """Take the connection away again and again, whenever it is back."""
        await self.cutter.live(START_SECONDS)
        while self.reconnects < self.options.reconnects:
            await asyncio.sleep(self.random.uniform(0, LONGEST_LIFE))
            self.cutter.cut()
            await self.cutter.live(RECONNECT_SECONDS)
            self.reconnects += 1

    async def produce(self, database: asyncpg.Connection) -> None:
        """Create the jobs, as many as keep step with the reconnects, and wait for their ends."""
        key = self.stack["service_role_key"]
        headers = {"apikey": key, "Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.stack["url"], headers=headers, timeout=60) as api:
            while self.created < self.options.jobs:
                waiting = await database.fetchval(OPEN_JOBS)
                self.finished = max(0, self.created - waiting)
                share = self.reconnects / self.options.reconnects if self.options.reconnects else 1
                if waiting > MOST_OPEN or self.created > self.options.jobs * share + BATCH:
                    await asyncio.sleep(0.05)
                    continue
                jobs = [self._job() for _ in range(min(BATCH, self.options.jobs - self.created))]
                answer = await api.post("/rest/v1/rpc/create_jobs", json={"jobs": jobs})
                answer.raise_for_status()
                self.created += len(jobs)
        async with asyncio.timeout(DRAIN_SECONDS):
            while waiting := await database.fetchval(OPEN_JOBS):
                self.finished = max(0, self.created - waiting)
                await asyncio.sleep(0.1)
        self.finished = self.created

    def _job(self) -> dict[str, Any]:
        [kind] = self.random.choices(list(KINDS), list(KINDS.values()))
        job: dict[str, Any] = {"kind": f"soak.{kind}", "payload": {"n": self.random.random()}}
        if kind == "items":
            job["items"] = ["a", "b", "c"]
        if kind == "crash":
            job["max_attempts"] = 1
        return job

    async def watch(self, daemon: Process, gateway: Process) -> None:
        """Count what there is, until cancelled."""
        told = time.monotonic()
        while True:
            seconds = time.monotonic() - self.began
            sample = await census.take(
                daemon,
                gateway,
                seconds=seconds,
                way=self.way,
                jobs=self.finished,
                reconnects=self.reconnects,
            )
            self.samples.append(sample)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(
                    f"{seconds:6.0f} s  {self.reconnects} reconnects  {self.finished} jobs  "
                    f"{sample.rss_mb:.1f} MB  {sample.fds} fds  {sample.tasks} tasks",
                    file=sys.stderr,
                )
            await asyncio.sleep(self.options.every)


@asynccontextmanager
async def process(*arguments: str, errors: Path, **environment: str) -> AsyncIterator[Process]:
    """Run Python with these arguments; its stderr goes to a file. It is stopped on the way out."""
    with errors.open("wb") as stderr:
        started = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=PIPE, stderr=stderr, env={**os.environ, **environment}
        )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


async def soak(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run it; return the report."""
    dev = ("-m", "processor", "dev", "--json", "--port", "0", "--data-dir", str(directory / "data"))
    async with process(*dev, errors=directory / "stack.log") as gateway:
        assert gateway.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            stack = json.loads(await gateway.stdout.readline())
        database = await asyncpg.connect(stack["db_url"])
        environment = {
            "SUPABASE_SERVICE_ROLE_KEY": stack["service_role_key"],
            "PROCESSOR_SLOTS": "20",
            "PROCESSOR_HEALTH_SECONDS": "0.05",  # whatever has lived so long has proven itself
            "PROCESSOR_LEASE_SECONDS": "30",
            "PROCESSOR_LOG_LEVEL": "info",
            "PROCESSOR_LOG_FORMAT": "json",
        }
        try:
            async with Cutter(stack["url"], options.seed) as cutter:
                environment["SUPABASE_URL"] = cutter.url
                worker = process("-m", "bench.soak.worker", errors=directory / "daemon.log", **environment)
                async with worker as daemon:
                    run = Soak(options, stack, cutter)
                    await live_through(run, daemon, gateway, database)
                    daemon.terminate()
                    async with asyncio.timeout(60):
                        code = await daemon.wait()
            if options.plot:
                census.plot(run.samples, options.plot, options.tolerance)
            return await judged(run, code, database)
        finally:
            await database.close()


async def live_through(run: Soak, daemon: Process, gateway: Process, database: asyncpg.Connection) -> None:
    """Do everything at once, until the connection was lost and the jobs were done as often as wanted."""
    await run.cutter.live(START_SECONDS)
    watching = asyncio.create_task(run.watch(daemon, gateway), name="watch")
    try:
        async with asyncio.TaskGroup() as group:
            works = [group.create_task(run.cut()), group.create_task(run.produce(database))]
            while not all(work.done() for work in works):
                await asyncio.wait([*works, watching], return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()  # it never ends by itself
        await asyncio.sleep(2 * run.options.every)  # at least one look at the end
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def judged(run: Soak, code: int, database: asyncpg.Connection) -> dict[str, Any]:
    """Judge the samples, and what became of the jobs."""
    report = census.judge(run.samples, run.options.tolerance)
    rows = await database.fetch(
        "select kind, status, error_code, count(*) from public.jobs group by 1, 2, 3 order by 1, 2"
    )
    wrong = [
        f"{row['count']} jobs of kind {row['kind']} are {row['status']} ({row['error_code']})"
        for row in rows
        if row["status"] != ("failed" if row["kind"] == "soak.crash" else "completed")
    ]
    wrong += [str(dict(row)) for row in await database.fetch("select * from processor.check_credits()")]
    if code != 0:
        wrong.append(f"the daemon ended with {code}")
    return {
        "jobs": sum(row["count"] for row in rows),
        "reconnects": run.reconnects,
        "seconds": round(time.monotonic() - run.began, 1),
        "samples": len(run.samples),
        **report,
        "wrong": wrong,
        "ok": not wrong and not report["leaks"],
    }


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("soak", description=__doc__)
    parser.add_argument(
        "--reconnects", type=int, default=10_000, help="how often the feed's connection is cut"
    )
    parser.add_argument("--jobs", type=int, default=200_000, help="how many jobs are done meanwhile")
    parser.add_argument("--tolerance", type=float, default=0.1, help="by which share memory may differ")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="file for the plot, .png or .svg")
    return parser.parse_args(arguments)


def main() -> int:
    """Print what it came to."""
    options = options_of()
    with tempfile.TemporaryDirectory(prefix="processor-soak-") as directory:
        try:
            report = asyncio.run(soak(options, Path(directory)))
        except BaseException:
            for name in ("daemon.log", "stack.log"):
                if (path := Path(directory, name)).exists():
                    print(
                        f"--- the end of {name}",
                        *path.read_text().splitlines()[-20:],
                        sep="\n",
                        file=sys.stderr,
                    )
            raise
    for name in ("rss_mb", "blocks", "fds", "threads", "tasks"):
        mark = "LEAK" if name in report["leaks"] else "flat"
        print(f"{name:10} {report[name]['level']:>12} → {report[name]['end']:<12} {mark}")
    print(*report["wrong"], sep="\n")
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
