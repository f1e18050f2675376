"""The loop's end of the line to a handler: does what the handler calls for, on its ``JobContext``."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from processor.calls.line import Answer, Callback, ItemRef, JobStopped, Message
from processor.context import JobContext, JobItem

Deliver = Callable[[Message], None]

_AT_ONCE = frozenset({"log", "progress", "item_progress"})
_AWAITED = frozenset({"each", "checkpoint", "spawn_all"})
"""The methods of a ``JobContext`` that a handler elsewhere may call by name."""


class Switchboard:
    """Serves the calls of one handler; ``deliver`` takes the answers to it."""

    def __init__(self, context: JobContext[Any], deliver: Deliver) -> None:
        self._context = context
        self._deliver = deliver
        self._items = {item.key: item for item in context.items}
        self._tickets = itertools.count(1)
        self._running: dict[int, asyncio.Future[Answer]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def receive(self, message: Message) -> None:
        """Take a message from the handler."""
        match message:
            case ("ran", ticket, answer):
                future = self._running.pop(ticket, None)
                if future is not None and not future.done():
                    future.set_result(answer)
            case ("call", number, name, arguments, options) if name in _AT_ONCE:
                self._deliver(("answer", number, self._at_once(name, arguments)))
            case ("call", number, name, _, _) if self._stopped or name not in _AWAITED:
                reason = (
                    JobStopped("the job is to stop") if self._stopped else ValueError(f"no call {name!r}")
                )
                self._deliver(("answer", number, Answer(error=reason)))
            case ("call", number, name, arguments, options):
                functions = [
                    _Remote(self, number, a.which) if isinstance(a, Callback) else a for a in arguments
                ]
                task = asyncio.create_task(
                    getattr(self._context, name)(*functions, **options),
                    name=f"call:{name}:{self._context.id}",
                )
                self._tasks.add(task)
                task.add_done_callback(lambda ended: self._served(number, ended))

    def stop(self) -> None:
        """End every call that waits for something, now and from now on; log lines still pass."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Wait until nothing is served any more: the handler has ended."""
        self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _at_once(self, name: str, arguments: tuple[Any, ...]) -> Answer:
        try:
            match name:
                case "log":
                    self._context.log.keep(*arguments)
                case "item_progress":
                    self._items[arguments[0]].progress(*arguments[1:])
                case _:
                    self._context.progress(*arguments)
        except asyncio.CancelledError as error:
            return Answer(error=JobStopped(str(error)))
        except Exception as error:  # noqa: BLE001 - it is raised where the handler waits
            return Answer(error=error)
        return Answer()

    def _served(self, number: int, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            answer = Answer(error=JobStopped("the job is to stop"))
        elif (error := task.exception()) is not None:
            answer = Answer(error=error)
        else:
            answer = Answer(task.result())
        self._deliver(("answer", number, answer))

    async def have_run(
        self, number: int, which: int, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Have the handler run one of its functions, for the call of this number."""
        ticket = next(self._tickets)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._running[ticket] = future
        references = tuple(ItemRef(a.key) if isinstance(a, JobItem) else a for a in arguments)
        self._deliver(("run", number, ticket, which, references, options))
        try:
            answer = await asyncio.shield(future)
        except asyncio.CancelledError:
            if self._stopped:
                raise
            answer = await future  # another item ended the attempt: what this one does counts still
        if isinstance(answer.error, JobStopped):
            raise asyncio.CancelledError from answer.error
        return answer.get()


@dataclass(frozen=True, slots=True)
class _Remote:
    """A function of the handler's; two of the same function are equal, whatever they are called for."""

    switchboard: Switchboard = field(compare=False)
    number: int = field(compare=False)
    which: int

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        return await self.switchboard.have_run(self.number, self.which, arguments, options)
