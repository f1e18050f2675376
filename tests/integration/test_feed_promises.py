"""How soon a dead feed is noticed, and how soon it is back, with the durations that daemons have."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from processor.config import Settings
from processor.feed import FeedTimings
from tests.faults import FaultProxy
from tests.feed_observer import ObservedFeed
from tests.phoenix import Phoenix

pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning"
)

PROBES_AT_5_S = FeedTimings(probe_interval=5)
OUTAGE = 12.0
"""Seconds; longer than it may take to notice one."""


async def suffer(
    url: str, key: str, start: Callable[[], object], end: Callable[[], Any], timings: FeedTimings
) -> tuple[str, float, float]:
    """Let a live feed meet a fault; return its cause, and the seconds until it was noticed and healed."""
    loop = asyncio.get_running_loop()
    async with ObservedFeed(url, key, timings=timings) as watched:
        await watched.live()
        began = loop.time()
        start()
        await watched.until(lambda: watched.feed.mode == "polling", timeout=30)
        noticed, cause = loop.time() - began, watched.last_cause
        await asyncio.sleep(max(0.0, began + OUTAGE - loop.time()))
        healed = loop.time()
        if asyncio.iscoroutine(healing := end()):
            await healing
        await watched.until(lambda: watched.feed.mode == "realtime", timeout=30)
        return cause, noticed, loop.time() - healed


@pytest.mark.timeout(90)
async def test_half_open_and_mute_are_noticed_within_10_s_and_all_is_back_within_15(stack: Any):
    async with AsyncExitStack() as exits:
        outages = []
        for fault in ("frozen", "deaf upwards", "deaf downwards"):
            proxy = await exits.enter_async_context(FaultProxy(stack.url))
            begin = {
                "frozen": lambda p=proxy: p.freeze("websocket"),
                "deaf upwards": lambda p=proxy: p.drop("up", "websocket"),
                "deaf downwards": lambda p=proxy: p.drop("down", "websocket"),
            }[fault]
            outages.append(suffer(proxy.url, stack.service_role_key, begin, proxy.heal, PROBES_AT_5_S))
        phoenix = await exits.enter_async_context(Phoenix())

        def mute(*, on: bool) -> None:
            phoenix.acknowledges = phoenix.answers_joins = not on

        outages.append(
            suffer(phoenix.url, "key", lambda: mute(on=True), lambda: mute(on=False), PROBES_AT_5_S)
        )
        for cause, noticed, back in await asyncio.gather(*outages):
            assert cause == "ack_timeout"
            assert noticed <= 10
            assert back <= 15


def test_with_the_defaults_whatever_is_dead_is_noticed_within_40_s():
    timings = FeedTimings()
    assert timings.probe_interval + timings.ack_timeout <= 20, "half-open, mute"
    heartbeat = Settings.model_fields["lease_seconds"].default / 3
    assert heartbeat + timings.echo_timeout < 39, "a dead change path, and the way of the heartbeat"
    assert timings.backoff_cap + timings.join_timeout <= 15, "and the way back"
