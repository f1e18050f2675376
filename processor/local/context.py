"""What every room of the gateway is given."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from processor.local.jwt import Jwt


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
