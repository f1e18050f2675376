"""Hooks without a daemon: what can be one, and that those that misbehave cost nobody anything."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import structlog

from processor import Ended, JobContext, Processor, UsageError
from processor.afterwards import Afterwards
from processor.clients import ApplicationClient
from processor.events.lifecycle import JobFinished, JobRetried
from processor.hooks import declared
from processor.job import Job, Outcome, OutcomeKind
from processor.observer import Observer


async def plain(ended: Ended) -> None:
    """Be a hook."""


def yielding(ended: Ended) -> Any:
    yield


class Mailer:
    def __call__(self, ended: Ended) -> None:
        """Be a hook, as an object."""


@pytest.mark.parametrize("hook", [plain, Mailer(), functools.partial(plain), lambda _ended: None])
def test_whatever_takes_one_argument_can_be_a_hook(hook: Callable[..., Any]) -> None:
    hooks = declared("k", None, hook, None)
    assert [found.function for found in hooks] == [hook]
    assert hooks
    assert not declared("k", None, None, None)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (plain(None), "without calling it"),  # type: ignore[arg-type]  # it is never awaited
        ("plain", "without calling it"),
        (Ended, "without calling it"),
        (lambda: None, r"must take one argument, \(ended: Ended\)"),
        (lambda *, _ended: None, "must take one argument"),
        (yielding, "must not yield"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_where_it_is_declared(hook: Any, words: str) -> None:
    app = Processor()
    try:
        with pytest.raises(UsageError, match=f"on_retry.*of 'k'.*{words}"):

            @app.job("k", on_retry=hook)
            async def handler(job: JobContext) -> None: ...
    finally:
        if asyncio.iscoroutine(hook):
            hook.close()
    assert not app.handlers


def test_a_schedule_s_handler_has_hooks_too_and_a_resource_that_is_missing_is_named() -> None:
    app = Processor()

    async def told(ended: Ended, mail: object) -> None: ...

    @app.cron("0 3 * * *", on_failure=told)
    async def nightly(job: JobContext) -> None: ...

    with pytest.raises(
        UsageError, match=r"on_failure of 'nightly', .*told, takes 'mail', and there is no such"
    ):
        app.resources_of({"nightly"})

    @app.resource
    def mail() -> object:
        return object()

    assert [resource.name for resource in app.resources_of({"nightly"})] == ["mail"]
    assert app.resources_of({"other"}) == ()


# -- running them -------------------------------------------------------------------------------------


class Counts(Observer):
    def __init__(self) -> None:
        self.ended: list[str] = []
        self.changed = asyncio.Event()

    def hook_ended(self, kind: str, hook: str, outcome: str) -> None:
        self.ended.append(outcome)
        self.changed.set()

    async def reach(self, number: int) -> list[str]:
        async with asyncio.timeout(20):
            while len(self.ended) < number:
                self.changed.clear()
                await self.changed.wait()
        return self.ended


class Runner:
    """Hooks, and an end of a job to call them with."""

    def __init__(self, seconds: float = 20, at_once: int = 10) -> None:
        self.counts = Counts()
        client = ApplicationClient("http://127.0.0.1:9", "e30.e30.x")
        self.afterwards = Afterwards(client, {}, self.counts, seconds=seconds, at_once=at_once)
        self.hurry = asyncio.Event()

    def begin(self, hook: Callable[..., Any]) -> None:
        now = datetime.now(UTC)
        job = Job(id=uuid4(), queue="q", kind="k", payload={}, attempt=1, run_at=now, created_at=now)
        event = JobFinished(job_id=job.id, queue="q", kind="k", attempt=1, ran=1.0, status="completed")
        hooks = declared("k", hook, None, None)
        self.afterwards.begin(hooks, job, event, Outcome(OutcomeKind.DONE), structlog.get_logger())

    async def close(self, seconds: float) -> None:
        async with asyncio.timeout(10):
            await self.afterwards.close(seconds, self.hurry)


@pytest.fixture
def logs() -> Any:
    with structlog.testing.capture_logs() as logs:
        yield logs


@pytest.fixture
async def go_on() -> AsyncIterator[threading.Event]:
    """Let threads that wait for it end with the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_hook_that_takes_too_long_is_stopped_and_told_once(logs: list[dict[str, Any]]) -> None:
    runner = Runner(seconds=0.05)
    cancelled = asyncio.Event()

    async def hook(ended: Ended) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    runner.begin(hook)
    assert await runner.counts.reach(1) == ["failed"]
    await asyncio.wait_for(cancelled.wait(), 10)
    await runner.close(0)
    [event] = logs
    assert (event["event"], event["hook"]) == ("hook.failed", "on_success")
    assert str(event["exc_info"]) == "it has not ended within 0.05 s"
    assert runner.counts.ended == ["failed"]


