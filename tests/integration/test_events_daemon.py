"""What a subscriber of a real daemon's bus sees, moment by moment."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest

from processor import Cancel, JobContext, JobError, JobItem, Processor, Retry, Snooze
from processor.config import Settings
from processor.daemon import Daemon
from processor.events.lifecycle import (
    Event,
    FeedModeChanged,
    ItemFinished,
    JobClaimed,
    JobEvent,
    JobFinished,
    JobLost,
    JobProgress,
    JobRetried,
    JobSeen,
    JobSnoozed,
    JobsRescued,
    QueuePaused,
    WorkerChanged,
)
from processor.rpc import SCHEMA_VERSION, Rpc
from tests import places
from tests.faults import FaultProxy

PATIENCE = 40.0
E = TypeVar("E", bound=Event)


def application(queue: str) -> Processor:
    app = Processor()

    @app.job(f"{queue}.items", queue=queue, item_concurrency=1, credits_per_item=1)
    async def items(job: JobContext) -> dict:
        job.progress(0.25, message="reading with sb_secret_abcdefghijklmnopqrstuv")

        async def one(item: JobItem) -> str:
            if item.payload:
                raise JobError("this one is bad", code="BAD_ITEM", retryable=False)
            return item.key

        return await job.each(one)

    @app.job(f"{queue}.end", queue=queue)
    async def end(job: JobContext) -> None:
        how = job.payload["how"]
        if how == "cancel":
            raise Cancel("no need")
        if how == "fail":
            raise JobError("hopeless", code="HOPELESS", retryable=False)
        if job.attempt == 1 and how == "retry":
            raise Retry("not yet", delay=0)
        if job.attempt == 1 and how == "snooze":
            raise Snooze(0)

    @app.job(f"{queue}.wait", queue=queue)
    async def wait(job: JobContext) -> None:
        if job.attempt == 1:
            await asyncio.sleep(PATIENCE)

    return app


class Watched:
    """A daemon in this process, with a subscriber from its beginning to its end."""

    def __init__(self, place: "Place", app: Processor, **settings: Any) -> None:
        known = {"url": place.stack.url, "key": place.stack.service_role_key, "spool_dir": None}
        self.daemon = Daemon(app, Settings(**known | place.settings | settings))
        self.heard: list[Event] = []
        self._more = asyncio.Event()
        self.daemon.bus.subscribe("test", self._hear)
        self._running = asyncio.create_task(self.daemon.run(), name="daemon")

    async def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self._more.set()

    async def until(self, kind: type[E], where: Callable[[E], bool] = lambda _event: True) -> E:
        """Wait for such an event, and return the first of them."""
        await self.that(lambda: any(where(event) for event in self.all(kind)))
        return next(event for event in self.all(kind) if where(event))

    async def that(self, holds: Callable[[], bool]) -> None:
        """Wait until it has heard so much that this holds."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                assert not self._running.done(), self._running
                self._more.clear()
                await self._more.wait()

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]

    async def ready(self) -> None:
        await self.until(WorkerChanged, lambda event: event.state == "ready")
        await self.until(FeedModeChanged, lambda event: event.mode == "realtime")

    async def ended(self, job_id: str) -> JobFinished:
        return await self.until(JobFinished, lambda event: event.job_id == UUID(job_id))

    def of(self, job_id: str) -> list[JobEvent]:
        """Return what it has seen of a job."""
        return [event for event in self.all(JobEvent) if event.job_id == UUID(job_id)]

    async def stop(self) -> int:
        self.daemon.stop()
        return await asyncio.wait_for(self._running, PATIENCE)

    async def close(self) -> None:
        if not self._running.done():
            await self.stop()


class Place(places.Place):
    """A place whose daemons are watched."""

    settings: dict[str, Any] = {"maintenance_seconds": 0, "slots": 2}  # noqa: RUF012 - never changed

    @asynccontextmanager
    async def watched(self, app: Processor | None = None, **settings: Any) -> AsyncIterator[Watched]:
        watched = Watched(self, app or application(self.queue), **settings)
        try:
            await watched.ready()
            yield watched
        finally:
            await watched.close()


@pytest.fixture
def place(stack, service, eventually: Callable[..., Awaitable[Any]]) -> Place:
    return Place(stack, service, eventually)


def names(events: list[JobEvent]) -> list[str]:
    return [event.name for event in events]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONCE = ["job.claimed", "job.started"]


