"""One name, one step: who waits, who takes it, and what an interruption leaves."""

import asyncio
from typing import Any

import pytest

from processor.checkpoints import Checkpoints
from processor.errors import JobError
from processor.job import Checkpoint, Step


class Attempt:
    """The steps of an attempt, with a store that can be told to refuse."""

    def __init__(self, *known: Checkpoint) -> None:
        self.stored: dict[str, Any] = {}
        self.refusing = False
        self.steps = Checkpoints(known, save=self._save, read=self._read)

    async def _save(self, step: Step) -> None:
        if self.refusing:
            raise ConnectionError("no")
        self.stored[step.name] = step.result

    async def _read(self, name: str) -> Any:
        return f"{name}, fetched"

    async def take(self, name: str, function: Any, *arguments: Any) -> Any:
        return await self.steps.run(name, (function, arguments, {}))


async def test_who_waits_takes_the_step_when_the_first_is_cancelled() -> None:
    attempt, taken, began = Attempt(), [], asyncio.Event()

    async def step() -> str:
        taken.append(asyncio.current_task())
        began.set()
        if len(taken) == 1:
            await asyncio.Event().wait()
        return "done"

    first = asyncio.create_task(attempt.take("step", step), name="first")
    await began.wait()
    second = asyncio.create_task(attempt.take("step", step), name="second")
    await asyncio.sleep(0)
    assert taken == [first]
    first.cancel()
    assert await second == "done"
    assert taken == [first, second]
    assert first.cancelled()
    assert attempt.stored == {"step": "done"}


async def test_a_result_that_was_not_stored_is_nobodys_and_the_step_is_taken_again() -> None:
    attempt, taken = Attempt(), []

    def step() -> int:
        taken.append(1)
        return len(taken)

    attempt.refusing = True
    with pytest.raises(ConnectionError):
        await attempt.take("step", step)
    attempt.refusing = False
    assert [await attempt.take("step", step), await attempt.take("step", step)] == [2, 2]
    assert attempt.stored == {"step": 2}


async def test_what_waited_for_another_step_of_its_name_that_was_completed_is_refused() -> None:
    attempt, go_on = Attempt(), asyncio.Event()

    async def failing() -> None:
        await go_on.wait()
        raise ValueError("no")

    def other(number: int) -> int:
        return number

    first = asyncio.create_task(attempt.take("step", failing), name="first")
    waiting = asyncio.create_task(attempt.take("step", failing), name="waiting")
    await asyncio.sleep(0)
    with pytest.raises(JobError, match="two different steps"):
        await attempt.take("step", other, 1)
    go_on.set()
    results = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await attempt.take("step", other, 1) == 1
    with pytest.raises(JobError, match="'step 1' and 'step 2' in a loop"):
        await attempt.take("step", other, 2)


class Stubborn:
    """An argument that does not let itself be compared, as arrays do not."""

    __hash__ = None  # type: ignore[assignment]  # as for arrays

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth of this is ambiguous")


async def test_arguments_that_cannot_be_compared_are_the_same_only_if_they_are_one() -> None:
    attempt, one = Attempt(), Stubborn()
    assert [await attempt.take("step", repr, one) for _ in range(2)] == [repr(one)] * 2
    with pytest.raises(JobError, match="two different steps"):
        await attempt.take("step", repr, Stubborn())


async def test_a_known_result_is_returned_without_the_step_and_one_that_was_left_out_is_fetched() -> None:
    attempt = Attempt(
        Checkpoint(name="none"), Checkpoint(name="list", result=[1]), Checkpoint(name="big", left_out=True)
    )

    def never() -> None:
        raise AssertionError("it was completed before")

    assert await attempt.take("none", never) is None
    assert await attempt.take("big", never) == "big, fetched"
    (await attempt.take("list", never)).append(2)
    assert await attempt.take("list", never) == [1]
    assert attempt.stored == {}
