"""End a child process when we end, also when we are killed."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

# the pipe it reads from closes when our process is gone, whatever the reason
SCRIPT = 'read -r _; kill -"$1" "$2"'


class Watchdog:
    """Send ``signal_name`` (such as ``INT``) to process ``pid`` when this process ends.

    Start it right after the child, and stop it once the child has been waited for: a process id is reused.
    """

    def __init__(self, pid: int, signal_name: str) -> None:
        self._pid = pid
        self._signal_name = signal_name
        self._process: Process | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", SCRIPT, "watchdog", self._signal_name, str(self._pid),
            stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL,
            start_new_session=True,  # what is sent to our process group must not reach it
        )  # fmt: skip

    async def stop(self) -> None:
        """Watch no longer; harmless when it does not."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
