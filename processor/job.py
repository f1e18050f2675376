"""The words of this package as values: a claimed job and what belongs to it, and the ways work can end."""

# Retry, Snooze, Wait, Cancel and Discard are raised to end a job, but they are decisions, not errors.
# ruff: noqa: N818

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Required, TypedDict
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class JobStatus(StrEnum):
    """The states of a job row."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a job with this status has come to its end."""
        return self not in {JobStatus.PENDING, JobStatus.PROCESSING}


class Item(BaseModel):
    """One unfinished unit of a claimed job."""

    model_config = ConfigDict(frozen=True)

    key: str
    position: int
    payload: Any = None
    attempts: int = 0


class DoneItem(BaseModel):
    """One unit of a claimed job that an earlier attempt completed."""

    model_config = ConfigDict(frozen=True)

    key: str
    position: int
    result: Any = None


class Checkpoint(BaseModel):
    """One completed step of a job; if its result did not fit into the claim, it is ``left_out``."""

    model_config = ConfigDict(frozen=True)

    name: str
    result: Any = None
    left_out: bool = False


class Child(BaseModel):
    """A job that is part of another one, as it was when that one was claimed or made it.

    Results come up to 4 MiB in all: those beyond are None here, and stand in the children's rows.
    """

    model_config = ConfigDict(frozen=True)

    id: UUID
    kind: str
    status: JobStatus = JobStatus.PENDING
    result: Any = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, well or not."""
        return self.status.ended


class ChildOptions(TypedDict, total=False):
    """What may be said about a child beside its kind and payload: names and meanings of ``create_job``.

    ``key`` is its name among its parent's children: spawning the same key again is the same child.
    """

    key: str
    items: Sequence[str | Mapping[str, Any]]
    queue: str
    priority: int
    run_at: datetime
    delay_seconds: float
    unique_key: str
    on_conflict: Literal["error", "replace"]
    max_attempts: int
    timeout_seconds: float
    tags: Sequence[str]
    trace_context: Mapping[str, str]


class NewChild(ChildOptions, total=False):
    """A child to be made, for ``spawn_all``."""

    kind: Required[str]
    payload: Any


OnChildFailure = Literal["continue", "fail"]
"""Whether a job goes on, or fails, when one of its children does not complete."""


class Job(BaseModel):
    """One job as a claim hands it over; ``attempt`` is the fence of everything written about it."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    queue: str
    kind: str
    owner_id: UUID | None = None
    priority: int = 0
    payload: dict[str, Any]
    attempt: int
    failures: int = 0
    max_attempts: int | None = None
    run_at: datetime
    created_at: datetime
    timeout_seconds: float | None = None
    items: tuple[Item, ...] = ()
    done: tuple[DoneItem, ...] = ()
    items_total: int = 0
    items_done: int = 0
    tags: tuple[str, ...] | None = None
    trace_context: Mapping[str, str] | None = None
    """What it was created within, for tracing: ``traceparent`` and ``tracestate``."""
    cancel_requested: bool = False
    parent_id: UUID | None = None
    children: tuple[Child, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()


class Decision(Exception):
    """What a handler may raise to end its job in another way than returning or failing."""


class Retry(Decision):
    """Try again; ``delay`` in seconds replaces the queue's own delay. It costs an attempt."""

    def __init__(
        self, reason: str = "the handler asked for another attempt", *, delay: float | None = None
    ) -> None:
        self.reason = reason
        self.delay = None if delay is None else _seconds("Retry", delay)
        super().__init__(reason)


class Snooze(Decision):
    """Look again after ``delay`` seconds. It costs no attempt."""

    def __init__(self, delay: float, reason: str = "snoozed by the handler") -> None:
        self.reason = reason
        self.delay = _seconds("Snooze", delay)
        super().__init__(reason)


class Wait(Decision):
    """Run the handler again, from the top, when the job's children have ended. It costs no attempt.

    Until then the job holds no slot. ``job.join()`` raises it when there is something to wait for.
    """

    def __init__(self, reason: str = "waiting for its children") -> None:
        self.reason = reason
        super().__init__(reason)


class Cancel(Decision):
    """End the job as cancelled: what was not done is refunded."""

    def __init__(self, reason: str = "cancelled by the handler") -> None:
        self.reason = reason
        super().__init__(reason)


class Discard(Decision):
    """End the job as failed at once, whatever attempts are left: what was not done is refunded."""

    def __init__(self, reason: str = "discarded by the handler") -> None:
        self.reason = reason
        super().__init__(reason)


def refuse_decision(result: object) -> None:
    """Raise a ``ValueError`` that teaches, if a decision was returned instead of raised."""
    if isinstance(result, Decision) or (isinstance(result, type) and issubclass(result, Decision)):
        name = (result if isinstance(result, type) else type(result)).__name__
        raise ValueError(f"the handler returned {name}; write `raise {name}(…)`")  # noqa: TRY004 - a result's value


def _seconds(name: str, delay: float) -> float:
    if not 0 <= delay <= 365 * 86400:
        raise ValueError(f"{name}(delay={delay!r}): the delay is in seconds, from 0 to a year.")
    return float(delay)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt or an item failed; ``delay`` is the wait in seconds that the cause asked for."""

    code: str
    message: str
    retryable: bool
    delay: float | None = None


class OutcomeKind(StrEnum):
    """The closed set of ways in which an attempt is settled."""

    DONE = "done"
    FAIL = "fail"
    RETRY = "retry"
    SNOOZE = "snooze"
    WAIT = "wait"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended; the database decides what that makes of the job."""

    kind: OutcomeKind
    result: Any = None
    failure: Failure | None = None
    delay: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """How one item ended: with a result, or with a failure."""

    key: str
    result: Any = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of a handler came to, to be stored under its name."""

    name: str
    result: Any
