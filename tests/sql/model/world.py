"""What should be true: rows as Python objects, and the transitions that several functions have in common.

Time is ``World.now``, set together with ``processor.now()``. A function of the model decides whether a call
is refused before it changes anything, then changes the world and returns the answer that the database is
expected to give. Ids are the database's choice: a new job is told its own with ``World.adopt``.
"""

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tests.sql.model.ledger import Account, Hold, Ledger

Row = dict[str, Any]

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""The run_at of a job that waits for its children."""


class Refused(Exception):  # noqa: N818 - it is not an error that the model refuses
    """The call raises this SQLSTATE and changes nothing."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Queue:
    """Columns of job_queues."""

    name: str
    paused: bool = False
    max_processing: int | None = None
    max_attempts: int = 2
    retry_delays: list[timedelta] = field(default_factory=lambda: [timedelta(0), timedelta(minutes=5)])
    jitter: float = 0.0
    timeout: timedelta = timedelta(minutes=10)
    retain_for: timedelta = timedelta(days=7)
    retain_last: int = 100
    rate_limit: int | None = None
    rate_period: timedelta = timedelta(minutes=1)
    max_processing_per_owner: int | None = None
    max_pending_per_owner: int | None = None
    bucket: tuple[float, datetime] | None = None
    """The row of queue_tokens: how many there were, and when."""
    turn: tuple[UUID | None] | None = None
    """The row of queue_turns: whose it was."""

    def tokens(self, now: datetime) -> float:
        limit = self.rate_limit or 0
        if not self.bucket:
            return limit
        left, counted_at = self.bucket
        return min(
            limit, left + limit * (now - counted_at).total_seconds() / self.rate_period.total_seconds()
        )

    def next_token_at(self, now: datetime) -> datetime:
        """Return when the next job may start; a microsecond more or less, as fractions go."""
        return now + self.rate_period * max(0, 1 - self.tokens(now)) / (self.rate_limit or 1)


@dataclass
class Kind:
    """Columns of job_kinds, and what was last declared."""

    kind: str
    queue: str
    public: bool = True
    credits_per_job: int = 0
    credits_per_item: int = 0
    declared: Row = field(default_factory=dict)


@dataclass
class Worker:
    """Columns of job_workers."""

    id: UUID
    name: str
    queues: list[str]
    kinds: list[str]
    slots: int
    lease: timedelta
    lease_expires_at: datetime
    heartbeat_at: datetime
    feed: str = "polling"
    running: int = 0
    draining: bool = False
    inbox: int = 0


@dataclass
class Item:
    """Columns of job_items."""

    key: str
    position: int
    payload: Row
    status: str = "pending"
    result: Any = None
    progress: float = 0
    attempts: int = 0
    credits: int = 0
    error_code: str | None = None
    error_message: str | None = None
    error_retryable: bool | None = None

    @property
    def runs_again(self) -> bool:
        return self.status == "pending" or (self.status == "failed" and bool(self.error_retryable))


@dataclass(eq=False)
class Job:
    """Columns of jobs; and its items, hold and log lines."""

    queue: str
    kind: str
    owner_id: UUID | None
    priority: int
    payload: Row
    run_at: datetime
    created_at: datetime
    max_attempts: int
    id: UUID | None = None
    """None until the database has told it."""
    status: str = "pending"
    result: Any = None
    progress: float = 0
    progress_message: str | None = None
    items_total: int = 0
    items_done: int = 0
    items_failed: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker_id: UUID | None = None
    claim_id: UUID | None = None
    cancel_requested_at: datetime | None = None
    timeout: timedelta | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_retryable: bool | None = None
    credits_held: int = 0
    credits_captured: int = 0
    credits_refunded: int = 0
    idempotency_key: str | None = None
    unique_key: str | None = None
    retry_of: UUID | None = None
    tags: list[str] = field(default_factory=list)
    children_total: int = 0
    children_open: int = 0
    children_failed: int = 0
    on_child_failure: str = "continue"
    parent: "Job | None" = None
    errors: list[tuple[int, str]] = field(default_factory=list)
    items: dict[str, Item] = field(default_factory=dict)
    hold: Hold | None = None
    logs: int = 0
    place: int = 0
    """Grows with each job that was drafted, as ids do."""
    input: tuple[Any, ...] = ()
    """What "the same input" means under an idempotency key: as it was when the job was created."""

    @property
    def ended(self) -> bool:
        return self.finished_at is not None

    @property
    def parent_id(self) -> UUID | None:
        return self.parent.id if self.parent else None

    def held_by(self, worker_id: UUID, attempt: int | None) -> bool:
        """Ask the fence whether it still runs, by this worker, in this attempt."""
        return self.status == "processing" and self.worker_id == worker_id and self.attempt == attempt

    def due_order(self) -> tuple[Any, ...]:
        """Who is claimed first."""
        return -self.priority, self.run_at, self.id


