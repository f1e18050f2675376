"""Resources and middleware with real daemons: started before the first job, stopped after the last one."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from postgrest import AsyncPostgrestClient

from processor.errors import ResourceFailed
from processor.resources import Resources, declared
from tests.daemons import Daemon
from tests.texts import blocks


class Place:
    """A queue of its own, daemons for it, and hands to give them work."""

    def __init__(self, stack, rest: AsyncPostgrestClient, eventually: Callable[..., Awaitable[Any]]) -> None:
        self.queue = f"r{uuid4().hex[:8]}"
        self.stack = stack
        self.rest = rest
        self.eventually = eventually

    @asynccontextmanager
    async def daemon(
        self, breaks: str = "", *, target: str = "tests.apps.shared:app", **environment: str
    ) -> AsyncIterator[Daemon]:
        daemon = await Daemon.start(
            target,
            {
                "SUPABASE_URL": self.stack.url,
                "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
                "TEST_PREFIX": self.queue,
                "TEST_BREAK": breaks,
                "PROCESSOR_QUEUES": self.queue,
                "PROCESSOR_NAME": self.queue,
                **environment,
            },
        )
        try:
            yield daemon
        finally:
            await daemon.close()

    async def create(self, payload: dict[str, Any], kind: str | None = None) -> str:
        arguments = {"kind": kind or f"{self.queue}.use", "payload": payload}
        return (await self.rest.rpc("create_job", arguments).execute()).data["id"]

    async def do(self, kind: str | None = None, **payload: Any) -> dict[str, Any]:
        job_id = await self.create(payload, kind)

        async def finished() -> dict[str, Any] | None:
            row = (await self.rest.table("jobs").select("*").eq("id", job_id).single().execute()).data
            return row if row["finished_at"] else None

        return await self.eventually(finished, within=10)

    async def workers(self) -> int:
        return len((await self.rest.table("job_workers").select("id").eq("name", self.queue).execute()).data)


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


def spoken(daemon: Daemon, job_id: str) -> list[str]:
    return [event["message"] for event in daemon.all("job.log", job_id=job_id)]


def order(daemon: Daemon) -> list[str]:
    """Return what went up and down, and when the daemon was ready and its job finished."""
    names = {"up": "+", "down": "-", "daemon.ready": "ready", "job.finished": "finished"}
    return [
        names[event["event"]] + event.get("what", "") for event in daemon.events if event["event"] in names
    ]


async def test_resources_are_up_before_the_first_job_and_go_down_after_the_last_in_reverse_order(
    place: Place,
) -> None:
    async with place.daemon("stop") as daemon:  # and an error while one stops keeps no other from it
        await daemon.ready()
        row = await place.do()
        assert row["result"] == {
            "outer": {"model": {"from": "weights", "thread": "resource:model"}, "extra": "default"}
        }
        job_id = await place.create({"seconds": 1})
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert order(daemon) == ["+folder", "+model", "ready", "finished", "finished", "-model", "-folder"]
        started = [event["resource"] for event in daemon.all("resource.started")]
        assert sorted(started) == ["folder", "fuse", "limit", "model"]
        assert started.index("folder") < started.index("model")
        assert [event["resource"] for event in daemon.all("resource.stop_failed")] == ["model"]


async def test_middleware_goes_around_every_handler_the_first_one_outermost(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        row = await place.do()
        assert spoken(daemon, row["id"]) == ["outer", "inner", "handler", "outer is back"]
        assert list(row["result"]) == ["outer"]

        plain = await place.do(f"{place.queue}.plain")
        assert spoken(daemon, plain["id"]) == ["outer", "inner", "handler", "outer is back"]
        assert plain["result"] == {"outer": {"limit": 3}}

        heavy = await place.do(f"{place.queue}.heavy")
        assert spoken(daemon, heavy["id"]) == ["outer", "inner", "handler", "outer is back"]
        hanging = await place.create({"inner": "hang"}, f"{place.queue}.heavy")
        event = await daemon.event("job.finished", job_id=hanging)
        assert event["error_code"] == "HANDLER_TIMEOUT"

        skipped = await place.do(inner="skip")
        assert (skipped["status"], skipped["result"]) == ("completed", "skipped")
        assert spoken(daemon, skipped["id"]) == ["outer", "inner", "outer is back"]

        snoozed = await place.do(inner="snooze")
        assert (snoozed["status"], snoozed["attempt"], snoozed["failures"]) == ("completed", 2, 0)

        refused = await place.do(inner="refuse")
        assert (refused["status"], refused["error_code"]) == ("failed", "NOT_FOR_YOU")

        lacking = await place.do(lack=True)
        assert (lacking["status"], lacking["error_code"]) == ("failed", "LACKING")
        assert lacking["error_message"] == "'nothing' is missing"


async def test_a_resource_that_cannot_start_ends_the_daemon_before_it_registers(place: Place) -> None:
    async with place.daemon("start") as daemon:
        assert await daemon.ended() == 1
        assert order(daemon) == ["+folder", "-folder"]
        assert "could not be started: FileNotFoundError: no such weights" in daemon.text[-1]
        assert "tests.apps.shared.model" in daemon.text[-1]
        assert daemon.all("resource.failed", resource="model")
        assert await place.workers() == 0


async def test_sigterm_ends_a_daemon_that_still_loads_something(place: Place) -> None:
    async with place.daemon("slow", PROCESSOR_HTTP_PORT="0") as daemon:
        url = (await daemon.event("daemon.listening"))["url"]
        await daemon.event("loading")
        async with httpx.AsyncClient(base_url=url) as http:
            answer = await http.get("/readyz")
            assert (answer.status_code, answer.json()["checks"]["resources"]) == (
                503,
                "model is being started",
            )
            assert (await http.get("/healthz")).status_code == 200
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0  # within less than the loading takes
        assert order(daemon) == ["+folder", "-folder"]
        assert await place.workers() == 0


async def test_a_resource_that_ends_by_itself_ends_the_daemon_loudly(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        await place.do(blow=True)
        assert await daemon.ended() == 1
        [death] = daemon.all("daemon.task_died", task="resource fuse")
        assert "the fuse is blown" in str(death)
        assert order(daemon)[-2:] == ["-model", "-folder"]


README_HEAD = """
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel
from processor import JobContext, Processor

