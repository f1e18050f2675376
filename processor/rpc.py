"""The only caller of the SQL functions for workers: one typed method each, all safe to repeat."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from processor.answers import (
    Alert,
    AlertsAnswer,
    Attempt,
    CheckpointAnswer,
    Claim,
    Delivery,
    EndedJobs,
    Heartbeat,
    ItemsAnswer,
    MetricsAnswer,
    ProgressAnswer,
    Registration,
    Rescue,
    SchedulesAnswer,
    Settled,
    Spawned,
    Tick,
)
from processor.caller import Caller
from processor.errors import SchemaMismatch
from processor.job import ItemOutcome, NewChild, OnChildFailure, Outcome, Step
from processor.redact import redact

SCHEMA_VERSION = 4
"""The version of ``sql/`` that this package speaks."""

T = TypeVar("T")


_REGISTRATION = TypeAdapter(Registration)
_HEARTBEAT = TypeAdapter(Heartbeat)
_CLAIM = TypeAdapter(Claim)
_PROGRESS = TypeAdapter(ProgressAnswer)
_ITEMS = TypeAdapter(ItemsAnswer)
_CHECKPOINT = TypeAdapter(CheckpointAnswer)
_SETTLED = TypeAdapter(tuple[Settled, ...])
_SCHEDULES = TypeAdapter(SchedulesAnswer)
_COUNT = TypeAdapter(int)
_RESCUE = TypeAdapter(Rescue)
_SPAWNED = TypeAdapter(Spawned)
_DELIVERY = TypeAdapter(Delivery)
_METRICS = TypeAdapter(MetricsAnswer)
_ALERTS = TypeAdapter(tuple[Alert, ...])
_TAKEN = TypeAdapter(AlertsAnswer)
_ENDED = TypeAdapter(EndedJobs)


class Rpc(Caller):
    """What a worker, and the doctor, ask of a project."""

    async def check_installation(self) -> Any:
        """Ask the project what it knows of itself; the doctor reads the answer."""
        return await self._call("check_installation", {})

    async def register_worker(self, worker: dict[str, Any]) -> Registration:
        """Announce this worker and its kinds; also after the server has forgotten it."""
        answer = await self._call("register_worker", {"worker": {**worker, "schema_version": SCHEMA_VERSION}})
        return _parse(_REGISTRATION, "register_worker", answer)

    async def heartbeat_worker(self, worker_id: UUID, *, running: Iterable[UUID], feed: str) -> Heartbeat:
        """Renew the lease; learn what to cancel, what is lost, and when to claim."""
        ids = [str(job_id) for job_id in running]
        answer = await self._call(
            "heartbeat_worker", {"worker_id": str(worker_id), "running": ids, "feed": feed}
        )
        return _parse(_HEARTBEAT, "heartbeat_worker", answer)

    async def claim_jobs(
        self, worker_id: UUID, request_id: UUID, *, queues: Sequence[str], limit: int
    ) -> Claim:
        """Take up to ``limit`` jobs; the same ``request_id`` again returns the same ones."""
        arguments = {
            "worker_id": str(worker_id),
            "request_id": str(request_id),
            "queues": list(queues),
            "limit": limit,
        }
        return _parse(_CLAIM, "claim_jobs", await self._call("claim_jobs", arguments, _CLAIM))

    async def report_progress(self, worker_id: UUID, reports: list[dict[str, Any]]) -> ProgressAnswer:
        """Write the latest progress of jobs and items."""
        answer = await self._call("report_progress", {"worker_id": str(worker_id), "reports": reports})
        return _parse(_PROGRESS, "report_progress", answer)

    async def append_job_logs(self, worker_id: UUID, logs: list[dict[str, Any]]) -> None:
        """Keep log lines for the jobs' owners."""
        await self._call("append_job_logs", {"worker_id": str(worker_id), "logs": logs})

    async def finish_items(
        self, worker_id: UUID, results: Sequence[tuple[Attempt, Sequence[ItemOutcome]]]
    ) -> ItemsAnswer:
        """Make outcomes of items durable, credits included."""
        wire = [
            {"id": str(job.id), "attempt": job.attempt, "items": [_item(outcome) for outcome in outcomes]}
            for job, outcomes in results
        ]
        answer = await self._call("finish_items", {"worker_id": str(worker_id), "results": wire})
        return _parse(_ITEMS, "finish_items", answer)

    async def save_checkpoints(
        self, worker_id: UUID, checkpoints: Sequence[tuple[Attempt, Step]]
    ) -> ItemsAnswer:
        """Make results of steps durable; the answers come in the order given."""
        wire = [
            {"id": str(job.id), "attempt": job.attempt, "name": step.name, "result": step.result}
            for job, step in checkpoints
        ]
        answer = await self._call("save_checkpoints", {"worker_id": str(worker_id), "checkpoints": wire})
        return _parse(_ITEMS, "save_checkpoints", answer)

    async def read_checkpoint(self, worker_id: UUID, job: Attempt, name: str) -> CheckpointAnswer:
        """Get the result of a step that a claim left out because of its size."""
        fence = {"id": str(job.id), "attempt": job.attempt}
        arguments = {"worker_id": str(worker_id), "job": fence, "name": name}
        return _parse(_CHECKPOINT, "read_checkpoint", await self._call("read_checkpoint", arguments))

    async def finish_jobs(
        self, worker_id: UUID, results: Sequence[tuple[Attempt, Outcome]]
    ) -> tuple[Settled, ...]:
        """End attempts; the answers come in the order given."""
        wire = [{"id": str(job.id), "attempt": job.attempt, **_outcome(outcome)} for job, outcome in results]
        answer = await self._call("finish_jobs", {"worker_id": str(worker_id), "results": wire})
        return _parse(_SETTLED, "finish_jobs", answer)

    async def release_jobs(self, worker_id: UUID, jobs: Iterable[Attempt]) -> tuple[Settled, ...]:
        """Give jobs back at once, without costing an attempt."""
        wire = [{"id": str(job.id), "attempt": job.attempt} for job in jobs]
        answer = await self._call("release_jobs", {"worker_id": str(worker_id), "jobs": wire})
        return _parse(_SETTLED, "release_jobs", answer)

    async def run_due_schedules(self, worker_id: UUID, ticks: Sequence[Tick] = ()) -> SchedulesAnswer:
        """Move schedules on, which makes their jobs; learn what is due, and when to come back."""
        wire = [tick.model_dump(mode="json") for tick in ticks]
        answer = await self._call("run_due_schedules", {"worker_id": str(worker_id), "ticks": wire})
        return _parse(_SCHEDULES, "run_due_schedules", answer)

    async def rescue_jobs(self, batch: int) -> Rescue:
        """Take up to ``batch`` jobs from dead workers, if none is alive to do it."""
        return _parse(_RESCUE, "rescue_jobs", await self._call("rescue_jobs", {"batch": batch}))

    async def prune_jobs(self, batch: int) -> int:
        """Delete up to ``batch`` finished jobs whose time is over; return how many."""
        return _parse(_COUNT, "prune_jobs", await self._call("prune_jobs", {"batch": batch}))

    async def expire_credits(self, batch: int) -> int:
        """Take up to ``batch`` lots of credits whose time is over out of their accounts; return how many."""
        return _parse(_COUNT, "expire_credits", await self._call("expire_credits", {"batch": batch}))

    async def read_metrics(self, worker_id: UUID) -> MetricsAnswer:
        """Read figures of the whole database, if no other worker does; once: somebody waits for the page."""
        answer = await self._call("read_metrics", {"worker_id": str(worker_id)}, patience=0)
        return _parse(_METRICS, "read_metrics", answer)

    async def read_alerts(self, max_depth: int) -> tuple[Alert, ...]:
        """Read what is wrong now; more than ``max_depth`` due jobs of a queue are."""
        return _parse(_ALERTS, "read_alerts", await self._call("read_alerts", {"max_depth": max_depth}))

    async def take_alerts(
        self, request_id: UUID, findings: Sequence[Alert], *, max_depth: int, repeat_seconds: float
    ) -> AlertsAnswer:
        """Read what is wrong now, ``findings`` too, and take what of it is to be told to people."""
        fields = {"alert", "severity", "about", "summary"}
        arguments = {
            "request_id": str(request_id),
            "findings": [finding.model_dump(include=fields) for finding in findings],
            "max_depth": max_depth,
            "repeat_seconds": repeat_seconds,
        }
        return _parse(_TAKEN, "take_alerts", await self._call("take_alerts", arguments))

    async def settle_alerts(self, request_id: UUID, *, told: bool) -> None:
        """Say whether people were told what was taken; what they were not is due again at once."""
        await self._call("settle_alerts", {"request_id": str(request_id), "told": told})

    async def read_ended_jobs(
        self,
        worker_id: UUID,
        *,
        told_at: datetime | None,
        last: EndedJobs | None,
        own: bool,
        batch: int,
    ) -> EndedJobs:
        """Read up to ``batch`` ended jobs that nobody has told of; ``own``: or that we may have missed.

        ``told_at``: all that this worker ended before has been told; ``last``: so has all of that answer.
        """
        arguments = {
            "worker_id": str(worker_id),
            "told_at": None if told_at is None else told_at.isoformat(),
            "own": own,
            "batch": batch,
        }
        if last is not None and last.after_at is not None:
            arguments |= {
                "answer": last.answer,
                "after_at": last.after_at.isoformat(),
                "after_id": str(last.after_id),
            }
        answer = await self._call("read_ended_jobs", arguments, _ENDED, patience=0)
        return _parse(_ENDED, "read_ended_jobs", answer)

    async def spawn_jobs(
        self,
        worker_id: UUID,
        parent: Attempt,
        jobs: Sequence[NewChild],
        *,
        on_child_failure: OnChildFailure | None = None,
    ) -> Spawned:
        """Make children of a held job, all or none; those with keys that are there already are told."""
        arguments = {
            "worker_id": str(worker_id),
            "parent": {"id": str(parent.id), "attempt": parent.attempt},
            "jobs": list(jobs),
            "on_child_failure": on_child_failure,  # null leaves the parent as it is
        }
        return _parse(_SPAWNED, "spawn_jobs", await self._call("spawn_jobs", arguments))

    async def begin_delivery(self, worker_id: UUID, job: Attempt) -> Delivery:
        """Ask for what a webhook's try needs; the same attempt again gets the same answer."""
        arguments = {"worker_id": str(worker_id), "job_id": str(job.id), "attempt": job.attempt}
        return _parse(_DELIVERY, "begin_delivery", await self._call("begin_delivery", arguments))

    async def end_delivery(
        self,
        worker_id: UUID,
        job: Attempt,
        *,
        succeeded: bool,
        status: int | None,
        error: str | None,
        seconds: float,
    ) -> None:
        """Tell how that try ended: told twice, it counts once. ``status``: None without an answer."""
        arguments = {
            "worker_id": str(worker_id),
            "job_id": str(job.id),
            "attempt": job.attempt,
            "succeeded": succeeded,
            "status": status,
            "error": None if error is None else redact(error),  # operators and the endpoint's owner read it
            "seconds": seconds,
        }
        await self._call("end_delivery", arguments)

    async def deregister_worker(self, worker_id: UUID) -> None:
        """Leave; whatever is still held goes back."""
        await self._call("deregister_worker", {"worker_id": str(worker_id)})


