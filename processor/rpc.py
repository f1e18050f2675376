"""The only caller of the SQL functions: one typed method each, over PostgREST.

Every function is safe to repeat, so transport errors are repeated here, with full jitter. What the
API refuses becomes the error of :mod:`processor.errors` that says so.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import structlog
from pydantic import TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from processor.answers import (
    Attempt,
    CheckpointAnswer,
    Claim,
    Heartbeat,
    ItemsAnswer,
    ProgressAnswer,
    Registration,
    SchedulesAnswer,
    Settled,
    Spawned,
    Tick,
)
from processor.errors import ApiError, ApiUnreachable, SchemaMismatch
from processor.job import ItemOutcome, NewChild, OnChildFailure, Outcome, Step
from processor.redact import redact
from processor.refusal import refused
from processor.transport import Transport

SCHEMA_VERSION = 3
"""The version of ``sql/`` that this package speaks."""

log = structlog.get_logger("processor.rpc")

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
_SPAWNED = TypeAdapter(Spawned)


class Rpc:
    """A connection to one project, with the rights of ``key``.

    ``patience`` is how long, in seconds, a call is repeated while the API cannot be reached.
    """

    def __init__(self, url: str, key: str, *, api_key: str | None = None, patience: float = 10.0) -> None:
        self.url = url
        self.calls: Counter[str] = Counter()
        """Requests sent so far, by function."""
        self._patience = patience
        self._api_key = api_key if api_key != key else None
        # a project may expose another schema first
        self._transport = Transport(url, {"Accept": "application/json", "Content-Profile": "public"})
        self.set_key(key)

    def set_key(self, key: str) -> None:
        """Show another key from the next request on."""
        self._transport.headers["apikey"] = self._api_key or key
        if not key.startswith("sb_"):  # such a key is no token: the gateway makes one of it
            self._transport.headers["Authorization"] = f"Bearer {key}"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

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

    async def prune_jobs(self, batch: int) -> int:
        """Delete up to ``batch`` finished jobs whose time is over; return how many."""
        return _parse(_COUNT, "prune_jobs", await self._call("prune_jobs", {"batch": batch}))

    async def expire_credits(self, batch: int) -> int:
        """Take up to ``batch`` lots of credits whose time is over out of their accounts; return how many."""
        return _parse(_COUNT, "expire_credits", await self._call("expire_credits", {"batch": batch}))

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

    async def deregister_worker(self, worker_id: UUID) -> None:
        """Leave; whatever is still held goes back."""
        await self._call("deregister_worker", {"worker_id": str(worker_id)})

    async def _call(
        self, function: str, arguments: dict[str, Any], shape: TypeAdapter[Any] | None = None
    ) -> Any:
        """Return the answer: of ``shape``, if one is given and it is such, or else as plain JSON."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await self._once(function, arguments, shape)
        except ApiUnreachable as error:  # only now ask tenacity: it takes longer than reading the answer does
            unreachable: ApiUnreachable | None = error

        def note(state: RetryCallState) -> None:
            if state.attempt_number & (state.attempt_number - 1):
                return  # the 1st, 2nd, 4th, 8th … time: enough to see that it lasts
            error = state.outcome.exception() if state.outcome else None
            log.warning("rpc.repeated", function=function, attempt=state.attempt_number, error=str(error))

        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ApiUnreachable),
            wait=wait_random_exponential(multiplier=0.2, max=3),
            stop=stop_after_delay(self._patience - (loop.time() - began)),
            before_sleep=note,
            reraise=True,
        ):
            with attempt:
                if unreachable is not None:
                    first, unreachable = unreachable, None
                    raise first
                return await self._once(function, arguments, shape)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, function: str, arguments: dict[str, Any], shape: TypeAdapter[Any] | None) -> Any:
        self.calls[function] += 1
        answer = await self._transport.post(f"/rest/v1/rpc/{function}", arguments)
        if not answer.is_success:
            refused(self.url, function, answer)
        if shape is not None:
            # in one step, which takes half the time; what fails is looked at again more closely
            with suppress(ValidationError):
                return shape.validate_json(answer.body)
        try:
            return json.loads(answer.body, parse_int=_integer) if answer.body else None
        except ValueError as error:  # a proxy that wants somebody to log in, or the like
            raise ApiUnreachable(
                f"Something at {self.url} answered {function} with other than JSON: {error}",
                hint="Check SUPABASE_URL and what stands between.",
            ) from error
        except RecursionError as error:
            raise ApiError(f"{function} answered with JSON that is nested too deeply to be read") from error


def seconds_until(moment: datetime | None, now: datetime) -> float | None:
    """Return how far away a moment of the server is by the server's own clock; None for no moment."""
    return None if moment is None else (moment - now).total_seconds()


def _integer(digits: str) -> int | Decimal:
    """Read a whole number of ``jsonb``, which may have more digits than Python makes an int of."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


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
