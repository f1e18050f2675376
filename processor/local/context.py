"""What every room of the gateway is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import asyncpg

from processor.local.jwt import Jwt

REMEMBERED = 1000
XIDS = 2**32


class Commits:
    """Transactions that REST has seen end: who reads of them in the log knows that everybody sees them."""

    def __init__(self) -> None:
        self._xids: dict[int, None] = {}

    def note(self, xid: int) -> None:
        """Remember a transaction by its 64-bit number; of more than 1,000 the oldest is forgotten."""
        self._xids[xid % XIDS] = None
        if len(self._xids) > REMEMBERED:
            del self._xids[next(iter(self._xids))]

    def unknown(self, xids: Iterable[int]) -> set[int]:
        """Return those of which nothing is known, by the 32 bits that the log tells."""
        return {xid for xid in xids if xid not in self._xids}


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
