"""The gateway's database sessions: the statements that each knows by name, and one that is kept at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

ACQUIRE_TIMEOUT = 10.0

KEPT = 100
"""Statements that a session keeps; calls differ by function and by which arguments are given."""


class Session(asyncpg.Connection):
    """A connection that remembers which statements the server has prepared for it, see ``execute.sql``."""

    __slots__ = ("_made", "_names")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[str, str] = {}
        self._made = 0

    def name_of(self, sql: str) -> str | None:
        """Return the name of a statement that is known."""
        return self._names.get(sql)

    def new_name(self) -> str:
        """Return a name for another statement; of too many the oldest is forgotten, which had it."""
        if len(self._names) >= KEPT:
            return self._names.pop(next(iter(self._names)))
        self._made += 1
        return f"rest_{self._made}"

    def keep(self, sql: str, name: str) -> None:
        """Remember that a statement was prepared."""
        self._names[sql] = name


class Sessions:
    """Lends sessions of a pool to requests.

    The last one stays at hand for the next request: the pool takes two tasks for giving it back and having it
    again, and the client would wait for both.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._spare: PoolConnectionProxy[asyncpg.Record] | None = None
        self._closed = False

    async def take(self) -> PoolConnectionProxy[asyncpg.Record]:
        """Return a session; raises ``TimeoutError`` if none becomes free in time."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.is_closed():
            return spare
        if spare is not None:
            await self._pool.release(spare)
        return await self._pool.acquire(timeout=ACQUIRE_TIMEOUT)

    async def give(self, session: PoolConnectionProxy[asyncpg.Record], *, ended_well: bool) -> None:
        """Have a session back; the pool stops and resets one whose request did not end well."""
        keep = ended_well and self._spare is None and not self._closed
        if keep and not session.is_closed() and not session.is_in_transaction():
            self._spare = session
        else:
            await self._pool.release(session)

    async def close(self) -> None:
        """Keep none from now on; harmless when repeated."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await self._pool.release(spare)
