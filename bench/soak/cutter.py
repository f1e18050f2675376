"""A TCP proxy between the daemon and its project that cuts Realtime's connection as soon as it is live."""

from __future__ import annotations

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK = 65536
LIVE = b"Subscribed to PostgreSQL"
"""What the server says when changes are streamed; it writes its frames without a mask."""


class Cutter:
    """Forwards to ``upstream``; :meth:`cut` ends the live connection, in one of the ways there are."""

    def __init__(self, upstream: str, seed: int) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._random = random.Random(seed)
        self._live: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._came = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""
        self.lived = 0
        """How many connections have been live."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def live(self, within: float) -> None:
        """Wait until a connection is live; raises ``TimeoutError``."""
        async with asyncio.timeout(within):
            while not self._live:
                self._came.clear()
                await self._came.wait()

    def cut(self) -> None:
        """End what is live: by a reset, by an end of one side, or by an end of both."""
        live, self._live = self._live, []
        for client, server in live:
            how = self._random.choice(("reset", "client", "server"))
            if how == "reset":
                client.transport.abort()
                server.transport.abort()
            else:
                (client if how == "client" else server).close()

    async def _serve(self, client_in: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            server_in, server = await asyncio.open_connection(*self._upstream)
        except OSError:
            client.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_in, server))
                pumps.create_task(self._pump(server_in, client, (client, server)))
        finally:
            client.transport.abort()
            server.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        watched: tuple[asyncio.StreamWriter, asyncio.StreamWriter] | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                sink.write(data)
                await sink.drain()
                if watched and LIVE in data:
                    self._live.append(watched)
                    self.lived += 1
                    self._came.set()
            if watched and watched in self._live:
                self._live.remove(watched)
            sink.close()
