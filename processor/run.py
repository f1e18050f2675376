"""One attempt of one job in this process, and why it may have to stop."""

import asyncio
import time
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import structlog

from processor.answers import Attempt
from processor.events.lifecycle import About
from processor.job import Failure, Job

log = structlog.get_logger("processor.job")


class Stop(StrEnum):
    """Why a handler is stopped before it ends by itself."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    RELEASE = "release"
    LOST = "lost"


class Run:
    """One attempt of one job in this process."""

    def __init__(self, job: Job, *, worker_id: UUID, wake: str, queued_ms: float) -> None:
        self.job = job
        self.attempt = Attempt(id=job.id, attempt=job.attempt)
        self.wake = wake
        self.queued_ms = queued_ms
        self.began = time.monotonic()
        self.stopped_for: Stop | None = None
        self.settling = False
        """The handler is over and its outcome is on its way: nothing can stop it any more."""
        self.items_delay: float | None = None
        """The longest wait in seconds that a failed item asked for."""
        self.stray: asyncio.Task[Any] | None = None
        """The handler, if it could not be stopped and was left to itself."""
        self.called_at: float | None = self.began
        """When the time of the handler began to run; None while it waits for a process."""
        self._called = asyncio.Event()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handler has ended, or somebody wants it to stop."""
        self.log = log.bind(
            job_id=str(job.id),
            kind=job.kind,
            queue=job.queue,
            attempt=job.attempt,
            worker_id=str(worker_id),
        )

    @property
    def about(self) -> About:
        """What every event of this attempt says."""
        job = self.job
        return {
            "job_id": job.id,
            "queue": job.queue,
            "kind": job.kind,
            "attempt": job.attempt,
            "owner_id": job.owner_id,
            "trace_context": None,
        }

    @property
    def ran(self) -> float:
        """How many seconds the attempt has taken here."""
        return time.monotonic() - self.began

    def stop(self, reason: Stop) -> None:
        """Stop the handler; a lost job stays lost whatever else is wanted of it."""
        if self.settling or self.stopped_for is Stop.LOST:
            return
        if self.stopped_for is None or reason is Stop.LOST:
            self.stopped_for = reason
        self.end()

    def end(self, _handler: object = None) -> None:
        """Have whoever waits for the handler look at it; also as a callback of its task."""
        if not self.over.done():
            self.over.set_result(None)

    def note_delay(self, failure: Failure) -> None:
        """Remember how long a failed item wants to wait before it is tried again."""
        if failure.retryable and failure.delay is not None:
            self.items_delay = max(failure.delay, self.items_delay or 0.0)

    def wait_for_process(self) -> None:
        """Stop the clock of the handler's timeout, until it is called."""
        self.called_at = None
        self._called.clear()

    def called(self) -> None:
        """Let the handler's time run from now."""
        if self.called_at is None:
            self.called_at = time.monotonic()
            self._called.set()

    async def until_called(self) -> None:
        """Wait until a process has been found for the handler, and has called it."""
        await self._called.wait()


def queued_ms(job: Job, now: datetime) -> float:
    """Return how long a job has waited at ``now``, of the server, since it could have run."""
    return round(max((now - max(job.created_at, job.run_at)).total_seconds() * 1000, 0.0), 1)


def run_ms(run: Run) -> float:
    """Return how long the attempt has taken here."""
    return round(run.ran * 1000, 1)
