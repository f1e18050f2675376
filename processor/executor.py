"""One job as named steps over one record: check → handle → classify → settle."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from pydantic import ValidationError

from processor.app import Handler, Processor
from processor.clients import ApplicationClient
from processor.config import Settings
from processor.context import JobContext, invalid_result
from processor.errors import ErrorCode, JobError
from processor.job import (
    Cancel,
    Decision,
    Failure,
    ItemOutcome,
    Job,
    NewChild,
    OnChildFailure,
    Outcome,
    OutcomeKind,
    Snooze,
    Wait,
)
from processor.jsonb import to_jsonb, to_text
from processor.report import Reporter
from processor.retry import Classifier
from processor.rpc import Attempt, Settled
from processor.settle import Settler

if TYPE_CHECKING:
    from supabase import AsyncClient

log = structlog.get_logger("processor.job")


class Stop(StrEnum):
    """Why a handler is stopped before it ends by itself."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    RELEASE = "release"
    LOST = "lost"


class Run:
    """One attempt of one job in this process."""

    def __init__(self, job: Job, *, wake: str, queued_ms: float) -> None:
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
        self._stop = asyncio.Event()
        self.log = log.bind(job_id=str(job.id), kind=job.kind, queue=job.queue, attempt=job.attempt)

    def stop(self, reason: Stop) -> None:
        """Stop the handler; a lost job stays lost whatever else is wanted of it."""
        if self.settling or self.stopped_for is Stop.LOST:
            return
        if self.stopped_for is None or reason is Stop.LOST:
            self.stopped_for = reason
        self._stop.set()

    def note_delay(self, failure: Failure) -> None:
        """Remember how long a failed item wants to wait before it is tried again."""
        if failure.retryable and failure.delay is not None:
            self.items_delay = max(failure.delay, self.items_delay or 0.0)

    async def until_stopped(self) -> None:
        """Wait until somebody wants the handler to stop."""
        await self._stop.wait()


