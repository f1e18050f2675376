"""The database is the truth: what no daemon has told of is read from it, and told.

A worker says from time to time up to when all jobs that it ended have been told of, and leaves the rest to
the reader, which is one of those that live (``read_ended_jobs``). So a process may die between a job's end
and the broker's acknowledgement, and a job may end without any worker.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from processor.answers import EndedJob, EndedJobs
from processor.errors import ApiError
from processor.mqtt.backlog import Backlog
from processor.rpc import Rpc

_BATCH = 500
_MOST_MARKS = 100

log = structlog.get_logger("processor.mqtt")


class NotTakenError(Exception):
    """The broker went away before it had taken all."""


@dataclass(slots=True)
class _Mark:
    """What ended before ``now`` of the server has been heard of, but for the outcomes on their way then."""

    now: datetime
    unsettled: AbstractSet[UUID]
    settled: int | None = None
    """In which turn all of these had been answered."""


class Ended:
    """Looks every ``seconds``.

    ``unsettled`` are the jobs of which an outcome is on its way; ``oldest`` is the epoch of the oldest end
    that waits; ``able`` says whether there is a broker, and room; ``tell`` sends, and raises
    :class:`NotTakenError`.
    """

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        backlog: Backlog,
        *,
        seconds: float,
        unsettled: Callable[[], AbstractSet[UUID]],
        oldest: Callable[[], float],
        able: Callable[[], bool],
        tell: Callable[[Sequence[EndedJob]], Awaitable[None]],
    ) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._backlog = backlog
        self._seconds = seconds
        self._unsettled = unsettled
        self._oldest = oldest
        self._able = able
        self._tell = tell
        self._told_at: datetime | None = None
        self._marks: deque[_Mark] = deque()
        self._last: EndedJobs | None = None
        self._doubt: int | None = None
        self._doubt_at: datetime | None = None
        self._failed = False

    def doubt(self) -> None:
        """Hear that a job may have ended, or its end been dropped, without being told: its row will say."""
        self._doubt, self._doubt_at = self._backlog.epoch, None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            more = await self.look()
            jitter = random.uniform(0.8, 1.2)  # noqa: S311 - not for secrets
            await asyncio.sleep(0 if more else self._seconds * jitter)

    async def look(self) -> bool:
        """Say how far this worker is, and tell what it is to tell; return whether there is more of that."""
        self._backlog.epoch += 1
        self._move()
        unsettled, able, own = self._unsettled(), self._able(), self._doubt is not None
        doubt = self._doubt
        try:
            answer = await self._rpc.read_ended_jobs(
                self._id, told_at=self._told_at, last=self._last, own=own, batch=_BATCH if able else 0
            )
        except ApiError as error:  # unknown worker: it registers again, and this call makes it known
            if not self._failed:
                log.warning("mqtt.ended_not_read", error=str(error))
            self._failed = True
            return False
        self._failed = False
        self._last = None
        if len(self._marks) < _MOST_MARKS:
            self._marks.append(_Mark(answer.now, unsettled))
        if not able:
            return False
        if answer.jobs:
            try:
                await self._tell(answer.jobs)
            except NotTakenError:
                return False
            log.info("mqtt.caught_up", jobs=len(answer.jobs))
        self._last = answer
        if own and not answer.more and self._doubt == doubt:
            self._believe(answer)
        return answer.more

    def _believe(self, answer: EndedJobs) -> None:
        """Let go of a doubt when what was in question has been read."""
        if self._doubt_at is None:
            self._doubt_at = answer.now
        elif answer.horizon >= self._doubt_at:
            self._doubt = self._doubt_at = None

    def _move(self) -> None:
        """Move on what this worker has told, as far as that is certain."""
        turn, unsettled = self._backlog.epoch, self._unsettled()
        for mark in self._marks:
            if mark.settled is None and mark.unsettled.isdisjoint(unsettled):
                mark.settled = turn
        if self._doubt is not None:
            return
        oldest = min(self._oldest(), turn)  # what was answered a moment ago may not have been heard of
        while self._marks and (settled := self._marks[0].settled) is not None and settled < oldest:
            self._told_at = self._marks.popleft().now
