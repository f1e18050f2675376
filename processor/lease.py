"""The worker's right to hold jobs: renewed by heartbeats, and given up before it ends.

The lease is counted from the moment a heartbeat was *sent*, so this process believes it to be over
no later than the database does. If heartbeats have failed until it is about to end, the handlers are
stopped here before anyone else may start them.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import datetime
from uuid import UUID

import structlog

from processor.answers import Attempt, Heartbeat
from processor.errors import ApiError, WorkerUnknown
from processor.events.bus import Bus
from processor.events.lifecycle import JobsRescued
from processor.hold import Hold, clock
from processor.rpc import Rpc, seconds_until
from processor.run import Stop
from processor.worker import Worker

_BEATS = 3
"""Heartbeats in the time of one lease: two may fail."""
_AFTER_A_LEASE = (0.1, 1.0)
"""Seconds after the end of another worker's lease to look whether it was renewed; a fleet spreads out."""

_STUCK_SECONDS = 60.0
"""What a heartbeat's turn may take beyond two intervals: a registration with its repetitions."""

log = structlog.get_logger("processor.lease")


class Lease:
    """Beats, and passes on what the database answers.

    ``feed_mode`` says how the worker learns of jobs; ``on_beat`` hears the server's time of every
    heartbeat, which comes back through the feed; ``on_schedule`` hears in how many seconds a schedule is
    due, if any; ``register`` makes the server know this worker again; ``unsettled`` are the jobs of which
    an outcome is still on its way; ``on_drain`` hears whether an operator wants no more to be claimed.
    """

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        worker: Worker,
        hold: Hold,
        *,
        seconds: float,
        feed_mode: Callable[[], str],
        on_beat: Callable[[datetime], None],
        on_schedule: Callable[[float | None], None],
        register: Callable[[], Awaitable[None]],
        unsettled: Callable[[], AbstractSet[UUID]] = frozenset,
        on_drain: Callable[[bool], None] = lambda _draining: None,
        bus: Bus | None = None,
    ) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._worker = worker
        self._seconds = seconds
        self._feed_mode = feed_mode
        self._on_beat = on_beat
        self._on_schedule = on_schedule
        self._register = register
        self._hold = hold
        self._unsettled = unsettled
        self._on_drain = on_drain
        self._bus = bus or Bus()
        self._nudged = asyncio.Event()
        self._renewed = asyncio.Event()
        self._rescue_in = math.inf
        self._inbox = 0
        self._draining = False
        self._drain_changed = asyncio.Event()
        self._turned: float | None = None
        self.fenced = False
        """The lease is over, or about to be: nothing runs until a heartbeat succeeds."""

    def begin(self, ends_in: float, *, sent: float) -> None:
        """Start from a registration that was sent at ``sent`` of :func:`clock`, with a heartbeat."""
        self._hold.extend(sent + ends_in)
        self._renewed.set()
        self._nudged.set()

    def nudge(self) -> None:
        """Beat now: there may be something to learn."""
        self._nudged.set()

    def on_worker_row(self, row: dict[str, object]) -> None:
        """Beat now if somebody has put something into this worker's inbox, or told it to drain."""
        inbox, draining = row.get("inbox"), row.get("draining")
        if (isinstance(inbox, int) and inbox > self._inbox) or (
            isinstance(draining, bool) and draining != self._draining
        ):
            self.nudge()

    @property
    def stuck(self) -> str | None:
        """Why the heartbeat must be taken for dead, although its task is not; failing is not being dead."""
        if self._turned is None:
            return None  # it has not begun
        silent = asyncio.get_running_loop().time() - self._turned
        if silent <= 2 * self._seconds / _BEATS + _STUCK_SECONDS:
            return None
        return f"no heartbeat has been tried for {silent:.0f} s"

    async def beat_forever(self) -> None:
        """Send heartbeats until cancelled."""
        interval = self._seconds / _BEATS
        while True:
            self._turned = asyncio.get_running_loop().time()
            pause = interval
            try:
                async with asyncio.timeout(interval):
                    await self._beat()
                # another worker's lease may end before that: if it is lost, its jobs wait no longer
                pause = min(interval, self._rescue_in + random.uniform(*_AFTER_A_LEASE))  # noqa: S311 - jitter
            except WorkerUnknown:
                log.warning("lease.unknown_worker", reason="the server has forgotten this worker")
                pause = await self._register_again()
            except (ApiError, TimeoutError) as error:
                log.warning("lease.heartbeat_failed", error=str(error) or "no answer in time")
                pause = min(interval, 1.0)
            try:
                async with asyncio.timeout(pause):
                    await self._nudged.wait()
            except TimeoutError:
                continue

    async def fence_forever(self) -> None:
        """Stop the handlers whenever the lease is about to end without having been renewed."""
        margin = max(self._seconds * 0.1, 0.3)
        while True:
            self._renewed.clear()
            left = self._hold.ends - margin - clock()
            if left <= 0 and not self.fenced:
                self.fenced = True
                log.error(
                    "lease.fenced", running=len(self._worker.running), reason="no heartbeat got through"
                )
                self._worker.pause("lease")
                self._worker.stop_all(Stop.LOST)
            try:
                async with asyncio.timeout(None if self.fenced else left):
                    await self._renewed.wait()
            except TimeoutError:
                continue

    async def announce_drained_forever(self) -> None:
        """Say when nothing is left to do after an operator wanted no more to be claimed, and what then."""
        while True:
            await self._drain_changed.wait()
            self._drain_changed.clear()
            if not self._draining:
                continue
            await self._worker.idle()
            if self._draining:
                go_on = f"update public.job_workers set draining = false where id = '{self._id}'"  # noqa: S608  to be read, with our own id
                log.warning(
                    "lease.drained",
                    hint=f"Nothing runs here any more: stop it (SIGTERM), or let it go on: {go_on}",
                )

    async def _register_again(self) -> float:
        try:
            await self._register()
        except ApiError as error:
            log.warning("lease.registration_failed", error=str(error))
            return 1.0
        return 0.0

    async def _beat(self) -> None:
        self._nudged.clear()
        loop = asyncio.get_running_loop()
        held = self._worker.running
        began, sent = clock(), loop.time()
        answer = await self._rpc.heartbeat_worker(
            self._id, running=[job.id for job in held], feed=self._feed_mode()
        )
        received = loop.time()
        self._on_beat(answer.heartbeat_at)
        self._renew(answer, began)
        self._inbox = max(self._inbox, answer.inbox)
        if answer.rescued:
            log.warning("lease.rescued", jobs=answer.rescued)
            self._bus.publish(JobsRescued(count=answer.rescued))
        self._drain(wanted=answer.draining)
        self._worker.cancel(answer.cancel)
        self._lose(answer, held)
        await self._give_back(answer, sent)
        self._worker.due(answer.next_due_at, answer.now, sent=sent, received=received)
        self._on_schedule(seconds_until(answer.next_schedule_at, answer.now))
        rescue_in = seconds_until(answer.next_rescue_at, answer.now)
        self._rescue_in = math.inf if rescue_in is None else rescue_in

    def _renew(self, answer: Heartbeat, sent: float) -> None:
        self._hold.extend(sent + (answer.lease_expires_at - answer.now).total_seconds())
        if self.fenced:
            self.fenced = False
            log.info("lease.renewed")
            self._worker.resume("lease")
        self._renewed.set()

    def _drain(self, *, wanted: bool) -> None:
        """Claim no more while an operator wants it so."""
        if wanted == self._draining:
            return
        self._draining = wanted
        self._drain_changed.set()
        if wanted:
            log.warning("lease.draining", running=len(self._worker.running), reason="an operator wants it")
            self._worker.pause("drain")
        else:
            log.info("lease.drained_no_more")
            self._worker.resume("drain")
        self._on_drain(wanted)

    def _lose(self, answer: Heartbeat, held: tuple[Attempt, ...]) -> None:
        """Stop what is no longer ours; what was claimed again since the heartbeat has another attempt."""
        lost = set(answer.lost)
        for job in held:
            if job.id in lost:
                self._worker.lose(job.id, job.attempt)

    async def _give_back(self, answer: Heartbeat, sent: float) -> None:
        """Release what the server believes to run here, unless a claim that says so is on its way."""
        if not answer.unknown or self._worker.claims_since(sent):
            return
        # what is released too early could not be told any more what it has done already
        held = self._unsettled() | {job.id for job in self._worker.running}
        forgotten = [job for job in answer.unknown if job.id not in held]
        if forgotten:
            log.warning("lease.forgotten_jobs", jobs=[str(job.id) for job in forgotten])
            await self._rpc.release_jobs(self._id, forgotten)
