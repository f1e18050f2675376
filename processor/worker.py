"""The worker's slots: wake → claim → dispatch."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import structlog

from processor.answers import Attempt, Claim
from processor.errors import ApiError, WorkerUnknown
from processor.events.bus import Bus
from processor.events.lifecycle import JobClaimed
from processor.executor import Executor
from processor.observer import NOBODY, Observer
from processor.rpc import Rpc
from processor.run import Run, Stop, queued_ms

log = structlog.get_logger("processor.worker")

_SOURCES = ("realtime", "mqtt", "polling", "sweep", "due", "finish", "next")
"""Why a claim was made, the most telling first: it is what the jobs of the claim are logged with."""

_STUCK_SECONDS = 90.0
"""A claim with all its repetitions takes a third of this, even if the API does not answer."""

_AT_ONCE = 200
"""Jobs begun before others have their turn: the database works on what these came to meanwhile."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A claim on its way; repeated as it is until an answer arrives, so that no job is orphaned."""

    id: UUID
    limit: int


class Worker:
    """Claims jobs into free slots and runs them.

    ``on_unknown`` is awaited when the server has forgotten this worker: it registers it again;
    ``observer`` hears of claims, ``bus`` of the jobs that they bring.
    """

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        *,
        queues: Sequence[str],
        slots: int,
        on_unknown: Callable[[], Awaitable[None]],
        observer: Observer = NOBODY,
        bus: Bus | None = None,
    ) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._queues = queues
        self._slots = slots
        self._on_unknown = on_unknown
        self._observer = observer
        self._bus = bus or Bus()
        self._executor: Executor | None = None
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strays: set[Run] = set()
        self._sources: set[str] = set()
        self._due = math.inf
        self._empty_claims = 0
        self._request: _Request | None = None
        self._claiming = False
        self._claimed_at = -math.inf
        self._pauses: set[str] = set()
        self._moved = -math.inf
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.looked = False
        """A claim has been answered: what was waiting when the daemon started has been seen."""
        self.ended = 0
        """Attempts that have ended, in whatever way."""

    def employ(self, executor: Executor) -> None:
        """Give it the executor, which needs a settler, which needs this worker."""
        self._executor = executor

    @property
    def slots(self) -> int:
        """How many jobs run at most at the same time."""
        return self._slots

    @property
    def running(self) -> tuple[Attempt, ...]:
        """The attempts this process holds, settled ones excluded."""
        return tuple(run.attempt for run in self._runs.values())

    @property
    def strays(self) -> tuple[Run, ...]:
        """The settled attempts whose handlers go on all the same; each still has its slot."""
        return tuple(self._strays)

    @property
    def blocked(self) -> str | None:
        """Why nothing can be taken, if handlers that cannot be stopped have all the slots."""
        if len(self._strays) < self._slots:
            return None
        names = ", ".join(sorted(f"{run.job.kind} {run.job.id}" for run in self._strays))
        return f"handlers that ignore their cancellation have every slot: {names}"

    @property
    def stuck(self) -> str | None:
        """Why the claim loop must be taken for dead, although its task is not."""
        able = not self._pauses and self._free > 0
        if not self._claiming and not (able and self._sources):
            return None  # nothing to do
        silent = asyncio.get_running_loop().time() - self._moved
        return f"no claim has begun or ended for {silent:.0f} s" if silent > _STUCK_SECONDS else None

    @property
    def _free(self) -> int:
        return self._slots - len(self._runs) - len(self._strays)

    @property
    def runs(self) -> tuple[Run, ...]:
        """What runs here, and since when."""
        return tuple(self._runs.values())

    @property
    def pauses(self) -> tuple[str, ...]:
        """Why nothing is claimed; empty: something would be."""
        return tuple(sorted(self._pauses))

    def resize(self, slots: int) -> None:
        """Run up to ``slots`` jobs at the same time from now on; of what runs nothing is stopped."""
        self._slots = slots
        self._changed.set()

    # -- when to look -----------------------------------------------------------------------------

    def wake(self, source: str) -> None:
        """Look for work now; ``source`` says who thinks so."""
        if not self._sources:
            self._move()
        self._sources.add(source)
        self._changed.set()

    def due(self, next_due_at: datetime | None, now: datetime, *, sent: float, received: float) -> None:
        """Hear from a heartbeat when the next claim makes sense; times of the server, and of the loop."""
        due = _local(next_due_at, now, sent, received)
        # a claim that began or ended meanwhile knows better, unless this is sooner
        overlapped = self._request is not None or self._claimed_at >= sent
        self._due = min(self._due, due) if overlapped else due
        if self._due <= received:
            self.wake("sweep")
        self._changed.set()

    def claims_since(self, moment: float) -> bool:
        """Whether a claim is on its way, or was answered after ``moment`` of the loop's clock.

        One whose answer was lost is on its way until it has been repeated, which nobody does in a pause.
        """
        repeated = self._request is not None and not self._pauses
        return self._claiming or repeated or self._claimed_at >= moment

    def pause(self, reason: str) -> None:
        """Claim nothing until every reason to pause is gone."""
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """Take back a reason to pause."""
        self._move()
        self._pauses.discard(reason)
        self._changed.set()

    # -- what runs --------------------------------------------------------------------------------

    def cancel(self, ids: Iterable[UUID]) -> None:
        """Stop the handlers of jobs that somebody wants cancelled."""
        for job_id in ids:
            if (run := self._runs.get(job_id)) is not None:
                run.stop(Stop.CANCEL)

    def lose(self, job_id: UUID, attempt: int) -> None:
        """Stop the handler of a job that belongs to somebody else by now."""
        run = self._runs.get(job_id)
        if run is not None and run.attempt.attempt == attempt:
            run.stop(Stop.LOST)

    def stop_all(self, reason: Stop) -> None:
        """Stop every handler."""
        for run in self._runs.values():
            run.stop(reason)

    async def idle(self) -> None:
        """Wait until nothing runs and no claim is on its way."""
        await self._idle.wait()

    # -- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim into free slots whenever there is reason to, until cancelled."""
        while True:
            await self._until_reason()
            self._move()
            pause = 0.0
            try:
                try:
                    await self._claim()
                except WorkerUnknown:
                    await self._on_unknown()
                    self.wake("sweep")
            except ApiError as error:
                log.warning("worker.claim_failed", error=str(error))
                self.wake("sweep")
                pause = random.uniform(0.5, 3)  # noqa: S311 - jitter
            finally:
                self._claiming = False
                self._move()
                self._note_idle()
            await asyncio.sleep(pause)

    def _move(self) -> None:
        self._moved = asyncio.get_running_loop().time()

    async def _until_reason(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            able = not self._pauses and self._free > 0
            if able and (self._sources or self._due <= loop.time()):
                return
            pause = self._due - loop.time() if able and self._due < math.inf else None
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        loop = asyncio.get_running_loop()
        sources, self._sources = self._sources or {"due"}, set()
        if self._request is None:
            self._request = _Request(uuid4(), self._free)
        request = self._request
        self._claiming = True
        self._idle.clear()
        sent = loop.time()
        claim = await self._rpc.claim_jobs(self._id, request.id, queues=self._queues, limit=request.limit)
        received = loop.time()
        self._request = None
        self._claimed_at = received
        self.looked = True
        self._note_due(claim, sent, received)
        self._observer.claim_answered(frozenset(sources), len(claim.jobs))
        if len(claim.jobs) >= request.limit:
            self._sources.add("next")
        source = next((name for name in _SOURCES if name in sources), "sweep")
        runs = [
            Run(job, worker_id=self._id, wake=source, queued_ms=queued_ms(job, claim.now))
            for job in claim.jobs
        ]
        self._runs |= {run.job.id: run for run in runs}  # all of them at once: they are this process's
        for number, run in enumerate(runs, 1):
            self._dispatch(run)
            if number % _AT_ONCE == 0:  # the first ones end, and are told, while the others begin
                await asyncio.sleep(0)

    def _note_due(self, claim: Claim, sent: float, received: float) -> None:
        self._due = _local(claim.next_due_at, claim.now, sent, received)
        self._empty_claims = 0 if claim.jobs else self._empty_claims + 1
        if not claim.jobs and self._due <= received:
            # due, yet not to be had: others hold it locked for a moment, so insist gently
            self._due = received + min(0.05 * 2 ** min(self._empty_claims, 10), 5.0)

    def _dispatch(self, run: Run) -> None:
        if self._executor is None:
            raise RuntimeError("employ() an executor before claiming")
        self._idle.clear()
        if self._bus.wants(JobClaimed):
            self._bus.publish(JobClaimed(**run.about, waited=run.queued_ms / 1000))
        if self._pauses:  # the reason to pause came while the claim was on its way
            run.stop(Stop.RELEASE)
        task = asyncio.create_task(self._executor.run(run), name=f"job:{run.job.kind}:{run.job.id}")
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(run, ended))

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        if self._runs.get(run.job.id) is run:
            del self._runs[run.job.id]
        self._tasks.discard(task)
        self._move()  # a slot may be free at last
        self.ended += 1
        if run.stray is not None and not run.stray.done():
            self._strays.add(run)
            run.stray.add_done_callback(lambda _ended: self._came_back(run))
        if not task.cancelled() and (error := task.exception()) is not None:
            # the heartbeat will find it unknown to us and give it back
            run.log.error("job.unsettled", exc_info=error)
        self.wake("finish")
        self._note_idle()

    def _came_back(self, run: Run) -> None:
        self._strays.discard(run)
        self.wake("finish")

    def _note_idle(self) -> None:
        if not self._tasks and not self._claiming:
            self._idle.set()


def _local(due: datetime | None, now: datetime, sent: float, received: float) -> float:
    """Translate a moment of the server into the loop's clock: its ``now`` was between sent and received."""
    if due is None:
        return math.inf
    return (sent + received) / 2 + (due - now).total_seconds()
