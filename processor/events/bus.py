"""The bus: brings what happens to whoever wants to know, and lets none of them hold anything up.

A listener hears at once, within the call, and takes microseconds: it counts. A subscriber has a queue and a
task of its own: however slow it is, however it fails, it costs nobody else anything but memory.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from processor.events.lifecycle import Event
from processor.observer import NOBODY, Observer

_IN_A_ROW = 50
"""Events that a subscriber may take without waiting for anything, before others have their turn."""
_CANCEL_SECONDS = 1.0
"""How long a subscriber may take to end once it is cancelled."""

Hear = Callable[[Any], None]
E = TypeVar("E", bound=Event)

log = structlog.get_logger("processor.events")


class Bus:
    """Hears from every room what happens, in the event loop, and passes it on.

    ``observer`` hears of what subscribers were too slow for; ``on_end`` of every subscriber's task that ends.
    """

    def __init__(
        self,
        observer: Observer = NOBODY,
        on_end: Callable[[asyncio.Task[None]], None] = lambda _task: None,
    ) -> None:
        self._observer = observer
        self._on_end = on_end
        self._listeners: list[tuple[str, Hear, tuple[type[Event], ...]]] = []
        self._heard: dict[type[Event], tuple[tuple[str, Hear], ...]] = {}
        self._wanted: dict[type[Event], bool] = {}
        self._subscriptions: list[Subscription] = []

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody wants to hear of such events, or of some of them: if not, they need not be made."""
        if kind not in self._wanted:
            self._wanted[kind] = any(
                issubclass(kind, kinds) or any(issubclass(one, kind) for one in kinds)
                for _name, _hear, kinds in self._listeners
            )
        return self._wanted[kind]

    def publish(self, event: Event) -> None:
        """Tell everybody who wants to know. Never waits, never raises."""
        kind = type(event)
        for name, hear in self._heard[kind] if kind in self._heard else self._find(kind):
            try:
                hear(event)
            except Exception:
                log.exception("events.listener_failed", listener=name, of=event.name)

    def listen(self, name: str, hear: Callable[[E], None], kind: type[E]) -> None:
        """Have ``hear`` called within every publication of such an event, or of one derived from it."""
        self._set_listeners([*self._listeners, (name, hear, (kind,))])

    def subscribe(
        self,
        name: str,
        handler: Callable[[Event], Awaitable[None]],
        *,
        capacity: int = 1000,
        kinds: tuple[type[Event], ...] = (Event,),
    ) -> "Subscription":
        """Have ``handler`` awaited for each event of these kinds, in their order, in a task of its own.

        Must be called in the event loop. If more than ``capacity`` events wait, the oldest of those that are
        droppable go, and are counted; all others are kept, however many they are. What the handler raises is
        logged, and it goes on with the next event.
        """
        subscription = Subscription(name, handler, capacity, self._observer)
        subscription.task.add_done_callback(self._on_end)
        self._subscriptions.append(subscription)
        self._set_listeners([*self._listeners, (name, subscription.put, kinds)])
        return subscription

    async def close(self, within: float) -> None:
        """Let subscribers finish what waits for them, all within so many seconds; then stop them.

        Of what is published from now on they hear nothing.
        """
        subscriptions, self._subscriptions = self._subscriptions, []
        if not subscriptions:
            return
        puts = {subscription.put for subscription in subscriptions}
        self._set_listeners([listener for listener in self._listeners if listener[1] not in puts])
        for subscription in subscriptions:
            subscription.finish()
        tasks = {subscription.task for subscription in subscriptions}
        try:
            await asyncio.wait(tasks, timeout=within)
        finally:
            for subscription in subscriptions:
                subscription.stop()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)

    def _set_listeners(self, listeners: list[tuple[str, Hear, tuple[type[Event], ...]]]) -> None:
        self._listeners = listeners
        self._heard.clear()
        self._wanted.clear()

    def _find(self, kind: type[Event]) -> tuple[tuple[str, Hear], ...]:
        found = tuple((name, hear) for name, hear, kinds in self._listeners if issubclass(kind, kinds))
        self._heard[kind] = found
        return found


class Subscription:
    """One subscriber: what waits for it, and the task that brings it there."""

    def __init__(
        self, name: str, handler: Callable[[Event], Awaitable[None]], capacity: int, observer: Observer
    ) -> None:
        self.name = name
        self.dropped = 0
        """Events that it was too slow for."""
        self._handler = handler
        self._capacity = capacity
        self._observer = observer
        self._number = 0
        self._waiting: OrderedDict[int, Event] = OrderedDict()
        self._droppable: deque[int] = deque()
        self._handling = False
        self._behind = False
        self._closing = False
        self._wanted = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"events:{name}")

    @property
    def waiting(self) -> int:
        """How many events it has yet to hear of."""
        return len(self._waiting)

    def put(self, event: Event) -> None:
        """Have it hear of an event, in its turn."""
        self._number += 1
        self._waiting[self._number] = event
        if event.droppable:
            self._droppable.append(self._number)
        if len(self._waiting) > self._capacity and self._droppable:
            self._drop()
        self._wanted.set()

    def finish(self) -> None:
        """End when nothing waits any more."""
        self._closing = True
        self._wanted.set()

    def stop(self) -> None:
        """End now, if it has not ended, and say what it has not heard of."""
        if not self.task.done():
            log.error(
                "events.lost",
                subscriber=self.name,
                events=len(self._waiting) + self._handling,
                reason="there was no time left on the way out",
            )
            self.task.cancel()

    def _drop(self) -> None:
        del self._waiting[self._droppable.popleft()]
        self.dropped += 1
        self._observer.event_dropped(self.name)
        if not self._behind:
            self._behind = True
            log.warning(
                "events.dropped",
                subscriber=self.name,
                waiting=len(self._waiting),
                reason="it is too slow: it hears of the latest progress only, until it has caught up",
            )

    def _take(self) -> Event:
        number, event = self._waiting.popitem(last=False)
        if self._droppable and self._droppable[0] == number:
            self._droppable.popleft()
        return event

    async def _run(self) -> None:
        in_a_row = 0
        while True:
            while self._waiting:
                self._handling = True
                await self._handle(self._take())
                self._handling = False
                in_a_row += 1
                if in_a_row % _IN_A_ROW == 0:
                    await asyncio.sleep(0)
            self._behind = False
            if self._closing:
                return
            self._wanted.clear()
            await self._wanted.wait()

    async def _handle(self, event: Event) -> None:
        try:
            await self._handler(event)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # what it awaited was cancelled by others: a failure like any other
            log.exception("events.subscriber_failed", subscriber=self.name, of=event.name)
        except Exception:
            log.exception("events.subscriber_failed", subscriber=self.name, of=event.name)
