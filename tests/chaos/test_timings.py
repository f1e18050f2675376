"""How long a feed takes to notice that it is deaf, and to be back: probing every 5 s, and by default."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from processor.feed import FeedTimings
from tests.faults import FaultProxy
from tests.feed_observer import ObservedFeed

# the Realtime client reads them when a socket is closed with an error
pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning"
)

BACK_WITHIN = 15.0


async def noticed_and_back(
    stack, fault: Callable[[FaultProxy], object], timings: FeedTimings
) -> tuple[float, float]:
    """Return the seconds until a fault was noticed, and from its end until the feed was live again."""
    async with (
        FaultProxy(stack.url) as proxy,
        ObservedFeed(proxy.url, stack.service_role_key, timings=timings) as watched,
    ):
        await watched.live()
        struck = time.monotonic()
        fault(proxy)
        await watched.until(lambda: watched.feed.mode == "polling", timeout=60)
        noticed = time.monotonic() - struck
        attempts = watched.feed.status.incarnations
        await watched.until(lambda: watched.feed.status.incarnations > attempts, timeout=60)  # it tries again
        healed = time.monotonic()
        await proxy.heal()
        await watched.until(lambda: watched.feed.mode == "realtime", timeout=60)
        return noticed, time.monotonic() - healed


@pytest.mark.timeout(180)
async def test_a_deaf_feed_is_noticed_in_time_and_is_back_15_seconds_after_the_service(stack):
    faults: dict[str, Callable[[FaultProxy], object]] = {
        "half-open, up": lambda proxy: proxy.drop("up", "websocket"),
        "half-open, down": lambda proxy: proxy.drop("down", "websocket"),
        "mute": lambda proxy: proxy.mute(),
        "frozen": lambda proxy: proxy.freeze("websocket"),
        "black hole": lambda proxy: proxy.swallow("websocket"),
    }
    bounds = {10.0: FeedTimings(probe_interval=5.0), 40.0: FeedTimings()}
    cases = [(name, within) for name in faults for within in bounds]
    took = await asyncio.gather(
        *(noticed_and_back(stack, faults[name], bounds[within]) for name, within in cases)
    )
    late = [
        f"{name}: noticed after {noticed:.1f} s (at most {within:g}), back after {back:.1f} s"
        for (name, within), (noticed, back) in zip(cases, took, strict=True)
        if noticed > within or back > BACK_WITHIN
    ]
    assert late == []
