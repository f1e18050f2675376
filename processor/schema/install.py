"""Put the schema into a database: a new one, one of an older version, or one that has drifted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import asyncpg

from processor.schema.catalog import names
from processor.schema.connect import SchemaError, connected
from processor.schema.files import Step, migrations, steps
from processor.schema.locks import BUSY, alone

PATIENCE_SECONDS = 60.0
"""How long we try while the tables are in use."""

_INVALID = """\
select i.indexrelid::regclass::text as name from pg_catalog.pg_index i
where not i.indisvalid and i.indexrelid = any (
  select to_regclass(o.name) from unnest($1::text[]) as o (name))"""


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
            await alone(connection, partial(_inside, connection, step), patience=patience)


async def _inside(connection: asyncpg.Connection, step: Step) -> None:
    await _drop_invalid_indexes(connection)
    for file in step.files:
        try:
            await connection.execute(file.text)
        except BUSY:
            raise
        except (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError) as error:
            refused = _refused(file.name, error, "nothing has changed")
            raise SchemaError(f"{refused}. processor schema status says what to do first") from error
        except asyncpg.PostgresError as error:
            raise _refused(file.name, error, "nothing has changed") from error


async def _outside(connection: asyncpg.Connection, step: Step) -> None:
    await _drop_invalid_indexes(connection, "concurrently")
    for file in step.files:
        for statement in file.statements:
            try:
                await connection.execute(statement)
            except asyncpg.PostgresError as error:
                raise _refused(file.name, error, "what came before is done: mend it, apply again") from error


async def _drop_invalid_indexes(connection: asyncpg.Connection, how: str = "") -> None:
    """Drop what an interrupted `create index concurrently` left: `if not exists` takes it for an index."""
    for row in await connection.fetch(_INVALID, names("index")):
        await connection.execute(f"drop index {how} {row['name']}")


def _refused(name: str, error: asyncpg.PostgresError, state: str) -> SchemaError:
    return SchemaError(f"{name} was refused, {state}: {error}")
