"""What a collector of errors gets of a real daemon: what nobody expected, and no more than it should know."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import places
from tests.collector import Collector
from tests.daemons import Daemon

TEXT = 'Grandmother\'s biscuits, with "cinnamon"'


class Place(places.Place):
    """A place whose handlers fail."""

    target = "tests.apps.incidents:app"


class Sentry(Collector):
    """Takes Sentry's envelopes."""

    @property
    def dsn(self) -> str:
        return f"http://abcdefghijklmnop@{self.address}/7"

    @property
    def bodies(self) -> list[str]:
        return [body.decode() for _, body in self.posted]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events in the envelopes: a line for all of it, then two for each item, header and content."""
        lines = [line for _, body in self.posted for line in body.splitlines()[1:]]
        items = zip(map(json.loads, lines[::2]), lines[1::2], strict=True)
        return [json.loads(content) for header, content in items if header["type"] == "event"]


@pytest.fixture
def collector() -> Iterator[Sentry]:
    with Sentry() as collector:
        yield collector


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


async def end(daemon: Daemon, code: int = 0) -> None:
    """End it: by then all is sent."""
    daemon.process.terminate()
    assert await daemon.ended() == code


async def test_what_nobody_expected_is_told_once_without_payload_and_key(
    place: Place, collector: Sentry
) -> None:
    async with place.daemon(PROCESSOR_SENTRY_DSN=collector.dsn, PROCESSOR_NAME="night-shift") as daemon:
        await daemon.ready()
        row = await place.do("crash", {"text": TEXT}, max_attempts=1)
        assert (row["status"], row["error_code"]) == ("failed", "HANDLER_CRASHED")
        for how in ("code", "discard", "cancel", "retry", "rule", "timeout"):
            await place.do("mean", {"how": how}, max_attempts=1)
        await end(daemon)
        assert collector.dsn not in daemon.log()
    [event] = collector.events
    assert event["tags"] == {
        "job_id": row["id"],
        "kind": f"{place.queue}.crash",
        "queue": place.queue,
        "attempt": "1",
    }
    assert (event["level"], event["server_name"]) == ("error", "night-shift")
    assert event["transaction"] == f"{place.queue}.crash"
    [error] = event["exception"]["values"]
    assert error["type"] == "RuntimeError"
    assert error["value"].startswith("cannot read ")
    assert "input_value=[payload], input_type=str" in error["value"]
    assert error["stacktrace"]["frames"][-1]["function"] == "quoting"
    [body] = collector.bodies
    for secret in ("biscuits", "cinnamon", "Grandmother", place.stack.service_role_key, "abcdefghijklmnop"):
        assert secret not in body.partition("\n")[2], secret
    assert "vars" not in body
    assert "breadcrumbs" not in event


async def test_each_attempt_each_kind_of_failing_item_and_each_broken_hook_is_told(
    place: Place, collector: Sentry, eventually: Callable[..., Any]
) -> None:
    async with place.daemon(PROCESSOR_SENTRY_DSN=collector.dsn) as daemon:
        await daemon.ready()
        items = [{"key": str(n), "payload": {"text": f"{TEXT} {n}"}} for n in range(5)]
        many = await place.do("items", items=items, max_attempts=1)
        assert many["error_code"] == "ITEMS_FAILED"
        away = await place.do("crash_in_a_process", {"text": TEXT}, max_attempts=1)
        again = await place.create("crash", {"text": TEXT}, max_attempts=2)
        await daemon.event("job.finished", job_id=again, status="pending")
        hooked = await place.do("hooked", {"text": TEXT})
        assert hooked["status"] == "completed"
        await daemon.event("hook.failed", job_id=hooked["id"])
        await place.rest.rpc("cancel_job", {"job_id": again}).execute()
        blow = await place.create("blow")
        assert await daemon.ended() == 1
    told = {event["tags"].get("job_id"): event for event in collector.events}
    assert set(told) == {many["id"], away["id"], again, hooked["id"], None}
    assert len(collector.events) == len(told)
    assert blow not in told
    assert told[hooked["id"]]["tags"]["hook"] == "on_success"
    assert told[hooked["id"]]["exception"]["values"][-1]["value"] == "about [payload]"
    assert "In the handler's process" in told[away["id"]]["exception"]["values"][-1]["value"]
    assert (told[None]["level"], told[None]["tags"]) == ("fatal", {"task": "resource fuse"})
    assert not any("biscuits" in body or "cinnamon" in body for body in collector.bodies)


async def test_a_collector_that_is_away_costs_no_job(place: Place) -> None:
    async with place.daemon(PROCESSOR_SENTRY_DSN="http://abcdefghijklmnop@127.0.0.1:9/7") as daemon:
        await daemon.ready()
        row = await place.do("crash", {"text": TEXT}, max_attempts=1)
        assert row["error_code"] == "HANDLER_CRASHED"
        assert await daemon.event("sentry.dropped")
        assert (await place.do("hooked", {"text": "x"}))["status"] == "completed"
        await end(daemon)
        assert "abcdefghijklmnop" not in daemon.log()


async def test_an_address_that_is_none_is_said_before_anything_begins(place: Place) -> None:
    async with place.daemon(PROCESSOR_SENTRY_DSN="https://sentry.example/7") as daemon:
        assert await daemon.ended() == 2
        assert "PROCESSOR_SENTRY_DSN: Missing public key. It must look like" in daemon.log()


async def test_a_missing_sdk_is_said_with_the_extra_that_has_it(place: Place, tmp_path, monkeypatch) -> None:
    (tmp_path / "sentry_sdk.py").write_text("raise ImportError('no module named sentry_sdk')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with place.daemon(PROCESSOR_SENTRY_DSN="http://abcdefghijklmnop@127.0.0.1:9/7") as daemon:
        assert await daemon.ended() == 2
        assert "pip install 'supabase-job-processor[sentry]'" in daemon.log()
