"""Who may hear and say what in a private topic: asked of the policies on ``realtime.messages``.

As the hosted server does it: rows of that topic are written, looked for and written once more with the
caller's role and claims, in a transaction that is rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import asyncpg

from processor.local.realtime.tokens import Bearer

Extension: TypeAlias = Literal["broadcast", "presence"]
EXTENSIONS: tuple[Extension, ...] = ("broadcast", "presence")

MAY_BECOME = """
select exists (select from pg_roles r where r.rolname = $1 and pg_has_role('authenticator', r.oid, 'member'))
"""
ACT = """
select set_config('realtime.topic', $1, true), set_config('request.jwt.claims', $2, true),
  set_config('role', $3, true)
"""
PROBE = "insert into realtime.messages (topic, extension) values ($1, $2) returning id"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a caller may receive and send in a topic."""

    read: frozenset[Extension] = frozenset()
    write: frozenset[Extension] = frozenset()


EVERYTHING = Rights(frozenset(EXTENSIONS), frozenset(EXTENSIONS))
"""The rights of everybody in a public topic."""


class Permissions:
    """Asks the database about topics.

    Args:
        dsn: the superuser's, who may write the rows that callers may or may not see.

    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._pool: asyncpg.Pool | None = None

    async def start(self) -> None:
        """Be ready to ask; connects when somebody does."""
        settings = {"search_path": "", "statement_timeout": "5000"}
        self._pool = await asyncpg.create_pool(
            self._dsn, min_size=0, max_size=2, statement_cache_size=0, server_settings=settings
        )

    async def stop(self) -> None:
        """Close the connections; harmless when repeated."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def of(self, bearer: Bearer, topic: str) -> Rights:
        """Return what the bearer of a token may do in a private topic.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError: the database could not be asked.

        """
        if self._pool is None:
            raise asyncpg.InterfaceError("permissions are asked for before the start")
        async with self._pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                return await _ask(connection, bearer, topic)
            finally:
                if not connection.is_closed():
                    await transaction.rollback()


async def _ask(connection: asyncpg.pool.PoolConnectionProxy, bearer: Bearer, topic: str) -> Rights:
    role = bearer.claims.role
    if not await connection.fetchval(MAY_BECOME, role):
        return Rights()
    probes = {await connection.fetchval(PROBE, topic, extension): extension for extension in EXTENSIONS}
    await connection.fetchrow(ACT, topic, bearer.claims.json, role)
    try:
        seen = await connection.fetch("select id from realtime.messages where id = any ($1)", list(probes))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.DataError):  # no right at all, or a policy that fails
        return Rights()
    read = frozenset(probes[row["id"]] for row in seen)
    write: set[Extension] = set()
    for extension in EXTENSIONS:
        try:
            async with connection.transaction():
                await connection.execute(PROBE.removesuffix(" returning id"), topic, extension)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.DataError):
            continue
        write.add(extension)
    return Rights(read, frozenset(write))
