"""Put the schema into a database: a new one, one of an older version, or one that has drifted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import asyncpg

from processor.schema.catalog import names
from processor.schema.connect import SchemaError, connected
from processor.schema.files import Step, migrations, steps

LOCK_MS = 2000
"""How long we wait for one lock: whoever needs the table waits behind us meanwhile."""
PATIENCE_SECONDS = 60.0
"""How long we try to get the locks."""
_PAUSE_SECONDS = 1.0
# any number that nobody else uses: two installations at a time would only wait for each other's locks
_INSTALLING = 0x6A6F6273

_TABLES = """\
select format('%I.%I', n.nspname, c.relname) as name
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and format('%I.%I', n.nspname, c.relname) = any ($1::text[])
order by c.oid"""

_INVALID = """\
select i.indexrelid::regclass::text as name from pg_catalog.pg_index i
where not i.indisvalid and i.indexrelid = any (
  select to_regclass(o.name) from unnest($1::text[]) as o (name))"""

_HOLDERS = """\
select a.pid, a.usename, a.state, date_trunc('second', clock_timestamp() - a.xact_start)::text as age
from pg_catalog.pg_stat_activity a
where a.pid <> pg_backend_pid() and exists (
  select from pg_catalog.pg_locks l
  where l.pid = a.pid and l.granted and l.relation = any (
    select to_regclass(o.name) from unnest($1::text[]) as o (name)))
order by a.xact_start limit 1"""


async def apply(database_url: str) -> None:
    """Put the newest schema into a database; harmless when it is there already.

    It is one transaction, or several with steps between them that no transaction may hold. If it is
    interrupted, run it again.

    Raises:
        SchemaError: the database cannot be reached, has a newer schema, refuses a file, or is too busy.

    """
    async with connected(database_url) as connection:
        await upgrade(connection, steps(await installed_version(connection), migrations()))


async def installed_version(connection: asyncpg.Connection) -> int | None:
    """Return the version of the schema in a database, or None; raises ``SchemaError`` if we may not ask."""
    try:
        async with connection.transaction():
            version: int = await connection.fetchval("select processor.schema_version()")
            return version
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError):
        return None
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(f"{error}: use the database's postgres role") from error


async def upgrade(
    connection: asyncpg.Connection, todo: Iterable[Step], *, patience: float = PATIENCE_SECONDS
) -> None:
    """Take steps in a database, in order; ``patience`` is how many seconds a busy one is tried again.

    Raises:
        SchemaError: one of them was refused; those before it have been taken.

    """
    for step in todo:
        if step.outside:
            await _outside(connection, step)
        else:
            await _patiently(connection, step, patience)


async def _patiently(connection: asyncpg.Connection, step: Step, patience: float) -> None:
    """Take a step in a transaction; begin anew when the tables are in use."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + patience
    while True:
        try:
            async with connection.transaction():
                await _together(connection, step)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if clock.time() > deadline:
                raise SchemaError(await _too_busy(connection)) from error
            # those who waited for us go first
            await asyncio.sleep(random.uniform(_PAUSE_SECONDS / 2, _PAUSE_SECONDS))  # noqa: S311 - only jitter
        else:
            return


async def _together(connection: asyncpg.Connection, step: Step) -> None:
    # "relation exists, skipping" is what applying twice means: not worth a notice
    await connection.execute(
        f"set local client_min_messages = warning; set local lock_timeout = {LOCK_MS}; "
        f"set local statement_timeout = 0; select pg_advisory_xact_lock({_INSTALLING})"
    )
    if tables := [row["name"] for row in await connection.fetch(_TABLES, names("table"))]:
        # all of them before anything else: files that lock one after another would meet workers that hold the
        # second and want the first
        await connection.execute(f"lock table {', '.join(tables)} in access exclusive mode")
    await _drop_invalid_indexes(connection)
    for file in step.files:
        try:
            await connection.execute(file.text)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            raise
        except asyncpg.PostgresError as error:
            raise _refused(file.name, error, "nothing has changed") from error


async def _outside(connection: asyncpg.Connection, step: Step) -> None:
    await _drop_invalid_indexes(connection, "concurrently")
    for file in step.files:
        for statement in file.statements:
            try:
                await connection.execute(statement)
            except asyncpg.PostgresError as error:
                raise _refused(
                    file.name, error, "what came before it is done; mend it and apply again"
                ) from error


async def _drop_invalid_indexes(connection: asyncpg.Connection, how: str = "") -> None:
    """Drop what an interrupted `create index concurrently` left: `if not exists` takes it for an index."""
    for row in await connection.fetch(_INVALID, names("index")):
        await connection.execute(f"drop index {how} {row['name']}")


async def _too_busy(connection: asyncpg.Connection) -> str:
    holder = await connection.fetchrow(_HOLDERS, names("table"))
    if holder is None:
        return (
            "the tables are in use, nothing has changed: pause the queues, see the cook-book, and apply again"
        )
    pid, user, state, age = holder
    return (
        f"the tables are in use, nothing has changed: process {pid} ({user}, {state}) has them for {age}. "
        f"Wait for it, or end it: select pg_terminate_backend({pid})"
    )


def _refused(name: str, error: asyncpg.PostgresError, state: str) -> SchemaError:
    hint = f" ({error.hint})" if getattr(error, "hint", None) else ""
    return SchemaError(f"{name} was refused, {state}: {error}{hint}")
