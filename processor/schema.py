"""The schema as code: the files of ``sql/``, put into a database and looked at again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from processor.errors import ProcessorError
from processor.rpc import SCHEMA_VERSION

CONNECT_SECONDS = 10.0


class SchemaError(ProcessorError):
    """The schema could not be applied or looked at; the message says why."""


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What a database has of the schema."""

    installed: int | None
    wanted: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the daemon of this package version can work with it."""
        return self.installed == self.wanted and not self.problems


def sql_files() -> list[tuple[str, str]]:
    """Return the schema's files as (name, text) in load order.

    In a wheel they lie inside the package; in a checkout beside it.
    """
    folder: Traversable = files("processor") / "sql"
    if not folder.is_dir():
        folder = Path(__file__).parent.parent / "sql"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]


async def apply(database_url: str) -> None:
    """Put the schema into a database, in one transaction; harmless when it is there already.

    Raises ``SchemaError`` if the database cannot be reached or refuses a file: then nothing has changed.
    """
    async with _connection(database_url) as connection, connection.transaction():
        # "relation exists, skipping" is what applying twice means: not worth a notice
        await connection.execute("set local client_min_messages = warning")
        # what lies in schema public must not be taken for PostgreSQL's own when names are bound
        await connection.execute("set local search_path = pg_catalog, pg_temp")
        for name, text in sql_files():
            try:
                await connection.execute(text)
            except asyncpg.PostgresError as error:
                hint = f" ({error.hint})" if getattr(error, "hint", None) else ""
                raise SchemaError(f"{name} was refused, nothing has changed: {error}{hint}") from error


async def status(database_url: str) -> SchemaStatus:
    """Say which version of the schema a database has, and what is wrong with it; raises ``SchemaError``."""
    async with _connection(database_url) as connection:
        try:
            installed = await connection.fetchval("select processor.schema_version()")
        except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError):
            return SchemaStatus(None, SCHEMA_VERSION, ())
        except asyncpg.InsufficientPrivilegeError as error:
            raise SchemaError(f"{error}: use the database's postgres role") from error
        if installed != SCHEMA_VERSION:
            return SchemaStatus(installed, SCHEMA_VERSION, ())
        rows = await connection.fetch("select problem from processor.check_schema()")
        return SchemaStatus(installed, SCHEMA_VERSION, tuple(row["problem"] for row in rows))


@asynccontextmanager
async def _connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    parts = urlsplit(database_url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise SchemaError(
            "the database URL must look like postgresql://user:password@host:5432/postgres "
            f"(this one starts with {parts.scheme or 'nothing'!r})"
        )
    try:
        connection = await asyncpg.connect(database_url, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        reason = str(error) or type(error).__name__
        where = f"{parts.hostname or 'the local socket'}:{_port(database_url)}"
        raise SchemaError(f"cannot connect to the database at {where}: {reason}") from error
    try:
        yield connection
    finally:
        await connection.close()


def _port(database_url: str) -> int:
    try:
        return urlsplit(database_url).port or 5432
    except ValueError:
        return 5432
