"""What an application hears of while it happens: subscribers of its daemon's bus."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from processor.errors import UsageError
from processor.events.bus import Bus
from processor.events.lifecycle import Event
from processor.resources import takes, wanted_by

SubscriberFunction = Callable[..., Awaitable[None]]
"""``async def``: takes an :class:`Event`, then resources by name; returns nothing."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """One declared subscriber: what it wants to hear of, and the names of the resources that it takes."""

    function: SubscriberFunction
    kinds: tuple[type[Event], ...]
    capacity: int
    resources: tuple[str, ...]

    @property
    def name(self) -> str:
        """What logs and metrics call it."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"subscriber {self.name}"


def declared(function: SubscriberFunction, kinds: tuple[type[Event], ...], capacity: int) -> Subscriber:
    """Read a subscriber from its function; raises :class:`UsageError` where that cannot be one."""
    if not inspect.iscoroutinefunction(function):
        raise UsageError(
            f"The subscriber {function!r} must be `async def name(event)`; give what blocks to "
            "`await asyncio.to_thread(…)`."
        )
    if not takes(function, 1):
        raise UsageError(
            f"The subscriber {function.__module__}.{function.__qualname__} must take (event), "
            "then resources by name."
        )
    if capacity < 1:
        raise UsageError(f"capacity={capacity}: at least one event must be able to wait.")
    return Subscriber(function, kinds, capacity, wanted_by(function, after=1))


def check_kinds(kinds: Iterable[Any]) -> None:
    """Raise :class:`UsageError` for what is no event's type."""
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, Event):
            raise UsageError(
                f"@app.subscriber({kind!r}): give types from processor.events, "
                "such as @app.subscriber(JobFinished); with parentheses, to hear all of them."
            )


def attend(subscribers: Iterable[Subscriber], bus: Bus, resources: Mapping[str, Any]) -> None:
    """Subscribe them; their resources are there. Must be called in the event loop."""
    for each in subscribers:
        given = {name: resources[name] for name in each.resources}
        bus.subscribe(each.name, partial(each.function, **given), capacity=each.capacity, kinds=each.kinds)
