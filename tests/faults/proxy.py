"""The proxy: its faults, its signals, its plumbing."""

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.faults.frames import CONTROL, FrameReader, text_frame
from tests.faults.link import Link, send
from tests.faults.rules import KINDS, Direction, Kind, Rules

CHUNK = 65536
REQUEST_LINE = re.compile(rb"^([A-Z]+ /\S*) HTTP/1\.1\r$", re.MULTILINE)
EXTENSIONS = re.compile(rb"^sec-websocket-extensions:[^\r]*\r\n", re.MULTILINE | re.IGNORECASE)


class EndedError(OSError):
    """The proxy itself has ended a connection, both ways."""


class FaultProxy:
    """Forwards to `upstream` (an http URL), until told otherwise. Every fault lasts until `heal`."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname, f"an http URL with a host is needed, not {upstream!r}"
        self._upstream = (parts.hostname, parts.port or 80)
        self._chance = random.Random(seed)
        self._rules = {kind: Rules() for kind in KINDS}
        self._links: dict[Kind, set[Link]] = {kind: set() for kind in KINDS}
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

    # -- faults of connections --------------------------------------------------------------------

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
        for rules in self._rules_of(only):
            rules.refused = True

    def freeze(self, only: Kind | None = None) -> None:
        """Forward nothing, either way, and keep every connection open; new ones are taken and held."""
        for rules in self._rules_of(only):
            rules.flowing.clear()

    def drop(self, direction: Direction, only: Kind | None = None) -> None:
        """Throw away what flows `up` to the server or `down` to the client: a half-open connection."""
        for rules in self._rules_of(only):
            rules.dropped.add(direction)

    def swallow(self, only: Kind | None = None) -> None:
        """Be a black hole: connections are accepted, read, and never answered, not even after `heal`."""
        for rules in self._rules_of(only):
            rules.swallowed = True
            rules.dropped |= {"up", "down"}

    def delay(self, seconds: float, up_to: float = 0.0, *, only: Kind | None = None) -> None:
        """Hold every chunk for so long, in both directions; or for a time between the two, by chance."""
        for rules in self._rules_of(only):
            rules.delay = (seconds, max(seconds, up_to))

    def throttle(self, bytes_per_second: float, only: Kind | None = None) -> None:
        """Forward no more than so much, each way of each connection."""
        for rules in self._rules_of(only):
            rules.speed = bytes_per_second

    # -- faults of requests -----------------------------------------------------------------------

    def answer(self, status: int, only: Kind | None = None) -> None:
        """Answer requests and handshakes with this status and a page of HTML; the server sees none."""
        for rules in self._rules_of(only):
            rules.status = status

    def truncate(self) -> None:
        """Break off the answers to requests, which the server has got and carried out."""
        self._rules["http"].truncated = True

    # -- faults of Realtime -----------------------------------------------------------------------

    def mute(self) -> None:
        """Let no message down; the sockets stay open, and pings are answered."""
        self._rules["websocket"].mute = True

    def delay_joins(self, seconds: float) -> None:
        """Hold the answers to joins for so long, and what comes after them."""
        self._rules["websocket"].join_delay = seconds

    async def say(self, event: str, payload: dict[str, Any]) -> int:
        """Send a message to every joined channel, as if the server did; say to how many."""
        links = [link for link in self._links["websocket"] if link.topic is not None]
        for link in links:
            topic = str(link.topic)
            of_it = {"channel": topic.removeprefix("realtime:")} if event == "system" else {}
            frame = text_frame({"topic": topic, "event": event, "payload": payload | of_it, "ref": None})
            async with link.sending:
                link.client_writer.write(frame)
        return len(links)

    async def heal(self, only: Kind | None = None) -> None:
        """End every fault. What was held flows on; what was dropped or swallowed stays lost."""
        for rules in self._rules_of(only):
            rules.heal()
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

    def _rules_of(self, only: Kind | None) -> list[Rules]:
        return [self._rules[kind] for kind in self._chosen(only)]

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
        link = Link(reader, writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(link)
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would log a cancelled handler as an error
        finally:
            link.reset()

    async def _serve(self, link: Link) -> None:
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
            if rules.swallowed:
                while await link.client_reader.read(CHUNK):
                    pass
                return
            if rules.status is not None:
                await link.answer(rules.status, head)
                return
            await rules.flowing.wait()
            await link.connect(*self._upstream)
            if kind == "websocket":
                head = EXTENSIONS.sub(b"", head)  # what is compressed cannot be read on the way
            await send(link.server_writer, head, rules.speed)
            down = self._messages_down if kind == "websocket" else self._answers_down
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump_up(link, kind))
                pumps.create_task(self._pump(link, rules, "down", down))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # either side went away: the other follows
        finally:
            self._links[kind].discard(link)

    def _count(self, data: bytes) -> None:
        self.requests.update(line.decode() for line in REQUEST_LINE.findall(data))

    async def _pump_up(self, link: Link, kind: Kind) -> None:
        async def chunks(link: Link, rules: Rules) -> AsyncIterator[bytes]:
            while data := await link.client_reader.read(CHUNK):
                if kind == "websocket":
                    link.note_join(data)
                else:
                    self._count(data)
                    if rules.status is not None:
                        await link.answer(rules.status, data)
                        raise EndedError
                yield data

        await self._pump(link, self._rules[kind], "up", chunks)

    async def _pump(
        self,
        link: Link,
        rules: Rules,
        direction: Direction,
        chunks: Callable[[Link, Rules], AsyncIterator[bytes]],
    ) -> None:
        writer = link.server_writer if direction == "up" else link.client_writer
        async for data in chunks(link, rules):
            if rules.delay != (0.0, 0.0):
                await asyncio.sleep(self._chance.uniform(*rules.delay))
            await rules.flowing.wait()
            if direction in rules.dropped:
                continue
            if direction == "up":
                await send(writer, data, rules.speed)
                continue
            async with link.sending:
                await send(writer, data, rules.speed)
        await rules.flowing.wait()
        if direction not in rules.dropped:
            writer.write_eof()

    @staticmethod
    async def _answers_down(link: Link, rules: Rules) -> AsyncIterator[bytes]:
        while data := await link.server_reader.read(CHUNK):
            if rules.truncated:
                yield data[: len(data) // 2]
                return  # the client hears the end, and ends its side
            yield data

    @staticmethod
    async def _messages_down(link: Link, rules: Rules) -> AsyncIterator[bytes]:
        """Yield the answer to the handshake, then whole frames."""
        answer = await link.server_reader.readuntil(b"\r\n\r\n")
        yield answer
        if b" 101 " not in answer.partition(b"\r\n")[0]:  # no websocket: what follows says why
            while data := await link.server_reader.read(CHUNK):
                yield data
            return
        frames = FrameReader()
        while data := await link.server_reader.read(CHUNK):
            for frame in frames.feed(data):
                if rules.join_delay and link.join_ref is not None:
                    message = frame.message()
                    if message.get("event") == "phx_reply" and message.get("ref") == link.join_ref:
                        await asyncio.sleep(rules.join_delay)
                if rules.mute and frame.opcode < CONTROL:
                    continue
                yield frame.raw