async def test_a_subscriber_sees_what_becomes_of_jobs_in_order(
    place: Place, new_user: Callable[..., Awaitable[Any]]
) -> None:
    owner = UUID((await new_user(credits=10)).id)
    async with place.watched() as watched:
        items = await place.create(
            "items",
            items=["a", {"key": "b", "payload": {"bad": True}}],
            owner_id=str(owner),
            max_attempts=1,
            trace_context={"traceparent": TRACE},
        )
        await watched.ended(items)
        assert names(watched.of(items)) == [
            *ONCE,
            "job.progress",
            "item.finished",
            "item.finished",
            "job.partial",
        ]
        [claimed, _started, progress, one, two, partial] = watched.of(items)
        assert isinstance(claimed, JobClaimed)
        assert claimed.waited >= 0
        assert (claimed.queue, claimed.kind, claimed.attempt, claimed.owner_id) == (
            place.queue,
            f"{place.queue}.items",
            1,
            owner,
        )
        assert claimed.trace_context is not None
        assert claimed.trace_context["traceparent"] == TRACE
        assert isinstance(progress, JobProgress)
        assert progress.progress == 0.25
        assert progress.message is not None
        assert progress.message.startswith("reading with ")
        assert "abcdefghijklmnop" not in progress.message  # it leaves this process, as the row does
        assert isinstance(one, ItemFinished)
        assert isinstance(two, ItemFinished)
        assert {(e.key, e.status, e.error_code) for e in (one, two)} == {
            ("a", "completed", None),
            ("b", "failed", "BAD_ITEM"),
        }
        assert isinstance(partial, JobFinished)
        row = await place.row(items)
        for fact in ("status", "error_code", "error_message", "items_total", "items_done", "items_failed"):
            assert getattr(partial, fact) == row[fact], fact
        assert (partial.error_code, partial.items_done) == ("ITEMS_FAILED", 1)
        assert (partial.credits_captured, partial.credits_refunded) == (1, 1)
        seen = await watched.until(JobSeen)  # the first job there is
        assert (seen.job_id, seen.queue) == (UUID(items), place.queue)

        retried, snoozed = [await place.create("end", {"how": how}) for how in ("retry", "snooze")]
        cancelled, failed = [await place.create("end", {"how": how}) for how in ("cancel", "fail")]
        for job_id in (retried, snoozed, cancelled, failed):
            await watched.ended(job_id)
        assert names(watched.of(retried)) == [*ONCE, "job.retrying", *ONCE, "job.completed"]
        retrying = watched.of(retried)[2]
        assert isinstance(retrying, JobRetried)
        assert (retrying.attempt, retrying.error_message) == (1, "not yet")
        assert retrying.run_at is not None
        assert names(watched.of(snoozed)) == [*ONCE, "job.snoozed", *ONCE, "job.completed"]
        sleeping = watched.of(snoozed)[2]
        assert isinstance(sleeping, JobSnoozed)
        assert not sleeping.waiting
        assert names(watched.of(cancelled)) == [*ONCE, "job.cancelled"]
        assert names(watched.of(failed)) == [*ONCE, "job.failed"]
        end = watched.of(failed)[-1]
        assert isinstance(end, JobFinished)
        assert (end.error_code, end.error_message) == ("HOPELESS", "hopeless")

        stopped = await place.create("wait")
        await watched.until(JobEvent, lambda e: e.job_id == UUID(stopped) and e.name == "job.started")
        await place.rest.rpc("cancel_job", {"job_id": stopped}).execute()
        await watched.ended(stopped)
        assert names(watched.of(stopped)) == [*ONCE, "job.cancelled"]


