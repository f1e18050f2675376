"""The poller, and what may be asked of the feed's timings."""

import asyncio

import pytest

from processor.feed import FeedTimings
from processor.feed.polling import Poller
from processor.feed.realtime import Ending
from processor.feed.supervisor import Feed

INTERVAL = 0.05


class Polls:
    """Counts polls and lets a test wait for them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.times.append(asyncio.get_running_loop().time())
        self._more.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.times) < count:
                self._more.clear()
                await self._more.wait()


async def test_resuming_polls_at_once_and_then_at_jittered_intervals():
    polls = Polls()
    poller = Poller(polls, INTERVAL)
    poller.resume()
    await polls.reach(12)
    poller.pause()
    gaps = [later - earlier for earlier, later in zip(polls.times, polls.times[1:], strict=False)]
    assert min(gaps) >= INTERVAL * 0.8 - 0.005
    assert len({round(gap, 4) for gap in gaps}) > 1, "no jitter: a fleet would poll in step"


async def test_resuming_twice_does_not_poll_twice():
    polls = Polls()
    poller = Poller(polls, 60)
    poller.resume()
    poller.resume()
    await polls.reach(1)
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "feed-poller"]) == 1
    poller.pause()


async def test_a_pause_ends_the_polling_and_the_next_resume_polls_at_once():
    polls = Polls()
    poller = Poller(polls, 60)
    poller.resume()
    await polls.reach(1)
    poller.pause()
    poller.pause()
    poller.resume()
    await polls.reach(2)  # a minute early
    poller.pause()


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_timing_that_is_no_duration_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match="poll_interval must be more than 0 seconds"):
        FeedTimings(poll_interval=value)


def test_pauses_grow_to_the_cap_are_jittered_and_never_end():
    timings = FeedTimings()
    feed = Feed("http://localhost", "key", "id", lambda _: None, lambda _: None, timings=timings)
    closed = Ending("closed")
    highest = [max(feed._pause(failures, closed) for _ in range(400)) for failures in (1, 2, 3, 10, 100_000)]
    assert highest[0] <= timings.backoff_base
    assert highest[0] < highest[1] < highest[2] < highest[3]
    assert timings.backoff_cap * 0.9 < max(highest) <= timings.backoff_cap
    assert min(feed._pause(10, closed) for _ in range(400)) < timings.backoff_cap * 0.1


@pytest.mark.parametrize(
    ("ending", "long"),
    [
        (Ending("refused", "HTTP 429"), True),
        (Ending("refused", "HTTP 401"), True),
        (Ending("refused", "HTTP 503"), False),
        (Ending("join_refused", '{"reason": "ClientJoinRateLimitReached: Too many joins per second"}'), True),
        (Ending("channel_error", '{"status": "error", "message": "Too many messages per second"}'), True),
        (Ending("join_refused", '{"reason": "RealtimeDisabledForTenant"}'), True),
        (Ending("join_refused", '{"reason": "InitializingProjectConnection"}'), False),
        (Ending("closed", "1012 restart"), False),
    ],
)
def test_a_server_that_says_no_is_left_in_peace_for_longer(ending: Ending, long: bool):
    timings = FeedTimings()
    feed = Feed("http://localhost", "key", "id", lambda _: None, lambda _: None, timings=timings)
    longest = max(feed._pause(10, ending) for _ in range(400))
    assert (longest > timings.backoff_cap) is long
