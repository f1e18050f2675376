"""Fan-out and fan-in with real daemons: children, credits, failures, cancels, and a death in between."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from postgrest import AsyncPostgrestClient

from tests.daemons import Daemon
from tests.texts import blocks

TARGET = "tests.apps.family:app"


class Family:
    """Queues of their own for parents and for children, daemons for them, and hands to give them work."""

    def __init__(self, stack, rest: AsyncPostgrestClient, eventually: Callable[..., Awaitable[Any]]) -> None:
        self.queue = f"f{uuid4().hex[:8]}"
        self.stack = stack
        self.rest = rest
        self.eventually = eventually

    @asynccontextmanager
    async def daemon(self, target: str = TARGET, **environment: str) -> AsyncIterator[Daemon]:
        daemon = await Daemon.start(
            target,
            {
                "SUPABASE_URL": self.stack.url,
                "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
                "TEST_PREFIX": self.queue,
                "PROCESSOR_CANCEL_GRACE_SECONDS": "1",
                **environment,
            },
        )
        try:
            yield await daemon.ready()
        finally:
            await daemon.close()

    async def create(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        arguments = {"kind": f"{self.queue}.{kind}", "payload": payload or {}, **options}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def row(self, job_id: str) -> dict[str, Any]:
        return (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data

    async def children(self, job_id: str) -> list[dict[str, Any]]:
        return (await self.rest.table("jobs").select("*").eq("parent_id", job_id).order("id").execute()).data

    async def when(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async def holds() -> dict[str, Any] | None:
            row = await self.row(job_id)
            return row if condition(row) else None

        return await self.eventually(holds, within=10)

    async def ended(self, job_id: str) -> dict[str, Any]:
        return await self.when(job_id, lambda row: row["finished_at"] is not None)

    async def do(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return await self.ended(await self.create(kind, payload, **options))


@pytest.fixture
def family(stack, service, eventually) -> Family:
    return Family(stack, service, eventually)


@pytest.fixture(scope="module")
def shared(stack, eventually):
    """One daemon for the tests that leave it as they found it."""
    family = Family(stack, None, eventually)
    environment = {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TEST_PREFIX": family.queue,
        "PROCESSOR_CANCEL_GRACE_SECONDS": "1",
        "PROCESSOR_GRACE_SECONDS": "1",
    }
    daemon = Daemon.launch(TARGET, environment)
    yield family, daemon
    daemon.signal(signal.SIGTERM)
    code = daemon.process.wait(15)
    daemon.end()
    assert code == 0, daemon.log()


@pytest.fixture
async def at_home(shared, service) -> tuple[Family, Daemon]:
    family, daemon = shared
    await daemon.ready()
    family.rest = service
    return family, daemon


TORN = {"text": "torn", "fail": True}


def pages(*texts: str, **more: Any) -> dict[str, Any]:
    return {"pages": [{"text": text} for text in texts], **more}


async def test_a_job_fans_out_waits_without_a_slot_and_fans_in_with_credits(
    family: Family, new_user, admin: asyncpg.Connection
) -> None:
    user = await new_user(credits=20)
    async with family.daemon(PROCESSOR_SLOTS="1") as daemon:  # a parent that held it would wait for ever
        row = await family.do("book", pages("one", "two words", "three words here"), owner_id=user.id)
        assert (row["status"], row["attempt"], row["failures"]) == ("completed", 2, 0)
        assert row["result"] == {"words": 6, "pages": [["completed", None]] * 3}
        assert (row["children_total"], row["children_open"], row["children_failed"]) == (3, 0, 0)
        spawned = daemon.all("job.spawned", job_id=row["id"])
        assert [(event["children"], event["new"]) for event in spawned] == [(3, 3), (3, 0)]
        assert (await daemon.event("job.finished", job_id=row["id"], outcome="wait"))["status"] == "pending"
    children = await family.children(row["id"])
    assert [child["payload"]["text"] for child in children] == ["one", "two words", "three words here"]
    assert {child["owner_id"] for child in children} == {user.id}
    account = await admin.fetchrow(
        "select available, held, spent from public.credit_accounts where owner_id = $1::uuid", user.id
    )
    assert tuple(account) == (20 - 5 - 3 * 2, 0, 5 + 3 * 2)
    assert await admin.fetch("select * from processor.check_credits()") == []


async def test_the_last_child_wakes_its_parent_by_realtime_at_once(family: Family) -> None:
    # two daemons: the one that ends the last child does not look for parents, and that of the parents is idle
    async with (
        family.daemon(PROCESSOR_QUEUES=f"{family.queue}.pages"),
        family.daemon(PROCESSOR_QUEUES=family.queue) as parents,
    ):
        for _ in range(5):  # a sweep may find it first
            row = await family.do("book", pages("one", "two", "three", "four"))
            _, again = parents.all("job.started", job_id=row["id"])
            assert again["queued_ms"] < 1000, parents.log()
            if again["wake"] == "realtime":
                break
        else:
            raise AssertionError(parents.log())
        parents.signal(signal.SIGTERM)
        assert await parents.ended() == 0


async def test_failed_children_are_looked_at_by_a_parent_that_continues(at_home) -> None:
    family, _ = at_home
    row = await family.do("book", {"pages": [{"text": "good"}, TORN, {"text": "fine too"}]})
    assert (row["status"], row["children_failed"]) == ("completed", 1)
    assert row["result"] == {
        "words": 3,
        "pages": [["completed", None], ["failed", "DISCARDED"], ["completed", None]],
    }


async def test_the_first_failed_child_ends_a_parent_that_says_fail_and_its_siblings(
    at_home, new_user, admin: asyncpg.Connection
) -> None:
    family, daemon = at_home
    user = await new_user(credits=20)
    slow = {"text": "slow", "seconds": 60}
    job_id = await family.create(
        "book", {"pages": [slow, TORN, {"text": "x"}], "on_child_failure": "fail"}, owner_id=user.id
    )
    row = await family.ended(job_id)
    assert (row["status"], row["error_code"]) == ("failed", "CHILD_FAILED")
    assert row["error_message"] == "1 of 3 children did not complete"
    running, torn, _ = await family.children(row["id"])
    assert torn["status"] == "failed"
    running = await family.ended(running["id"])
    assert running["status"] == "cancelled"
    assert (await daemon.event("job.log", job_id=running["id"], message="page stopped"))["cancelled"] is True
    account = await admin.fetchrow(
        "select held, spent from public.credit_accounts where owner_id = $1::uuid", user.id
    )
    completed = [child for child in await family.children(row["id"]) if child["status"] == "completed"]
    assert tuple(account) == (0, 2 * len(completed))


async def test_a_death_between_spawning_and_waiting_doubles_no_child(family: Family) -> None:
    async with family.daemon(PROCESSOR_LEASE_SECONDS="3") as first:
        job_id = await family.create("book", pages("one", "two words", hang=True))
        await first.event("job.log", job_id=job_id, message="spawned")
        first.signal(signal.SIGKILL)
        await first.ended()
    async with family.daemon(PROCESSOR_LEASE_SECONDS="3") as second:
        row = await family.ended(job_id)
        assert (row["status"], row["children_total"]) == ("completed", 2)
        assert row["errors"][0]["code"] == "LEASE_LOST"
        assert row["result"]["words"] == 3
        assert len(await family.children(job_id)) == 2
        spawned = second.all("job.spawned", job_id=job_id)
        assert spawned
        assert {(event["children"], event["new"]) for event in spawned} == {(2, 0)}


async def test_cancelling_a_waiting_parent_stops_its_running_children_within_a_second(at_home) -> None:
    family, daemon = at_home
    job_id = await family.create("book", {"pages": [{"text": "x", "seconds": 60}] * 2})
    await family.when(job_id, lambda row: row["status"] == "pending" and row["children_open"] == 2)
    children = await family.children(job_id)
    for child in children:
        await daemon.event("job.started", job_id=child["id"])
    await family.rest.rpc("cancel_job", {"job_id": job_id}).execute()
    for child in children:
        stopped = await daemon.event("job.log", job_id=child["id"], message="page stopped", within=1)
        assert stopped["cancelled"] is True
        assert (await family.ended(child["id"]))["status"] == "cancelled"
    assert (await family.row(job_id))["status"] == "cancelled"


async def test_cancelling_a_running_parent_stops_it_and_its_children(at_home) -> None:
    family, daemon = at_home
    job_id = await family.create("book", {"pages": [{"text": "x", "seconds": 60}], "hang": True})
    await daemon.event("job.log", job_id=job_id, message="spawned")
    (child,) = await family.children(job_id)
    await daemon.event("job.started", job_id=child["id"])
    await family.rest.rpc("cancel_job", {"job_id": job_id}).execute()
    assert (await family.ended(job_id))["status"] == "cancelled"
    assert (await family.ended(child["id"]))["status"] == "cancelled"


async def test_a_second_stage_builds_on_the_first(at_home) -> None:
    family, _ = at_home
    row = await family.do("two_stages")
    assert row["result"] == [[1, 2, 3, 6], 6, True, 3]


async def test_children_have_children(at_home) -> None:
    family, _ = at_home
    row = await family.do("generations", {"below": 3})
    assert (row["status"], row["result"]) == ("completed", 4)


async def test_children_made_with_the_job_are_joined_in_its_first_attempt(at_home) -> None:
    family, _ = at_home
    children = [{"kind": f"{family.queue}.page", "payload": {"text": text}} for text in ("a", "b c")]
    row = await family.do("gather", children=children)
    assert (row["result"], row["attempt"]) == ([1, 2], 1)


async def test_items_may_wait_for_children_of_their_own(at_home) -> None:
    family, _ = at_home
    row = await family.do("items", items=["one", "two", "three words here"])
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert row["result"] == {"one": 1, "two": 1, "three words here": 3}
    assert row["children_total"] == 3


async def test_fanning_out_to_nobody_waits_for_nobody(at_home) -> None:
    family, _ = at_home
    row = await family.do("none")
    assert (row["result"], row["attempt"]) == ([[], []], 1)


@pytest.mark.parametrize(
    ("kind", "attempt", "teaching"),
    [("impatient", 1, "it has no children"), ("restless", 2, "all its children have ended")],
)
async def test_waiting_for_nobody_is_an_error_that_teaches(
    at_home, kind: str, attempt: int, teaching: str
) -> None:
    family, _ = at_home
    row = await family.do(kind)
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "INVALID_RESULT", attempt)
    assert teaching in row["error_message"]
    assert "job.join()" in row["error_message"]


@pytest.mark.parametrize(
    ("child", "teaching"),
    [
        ({"kind": "nobodys"}, "unknown kind: nobodys"),
        ({"payload": [1]}, "payload must be a JSON object"),
        ({"priority": 5000}, "must be between -1000 and 1000"),
        ({"colour": "red"}, "unknown key: colour"),
        ({"key": "#1"}, "begins with #"),
    ],
)
async def test_a_bad_child_fails_its_parent_for_good_and_says_why(
    at_home, child: dict[str, Any], teaching: str
) -> None:
    family, _ = at_home
    row = await family.do("bad", {"child": child})
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "CHILD_REFUSED", 1)
    assert teaching in row["error_message"]
    assert row["children_total"] == 0  # all or none


async def test_a_child_that_is_another_one_in_the_next_attempt_fails_its_parent_and_says_why(at_home) -> None:
    family, _ = at_home
    row = await family.do("fickle")
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "CHILD_REFUSED", 2)
    assert "was used with other input" in row["error_message"]
    assert row["children_total"] == 1


async def test_a_child_that_json_cannot_hold_fails_its_parent_for_good(at_home) -> None:
    family, _ = at_home
    row = await family.do("odd")
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "CHILD_REFUSED", 1)
    assert "cannot be stored" in row["error_message"]


async def test_children_whom_the_owner_cannot_pay_fail_the_parent_and_cost_nothing(
    at_home, new_user, admin: asyncpg.Connection
) -> None:
    family, _ = at_home
    user = await new_user(credits=8)
    row = await family.do("book", pages("one", "two"), owner_id=user.id)  # 5 + 2 x 2
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "INSUFFICIENT_CREDITS", 1)
    assert await family.children(row["id"]) == []
    account = await admin.fetchrow(
        "select available, held, spent from public.credit_accounts where owner_id = $1::uuid", user.id
    )
    assert tuple(account) == (8, 0, 0)


README_HEAD = """
from pydantic import BaseModel
from processor import JobContext, Processor

app = Processor()

class Book(BaseModel):
    pages: list[str]

class Page(BaseModel):
    text: str
"""


async def test_the_example_of_the_readme_counts_a_book(
    stack, service, eventually, tmp_path, monkeypatch
) -> None:
    [example] = blocks("README.md", "python")["Fan out, fan in"]
    (tmp_path / "app.py").write_text(README_HEAD + example)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    family = Family(stack, service, eventually)
    async with family.daemon(target="app:app"):
        arguments = {"kind": "count_book", "payload": {"pages": ["one", "two words"]}}
        job_id = (await service.rpc("create_job", arguments).execute()).data["id"]
        row = await family.ended(job_id)
    assert (row["status"], row["result"], row["children_total"]) == ("completed", {"words": 3}, 2)
