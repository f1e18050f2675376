"""A feed under observation: what it said, in order, and a way to wait for it."""

import asyncio
from collections.abc import Callable
from typing import Any, Self
from uuid import uuid4

from processor.feed import Feed, FeedTimings, Mode

FAST = FeedTimings(
    health_interval=0.5,
    poll_interval=0.2,
    probe_interval=0.2,
    ack_timeout=0.3,
    echo_timeout=0.4,
    open_timeout=1.0,
    join_timeout=0.5,
    close_timeout=0.3,
    backoff_base=0.05,
    backoff_cap=0.1,
    refused_cap=0.2,
)
"""Everything notices and recovers within a second or so, on a loaded machine too."""


class ObservedFeed:
    """`async with ObservedFeed(url, key) as feed:` a running feed that remembers its calls."""

    def __init__(self, url: str, key: str = "service-key", **settings: Any) -> None:
        self.said: list[str] = []
        """Wake-ups by reason and modes as `mode:…`, in order."""
        self.rows: list[dict[str, Any]] = []
        self.worker_id = str(settings.pop("worker_id", uuid4()))
        self._changed = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()
        settings.setdefault("timings", FAST)
        self.feed = Feed(url, key, self.worker_id, self._on_wake, self._on_row, **settings)
        self.feed.on_mode(self._on_mode)

    async def __aenter__(self) -> Self:
        await self.feed.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.feed.stop()

    def _on_wake(self, reason: str) -> None:
        self._say(reason)

    def _on_mode(self, mode: Mode) -> None:
        self._say(f"mode:{mode}")

    def _on_row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._say("row")

    def _say(self, what: str) -> None:
        self.said.append(what)
        task = asyncio.create_task(self._notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, predicate: Callable[[], object], timeout: float = 10.0) -> None:  # noqa: ASYNC109  a deadline for tests
        """Wait until a predicate is true; it is looked at whenever the feed says something."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(predicate)
        except TimeoutError:
            raise AssertionError(
                f"did not happen within {timeout} s; status {self.feed.status}, said {self.said}"
            ) from None

    async def said_more(self, what: str, than: int = 0) -> None:
        """Wait until the feed has said something more often than so many times."""
        await self.until(lambda: self.said.count(what) > than)

    async def live(self) -> None:
        """Wait for the mode `realtime`."""
        await self.until(lambda: self.feed.mode == "realtime")

    async def polling(self) -> None:
        """Wait for the mode `polling`."""
        await self.until(lambda: self.feed.mode == "polling")

    @property
    def last_cause(self) -> str:
        """The cause of the latest ending."""
        return (self.feed.status.last_ending or "").split(":")[0]
