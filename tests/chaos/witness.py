"""The witness: hears from handlers what they do, and sees when they end, whatever becomes of their process.

An attempt is one TCP connection of JSON lines: ``{"begin": …}``, then ``{"did": what}`` for everything done
outside, then ``{"end": how}``; each line is acknowledged. A process that dies closes its connections, so the
kernel itself says when an attempt of it was over. One that is frozen keeps them open: its attempts go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass(slots=True)
class Attempt:
    """One attempt of a job as it was seen from outside; times are of ``time.monotonic()``."""

    job: str
    attempt: int
    pid: int
    began: float
    ended: float | None = None
    how: str | None = None
    """What the handler said at its end; None if it was stopped, or its process died."""
    did: list[tuple[float, str]] = field(default_factory=list)


class Witness:
    """A server for the handlers of all daemons, and its record."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._server: asyncio.Server | None = None
        self._open: set[_Testimony] = set()

    @property
    def address(self) -> str:
        """``host:port``."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def going_on(self) -> list[Attempt]:
        """The attempts that have begun and not ended."""
        return [attempt for attempt in self.attempts if attempt.ended is None]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Testimony(self), "127.0.0.1", 0, backlog=1000)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for testimony in list(self._open):
            testimony.transport.abort()

    def opened(self, testimony: _Testimony) -> None:
        self._open.add(testimony)

    def closed(self, testimony: _Testimony) -> None:
        self._open.discard(testimony)


class _Testimony(asyncio.Protocol):
    """One attempt's connection. A protocol, not a stream: what happens is noted in the order it came."""

    transport: asyncio.Transport

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._rest = b""
        self._attempt: Attempt | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._witness.opened(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
            self.transport.write(b"noted\n")

    def eof_received(self) -> bool:
        self._over()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()
        self._witness.closed(self)

    def _hear(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if "begin" in line:
            self._attempt = Attempt(line["begin"], line["attempt"], line["pid"], now)
            self._witness.attempts.append(self._attempt)
            return
        assert self._attempt is not None, f"before its begin: {line}"
        if "did" in line:
            self._attempt.did.append((now, line["did"]))
        else:
            self._attempt.how = line["end"]
            self._over()

    def _over(self) -> None:
        if self._attempt is not None and self._attempt.ended is None:
            self._attempt.ended = time.monotonic()
