"""A receiver of webhooks on this machine, over TLS, that answers as it is told to."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Hook:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    def verify(self, secret: str) -> dict[str, Any]:
        """Check the signature, as receivers do; returns the event."""
        return Webhook(secret).verify(self.body, self.headers)


Answer = Callable[[Hook, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: str = "", **headers: str) -> Answer:
    """Answer with a status, a body, and headers (with _ for -)."""

    async def give(_hook: Hook, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body.encode())}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", body]).encode())
        await writer.drain()

    return give


async def hang(_hook: Hook, _writer: asyncio.StreamWriter) -> None:
    """Answer nothing until whoever asks has gone."""
    await asyncio.get_running_loop().create_future()


async def drop(_hook: Hook, writer: asyncio.StreamWriter) -> None:
    """Break the connection."""
    writer.transport.abort()


def endless(chunk: bytes, *, every: float = 0, status: int = 500) -> Answer:
    """Answer with a body that does not end."""

    async def give(_hook: Hook, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d Status\r\ntransfer-encoding: chunked\r\n\r\n" % status)
        while True:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(every)

    return give


async def endless_head(_hook: Hook, writer: asyncio.StreamWriter) -> None:
    """Send headers that do not end."""
    writer.write(b"HTTP/1.1 200 Status\r\n")
    while True:
        writer.write(b"x-more: yes\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


class Receiver:
    """``answers`` are given in turn; then ``always``. What came is in ``hooks``."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.hooks: list[Hook] = []
        self.connections = 0
        """How many were opened, whatever came over them."""
        self.now = 0
        self.most = 0
        """How many hooks were being answered at the same time."""
        self.answers: list[Answer] = []
        self.always: Answer = answer(204)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    async def open(self, host: str = "127.0.0.1") -> "Receiver":
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._connected, host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Refuse connections, and break those that are there."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._server = None

    def url(self, host: str = "localhost", path: str = "/hooks") -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}{path}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            await self._asked(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        hook = Hook(head[0].split(" ")[1], headers, body)
        self.hooks.append(hook)
        give = self.answers.pop(0) if self.answers else self.always
        self.now += 1
        self.most = max(self.most, self.now)
        gone = asyncio.create_task(reader.read(), name="gone")
        giving = asyncio.create_task(_given(give, hook, writer), name="answer")
        try:
            await asyncio.wait({gone, giving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.now -= 1
            for task in (gone, giving):
                task.cancel()
            await asyncio.gather(gone, giving, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def _given(give: Answer, hook: Hook, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await give(hook, writer)
