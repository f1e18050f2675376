"""``python -m processor.calls.child FD``: a process that runs plain handlers for a daemon, one after another.

It ends with the daemon, however that ends: the kernel kills it (Linux), or its line closes. And it ends
when its job's lease does and nobody has extended it, as when the daemon is frozen: somebody else may then
run the job. That watch needs neither the daemon nor Python's lock.
"""

import contextvars
import ctypes
import faulthandler
import importlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import structlog

from processor.calls import logs, wire
from processor.calls.context import Brief, SyncJobContext
from processor.calls.line import Gate, JobStopped, Line, Message, attempt
from processor.clients import ApplicationClient
from processor.context import invalid_result
from processor.errors import JobError
from processor.hold import clock
from processor.job import refuse_decision
from processor.jsonb import to_jsonb
from processor.log import of_job
from processor.tracing import carried

_PR_SET_PDEATHSIG = 1
_STDERR = 2


class Child:
    """The child's side of the pipe; ``main`` runs handlers in the main thread, where signals arrive."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._line: Line | None = None
        self._job: SyncJobContext[Any] | None = None
        self._watching = threading.Lock()
        self._busy = False
        self._ends = 0.0
        self._stopped = False
        self._client: ApplicationClient | None = None

    def main(self) -> None:
        """Serve until the daemon closes the line."""
        signal.signal(signal.SIGTERM, self._terminated)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's are for the daemon, which drains first
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_or_die, args=(self._read,), name="line", daemon=True).start()
        while True:
            self._run(*self._jobs.get())

    # -- the line ---------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message to the daemon."""
        frame = wire.pack(message)
        with self._sending:
            try:
                self._pipe.sendall(frame)
            except OSError:
                os._exit(0)

    def _read(self) -> None:
        while True:
            (length,) = wire.HEADER.unpack(self._exactly(wire.HEADER.size))
            message = wire.unpack(self._exactly(length))
            match message:
                case ("hello", path, level, url, key, api_key):
                    sys.path[:] = path
                    logs.set_up(level, lambda record: self.send(("record", record)))
                    self._client = ApplicationClient(url, key, api_key=api_key)
                case ("key", key) if self._client is not None:
                    self._client.set_key(key)
                case ("job", *parts):
                    self._stopped = False
                    self._watch(parts[-1], begin=True)
                    self._jobs.put(tuple(parts))
                case ("lease", ends):
                    self._watch(ends)
                case ("stop",):
                    self._stopped = True
                    if self._job is not None:
                        self._job.cancelled.set()
                case _ if self._line is not None:
                    self._line.deliver(message)

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._pipe.recv(min(length - len(parts), 1 << 20))
            if not part:
                os._exit(0)
            parts += part
        return bytes(parts)

    def _watch(self, ends: float, *, begin: bool = False) -> None:
        """Have the process end with the lease, while there is a job, and say where it was then."""
        with self._watching:
            self._busy = self._busy or begin
            self._ends = ends
            if self._busy:
                faulthandler.dump_traceback_later(max(ends - clock(), 0.001), exit=True, file=_STDERR)

    def _terminated(self, _number: int, _frame: FrameType | None) -> None:
        """Stop the handler; a SIGTERM that the daemon did not announce is meant for all, and it drains."""
        if self._stopped and self._job is not None:
            raise JobStopped("the job is to stop")

    # -- a job ------------------------------------------------------------------------------------

    def _run(
        self,
        module: str,
        name: str,
        brief: bytes,
        fields: dict[str, Any],
        trace: Mapping[str, str] | None,
        _ends: float,
    ) -> None:
        handle = contextvars.copy_context().run
        answer = handle(attempt, self._handle, module, name, brief, fields, trace)
        with self._watching:
            self._busy = False
            faulthandler.cancel_dump_traceback_later()
        self._job = self._line = None
        self.send(("end", answer))

    def _handle(
        self, module: str, name: str, packed: bytes, fields: dict[str, Any], trace: Mapping[str, str] | None
    ) -> Any:
        if self._client is None:
            raise RuntimeError("a job came before the greeting")
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        of_job(fields)
        brief: Brief = pickle.loads(packed)  # noqa: S301 - the daemon made it
        self._line = Line(self.send, Gate(stopped=lambda: self._stopped, lost=lambda: clock() >= self._ends))
        job: SyncJobContext[Any] = SyncJobContext(
            brief,
            self._line,
            logger=structlog.get_logger("processor.job").bind(**fields),
            client=self._client.blocking,
        )
        self._job = job
        if self._stopped:
            job.cancelled.set()
        self.send(("called",))
        with carried(trace):
            result = function(job)
        try:
            refuse_decision(result)
            return to_jsonb(result)
        except ValueError as error:
            failure = invalid_result("the result", error)
            raise JobError(failure.message, code=failure.code) from error


def main() -> None:
    """Become a child of the daemon at the other end of the given socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = socket.socket(fileno=int(sys.argv[1]))
    pipe.set_inheritable(False)
    if os.getppid() != int(sys.argv[2]):
        os._exit(0)  # the daemon died while this started
    _or_die(Child(pipe).main)


def _or_die(function: Callable[[], None]) -> None:
    """End the process with the function, loudly: threads of a handler's would keep a broken one alive."""
    try:
        function()
    except BaseException:  # noqa: BLE001 - the daemon sees the end, and stderr the reason
        traceback.print_exc()
    os._exit(70)


if __name__ == "__main__":
    main()
