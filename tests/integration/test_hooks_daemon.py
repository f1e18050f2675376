"""Hooks of handlers with real daemons: when they run, and that they cost nobody anything."""

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests import places
from tests.daemons import Daemon
from tests.texts import blocks

HOOKS = ("succeeded", "failed", "retried")


class Place(places.Place):
    """A place whose handlers have hooks."""

    target = "tests.apps.hooked:app"


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


def heard(daemon: Daemon, job_id: str) -> list[dict[str, Any]]:
    return [event for event in daemon.events if event["event"] in HOOKS and event.get("job_id") == job_id]


@pytest.mark.parametrize("sort", ["loop", "thread", "process"])
async def test_a_hook_hears_what_the_database_has_taken_whatever_the_sort_of_handler(
    place: Place, sort: str
) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        good = await place.do(sort, {"how": "well"})
        event = await daemon.event("succeeded", job_id=good["id"])
        assert (event["stored"], event["status"], event["result"]) == ("completed", "completed", "well")
        assert (event["code"], event["run_at"], event["mailer"]) == (None, None, ["a mailer"])
        assert (event["kind"], event["queue"], event["attempt"]) == (f"{place.queue}.{sort}", place.queue, 1)

        bad = await place.do(sort, {"how": "never"})
        event = await daemon.event("failed", job_id=bad["id"])
        assert (event["stored"], event["status"], event["result"]) == ("failed", "failed", None)
        assert (event["code"], event["message"]) == ("DISCARDED", "hopeless")
        assert event["payload"] == {"how": "never"}

        late = await place.do(sort, {"how": "later"})
        await daemon.event("succeeded", job_id=late["id"], attempt=2)
        [again, ended] = heard(daemon, late["id"])
        assert (again["event"], again["attempt"], again["status"]) == ("retried", 1, "pending")
        assert (again["code"], again["message"]) == ("NOT_YET", "not yet")
        assert abs((datetime.fromisoformat(again["run_at"]) - datetime.now(UTC)).total_seconds()) < 60
        assert (ended["event"], ended["attempt"]) == ("succeeded", 2)


