"""Durable steps with real daemons: no step that is completed is taken again, whatever ends the attempt."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import places
from tests.daemons import Daemon


class Steps(places.Place):
    """A place whose handlers take durable steps; its leases are short."""

    target = "tests.apps.steps:app"

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(**{"PROCESSOR_LEASE_SECONDS": "3", **settings})

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[Daemon]:
        async with super().daemon(**settings) as daemon:
            yield await daemon.ready()

    async def stored(self, job_id: str) -> dict[str, Any]:
        table = self.rest.table("job_checkpoints").select("name,result").eq("job_id", job_id)
        return {row["name"]: row["result"] for row in (await table.execute()).data}


def taken(daemon: Daemon, job_id: str) -> list[str]:
    """Return the steps that were really taken, in order."""
    return [event["step"] for event in daemon.all("job.log", job_id=job_id, message="step")]


@pytest.fixture
def steps(stack, service, eventually) -> Steps:
    return Steps(stack, service, eventually)


@pytest.fixture(scope="module")
def daemon(stack):
    """One daemon for the tests that leave it as they found it."""
    environment = {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TEST_PREFIX": f"s{uuid4().hex[:8]}",
    }
    daemon = Daemon.launch("tests.apps.steps:app", environment)
    yield daemon
    daemon.signal(signal.SIGTERM)
    code = daemon.process.wait(15)
    daemon.end()
    assert code == 0, daemon.log()


@pytest.fixture
async def shared(daemon: Daemon, steps: Steps) -> Steps:
    """Work for the one daemon."""
    await daemon.ready()
    steps.queue = daemon.events[0]["queues"][0]
    return steps


@pytest.mark.parametrize("end", ["crash", "snooze"])
async def test_a_completed_step_is_not_taken_again(shared: Steps, daemon: Daemon, end: str) -> None:
    row = await shared.do("chain", {"end": end})
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 2, [{"n": 1}, None, [2]])
    assert taken(daemon, row["id"]) == ["one", "two"]
    assert await shared.stored(row["id"]) == {"one": {"n": 1}, "two": None, "three": [2]}


async def test_no_step_is_taken_again_after_kill_9_between_two(steps: Steps) -> None:
    async with steps.daemon() as first:
        job_id = await steps.create("chain", {"end": "kill"})
        assert await first.ended() == -9
        assert taken(first, job_id) == ["one", "two"]
    async with steps.daemon() as second:
        row = await steps.ended(job_id)
        assert (row["status"], row["crashes"], row["result"]) == ("completed", 1, [{"n": 1}, None, [2]])
        assert taken(second, job_id) == []


async def test_a_retried_job_goes_on_where_the_old_one_failed(shared: Steps, daemon: Daemon) -> None:
    old = await shared.do("chain", {"end": "discard"})
    assert old["status"] == "failed"
    new = (await shared.rest.rpc("retry_job", {"job_id": old["id"]}).execute()).data
    # the same payload, and a first attempt again: it fails once more, without having taken a step
    row = await shared.ended(new["id"])
    assert (row["status"], row["attempt"]) == ("failed", 1)
    assert taken(daemon, row["id"]) == []
    assert await shared.stored(row["id"]) == {"one": {"n": 1}, "two": None}


async def test_the_first_run_returns_what_a_replay_does(shared: Steps, daemon: Daemon) -> None:
    row = await shared.do("values")
    assert row["status"] == "completed", row
    first, second = [e["value"] for e in daemon.all("job.log", job_id=row["id"], message="got")]
    want = {"a": None, "b": "2026-01-02T00:00:00Z", "n": 10**23, "long name": [1, 2.0]}
    assert second == json.dumps(want)  # the order of the keys, too; what the handler did to it is its own
    assert first == json.dumps(want | {"n": 10**23 + 1})
    assert row["result"] == [None, 10**23 + 1]


async def test_items_share_a_step_and_have_their_own(shared: Steps, daemon: Daemon) -> None:
    row = await shared.do("shared", items=["a", "b", "c", "d"])
    assert row["result"] == {"a": "At", "b": "Bt", "c": "Ct", "d": "Dt"}
    assert sorted(taken(daemon, row["id"])) == ["a", "b", "c", "d", "token"]


@pytest.mark.parametrize("sort", ["thread", "process"])
async def test_plain_handlers_take_steps_as_well(shared: Steps, daemon: Daemon, sort: str) -> None:
    row = await shared.do(sort, items=["a", "b"])
    assert (row["status"], row["attempt"], row["error_message"]) == ("completed", 2, None), row
    assert row["result"] == [{"n": [1, 2]}, "t12"]
    assert taken(daemon, row["id"]) == ["token"]


async def test_a_step_that_fails_stores_nothing_and_leaves_its_name_free(
    shared: Steps, daemon: Daemon
) -> None:
    row = await shared.do("second_try")
    assert row["result"] == ["no", "the other"]
    assert await shared.stored(row["id"]) == {"way": "the other"}


@pytest.mark.parametrize(
    ("mistake", "code", "words"),
    [
        ("loop", "CHECKPOINT_REFUSED", "two different steps of one attempt are called 'page'"),
        ("nested", "CHECKPOINT_REFUSED", "checkpoint 'it' calls itself"),
        ("name", "CHECKPOINT_REFUSED", "has 201 characters"),
        ("nul", "CHECKPOINT_REFUSED", "NUL"),
        ("call", "CHECKPOINT_REFUSED", "the first argument is the name"),
        ("result", "INVALID_RESULT", "the result of checkpoint 'odd' cannot be stored"),
        ("huge", "INVALID_RESULT", "the result of checkpoint huge is too large"),
    ],
)
async def test_mistakes_fail_the_job_for_good_and_teach(
    shared: Steps, mistake: str, code: str, words: str
) -> None:
    row = await shared.do("mistaken", {"mistake": mistake})
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", code, 1)
    assert words in row["error_message"]


async def test_results_that_do_not_fit_a_claim_are_fetched_when_they_are_asked_for(
    shared: Steps, daemon: Daemon
) -> None:
    row = await shared.do("big")
    assert row["result"] == [[str(n), 1024 * 1024 - 2, 1] for n in range(6)]
    assert taken(daemon, row["id"]) == [str(n) for n in range(6)]


async def test_a_worker_that_lost_the_job_saves_nothing(steps: Steps, tmp_path: Path) -> None:
    thaw = tmp_path / "thaw"
    async with steps.daemon() as first:
        job_id = await steps.create("frozen", {"file": str(thaw)})
        await first.event("job.log", job_id=job_id, message="blocking")
        async with steps.daemon() as second:
            row = await steps.ended(job_id)
            assert (row["status"], row["result"]) == ("completed", 2)
            await second.event("job.finished", job_id=job_id)
            thaw.touch()
            await first.event("job.lost", job_id=job_id)
    assert await steps.stored(job_id) == {"slow": 2}