class Executor:
    """Runs claimed jobs with the handlers of an application, and settles what comes of it."""

    def __init__(
        self,
        app: Processor,
        settings: Settings,
        settler: Settler,
        reporter: Reporter,
        client: ApplicationClient,
    ) -> None:
        self._app = app
        self._settings = settings
        self._settler = settler
        self._reporter = reporter
        self._client = client
        self._stray: set[asyncio.Task[Any]] = set()

    async def run(self, run: Run) -> None:
        """Take one claimed job to the end of its attempt."""
        try:
            outcome = await self._work(run)
        except Exception as error:
            # the application's own code failed beside its handler, in a validator or a rule for errors:
            # it must cost an attempt, or the job would come back for ever
            run.log.exception("job.crashed")
            outcome = _crashed(error)
        run.settling = True
        if outcome is None:
            await self._give_up(run)
        else:
            await self._settle(run, outcome)

    # -- steps ------------------------------------------------------------------------------------

    async def _work(self, run: Run) -> Outcome | None:
        """Run the handler, unless something speaks against it; None: nothing may be settled."""
        outcome = self._refuse(run)
        if outcome is not None or run.stopped_for is not None:
            return outcome
        handler = self._app.handlers[run.job.kind]
        desk = _Desk(run, self._app.classifier, self._settler, self._reporter, self._client)
        try:
            context = self._check(run, handler, desk)
        except ValidationError as error:
            return _invalid_payload(error)
        return await self._handle(run, handler, context)

    def _refuse(self, run: Run) -> Outcome | None:
        """Do not start what somebody has cancelled since it was claimed."""
        if run.job.cancel_requested:
            return _cancelled("cancelled before it started")
        return None

    def _check(self, run: Run, handler: Handler, desk: "_Desk") -> JobContext[Any]:
        """Validate the payload; raises pydantic's ``ValidationError``."""
        timeout = self._timeout(run.job, handler)
        return JobContext(
            run.job,
            handler.payload.validate_python(run.job.payload),
            desk,
            logger=run.log,
            item_concurrency=handler.item_concurrency or self._settings.item_concurrency,
            deadline=None if timeout is None else datetime.now(UTC) + timedelta(seconds=timeout),
        )

    async def _handle(self, run: Run, handler: Handler, context: JobContext[Any]) -> Outcome | None:
        """Run the handler until it ends or is stopped; None: nothing may be settled."""
        task = asyncio.create_task(_call(run, handler, context), name=f"handler:{run.job.kind}:{run.job.id}")
        stop = asyncio.create_task(run.until_stopped(), name=f"stop:{run.job.id}")
        try:
            await asyncio.wait(
                {task, stop}, timeout=self._timeout(run.job, handler), return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done():
                run.stop(Stop.TIMEOUT)
                context.cancelled.set()
                task.cancel()
                await asyncio.wait({task}, timeout=self._settings.cancel_grace_seconds)
        finally:
            stop.cancel()
            task.cancel()
        if not task.done():
            self._abandon(run, task)
        elif run.stopped_for is Stop.LOST:
            if not task.cancelled() and (error := task.exception()) is not None:
                run.log.warning("job.clean_up_failed", exc_info=error)
        elif not task.cancelled():
            error = task.exception()
            if error is None:
                return _returned(
                    task.result(), run.items_delay
                )  # done after all: what is finished stays finished
            if run.stopped_for is None or isinstance(error, Decision):
                return self._raised(run, context, error)
            run.log.warning("job.clean_up_failed", exc_info=error)
        return self._stopped(run, handler)

    def _raised(self, run: Run, context: JobContext[Any], error: BaseException) -> Outcome:
        """Classify what a handler raised: a decision, or a failure."""
        match error:
            case Snooze():
                return Outcome(OutcomeKind.SNOOZE, delay=error.delay, message=to_text(error.reason, 500))
            case Wait():
                return _waiting(error, context)
            case Cancel():
                return _cancelled(error.reason)
        failure = self._app.classifier.classify(error)
        if failure.code == ErrorCode.HANDLER_CRASHED:
            run.log.error("job.crashed", exc_info=error)
        kind = OutcomeKind.RETRY if failure.retryable else OutcomeKind.FAIL
        return Outcome(kind, failure=failure, delay=failure.delay)

    def _stopped(self, run: Run, handler: Handler) -> Outcome | None:
        """Say what the stop means for the job; None: it goes back, or is not ours any more."""
        match run.stopped_for:
            case Stop.TIMEOUT:
                seconds = self._timeout(run.job, handler)
                failure = Failure(
                    ErrorCode.HANDLER_TIMEOUT, f"the handler was stopped after {seconds:g} s", retryable=True
                )
                return Outcome(OutcomeKind.RETRY, failure=failure)
            case Stop.CANCEL:
                return _cancelled("cancelled while it ran")
            case Stop.RELEASE | Stop.LOST:
                return None
        # nobody stopped it: the handler awaited something that was cancelled by others
        failure = Failure(ErrorCode.HANDLER_CRASHED, "the handler ended with CancelledError", retryable=True)
        return Outcome(OutcomeKind.RETRY, failure=failure)

    async def _settle(self, run: Run, outcome: Outcome) -> None:
        """Make the outcome durable; one that the database cannot take becomes a failure."""
        settled = await self._settler.job(run.attempt, outcome, after=self._reporter.close(run.job))
        if settled.error is not None:
            run.log.error("job.refused", outcome=outcome.kind, error=settled.error)
            failure = Failure(ErrorCode.INVALID_RESULT, to_text(settled.error), retryable=False)
            outcome = Outcome(OutcomeKind.FAIL, failure=failure)
            settled = await self._settler.job(run.attempt, outcome)
        self._report(run, outcome, settled)

    async def _give_up(self, run: Run) -> None:
        """Give the job back, or drop what belongs to somebody else by now."""
        if run.stopped_for is Stop.LOST:
            await self._reporter.close(run.job)
            run.log.warning("job.lost", ran_ms=run_ms(run))
            return
        settled = await self._settler.release(run.attempt, after=self._reporter.close(run.job))
        run.log.info("job.released", ran_ms=run_ms(run), stale=settled.stale)

    def _report(self, run: Run, outcome: Outcome, settled: Settled) -> None:
        """Say how it ended."""
        fields: dict[str, Any] = {"outcome": outcome.kind, "status": settled.status, "ran_ms": run_ms(run)}
        if outcome.failure is not None:
            fields |= {"error_code": outcome.failure.code, "error": outcome.failure.message}
        if settled.status == "pending" and settled.run_at is not None:
            fields["run_at"] = settled.run_at.isoformat()
        if settled.stale:
            run.log.warning("job.stale", **fields)
        else:
            run.log.info("job.finished", **fields)

    # -- helpers ----------------------------------------------------------------------------------

    @staticmethod
    def _timeout(job: Job, handler: Handler) -> float | None:
        """Return the shorter of the handler's and the row's or queue's timeout, in seconds."""
        return min((t for t in (handler.timeout, job.timeout_seconds) if t is not None), default=None)

    def _abandon(self, run: Run, task: asyncio.Task[Any]) -> None:
        """Leave a handler that swallows its cancellation to itself: its outcome no longer counts."""
        run.log.error("job.ignores_cancellation", grace_s=self._settings.cancel_grace_seconds)
        self._stray.add(task)
        task.add_done_callback(self._strayed)

    def _strayed(self, task: asyncio.Task[Any]) -> None:
        self._stray.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("job.stray_failed", task=task.get_name(), exc_info=error)


class _Desk:
    """The lines from one run's context back to the daemon."""

    def __init__(
        self,
        run: Run,
        classifier: Classifier,
        settler: Settler,
        reporter: Reporter,
        client: ApplicationClient,
    ) -> None:
        self._run = run
        self._classifier = classifier
        self._settler = settler
        self._reporter = reporter
        self._client = client

    @property
    def supabase(self) -> "AsyncClient":
        return self._client.get()

    def progress(self, job: Job, fraction: float, message: str | None) -> None:
        if not self._run.settling:
            self._reporter.progress(job, fraction, message)

    def item_progress(self, job: Job, key: str, fraction: float) -> None:
        if not self._run.settling:
            self._reporter.item_progress(job, key, fraction)

    def log(self, job: Job, level: str, message: str, fields: dict[str, Any]) -> None:
        if not self._run.settling:
            self._reporter.line(job, level, message, fields)

    def classify(self, error: BaseException) -> Failure:
        return self._classifier.classify(error)

    async def finish_item(self, job: Job, outcome: ItemOutcome) -> Failure | None:
        settled = await self._settler.item(self._run.attempt, outcome)
        if settled.error is not None:
            self._run.log.error("item.refused", item=outcome.key, error=settled.error)
            failure = Failure(ErrorCode.INVALID_RESULT, to_text(settled.error), retryable=False)
            await self._settler.item(self._run.attempt, ItemOutcome(outcome.key, failure=failure))
            return failure
        if settled.stale:
            self._run.stop(Stop.LOST)
            return Failure(ErrorCode.LEASE_LOST, "another worker has the job", retryable=True)
        if outcome.failure is None:
            self._run.log.debug("item.finished", item=outcome.key, status="completed")
        else:
            self._run.note_delay(outcome.failure)
            self._run.log.info(
                "item.finished", item=outcome.key, status="failed", error_code=outcome.failure.code
            )
        return None

    async def spawn(
        self, job: Job, children: Sequence[NewChild], on_child_failure: OnChildFailure | None
    ) -> Sequence[UUID]:
        spawned = await self._settler.spawn(self._run.attempt, children, on_child_failure)
        if spawned.stale:
            self._run.stop(Stop.LOST)
            raise JobError("another worker has the job", code=ErrorCode.LEASE_LOST)
        made = sum(child.created for child in spawned.jobs)
        self._run.log.info("job.spawned", children=len(spawned.jobs), new=made)
        return [child.id for child in spawned.jobs]


def run_ms(run: Run) -> float:
    """Return how long the attempt has taken here."""
    return round((time.monotonic() - run.began) * 1000, 1)


async def _call(run: Run, handler: Handler, context: JobContext[Any]) -> Any:
    """Call the handler; ``sys.exit()`` in it is its failure, not the daemon's end."""
    run.log.info(
        "job.started",
        wake=run.wake,
        queued_ms=run.queued_ms,
        items=len(run.job.items),
        started_at=round(time.time(), 6),
    )
    try:
        return await handler.function(context)
    except SystemExit as error:
        raise RuntimeError("the handler called sys.exit()") from error


def _returned(result: Any, items_delay: float | None) -> Outcome:
    """Accept what ``jsonb`` can hold; a decision that was returned instead of raised teaches."""
    if isinstance(result, Decision) or (isinstance(result, type) and issubclass(result, Decision)):
        name = (result if isinstance(result, type) else type(result)).__name__
        error = ValueError(f"the handler returned {name}; write `raise {name}(…)`")
        return Outcome(OutcomeKind.FAIL, failure=invalid_result("the result", error))
    try:
        return Outcome(OutcomeKind.DONE, result=to_jsonb(result), delay=items_delay)
    except ValueError as error:
        return Outcome(OutcomeKind.FAIL, failure=invalid_result("the result", error))


def _waiting(decision: Wait, context: JobContext[Any]) -> Outcome:
    """Wait for the children, if there are any to wait for: else the job would run again at once, for ever."""
    if all(child.ended for child in context.children):
        have = "all its children have ended" if context.children else "it has no children"
        message = f"the handler raised Wait, but {have}: spawn some first, or write `job.join()`"
        failure = Failure(ErrorCode.INVALID_RESULT, message, retryable=False)
        return Outcome(OutcomeKind.FAIL, failure=failure)
    return Outcome(OutcomeKind.WAIT, message=to_text(decision.reason, 500))


def _cancelled(reason: str) -> Outcome:
    failure = Failure(ErrorCode.CANCELLED, to_text(reason, 500), retryable=False)
    return Outcome(OutcomeKind.CANCELLED, failure=failure)


def _crashed(error: Exception) -> Outcome:
    """Describe a failure by what cannot fail again: an exception's text may be what crashed."""
    message = f"{type(error).__name__} in the application, outside its handler; see the daemon's log"
    return Outcome(OutcomeKind.RETRY, failure=Failure(ErrorCode.HANDLER_CRASHED, message, retryable=True))


def _invalid_payload(error: ValidationError) -> Outcome:
    problems = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    failure = Failure(ErrorCode.INVALID_PAYLOAD, to_text("; ".join(problems)), retryable=False)
    return Outcome(OutcomeKind.FAIL, failure=failure)