async def test_every_failure_for_good_is_heard_and_nothing_that_is_none(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        wrong = await place.do("loop", {"wrong": 1})
        assert (await daemon.event("failed", job_id=wrong["id"]))["code"] == "INVALID_PAYLOAD"
        stuck = await place.do("stuck", max_attempts=1)
        assert (await daemon.event("failed", job_id=stuck["id"]))["code"] == "HANDLER_TIMEOUT"
        crash = await place.do("loop", {"how": "crash"}, max_attempts=1)
        assert (await daemon.event("failed", job_id=crash["id"]))["message"] == "RuntimeError: boom"
        partly = await place.do("items", items=["good", "bad"])
        event = await daemon.event("failed", job_id=partly["id"])
        assert (event["status"], event["code"]) == ("partial", "ITEMS_FAILED")

        cancelled = await place.do("loop", {"how": "cancel"})
        snoozed = await place.do("loop", {"how": "snooze"})
        await daemon.event("succeeded", job_id=snoozed["id"])
        assert [event["event"] for event in heard(daemon, snoozed["id"])] == ["succeeded"]
        assert heard(daemon, cancelled["id"]) == []


async def test_a_broken_hook_is_told_and_counted_and_its_job_stays_as_it_is(place: Place) -> None:
    async with place.daemon(PROCESSOR_HTTP_PORT="0") as daemon:
        await daemon.ready()
        for kind, ways in (
            ("broken", {"raise": "a broken hook", "exit": "SystemExit", "cancel": "", "decision": "decide"}),
            ("broken_thread", {"raise": "a broken hook", "exit": "SystemExit", "stop": "", "coroutine": ""}),
        ):
            for hook, words in ways.items():
                row = await place.do(kind, {"hook": hook})
                assert (row["status"], row["result"], row["attempt"]) == ("completed", "well", 1)
                event = await daemon.event("hook.failed", job_id=row["id"])
                assert (event["hook"], event["attempt"]) == ("on_success", 1)
                assert words in event["exception"]
        assert "write `async def`" in event["exception"]
        url = (await daemon.event("daemon.listening"))["url"]
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{url}/metrics")).text
        for kind in ("broken", "broken_thread"):
            labels = f'hook="on_success",kind="{place.queue}.{kind}",outcome="failed"'
            assert f"processor_hooks_total{{{labels}}} 4.0" in text
        assert len(daemon.all("hook.failed")) == 8
        assert not daemon.all("job.stale")


async def test_a_hook_that_takes_its_time_holds_no_slot_and_is_waited_for_at_the_end(place: Place) -> None:
    async with place.daemon(PROCESSOR_SLOTS="1") as daemon:
        await daemon.ready()
        for kind in ("slow", "slow_thread"):
            row = await place.do(kind, {"seconds": 4})
            await daemon.event("slow.began", job_id=row["id"])
        await place.do("loop", {"how": "well"})  # the only slot is free
        assert not daemon.all("slow.ended")
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert len(daemon.all("slow.ended")) == 2
        assert not daemon.all("hook.failed")


@pytest.mark.parametrize("end", ["the grace", "a second signal"])
async def test_a_hook_that_takes_too_long_at_the_end_is_cut_off_and_told(place: Place, end: str) -> None:
    grace = "1" if end == "the grace" else "60"
    async with place.daemon(PROCESSOR_GRACE_SECONDS=grace) as daemon:
        await daemon.ready()
        rows = {kind: await place.do(kind, {"seconds": 60}) for kind in ("slow", "slow_thread")}
        for row in rows.values():
            await daemon.event("slow.began", job_id=row["id"])
        daemon.signal(signal.SIGTERM)
        if end == "a second signal":
            await daemon.event("daemon.stopping")
            daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert daemon.all("slow.cancelled", job_id=rows["slow"]["id"])
        for row in rows.values():
            [event] = daemon.all("hook.failed", job_id=row["id"])
            assert "the daemon ended before it did" in event["exception"]


async def test_hooks_run_at_most_once_a_daemon_that_is_killed_takes_them_with_it(place: Place) -> None:
    async with place.daemon(PROCESSOR_LEASE_SECONDS="3") as daemon:
        await daemon.ready()
        row = await place.do("slow", {"seconds": 60})
        await daemon.event("slow.began", job_id=row["id"])
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
    async with place.daemon() as daemon:
        await daemon.ready()
        other = await place.do("slow", {"seconds": 0})
        await daemon.event("slow.ended", job_id=other["id"])
        assert not daemon.all("slow.began", job_id=row["id"])
        assert (await place.row(row["id"]))["status"] == "completed"


README_HEAD = """
import sys
from functools import partial

from pydantic import BaseModel
from processor import Discard, Ended, JobContext, Processor
from processor.events import JobFinished, JobProgress

app = Processor()
print = partial(print, file=sys.stderr)  # which is what is heard of a daemon

@app.job("count", queue="translation")
async def count(job: JobContext) -> None:
    job.progress(0.5)

class Card(BaseModel):
    title: str

async def my_translator(title: str, language: str) -> str:
    raise Discard("no words for it")
"""


async def test_the_examples_of_the_readme_do_what_they_say(place: Place, tmp_path: Path, monkeypatch) -> None:
    hook, subscriber = blocks("README.md", "python")["When it has ended"]
    (tmp_path / "app.py").write_text(README_HEAD + hook + subscriber)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    database = await asyncpg.connect(place.stack.db_url)
    await database.execute(
        "create table public.notes (job_id uuid, text text); grant all on public.notes to service_role"
    )
    place.target = "app:app"
    try:
        async with place.daemon() as daemon:
            await daemon.ready()

            async def create(kind: str) -> str:
                arguments = {"kind": kind, "queue": "translation", "payload": {"title": "Hello"}}
                return (await place.rest.rpc("create_job", arguments).execute()).data["id"]

            job_id = await create("translate_title")

            async def noted() -> str | None:
                return await database.fetchval(
                    "select text from public.notes where job_id = $1::uuid", job_id
                )

            assert await place.eventually(noted, within=20) == "'Hello' was not translated: no words for it"
            counted = await create("count")

            async def printed() -> bool:
                return any(line.endswith(f" job.completed count {counted}") for line in daemon.text)

            await place.eventually(printed, within=20)
            shown = [line.split(" ", 2) for line in daemon.text if line.endswith((job_id, counted))]
            assert [words for _day, _time, words in shown] == [
                f"job.failed translate_title {job_id}",
                f"job.progress count {counted}",
                f"job.completed count {counted}",
            ]
            assert all(datetime.fromisoformat(f"{day} {time}").tzinfo for day, time, _words in shown)
    finally:
        await database.execute("drop table public.notes")
        await database.close()
