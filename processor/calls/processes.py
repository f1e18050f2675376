"""Processes for handlers that need a core to themselves, kept warm, and killed when nothing else helps."""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import structlog

from processor.calls import logs, wire
from processor.calls.context import Brief
from processor.calls.line import Answer, Gate, JobStopped, Message
from processor.calls.switchboard import Switchboard
from processor.clients import ApplicationClient
from processor.context import JobContext
from processor.errors import ErrorCode, JobError
from processor.hold import Hold
from processor.tracing import carrier

LOOK_SECONDS = 1.0
"""How long a handler may take to see that it is to stop, before SIGTERM says so."""
LOST_SECONDS = 0.2
"""The same where the job is somebody else's already."""
START_SECONDS = 60.0
"""How long a process may take to import what the handler needs, before the handler's own time runs."""
KILL_SECONDS = 2.0
"""How much longer than its grace a handler may take to be killed."""

log = structlog.get_logger("processor.processes")


class Processes:
    """A pool of them, each started when it is first needed.

    ``most`` at the same time, so a job beyond that waits for its turn; ``grace`` is what a handler has
    from the wish that it stop to SIGKILL.
    """

    def __init__(self, most: int, *, hold: Hold, client: ApplicationClient, grace: float) -> None:
        self._free = asyncio.Semaphore(most)
        self._hold = hold
        self._client = client
        self.grace = grace
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        hold.on_extended(self._extended)
        client.on_key(self._rekeyed)

    async def call(
        self,
        function: Callable[..., Any],
        context: JobContext[Any],
        brief: Brief,
        gate: Gate,
        *,
        fields: dict[str, Any],
        on_called: Callable[[], None],
    ) -> Any:
        """Return or raise what ``function`` does, in a process; cancelled, it is killed if it must be.

        ``on_called`` is called when the function is, after the wait for a process and for what it imports
        (or when that takes longer than a minute). ``fields`` are those of the lines it logs.
        """
        async with self._free:
            process = self._take() or await _Process.start(self._client)
            self._busy.add(process)
            switchboard = Switchboard(context, process.send)
            late = asyncio.get_running_loop().call_later(START_SECONDS, on_called)
            try:
                name = (function.__module__, function.__qualname__)
                process.send(("job", *name, pickle.dumps(brief), fields, carrier(), self._hold.ends))
                answer = await self._until_ended(process, switchboard, gate, on_called)
            finally:
                late.cancel()
                self._busy.discard(process)
                await switchboard.close()
                if process.usable:
                    self._idle.append(process)
                else:
                    await process.kill()
        if isinstance(answer.error, JobStopped):
            raise asyncio.CancelledError from answer.error
        return answer.get()

    async def close(self) -> None:
        """End all processes."""
        processes = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(process.kill() for process in processes))

    def _take(self) -> "_Process | None":
        while self._idle:
            process = self._idle.pop()
            if process.alive:
                return process
        return None

    def _extended(self, ends: float) -> None:
        for process in self._busy:
            process.send(("lease", ends))

    def _rekeyed(self, key: str) -> None:
        for process in (*self._idle, *self._busy):
            process.send(("key", key))

    async def _until_ended(
        self, process: "_Process", switchboard: Switchboard, gate: Gate, on_called: Callable[[], None]
    ) -> Answer:
        reader = asyncio.create_task(process.read(switchboard, on_called), name=f"process:{process.pid}")
        try:
            await asyncio.wait({reader})
        except asyncio.CancelledError:
            switchboard.stop()
            await self._stop(process, reader, gate)
        finally:
            reader.cancel()
            await asyncio.wait({reader})
        if reader.cancelled():
            return Answer(error=JobStopped("its process was killed"))
        answer = reader.result()
        if answer is None:
            if process.told_to_stop:
                return Answer(error=JobStopped("its process was killed"))
            return Answer(error=JobError(await process.end(), code=ErrorCode.HANDLER_CRASHED, retryable=True))
        return answer

    async def _stop(self, process: "_Process", reader: "asyncio.Task[Answer | None]", gate: Gate) -> None:
        """Let it see that it is to stop, then insist, then kill it."""
        process.told_to_stop = True
        process.send(("stop",))
        lost = gate.lost()
        first = LOST_SECONDS if lost else min(LOOK_SECONDS, self.grace)
        await asyncio.wait({reader}, timeout=first)
        if not reader.done():
            process.signal(signal.SIGTERM)
            await asyncio.wait({reader}, timeout=LOST_SECONDS if lost else max(self.grace - first, 0))
        if not reader.done():
            log.warning("processes.killed", pid=process.pid, reason="the handler did not stop")
            await process.kill()


class _Process:
    """One child."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.told_to_stop = False
        """It is not used again: nobody knows what it was interrupted in."""

    @classmethod
    async def start(cls, client: ApplicationClient) -> "_Process":
        """Start one, and tell it what it needs to know."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "processor.calls.child", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        started = cls(process, *await asyncio.open_unix_connection(sock=ours))
        level = logging.getLevelName(logging.getLogger().level).lower()
        started.send(("hello", sys.path, level, client.url, client.key, client.api_key))
        log.info("processes.started", pid=process.pid)
        return started

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None and not self._reader.at_eof()

    @property
    def usable(self) -> bool:
        """Whether another job may run in it."""
        return self.alive and not self.told_to_stop

    def send(self, message: Message) -> None:
        """Send it a message; one that has ended takes none."""
        if not self._writer.is_closing():
            self._writer.write(wire.pack(message))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the handler's process only."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def read(self, switchboard: Switchboard, on_called: Callable[[], None]) -> Answer | None:
        """Serve its calls until the handler ends; None: the process did."""
        while True:
            try:
                (length,) = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
                message = wire.unpack(await self._reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            except Exception as error:  # noqa: BLE001 - a handler can break its process in any way
                log.warning("processes.garbled", pid=self.pid, error=repr(error))
                return None
            match message:
                case ("record", record):
                    logs.relay(record, pid=self.pid)
                case ("called",):
                    on_called()
                case ("end", answer):
                    ended: Answer = answer
                    return ended
                case _:
                    switchboard.receive(message)

    async def end(self) -> str:
        """Wait for its end, and say how it came."""
        try:
            async with asyncio.timeout(1):
                code = await self._process.wait()
        except TimeoutError:
            return "the handler's process closed its line to the daemon"
        if code >= 0:
            return f"the handler's process ended by itself, with exit code {code}"
        name = signal.Signals(-code).name
        hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
        return f"the handler's process was ended by {name}{hint}"

    async def kill(self) -> None:
        """Kill it, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._writer.close()
        await self._process.wait()
