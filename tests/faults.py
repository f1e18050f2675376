"""A TCP proxy that misbehaves on command, between a client and any HTTP server.

Faults may concern every connection or one kind of them, told apart by the first request on it::

    async with FaultProxy(stack.url) as proxy:
        feed = Feed(proxy.url, ...)
        proxy.freeze("websocket")     # REST goes on
        ...
        proxy.heal()

It speaks no HTTP: bytes are forwarded, held, delayed or thrown away, and connections are reset. Request
lines are counted as they pass.
"""

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["websocket", "http"]
Direction = Literal["up", "down"]
KINDS: tuple[Kind, ...] = ("websocket", "http")
CHUNK = 65536
REQUEST_LINE = re.compile(rb"^([A-Z]+ /\S*) HTTP/1\.1\r$", re.MULTILINE)


@dataclass
class _Rules:
    """What happens to the connections of one kind."""

    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    refused: bool = False
    dropped: set[Direction] = field(default_factory=set)
    delay: float = 0.0

    def __post_init__(self) -> None:
        self.flowing.set()


class FaultProxy:
    """Forwards to `upstream` (an http URL), until told otherwise. Every fault lasts until `heal`."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname, f"an http URL with a host is needed, not {upstream!r}"
        self._upstream = (parts.hostname, parts.port or 80)
        self._rules = {kind: _Rules() for kind in KINDS}
        self._links: dict[Kind, set[_Link]] = {kind: set() for kind in KINDS}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._arrival = asyncio.Condition()
        self.arrivals: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """How many connections of each kind have shown what they want, refused ones included."""
        self.requests: Counter[str] = Counter()
        """How many requests were sent, such as `POST /rest/v1/rpc/claim_jobs`, websockets excluded."""

    @property
    def url(self) -> str:
        """The address to give to the client under test."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_listener()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- faults -----------------------------------------------------------------------------------

    def cut(self, only: Kind | None = None) -> int:
        """Reset the open connections (RST, as a crashed host or a firewall does); say how many."""
        links = [link for kind in self._chosen(only) for link in self._links[kind]]
        for link in links:
            link.reset()
        return len(links)

    def refuse(self, only: Kind | None = None) -> None:
        """Refuse new connections: all by not listening, one kind by a reset after its first request line."""
        if only is None:
            self._close_listener()
        for kind in self._chosen(only):
            self._rules[kind].refused = True

    def freeze(self, only: Kind | None = None) -> None:
        """Forward nothing, either way, and keep every connection open; new ones are taken and held."""
        for kind in self._chosen(only):
            self._rules[kind].flowing.clear()

    def drop(self, direction: Direction, only: Kind | None = None) -> None:
        """Throw away what flows `up` to the server or `down` to the client: a half-open connection."""
        for kind in self._chosen(only):
            self._rules[kind].dropped.add(direction)

    def delay(self, seconds: float, only: Kind | None = None) -> None:
        """Hold every chunk for so long, in both directions."""
        for kind in self._chosen(only):
            self._rules[kind].delay = seconds

    async def heal(self, only: Kind | None = None) -> None:
        """End every fault. What was held flows on; what was dropped stays lost."""
        for kind in self._chosen(only):
            rules = self._rules[kind]
            rules.refused, rules.delay = False, 0.0
            rules.dropped.clear()
            rules.flowing.set()
        if self._server is None:
            await self._listen()

    # -- signals ----------------------------------------------------------------------------------

    def open(self, kind: Kind) -> int:
        """How many connections of this kind are open."""
        return len(self._links[kind])

    async def arrived(self, kind: Kind, more_than: int, timeout: float = 10.0) -> None:  # noqa: ASYNC109  a deadline for tests
        """Wait until more than so many connections of this kind have ever arrived."""
        async with asyncio.timeout(timeout), self._arrival:
            await self._arrival.wait_for(lambda: self.arrivals[kind] > more_than)

    # -- plumbing ---------------------------------------------------------------------------------

    @staticmethod
    def _chosen(only: Kind | None) -> tuple[Kind, ...]:
        return KINDS if only is None else (only,)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def _close_listener(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = _Link(reader, writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(link)
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would log a cancelled handler as an error
        finally:
            link.reset()

    async def _serve(self, link: "_Link") -> None:
        head = await link.client_reader.readuntil(b"\r\n\r\n")
        kind: Kind = "websocket" if b"upgrade: websocket" in head.lower() else "http"
        async with self._arrival:
            self.arrivals[kind] += 1
            self._arrival.notify_all()
        if kind == "http":
            self._count(head)
        rules = self._rules[kind]
        if rules.refused:
            return
        self._links[kind].add(link)
        try:
            await rules.flowing.wait()
            await link.connect(*self._upstream)
            link.server_writer.write(head)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link.client_reader, link.server_writer, rules, "up"))
                pumps.create_task(self._pump(link.server_reader, link.client_writer, rules, "down"))
        except* OSError:
            pass  # either side went away: the other follows
        finally:
            self._links[kind].discard(link)

    def _count(self, data: bytes) -> None:
        self.requests.update(line.decode() for line in REQUEST_LINE.findall(data))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: _Rules, direction: Direction
    ) -> None:
        while data := await reader.read(CHUNK):
            if direction == "up" and rules is self._rules["http"]:
                self._count(data)
            if rules.delay:
                await asyncio.sleep(rules.delay)
            await rules.flowing.wait()
            if direction in rules.dropped:
                continue
            writer.write(data)
            await writer.drain()
        await rules.flowing.wait()
        if direction not in rules.dropped:
            writer.write_eof()


class _Link:
    """One connection through the proxy, and its way to the server once there is one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client_reader, self.client_writer = reader, writer
        self.server_reader: asyncio.StreamReader
        self.server_writer: asyncio.StreamWriter
        self._writers = [writer]

    async def connect(self, host: str, port: int) -> None:
        self.server_reader, self.server_writer = await asyncio.open_connection(host, port)
        self._writers.append(self.server_writer)

    def reset(self) -> None:
        for writer in self._writers:
            transport = writer.transport
            if not transport.is_closing():
                # linger 0: what is closed is reset, and unsent data is lost
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            transport.abort()
