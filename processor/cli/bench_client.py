"""One database connection that acts as a worker and keeps what each of its calls took."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import asyncpg

from processor.cli.bench_database import register_worker

CREATE = "select public.create_jobs(jobs => $1)"
CLAIM = 'select public.claim_jobs(worker_id => $1, request_id => $2, "limit" => $3)'
FINISH = "select public.finish_jobs(worker_id => $1, results => $2)"


class Client:
    """A connection with the service's role and a worker of its own.

    ``milliseconds`` and ``cpu`` hold, by name of the call, what each one took: by the clock, and of the
    server's process on a processor. The latter hardly changes when others keep the machine busy; only
    Linux tells.
    """

    def __init__(self, connection: asyncpg.Connection, worker_id: UUID) -> None:
        self.connection = connection
        self.worker_id = worker_id
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)
        self._schedstat = Path(f"/proc/{connection.get_server_pid()}/schedstat")

    @classmethod
    async def connect(cls, dsn: str) -> Self:
        """Open a connection and register its worker."""
        connection = await asyncpg.connect(dsn)
        worker_id = await register_worker(connection)
        await connection.execute("set role service_role")
        return cls(connection, worker_id)

    async def close(self) -> None:
        """Close the connection; the worker's row stays."""
        await self.connection.close()

    def forget(self) -> None:
        """Forget what was measured so far, such as a warm-up."""
        self.milliseconds.clear()
        self.cpu.clear()

    async def create(self, jobs: str) -> None:
        """Create jobs, given as a JSON array."""
        await self._call("create", CREATE, jobs)

    async def claim(self, limit: int) -> list[dict[str, Any]]:
        """Claim up to so many jobs."""
        answer = json.loads(await self._call("claim", CLAIM, self.worker_id, uuid4(), limit))
        jobs: list[dict[str, Any]] = answer["jobs"]
        if not jobs:  # what an empty claim takes is not what is asked
            self.milliseconds["claim"].pop()
            self.cpu["claim"].pop()
        return jobs

    async def finish(self, jobs: list[dict[str, Any]], result: Any = None) -> None:
        """Report claimed jobs as done."""
        reports = [
            {"id": job["id"], "attempt": job["attempt"], "outcome": "done", "result": result} for job in jobs
        ]
        await self._call("finish", FINISH, self.worker_id, json.dumps(reports))

    async def _call(self, name: str, statement: str, *arguments: Any) -> Any:
        worked, started = self._cpu_ms(), time.perf_counter()
        answer = await self.connection.fetchval(statement, *arguments)
        self.milliseconds[name].append((time.perf_counter() - started) * 1000)
        self.cpu[name].append(self._cpu_ms() - worked)
        return answer

    def _cpu_ms(self) -> float:
        return int(self._schedstat.read_text().split()[0]) / 1e6 if self._schedstat.exists() else math.nan


def median_ms(clients: Iterable[Client], call: str) -> float:
    """Return the median time of a call, by the clock."""
    return round(statistics.median(took for client in clients for took in client.milliseconds[call]), 2)


def mean_cpu_ms(clients: Iterable[Client], call: str) -> float | None:
    """Return what a call took of a processor on average; None where the system does not tell."""
    mean = statistics.fmean(worked for client in clients for worked in client.cpu[call])
    return None if math.isnan(mean) else round(mean, 2)
