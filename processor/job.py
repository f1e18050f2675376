"""The words of this package as values: a claimed job, its items, and the ways work can end."""

# Retry, Snooze, Cancel and Discard are raised to end a job, but they are decisions, not errors.
# ruff: noqa: N818

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
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
    cancel_requested: bool = False


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