def seconds_until(moment: datetime | None, now: datetime) -> float | None:
    """Return how far away a moment of the server is by the server's own clock; None for no moment."""
    return None if moment is None else (moment - now).total_seconds()


def _parse(shape: TypeAdapter[T], function: str, answer: Any) -> T:
    """Read an answer as ``shape``; an answer of another shape means another schema."""
    try:
        return shape.validate_python(answer)
    except ValidationError as error:
        raise SchemaMismatch(
            f"{function} answered in a way this package does not know: {error.errors(include_url=False)[:3]}",
            hint="Run `processor schema apply` with this version of the package.",
        ) from error


def _item(outcome: ItemOutcome) -> dict[str, Any]:
    if outcome.failure is None:
        return {"key": outcome.key, "status": "completed", "result": outcome.result}
    return {
        "key": outcome.key,
        "status": "failed",
        "error_code": outcome.failure.code,
        "error_message": redact(outcome.failure.message),  # its owner reads it
        "error_retryable": outcome.failure.retryable,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    wire: dict[str, Any] = {"outcome": outcome.kind, "result": outcome.result}
    if outcome.failure is not None:
        wire |= {
            "error_code": outcome.failure.code,
            "error_message": redact(outcome.failure.message),
            "error_retryable": outcome.failure.retryable,
        }
    if outcome.delay is not None:
        wire["delay_seconds"] = outcome.delay
    if outcome.message is not None:
        wire["message"] = redact(outcome.message)
    return wire
