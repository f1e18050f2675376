"""What a handler's signature must say for each way of calling it, and what is said where it does not."""

import functools
from typing import Any

import pytest
from pydantic import BaseModel

from processor import JobContext, Processor, SyncJobContext, UsageError
from processor.signature import Sort, check_reachable


class Card(BaseModel):
    title: str


async def coroutine(job: JobContext[Card]) -> None: ...


async def bare_coroutine(job) -> None: ...


def plain(job: SyncJobContext[Card]) -> None: ...


def bare(job) -> None: ...


async def coroutine_with_sync_context(job: SyncJobContext[Card]) -> None: ...


def plain_with_async_context(job: JobContext[Card]) -> None: ...


def plain_with_payload(job: Card) -> None: ...


def generator(job: SyncJobContext) -> Any:
    yield


async def async_generator(job: JobContext) -> Any:
    yield


def hides(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


def shown(job: SyncJobContext) -> None: ...


hidden = shown
shown = hides(shown)


@pytest.mark.parametrize(
    ("function", "process", "sort"),
    [
        (coroutine, False, Sort.ASYNC),
        (bare_coroutine, False, Sort.ASYNC),
        (plain, False, Sort.THREAD),
        (bare, False, Sort.THREAD),
        (plain, True, Sort.PROCESS),
        (bare, True, Sort.PROCESS),
    ],
)
def test_def_and_process_say_how_a_handler_is_called(function: Any, process: bool, sort: Sort) -> None:
    app = Processor()
    assert app.job("k", process=process)(function) is function
    handler = app.handlers["k"]
    assert handler.sort is sort
    wanted = {"title": "x"}
    if "bare" in function.__name__:
        assert handler.payload.validate_python(wanted) == wanted
    else:
        assert handler.payload.validate_python(wanted) == Card(title="x")


@pytest.mark.parametrize(
    ("function", "process", "says"),
    [
        (coroutine_with_sync_context, False, r"write `job: .*JobContext\[.*Card\]`, or make it `def`"),
        (plain_with_async_context, False, r"in a thread.*write `job: .*SyncJobContext\[.*`async def`"),
        (plain_with_async_context, True, r"in a process.*write `job: .*SyncJobContext\["),
        (plain_with_payload, False, r"write `job: SyncJobContext\[Card\]`"),
        (coroutine, True, "process=True runs a plain `def`"),
        (generator, False, "not yield"),
        (async_generator, False, "not yield"),
        (lambda _job: None, True, "at the top level of a module"),
    ],
)
def test_a_handler_that_cannot_be_called_so_teaches(function: Any, process: bool, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Processor().job("k", process=process)(function)


def test_a_function_inside_another_cannot_run_in_a_process() -> None:
    def inside(job: SyncJobContext) -> None: ...

    with pytest.raises(UsageError, match="at the top level of a module"):
        Processor().job("k", process=True)(inside)


def test_what_another_process_would_not_find_is_refused_before_the_daemon_starts() -> None:
    check_reachable("k", plain)
    with pytest.raises(UsageError, match="above all other decorators"):
        check_reachable("k", hidden)


def test_a_schedule_may_have_a_process() -> None:
    app = Processor()
    app.cron("0 3 * * *", process=True)(bare)
    assert app.handlers["bare"].sort is Sort.PROCESS