BESIDE_THE_COLUMNS = {"errors", "items", "hold", "logs", "input", "parent", "place"}
JOB_COLUMNS = (*(f.name for f in fields(Job) if f.name not in BESIDE_THE_COLUMNS), "parent_id")
ITEM_COLUMNS = tuple(f.name for f in fields(Item))
ACCOUNT_COLUMNS = tuple(f.name for f in fields(Account))
WORKER_COLUMNS = tuple(f.name for f in fields(Worker))


@dataclass
class Verdict:
    """What becomes of a job: a terminal status, or pending and when to run."""

    job: Job
    status: str
    run_at: datetime | None = None
    result: Any = None
    code: str | None = None
    message: str | None = None
    progress_message: str | None = None
    note: str | None = None
    """The code to append to the job's errors."""
    failed: bool = False
    crashed: bool | None = False
    """Whether the worker was lost with it; None: the attempt did not end by itself either."""


def cancelled(job: Job, why: str, code: str = "CANCELLED") -> Verdict:
    return Verdict(job, "cancelled", code=code, message=why)


@dataclass
class World:
    """All there is."""

    now: datetime
    queues: dict[str, Queue] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    workers: dict[UUID, Worker] = field(default_factory=dict)
    jobs: dict[UUID, Job] = field(default_factory=dict)
    new: list[Job] = field(default_factory=list)
    """Jobs whose ids the database has not told yet."""
    drafted: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    # looking

    def every(self) -> list[Job]:
        return [*self.jobs.values(), *self.new]

    def waiting(self, queue: str) -> list[Job]:
        return [j for j in self.every() if j.queue == queue and j.status == "pending"]

    def running(self, queue: str) -> list[Job]:
        return [j for j in self.every() if j.queue == queue and j.status == "processing"]

    def held_by(self, worker: Worker) -> list[Job]:
        return [j for j in self.jobs.values() if j.worker_id == worker.id and j.status == "processing"]

    def children_of(self, job: Job) -> list[Job]:
        return [j for j in self.every() if j.parent is job]

    def find(self, job_id: UUID | None, by: UUID | str | None = None) -> Job | None:
        """Return a job that the caller may know of: a user sees only own ones."""
        job = self.jobs.get(job_id) if job_id else None
        return None if job and isinstance(by, UUID) and job.owner_id != by else job

    def queue_names(self) -> list[str]:
        return sorted({*self.queues, *(j.queue for j in self.jobs.values())})

    def log_counts(self) -> Counter[UUID | None]:
        return Counter({j.id: j.logs for j in self.jobs.values() if j.logs})

    # changing

    def adopt(self, ids: list[UUID]) -> None:
        """Learn the ids that the database gave the new jobs."""
        assert len(ids) == len(self.new), f"{len(self.new)} jobs should have been made, not {len(ids)}"
        for job, job_id in zip(sorted(self.new, key=lambda j: j.place), ids, strict=True):
            job.id = job_id
            self.jobs[job_id] = job
            if job.hold:
                self.ledger.holds[job_id] = job.hold
        self.new = []

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forget what the block did if it is refused."""
        # in one piece, so that what refers to the same job still does
        before = pickle.dumps((self.queues, self.workers, self.jobs, self.new, self.ledger))
        try:
            yield
        except Refused:
            self.queues, self.workers, self.jobs, self.new, self.ledger = pickle.loads(before)
            raise

    def conclude(self, verdicts: list[Verdict]) -> None:
        """Carry verdicts out: the jobs, then their parents, then their children."""
        told = [v.job for v in verdicts if v.status != "pending" and v.job.parent]
        abandoned = [
            v.job for v in verdicts if v.status not in {"pending", "completed"} and v.job.children_open
        ]
        for verdict in verdicts:
            self.carry_out(verdict)
        if told:
            self.tell_parents(told)
        if abandoned:
            self.cancel_children(abandoned)

    def carry_out(self, verdict: Verdict) -> None:
        job, status = verdict.job, verdict.status
        if status == "pending":
            self.reopen(job, verdict)
        else:
            self.end(job, verdict)
        job.status = status
        job.result = job.result if verdict.result is None else verdict.result
        job.progress_message = verdict.progress_message or job.progress_message
        job.items_failed = sum(i.status == "failed" for i in job.items.values())
        job.failures += verdict.failed
        if verdict.crashed:
            job.crashes += 1
        elif verdict.crashed is False and status == "pending":
            job.crashes = 0
        if verdict.code or status != "pending":
            job.error_code, job.error_message = verdict.code, verdict.message
            job.error_retryable = None if verdict.code is None else status == "pending"
        if verdict.note:
            job.errors = [*job.errors, (job.attempt, verdict.note)][-20:]

    def reopen(self, job: Job, verdict: Verdict) -> None:
        """Make a job wait again, with the items that are worth another attempt."""
        for item in job.items.values():
            if item.status == "failed" and item.error_retryable:
                item.status, item.progress = "pending", 0
        job.worker_id = job.claim_id = None
        job.run_at = verdict.run_at or job.run_at

    def end(self, job: Job, verdict: Verdict) -> None:
        """Make a job terminal: its open items end with it, its hold is settled."""
        for item in job.items.values():
            if item.status == "pending":
                item.status = "cancelled" if verdict.status == "cancelled" else "failed"
                item.error_code = item.error_code or verdict.code
                item.error_message = item.error_message or verdict.message
        job.finished_at = self.now
        if verdict.status == "completed":
            job.progress = 1
            self.capture(job, [1], per_item=False)
        job.credits_refunded += job.credits_held
        job.credits_held = 0
        if job.hold:
            self.ledger.settle(job.hold, self.now)

    def tell_parents(self, children: list[Job]) -> None:
        failing = []
        for parent in {id(c.parent): c.parent for c in children}.values():
            if not parent or parent.id not in self.jobs:
                continue
            ended = [c for c in children if c.parent is parent]
            failed = sum(c.status != "completed" for c in ended)
            parent.children_open -= len(ended)
            parent.children_failed += failed
            if parent.status == "pending" and parent.run_at == NEVER and not parent.children_open:
                parent.run_at = self.now
            if parent.status == "pending" and parent.on_child_failure == "fail" and failed:
                why = f"{parent.children_failed} of {parent.children_total} children did not complete"
                status = "partial" if parent.items_done else "failed"
                failing.append(Verdict(parent, status, code="CHILD_FAILED", message=why))
        self.conclude(failing)

    def cancel_children(self, parents: list[Job]) -> None:
        children = [c for p in parents for c in self.children_of(p) if not c.ended]
        self.conclude(
            [
                cancelled(c, f"cancelled because its parent ended {c.parent.status}")
                for c in children
                if c.parent and c.status == "pending"
            ]
        )
        self.request_cancel([c for c in children if c.status == "processing"])

    def request_cancel(self, jobs: list[Job]) -> None:
        asked = [j for j in jobs if j.status == "processing" and not j.cancel_requested_at]
        for job in asked:
            job.cancel_requested_at = self.now
        for worker_id in {j.worker_id for j in asked}:
            if worker := self.workers.get(worker_id):
                worker.inbox += 1

    def capture(self, job: Job, units: list[int], *, per_item: bool) -> int:
        """Take tickets from the job's open hold; return the price of one, 0 without such a hold."""
        if not job.hold or job.hold.closed or job.hold.per_item != per_item:
            return 0
        taken = len(set(units) - job.hold.tickets) * job.hold.unit_price
        job.hold.tickets |= set(units)
        job.credits_held -= taken
        job.credits_captured += taken
        return job.hold.unit_price
