"""One connection through the proxy."""

import asyncio
import contextlib
import re
import socket
import struct

from tests.faults.frames import FrameReader

PIECE = 64
"""Bytes sent at once where a speed is set."""
POLITE_SECONDS = 1.0
CONTENT_LENGTH = re.compile(rb"^content-length: *(\d+)", re.MULTILINE | re.IGNORECASE)


class Link:
    """A client's connection, and its way to the server once there is one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client_reader, self.client_writer = reader, writer
        self.server_reader: asyncio.StreamReader
        self.server_writer: asyncio.StreamWriter
        self.topic: str | None = None
        """Of a websocket: the channel that was joined last."""
        self.join_ref: str | None = None
        self.sending = asyncio.Lock()
        """Held while something goes down, so that what is added does not come into its middle."""
        self.frames_up = FrameReader()
        self._writers = [writer]

    async def connect(self, host: str, port: int) -> None:
        self.server_reader, self.server_writer = await asyncio.open_connection(host, port)
        self._writers.append(self.server_writer)

    def note_join(self, data: bytes) -> None:
        """Learn from what goes up which channel is joined."""
        for frame in self.frames_up.feed(data):
            message = frame.message()
            if message.get("event") == "phx_join":
                self.topic, self.join_ref = message["topic"], message["ref"]

    async def answer(self, status: int, request: bytes) -> None:
        """Answer a request, of which this much has been read, as a gateway does that reaches no server."""
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := CONTENT_LENGTH.search(head)) else 0
        with contextlib.suppress(asyncio.IncompleteReadError):
            await self.client_reader.readexactly(max(0, length - len(body)))
        page = f"<html><body><h1>{status} from a gateway</h1></body></html>".encode()
        self.client_writer.write(
            b"HTTP/1.1 %d No\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(page), page)
        )
        await self.end()

    async def end(self) -> None:
        """Close in order: what was sent arrives before the end."""
        await self.client_writer.drain()
        self.client_writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLITE_SECONDS):
                while await self.client_reader.read(PIECE):
                    pass

    def reset(self) -> None:
        """Close as a crashed host or a firewall does."""
        for writer in self._writers:
            transport = writer.transport
            if not transport.is_closing():
                # linger 0: what is closed is reset, and unsent data is lost
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            transport.abort()


async def send(writer: asyncio.StreamWriter, data: bytes, speed: float) -> None:
    """Send at so many bytes per second; 0: as fast as it goes."""
    if not speed:
        writer.write(data)
        await writer.drain()
        return
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(len(piece) / speed)
