"""What may be a subscriber, and what those who declare something else are told."""

from typing import Any

import pytest

from processor import JobContext, Processor, UsageError
from processor.assignment import assign
from processor.events import Event, JobFinished, JobProgress


@pytest.fixture
def app() -> Processor:
    app = Processor()

    @app.job("work")
    async def work(job: JobContext) -> None: ...

    return app


def test_a_subscriber_hears_what_it_asks_for_or_everything(app: Processor) -> None:
    @app.subscriber(JobProgress, JobFinished, capacity=5)
    async def some(event: JobProgress | JobFinished) -> None: ...

    @app.subscriber()
    async def everything(event: Event, cache: Any, *, size: int = 3) -> None: ...

    first, second = assign(app).subscribers
    assert (first.kinds, first.capacity, first.resources) == ((JobProgress, JobFinished), 5, ())
    assert (second.kinds, second.capacity, second.resources) == ((Event,), 1000, ("cache",))
    assert first.name.endswith(".some")


def test_a_subscriber_needs_its_resources_to_be_declared(app: Processor) -> None:
    @app.subscriber()
    async def deaf(event: Event, cache: Any) -> None: ...

    with pytest.raises(UsageError, match=r"deaf, takes .cache., and there is no such"):
        app.resources_of({"work"})


async def _function(event: Event) -> None: ...


@pytest.mark.parametrize("kind", [_function, "job.completed", int, JobFinished.__name__])
def test_what_is_no_event_cannot_be_heard_of(app: Processor, kind: Any) -> None:
    with pytest.raises(UsageError, match=r"give types from processor\.events.*with parentheses"):
        app.subscriber(kind)
    assert app.subscribers == []


def test_a_plain_function_is_told_how_to_block(app: Processor) -> None:
    with pytest.raises(UsageError, match=r"async def name\(event\).*to_thread"):

        @app.subscriber()
        def blocks(event: Event) -> None: ...


def test_a_subscriber_takes_the_event_first(app: Processor) -> None:
    with pytest.raises(UsageError, match=r"nothing must take \(event\)"):

        @app.subscriber()
        async def nothing() -> None: ...

    with pytest.raises(UsageError, match=r"by_name must take \(event\)"):

        @app.subscriber()
        async def by_name(*, event: Event) -> None: ...


def test_room_for_no_event_is_refused(app: Processor) -> None:
    with pytest.raises(UsageError, match="capacity=0"):
        app.subscriber(capacity=0)(_function)
