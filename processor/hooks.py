"""What an application has done when an attempt has ended: hooks of a handler, and what they are told."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from processor.errors import UsageError
from processor.job import Job, JobStatus
from processor.resources import wanted_by

HookFunction = Callable[..., Any]
"""``async def`` or ``def``: takes an :class:`Ended`, then resources by name; returns nothing."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt of a job ended. The database has it already; nothing here changes it."""

    job: Job
    """As it was claimed for this attempt: id, kind, queue, owner, payload, attempt, tags and more."""
    status: JobStatus
    """What the job is now: ``completed``, ``partial``, ``failed``, or ``pending``: it is tried again."""
    result: Any = None
    """What the handler returned, as JSON; None unless the job is completed."""
    error_code: str | None = None
    """Why the attempt failed; None if the job is completed."""
    error_message: str | None = None
    run_at: datetime | None = None
    """When it is tried again; None if the job has ended."""
    client: Callable[[], Any] = field(repr=False, kw_only=True)

    @property
    def supabase(self) -> Any:
        """A ready client with the worker's rights: RLS does not limit it.

        For an ``async def`` it is the one that ``job.supabase`` is; for a ``def`` the blocking kind.
        """
        return self.client()


@dataclass(frozen=True, slots=True)
class Hook:
    """One declared hook, and the names of the resources that its function takes."""

    name: str
    """When it runs: ``on_success``, ``on_failure`` or ``on_retry``."""
    kind: str
    function: HookFunction
    resources: tuple[str, ...]

    @property
    def blocks(self) -> bool:
        """Whether it is a plain function, which needs a thread."""
        return not inspect.iscoroutinefunction(self.function)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.name} of {self.kind!r}, {_where(self.function)}"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Those of one handler."""

    on_success: Hook | None = None
    on_failure: Hook | None = None
    on_retry: Hook | None = None

    def __iter__(self) -> Iterator[Hook]:
        return (hook for hook in (self.on_success, self.on_failure, self.on_retry) if hook is not None)

    def __bool__(self) -> bool:
        return not (self.on_success is self.on_failure is self.on_retry is None)

    def of(self, status: JobStatus) -> Hook | None:
        """Return what an attempt calls that has made this of its job; of ``pending`` it failed."""
        match status:
            case JobStatus.COMPLETED:
                return self.on_success
            case JobStatus.FAILED | JobStatus.PARTIAL:
                return self.on_failure
            case JobStatus.PENDING:
                return self.on_retry
        return None


def declared(
    kind: str,
    on_success: HookFunction | None,
    on_failure: HookFunction | None,
    on_retry: HookFunction | None,
) -> Hooks:
    """Read the hooks of a handler; raises :class:`UsageError` where one of them cannot be called."""
    return Hooks(
        _declared("on_success", kind, on_success),
        _declared("on_failure", kind, on_failure),
        _declared("on_retry", kind, on_retry),
    )


def _declared(name: str, kind: str, function: HookFunction | None) -> Hook | None:
    if function is None:
        return None
    if not callable(function) or isinstance(function, type):
        raise UsageError(f"{name}={function!r} of {kind!r}: give a function, without calling it.")
    place = f"{name} of {kind!r}, {_where(function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"The {place}, must not yield.")
    by_position = {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in by_position:
        raise UsageError(f"The {place}, must take one argument, (ended: Ended), and then resources by name.")
    return Hook(name, kind, function, wanted_by(function, after=1))


def _where(function: HookFunction) -> str:
    """Say where it is defined; what has no name of its own, as a ``functools.partial``, shows itself."""
    if not hasattr(function, "__qualname__"):
        return repr(function)
    return f"{function.__module__}.{function.__qualname__}"
