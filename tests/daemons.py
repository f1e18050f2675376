"""Real daemon processes for tests: start one, read its events, send it signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 15.0


class Daemon:
    """``processor run`` as a child process, whose log lines are its ``events``.

    It belongs to no event loop, so that tests with loops of their own can share one.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()

    @classmethod
    async def start(cls, target: str, environment: dict[str, str], *arguments: str) -> "Daemon":
        """Launch one from a test."""
        return cls.launch(target, environment, *arguments)

    @classmethod
    def launch(cls, target: str, environment: dict[str, str], *arguments: str) -> "Daemon":
        """Start ``processor run target`` with only ``environment`` beside what Python needs."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SUPABASE", "PROCESSOR"))
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "processor", "run", target, *arguments],
            env={**clean, "PROCESSOR_LOG_FORMAT": "json", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches pytest, which then ends this
        )
        return cls(process)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.text.append(line.decode().rstrip())

    async def event(
        self,
        name: str,
        *,
        where: Callable[[dict[str, Any]], bool] = lambda _event: True,
        within: float = PATIENCE,
        **fields: Any,
    ) -> dict[str, Any]:
        """Return the first event of this name with these fields, waiting for it."""
        deadline = time.monotonic() + within
        while True:
            over = not self._reader.is_alive()
            found = next((event for event in self.all(name, **fields) if where(event)), None)
            if found is not None:
                return found
            assert not over, f"it ended without {name} {fields}:\n{self.log()}"
            assert time.monotonic() < deadline, f"no {name} {fields} within {within} s:\n{self.log()}"
            await asyncio.sleep(0.01)

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
        deadline = time.monotonic() + within
        while self.process.poll() is None or self._reader.is_alive():
            assert time.monotonic() < deadline, f"it did not end within {within} s:\n{self.log()}"
            await asyncio.sleep(0.01)
        return self.process.returncode

    async def close(self) -> None:
        """End it, whatever state it is in."""
        self.end()

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
