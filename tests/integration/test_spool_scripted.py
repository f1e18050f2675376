"""Outcomes on their way to an API that is away, slow, or refuses them, and what is on disk meanwhile."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from processor import JobContext, Processor
from processor.answers import Attempt
from processor.config import Settings
from processor.daemon import Daemon
from processor.errors import AuthFailed
from processor.job import Failure, ItemOutcome, Job, Outcome, OutcomeKind, Step
from processor.replay import Replay
from processor.rpc import SCHEMA_VERSION, Rpc
from processor.settle import Settler
from processor.spool import Spool, files
from tests.integration.scripted_api import ScriptedApi, scripted_api

AWAY = (503, {"message": "upgrading"})
DONE = Outcome(OutcomeKind.DONE, result={"text": "ä", "deep": [[[1.5]]]})
FAILED = Outcome(
    OutcomeKind.RETRY, failure=Failure("SLOW", "too slow", retryable=True, delay=3), delay=3.0, message="m"
)


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def rpc(api: ScriptedApi) -> AsyncIterator[Rpc]:
    rpc = Rpc(api.url, "e30.e30.x", patience=0)
    yield rpc
    await rpc.aclose()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class Life:
    """A worker's settler from its start to its end, which leaves no trace but its files."""

    def __init__(self, rpc: Rpc, directory: Path) -> None:
        self.worker_id = uuid4()
        spool = Spool(directory, self.worker_id, rpc.url, max_bytes=1_000_000)
        self.settler = Settler(rpc, self.worker_id, on_cancel=lambda _ids: None, spool=spool)
        self.waiting: list[asyncio.Task[Any]] = []

    def soon(self, waiting: Any) -> asyncio.Task[Any]:
        self.waiting.append(asyncio.create_task(waiting))
        return self.waiting[-1]


@asynccontextmanager
async def alive(rpc: Rpc, directory: Path) -> AsyncIterator[Life]:
    life = Life(rpc, directory)
    running = asyncio.create_task(life.settler.run())
    try:
        yield life
    finally:
        for task in (running, *life.waiting):
            task.cancel()
        await asyncio.wait({running, *life.waiting})
        await life.settler.close()


async def becomes(condition: Callable[[], Any], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.01)


def everything_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def attempt() -> Attempt:
    return Attempt(id=uuid4(), attempt=2)


def taken(arguments: dict[str, Any]) -> tuple[int, Any]:
    return 200, [{"id": one["id"], "stale": False, "status": "completed"} for one in arguments["results"]]


def items_taken(arguments: dict[str, Any]) -> tuple[int, Any]:
    results = [{"id": one["id"], "stale": False, "error": None} for one in arguments["results"]]
    return 200, {"results": results, "cancel": []}


def released(arguments: dict[str, Any]) -> tuple[int, Any]:
    return 200, [{"id": one["id"], "stale": False} for one in arguments["jobs"]]


def comes_back(api: ScriptedApi) -> None:
    api.answers |= {"finish_jobs": taken, "finish_items": items_taken, "release_jobs": released}


async def test_nothing_is_written_while_the_api_answers(api: ScriptedApi, rpc: Rpc, directory: Path) -> None:
    comes_back(api)
    async with alive(rpc, directory) as life:
        for _ in range(5):
            await asyncio.gather(*(life.settler.job(attempt(), DONE) for _ in range(20)))
    assert everything_in(directory.parent) == []


