"""The server, and what befalls it: killed connections, and one crash with recovery from the WAL."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from uuid import uuid4

import asyncpg

from bench.stress.journal import Journal
from processor import schema
from processor.local.postgres import Postgres
from processor.rpc import SCHEMA_VERSION

BOOTSTRAP = Path(__file__).parents[2] / "processor" / "local" / "bootstrap.sql"
DEADLOCKS = "select deadlocks from pg_stat_database where datname = 'stress'"
# what the server must never have to say; errors that functions catch are seen here only
FORBIDDEN = ("deadlock detected", "rescue_jobs failed", "violates", "PANIC", "TRAP")

# `pruned` remembers, in the transaction that deletes a job, what it was
SET_UP = """
    insert into public.job_queues (name, retry_delays) values
      ('default', array[interval '50 milliseconds']),
      ('limited', array[interval '50 milliseconds']),
      ('prunable', array[interval '50 milliseconds']);
    update public.job_queues set max_processing_per_owner = 20 where name = 'default';
    update public.job_queues set max_processing = 10, rate_limit = 100, rate_period = '1 second'
      where name = 'limited';
    update public.job_queues set retain_for = '0', retain_last = 20, max_pending_per_owner = 200
      where name = 'prunable';
    create schema stress;
    create table stress.pruned (id uuid primary key, status text not null);
    create function stress.note() returns trigger language plpgsql security definer set search_path = '' as $$
      begin insert into stress.pruned values (old.id, old.status); return null; end $$;
    create trigger note after delete on public.jobs for each row execute function stress.note();
"""


class World:
    """A durable server with the schema, in a directory of its own."""

    def __init__(self, directory: Path, journal: Journal, *, bin_dir: Path | None = None) -> None:
        self.journal = journal
        self.up = asyncio.Event()
        self.running = False
        self.over = False
        self.kills = 0
        self.crashes = 0
        self.deadlocks = 0
        self.kinds = [
            {"kind": "translate", "queue": "default", "public": True, "credits_per_item": 3},
            {"kind": "report", "queue": "default", "public": True, "credits_per_job": 5},
            {"kind": "free", "queue": "limited", "public": True},
            {"kind": "prunable", "queue": "prunable", "public": True, "credits_per_job": 1},
        ]
        self._postgres = Postgres(directory, bin_dir=bin_dir, durable=True)
        self._pid_file = directory / "cluster" / "postmaster.pid"
        self._log = directory / "postgres.log"

    def dsn(self) -> str:
        """Return the address, which changes when the server is started anew."""
        return self._postgres.dsn("stress")

    async def start(self) -> None:
        """Start the server and put the schema into a new database."""
        await self._postgres.start()
        admin = await asyncpg.connect(self._postgres.dsn())
        await admin.execute("create database stress")
        await admin.close()
        connection = await asyncpg.connect(self.dsn())
        await connection.execute(BOOTSTRAP.read_text())
        await connection.close()
        await schema.apply(self.dsn())
        connection = await asyncpg.connect(self.dsn())
        await connection.execute(SET_UP)
        # some worker was here before: the kinds are known
        known = {"id": str(uuid4()), "slots": 1, "lease_seconds": 60, "schema_version": SCHEMA_VERSION}
        await connection.execute(
            "select public.register_worker($1)", json.dumps(known | {"queues": [], "kinds": self.kinds})
        )
        await connection.close()
        self.running = True
        self.up.set()

    async def stop(self) -> None:
        """Stop the server and read what it has said."""
        if self.up.is_set():
            await self._look_for_deadlocks()
        self.up.clear()
        await self._postgres.stop()
        self._read_log()

    async def kill_connections(self, seed: str) -> None:
        """Kill some client's connection, in whatever it does, a few times a second until the run ends."""
        chance = random.Random(seed)
        victim = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'stress' and pid <> pg_backend_pid() order by random() limit 1"
        )
        while self.running:
            await asyncio.sleep(chance.uniform(0.05, 0.5))
            await self.up.wait()
            try:
                connection = await asyncpg.connect(self.dsn(), timeout=10)
            except (OSError, asyncpg.PostgresError):
                continue  # it is crashing at this moment
            try:
                while self.running and self.up.is_set():
                    self.kills += await connection.fetchval(victim) is True
                    await asyncio.sleep(chance.uniform(0.05, 0.5))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                continue
            finally:
                connection.terminate()

    async def crash(self) -> None:
        """Stop at once, as `pg_ctl stop -m immediate` does, and start again: the WAL is all that is left."""
        await self._look_for_deadlocks()  # the statistics do not survive
        self.up.clear()
        os.kill(int(self._pid_file.read_text().split()[0]), signal.SIGQUIT)
        await self._postgres.wait()
        await self._postgres.stop()
        self._read_log()
        await self._postgres.start()
        if "automatic recovery in progress" not in self._log.read_text(errors="replace"):
            self.journal.violation("the server did not recover from its WAL: it was not crashed")
        self.crashes += 1
        self.up.set()

    async def _look_for_deadlocks(self) -> None:
        connection = await asyncpg.connect(self.dsn())
        try:
            found = await connection.fetchval(DEADLOCKS)
        finally:
            await connection.close()
        self.deadlocks += found
        if found:
            self.journal.violation(f"{found} deadlocks")

    def _read_log(self) -> None:
        for line in self._log.read_text(errors="replace").splitlines():
            if any(word in line for word in FORBIDDEN):
                self.journal.violation(f"the server's log: {line}")
