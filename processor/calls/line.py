"""The handler's end of the line to the loop: calls that block, and functions that the loop asks for.

Messages from here: ``("call", number, name, arguments, options)``, ``("ran", ticket, Answer)``. Messages to
here: ``("run", number, ticket, which, arguments, options)``, ``("answer", number, Answer)``.
"""

import contextvars
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Message = tuple[Any, ...]


class JobStopped(BaseException):
    """The job is to stop: let it pass, after cleaning up.

    Calls of a :class:`SyncJobContext` raise it. ``except Exception`` does not catch it, as it does not catch
    ``CancelledError`` in an ``async def``.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """What a function returned, or raised."""

    value: Any = None
    error: BaseException | None = None

    def get(self) -> Any:
        """Return or raise it."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class Callback:
    """Stands for a function of the handler's among the arguments of a call."""

    which: int


@dataclass(frozen=True, slots=True)
class ItemRef:
    """Stands for the item with this key."""

    key: str


class Gate:
    """Whether calls may still pass; asked from any thread."""

    def __init__(self, *, stopped: Callable[[], bool], lost: Callable[[], bool]) -> None:
        self.stopped = stopped
        """Somebody wants the handler to stop."""
        self.lost = lost
        """The job is not this process's any more."""


class Line:
    """Carries calls to the loop, from any thread of the handler; ``send`` may raise :class:`JobStopped`."""

    def __init__(self, send: Callable[[Message], None], gate: Gate) -> None:
        self._send = send
        self._gate = gate
        self._numbers = itertools.count(1)
        self._inboxes: dict[int, queue.SimpleQueue[Message]] = {}
        self._told = threading.local()
        self._functions: list[Callable[..., Any]] = []
        self.item: Callable[[str], Any] = lambda key: key
        """Gives the item that a reference stands for."""

    def check(self, *, cleaning_up: bool = False) -> None:
        """Raise :class:`JobStopped` once the job is to stop.

        ``cleaning_up``: a thread that has been told so may still do this, while the job is ours.
        """
        if self._gate.lost():
            raise JobStopped("the job is not this process's any more")
        if self._gate.stopped() and not (cleaning_up and getattr(self._told, "yes", False)):
            self._told.yes = True
            raise JobStopped("the job is to stop")

    def callback(self, function: Callable[..., Any]) -> Callback:
        """Return what stands for a function in a call; the same for the same function."""
        if function not in self._functions:
            self._functions.append(function)
        return Callback(self._functions.index(function))

    def call(
        self,
        name: str,
        *arguments: Any,
        options: dict[str, Any] | None = None,
        parallel: bool = False,
        cleaning_up: bool = False,
    ) -> Any:
        """Have the loop do something, and wait for what comes of it.

        Functions that it was given run here when the loop asks for them: in this thread, one after another,
        or ``parallel`` in threads of their own.
        """
        self.check(cleaning_up=cleaning_up)
        number = next(self._numbers)
        inbox = self._inboxes[number] = queue.SimpleQueue()
        threads: list[threading.Thread] = []
        try:
            self._send(("call", number, name, arguments, options or {}))
            while True:
                message = inbox.get()
                if message[0] == "answer":
                    break
                work = message[2:]
                if parallel:
                    carried = contextvars.copy_context()
                    thread = threading.Thread(
                        target=carried.run,
                        args=(self._run, *work),
                        name=f"{name}:{work[0]}",
                        daemon=True,
                    )
                    threads.append(thread)
                    thread.start()
                else:
                    self._run(*work)
        finally:
            del self._inboxes[number]
            for thread in threads:
                thread.join()
        answer: Answer = message[2]
        self.check(cleaning_up=cleaning_up)
        return answer.get()

    def deliver(self, message: Message) -> None:
        """Take a message from the loop."""
        inbox = self._inboxes.get(message[1])
        if inbox is not None:
            inbox.put(message)

    def _run(self, ticket: int, which: int, references: tuple[Any, ...], options: dict[str, Any]) -> None:
        arguments = [self.item(ref.key) if isinstance(ref, ItemRef) else ref for ref in references]
        self._send(("ran", ticket, attempt(self._functions[which], *arguments, **options)))


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Answer:
    """Call it, and keep whatever comes of it."""
    try:
        return Answer(function(*arguments, **options))
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        ended = RuntimeError(f"the handler raised {type(error).__name__}")
        ended.__cause__ = error
        return Answer(error=ended)
    except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
        return Answer(error=error)