async def test_what_waits_is_on_disk_and_gone_when_it_is_taken(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    async with alive(rpc, directory) as life:
        first = life.soon(life.settler.job(attempt(), DONE))
        await becomes(lambda: life.settler.depth.records == 1)
        others = [life.soon(life.settler.release(attempt())), life.soon(life.settler.job(attempt(), FAILED))]
        await becomes(lambda: life.settler.depth.records == 3)
        assert life.settler.depth.bytes == files(directory)[0].stat().st_size
        comes_back(api)
        for waiting in (first, *others):
            assert not (await asyncio.wait_for(waiting, 15)).stale
        await becomes(lambda: life.settler.depth.records == 0)
    assert files(directory) == []


async def test_an_api_that_says_nothing_is_taken_for_one_that_is_away(directory: Path) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    rpc = Rpc(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "e30.e30.x")
    try:
        async with alive(rpc, directory) as life:
            began = time.monotonic()
            life.soon(life.settler.job(attempt(), DONE))
            await becomes(lambda: life.settler.depth.records == 1)
            assert time.monotonic() - began < 9  # well before the call's own time is over
    finally:
        await rpc.aclose()
        server.close()


async def test_an_outcome_is_safe_while_the_last_log_lines_go_first(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    comes_back(api)
    lines_written = asyncio.Event()

    async def write_lines() -> None:
        await lines_written.wait()

    async with alive(rpc, directory) as life:
        waiting = life.soon(life.settler.job(attempt(), DONE, after=write_lines()))
        await becomes(lambda: life.settler.depth.records == 1)
        assert api.calls["finish_jobs"] == []
        lines_written.set()
        await asyncio.wait_for(waiting, 15)
        await becomes(lambda: not files(directory))


async def test_an_outcome_of_a_cancelled_handler_is_kept_too(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    async with alive(rpc, directory) as life:
        waiting = life.soon(life.settler.item(attempt(), ItemOutcome("de", result="x")))
        await asyncio.sleep(0)
        waiting.cancel()
        await becomes(lambda: life.settler.depth.records == 1)
        comes_back(api)
        await asyncio.wait_for(life.settler.flushed(), 15)
    assert files(directory) == []
    assert api.calls["finish_items"][-1]["results"][0]["items"] == [
        {"key": "de", "status": "completed", "result": "x"}
    ]


async def test_a_disk_that_fails_is_told_once_and_holds_nothing_up(
    api: ScriptedApi, rpc: Rpc, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: bytes, _place: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("processor.keep._AGAIN", 0.2)
    monkeypatch.setattr(os, "pwrite", full)
    with capture_logs() as logs:
        async with alive(rpc, directory) as life:
            waiting = [life.soon(life.settler.job(attempt(), DONE)) for _ in range(3)]
            await becomes(lambda: len(api.calls["finish_jobs"]) >= 3)
            failures = [line for line in logs if line["event"] == "spool.failed"]
            assert len(failures) == 1
            assert "No space left" in failures[0]["error"]
            assert "PROCESSOR_SPOOL_DIR" in failures[0]["hint"]
            monkeypatch.undo()
            await becomes(lambda: life.settler.depth.records == 3)
            assert [line["event"] for line in logs].count("spool.works_again") == 1
            comes_back(api)
            await asyncio.wait_for(asyncio.gather(*waiting), 15)
    assert files(directory) == []


async def test_a_disk_that_is_full_for_good_does_not_keep_results_from_the_api(
    api: ScriptedApi, rpc: Rpc, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with capture_logs() as logs:
        async with alive(rpc, directory) as life:
            waiting = life.soon(life.settler.job(attempt(), DONE))
            await becomes(lambda: any(line["event"] == "spool.failed" for line in logs))
            assert await life.settler.save() == 1  # not safe
            comes_back(api)
            assert (await asyncio.wait_for(waiting, 15)).status == "completed"
    assert files(directory) == []


async def test_more_than_the_limit_waits_in_memory_and_is_told_once(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    big = Outcome(OutcomeKind.DONE, result="x" * 400_000)
    with capture_logs() as logs:
        async with alive(rpc, directory) as life:
            waiting = [life.soon(life.settler.job(attempt(), big)) for _ in range(4)]
            await becomes(lambda: any(line["event"] == "spool.full" for line in logs))
            assert life.settler.depth.records == 2
            assert await life.settler.save() == 2
            comes_back(api)
            assert all(not answer.stale for answer in await asyncio.wait_for(asyncio.gather(*waiting), 15))
    assert [line["event"] for line in logs].count("spool.full") == 1
    assert files(directory) == []


async def test_the_file_goes_too_if_the_last_outcome_in_hand_was_never_in_it(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    lines_written = asyncio.Event()

    async def write_lines() -> None:
        await lines_written.wait()

    too_big = Outcome(OutcomeKind.DONE, result="x" * 1_100_000)
    async with alive(rpc, directory) as life:
        kept = life.soon(life.settler.job(attempt(), DONE))
        last = life.soon(life.settler.job(attempt(), too_big, after=write_lines()))
        await becomes(lambda: life.settler.depth.records == 1)
        comes_back(api)
        await asyncio.wait_for(kept, 15)
        await becomes(lambda: life.settler.depth.records == 0)
        lines_written.set()
        await asyncio.wait_for(last, 15)
        await becomes(lambda: not files(directory))


# -- heirs ------------------------------------------------------------------------------------------


async def leave(rpc: Rpc, directory: Path) -> dict[str, Any]:
    """Leave two items, two jobs and a release behind, as a worker that dies while the API is away."""
    async with alive(rpc, directory) as life:
        busy, done = attempt(), attempt()
        life.soon(life.settler.release(attempt()))
        life.soon(life.settler.job(done, DONE))
        life.soon(life.settler.item(done, ItemOutcome("de", result=1)))
        life.soon(life.settler.item(busy, ItemOutcome("fr", failure=FAILED.failure)))
        life.soon(life.settler.job(attempt(), FAILED))
        await becomes(lambda: life.settler.depth.records == 5)
    return {"worker_id": str(life.worker_id), "done": str(done.id), "busy": str(busy.id)}


async def test_an_heir_offers_everything_under_the_name_of_the_dead_items_first(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    left = await leave(rpc, directory)
    api.calls.clear()
    comes_back(api)
    order: list[str] = []
    for name, answer in list(api.answers.items()):
        api.answers[name] = lambda arguments, name=name, answer=answer: (
            order.append(name) or answer(arguments)
        )
    with capture_logs() as logs:
        await Replay(rpc, directory).first()
    assert files(directory) == []
    asked = [
        name for name in order if name != "finish_jobs" or any(one["results"] for one in api.calls[name])
    ]
    assert asked[-3:] == ["finish_items", "finish_jobs", "release_jobs"]
    (items,) = api.calls["finish_items"]
    assert items["worker_id"] == left["worker_id"]
    assert {(one["id"], one["attempt"]) for one in items["results"]} == {(left["done"], 2), (left["busy"], 2)}
    jobs = next(one for one in api.calls["finish_jobs"] if one["results"])
    assert jobs["worker_id"] == left["worker_id"]
    assert jobs["results"][0] == {
        "id": left["done"],
        "attempt": 2,
        "outcome": "done",
        "result": {"text": "ä", "deep": [[[1.5]]]},
    }
    assert jobs["results"][1] | {"id": ""} == {
        "id": "",
        "attempt": 2,
        "outcome": "retry",
        "result": None,
        "error_code": "SLOW",
        "error_message": "too slow",
        "error_retryable": True,
        "delay_seconds": 3.0,
        "message": "m",
    }
    (told,) = [line for line in logs if line["event"] == "spool.replayed"]
    assert (told["outcomes"], told["taken"], told["stale"], told["refused"]) == (
        {"item": 2, "job": 2, "release": 1},
        5,
        0,
        0,
    )


async def test_an_heir_stores_what_the_steps_of_the_dead_came_to(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    job = attempt()
    steps = [Step("one", {"deep": [None, 1.5]}), Step("none", None)]
    async with alive(rpc, directory) as life:
        for step in steps:
            life.soon(life.settler.checkpoint(job, step))
        await becomes(lambda: life.settler.depth.records == 2)
    api.calls.clear()
    comes_back(api)
    api.answers["save_checkpoints"] = lambda arguments: (
        200,
        {"results": [{"id": step["id"], "stale": False} for step in arguments["checkpoints"]], "cancel": []},
    )
    await Replay(rpc, directory).first()
    assert files(directory) == []
    (call,) = api.calls["save_checkpoints"]
    assert call["worker_id"] == str(life.worker_id)
    assert [(one["id"], one["name"], one["result"]) for one in call["checkpoints"]] == [
        (str(job.id), "one", {"deep": [None, 1.5]}),
        (str(job.id), "none", None),
    ]


async def test_what_is_stale_or_refused_is_told_and_done_with(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    left = await leave(rpc, directory)
    comes_back(api)

    def judge(arguments: dict[str, Any]) -> tuple[int, Any]:
        return 200, [
            {"id": one["id"], "stale": one["id"] == left["done"], "status": "pending"}
            | ({} if one["id"] == left["done"] else {"error": "JQ006: no"})
            for one in arguments["results"]
        ]

    api.answers["finish_jobs"] = judge
    with capture_logs() as logs:
        await Replay(rpc, directory).first()
    assert files(directory) == []
    (stale,) = [line for line in logs if line["event"] == "spool.stale"]
    assert (stale["job_id"], stale["attempt"], stale["status"]) == (left["done"], 2, "pending")
    (refused,) = [line for line in logs if line["event"] == "spool.refused"]
    assert refused["error"] == "JQ006: no"
    (told,) = [line for line in logs if line["event"] == "spool.replayed"]
    assert (told["taken"], told["stale"], told["refused"]) == (3, 1, 1)


async def test_an_heir_waits_for_the_api_and_leaves_the_file_if_it_is_stopped(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    await leave(rpc, directory)
    api.calls.clear()
    replaying = asyncio.create_task(Replay(rpc, directory).first())
    await becomes(lambda: len(api.calls["finish_jobs"]) >= 2)
    replaying.cancel()
    await asyncio.wait({replaying})
    assert len(files(directory)) == 1
    comes_back(api)
    await Replay(rpc, directory).first()
    assert files(directory) == []
    assert len(api.calls["finish_items"]) == 1


async def test_an_heir_that_is_stopped_halfway_offers_only_the_rest_again(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    await leave(rpc, directory)
    api.calls.clear()
    api.answers["finish_items"] = items_taken
    # the first call, with nothing in it, asks whether the API is there
    api.answers["finish_jobs"] = lambda arguments: AWAY if arguments["results"] else (200, [])
    replaying = asyncio.create_task(Replay(rpc, directory).first())
    await becomes(lambda: len(api.calls["finish_jobs"]) >= 2)
    replaying.cancel()
    await asyncio.wait({replaying})
    comes_back(api)
    await Replay(rpc, directory).first()
    assert len(api.calls["finish_items"]) == 1
    assert files(directory) == []


def one_job_for_all(api: ScriptedApi) -> Job:
    """Give the first claim a job, and answer whatever else a daemon asks, except how the job ended."""
    now = datetime.now(UTC)
    job = Job(id=uuid4(), queue="q", kind="k", payload={}, attempt=1, run_at=now, created_at=now)
    times = {"now": now.isoformat(), "lease_expires_at": (now + timedelta(seconds=90)).isoformat()}
    api.answers |= {
        "register_worker": lambda _arguments: (200, {**times, "schema_version": SCHEMA_VERSION}),
        "heartbeat_worker": lambda _arguments: (
            200,
            {**times, "heartbeat_at": times["now"], "next_due_at": None},
        ),
        "claim_jobs": lambda _arguments: (
            200,
            {
                "now": times["now"],
                "next_due_at": None,
                "jobs": [job.model_dump(mode="json")] if len(api.calls["claim_jobs"]) == 1 else [],
            },
        ),
        "deregister_worker": lambda _arguments: (200, {"released": 0}),
    }
    return job


async def test_a_daemon_that_leaves_results_does_not_sign_off_and_the_next_hands_them_in_first(
    api: ScriptedApi, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.drain._FLUSH_SECONDS", 0.1)
    app = Processor()

    @app.job("k", queue="q")
    async def handler(job: JobContext) -> str:
        return "done"

    settings = Settings(
        url=api.url,
        key="e30.e30.x",
        feed="polling",
        spool_dir=directory,
        grace_seconds=20,
        maintenance_seconds=0,
    )
    job = one_job_for_all(api)
    daemon = Daemon(app, settings)
    running = asyncio.create_task(daemon.run())
    await becomes(lambda: api.calls["finish_jobs"])
    daemon.stop()
    assert await asyncio.wait_for(running, 18) == 0  # as soon as it is on disk: nothing else is waited for
    assert len(files(directory)) == 1
    assert api.calls["deregister_worker"] == []  # it would give the job back, and its handler run again

    order: list[str] = []
    api.answers["finish_jobs"] = taken
    for name, answer in list(api.answers.items()):
        api.answers[name] = lambda arguments, name=name, answer=answer: (
            order.append(name) or answer(arguments)
        )
    heir = Daemon(app, settings)
    running = asyncio.create_task(heir.run())
    await becomes(lambda: "claim_jobs" in order)
    heir.stop()
    assert await asyncio.wait_for(running, 18) == 0
    handed_in = next(one for one in api.calls["finish_jobs"][::-1] if one["results"])
    assert handed_in["worker_id"] == str(daemon.id)
    assert [(one["id"], one["result"]) for one in handed_in["results"]] == [(str(job.id), "done")]
    assert order[:3] == ["finish_jobs", "finish_jobs", "register_worker"]
    assert [one["worker_id"] for one in api.calls["deregister_worker"]] == [str(heir.id)]


async def test_a_key_that_is_refused_ends_the_start_and_costs_no_result(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    await leave(rpc, directory)
    api.answers["finish_jobs"] = lambda _arguments: (401, {"message": "Invalid API key"})
    with pytest.raises(AuthFailed):
        await Replay(rpc, directory).first()
    assert len(files(directory)) == 1


async def test_the_living_and_other_projects_are_left_alone(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    elsewhere = Rpc(f"{api.url}/elsewhere", "e30.e30.x", patience=0)
    await leave(elsewhere, directory)
    await elsewhere.aclose()
    async with alive(rpc, directory) as life:
        life.soon(life.settler.job(attempt(), DONE))
        await becomes(lambda: life.settler.depth.records == 1)
        before = files(directory)
        replay = Replay(rpc, directory)
        with capture_logs() as logs:
            await replay.first()
            await replay.first()
        assert files(directory) == before
        told = [line for line in logs if line["event"] in {"spool.passed_over", "spool.replayed"}]
        assert [line.get("reason") for line in told] == [f"it belongs to {api.url}/elsewhere"]


async def test_what_a_process_leaves_that_dies_later_is_found(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    replay = Replay(rpc, directory)
    await replay.first()
    looking = asyncio.create_task(replay.run(0.05))
    try:
        await leave(rpc, directory)
        comes_back(api)
        await becomes(lambda: not files(directory))
    finally:
        looking.cancel()
        await asyncio.wait({looking})
    assert len({UUID(one["worker_id"]) for one in api.calls["finish_items"]}) == 1


async def test_a_file_with_a_changed_line_is_put_aside_and_the_rest_of_it_counts(
    api: ScriptedApi, rpc: Rpc, directory: Path
) -> None:
    await leave(rpc, directory)
    (path,) = files(directory)
    path.write_bytes(path.read_bytes().replace(b'"de"', b'"xx"'))
    comes_back(api)
    with capture_logs() as logs:
        await Replay(rpc, directory).first()
    (told,) = [line for line in logs if line["event"] == "spool.broken"]
    assert told["lines"] == 1
    assert told["path"] == str(path.with_suffix(".corrupt"))
    assert everything_in(directory) == [path.with_suffix(".corrupt")]
    (replayed,) = [line for line in logs if line["event"] == "spool.replayed"]
    assert replayed["taken"] == 4
