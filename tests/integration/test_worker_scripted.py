"""The parts of the worker before an API that answers in ways a real one does at its worst moments."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog

from processor.answers import Attempt
from processor.app import Processor
from processor.clients import ApplicationClient
from processor.config import Settings
from processor.context import JobContext
from processor.executor import Executor
from processor.hold import Hold, clock
from processor.job import Job, Outcome, OutcomeKind
from processor.lease import Lease
from processor.report import Reporter
from processor.rpc import Rpc
from processor.run import Run, Stop
from processor.settle import Settler
from processor.worker import Worker
from tests.integration.scripted_api import ScriptedApi, scripted_api

NOT_FOUND = {"code": "PGRST202", "message": "Could not find the function in the schema cache"}
UNKNOWN = {"code": "JQ011", "message": "the worker is unknown or its lease is over"}
ME = uuid4()


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def rpc(api: ScriptedApi) -> AsyncIterator[Rpc]:
    rpc = Rpc(api.url, "e30.e30.x", patience=0)
    yield rpc
    await rpc.aclose()


@asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def becomes(condition: Any, within: float = 8.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.01)


def settled(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": one["id"], "stale": False, "status": "completed"} for one in arguments["results"]]


def attempt() -> Attempt:
    return Attempt(id=uuid4(), attempt=1)


async def nobody() -> None:
    raise AssertionError("nobody has forgotten this worker")


def make_settler(rpc: Rpc) -> Settler:
    return Settler(rpc, ME, on_cancel=lambda _ids: None)


async def test_a_result_waits_for_the_schema_to_be_found_again(api: ScriptedApi, rpc: Rpc) -> None:
    def answer(arguments: dict[str, Any]) -> tuple[int, Any]:
        return (404, NOT_FOUND) if len(api.calls["finish_jobs"]) == 1 else (200, settled(arguments))

    api.answers["finish_jobs"] = answer
    settler = make_settler(rpc)
    async with running(settler.run()):
        assert (await settler.job(attempt(), Outcome(OutcomeKind.DONE))).error is None


async def test_a_batch_too_big_for_the_gateway_gets_through_in_parts(api: ScriptedApi, rpc: Rpc) -> None:
    def answer(arguments: dict[str, Any]) -> tuple[int, Any]:
        size = len(arguments["results"])
        return (
            (504, {"message": "The upstream server is timing out"}) if size > 3 else (200, settled(arguments))
        )

    api.answers["finish_jobs"] = answer
    settler = make_settler(rpc)
    waiting = [settler.job(attempt(), Outcome(OutcomeKind.DONE)) for _ in range(8)]
    async with running(settler.run()):
        assert len(await asyncio.wait_for(asyncio.gather(*waiting), 8)) == 8


async def test_claims_outlive_a_registration_that_fails(api: ScriptedApi, rpc: Rpc) -> None:
    async def register() -> None:
        await rpc.register_worker({})

    api.answers["claim_jobs"] = lambda _arguments: (400, UNKNOWN)
    worker = Worker(rpc, ME, queues=["q"], slots=1, on_unknown=register)
    worker.wake("sweep")
    async with running(worker.run()) as tasks:
        await becomes(lambda: len(api.calls["claim_jobs"]) == 2 or tasks[0].done())
        assert not tasks[0].done(), tasks[0].exception()


def heartbeat(**fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "now": now.isoformat(),
        "heartbeat_at": now.isoformat(),
        "lease_expires_at": (now + timedelta(seconds=90)).isoformat(),
        "next_due_at": None,
        **fields,
    }


def lease_over(rpc: Rpc, worker: Worker, unsettled: set[UUID]) -> Lease:
    return Lease(
        rpc,
        ME,
        worker,
        Hold(),
        seconds=90,
        feed_mode=lambda: "polling",
        on_beat=lambda _at: None,
        on_schedule=lambda _seconds: None,
        register=nobody,
        unsettled=lambda: unsettled,
    )


async def test_a_draining_worker_gives_back_what_it_never_heard_of(api: ScriptedApi, rpc: Rpc) -> None:
    lost = attempt()
    api.answers["heartbeat_worker"] = lambda _arguments: (
        200,
        heartbeat(draining=True, unknown=[{"id": str(lost.id), "attempt": 1}]),
    )
    api.answers["release_jobs"] = lambda _arguments: (200, [{"id": str(lost.id), "stale": False}])
    worker = Worker(rpc, ME, queues=["q"], slots=1, on_unknown=nobody)
    lease = lease_over(rpc, worker, unsettled=set())
    worker.wake("sweep")
    async with running(worker.run()):
        await becomes(lambda: api.calls["claim_jobs"])  # answered with 503: was it heard? nobody knows
        lease.begin(90, sent=clock())
        async with running(lease.beat_forever()):
            await becomes(lambda: api.calls["release_jobs"])
    assert api.calls["release_jobs"][0]["jobs"] == [{"id": str(lost.id), "attempt": 1}]


async def test_a_job_with_outcomes_on_their_way_is_given_back_after_them(api: ScriptedApi, rpc: Rpc) -> None:
    lost = attempt()
    api.answers["heartbeat_worker"] = lambda _arguments: (
        200,
        heartbeat(unknown=[{"id": str(lost.id), "attempt": 1}]),
    )
    api.answers["release_jobs"] = lambda _arguments: (200, [{"id": str(lost.id), "stale": False}])
    unsettled = {lost.id}
    lease = lease_over(rpc, Worker(rpc, ME, queues=["q"], slots=1, on_unknown=nobody), unsettled)
    async with running(lease.beat_forever()):
        await becomes(lambda: api.calls["heartbeat_worker"])
        lease.nudge()
        await becomes(lambda: len(api.calls["heartbeat_worker"]) == 2)
        assert api.calls["release_jobs"] == []
        unsettled.clear()
        lease.nudge()
        await becomes(lambda: api.calls["release_jobs"])


async def test_a_heartbeat_comes_sooner_when_another_workers_lease_is_about_to_end(
    api: ScriptedApi, rpc: Rpc
) -> None:
    def answer(_arguments: dict[str, Any]) -> tuple[int, Any]:
        beats.append(time.monotonic())
        lost_at = datetime.now(UTC) + timedelta(seconds=0.5)
        return 200, heartbeat(next_rescue_at=lost_at.isoformat() if len(beats) == 1 else None)

    beats: list[float] = []
    api.answers["heartbeat_worker"] = answer
    lease = lease_over(rpc, Worker(rpc, ME, queues=["q"], slots=1, on_unknown=nobody), unsettled=set())
    lease.begin(90, sent=asyncio.get_running_loop().time())
    async with running(lease.beat_forever()):
        await becomes(lambda: len(beats) == 2)  # and not after 30 s, a third of the own lease
        assert beats[1] - beats[0] >= 0.5


def a_job() -> Job:
    now = datetime.now(UTC)
    return Job(id=uuid4(), queue="q", kind="k", payload={}, attempt=1, run_at=now, created_at=now)


def make_reporter(rpc: Rpc) -> Reporter:
    return Reporter(rpc, ME, on_cancel=lambda _ids: None, on_stale=lambda _id, _attempt: None)


def stored(arguments: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"stored": len(arguments["logs"])}


async def test_log_lines_are_bounded_and_hold_no_result_up_while_the_api_is_away(
    api: ScriptedApi, rpc: Rpc
) -> None:
    reporter = make_reporter(rpc)
    jobs = [a_job() for _ in range(100)]
    with structlog.testing.capture_logs() as logs:
        for job in jobs:
            for number in range(300):
                reporter.line(job, "info", f"line {number}", {})
        assert reporter.waiting == 10_000
        await reporter.close(jobs[0])
    assert len(api.calls["append_job_logs"]) == 1
    said = [line for line in logs if line["event"] == "report.lines_dropped"]
    assert sum(line["lines"] for line in said) == 30_000


async def test_a_job_that_says_too_much_at_once_is_told_how_much_is_missing(
    api: ScriptedApi, rpc: Rpc
) -> None:
    api.answers["append_job_logs"] = stored
    reporter, job, other = make_reporter(rpc), a_job(), a_job()
    for number in range(250):
        reporter.line(job, "info", f"line {number}", {})
    reporter.line(other, "info", "undisturbed", {})
    await reporter.close(job)
    [call] = api.calls["append_job_logs"]
    mine = [line["message"] for line in call["logs"] if line["id"] == str(job.id)]
    assert mine[-2:] == ["line 199", "50 log lines are missing here"]
    assert "undisturbed" in [line["message"] for line in call["logs"]]


async def test_lines_that_an_outage_cost_are_said_when_it_is_over(api: ScriptedApi, rpc: Rpc) -> None:
    reporter, job = make_reporter(rpc), a_job()
    with structlog.testing.capture_logs() as logs:
        async with running(reporter.run()):
            for number in range(3):
                reporter.line(job, "info", f"line {number}", {})
            await becomes(lambda: any(line["event"] == "report.lines_dropped" for line in logs))
    async with running(reporter.run()):
        api.answers["append_job_logs"] = stored
        reporter.line(job, "info", "back", {})
        await becomes(lambda: len(api.calls["append_job_logs"]) == 2)
    messages = [line["message"] for line in api.calls["append_job_logs"][1]["logs"]]
    assert messages == ["3 log lines are missing here", "back"]


async def test_what_a_job_says_beyond_what_is_kept_is_not_sent(api: ScriptedApi, rpc: Rpc) -> None:
    api.answers["append_job_logs"] = stored
    reporter, job = make_reporter(rpc), a_job()
    for _ in range(11):
        for number in range(100):
            reporter.line(job, "info", f"line {number}", {})
        await reporter._send_lines()
    assert sum(len(call["logs"]) for call in api.calls["append_job_logs"]) == 1000


async def test_secrets_and_bulk_stay_out_of_what_owners_read(api: ScriptedApi, rpc: Rpc) -> None:
    api.answers["append_job_logs"] = stored
    reporter, job = make_reporter(rpc), a_job()
    reporter.line(job, "info", "asked with Bearer abcdefghijkl", {"url": "postgres://a:hunter2@b", "n": 1})
    reporter.line(job, "info", "long", {"text": "x" * 5000})
    await reporter.close(job)
    first, second = api.calls["append_job_logs"][0]["logs"]
    assert first["message"] == "asked with Bearer [redacted]"
    assert first["fields"] == {"url": "postgres://a:[redacted]@b", "n": 1}
    assert second["fields"] == {"cut": "the fields had more than 4 KiB"}


async def test_a_failure_that_cannot_be_stored_either_is_said_and_not_called_finished(
    api: ScriptedApi, rpc: Rpc
) -> None:
    app = Processor()

    @app.job("k", queue="q")
    async def handler(job: JobContext) -> None:
        """Do nothing."""

    api.answers["finish_jobs"] = lambda arguments: (
        200,
        [{"id": one["id"], "stale": False, "error": "XX: no"} for one in arguments["results"]],
    )
    settler = make_settler(rpc)
    settings = Settings(url=api.url, key="e30.e30.x")
    client = ApplicationClient(api.url, "e30.e30.x")
    hold = Hold()
    hold.extend(clock() + 60)
    executor = Executor(app, settings, settler, make_reporter(rpc), client, hold, {})
    with structlog.testing.capture_logs() as logs:
        async with running(settler.run()):
            await asyncio.wait_for(
                executor.run(Run(a_job(), worker_id=uuid4(), wake="sweep", queued_ms=0)), 5
            )
    events = [line["event"] for line in logs if line["event"].startswith("job.")]
    assert events == ["job.started", "job.refused", "job.unsettled"]


async def test_the_first_jobs_of_a_large_claim_are_told_before_the_last_have_begun(
    api: ScriptedApi, rpc: Rpc
) -> None:
    app = Processor()
    begun: list[UUID] = []

    @app.job("k", queue="q")
    async def handler(job: JobContext) -> None:
        begun.append(job.id)

    jobs = [a_job() for _ in range(250)]
    now = datetime.now(UTC).isoformat()
    api.answers["claim_jobs"] = lambda _arguments: (
        200,
        {
            "now": now,
            "next_due_at": None,
            "jobs": [job.model_dump(mode="json") for job in jobs if len(api.calls["claim_jobs"]) == 1],
        },
    )
    api.answers["finish_jobs"] = lambda arguments: (200, settled(arguments))
    settler = make_settler(rpc)
    settings = Settings(url=api.url, key="e30.e30.x")
    hold = Hold()
    hold.extend(clock() + 60)
    client = ApplicationClient(api.url, "e30.e30.x")
    worker = Worker(rpc, ME, queues=["q"], slots=len(jobs), on_unknown=nobody)
    worker.employ(Executor(app, settings, settler, make_reporter(rpc), client, hold, {}))
    worker.wake("sweep")
    told: list[str] = []
    async with running(worker.run(), settler.run()):
        await becomes(lambda: sum(len(call["results"]) for call in api.calls["finish_jobs"]) >= len(jobs))
        await asyncio.wait_for(worker.idle(), 8)
    for call in api.calls["finish_jobs"]:
        told += [result["id"] for result in call["results"]]
    assert len(api.calls["finish_jobs"][0]["results"]) < len(jobs)
    assert sorted(told) == sorted(str(job.id) for job in jobs)
    assert sorted(begun) == sorted(job.id for job in jobs)


def spawned(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"stale": False, "jobs": [{"id": str(uuid4()), "created": True} for _ in arguments["jobs"]]}


async def test_children_wait_for_an_api_that_is_away(api: ScriptedApi, rpc: Rpc) -> None:
    api.answers["spawn_jobs"] = lambda arguments: (
        (503, {"message": "upgrading"}) if len(api.calls["spawn_jobs"]) == 1 else (200, spawned(arguments))
    )
    answer = await make_settler(rpc).spawn(attempt(), [{"kind": "child"}], None)
    assert [child.created for child in answer.jobs] == [True]
    assert len(api.calls["spawn_jobs"]) == 2


async def test_a_handler_that_spawns_for_a_job_another_has_is_stopped_and_settles_nothing(
    api: ScriptedApi, rpc: Rpc
) -> None:
    app = Processor()
    ended: list[BaseException] = []

    @app.job("k", queue="q")
    async def parent(job: JobContext) -> None:
        try:
            await job.spawn("child", {"n": 1})
        except BaseException as error:
            ended.append(error)
            raise

    api.answers["spawn_jobs"] = lambda _arguments: (200, {"stale": True, "jobs": []})
    settings = Settings(url=api.url, key="e30.e30.x")
    reporter = Reporter(rpc, ME, on_cancel=lambda _ids: None, on_stale=lambda _id, _attempt: None)
    settler = make_settler(rpc)
    hold = Hold()
    hold.extend(clock() + 60)
    executor = Executor(app, settings, settler, reporter, ApplicationClient(api.url, "e30.e30.x"), hold, {})
    run = Run(a_job(), worker_id=uuid4(), wake="sweep", queued_ms=0)
    async with running(settler.run()):
        await asyncio.wait_for(executor.run(run), 5)
    assert len(ended) == 1
    assert run.stopped_for is Stop.LOST
    assert set(api.calls) == {"spawn_jobs"}  # neither finished nor released: it belongs to somebody else
