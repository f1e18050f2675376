"""The worker's slots: wake → claim → dispatch, in each lane."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain
from uuid import UUID, uuid4

import structlog

from processor.answers import Attempt
from processor.errors import ApiError, WorkerUnknown
from processor.events.bus import Bus
from processor.events.lifecycle import JobClaimed
from processor.executor import Executor
from processor.lane import Lane, Request, local
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


class Worker:
    """Claims jobs into free slots and runs them.

    ``on_unknown`` is awaited when the server has forgotten this worker: it registers it again;
    ``observer`` hears of claims, ``bus`` of the jobs they bring. Those of ``aside`` have slots of their own.
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
        aside: Lane | None = None,
    ) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._main = Lane(queues, slots)
        self._lanes = (self._main,) if aside is None else (self._main, aside)
        self._on_unknown = on_unknown
        self._observer = observer
        self._bus = bus or Bus()
        self._executor: Executor | None = None
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strays: set[Run] = set()
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
        return sum(lane.slots for lane in self._lanes)

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
        if len(self._strays) < self._main.slots:
            return None
        names = ", ".join(sorted(f"{run.job.kind} {run.job.id}" for run in self._strays))
        return f"handlers that ignore their cancellation have every slot: {names}"

    @property
    def stuck(self) -> str | None:
        """Why the claim loop must be taken for dead, although its task is not."""
        able = () if self._pauses else self._able
        if not self._claiming and not any(lane.sources for lane in able):
            return None  # nothing to do
        silent = asyncio.get_running_loop().time() - self._moved
        return f"no claim has begun or ended for {silent:.0f} s" if silent > _STUCK_SECONDS else None

    def _free(self, lane: Lane) -> int:
        if len(self._lanes) == 1:
            return lane.slots - len(self._runs) - len(self._strays)
        taken = chain(self._runs.values(), self._strays)
        return lane.slots - sum(self._lane_of(run.job.queue) is lane for run in taken)

    def _lane_of(self, queue: str) -> Lane:
        return next((lane for lane in self._lanes if queue in lane.queues), self._main)

    @property
    def _able(self) -> tuple[Lane, ...]:
        """The lanes that have a slot free."""
        return tuple(lane for lane in self._lanes if self._free(lane) > 0)

    @property
    def runs(self) -> tuple[Run, ...]:
        """What runs here, and since when."""
        return tuple(self._runs.values())

    @property
    def pauses(self) -> tuple[str, ...]:
        """Why nothing is claimed; empty: something would be."""
        return tuple(sorted(self._pauses))

    def resize(self, slots: int) -> None:
        """Run up to ``slots`` jobs of the main lane from now on; of what runs nothing is stopped."""
        self._main.slots = slots
        self._changed.set()

    # -- when to look -----------------------------------------------------------------------------

    def wake(self, source: str, lane: Lane | None = None) -> None:
        """Look for work now, in one lane or in all; ``source`` says who thinks so."""
        if not any(lane.sources for lane in self._lanes):
            self._move()
        for concerned in self._lanes if lane is None else (lane,):
            concerned.sources.add(source)
        self._changed.set()

    def due(self, next_due_at: datetime | None, now: datetime, *, sent: float, received: float) -> None:
        """Hear from a heartbeat when the next claim makes sense; times of the server, and of the loop."""
        due = local(next_due_at, now, sent, received)
        # a claim that began or ended meanwhile knows better, unless this is sooner
        overlapped = self._requested or self._claimed_at >= sent
        for lane in self._lanes:
            lane.due = min(lane.due, due) if overlapped else due
        if any(lane.due <= received for lane in self._lanes):
            self.wake("sweep")
        self._changed.set()

    def claims_since(self, moment: float) -> bool:
        """Whether a claim is on its way, or was answered after ``moment`` of the loop's clock.

        One whose answer was lost is on its way until it has been repeated, which nobody does in a pause.
        """
        repeated = self._requested and not self._pauses
        return self._claiming or repeated or self._claimed_at >= moment

    @property
    def _requested(self) -> bool:
        return any(lane.request is not None for lane in self._lanes)

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
            able = () if self._pauses else self._able
            due = min((lane.due for lane in able), default=math.inf)
            if due <= loop.time() or any(lane.sources for lane in able):
                return
            pause = due - loop.time() if due < math.inf else None
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        now = asyncio.get_running_loop().time()
        lanes = [lane for lane in self._able if lane.sources or lane.due <= now]
        self._claiming = True
        self._idle.clear()
        if len(lanes) == 1:
            await self._claim_into(lanes[0])
            return
        for failed in await asyncio.gather(*map(self._claim_into, lanes), return_exceptions=True):
            if failed is not None:
                raise failed

    async def _claim_into(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        sources, lane.sources = lane.sources or {"due"}, set()
        if lane.request is None:
            lane.request = Request(uuid4(), self._free(lane))
        request = lane.request
        sent = loop.time()
        claim = await self._rpc.claim_jobs(self._id, request.id, queues=lane.queues, limit=request.limit)
        received = loop.time()
        lane.request = None
        self._claimed_at = received
        self.looked = True
        lane.note(claim, sent, received)
        self._observer.claim_answered(frozenset(sources), len(claim.jobs))
        if len(claim.jobs) >= request.limit:
            lane.sources.add("next")
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
        self.wake("finish", self._lane_of(run.job.queue))
        self._note_idle()

    def _came_back(self, run: Run) -> None:
        self._strays.discard(run)
        self.wake("finish", self._lane_of(run.job.queue))

    def _note_idle(self) -> None:
        if not self._tasks and not self._claiming:
            self._idle.set()
