"""The moments in the life of a job and of its worker, as a daemon sees them.

```
seen → claimed → started → progress, item finished … → completed | partial | failed | cancelled
          ▲                                          → retrying | snoozed | released ─┐
          └───────────────────────────────────────────────────────────────────────────┘
                                                     → lost: it is another worker's by now
```

What happens to a job while no daemon has it (cancelled before a claim, ended by a rescue) is in its row only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal, TypedDict
from uuid import UUID, uuid4, uuid5

_ENDS = UUID("5b0c1a52-8d0f-4b0e-9d5c-6f2f0c6d3e11")
"""The namespace of the ids of jobs' ends; a constant of the protocol."""
_HERE = uuid4()
"""The namespace of all other ids: two processes never give the same one."""

WorkerState = Literal["starting", "ready", "draining", "stopped"]


def end_id(job_id: UUID, status: str) -> UUID:
    """Return the id of the event that a job has ended so: the same, whoever tells of it, and how often."""
    return uuid5(_ENDS, f"{job_id}:{status}")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened; ``at``, by this machine's clock."""

    NAME: ClassVar[str]
    droppable: ClassVar[bool] = False
    """Whether it may be left out where it would have to wait for too long: the next one says more."""

    at: datetime = field(default_factory=_now)

    @property
    def name(self) -> str:
        """What it is called outside; it stays so from version to version."""
        return self.NAME

    @property
    def terminal(self) -> bool:
        """Whether it is the end of a job, after which nothing happens to it."""
        return False

    @property
    def event_id(self) -> UUID:
        """What tells it from all others; a job's end has the same one wherever it is told."""
        return uuid5(_HERE, repr(self))


class About(TypedDict):
    """What every event of a job's attempt says; see :class:`JobEvent`."""

    job_id: UUID
    queue: str
    kind: str
    attempt: int
    owner_id: UUID | None
    trace_context: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(Event):
    """Something that has happened to a job in one of its attempts."""

    job_id: UUID
    queue: str
    kind: str
    attempt: int
    owner_id: UUID | None = None
    trace_context: Mapping[str, str] | None = None
    """What it was created within, for tracing: ``traceparent`` and ``tracestate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClaimed(JobEvent):
    """The worker has it, ``waited`` seconds after it could have run."""

    NAME = "job.claimed"

    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(JobEvent):
    """Its handler begins."""

    NAME = "job.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress(JobEvent):
    """Its handler says how far it is, from 0 to 1, and what it does; None: as before."""

    NAME = "job.progress"
    droppable = True

    progress: float
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFinished(JobEvent):
    """The database has taken the end of an item."""

    NAME = "item.finished"

    key: str
    status: Literal["completed", "failed"]
    error_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(JobEvent):
    """The worker has it no more; ``ran``: seconds since the claim."""

    ran: float

    @property
    def outcome(self) -> str:
        """What became of the attempt, as the metrics call it."""
        raise NotImplementedError

    @property
    def code(self) -> str | None:
        """The error code, if the attempt failed."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRetried(AttemptEnded):
    """The attempt failed, and the job is tried again at ``run_at``."""

    NAME = "job.retrying"

    run_at: datetime | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def outcome(self) -> str:
        """It is tried again."""
        return "retried"

    @property
    def code(self) -> str | None:
        """Why it failed."""
        return self.error_code


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnoozed(AttemptEnded):
    """Its handler wants to run again at ``run_at``, or when the job's children have ended (``waiting``)."""

    NAME = "job.snoozed"

    run_at: datetime | None = None
    waiting: bool = False

    @property
    def outcome(self) -> str:
        """It sleeps, or waits."""
        return "waiting" if self.waiting else "snoozed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReleased(AttemptEnded):
    """It went back as it was, at no cost: the worker stops, or may run nothing more."""

    NAME = "job.released"

    @property
    def outcome(self) -> str:
        """It was given back."""
        return "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLost(AttemptEnded):
    """Nothing of this attempt counts any more.

    ``how``: `lost`, it was taken away while it ran; `stale`, its result came too late; `unsettled`, the
    database took neither its result nor its failure. Another attempt says what becomes of the job.
    """

    NAME = "job.lost"

    how: Literal["lost", "stale", "unsettled"]

    @property
    def outcome(self) -> str:
        """How it was lost."""
        return self.how


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(AttemptEnded):
    """The database has taken the end of the job.

    ``status`` is `completed`, `partial`, `failed` or `cancelled`; the rest, too, is as in its row.
    """

    status: str
    error_code: str | None = None
    error_message: str | None = None
    items_total: int = 0
    items_done: int = 0
    items_failed: int = 0
    credits_captured: int = 0
    credits_refunded: int = 0

    @property
    def name(self) -> str:
        """`job.completed`, `job.partial`, `job.failed` or `job.cancelled`."""
        return f"job.{self.status}"

    @property
    def terminal(self) -> bool:
        """It has ended."""
        return True

    @property
    def event_id(self) -> UUID:
        """Return the same for every telling of this end."""
        return end_id(self.job_id, self.status)

    @property
    def outcome(self) -> str:
        """The job's status."""
        return self.status

    @property
    def code(self) -> str | None:
        """Why it failed; being cancelled is no failure."""
        return None if self.status == "cancelled" else self.error_code


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen(Event):
    """Realtime has told that a job became pending; it may have been claimed, and ended, before that.

    Messages (the feed's other way) name no job, so there is none of this with them; nor while it polls.
    """

    NAME = "job.seen"
    droppable = True

    job_id: UUID
    queue: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsRescued(Event):
    """The worker's heartbeat has freed so many jobs of workers that died."""

    NAME = "jobs.rescued"

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerChanged(Event):
    """The daemon is in another state; also `draining` while an operator wants it to take no more."""

    NAME = "worker.changed"

    state: WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedModeChanged(Event):
    """The daemon learns of jobs in another way: `realtime` or `polling`."""

    NAME = "feed.mode_changed"

    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePaused(Event):
    """A queue of this daemon's is paused, or goes on.

    It is told when Realtime tells of a change of the queue's row and something else was told before; the
    first change of any of its knobs is told, too. Messages and polling do not say which queues are paused.
    """

    NAME = "queue.paused"

    queue: str
    paused: bool
