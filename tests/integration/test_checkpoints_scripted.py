"""Steps on their way to an API that is away, or refuses one of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from processor.answers import Attempt
from processor.job import ItemOutcome, Outcome, OutcomeKind, Step
from processor.rpc import Rpc
from processor.settle import Settler
from tests.integration.scripted_api import ScriptedApi, scripted_api


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def settler(api: ScriptedApi) -> AsyncIterator[Settler]:
    """Give one that nobody runs yet: what is handed in gathers."""
    rpc = Rpc(api.url, "e30.e30.x", patience=0)
    yield Settler(rpc, uuid4(), on_cancel=lambda _ids: None)
    await rpc.aclose()


def attempt() -> Attempt:
    return Attempt(id=uuid4(), attempt=1)


def saved(arguments: dict[str, Any], **problems: str) -> tuple[int, Any]:
    """Answer as the database does."""
    steps = arguments["checkpoints"]
    results = [{"id": s["id"], "stale": False, "error": problems.get(s["name"])} for s in steps]
    return 200, {"results": results, "cancel": []}


async def hand_in(*outcomes: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(outcome) for outcome in outcomes]
    await asyncio.sleep(0)  # each has got as far as its pile
    return tasks


async def answers(settler: Settler, tasks: list[asyncio.Task[Any]]) -> list[Any]:
    running = asyncio.create_task(settler.run(), name="settler")
    try:
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_step_outwaits_the_api_and_is_saved_before_the_job_ends(
    api: ScriptedApi, settler: Settler
) -> None:
    order: list[str] = []

    def save(arguments: dict[str, Any]) -> tuple[int, Any]:
        order.append("save_checkpoints")
        return (503, {"message": "upgrading"}) if len(order) < 3 else saved(arguments)

    def finish(arguments: dict[str, Any]) -> tuple[int, Any]:
        order.append("finish_jobs")
        return 200, [{"id": r["id"], "stale": False, "status": "completed"} for r in arguments["results"]]

    def finish_items(arguments: dict[str, Any]) -> tuple[int, Any]:
        order.append("finish_items")
        return 200, {"results": [{"id": r["id"], "stale": False} for r in arguments["results"]]}

    api.answers |= {"save_checkpoints": save, "finish_jobs": finish, "finish_items": finish_items}
    job = attempt()
    tasks = await hand_in(
        settler.job(job, Outcome(OutcomeKind.DONE)),
        settler.item(job, ItemOutcome("de", result=1)),
        settler.checkpoint(job, Step("one", {"n": 1})),
    )
    assert [answer.error for answer in await answers(settler, tasks)] == [None] * 3
    assert order == [*["save_checkpoints"] * 3, "finish_items", "finish_jobs"]
    [step] = api.calls["save_checkpoints"][-1]["checkpoints"]
    assert step == {"id": str(job.id), "attempt": 1, "name": "one", "result": {"n": 1}}


async def test_a_step_that_is_refused_spoils_no_other_of_its_batch(
    api: ScriptedApi, settler: Settler
) -> None:
    def save(arguments: dict[str, Any]) -> tuple[int, Any]:
        names = [step["name"] for step in arguments["checkpoints"]]
        if "bad" in names:
            return 400, {"code": "22P05", "message": "unsupported Unicode escape sequence"}
        return saved(arguments, big="JQ004: the result of checkpoint big is too large")

    api.answers["save_checkpoints"] = save
    names = ("good", "bad", "big", "fine")
    steps = [Step(name, None) for name in names]
    tasks = await hand_in(*(settler.checkpoint(attempt(), step) for step in steps))
    good, bad, big, fine = await answers(settler, tasks)
    assert (good.error, fine.error) == (None, None)
    assert "unsupported Unicode" in bad.error
    assert "too large" in big.error


async def test_a_result_that_was_left_out_is_asked_for_until_the_api_answers(
    api: ScriptedApi, settler: Settler
) -> None:
    def read(arguments: dict[str, Any]) -> tuple[int, Any]:
        away = len(api.calls["read_checkpoint"]) < 2
        return (503, {"message": "upgrading"}) if away else (200, {"stale": False, "result": None})

    api.answers["read_checkpoint"] = read
    async with asyncio.timeout(20):
        answer = await settler.read_checkpoint(attempt(), "one")
    assert (answer.stale, answer.result) == (False, None)
