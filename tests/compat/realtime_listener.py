"""Helpers around the official Realtime client: tables to watch, and a channel whose events are awaited."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import jwt
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient

SECONDS = 5.0


class Project(Protocol):
    """Address and keys of a stack."""

    url: str
    anon_key: str
    service_role_key: str
    jwt_secret: str


def sign(project: Project, *, role: str = "authenticated", seconds: float = 600, **claims: Any) -> str:
    """Make a token of the project."""
    content = {"role": role, "exp": int(time.time() + seconds)} | claims
    return jwt.encode({key: value for key, value in content.items() if value is not None}, project.jwt_secret)


@dataclass
class Listener:
    """A channel of the official client, with everything it reports in queues."""

    client: AsyncRealtimeClient
    channel: AsyncRealtimeChannel
    changes: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    systems: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    states: asyncio.Queue[tuple[str, Exception | None]] = field(default_factory=asyncio.Queue)
    broadcasts: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    def on(self, table: str, event: str = "*", **options: Any) -> "Listener":
        """Bind to changes of a table."""
        self.channel.on_postgres_changes(
            event, callback=lambda payload: self.changes.put_nowait(payload["data"]), table=table, **options
        )
        return self

    async def join(self) -> "Listener":
        """Subscribe, and wait until the server says that it streams."""
        await self.subscribe()
        assert await self.state() == "SUBSCRIBED"
        if self.channel.postgres_changes_callbacks:
            await self.system()
        return self

    async def subscribe(self) -> "Listener":
        """Subscribe only."""
        self.channel.on_system(self.systems.put_nowait)
        await self.channel.subscribe(lambda state, error: self.states.put_nowait((state.value, error)))
        return self

    async def change(self) -> dict[str, Any]:
        """Return the next change."""
        return await asyncio.wait_for(self.changes.get(), SECONDS)

    async def system(self) -> Any:
        """Return the next system message."""
        return await asyncio.wait_for(self.systems.get(), SECONDS)

    async def state(self, within: float = SECONDS) -> str:
        """Return the next state."""
        return (await asyncio.wait_for(self.states.get(), within))[0]

    async def broadcast(self) -> dict[str, Any]:
        """Return the next broadcast."""
        return await asyncio.wait_for(self.broadcasts.get(), SECONDS)


@asynccontextmanager
async def listening(project: Project) -> AsyncIterator[Callable[..., Listener]]:
    """Give a function that makes listeners, each with a client of its own; all are closed at the end."""
    clients: list[AsyncRealtimeClient] = []

    def listener(
        token: str | None = None, *, key: str | None = None, topic: str | None = None, **config: Any
    ) -> Listener:
        client = AsyncRealtimeClient(f"{project.url}/realtime/v1", key or project.service_role_key)
        client.access_token = token or client.access_token
        clients.append(client)
        settings = {"broadcast": {"ack": False, "self": False}, "presence": None, "private": False} | config
        made = Listener(client, client.channel(topic or uuid4().hex, {"config": settings}))
        made.channel.on_broadcast("*", made.broadcasts.put_nowait)
        return made

    try:
        yield listener
    finally:
        for client in clients:
            for channel in client.channels.values():
                channel.rejoin_timer.reset()
                channel.join_push.destroy()
            await asyncio.wait_for(client.close(), SECONDS)


MakeTable = Callable[..., Awaitable[str]]


@asynccontextmanager
async def publishing(admin: asyncpg.Connection) -> AsyncIterator[MakeTable]:
    """Give a function that makes published tables; all are dropped at the end."""
    tables: list[str] = []

    async def table(
        columns: str, *, grant: str = "anon, authenticated, service_role", publish: bool = True
    ) -> str:
        name = f"watched_{uuid4().hex}"
        tables.append(name)
        await admin.execute(f"create table public.{name} ({columns})")
        # whatever default privileges the project has: only what the test says
        await admin.execute(f"revoke all on public.{name} from anon, authenticated, service_role")
        if grant:
            await admin.execute(f"grant select on public.{name} to {grant}")
        if publish:
            await admin.execute(f"alter publication supabase_realtime add table public.{name}")
        return name

    try:
        yield table
    finally:
        for name in tables:
            await admin.execute(f"drop table if exists public.{name} cascade")
