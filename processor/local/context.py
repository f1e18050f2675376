"""What every room of the gateway is given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import asyncpg

from processor.local.jwt import Jwt

REMEMBERED = 1000
XIDS = 2**32


class Commits:
    """Transactions that REST has seen end: who reads of them in the log knows that everybody sees them."""

    def __init__(self) -> None:
        self._xids: dict[int, None] = {}
        self._calls = 0
        self._ended: asyncio.Future[None] | None = None

    def note(self, xid: int) -> None:
        """Remember a transaction by its 64-bit number; of more than 1,000 the oldest is forgotten."""
        self._xids[xid % XIDS] = None
        if len(self._xids) > REMEMBERED:
            del self._xids[next(iter(self._xids))]

    def unknown(self, xids: Iterable[int]) -> set[int]:
        """Return those of which nothing is known, by the 32 bits that the log tells."""
        return {xid for xid in xids if xid not in self._xids}

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Surround a call that will note its transaction when its answer is here."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    @property
    def read_of(self) -> bool:
        """Whether somebody has read of a commit in the log, and waits for the call that made it."""
        return self._ended is not None and not self._ended.done()

    async def until_known(self, xids: Iterable[int], seconds: float) -> None:
        """Wait until all of these are known, no call is on its way that could be theirs, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._calls and self.unknown(xids):
                    self._ended = asyncio.get_running_loop().create_future()
                    await self._ended


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """The connections and keys that REST, Auth and Realtime share.

    ``pool`` is connected as ``authenticator``, which can only switch to the API roles; ``admin_dsn`` is the
    superuser over the unix socket, for what those roles may not do (users, the WAL).
    """

    pool: asyncpg.Pool
    admin_dsn: str
    jwt: Jwt
    anon_key: str
    service_role_key: str
    commits: Commits = field(default_factory=Commits)
