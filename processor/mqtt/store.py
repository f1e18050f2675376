"""When what waits goes to disk, and when it comes back: in a thread of its own, in batches."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import UUID

import structlog

from processor.config import Settings
from processor.mqtt.backlog import Backlog, End
from processor.mqtt.messages import Message, Scribe
from processor.mqtt.outbox import Depth, Outbox

IN_MEMORY = 20_000
"""Ends of jobs that may wait in memory while there is a broker; without one, all go to disk."""
_LOW = 500
"""When fewer wait there, those on disk have their turn."""
_BATCH = 500
_AT_ONCE = 100
"""Ends written to disk in one go: turning them into messages takes the event loop."""
_EVERY = 0.2
_CLEAR_EVERY = 1.0

T = TypeVar("T")

log = structlog.get_logger("processor.mqtt")


class Store:
    """The outbox as the event loop sees it; ``on_lost`` hears that ends of jobs found no room there."""

    def __init__(
        self,
        settings: Settings,
        worker_id: UUID,
        backlog: Backlog,
        scribe: Scribe,
        *,
        on_lost: Callable[[], None],
    ) -> None:
        self._outbox = Outbox(
            settings.spool_dir, worker_id, max_bytes=settings.mqtt_outbox_max_mb * 1_000_000
        )
        self._in_memory = Outbox(None, worker_id, max_bytes=settings.mqtt_outbox_max_mb * 1_000_000)
        self._directory = settings.spool_dir
        self._backlog = backlog
        self._scribe = scribe
        self._on_lost = on_lost
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mqtt-outbox")
        self._loaded = 0
        self._done: list[int] = []
        self._clears: list[str] = []
        self._cleared: list[str] = []
        self._look_at_clears = 0.0
        self._full = False
        self.depth = Depth(0, 0, 0)
        """How much was there when it was looked at last."""
        self.busy = False
        """Ends are on their way to the disk."""

    @property
    def behind(self) -> bool:
        """Whether more waits than the broker takes at once."""
        return self.depth.ends > 0 or len(self._backlog.ends) > _LOW

    async def open(self) -> None:
        """Begin, with what dead processes left; without the disk, if that fails."""
        try:
            adopted = await self._do(lambda: self._outbox.open(self._scribe.prefix))
            if adopted:
                log.info("mqtt.outbox_adopted", ends=adopted)
        except (OSError, sqlite3.Error) as error:
            log.error(  # noqa: TRY400  it says all
                "mqtt.outbox_failed",
                directory=str(self._directory),
                error=str(error),
                then="it is kept in memory",
            )
            self._outbox = self._in_memory
            await self._do(lambda: self._outbox.open(self._scribe.prefix))
        self.depth = await self._do(lambda: self._outbox.depth)

    async def run(self, connected: Callable[[], bool], stir: Callable[[], None]) -> None:
        """Move ends between memory and disk, until cancelled."""
        was = False
        while True:
            await asyncio.sleep(_EVERY)
            now = connected()
            if was and not now:
                self._unload()
            was = now
            await self._forget()
            # without a broker all go to disk; with a slow one, what is too much
            if len(self._backlog.ends) > (IN_MEMORY if now else 0):
                await self._keep(IN_MEMORY // 2 if now else 0)
            if now and (await self._load() | await self._clear()):
                stir()

    async def close(self) -> None:
        """Keep what is in memory, and leave it to heirs."""
        self._unload()
        await self._forget()
        await self._keep(0)
        await self._do(self._outbox.close)
        self._thread.shutdown()

    def told(self, message: Message, *, five: bool) -> None:
        """Hear that the broker has taken a message, or will never."""
        if message.row is not None:
            self._done.append(message.row)
        if not message.payload:
            self._cleared.append(message.topic)
        elif message.terminal and not five:
            self._clears.append(message.topic)

    def clear_later(self, topic: str) -> None:
        """Have a topic cleared when its time is over, by whoever inherits the outbox."""
        self._clears.append(topic)

    def _unload(self) -> None:
        """Take out of memory what is on disk anyway."""
        kept = [end for end in self._backlog.ends if end.message is None or end.message.row is None]
        self._backlog.ends.clear()
        self._backlog.ends.extend(kept)
        self._loaded = 0

    async def _keep(self, leave: int) -> None:
        """Write ends to disk until so many are left in memory."""
        self.busy = True
        try:
            while len(self._backlog.ends) > leave:
                batch: list[End] = []
                # the youngest, so that those in memory are sent in their order
                while len(self._backlog.ends) > leave and len(batch) < _AT_ONCE:
                    batch.append(self._backlog.ends.pop())
                messages = [end.write(self._scribe) for end in batch]
                fresh = [message for message in messages if message.row is None]
                rows = [message.row - 1 for message in messages if message.row is not None]
                self._loaded = min([self._loaded, *rows])  # those are there already
                if fresh and not await self._do(lambda fresh=fresh: self._outbox.put(fresh)):  # type: ignore[misc]  # bound early
                    self._lose(len(fresh))
            self.depth = await self._do(lambda: self._outbox.depth)
        finally:
            self.busy = False

    def _lose(self, count: int) -> None:
        self._on_lost()
        if not self._full:
            self._full = True
            log.error(
                "mqtt.outbox_full",
                ends=count,
                bytes=self.depth.bytes,
                then="the ends of jobs are read from the database when the broker is back",
                hint="PROCESSOR_MQTT_OUTBOX_MAX_MB, or room on the disk.",
            )

    async def _load(self) -> bool:
        if self.depth.ends == 0 or len(self._backlog.ends) > _LOW:
            return False
        loaded, most = self._loaded, _BATCH
        messages = await self._do(lambda: self._outbox.load(loaded, most))
        for message in messages:
            self._backlog.ends.append(End(0, message=message))
            self._loaded = message.row or self._loaded
        return bool(messages)

    async def _clear(self) -> bool:
        """Take back what a broker without expiry keeps of jobs whose time is over."""
        if self.depth.clears == 0 or time.monotonic() < self._look_at_clears:
            return False
        self._look_at_clears = time.monotonic() + _CLEAR_EVERY
        topics = await self._do(lambda: self._outbox.due(time.time(), _BATCH))
        for topic in topics:
            self._backlog.say(self._scribe.nothing(topic))
        return bool(topics)

    async def _forget(self) -> None:
        """Have the disk know what the broker has taken."""
        done, self._done = self._done, []
        clears, self._clears = self._clears, []
        cleared, self._cleared = self._cleared, []
        if not (done or clears or cleared):
            return
        at = time.time() + self._scribe.retain_seconds

        def forget() -> Depth:
            self._outbox.done(done)
            self._outbox.clear_later(clears, at)
            self._outbox.cleared(cleared)
            return self._outbox.depth

        self.depth = await self._do(forget)
        if done:
            self._full = False

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
