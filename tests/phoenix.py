"""A Phoenix server that follows a script, for what a healthy Realtime server cannot be made to do.

It speaks version 1.0.0 of the protocol over a real socket, from the counterpart's side. By default it
behaves: joins are answered, changes are announced as streamed, broadcasts are acknowledged.
"""

import asyncio
import http
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


@dataclass
class Joined:
    """A channel of a client."""

    socket: ServerConnection
    topic: str
    ref: str
    bindings: list[dict[str, Any]]

    async def push(self, event: str, payload: dict[str, Any], ref: str | None = None) -> None:
        """Send a message to this channel."""
        frame = {"topic": self.topic, "event": event, "payload": payload, "ref": ref}
        await self.socket.send(json.dumps(frame))

    async def system(self, status: str, message: str, extension: str = "postgres_changes") -> None:
        """Send a system message."""
        await self.push(
            "system",
            {"extension": extension, "status": status, "message": message, "channel": self.topic[9:]},
        )

    async def change(self, table: str, kind: str, record: dict[str, Any]) -> None:
        """Send a change to the bindings of this table and kind."""
        ids = [
            binding["id"]
            for binding in self.bindings
            if (binding["table"], binding["event"]) == (table, kind)
        ]
        data = {
            "schema": "public",
            "table": table,
            "commit_timestamp": "2026-01-01T00:00:00.000Z",
            "type": kind,
            "columns": [{"name": name, "type": "text"} for name in record],
            "record": record,
            "errors": None,
        }
        await self.push("postgres_changes", {"ids": ids, "data": data})


@dataclass
class Phoenix:
    """The server; its fields are the script and may change while it runs."""

    handshake_status: int | None = None
    """Answer handshakes with this HTTP status."""
    answers_joins: bool = True
    join_error: str | None = None
    """Refuse joins with this reason."""
    streams: bool = True
    """Say, after a join, that changes are streamed."""
    acknowledges: bool = True
    ack_error: str | None = None
    """Answer broadcasts with this error."""

    joined: list[Joined] = field(default_factory=list)
    """Every channel ever joined."""
    probes: int = 0
    sockets: set[ServerConnection] = field(default_factory=set)
    handshakes: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: Server | None = None

    @property
    def url(self) -> str:
        """The address to give to the client under test."""
        assert self._server
        return f"http://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await serve(self._serve, "127.0.0.1", 0, process_request=self._handshake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server
        for socket in list(self.sockets):
            socket.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def until(self, predicate: Callable[["Phoenix"], object], timeout: float = 10.0) -> None:  # noqa: ASYNC109  a deadline for tests
        """Wait until a predicate over this server is true."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: predicate(self))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        await self._notify()
        if self.handshake_status is None:
            return None
        return connection.respond(http.HTTPStatus(self.handshake_status), '{"error": "scripted"}')

    async def _serve(self, socket: ServerConnection) -> None:
        self.sockets.add(socket)
        try:
            async for frame in socket:
                await self._receive(socket, json.loads(frame))
                await self._notify()
        except ConnectionClosed:
            pass
        finally:
            self.sockets.discard(socket)
            await self._notify()

    async def _receive(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        channel = Joined(socket, message["topic"], message["ref"] or "", [])
        match message["event"]:
            case "phx_join" if self.join_error:
                await self._reply(channel, "error", {"reason": self.join_error})
            case "phx_join" if self.answers_joins:
                asked = message["payload"]["config"]["postgres_changes"]
                channel.bindings = [{"id": 101 + index, **binding} for index, binding in enumerate(asked)]
                await self._reply(channel, "ok", {"postgres_changes": channel.bindings})
                if self.streams:
                    await channel.system("ok", "Subscribed to PostgreSQL")
                self.joined.append(channel)
            case "broadcast":
                self.probes += 1
                if self.ack_error:
                    await self._reply(channel, "error", {"reason": self.ack_error})
                elif self.acknowledges:
                    await self._reply(channel, "ok", {})
            case "phx_leave":
                await self._reply(channel, "ok", {})

    @staticmethod
    async def _reply(channel: Joined, status: str, response: dict[str, Any]) -> None:
        await channel.push("phx_reply", {"status": status, "response": response}, channel.ref)
