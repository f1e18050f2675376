"""What the SQL functions answer, as values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from processor.job import Job


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A job in one of its attempts: what every write about it is fenced by."""

    id: UUID
    attempt: int


class Registration(_Wire):
    """The answer to register_worker."""

    now: datetime
    lease_expires_at: datetime
    schema_version: int


class Rescue(_Wire):
    """The answer to rescue_jobs."""

    alive: int
    """Workers whose lease is not over; while there are any, they rescue."""
    rescued: int


class Heartbeat(_Wire):
    """The answer to heartbeat_worker."""

    now: datetime
    heartbeat_at: datetime
    lease_expires_at: datetime
    next_due_at: datetime | None
    next_schedule_at: datetime | None = None
    next_rescue_at: datetime | None = None
    cancel: tuple[UUID, ...] = ()
    lost: tuple[UUID, ...] = ()
    unknown: tuple[Attempt, ...] = ()
    rescued: int = 0
    draining: bool = False
    inbox: int = 0


class Claim(_Wire):
    """The answer to claim_jobs."""

    now: datetime
    next_due_at: datetime | None
    jobs: tuple[Job, ...]


class ProgressAnswer(_Wire):
    """The answer to report_progress."""

    stale: tuple[UUID, ...] = ()
    cancel: tuple[UUID, ...] = ()


class Facts(_Wire):
    """What else the row of a settled job says."""

    error_code: str | None = None
    error_message: str | None = None
    items_total: int = 0
    items_done: int = 0
    items_failed: int = 0
    credits_captured: int = 0
    credits_refunded: int = 0


PLAIN = Facts()
"""Those of a job without a failure, items and credits, which are not sent."""


class Settled(_Wire):
    """What the database made of one reported outcome."""

    id: UUID
    stale: bool
    status: str | None = None
    run_at: datetime | None = None
    error: str | None = None
    facts: Facts | None = None


class ItemsAnswer(_Wire):
    """The answer to finish_items, and to save_checkpoints."""

    results: tuple[Settled, ...]
    cancel: tuple[UUID, ...] = ()


class CheckpointAnswer(_Wire):
    """The answer to read_checkpoint."""

    stale: bool
    result: Any = None


class Tick(_Wire):
    """One step of a schedule: from ``tick`` (None: not computed yet) to ``next``, or why there is none."""

    name: str
    tick: datetime | None
    next: datetime | None
    problem: str | None = None


class DueSchedule(_Wire):
    """A schedule whose time has come; its next one is the first after ``after``."""

    name: str
    cron: str
    timezone: str
    tick: datetime | None
    after: datetime


class SchedulesAnswer(_Wire):
    """The answer to run_due_schedules."""

    now: datetime
    due: tuple[DueSchedule, ...]
    created: tuple[UUID, ...]
    moved: int
    problems: dict[str, str]
    next_at: datetime | None


class QueueFigures(_Wire):
    """A queue in the answer to read_metrics."""

    queue: str
    paused: bool
    due: int
    scheduled: int
    waiting: int
    processing: int
    oldest_seconds: float


class CreatedJobs(_Wire):
    """How many jobs of a queue and kind were ever created."""

    queue: str
    kind: str
    total: int


class DatabaseFigures(_Wire):
    """What read_metrics tells of the whole database; ``seconds`` is what that took there."""

    queues: tuple[QueueFigures, ...]
    stuck: dict[str, int]
    workers: dict[str, int]
    webhooks: dict[str, int]
    polling: int
    created: tuple[CreatedJobs, ...]
    credits: dict[str, int]
    credit_faults: int | None
    seconds: float


class MetricsAnswer(_Wire):
    """The answer to read_metrics; without figures: another worker reads them."""

    figures: DatabaseFigures | None
    again_in_seconds: float


class Alert(_Wire):
    """One thing that is wrong."""

    alert: str
    """Its name, the same every time, and the same as in Prometheus' rules."""
    severity: Literal["critical", "warning"]
    about: str = ""
    """Which queue, worker, schedule, task or machine; empty: all."""
    summary: str
    """What it means and what to do, in a sentence or two."""
    since: datetime | None = None
    state: Literal["firing", "resolved"] = "firing"
    """resolved: it was wrong, and is over."""


class AlertsAnswer(_Wire):
    """The answer to take_alerts: what is wrong, and what the caller is to tell people."""

    wrong: tuple[Alert, ...]
    tell: tuple[Alert, ...]


class Delivery(_Wire):
    """The answer to begin_delivery: ``go`` with what to send it by, or why not."""

    go: bool
    stale: bool = False
    """The job is no longer the worker's."""
    gone: bool = False
    """There is nobody to deliver to: ``reason`` is removed, disabled or expired."""
    reason: str | None = None
    wait_seconds: float | None = None
    """With the ``reason`` rate_limited or circuit_open: not before so many seconds."""
    url: str = Field(default="", repr=False)
    secrets: tuple[str, ...] = Field(default=(), repr=False)
    """All sign, the current one first."""
    timeout_seconds: float = 0
    allow_http: bool = False
    retry_seconds: float | None = None
    """How long the next try waits if this one fails."""


class EndedJob(_Wire):
    """A job in the answer to read_ended_jobs: how it ended, without what is in it."""

    id: UUID
    queue: str
    kind: str
    owner_id: UUID | None
    worker_id: UUID | None
    status: str
    attempt: int
    finished_at: datetime
    error_code: str | None
    error_message: str | None
    items_total: int
    items_done: int
    items_failed: int
    credits_captured: int
    credits_refunded: int
    trace_context: dict[str, str] | None = None


class EndedJobs(_Wire):
    """The answer to read_ended_jobs; all jobs before ``horizon`` that this worker is to tell of are in it.

    The next call says ``answer`` and ``after_…`` when it has told of them.
    """

    now: datetime
    horizon: datetime
    reader: bool
    jobs: tuple[EndedJob, ...]
    answer: int | None = None
    after_at: datetime | None = None
    after_id: UUID | None = None
    more: bool = False


class SpawnedJob(_Wire):
    """A child that was made, or was there already."""

    id: UUID
    created: bool


class Spawned(_Wire):
    """The answer to spawn_jobs, in the order asked."""

    stale: bool
    jobs: tuple[SpawnedJob, ...]
