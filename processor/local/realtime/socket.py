"""One websocket: reads frames, routes them to channels, sends what they push in order."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from processor.local.realtime.channel import PREFIX, Channel, JoinError, Shared
from processor.local.realtime.wire import Broadcast, Frame, Wire, WireError, dumps

IDLE_TIMEOUT = 60.0
"""Seconds without a frame (the clients' heartbeat is 25 s) after which a socket is closed."""
LONGEST_BACKLOG = 8 * 1024 * 1024
"""Bytes that may wait for a slow client; with more the socket is closed, and the client comes again."""
SHORT_BACKLOG = 1024 * 1024
"""Bytes above which the stream of changes waits for the client …"""
PATIENCE = 5.0
"""… and for how many seconds, before the socket is closed instead."""
CLOSE_TIMEOUT = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Close:
    """The last element of an outbox."""

    code: int
    reason: str


class Socket:
    """A client's connection.

    Args:
        websocket: not yet accepted.
        wire: the client's version of the protocol.
        shared: what channels work with.
        token: the verified token of the handshake.

    """

    def __init__(self, websocket: WebSocket, wire: Wire, shared: Shared, token: str) -> None:
        self._websocket = websocket
        self._wire = wire
        self._shared = shared
        self._token = token
        self._channels: dict[str, Channel] = {}
        self._outbox: asyncio.Queue[str | bytes | Close] = asyncio.Queue()
        self._backlog = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._overflow: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False

    async def run(self) -> None:
        """Serve the client until one side ends the connection."""
        await self._websocket.accept()
        receiver = asyncio.create_task(self._receive(), name="realtime-socket-receive")
        sender = asyncio.create_task(self._send(), name="realtime-socket-send")
        try:
            await asyncio.wait({receiver, sender, self._overflow}, return_when=asyncio.FIRST_COMPLETED)
            if receiver.done() and self._closing:  # the sender still has a reason to give
                await asyncio.wait(
                    {sender, self._overflow}, timeout=CLOSE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            self._closing = True
            self._drained.set()
            for channel in list(self._channels.values()):
                channel.dispose()
            self._channels.clear()
            receiver.cancel()
            sender.cancel()
            for result in await asyncio.gather(receiver, sender, return_exceptions=True):
                if isinstance(result, Exception):
                    log.error("realtime: a socket failed", exc_info=result)
            if self._overflow.done():
                await self._end(1013, "the client reads too slowly")
            self._overflow.cancel()

    def push(
        self, topic: str, event: str, payload: str, *, ref: str | None = None, join_ref: str | None = None
    ) -> None:
        """Send a text frame whose payload already is JSON."""
        self._put(self._wire.write(topic, event, payload, ref=ref, join_ref=join_ref))

    def push_broadcast(self, topic: str, broadcast: Broadcast) -> None:
        """Send a user's message; a binary one is dropped if the client's version cannot carry it."""
        frame = self._wire.write_broadcast(topic, broadcast)
        if frame is not None:
            self._put(frame)

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what has been pushed; the first call counts."""
        if not self._closing:
            self._closing = True
            self._outbox.put_nowait(Close(code, reason))

    async def drain(self) -> None:
        """Wait until little is left to send; a client that does not read within 5 s is closed."""
        if self._drained.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._drained.wait()
        except TimeoutError:
            if not self._closing:
                self._overflowed()

    def forget(self, channel: Channel) -> None:
        """Drop a channel that has ended."""
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    def _put(self, frame: str | bytes) -> None:
        if self._closing:
            return
        self._backlog += len(frame)
        if self._backlog > SHORT_BACKLOG:
            self._drained.clear()
        if self._backlog > LONGEST_BACKLOG:
            self._overflowed()
        else:
            self._outbox.put_nowait(frame)

    def _overflowed(self) -> None:
        log.warning("realtime: a client reads too slowly, %d bytes wait for it: closing it", self._backlog)
        self._closing = True
        self._drained.set()
        self._overflow.set_result(None)

    async def _send(self) -> None:
        try:
            while True:
                frame = await self._outbox.get()
                if isinstance(frame, Close):
                    await self._end(frame.code, frame.reason)
                    return
                if isinstance(frame, bytes):
                    await self._websocket.send_bytes(frame)
                else:
                    await self._websocket.send_text(frame)
                self._backlog -= len(frame)
                if self._backlog <= SHORT_BACKLOG:
                    self._drained.set()
        except WebSocketDisconnect:
            return  # the client is gone, and with it who would read this

    async def _receive(self) -> None:
        while not self._closing:
            try:
                async with asyncio.timeout(IDLE_TIMEOUT):
                    message = await self._websocket.receive()
            except TimeoutError:
                self.close(1000, f"nothing was heard for {IDLE_TIMEOUT:.0f} s")
                return
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("text")
            try:
                await self._route(self._wire.read(message["bytes"] if data is None else data))
            except WireError as error:
                self.close(1003, str(error)[:120])
                return

    async def _route(self, frame: Frame) -> None:
        if frame.topic == "phoenix" and frame.event == "heartbeat":
            self._reply(frame, "ok")
        elif frame.event == "phx_join":
            await self._join(frame)
        elif (channel := self._channels.get(frame.topic)) is None:
            self._reply(frame, "error", "unmatched topic")
        elif frame.join_ref is None or frame.join_ref == channel.join_ref:
            await channel.receive(frame)
        elif frame.event == "phx_leave":
            self._reply(frame, "ok")  # the channel it means has ended already

    async def _join(self, frame: Frame) -> None:
        if not frame.topic.startswith(PREFIX):
            self._reply(frame, "error", "unmatched topic")
            return
        if frame.topic == PREFIX:
            self._reply(frame, "error", "TopicNameRequired: You must provide a topic name")
            return
        earlier = self._channels.get(frame.topic)
        if earlier is not None:
            earlier.close()
        try:
            channel = Channel(self, self._shared, frame, self._token)
            await channel.authorise()
        except JoinError as error:
            self._reply(frame, "error", str(error))
            return
        self._channels[frame.topic] = channel
        channel.open(frame)

    def _reply(self, frame: Frame, status: str, reason: str | None = None) -> None:
        response = {} if reason is None else {"reason": reason}
        self.push(
            frame.topic,
            "phx_reply",
            dumps({"status": status, "response": response}),
            ref=frame.ref,
            join_ref=frame.join_ref,
        )

    async def _end(self, code: int, reason: str) -> None:
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._websocket.close(code, reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return  # the client is gone or does not read; the server drops the connection
