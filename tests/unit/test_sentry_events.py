"""What an event says, and how many there are: Sentry's SDK with a transport that keeps what it gets."""

import asyncio
import socket
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import sentry_sdk
import structlog
from sentry_sdk.transport import Transport

from processor.job import Item, Job
from processor.sentry import Sentry, hide_payload, sentry


class Kept(Transport):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.events.append(envelope.get_event())


def a_job(payload: dict[str, Any], *items: Any) -> Job:
    now = datetime.now(UTC)
    parts = tuple(Item(key=str(n), position=n, payload=part) for n, part in enumerate(items))
    return Job(
        id=uuid4(), queue="q", kind="k", payload=payload, attempt=1, run_at=now, created_at=now, items=parts
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such card: 'Grandma said \"hi\"'", "no such card: '[payload]'"),
        ("a line\nbreak", "[payload]"),
        ("in code: 'a line\\nbreak'", "in code: '[payload]'"),
        ("deep: biscuits and 4711.5 and 1234567", "deep: [payload] and [payload] and [payload]"),
        ("an item's: cinnamon", "an item's: [payload]"),
        ("the longest first: biscuits with cinnamon and sugar", "the longest first: [payload] and sugar"),
        ("short ones stay: de, 12, True", "short ones stay: de, 12, True"),
        ("keys stay: title", "keys stay: title"),
        ("[input_value='bis...tin\nger', input_type=str]", "[input_value=[payload], input_type=str]"),
        ("x" * 100_001, "a text of 100001 characters, which is not told"),
        ("y" * 9_000, "y" * 8_000),
    ],
)
def test_values_of_the_payload_are_hidden_where_an_exception_quotes_them(text: str, shown: str) -> None:
    payload = {
        "title": 'Grandma said "hi"',
        "lines": ["a line\nbreak", {"of": "biscuits", "n": 4711.5, "m": 1234567, "l": "de", "s": 12}],
        "yes": True,
        "all": "biscuits with cinnamon",
    }
    event: Any = {"exception": {"values": [{"type": "E", "value": text}]}}
    hide_payload(event, a_job(payload, {"spice": "cinnamon"}))
    assert event["exception"]["values"][0]["value"] == shown


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_shown_is_told_all_the_same_and_raises_nothing() -> None:
    client = sentry_sdk.Client(dsn="http://key@127.0.0.1:9/1", transport=Kept, default_integrations=False)
    reports = Sentry(client)
    reports.attempt_crashed(a_job({}), MuteError())
    assert [event["exception"]["values"][0]["type"] for event in client.transport.events] == ["MuteError"]


def test_more_than_so_many_a_minute_are_left_out_and_that_is_said_once(monkeypatch) -> None:
    client = sentry_sdk.Client(dsn="http://key@127.0.0.1:9/1", transport=Kept, default_integrations=False)
    reports = Sentry(client, a_minute=3)
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(10):
            reports.attempt_crashed(a_job({}), RuntimeError("boom"))
    assert len(client.transport.events) == 3
    assert [line["event"] for line in logs] == ["sentry.enough"]
    clock += 60
    reports.task_died("claims", None)
    assert len(client.transport.events) == 4


async def test_a_collector_that_never_answers_holds_the_end_up_for_a_moment_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reports = sentry(f"http://key@127.0.0.1:{silent.getsockname()[1]}/1", "a worker")
        reports.attempt_crashed(a_job({}), RuntimeError("boom"))
        async with asyncio.timeout(20):
            await reports.aclose()
