"""What a job's context reaches of the daemon, while the job is this process's."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from processor.clients import ApplicationClient
from processor.errors import ErrorCode, JobError
from processor.events.bus import Bus
from processor.events.lifecycle import ItemFinished, JobProgress
from processor.hold import Hold
from processor.incidents import Incidents
from processor.job import Failure, ItemOutcome, Job, NewChild, OnChildFailure, Step
from processor.jsonb import to_text
from processor.redact import redact
from processor.report import Reporter
from processor.retry import Classifier
from processor.run import Run, Stop
from processor.settle import Settler
from processor.tracing import carrier

if TYPE_CHECKING:
    from supabase import AsyncClient


class RunDesk:
    """The lines from one run's context back to the daemon: a :class:`~processor.context.Desk`."""

    def __init__(
        self,
        run: Run,
        hold: Hold,
        classifier: Classifier,
        settler: Settler,
        reporter: Reporter,
        client: ApplicationClient,
        bus: Bus,
        incidents: Incidents,
    ) -> None:
        self._run = run
        self._hold = hold
        self._classifier = classifier
        self._settler = settler
        self._reporter = reporter
        self._client = client
        self._bus = bus
        self._incidents = incidents
        self._crashes: set[type[BaseException]] = set()

    @property
    def stopping(self) -> bool:
        """Whether somebody wants the handler to stop."""
        return self._run.stopped_for is not None

    def admit(self) -> None:
        """Stop a handler whose job is not ours any more, by the clock or by what somebody said."""
        if not self._hold.holds:
            self._run.stop(Stop.LOST)
        elif self._run.stopped_for is not Stop.LOST:
            return
        raise asyncio.CancelledError("the job is not this process's any more")

    @property
    def supabase(self) -> "AsyncClient":
        """The shared client."""
        self.admit()
        return self._client.get()

    def progress(self, job: Job, fraction: float, message: str | None) -> None:
        """Note progress, unless the job has been settled meanwhile."""
        self.admit()
        if not self._run.settling:
            self._reporter.progress(job, fraction, message)
            if self._bus.wants(JobProgress):
                shown = None if message is None else to_text(redact(message), 500)
                self._bus.publish(JobProgress(**self._run.about, progress=fraction, message=shown))

    def item_progress(self, job: Job, key: str, fraction: float) -> None:
        """Note an item's progress, likewise."""
        self.admit()
        if not self._run.settling:
            self._reporter.item_progress(job, key, fraction)

    def log(self, job: Job, level: str, message: str, fields: dict[str, Any]) -> None:
        """Keep a line, likewise."""
        self.admit()
        if not self._run.settling:
            self._reporter.line(job, level, message, fields)

    def classify(self, error: BaseException) -> Failure:
        """Ask the application's rules what an item's exception means."""
        failure = self._classifier.classify(error)
        if failure.code == ErrorCode.HANDLER_CRASHED and type(error) not in self._crashes:
            self._crashes.add(type(error))  # once: thousands of items may fail alike
            self._incidents.attempt_crashed(self._run.job, error)
        return failure

    async def finish_item(self, job: Job, outcome: ItemOutcome) -> Failure | None:
        """Settle an item; one that the database cannot take becomes a failure."""
        self.admit()
        settled = await self._settler.item(self._run.attempt, outcome)
        self.admit()
        if settled.error is not None:
            self._run.log.error("item.refused", item=outcome.key, error=settled.error)
            failure = Failure(ErrorCode.INVALID_RESULT, to_text(settled.error), retryable=False)
            await self._settler.item(self._run.attempt, ItemOutcome(outcome.key, failure=failure))
            self._tell(outcome.key, failure)
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
        self._tell(outcome.key, outcome.failure)
        return None

    async def save_checkpoint(self, job: Job, step: Step) -> None:
        """Store a step; raises ``JobError`` if it cannot be stored, or the job is somebody else's."""
        self.admit()
        settled = await self._settler.checkpoint(self._run.attempt, step)
        self._check(stale=settled.stale)
        if settled.error is not None:
            raise JobError(to_text(settled.error), code=ErrorCode.INVALID_RESULT)
        self._run.log.debug("checkpoint.saved", checkpoint=step.name)

    async def read_checkpoint(self, job: Job, name: str) -> Any:
        """Get a result that did not come with the job; raises ``JobError`` if that is somebody else's."""
        self.admit()
        answer = await self._settler.read_checkpoint(self._run.attempt, name)
        self._check(stale=answer.stale)
        return answer.result

    async def spawn(
        self, job: Job, children: Sequence[NewChild], on_child_failure: OnChildFailure | None
    ) -> Sequence[UUID]:
        """Have the children made; raises ``JobError`` if the job is somebody else's."""
        self.admit()
        if (trace := carrier()) is not None:  # else they have their parent's
            children = [{"trace_context": trace, **child} for child in children]
        spawned = await self._settler.spawn(self._run.attempt, children, on_child_failure)
        self._check(stale=spawned.stale)
        made = sum(child.created for child in spawned.jobs)
        self._run.log.info("job.spawned", children=len(spawned.jobs), new=made)
        return [child.id for child in spawned.jobs]

    def _tell(self, key: str, failure: Failure | None) -> None:
        if self._bus.wants(ItemFinished):
            self._bus.publish(
                ItemFinished(
                    **self._run.about,
                    key=key,
                    status="completed" if failure is None else "failed",
                    error_code=None if failure is None else failure.code,
                )
            )

    def _check(self, *, stale: bool) -> None:
        """Look at an answer: the job may have become somebody else's meanwhile."""
        self.admit()
        if stale:
            self._run.stop(Stop.LOST)
            raise JobError("another worker has the job", code=ErrorCode.LEASE_LOST)
