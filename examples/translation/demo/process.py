"""A process that the demo starts, reads, and is sure to stop."""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

STOP_SECONDS = 8.0


class DemoError(Exception):
    """The demo cannot go on; the message says what happened and what was last heard."""


class Child:
    """One running process, its output read line by line. It is made by `running`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, hear: Callable[[str], None]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._hear = hear
        self._last_lines: deque[str] = deque(maxlen=8)
        self.ended = asyncio.create_task(self._read(), name=f"output of {name}")
        """Done when the process has said its last word."""

    async def stop(self) -> None:
        """Ask the process to end, then insist; its whole group is gone afterwards."""
        if self._process.returncode is None:
            self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await self.ended

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        async for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            self._hear(text)

    def last_words(self) -> str:
        """Quote the last lines of its output."""
        return "Its last words:\n" + "\n".join(f"  {line}" for line in self._last_lines or ["(none)"])


async def until(event: asyncio.Event, what: str, seconds: float, *children: Child) -> None:
    """Wait for something that needs these processes; raises DemoError if one ends, or it takes too long."""
    happens = asyncio.create_task(event.wait(), name=what)
    waits = {happens, *(child.ended for child in children)}
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happens.cancel()
    if event.is_set():
        return
    for child in children:
        if child.ended.done():
            raise DemoError(f"{child.name} ended before {what}. {child.last_words()}")
    raise DemoError(f"{seconds:g} s were not enough until {what}. {children[-1].last_words()}")


@asynccontextmanager
async def running(
    name: str, *arguments: str, hear: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Run `python -m processor …` for as long as the block lasts; `hear` gets each line of its output."""
    # settings meant for another project must not change what the demo shows
    inherited = {
        name: v for name, v in os.environ.items() if not name.startswith(("SUPABASE_", "PROCESSOR_"))
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "processor", *arguments),
        env={**inherited, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal is for the demo, which stops its children in order
        limit=2**20,
    )
    child = Child(name, process, hear)
    try:
        yield child
    finally:
        await _whatever_happens(asyncio.create_task(child.stop(), name=f"stop {name}"))


async def _whatever_happens(task: asyncio.Task[None]) -> None:
    """Wait for a task to its end: a Ctrl-C meanwhile is not lost, it asked for nothing else."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
