"""The registry that users import: handlers, with the name and the price of what each does, and schedules."""

import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import TypeAdapter

from processor import hooks, middleware, resources, subscribers
from processor.errors import UsageError, did_you_mean
from processor.events.lifecycle import Event
from processor.hooks import HookFunction, Hooks
from processor.middleware import Middleware
from processor.resources import Resource
from processor.retry import Classifier
from processor.signature import Sort, payload_adapter, payload_schema, sort_of, where
from processor.subscribers import Subscriber
from processor.timetable import CatchUp, Schedule, scheduled, stored_payload

Function = Callable[..., Any]
F = typing.TypeVar("F", bound=Callable[..., Any])

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")
_QUEUE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_SCHEDULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,89}")
MAX_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class Handler:
    """One declared handler."""

    kind: str
    function: Function
    sort: Sort
    queue: str
    payload: TypeAdapter[Any]
    payload_schema: dict[str, Any]
    credits_per_job: int
    credits_per_item: int
    public: bool
    max_items: int | None
    item_concurrency: int | None
    timeout: float | None
    description: str | None
    resources: tuple[str, ...]
    hooks: Hooks = field(default_factory=Hooks)

    def declaration(self) -> dict[str, Any]:
        """Return what the database is told about it."""
        return {
            "kind": self.kind,
            "queue": self.queue,
            "public": self.public,
            "credits_per_job": self.credits_per_job,
            "credits_per_item": self.credits_per_item,
            "payload_schema": self.payload_schema,
            "max_items": self.max_items,
            "description": self.description,
        }


