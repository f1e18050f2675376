"""Declaring resources and middleware: mistakes teach where they are made, or before a daemon starts."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from processor import JobContext, Processor, SyncJobContext, UsageError
from processor.config import Settings
from processor.daemon import Daemon


def test_resources_come_after_what_they_need_and_only_those_of_the_kinds_asked_for() -> None:
    app = Processor()

    @app.job("a")
    async def one(job: JobContext, model, http) -> None: ...

    @app.job("b")
    async def two(job: JobContext, other, retries=3, *rest, **more) -> None: ...

    @app.resource
    def model(folder, http) -> Iterator[str]: ...

    @app.resource
    async def http() -> AsyncIterator[str]: ...

    @app.resource
    async def other() -> str: ...

    @app.resource
    def folder(size: int = 3) -> str: ...

    def names(*kinds: str) -> list[str]:
        return [resource.name for resource in app.resources_of(kinds)]

    assert names("a") == ["folder", "http", "model"]
    assert names("b") == ["other"]
    assert names() == []
    assert names("b", "a") == ["folder", "http", "model", "other"]


def test_middleware_takes_resources_whatever_the_kinds() -> None:
    app = Processor()

    @app.middleware
    async def timing(job, call_next, meter) -> Any: ...

    @app.resource
    def meter() -> int: ...

    assert [resource.name for resource in app.resources_of([])] == ["meter"]


def test_a_resource_that_nobody_declared_stops_a_daemon_before_it_starts_and_teaches() -> None:
    app = Processor()

    @app.resource
    async def http() -> None: ...

    @app.job("x")
    async def handler(job: JobContext, htp) -> None: ...

    settings = Settings(url="http://127.0.0.1:9", key="k", feed="polling")
    with pytest.raises(UsageError, match=r"handler of 'x', .*handler, takes 'htp'.* Did you mean 'http'\?"):
        Daemon(app, settings)


def test_a_resource_may_lack_another_one_too() -> None:
    app = Processor()

    @app.resource
    async def model(weights) -> None: ...

    @app.job("x")
    async def handler(job: JobContext, model) -> None: ...

    with pytest.raises(UsageError, match=r"resource 'model', .*, takes 'weights', and there is no such"):
        app.resources_of(["x"])


def test_a_circle_is_found_when_it_is_closed() -> None:
    app = Processor()

    @app.resource
    def one(two) -> None: ...

    @app.resource
    def two(three) -> None: ...

    with pytest.raises(UsageError, match="circle: three → one → two → three"):

        @app.resource
        def three(one) -> None: ...


def test_two_resources_of_one_name_are_both_named() -> None:
    app = Processor()

    @app.resource
    def http() -> None: ...

    def again() -> None: ...

    again.__name__ = "http"
    with pytest.raises(UsageError, match=r"Two resources 'http': .*http and .*again"):
        app.resource(again)


@contextlib.contextmanager
def managed() -> Iterator[int]:
    yield 1


@contextlib.asynccontextmanager
async def managed_too() -> AsyncIterator[int]:
    yield 1


def by_position(other, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (3, "belongs on a function"),
        (Processor, "belongs on a function"),
        (lambda: 3, "belongs on a function"),
        (managed, "leave @contextmanager away"),
        (managed_too, "leave @contextmanager away"),
        (by_position, "by position only"),
    ],
)
def test_what_cannot_be_a_resource_teaches(function: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Processor().resource(function)


def plain(job, call_next) -> None: ...


async def too_few(job) -> None: ...


async def named(*, job, call_next) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [(plain, "must be `async def"), (too_few, "must take"), (named, "must take")],
)
def test_what_cannot_be_middleware_teaches(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Processor().middleware(function)


async def positional(job, http, /) -> None: ...


def test_a_handler_that_takes_a_resource_by_position_only_teaches() -> None:
    with pytest.raises(UsageError, match="by position only"):
        Processor().job("x")(positional)


def in_a_process(job: SyncJobContext, model) -> None: ...


def test_a_handler_in_a_process_cannot_have_resources_and_is_told_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"takes 'model', but with process=True .*functools\.cache"):
        Processor().job("x", process=True)(in_a_process)