async def test_an_application_that_subscribes_hears_its_jobs_and_holds_up_none(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: asyncio.Queue[Event] = asyncio.Queue()
    go_on = asyncio.Event()
    app = application(place.queue)

    @app.resource
    async def box() -> asyncio.Queue[Event]:
        return heard

    @app.subscriber(JobFinished)
    async def ends(event: JobFinished, box: asyncio.Queue[Event]) -> None:
        await go_on.wait()
        box.put_nowait(event)
        raise RuntimeError(f"no use for {event.name}")

    async with place.watched(app) as watched:
        jobs = [await place.create("end", {"how": "succeed"}) for _ in range(3)]
        for job_id in jobs:
            await place.becomes(job_id, "completed")  # while the subscriber hangs in the first event
        assert heard.empty()
        go_on.set()
        assert await watched.stop() == 0
    told = [heard.get_nowait() for _ in range(heard.qsize())]
    assert {str(event.job_id) for event in told if isinstance(event, JobFinished)} == set(jobs)
    assert len(told) == 3
    lines = [line for line in capsys.readouterr().out.splitlines() if "events.subscriber_failed" in line]
    assert len(lines) == 3
    assert all("ends" in line for line in lines)


async def test_what_was_taken_away_has_not_finished(place: Place, admin: asyncpg.Connection) -> None:
    async with place.watched() as watched:
        job_id = await place.create("wait")
        await watched.until(JobEvent, lambda e: e.name == "job.started")
        # as if it had been rescued, and claimed by somebody else
        await admin.execute("update public.jobs set attempt = attempt + 1 where id = $1", UUID(job_id))
        watched.daemon.stop()
        watched.daemon.stop()  # at once
        lost = await watched.until(JobLost)
        assert lost.how in {"stale", "lost"}
        assert names(watched.of(job_id)) == [*ONCE, "job.lost"]


async def test_a_worker_tells_of_its_states_and_a_drain_of_what_goes_back(place: Place) -> None:
    async with place.watched(grace_seconds=0) as watched:
        job_id = await place.create("wait")
        await watched.until(JobEvent, lambda e: e.name == "job.started")
        # an operator wants it to rest
        drain = place.rest.table("job_workers").update
        await drain({"draining": True}).eq("id", str(watched.daemon.id)).execute()
        await watched.until(WorkerChanged, lambda e: e.state == "draining")
        await drain({"draining": False}).eq("id", str(watched.daemon.id)).execute()
        await watched.that(lambda: watched.all(WorkerChanged)[-1].state == "ready")
        assert await watched.stop() == 0
    assert names(watched.of(job_id)) == [*ONCE, "job.released"]
    states = [event.state for event in watched.all(WorkerChanged)]
    assert states == ["starting", "ready", "draining", "ready", "draining", "stopped"]
    assert isinstance(watched.heard[-1], WorkerChanged)  # after everything else
    row = await place.row(job_id)
    assert (row["status"], row["failures"]) == ("pending", 0)


async def test_a_rescue_is_told_and_what_was_rescued_runs(place: Place) -> None:
    dead = Rpc(place.stack.url, place.stack.service_role_key)
    async with place.watched() as watched:
        worker = uuid4()
        await dead.register_worker(
            {
                "id": str(worker),
                "queues": [place.queue],
                "slots": 1,
                "lease_seconds": 3,
                "schema_version": SCHEMA_VERSION,
                "kinds": [{"kind": f"{place.queue}.wait", "queue": place.queue}],
            }
        )
        drain = place.rest.table("job_workers").update
        await drain({"draining": True}).eq("id", str(watched.daemon.id)).execute()
        await watched.until(WorkerChanged, lambda e: e.state == "draining")
        job_id = await place.create("wait", {})
        claim = await dead.claim_jobs(worker, uuid4(), queues=[place.queue], limit=1)
        assert [str(job.id) for job in claim.jobs] == [job_id]
        await drain({"draining": False}).eq("id", str(watched.daemon.id)).execute()
        rescued = await watched.until(JobsRescued)
        assert rescued.count == 1
        await watched.ended(job_id)
        assert names(watched.of(job_id)) == [*ONCE, "job.completed"]
        assert [event.attempt for event in watched.of(job_id)] == [2, 2, 2]
    await dead.aclose()


async def test_the_feed_tells_of_its_mode_and_of_queues_that_are_paused(stack, place: Place) -> None:
    async with FaultProxy(stack.url) as proxy, place.watched(url=proxy.url) as watched:
        queue = place.rest.table("job_queues").update
        for paused in (True, False):
            await queue({"paused": paused}).eq("name", place.queue).execute()
            await watched.until(QueuePaused, lambda e, paused=paused: e.paused is paused)
        await queue({"max_processing": 5}).eq("name", place.queue).execute()
        proxy.refuse("websocket")
        proxy.cut("websocket")
        await watched.until(FeedModeChanged, lambda e: e.mode == "polling")
        await proxy.heal()
        await watched.that(lambda: watched.all(FeedModeChanged)[-1].mode == "realtime")
        assert [e.mode for e in watched.all(FeedModeChanged)] == ["realtime", "polling", "realtime"]
        told = [(event.queue, event.paused) for event in watched.all(QueuePaused)]
        assert told == [(place.queue, True), (place.queue, False)]  # no other knob was a pause
