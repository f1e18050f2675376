"""What a real daemon makes of handlers that end in every possible way."""

import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from postgrest import AsyncPostgrestClient

from tests.daemons import Daemon

TARGET = "tests.apps.behaviours:app"


@dataclass
class Bench:
    """A daemon with its queue, and hands to give it work."""

    daemon: Daemon
    queue: str
    rest: AsyncPostgrestClient
    eventually: Callable[..., Awaitable[Any]]

    async def create(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        arguments = {"kind": f"{self.queue}.{kind}", "queue": self.queue, "payload": payload or {}, **options}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def row(self, job_id: str) -> dict[str, Any]:
        return (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data

    async def ended(self, job_id: str, within: float = 10.0) -> dict[str, Any]:
        async def finished() -> dict[str, Any] | None:
            row = await self.row(job_id)
            return row if row["finished_at"] else None

        return await self.eventually(finished, within=within)

    async def do(self, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return await self.ended(await self.create(kind, payload, **options))


@pytest.fixture(scope="module")
def daemon(stack) -> Iterator[Daemon]:
    """One daemon for all tests of this file: no handler's behaviour may disturb the next one's."""
    environment = {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TEST_PREFIX": f"q{uuid4().hex[:8]}",
        "PROCESSOR_CANCEL_GRACE_SECONDS": "1",
    }
    daemon = Daemon.launch(TARGET, environment)
    yield daemon
    daemon.signal(signal.SIGTERM)
    code = daemon.process.wait(15)
    daemon.end()
    assert code == 0, daemon.log()


@pytest.fixture
async def bench(daemon: Daemon, service: AsyncPostgrestClient, eventually: Any) -> Bench:
    await daemon.ready()
    return Bench(daemon, daemon.events[0]["queues"][0], service, eventually)


async def test_a_returned_value_is_the_result_of_the_job(bench: Bench) -> None:
    row = await bench.do("greet", {"name": "Ada"})
    assert (row["status"], row["result"]) == ("completed", {"hello": "Ada"})
    logs = (await bench.rest.table("job_logs").select("*").eq("job_id", row["id"]).execute()).data
    assert [(line["message"], line["fields"]) for line in logs] == [("greeting", {"to": "Ada"})]


async def test_an_idle_daemon_is_woken_by_realtime(bench: Bench) -> None:
    for _ in range(5):  # one may be found by the look that another one's end causes
        row = await bench.do("greet", {"name": "Ada"})
        if (await bench.daemon.event("job.started", job_id=row["id"]))["wake"] == "realtime":
            return
    raise AssertionError(bench.daemon.log())


async def test_an_invalid_payload_fails_at_once_and_says_which_field(bench: Bench) -> None:
    row = await bench.do("greet", {"nam": "Ada"})
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "INVALID_PAYLOAD", 1)
    assert row["error_message"] == "name: Field required"
    assert bench.daemon.all("job.started", job_id=row["id"]) == []


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("cancel", "cancelled", "CANCELLED"),
        ("discard", "failed", "DISCARDED"),
        ("code", "failed", "CARD_TOO_LONG"),
        ("nan", "failed", "INVALID_RESULT"),
        ("nul", "failed", "INVALID_RESULT"),
        ("huge", "failed", "INVALID_RESULT"),
        ("return_decision", "failed", "INVALID_RESULT"),
    ],
)
async def test_a_final_outcome_ends_the_job_in_its_first_attempt(
    bench: Bench, how: str, status: str, code: str
) -> None:
    row = await bench.do("end", {"how": how})
    assert (row["status"], row["error_code"], row["attempt"]) == (status, code, 1)
    assert row["error_message"]


@pytest.mark.parametrize(("how", "failures"), [("retry", 1), ("snooze", 0)])
async def test_retry_costs_an_attempt_and_snooze_does_not(bench: Bench, how: str, failures: int) -> None:
    row = await bench.do("end", {"how": how})
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 2, failures)
    first, second = bench.daemon.all("job.started", job_id=row["id"])
    assert 0.2 <= second["started_at"] - first["started_at"] < 1.0


@pytest.mark.parametrize("how", ["crash", "exit"])
async def test_a_crash_is_tried_again_after_the_delay_of_the_queue(
    bench: Bench, admin: asyncpg.Connection, how: str
) -> None:
    await admin.execute(
        "update public.job_queues set retry_delays = '{0.3 s}', jitter = 0, max_attempts = 2 where name = $1",
        bench.queue,
    )
    row = await bench.do("end", {"how": how})
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "HANDLER_CRASHED", 2)
    assert [error["attempt"] for error in row["errors"]] == [1, 2]
    first, second = bench.daemon.all("job.started", job_id=row["id"])
    assert 0.3 <= second["started_at"] - first["started_at"] < 1.0


async def test_a_handler_over_its_timeout_is_stopped_and_tried_again(bench: Bench) -> None:
    job_id = await bench.create("slow", max_attempts=1)
    row = await bench.ended(job_id)
    assert (row["status"], row["error_code"]) == ("failed", "HANDLER_TIMEOUT")
    assert "0.3 s" in row["error_message"]


async def test_a_timeout_given_with_the_job_counts_too(bench: Bench) -> None:
    row = await bench.do("wait", {"seconds": 30}, timeout_seconds=1, max_attempts=1)
    assert row["error_code"] == "HANDLER_TIMEOUT"


