"""What handlers share, such as an HTTP client or a model: declared, started and stopped with the daemon."""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from processor.errors import ResourceFailed, UsageError, did_you_mean

OnDeath = Callable[[str, BaseException | None], None]

log = structlog.get_logger("processor.resources")


@dataclass(frozen=True, slots=True)
class Resource:
    """One declared resource, and the names of others that its function takes."""

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"resource {self.name!r}, {self.function.__module__}.{self.function.__qualname__}"


def declared(function: Callable[..., Any]) -> Resource:
    """Read a resource from its function; raises :class:`UsageError` where that cannot be one."""
    if not inspect.isfunction(function) or not function.__name__.isidentifier():
        raise UsageError(
            f"@app.resource belongs on a function, whose name is the resource's; this is {function!r}."
        )
    resource = Resource(function.__name__, function, wanted_by(function, after=0))
    inner = inspect.unwrap(function)
    if inner is not function and (inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)):
        raise UsageError(
            f"The {resource.title}: leave @contextmanager away, a function that yields is enough."
        )
    return resource


def takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether so many arguments may be given to a function by their position."""
    by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    first = list(inspect.signature(function).parameters.values())[:count]
    return len(first) == count and all(parameter.kind in by_position for parameter in first)


def wanted_by(function: Callable[..., Any], *, after: int) -> tuple[str, ...]:
    """Return the names of the resources that a function takes: its parameters without a default.

    The first ``after`` parameters are others'. Raises :class:`UsageError` for one without a name to callers.
    """
    parameters = list(inspect.signature(function).parameters.values())[after:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    for parameter in required:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UsageError(
                f"{function.__module__}.{function.__qualname__} takes {parameter.name!r} by position only; "
                "a resource is given by name: put it behind the `/`."
            )
    return tuple(parameter.name for parameter in required)


def in_order(known: Mapping[str, Resource], wanted: Mapping[str, Collection[str]]) -> tuple[Resource, ...]:
    """Return the resources that are wanted, and those that they need: each after its own needs.

    ``wanted`` has what wants them, in words, and their names.

    Raises :class:`UsageError` for a name that nothing is declared for.
    """
    ordered: dict[str, Resource] = {}

    def add(name: str, title: str) -> None:
        if name in ordered:
            return
        resource = known.get(name)
        if resource is None:
            raise UsageError(
                f"The {title}, takes {name!r}, and there is no such resource.{did_you_mean(name, known)} "
                f"Declare it with @app.resource on a function called {name}, or give the parameter a default."
            )
        for need in resource.needs:
            add(need, resource.title)
        ordered[name] = resource

    for title, names in wanted.items():
        for name in names:
            add(name, title)
    return tuple(ordered.values())


def refuse_circle(known: Mapping[str, Resource], name: str, path: tuple[str, ...] = ()) -> None:
    """Raise :class:`UsageError` if a resource needs itself, by way of others or not."""
    if name in path:
        circle = " → ".join((*path[path.index(name) :], name))
        raise UsageError(f"Resources cannot need each other in a circle: {circle}. Take one need away.")
    for need in known[name].needs if name in known else ():
        refuse_circle(known, need, (*path, name))


class Resources:
    """Those of one daemon, each held by a task of its own, in which it starts and stops.

    ``on_death`` hears the name of one that ends by itself, and why. ``stop_seconds`` is how long one may take
    to stop; then it is left behind.
    """

    def __init__(self, plan: Sequence[Resource], on_death: OnDeath, *, stop_seconds: float = 10.0) -> None:
        self.values: dict[str, Any] = {}
        """What was made, by name; all of it once :meth:`start` has returned."""
        self.starting: str | None = None
        """Which one is being started."""
        self._plan = plan
        self._on_death = on_death
        self._stop_seconds = stop_seconds
        self._held: list[_Held] = []

    async def start(self) -> None:
        """Start all, one after the other; raises :class:`ResourceFailed` for the first that cannot be.

        Whatever comes of it, :meth:`stop` stops those that were started.
        """
        for resource in self._plan:
            self.starting = resource.name
            began = time.monotonic()
            held = _Held(resource, {need: self.values[need] for need in resource.needs}, self._on_death)
            self._held.append(held)
            try:
                self.values[resource.name] = await held.started()
            except Exception as error:
                log.exception("resource.failed", resource=resource.name)
                raise ResourceFailed(
                    f"The {resource.title}, could not be started: {type(error).__name__}: {error}"
                ) from error
            log.info("resource.started", resource=resource.name, ms=round((time.monotonic() - began) * 1000))
        self.starting = None

    async def stop(self) -> None:
        """Stop all, in reverse order; an error of one is logged and keeps no other from being stopped."""
        while self._held:
            await self._held.pop().stop(self._stop_seconds)


class _Held:
    """A resource between its start and its stop."""

    def __init__(
        self,
        resource: Resource,
        needs: dict[str, Any],
        on_death: OnDeath,
    ) -> None:
        self._name = resource.name
        self._on_death = on_death
        self._ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._task = asyncio.create_task(
            self._hold(_opened(resource, needs)), name=f"resource:{resource.name}"
        )
        self._task.add_done_callback(self._ended)

    async def started(self) -> Any:
        """Return what the resource is, once it is there; raises what kept it from that."""
        return await self._ready

    async def stop(self, seconds: float) -> None:
        """Let it stop, for so long."""
        self._leave.set()
        if not self._ready.done() or self._ready.cancelled():
            self._task.cancel()  # it is still starting
        done, _ = await asyncio.wait({self._task}, timeout=seconds)
        if not done:
            log.error("resource.not_stopped", resource=self._name, after_s=seconds)
            self._task.cancel()

    async def _hold(self, opened: contextlib.AbstractAsyncContextManager[Any]) -> None:
        try:
            async with opened as value:
                if not self._ready.done():
                    self._ready.set_result(value)
                await self._leave.wait()
        except SystemExit as error:  # it would end the loop, and nothing be drained
            raise RuntimeError("it called sys.exit()") from error

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self._ready.done():
            self._ready.set_exception(error or RuntimeError("it was cancelled while it started"))
        elif not self._leave.is_set() and not self._ready.cancelled():
            self._on_death(self._name, error)
        elif error is not None:
            log.error("resource.stop_failed", resource=self._name, exc_info=error)


def _opened(resource: Resource, needs: dict[str, Any]) -> contextlib.AbstractAsyncContextManager[Any]:
    """Call the function of a resource so that all four sorts of it look the same."""
    function = resource.function
    if inspect.isasyncgenfunction(function):
        return contextlib.asynccontextmanager(function)(**needs)
    if inspect.iscoroutinefunction(function):
        return _awaited(function, needs)
    return _in_thread(resource, needs)


@contextlib.asynccontextmanager
async def _awaited(function: Callable[..., Any], needs: dict[str, Any]) -> AsyncIterator[Any]:
    yield await function(**needs)


@contextlib.asynccontextmanager
async def _in_thread(resource: Resource, needs: dict[str, Any]) -> AsyncIterator[Any]:
    """Start and stop it in a thread of its own: loading may take long, and some things know their thread."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Any] = loop.create_future()
    over: asyncio.Future[None] = loop.create_future()
    leave = threading.Event()

    def tell(future: asyncio.Future[Any], value: Any, error: BaseException | None = None) -> None:
        def set_it() -> None:
            if not future.done():
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(set_it)

    def hold() -> None:
        opened = contextlib.contextmanager(
            resource.function if inspect.isgeneratorfunction(resource.function) else _yielding(resource)
        )
        entered = False
        try:
            with opened(**needs) as value:
                entered = True
                tell(ready, value)
                leave.wait()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where it is waited for
            tell(over if entered else ready, None, error)
        else:
            tell(over, None)

    # a thread that no exit waits for: nothing can be done about one that hangs
    threading.Thread(target=hold, name=f"resource:{resource.name}", daemon=True).start()
    try:
        yield await ready
    finally:
        leave.set()
    await over


def _yielding(resource: Resource) -> Callable[..., Iterator[Any]]:
    def function(**needs: Any) -> Iterator[Any]:
        yield resource.function(**needs)

    return function