class Processor:
    """The handlers and schedules of an application.

    ::

        app = Processor()

        @app.job("translate_card", queue="translation", credits_per_item=2, public=True)
        async def translate(job: JobContext[Card]) -> dict: ...

        @app.cron("0 3 * * *", timezone="Europe/Berlin")
        async def nightly_report(job: JobContext) -> dict: ...
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._schedules: dict[str, Schedule] = {}
        self._classifier = Classifier()
        self._middlewares: list[Middleware] = []
        self._resources: dict[str, Resource] = {}
        self._subscribers: list[Subscriber] = []

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by kind."""
        return self._handlers

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """The schedules by name."""
        return self._schedules

    @property
    def classifier(self) -> Classifier:
        """What exceptions mean to this application."""
        return self._classifier

    @property
    def middlewares(self) -> Sequence[Middleware]:
        """What goes around every handler, the outermost first."""
        return self._middlewares

    @property
    def subscribers(self) -> Sequence[Subscriber]:
        """What hears of the daemon's events."""
        return self._subscribers

    def resources_of(self, kinds: Collection[str]) -> tuple[Resource, ...]:
        """Return the resources that handlers of these kinds need, and middleware; each after its own needs.

        Raises :class:`UsageError` where something needs a resource that is not declared.
        """
        wanted = {
            f"handler of {handler.kind!r}, {where(handler.function)}": handler.resources
            for handler in self._handlers.values()
            if handler.kind in kinds
        }
        for handler in self._handlers.values():
            if handler.kind in kinds:
                wanted |= {hook.title: hook.resources for hook in handler.hooks}
        wanted |= {layer.title: layer.resources for layer in self._middlewares}
        wanted |= {each.title: each.resources for each in self._subscribers}
        return resources.in_order(self._resources, wanted)

    def middleware(self, function: F) -> F:
        """Put ``async def function(job, call_next)`` around every handler, inside those declared before.

        What it returns is the job's result: ``return await call_next(job)``. What it raises counts as if the
        handler had raised it. It may take resources too.

        Raises :class:`UsageError` where it cannot work.
        """
        self._middlewares.append(middleware.declared(function))
        return function

    def resource(self, function: F) -> F:
        """Start something once for all jobs, and give it to every handler with a parameter of its name.

        A function that yields is resumed when the daemon has ended its jobs; one that returns only starts
        something. ``def`` runs in a thread, for what blocks, such as loading a model. Its own parameters are
        other resources. Only what the served handlers need is started, before the daemon takes jobs.

        Raises :class:`UsageError` where it cannot work.
        """
        resource = resources.declared(function)
        if resource.name in self._resources:
            other = self._resources[resource.name].function
            raise UsageError(
                f"Two resources {resource.name!r}: {where(other)} and {where(function)}. Rename one."
            )
        resources.refuse_circle({**self._resources, resource.name: resource}, resource.name)
        self._resources[resource.name] = resource
        return function

    def subscriber(self, *kinds: type[Event], capacity: int = 1000) -> Callable[[F], F]:
        """Have ``async def function(event)`` awaited for what happens in the daemon, one event at a time.

        ``kinds`` are types from :mod:`processor.events`; none: all events. It may take resources
        too. It holds up no job: while it is slow, events wait, and of more than ``capacity`` the oldest
        progress is dropped, counted, and nothing else. What it raises is logged. What a daemon that dies had
        yet to tell it is gone: for what must not be missed there are webhooks.

        Raises :class:`UsageError` where it cannot work.
        """
        subscribers.check_kinds(kinds)

        def declare(function: F) -> F:
            self._subscribers.append(subscribers.declared(function, kinds or (Event,), capacity))
            return function

        return declare

    def error(
        self,
        error: type[BaseException],
        code: str,
        *,
        retryable: bool | None = None,
        retry_after: Callable[[BaseException], float | None] | None = None,
    ) -> Self:
        """Give an exception type a code of its own, and say whether trying again may help.

        ``retry_after`` may read the seconds to wait from the exception.
        """
        self._classifier.add(error, code, retryable=retryable, retry_after=retry_after)
        return self

    def job(
        self,
        kind: str,
        *,
        queue: str = "default",
        credits_per_job: int = 0,
        credits_per_item: int = 0,
        public: bool = False,
        max_items: int | None = None,
        item_concurrency: int | None = None,
        timeout: float | None = None,
        process: bool = False,
        description: str | None = None,
        on_success: HookFunction | None = None,
        on_failure: HookFunction | None = None,
        on_retry: HookFunction | None = None,
    ) -> Callable[[F], F]:
        """Declare the handler of a kind of job.

        An ``async def`` takes a :class:`JobContext` and runs in the event loop; a ``def`` takes a
        :class:`SyncJobContext` and runs in a thread, or with ``process`` in a process that can be killed.
        ``public`` lets signed-in users create such jobs. Credits are what a job, and each of its items,
        costs its owner. ``timeout`` is in seconds and limits one attempt, beside the queue's own.
        ``description`` defaults to the first line of the docstring.

        Hooks are called with an :class:`Ended` when an attempt has ended and the database has taken
        that: ``on_success`` when the job is completed, ``on_failure`` when it failed for good (wholly or in
        part), ``on_retry`` when it is tried again. They may be ``def`` too, take resources, have 30 seconds
        and change nothing of the job. They run at most once: a daemon that dies in between calls none.

        Raises :class:`UsageError` where the declaration cannot work.
        """
        if not isinstance(kind, str):
            raise UsageError('Write @app.job("name_of_the_job"), with the name in parentheses.')
        if not _KIND.fullmatch(kind):
            raise UsageError(
                _bad_name("kind", kind, "1 to 100 characters of A-Z, a-z, 0-9, _ . : and -", _KIND)
            )
        if not _QUEUE.fullmatch(queue):
            raise UsageError(_bad_name("queue", queue, "1 to 63 characters of a-z, 0-9, _ . and -", _QUEUE))
        for name, price in (("credits_per_job", credits_per_job), ("credits_per_item", credits_per_item)):
            if isinstance(price, bool) or not isinstance(price, int) or price < 0:
                raise UsageError(f"{name}={price!r} of {kind!r}: credits are whole numbers, 0 or more.")
        if credits_per_job and credits_per_item:
            raise UsageError(f"{kind!r} has two prices: give credits_per_job or credits_per_item, not both.")
        for name, count, most in (
            ("max_items", max_items, MAX_ITEMS),
            ("item_concurrency", item_concurrency, 1000),
        ):
            if count is not None and not 1 <= count <= most:
                raise UsageError(f"{name}={count!r} of {kind!r} must be from 1 to {most}.")
        if timeout is not None and timeout <= 0:
            raise UsageError(f"timeout={timeout!r} of {kind!r} must be more than 0 seconds.")

        def declare(function: F) -> F:
            if kind in self._handlers:
                other = self._handlers[kind].function
                raise UsageError(
                    f"Two handlers for {kind!r}: {where(other)} and {where(function)}. Rename one."
                )
            sort = sort_of(kind, function, process=process)
            payload = payload_adapter(kind, function, sort)
            needed = resources.wanted_by(function, after=1)
            if needed and sort is Sort.PROCESS:
                raise UsageError(
                    f"The handler of {kind!r}, {where(function)}, takes {needed[0]!r}, but with process=True "
                    "it runs where no resource is. Make one there, in a function with @functools.cache."
                )
            self._handlers[kind] = Handler(
                kind=kind,
                function=function,
                sort=sort,
                queue=queue,
                payload=payload,
                payload_schema=payload_schema(kind, payload),
                credits_per_job=credits_per_job,
                credits_per_item=credits_per_item,
                public=public,
                max_items=max_items,
                item_concurrency=item_concurrency,
                timeout=timeout,
                description=description or (inspect.getdoc(function) or "").partition("\n")[0] or None,
                resources=needed,
                hooks=hooks.declared(kind, on_success, on_failure, on_retry),
            )
            return function

        return declare

    def cron(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        kind: str | None = None,
        payload: Any = None,
        items: Sequence[Any] | None = None,
        priority: int = 0,
        catch_up: CatchUp = "last",
        queue: str = "default",
        item_concurrency: int | None = None,
        timeout: float | None = None,
        process: bool = False,
        description: str | None = None,
        on_success: HookFunction | None = None,
        on_failure: HookFunction | None = None,
        on_retry: HookFunction | None = None,
    ) -> Callable[[F], F]:
        """Declare a handler and run it by the clock.

        ``expression`` is minute, hour, day of month, month and weekday, on the clock of ``timezone``. Exactly
        one job is made each time, however many workers there are; :attr:`JobContext.tick` says for when.
        ``kind``, by default the function's name, is also the schedule's name; the rest is as in :meth:`job`
        and :meth:`schedule`.

        Raises :class:`UsageError` where the declaration cannot work.
        """
        if not isinstance(expression, str):
            raise UsageError('Write @app.cron("0 3 * * *"), with the time in parentheses.')

        def declare(function: F) -> F:
            name = kind or str(getattr(function, "__name__", ""))
            self._check_schedule(name)
            schedule = scheduled(name, expression, timezone, name, items, priority, catch_up)
            self.job(
                name,
                queue=queue,
                item_concurrency=item_concurrency,
                timeout=timeout,
                process=process,
                description=description,
                on_success=on_success,
                on_failure=on_failure,
                on_retry=on_retry,
            )(function)
            self._schedules[name] = self._with_payload(schedule, payload)
            return function

        return declare

    def schedule(
        self,
        name: str,
        expression: str,
        *,
        kind: str,
        payload: Any = None,
        items: Sequence[Any] | None = None,
        timezone: str = "UTC",
        priority: int = 0,
        catch_up: CatchUp = "last",
    ) -> Self:
        """Make a job of a declared kind by the clock, with this payload and these items.

        ``expression`` is minute, hour, day of month, month and weekday, on the clock of ``timezone``.
        ``catch_up`` says what becomes of times at which no worker was alive: with ``last`` one job, for the
        last of them; with ``all`` a job for each; with ``none`` what is more than a minute late is left out.
        What an operator changes in ``job_schedules`` wins over what is declared here.

        Raises :class:`UsageError` where the declaration cannot work.
        """
        self._check_schedule(name)
        schedule = scheduled(name, expression, timezone, kind, items, priority, catch_up)
        if kind not in self._handlers:
            raise UsageError(
                f"Schedule {name!r}: there is no handler for {kind!r}.{did_you_mean(kind, self._handlers)} "
                "Declare the handler first."
            )
        self._schedules[name] = self._with_payload(schedule, payload)
        return self

    def _check_schedule(self, name: str) -> None:
        if not isinstance(name, str) or not _SCHEDULE.fullmatch(name):
            rule = "1 to 90 characters of A-Z, a-z, 0-9, _ . : and -"
            raise UsageError(_bad_name("schedule", str(name), rule, _SCHEDULE))
        if name in self._schedules:
            raise UsageError(f"Two schedules {name!r}: rename one.")

    def _with_payload(self, schedule: Schedule, payload: Any) -> Schedule:
        adapter = self._handlers[schedule.kind].payload
        return replace(schedule, payload=stored_payload(schedule, adapter, payload))


def _bad_name(what: str, name: str, rule: str, pattern: re.Pattern[str]) -> str:
    suggestion = re.sub(r"[^a-z0-9_.-]+", "_", name.strip().lower())[:63].strip("_.-")
    near = f" Did you mean {suggestion!r}?" if pattern.fullmatch(suggestion) else ""
    return f"The {what} {name!r} must be {rule}.{near}"
