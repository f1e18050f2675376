"""Real daemon processes for tests: start one, read its events, send it signals."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 15.0


class Daemon:
    """``processor run`` as a child process, whose log lines are its ``events``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read(), name="daemon-log")

    @classmethod
    async def start(cls, target: str, environment: dict[str, str], *arguments: str) -> "Daemon":
        """Start ``processor run target`` with only ``environment`` beside what Python needs."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SUPABASE", "PROCESSOR"))
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "processor", "run", target, *arguments),
            env={**clean, "PROCESSOR_LOG_FORMAT": "json", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=2**22,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._news:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.text.append(line.decode().rstrip())
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def event(
        self,
        name: str,
        *,
        where: Callable[[dict[str, Any]], bool] = lambda _event: True,
        within: float = PATIENCE,
        **fields: Any,
    ) -> dict[str, Any]:
        """Return the first event of this name with these fields, waiting for it."""

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event["event"] == name and fields.items() <= event.items() and where(event):
                    return event
            return None

        deadline = time.monotonic() + within
        async with self._news:
            while (event := found()) is None:
                left = deadline - time.monotonic()
                assert left > 0, f"no {name} {fields} within {within} s:\n{self.log()}"
                assert not self._reader.done(), f"it ended without {name} {fields}:\n{self.log()}"
                try:
                    async with asyncio.timeout(left):
                        await self._news.wait()
                except TimeoutError:
                    continue
        return event

    async def ready(self) -> "Daemon":
        """Wait until it takes jobs, woken by Realtime."""
        await self.event("daemon.ready")
        await self.event("feed.mode", mode="realtime")
        return self

    def all(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the events so far of this name with these fields."""
        return [event for event in self.events if event["event"] == name and fields.items() <= event.items()]

    def log(self) -> str:
        """Everything it said."""
        return "\n".join([*self.text, *map(json.dumps, self.events)])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self, within: float = PATIENCE) -> int:
        """Wait for its end; return the exit code."""
        async with asyncio.timeout(within):
            code = await self.process.wait()
            await self._reader
        return code

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader
