"""One job as named steps over one record: check → handle → classify → settle."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog
from pydantic import ValidationError

from processor import endings
from processor.afterwards import Afterwards
from processor.answers import Settled
from processor.app import Handler, Processor
from processor.calls.context import Brief
from processor.calls.line import Gate
from processor.calls.processes import KILL_SECONDS, Processes
from processor.calls.thread import call_in_thread
from processor.clients import ApplicationClient
from processor.config import Settings
from processor.context import JobContext
from processor.desk import RunDesk
from processor.errors import ErrorCode
from processor.events.bus import Bus
from processor.events.lifecycle import AttemptEnded, JobLost, JobReleased, JobStarted
from processor.hold import Hold
from processor.hooks import Hooks
from processor.incidents import UNREPORTED, Incidents
from processor.job import (
    Cancel,
    Decision,
    Failure,
    Job,
    Outcome,
    OutcomeKind,
    Snooze,
    Wait,
)
from processor.jsonb import to_text
from processor.log import of_job
from processor.middleware import around
from processor.report import Reporter
from processor.run import Run, Stop, run_ms
from processor.settle import Settler
from processor.signature import Sort, check_reachable
from processor.tracing import NOT_TRACED, Tracing

log = structlog.get_logger("processor.job")


class Executor:
    """Runs claimed jobs with the handlers of applications, given by kind, and settles what comes of it."""

    def __init__(
        self,
        apps: Mapping[str, Processor],
        settings: Settings,
        settler: Settler,
        reporter: Reporter,
        client: ApplicationClient,
        hold: Hold,
        resources: Mapping[str, Any],
        bus: Bus | None = None,
        tracing: Tracing = NOT_TRACED,
        incidents: Incidents = UNREPORTED,
        afterwards: Afterwards | None = None,
    ) -> None:
        for kind, app in apps.items():
            if (handler := app.handlers[kind]).sort is Sort.PROCESS:
                check_reachable(kind, handler.function)
        self._apps = apps
        self._resources = resources
        self._settings = settings
        self._settler = settler
        self._reporter = reporter
        self._client = client
        self._hold = hold
        self._bus = bus or Bus()
        self._tracing = tracing
        self._incidents = incidents
        self._afterwards = afterwards or Afterwards(client, resources)
        self._processes = Processes(
            settings.processes, hold=hold, client=client, grace=settings.cancel_grace_seconds
        )

    async def close(self) -> None:
        """End the processes of handlers, when nothing runs any more."""
        await self._processes.close()

    def adopt(self, settings: Settings) -> None:
        """Go by other settings from now on; what has begun keeps what it began with."""
        self._settings = settings
        self._processes.grace = settings.cancel_grace_seconds

    async def run(self, run: Run) -> None:
        """Take one claimed job to the end of its attempt."""
        with self._tracing.attempt(run.job, run.queued_ms / 1000):
            await self._attempt(run)

    async def _attempt(self, run: Run) -> None:
        try:
            with self._tracing.step("handle"):
                outcome = await self._work(run)
        except Exception as error:
            # the application's own code failed beside its handler, in a validator or a rule for errors:
            # it must cost an attempt, or the job would come back for ever
            run.log.exception("job.crashed")
            self._incidents.attempt_crashed(run.job, error)
            outcome = endings.crashed(error)
        run.settling = True
        with self._tracing.step("settle"):
            await (self._give_up(run) if outcome is None else self._settle(run, outcome))

    # -- steps ------------------------------------------------------------------------------------

    async def _work(self, run: Run) -> Outcome | None:
        """Run the handler, unless something speaks against it; None: nothing may be settled."""
        outcome = self._refuse(run)
        if outcome is not None or run.stopped_for is not None:
            return outcome
        app = self._apps[run.job.kind]
        handler = app.handlers[run.job.kind]
        desk = RunDesk(
            *(run, self._hold, app.classifier, self._settler, self._reporter, self._client),
            *(self._bus, self._incidents),
        )
        try:
            brief = self._check(run, handler)
        except ValidationError as error:
            return endings.invalid_payload(error)
        context: JobContext[Any] = JobContext(
            run.job,
            brief.payload,
            desk,
            logger=run.log,
            item_concurrency=brief.item_concurrency,
            deadline=brief.deadline(),
        )
        return await self._handle(run, handler, context, brief)

    def _refuse(self, run: Run) -> Outcome | None:
        """Do not start what somebody has cancelled since it was claimed."""
        if run.job.cancel_requested:
            return endings.cancelled("cancelled before it started")
        return None

    def _check(self, run: Run, handler: Handler) -> Brief:
        """Validate the payload; raises pydantic's ``ValidationError``."""
        return Brief(
            run.job,
            handler.payload.validate_python(run.job.payload),
            timeout=self._timeout(run.job, handler),
            item_concurrency=handler.item_concurrency or self._settings.item_concurrency,
        )

    async def _handle(
        self, run: Run, handler: Handler, context: JobContext[Any], brief: Brief
    ) -> Outcome | None:
        """Run the handler until it ends or is stopped; None: nothing may be settled."""
        task = asyncio.create_task(
            self._call(run, handler, context, brief), name=f"handler:{run.job.kind}:{run.job.id}"
        )
        try:
            task.add_done_callback(run.end)
            await _until_over(run, handler, brief.timeout)
            if not task.done():
                run.stop(Stop.TIMEOUT)
                context.cancelled.set()
                task.cancel()
                killing = KILL_SECONDS if handler.sort is Sort.PROCESS else 0
                await asyncio.wait({task}, timeout=self._settings.cancel_grace_seconds + killing)
        finally:
            task.cancel()
        if not task.done():
            self._abandon(run, task)
        elif run.stopped_for is Stop.LOST:
            if not task.cancelled() and (error := task.exception()) is not None:
                run.log.warning("job.clean_up_failed", exc_info=error)
        elif not task.cancelled():
            error = task.exception()
            if error is None:
                return endings.returned(
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
                return endings.waiting(error, context)
            case Cancel():
                return endings.cancelled(error.reason)
        failure = self._apps[run.job.kind].classifier.classify(error)
        if failure.code == ErrorCode.HANDLER_CRASHED:
            run.log.error("job.crashed", exc_info=error)
            self._incidents.attempt_crashed(run.job, error)
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
                return endings.cancelled("cancelled while it ran")
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
            if settled.error is not None:
                # it holds no slot any more, so the heartbeat finds it forgotten and gives it back
                run.log.error("job.unsettled", error=settled.error, then="it is given back and runs again")
                self._tell(JobLost(**run.about, ran=run.ran, how="unsettled"))
                return
        self._report(run, outcome, settled)

    async def _give_up(self, run: Run) -> None:
        """Give the job back, or drop what belongs to somebody else by now."""
        if run.stopped_for is Stop.LOST:
            await self._reporter.close(run.job)
            run.log.warning("job.lost", ran_ms=run_ms(run))
            self._tell(JobLost(**run.about, ran=run.ran, how="lost"))
            return
        settled = await self._settler.release(run.attempt, after=self._reporter.close(run.job))
        run.log.info("job.released", ran_ms=run_ms(run), stale=settled.stale)
        about, ran = run.about, run.ran
        self._tell(JobLost(**about, ran=ran, how="stale") if settled.stale else JobReleased(**about, ran=ran))

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
        app = self._apps.get(run.job.kind)
        hooks = Hooks() if app is None else app.handlers[run.job.kind].hooks
        if hooks or self._tracing is not NOT_TRACED or self._bus.wants(AttemptEnded):
            event = endings.settled_as(run, outcome, settled)
            self._tell(event)
            self._afterwards.begin(hooks, run.job, event, outcome, run.log)

    def _tell(self, event: AttemptEnded) -> None:
        """Say what became of the attempt, to its trace and on the bus."""
        self._tracing.ended(event.outcome, event.code)
        self._bus.publish(event)

    # -- helpers ----------------------------------------------------------------------------------

    @staticmethod
    def _timeout(job: Job, handler: Handler) -> float | None:
        """Return the shorter of the handler's and the row's or queue's timeout, in seconds."""
        return min((t for t in (handler.timeout, job.timeout_seconds) if t is not None), default=None)

    def _abandon(self, run: Run, task: asyncio.Task[Any]) -> None:
        """Leave a handler that cannot be stopped to itself: its outcome no longer counts, its slot does."""
        run.log.error("job.ignores_cancellation", grace_s=self._settings.cancel_grace_seconds)
        run.stray = task
        task.add_done_callback(lambda ended: _strayed(run, ended))

    async def _call(self, run: Run, handler: Handler, context: JobContext[Any], brief: Brief) -> Any:
        """Go through what is around the handler; ``sys.exit()`` is its failure, not the daemon's end."""
        of_job(structlog.get_context(run.log))
        run.log.info(
            "job.started",
            wake=run.wake,
            queued_ms=run.queued_ms,
            items=len(run.job.items),
            started_at=round(time.time(), 6),
        )
        if self._bus.wants(JobStarted):
            self._bus.publish(JobStarted(**run.about))
        layers = self._apps[run.job.kind].middlewares
        call = around(partial(self._function, run, handler, brief), layers, self._resources)
        try:
            return await call(context)
        except SystemExit as error:
            raise RuntimeError("the handler called sys.exit()") from error
        except KeyboardInterrupt as error:  # not Ctrl-C: that is a signal, which the daemon hears
            raise RuntimeError("the handler raised KeyboardInterrupt") from error

    async def _function(self, run: Run, handler: Handler, brief: Brief, context: JobContext[Any]) -> Any:
        """Call the handler's function in the way it is called."""
        given = {name: self._resources[name] for name in handler.resources}
        if handler.sort is Sort.ASYNC:
            return await handler.function(context, **given)
        gate = Gate(
            stopped=lambda: run.stopped_for is not None,
            lost=lambda: run.stopped_for is Stop.LOST or not self._hold.holds,
        )
        if handler.sort is Sort.THREAD:
            return await call_in_thread(
                handler.function,
                context,
                brief,
                gate,
                logger=run.log,
                client=self._client.blocking,
                resources=given,
            )
        run.wait_for_process()
        return await self._processes.call(
            handler.function,
            context,
            brief,
            gate,
            fields=structlog.get_context(run.log),
            on_called=run.called,
        )


async def _until_over(run: Run, handler: Handler, seconds: float | None) -> None:
    """Wait until the handler has ended or is to stop, or its time is over."""
    if handler.sort is Sort.PROCESS:
        await _until_over_elsewhere(run, seconds)
    elif seconds is None:
        await run.over
    else:
        timer = asyncio.get_running_loop().call_later(seconds - (time.monotonic() - run.began), run.end)
        try:
            await run.over
        finally:
            timer.cancel()


async def _until_over_elsewhere(run: Run, seconds: float | None) -> None:
    """Do so for a handler whose time does not run while it waits for a process."""
    while not run.over.done():
        if run.called_at is not None:
            left = None if seconds is None else run.called_at + seconds - time.monotonic()
            if left is not None and left <= 0:
                return
            await asyncio.wait({run.over}, timeout=left)
        else:
            called = asyncio.create_task(run.until_called(), name=f"called:{run.job.id}")
            try:
                await asyncio.wait({called, run.over}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                called.cancel()


def _strayed(run: Run, task: asyncio.Task[Any]) -> None:
    """Say that a handler that was left to itself has ended."""
    error = None if task.cancelled() else task.exception()
    run.log.warning("job.stray_ended", ran_ms=run_ms(run), exc_info=error)
