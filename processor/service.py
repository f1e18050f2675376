"""Owner of background tasks: each has a name, and none dies unheard."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("processor")


class Background:
    """Runs loops that should never end by themselves.

    One that does, by error or by return, is logged and sets ``failed``: whoever waits for that
    decides, which in the daemon means to stop and let the supervisor start a fresh one. ``on_death`` hears
    of it, too.
    """

    def __init__(self, on_death: Callable[[str, BaseException | None], None] | None = None) -> None:
        self._on_death = on_death
        self.failed = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dead: list[str] = []
        self._stopping = False

    @property
    def dead(self) -> tuple[str, ...]:
        """The names of what ended by itself."""
        return tuple(self._dead)

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run ``loop`` as a task called ``name``."""
        task = asyncio.create_task(loop, name=name)
        self._tasks[name] = task
        task.add_done_callback(self.ended)

    async def stop(self) -> None:
        """Cancel all loops and wait for them; a second call does nothing."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks.clear()

    def ended(self, task: asyncio.Task[None]) -> None:
        """Hear that a task has ended by itself; also one that somebody else started and looks after."""
        error = None if task.cancelled() else task.exception()
        if error is None and self._stopping:
            return
        self.mourn(task.get_name(), error)

    def mourn(self, name: str, error: BaseException | None) -> None:
        """Take note of the end of something that others run."""
        self._dead.append(name)
        log.critical("daemon.task_died", task=name, exc_info=error)
        if self._on_death is not None:
            self._on_death(name, error)
        self.failed.set()


async def first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.create_task(event.wait(), name="first") for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def unless(stopped: asyncio.Event, name: str, part: Coroutine[Any, Any, None]) -> bool:
    """Do a part of a start, until somebody wants to stop, and say whether to go on. Raises what it raises."""
    doing = asyncio.create_task(part, name=name)
    stop = asyncio.create_task(stopped.wait(), name="stop")
    try:
        await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
    finally:
        stop.cancel()
        doing.cancel()
        await asyncio.wait({doing})
    return not stopped.is_set()
