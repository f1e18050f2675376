"""Connections to the database itself, for the commands that need one. No message tells a password."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit

import asyncpg

from processor.errors import ProcessorError

CONNECT_SECONDS = 10.0


class SchemaError(ProcessorError):
    """The schema could not be applied, looked at or exported; the message says why."""


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database.

    Raises:
        SchemaError: the URL is none, or the database cannot be reached.

    """
    host, port = _address(database_url)
    try:
        # without the cache it works through a pooler that changes connections between transactions
        connection = await asyncpg.connect(database_url, timeout=CONNECT_SECONDS, statement_cache_size=0)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise SchemaError(f"cannot connect to the database at {host}:{port}: {reason}") from error
    try:
        yield connection
    finally:
        await connection.close()


def _address(database_url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(database_url)
        port = parts.port or 5432
    except ValueError:
        raise SchemaError(_UNREADABLE) from None  # the cause quotes a part of the URL: maybe of its password
    if parts.scheme not in {"postgres", "postgresql"}:
        raise SchemaError(
            "the database URL must look like postgresql://user:password@host:5432/postgres "
            f"(this one starts with {parts.scheme or 'nothing'!r})"
        )
    if _has_torn_password(parts):
        raise SchemaError(_UNREADABLE)
    return parts.hostname or "the local socket", port


def _has_torn_password(parts: SplitResult) -> bool:
    # a / ? or # in the password ends what is read as user, password and host: the real host is behind it
    return "@" in parts.path + parts.query + parts.fragment


_UNREADABLE = (
    "the database URL cannot be read. Characters of its password that mean something in a URL must be "
    "written as codes: / as %2F, ? as %3F, # as %23, @ as %40, : as %3A, % as %25, [ as %5B, ] as %5D"
)
