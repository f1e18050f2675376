"""What handlers log, seen in the log of a real daemon: whose line it is, no secrets, no floods, in a file."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import places


class Place(places.Place):
    """A place whose handlers log."""

    target = "tests.apps.loggers:app"


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_whatever_a_handler_logs_says_which_job_attempt_and_worker_it_is_of(place: Place) -> None:
    async with place.daemon() as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        jobs = {
            sort: await place.create(f"talk_{sort}", items=["de"]) for sort in ("async", "thread", "process")
        }
        said = {
            "async": ("in the handler", "in a task", "in a thread", "by structlog", "item de"),
            "thread": ("in the handler",),
            "process": ("in the handler",),
        }
        for sort, job_id in jobs.items():
            await daemon.event("job.finished", job_id=job_id)
            whose = {
                "job_id": job_id,
                "attempt": 1,
                "kind": f"{place.queue}.talk_{sort}",
                "worker_id": worker_id,
            }
            for message in said[sort]:
                await daemon.event(message, **whose)
            secret = await daemon.event("asked with [redacted]", level="warning", **whose)
            assert place.stack.service_role_key not in json.dumps(secret)
        in_loop = await daemon.event("in the handler", job_id=jobs["async"])
        assert in_loop["logger"] == "shop.checkout"
        (in_thread,) = [event for event in daemon.events if str(event["event"]).startswith("item de in ")]
        assert in_thread["job_id"] == jobs["process"]
        assert "job_id" not in await daemon.event("daemon.ready")
        assert place.stack.service_role_key not in daemon.log()


async def test_a_warning_that_repeats_is_counted_and_told_at_the_end(place: Place) -> None:
    async with place.daemon(PROCESSOR_LOG_REPEATS="3") as daemon:
        await daemon.ready()
        await place.becomes(await place.create("nag", {"times": 40}), "completed")
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    said = [event["event"] for event in daemon.events if "the shop is closed" in str(event["event"])]
    assert said == [f"the shop is closed, customer {number}" for number in range(3)]
    (told,) = daemon.all("log.repeated")
    assert (told["of"], told["lines"]) == ("shop.checkout: the shop is closed, customer %s", 37)


async def test_the_log_goes_to_a_file_that_somebody_may_move_away(place: Place, tmp_path: Path) -> None:
    path, moved = tmp_path / "processor.log", tmp_path / "processor.log.old"
    async with place.daemon(PROCESSOR_LOG_FILE=str(path)) as daemon:

        async def has(event: str) -> bool:
            return path.exists() and any(line["event"] == event for line in lines(path))

        await place.eventually(lambda: has("daemon.ready"), within=30)
        first = await place.create("talk_thread")
        await place.becomes(first, "completed")
        path.rename(moved)
        daemon.signal(signal.SIGHUP)
        await place.eventually(lambda: has("config.reloaded"), within=30)
        await place.becomes(await place.create("talk_thread"), "completed")
        await place.eventually(lambda: has("in the handler"), within=30)
        assert daemon.events == []
        assert {"job.started", "in the handler"} <= {line["event"] for line in lines(moved)}
        assert "config.reloaded" not in {line["event"] for line in lines(moved)}
        assert path.stat().st_mode & 0o007 == 0
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    assert lines(path)[-1]["event"] == "daemon.stopped"


async def test_a_log_file_that_cannot_be_written_is_said_at_the_start(place: Place, tmp_path: Path) -> None:
    async with place.daemon(PROCESSOR_LOG_FILE=str(tmp_path / "no" / "where.log")) as daemon:
        assert await daemon.ended() == 2
    assert "PROCESSOR_LOG_FILE: cannot write" in daemon.text[0]
    assert "Its directory must exist" in daemon.text[0]
