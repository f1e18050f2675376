"""What has happened and has not been told yet, in memory.

Of a job only the newest counts: its end takes the place of all before it, so nothing can be told after it.
A state that others may have changed meanwhile is not told at all.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from processor.events.lifecycle import (
    AttemptEnded,
    Event,
    JobEvent,
    JobFinished,
    JobLost,
    JobProgress,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobStarted,
)
from processor.mqtt.messages import Message, Scribe

HEARD = (JobFinished, JobStarted, JobProgress, JobRetried, JobSnoozed, JobReleased, JobLost)
"""What is heard of; all else need not be made for it."""
MOST_STATES = 10_000
"""Jobs whose state waits to be told; ends are not counted, they go to disk."""
_MARGIN = 0.5
"""Seconds before a job may run elsewhere, from which on its state is not ours to tell."""
_STALE = 5.0
"""Seconds after which the state of a job that we do not hold is old: it may have been cancelled."""


@dataclass(slots=True)
class End:
    """The end of a job that is to be told; ``epoch`` is when it was heard of."""

    epoch: int
    event: JobFinished | None = None
    message: Message | None = None

    def write(self, scribe: Scribe) -> Message:
        """Return it as a message."""
        if self.message is None:
            if self.event is None:
                raise RuntimeError("an end is an event or a message")
            self.message = scribe.status(self.event)
        return self.message


class Batch:
    """Messages that somebody waits for: ``done`` is true when the broker has all, false when it cannot."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._left = len(messages)
        self.told = [Told(message, self) for message in messages]

    def taken(self) -> None:
        """Hear that the broker has taken one of them."""
        self._left -= 1
        if self._left == 0:
            self._end(told=True)

    def fail(self) -> None:
        """Hear that the connection has ended before."""
        self._end(told=False)

    def _end(self, *, told: bool) -> None:
        if not self.done.done():
            self.done.set_result(told)


@dataclass(frozen=True, slots=True)
class Told:
    """One message of a batch."""

    message: Message
    batch: Batch


Sent = End | Told | JobEvent | Message
"""What was taken from here: it comes back if nobody acknowledges it."""


class Backlog:
    """Takes events, and gives what is to be sent next.

    ``holds`` says whether this worker's jobs are still its own; ``on_doubt`` hears that a job may have
    ended without an event.
    """

    def __init__(self, holds: Callable[[], bool], on_doubt: Callable[[], None]) -> None:
        self._holds = holds
        self._on_doubt = on_doubt
        self.epoch = 0
        self.ends: deque[End] = deque()
        self.news: OrderedDict[str, Message] = OrderedDict()
        """By topic, of what only the latest counts: the worker's state, depths, topics to be cleared."""
        self.batch: deque[Told] = deque()
        self.dropped = {"status": 0, "progress": 0}
        self._states: OrderedDict[UUID, JobEvent] = OrderedDict()
        self._progress: OrderedDict[UUID, JobProgress] = OrderedDict()
        self._running: set[UUID] = set()

    def __len__(self) -> int:
        return len(self.ends) + len(self.news) + len(self.batch) + len(self._states) + len(self._progress)

    def hear(self, event: Event) -> bool:
        """Take an event; say whether there is something to be told of it."""
        match event:
            case JobFinished():
                self._forget(event.job_id)
                self.ends.append(End(self.epoch, event))
            case JobStarted():
                self._running.add(event.job_id)
                self._states[event.job_id] = event
            case JobProgress():
                self._progress[event.job_id] = event
                if len(self._progress) > MOST_STATES:
                    self._progress.popitem(last=False)
                    self.dropped["progress"] += 1
            case JobRetried() | JobSnoozed():
                self._forget(event.job_id)
                self._states[event.job_id] = event
                if len(self._states) > MOST_STATES:
                    self._states.popitem(last=False)
                    self.dropped["status"] += 1
            case JobReleased() | JobLost():
                self._forget(event.job_id)
                self._on_doubt()
                return False
            case _:
                return False
        return True

    def say(self, message: Message) -> None:
        """Have a message sent, in place of an older one on its topic."""
        self.news[message.topic] = message

    def next(self) -> Sent | None:
        """Take what is to be sent next; None: nothing."""
        if self.news:
            return self.news.popitem(last=False)[1]
        if self.ends:
            return self.ends.popleft()
        if self.batch:
            return self.batch.popleft()
        while self._states:
            event = self._states.popitem(last=False)[1]
            if self._ours(event):
                return event
            self.dropped["status"] += 1
        while self._progress:
            progress = self._progress.popitem(last=False)[1]
            if progress.job_id in self._running and self._holds():
                return progress
            self.dropped["progress"] += 1
        return None

    def back(self, sent: Iterable[Sent]) -> None:
        """Take back what nobody has acknowledged, in the order in which it was sent."""
        for one in reversed(list(sent)):
            match one:
                case End():
                    self.ends.appendleft(one)
                case Told():
                    one.batch.fail()
                case Message():
                    if one.topic not in self.news:
                        self.news[one.topic] = one
                case JobStarted() if one.job_id in self._running and one.job_id not in self._states:
                    self._states[one.job_id] = one

    def oldest(self, sent: Iterable[Sent]) -> float:
        """Return when the oldest end was heard of that is not told, those on their way included."""
        on_their_way = min((one.epoch for one in sent if isinstance(one, End)), default=math.inf)
        return min(on_their_way, self.ends[0].epoch if self.ends else math.inf)

    def _forget(self, job_id: UUID) -> None:
        self._running.discard(job_id)
        self._states.pop(job_id, None)
        self._progress.pop(job_id, None)

    def _ours(self, event: JobEvent) -> bool:
        """Whether nobody else can have told anything of the job since."""
        if not isinstance(event, AttemptEnded):
            return event.job_id in self._running and self._holds()
        now = datetime.now(UTC)
        if (now - event.at).total_seconds() > _STALE:
            return False
        run_at = event.run_at if isinstance(event, (JobRetried, JobSnoozed)) else None
        waits = isinstance(event, JobSnoozed) and event.waiting  # for children, which may end at any time
        return run_at is not None and not waits and (run_at - now).total_seconds() > _MARGIN


class Pace:
    """So many a second, and no more than a few at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()

    def take(self) -> float:
        """Take one; return how many seconds to wait if there is none."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0