async def test_a_hook_that_ignores_its_cancellation_keeps_nobody_from_going_on() -> None:
    runner = Runner(seconds=0.05)
    wanted, ended = asyncio.Event(), asyncio.Event()

    async def hook(_ended: Ended) -> None:
        while not wanted.is_set():
            try:
                await wanted.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    runner.begin(hook)
    assert await runner.counts.reach(1) == ["failed"]
    await runner.close(0)
    wanted.set()
    await asyncio.wait_for(ended.wait(), 10)
    assert runner.counts.ended == ["failed"]


async def test_a_thread_that_takes_too_long_keeps_its_turn_until_it_ends(go_on: threading.Event) -> None:
    runner = Runner(seconds=0.1, at_once=1)
    called: list[int] = []

    def hook(ended: Ended) -> None:
        called.append(1)
        go_on.wait()

    runner.begin(hook)
    assert await runner.counts.reach(1) == ["failed"]
    runner.begin(hook)  # there is no turn for it
    assert await runner.counts.reach(2) == ["failed"] * 2
    assert called == [1]
    go_on.set()
    while runner.counts.ended[-1] != "done":
        runner.begin(lambda _ended: None)
        await runner.counts.reach(len(runner.counts.ended) + 1)
    await runner.close(0)


async def test_only_so_many_run_at_the_same_time_and_the_others_follow() -> None:
    runner = Runner(at_once=3)
    most, running = 0, 0

    async def hook(ended: Ended) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    for _ in range(20):
        runner.begin(hook)
    assert await runner.counts.reach(20) == ["done"] * 20
    assert most == 3


async def test_the_end_waits_for_hooks_as_long_as_it_may_or_until_somebody_hurries() -> None:
    runner = Runner()
    go_on = asyncio.Event()

    async def hook(ended: Ended) -> None:
        await go_on.wait()

    runner.begin(hook)
    closing = asyncio.create_task(runner.close(60), name="closing")
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert runner.counts.ended == ["done"]

    go_on.clear()
    runner.begin(hook)
    closing = asyncio.create_task(runner.close(60), name="closing")
    await asyncio.sleep(0)
    runner.hurry.set()
    await closing
    assert runner.counts.ended == ["done", "failed"]
    await runner.close(60)


async def test_what_a_hook_is_told_of_an_attempt_that_is_tried_again() -> None:
    runner = Runner()
    told: list[Ended] = []

    async def hook(ended: Ended) -> None:
        told.append(ended)

    now = datetime.now(UTC)
    job = Job(id=uuid4(), queue="q", kind="k", payload={}, attempt=2, run_at=now, created_at=now)
    about = {"job_id": job.id, "queue": "q", "kind": "k", "attempt": 2, "ran": 1.0}
    event = JobRetried(**about, run_at=now, error_code="RATE_LIMITED", error_message="too much")
    hooks = declared("k", None, None, hook)
    runner.afterwards.begin(hooks, job, event, Outcome(OutcomeKind.RETRY), structlog.get_logger())
    await runner.counts.reach(1)
    [ended] = told
    assert (ended.job, ended.status, ended.run_at, ended.result) == (job, "pending", now, None)
    assert (ended.error_code, ended.error_message) == ("RATE_LIMITED", "too much")
    with pytest.raises(AttributeError):
        ended.status = "completed"  # type: ignore[misc,assignment]  # it is frozen
