"""The bus: what waits, what is dropped, who is isolated from whom, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from processor.events.bus import Bus
from processor.events.lifecycle import (
    About,
    AttemptEnded,
    Event,
    JobEvent,
    JobFinished,
    JobLost,
    JobProgress,
    JobReleased,
    JobRetried,
    JobsRescued,
    JobStarted,
    end_id,
)
from processor.observer import Observer

PATIENCE = 30.0


class Counting(Observer):
    def __init__(self) -> None:
        self.dropped: list[str] = []

    def event_dropped(self, subscriber: str) -> None:
        self.dropped.append(subscriber)


class Slow:
    """A subscriber that ends hearing of as many events as it is let."""

    def __init__(self, events: int = 0) -> None:
        self.heard: list[Event] = []
        self._let = asyncio.Semaphore(events)
        self.entered = asyncio.Event()

    async def __call__(self, event: Event) -> None:
        self.entered.set()
        await self._let.acquire()
        self.heard.append(event)

    def go(self, events: int) -> None:
        for _ in range(events):
            self._let.release()


def about(job_id: UUID | None = None) -> About:
    return {
        "job_id": job_id or uuid4(),
        "queue": "q",
        "kind": "k",
        "attempt": 1,
        "owner_id": None,
        "trace_context": None,
    }


def progress(share: float) -> JobProgress:
    return JobProgress(**about(), progress=share)


def finished(status: str = "completed") -> JobFinished:
    return JobFinished(**about(), ran=1.0, status=status)


@pytest.fixture
async def observer() -> Counting:
    return Counting()


@pytest.fixture
async def bus(observer: Counting) -> AsyncIterator[Bus]:
    bus = Bus(observer)
    yield bus
    await bus.close(0)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


# -- what a subscriber hears ----------------------------------------------------------------------


async def test_a_subscriber_hears_all_in_the_order_published(bus: Bus) -> None:
    heard: list[Event] = []

    async def hear(event: Event) -> None:
        heard.append(event)

    bus.subscribe("all", hear)
    told = [JobStarted(**about()), progress(0.5), finished(), JobsRescued(count=2)]
    for event in told:
        bus.publish(event)
    assert heard == []  # not within the publication
    await until(lambda: len(heard) == len(told))
    assert heard == told


async def test_a_subscriber_hears_of_the_kinds_it_wants_and_of_those_derived_from_them(bus: Bus) -> None:
    heard: list[Event] = []

    async def hear(event: Event) -> None:
        heard.append(event)

    bus.subscribe("ends", hear, kinds=(AttemptEnded, JobsRescued))
    told = [finished(), JobReleased(**about(), ran=1.0), JobsRescued(count=1)]
    for event in (JobStarted(**about()), told[0], progress(1), *told[1:]):
        bus.publish(event)
    await until(lambda: len(heard) == len(told))
    assert heard == told


async def test_events_are_wanted_while_somebody_would_hear_one_of_them(bus: Bus) -> None:
    async def hear(_event: Event) -> None: ...

    assert not bus.wants(Event)
    bus.subscribe("ends", hear, kinds=(JobFinished,))
    assert bus.wants(JobFinished)
    assert bus.wants(AttemptEnded)  # one of them may be such an end
    assert bus.wants(JobEvent)
    assert not bus.wants(JobLost)
    assert not bus.wants(JobProgress)
    await bus.close(PATIENCE)
    assert not bus.wants(JobFinished)


async def test_a_listener_hears_within_the_publication_and_one_that_raises_harms_nobody(bus: Bus) -> None:
    heard: list[Event] = []

    def broken(_event: JobFinished) -> None:
        raise RuntimeError("boom")

    bus.listen("broken", broken, JobFinished)
    bus.listen("sound", heard.append, JobEvent)
    event = finished()
    with capture_logs() as lines:
        bus.publish(event)
    assert heard == [event]
    [line] = lines
    assert (line["event"], line["listener"], line["of"]) == (
        "events.listener_failed",
        "broken",
        "job.completed",
    )


# -- whoever is slow, or fails --------------------------------------------------------------------


async def test_a_slow_subscriber_loses_its_oldest_progress_and_nothing_else(
    bus: Bus, observer: Counting
) -> None:
    slow, quick = Slow(), Slow(1000)
    subscription = bus.subscribe("slow", slow, capacity=10)
    bus.subscribe("quick", quick)
    first = JobStarted(**about())
    bus.publish(first)
    await asyncio.wait_for(slow.entered.wait(), PATIENCE)
    told: list[Event] = []
    with capture_logs() as lines:
        for number in range(40):
            told.append(progress(number / 40))
            if number % 4 == 0:
                told.append(finished())
        for event in told:
            bus.publish(event)
    ends = [event for event in told if event.terminal]
    assert len(ends) == 10
    # what is kept beside the ends is the latest progress, as far as there is room: here there is none
    assert subscription.waiting == 10
    assert subscription.dropped == 40
    assert observer.dropped == ["slow"] * 40
    assert [line["event"] for line in lines] == ["events.dropped"]  # once, however many
    slow.go(11)
    await until(lambda: len(slow.heard) == 11)
    assert slow.heard == [first, *ends]
    await until(lambda: len(quick.heard) == len(told) + 1)  # and nobody else lost anything
    with capture_logs() as lines:
        for number in range(20):
            bus.publish(progress(number / 20))
    assert [line["event"] for line in lines] == ["events.dropped"]  # it had caught up: this is another time


async def test_of_progress_the_latest_is_kept(bus: Bus) -> None:
    slow = Slow()
    bus.subscribe("slow", slow, capacity=3)
    told = [progress(number / 10) for number in range(10)]
    for event in told:
        bus.publish(event)
    slow.go(3)
    await until(lambda: len(slow.heard) == 3)
    assert slow.heard == told[-3:]


async def test_what_may_not_be_dropped_waits_however_much_it_is(bus: Bus, observer: Counting) -> None:
    slow = Slow()
    subscription = bus.subscribe("slow", slow, capacity=5)
    for _ in range(100):
        bus.publish(finished())
    bus.publish(progress(0.5))
    assert subscription.waiting == 100
    assert observer.dropped == ["slow"]


async def test_publishing_never_waits_for_a_handler_that_hangs(bus: Bus) -> None:
    hangs = Slow()
    subscription = bus.subscribe("hangs", hangs, capacity=100)
    bus.publish(finished())
    await asyncio.wait_for(hangs.entered.wait(), PATIENCE)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(count(), name="others")
    before = turns
    for number in range(10_000):
        bus.publish(progress(0.5) if number % 2 else finished())
    assert turns == before  # it gave nobody a turn: it waited for nothing
    assert subscription.waiting == 5000  # nothing that may be dropped is left
    assert subscription.dropped == 5000
    others.cancel()
    with pytest.raises(asyncio.CancelledError):
        await others


async def test_a_failing_subscriber_goes_on_and_harms_nobody(bus: Bus) -> None:
    ended: list[asyncio.Task[None]] = []
    bus = Bus(on_end=ended.append)
    tried: list[Event] = []
    sound = Slow(1000)

    async def fails(event: Event) -> None:
        tried.append(event)
        if len(tried) == 2:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled  # a library's own, not ours
        raise RuntimeError("boom")

    bus.subscribe("fails", fails)
    bus.subscribe("sound", sound)
    told = [finished() for _ in range(3)]
    with capture_logs() as lines:
        for event in told:
            bus.publish(event)
        await until(lambda: len(tried) == len(sound.heard) == 3)
    assert tried == sound.heard == told
    assert [(line["event"], line["subscriber"]) for line in lines] == [
        ("events.subscriber_failed", "fails")
    ] * 3
    assert ended == []
    await bus.close(PATIENCE)


async def test_a_subscriber_that_waits_for_nothing_lets_others_have_their_turn(bus: Bus) -> None:
    heard = 0
    at_turns: set[int] = set()

    async def greedy(_event: Event) -> None:
        nonlocal heard
        heard += 1

    bus.subscribe("greedy", greedy, capacity=10_000)
    for _ in range(1000):
        bus.publish(finished())
    while heard < 1000:
        at_turns.add(heard)
        await asyncio.sleep(0)
    assert len(at_turns) > 10


# -- the end --------------------------------------------------------------------------------------


async def test_closing_lets_subscribers_finish_what_waits(bus: Bus) -> None:
    slow = Slow()
    subscription = bus.subscribe("slow", slow)
    told = [finished() for _ in range(5)]
    for event in told:
        bus.publish(event)
    closing = asyncio.create_task(bus.close(PATIENCE), name="closing")
    await until(lambda: not bus.wants(JobFinished))
    bus.publish(finished())  # too late
    slow.go(5)
    await asyncio.wait_for(closing, PATIENCE)
    assert slow.heard == told
    assert subscription.task.done()
    assert not subscription.task.cancelled()


async def test_closing_takes_no_longer_than_it_says_whatever_hangs(bus: Bus) -> None:
    hangs, sound = Slow(), Slow(1000)
    stopped = bus.subscribe("hangs", hangs)
    bus.subscribe("sound", sound)
    for _ in range(3):
        bus.publish(finished())
    began = asyncio.get_running_loop().time()
    with capture_logs() as lines:
        await bus.close(0.2)
    assert 0.2 <= asyncio.get_running_loop().time() - began < PATIENCE
    assert stopped.task.cancelled()
    assert len(sound.heard) == 3
    # of one it was about to hear
    assert [(line["event"], line["subscriber"], line["events"]) for line in lines] == [
        ("events.lost", "hangs", 3)
    ]


async def test_a_handler_that_ignores_its_end_does_not_hold_up_the_others(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.events.bus._CANCEL_SECONDS", 0.1)
    release = asyncio.Event()

    async def deaf(_event: Event) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    subscription = bus.subscribe("deaf", deaf)
    bus.publish(finished())
    await asyncio.wait_for(bus.close(0.1), PATIENCE)
    assert not subscription.task.done()
    release.set()
    await asyncio.wait({subscription.task}, timeout=PATIENCE)


async def test_cancelling_the_close_stops_the_subscribers(bus: Bus) -> None:
    subscription = bus.subscribe("hangs", Slow())
    bus.publish(finished())
    closing = asyncio.create_task(bus.close(PATIENCE), name="closing")
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.wait({subscription.task}, timeout=PATIENCE)
    assert subscription.task.cancelled()


async def test_the_owner_hears_of_a_task_that_was_ended_by_others() -> None:
    ended: list[asyncio.Task[None]] = []
    bus = Bus(on_end=ended.append)
    subscription = bus.subscribe("dead", Slow())
    assert subscription.task.get_name() == "events:dead"
    subscription.task.cancel()
    await until(lambda: ended == [subscription.task])
    await bus.close(0)


# -- ids and names --------------------------------------------------------------------------------


def test_the_end_of_a_job_has_the_same_id_whoever_tells_of_it() -> None:
    job_id = UUID("00000000-0000-0000-0000-000000000001")
    one = JobFinished(**about(job_id), ran=1.0, status="completed")
    other = JobFinished(**about(job_id), ran=2.0, status="completed", items_total=3)
    assert one.event_id == other.event_id == end_id(job_id, "completed")
    # part of the protocol: who has stored it compares it with those of later versions
    assert str(one.event_id) == "c89dba7e-bbba-5e6f-986a-cabd751873cc"
    assert end_id(job_id, "failed") != one.event_id
    assert end_id(uuid4(), "completed") != one.event_id


def test_all_other_events_have_ids_of_their_own_which_stay() -> None:
    events = [*(JobsRescued(count=1) for _ in range(3)), JobRetried(**about(), ran=1.0), progress(0.1)]
    apart = {(event.at, event.name) for event in events}
    assert len({event.event_id for event in events}) == len(apart)
    assert [event.event_id for event in events] == [event.event_id for event in events]


@pytest.mark.parametrize("status", ["completed", "partial", "failed", "cancelled"])
def test_the_end_of_a_job_is_named_by_its_status_and_never_dropped(status: str) -> None:
    event = finished(status)
    assert (event.name, event.terminal, event.droppable) == (f"job.{status}", True, False)