async def test_a_handler_that_swallows_its_cancellation_holds_nobody_up(bench: Bench) -> None:
    row = await bench.do("stubborn", max_attempts=1)
    assert (row["status"], row["error_code"], row["result"]) == ("failed", "HANDLER_TIMEOUT", None)
    await bench.daemon.event("job.ignores_cancellation", job_id=row["id"])


async def test_cancel_reaches_a_running_handler_within_a_second(bench: Bench) -> None:
    job_id = await bench.create("wait", {"seconds": 30})
    await bench.daemon.event("job.started", job_id=job_id)
    await bench.rest.rpc("cancel_job", {"job_id": job_id}).execute()
    row = await bench.ended(job_id, within=1.0)
    assert (row["status"], row["error_code"]) == ("cancelled", "CANCELLED")
    stopped = await bench.daemon.event("job.log", job_id=job_id, message="stopped")
    assert stopped["cancelled"] is True


async def test_items_run_side_by_side_and_each_is_kept(bench: Bench) -> None:
    row = await bench.do("items", items=[{"key": key, "payload": {}} for key in "abc"])
    assert (row["status"], row["result"], row["items_done"]) == (
        "completed",
        {"a": "A", "b": "B", "c": "C"},
        3,
    )


async def test_items_that_failed_for_good_leave_a_partial_job(bench: Bench) -> None:
    items = [
        {"key": "good", "payload": {}},
        {"key": "bad", "payload": {"fail": "for good"}},
        {"key": "odd", "payload": {"fail": "nul"}},
    ]
    row = await bench.do("items", items=items)
    assert (row["status"], row["items_done"], row["items_failed"]) == ("partial", 1, 2)
    rows = (
        await bench.rest.table("job_items").select("key,status,error_code").eq("job_id", row["id"]).execute()
    ).data
    assert {item["key"]: item["error_code"] for item in rows} == {
        "good": None,
        "bad": "DISCARDED",
        "odd": "INVALID_RESULT",
    }


async def test_a_retry_runs_only_the_items_that_are_not_done(bench: Bench) -> None:
    items = [{"key": "done", "payload": {}}, {"key": "later", "payload": {"fail": "once"}}]
    row = await bench.do("items", items=items)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert [event["items"] for event in bench.daemon.all("job.started", job_id=row["id"])] == [2, 1]
    first, second = bench.daemon.all("job.started", job_id=row["id"])
    assert second["started_at"] - first["started_at"] < 2  # the item's own delay, not the queue's minute


async def test_a_cancelled_job_keeps_the_items_that_were_done(bench: Bench) -> None:
    items = [{"key": "quick", "payload": {}}, {"key": "long", "payload": {"seconds": 30}}]
    job_id = await bench.create("items", items=items)

    async def one_done() -> bool:
        return (await bench.row(job_id))["items_done"] == 1

    await bench.eventually(one_done)
    await bench.rest.rpc("cancel_job", {"job_id": job_id}).execute()
    row = await bench.ended(job_id, within=1.0)
    assert (row["status"], row["items_done"]) == ("cancelled", 1)


async def test_the_handlers_client_reads_the_applications_tables(bench: Bench) -> None:
    row = await bench.do("end", {"how": "table"})
    assert row["result"] == [{"id": row["id"]}]


async def test_progress_is_written_at_most_twice_a_second(bench: Bench) -> None:
    job_id = await bench.create("chatter")
    seen: dict[str, None] = {}

    async def over() -> bool:
        row = await bench.row(job_id)
        seen[row["updated_at"]] = None
        return row["finished_at"] is not None

    await bench.eventually(over, within=20)
    ran = (await bench.daemon.event("job.finished", job_id=job_id))["ran_ms"] / 1000
    assert 4 <= len(seen) <= 2 * ran + 4  # created, claimed, finished, and two a second between


@pytest.mark.parametrize(("how", "code"), [("unspeakable", "HANDLER_CRASHED"), ("vague", "VAGUE")])
async def test_an_exception_whose_own_code_fails_costs_an_attempt(bench: Bench, how: str, code: str) -> None:
    row = await bench.do("end", {"how": how}, max_attempts=1)
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", code, 1)


async def test_a_crashing_validator_costs_an_attempt(bench: Bench) -> None:
    row = await bench.do("picky", {"card": {}}, max_attempts=1)
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "HANDLER_CRASHED", 1)
    assert "KeyError" in row["error_message"]


async def test_a_number_too_long_for_python_spoils_no_claim(bench: Bench, admin: asyncpg.Connection) -> None:
    kind = f"{bench.queue}.echo"
    sql = "select id from public.create_job(kind => $1, payload => '{\"n\": 1e5000}')"
    job_id = await admin.fetchval(sql, kind)
    await bench.daemon.event("job.finished", job_id=str(job_id))
    assert await admin.fetchval("select result #>> '{}' from public.jobs where id = $1", job_id) == "Decimal"


async def test_items_are_gone_through_once_however_often_they_are_asked_for(bench: Bench) -> None:
    row = await bench.do("twice", items=["a", "b"])
    assert row["result"][:2] == [{"a": "a", "b": "b"}] * 2
    assert sorted(row["result"][2]) == ["a", "b"]


async def test_an_item_that_was_cancelled_by_others_says_so(bench: Bench) -> None:
    row = await bench.do("twice", items=["a", "lost"], max_attempts=1)
    items = (await bench.rest.table("job_items").select("*").eq("job_id", row["id"]).execute()).data
    assert {item["key"]: item["error_code"] for item in items} == {"a": None, "lost": "HANDLER_CRASHED"}
