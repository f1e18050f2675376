"""The tables for us alone, taken from workers that use them all the time, without any call of theirs failing.

Files that change tables one after another would sooner or later hold one that a worker waits for and want
one that it holds. So all tables are locked before anything is changed, and when they cannot be had in a
moment all are given back and asked for again, the one that was missing first. That is the order in which
workers use them: soon whoever comes along waits at our first lock while holding nothing that we want.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import asyncpg

from processor.schema.catalog import names
from processor.schema.connect import SchemaError

WAIT_SECONDS = 0.5
"""How long we wait for all tables together: less than deadlock_timeout, so that it is us who give way."""
PAUSE_SECONDS = 0.2
"""How long the others have, at the most, between two tries."""

BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
"""What is raised when a lock cannot be had: begin anew."""
_INSTALLING = 0x6A6F6273
"""The advisory lock of those who change the schema: one at a time, also where there is no table yet."""

_THERE = """\
select o.name from unnest($1::text[]) with ordinality as o (name, position)
where to_regclass(o.name) is not null order by o.position"""

_HOLDERS = """\
select a.pid, a.usename, a.state, date_trunc('second', clock_timestamp() - a.xact_start)::text as age
from pg_catalog.pg_stat_activity a
where a.pid <> pg_backend_pid() and exists (
  select from pg_catalog.pg_locks l
  where l.pid = a.pid and l.granted and l.relation = to_regclass($1))
order by a.xact_start limit 1"""


async def alone(
    connection: asyncpg.Connection, work: Callable[[], Awaitable[None]], *, patience: float
) -> None:
    """Do work in a transaction that has all our tables for itself; try again while they are in use.

    Args:
        connection: to the database, in no transaction.
        work: what to do.
        patience: for how many seconds to try.

    Raises:
        SchemaError: the tables are in use; it says by whom.

    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + patience
    order = names("table")
    while True:
        try:
            async with connection.transaction():
                # "relation exists, skipping" is what applying twice means: not worth a notice; and what lies
                # in schema public must not be taken for PostgreSQL's own when names are bound
                await connection.execute(
                    "set local client_min_messages = warning; set local statement_timeout = 0; "
                    "set local search_path = pg_catalog, pg_temp; "
                    f"set local lock_timeout = {_ms(WAIT_SECONDS)}; "
                    f"select pg_advisory_xact_lock({_INSTALLING})"
                )
                await _lock(connection, order)
                await work()
        except BUSY as error:
            if clock.time() > deadline:
                raise SchemaError(await _in_use(connection, order[0])) from error
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))  # noqa: S311 - only jitter
        else:
            return


async def _lock(connection: asyncpg.Connection, order: list[str]) -> None:
    clock = asyncio.get_running_loop()
    there = [row["name"] for row in await connection.fetch(_THERE, order)]
    deadline = clock.time() + WAIT_SECONDS
    for table in there:
        try:
            await connection.execute(
                f"set local lock_timeout = {_ms(deadline - clock.time())}; "
                f"lock table {table} in access exclusive mode"
            )
        except asyncpg.LockNotAvailableError:
            order.remove(table)
            order.insert(0, table)
            raise


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))  # 0 would mean to wait for ever


async def _in_use(connection: asyncpg.Connection, table: str) -> str:
    holder = await connection.fetchrow(_HOLDERS, table)
    if holder is None:
        return f"{table} is in use all the time, nothing has changed: pause the queues and apply again"
    pid, user, state, age = holder
    return (
        f"{table} is in use, nothing has changed: process {pid} ({user}, {state}) has it for {age}. "
        f"Wait for it, or end it: select pg_terminate_backend({pid})"
    )