app = Processor()

class Page(BaseModel):
    url: str

async def summarise(text: str) -> int:
    return len(text)
"""


async def test_the_examples_of_the_readme_work_together(place: Place, tmp_path: Path, monkeypatch) -> None:
    examples = blocks("README.md", "python")
    shared, steps = examples["What handlers share"], examples["Steps that are not repeated"]
    (tmp_path / "app.py").write_text("\n".join([README_HEAD, *shared, *steps]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with place.daemon(target="app:app", PROCESSOR_QUEUES="digests") as daemon:
        await daemon.ready()
        row = await place.do("digest", url=f"{place.stack.url}/auth/v1/health")
        assert row["status"] == "completed", row
        assert row["result"]["digest"] > 0
        assert await daemon.event("job.log", job_id=row["id"], message="done")
        steps = place.rest.table("job_checkpoints").select("name").eq("job_id", row["id"]).order("name")
        assert (await steps.execute()).data == [{"name": "fetch"}, {"name": "summarise"}]


class Shelf:
    """Resources without a daemon, and what they said."""

    def __init__(self, *functions: Callable[..., Any], stop_seconds: float = 10.0) -> None:
        self.deaths: list[str] = []
        plan = [declared(function) for function in functions]
        self.resources = Resources(
            plan, lambda name, _error: self.deaths.append(name), stop_seconds=stop_seconds
        )


async def test_what_hangs_while_it_stops_is_left_behind_and_the_others_are_stopped() -> None:
    stopped: list[str] = []
    never = threading.Event()

    def good() -> Iterator[None]:
        yield
        stopped.append("good")

    async def hanging() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.Event().wait()

    def hanging_thread() -> Iterator[None]:
        yield
        never.wait()

    shelf = Shelf(good, hanging, hanging_thread, stop_seconds=0.1)
    await shelf.resources.start()
    async with asyncio.timeout(10):
        await shelf.resources.stop()
    assert stopped == ["good"]
    assert shelf.deaths == []
    never.set()


async def test_a_resource_starts_and_stops_in_the_same_task_or_thread() -> None:
    seen: list[Any] = []

    async def task() -> AsyncIterator[None]:
        seen.append(asyncio.current_task())
        yield
        seen.append(asyncio.current_task())

    def thread() -> Iterator[None]:
        seen.append(threading.current_thread())
        yield
        seen.append(threading.current_thread())

    shelf = Shelf(task, thread)
    await shelf.resources.start()
    await shelf.resources.stop()
    first, second, third, fourth = seen
    assert first is fourth
    assert second is third
    assert third is not threading.current_thread()
    assert third.name == "resource:thread"


def ends() -> None:
    raise SystemExit(3)


async def ends_too() -> None:
    raise SystemExit(3)


def yields_nothing() -> Iterator[None]:
    if False:
        yield


async def cancels_itself() -> AsyncIterator[None]:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)
    yield


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (ends, "called sys.exit"),
        (ends_too, "called sys.exit"),
        (yields_nothing, "didn't yield"),
        (cancels_itself, "was cancelled"),
    ],
)
async def test_whatever_keeps_one_from_starting_is_an_error_that_names_it(
    function: Callable[..., Any], words: str
) -> None:
    shelf = Shelf(function)
    async with asyncio.timeout(10):
        with pytest.raises(ResourceFailed, match=f"{function.__name__}.*{words}"):
            await shelf.resources.start()
        await shelf.resources.stop()
    assert shelf.deaths == []


async def test_a_start_that_is_interrupted_lets_the_thread_clean_up_when_it_is_through() -> None:
    began, go_on, cleaned = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Iterator[None]:
        began.set()
        go_on.wait()
        yield
        cleaned.set()

    shelf = Shelf(slow)
    starting = asyncio.create_task(shelf.resources.start(), name="starting")
    assert await asyncio.to_thread(began.wait, 10)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await shelf.resources.stop()
    go_on.set()
    assert await asyncio.to_thread(cleaned.wait, 10)
