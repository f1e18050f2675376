"""Functions around every handler: the first that was declared is the outermost."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from processor.context import JobContext
from processor.errors import UsageError
from processor.resources import takes, wanted_by

Next = Callable[[JobContext[Any]], Awaitable[Any]]
"""What a middleware calls for the rest of the way: the next one, at last the handler."""


@dataclass(frozen=True, slots=True)
class Middleware:
    """One declared middleware, and the names of the resources that its function takes."""

    function: Callable[..., Awaitable[Any]]
    resources: tuple[str, ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"middleware {self.function.__module__}.{self.function.__qualname__}"


def declared(function: Callable[..., Awaitable[Any]]) -> Middleware:
    """Read a middleware from its function; raises :class:`UsageError` where that cannot be one."""
    if not inspect.iscoroutinefunction(function):
        raise UsageError(f"The middleware {function!r} must be `async def name(job, call_next)`.")
    if not takes(function, 2):
        raise UsageError(
            f"The middleware {function.__module__}.{function.__qualname__} must take (job, call_next), "
            "then resources by name; it ends with `return await call_next(job)`."
        )
    return Middleware(function, wanted_by(function, after=2))


def around(call: Next, layers: Sequence[Middleware], resources: Mapping[str, Any]) -> Next:
    """Return ``call`` with all layers around it."""
    for layer in reversed(layers):
        given = {name: resources[name] for name in layer.resources}
        call = partial(_through, layer.function, call, given)
    return call


async def _through(
    function: Callable[..., Awaitable[Any]], call: Next, given: dict[str, Any], job: JobContext[Any]
) -> Any:
    return await function(job, call, **given)
