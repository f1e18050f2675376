"""Loops whose tasks live while nothing moves: what the watchdog is for, and what it must leave alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from processor import lease, worker
from processor.errors import ApiUnreachable
from processor.hold import Hold
from processor.lease import Lease
from processor.worker import Worker


class Api:
    """An API that never answers, or, ``refusing``, always fails at once."""

    def __init__(self, *, refusing: bool) -> None:
        self.refusing = refusing
        self.asked = asyncio.Event()

    async def ask(self, *_arguments: Any, **_more: Any) -> Any:
        self.asked.set()
        if self.refusing:
            raise ApiUnreachable("nobody is there")
        await asyncio.get_running_loop().create_future()

    claim_jobs = heartbeat_worker = ask


async def nothing() -> None:
    pass


def make_worker(api: Api) -> Worker:
    return Worker(api, uuid4(), queues=("q",), slots=1, on_unknown=nothing)  # type: ignore[arg-type]


def make_lease(api: Api, seconds: float) -> Lease:
    return Lease(
        api,  # type: ignore[arg-type]
        uuid4(),
        make_worker(api),
        Hold(),
        seconds=seconds,
        feed_mode=lambda: "polling",
        on_beat=lambda _at: None,
        on_schedule=lambda _in: None,
        register=nothing,
    )


@asynccontextmanager
async def going(loop: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(loop, name="loop")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_STUCK_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_STUCK_SECONDS", 2.0)


async def test_a_claim_that_never_ends_is_a_standstill(eventually) -> None:
    api = Api(refusing=False)
    claims = make_worker(api)
    async with going(claims.run()):
        claims.wake("sweep")
        await asyncio.wait_for(api.asked.wait(), 10)
        assert claims.stuck is None
        await eventually(lambda: claims.stuck, within=10)
        assert "no claim has begun or ended for" in str(claims.stuck)


async def test_a_claim_loop_that_does_not_hear_of_a_reason_is_a_standstill(eventually) -> None:
    claims = make_worker(Api(refusing=False))  # its loop does not run
    claims.wake("realtime")
    assert claims.stuck is None
    await eventually(lambda: claims.stuck, within=10)
    claims.pause("drain")  # somebody wants it so
    assert claims.stuck is None
    claims.resume("drain")
    assert claims.stuck is None  # it has its time from now on


async def test_a_worker_without_a_reason_to_claim_rests_as_long_as_it_likes() -> None:
    claims = make_worker(Api(refusing=False))
    async with going(claims.run()):
        await asyncio.sleep(0.5)  # more than the time after which it would be one
        assert claims.stuck is None


async def test_heartbeats_that_fail_are_no_standstill_and_those_that_are_not_tried_are(eventually) -> None:
    api = Api(refusing=True)
    beats = make_lease(api, 0.3)
    assert beats.stuck is None  # not yet begun
    async with going(beats.beat_forever()):
        await asyncio.wait_for(api.asked.wait(), 10)
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert beats.stuck is None
    await eventually(lambda: beats.stuck, within=10)
    assert "no heartbeat has been tried for" in str(beats.stuck)
