"""Supabase Realtime for local mode: Postgres Changes, Broadcast and Presence under ``/realtime/v1``.

::

    socket  ──▶ channel ──▶ topics    (broadcast, presence) ◀── messages    rows of realtime.messages
       ▲           │──────▶ permissions                          who may be in a private topic
     wire          └──────▶ changes ──▶ stream ──▶ pgoutput     the WAL, decoded
                               │─────▶ tables, filters, values  what a row means
                               │─────▶ authorise                who may see it
                               └─────▶ documents                how it is written

What differs from the hosted server, on purpose: changes come as they commit, not from a poll; roles with
``bypassrls`` are not asked about each row; a broken stream closes the sockets that listen to changes or are
in a private topic, so that no client believes it has missed nothing.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from processor.local.context import GatewayContext
from processor.local.realtime.changes import Changes
from processor.local.realtime.channel import Shared
from processor.local.realtime.http import BroadcastApi
from processor.local.realtime.permissions import Permissions
from processor.local.realtime.socket import Socket
from processor.local.realtime.stream import StreamError
from processor.local.realtime.tokens import TokenError, bearer
from processor.local.realtime.topics import Topics
from processor.local.realtime.wire import Wire, WireError

__all__ = ["Realtime", "StreamError"]


class Realtime:
    """The Realtime part of the gateway.

    Args:
        context: the connections and keys of the gateway.

    """

    def __init__(self, context: GatewayContext) -> None:
        self._jwt = context.jwt
        self._topics = Topics()
        self._changes = Changes(context.pool, context.admin_dsn, self._topics, context.commits)
        self._permissions = Permissions(context.admin_dsn)
        self._shared = Shared(context.jwt, self._topics, self._changes, self._permissions)

    def routes(self) -> list[BaseRoute]:
        """Return the endpoints: the websocket and the broadcasts over HTTP."""
        return [
            WebSocketRoute("/realtime/v1/websocket", self._websocket),
            *BroadcastApi(self._jwt, self._topics, self._permissions).routes(),
        ]

    async def start(self) -> None:
        """Begin to read the WAL.

        Raises:
            StreamError: the database does not let us; the message says what to do.

        """
        await self._permissions.start()
        await self._changes.start()

    async def stop(self) -> None:
        """Stop reading; harmless when repeated."""
        await self._changes.stop()
        await self._permissions.stop()

    async def _websocket(self, websocket: WebSocket) -> None:
        token = websocket.headers.get("x-api-key") or websocket.query_params.get("apikey")
        if not token:
            await _refuse(websocket, 401, "API key is missing")
            return
        try:
            bearer(self._jwt, token)
            wire = Wire.of(websocket.query_params.get("vsn"))
        except TokenError as error:
            message = "Token has expired" if error.message.startswith("Token has expired") else error.message
            await _refuse(websocket, 401, message)
            return
        except WireError as error:
            await _refuse(websocket, 403, str(error))
            return
        await Socket(websocket, wire, self._shared, token).run()


async def _refuse(websocket: WebSocket, status: int, message: str) -> None:
    """Answer the handshake with an HTTP status instead of an upgrade."""
    await websocket.send_denial_response(JSONResponse({"error": message}, status_code=status))
