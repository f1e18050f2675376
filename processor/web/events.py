"""A job's life as Server-Sent Events: looked at again and again, and told where it differs."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sse_starlette import JSONServerSentEvent

from processor.web.marks import Mark
from processor.web.rows import PAGE, JobRows, Refusal

_QUICK, _SLOW = 0.5, 2.0
"""Seconds between two looks: at a job that changes, and at most."""
_SLOWER = 1.5
_RECONNECT_MS = 2000
"""How soon an EventSource comes back, if its connection breaks."""
_PROGRESS = (
    *("progress", "progress_message", "items_total", "items_done", "items_failed"),
    *("credits_held", "credits_captured", "credits_refunded"),
)
_PASSING = frozenset({*_PROGRESS, "updated_at"})
"""What changes without a change of the status."""

Row = dict[str, Any]


class Ending:
    """Lets streams wait for something only as long as nobody wants them to end."""

    def __init__(self) -> None:
        self._waits: set[asyncio.Timeout] = set()
        self._over = False

    def end(self) -> None:
        """End what waits, and what is about to, at once."""
        if self._over:
            return
        self._over = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """Raise :class:`TimeoutError` from the block at the end."""
        async with asyncio.timeout(0 if self._over else None) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)


class JobEvents:
    """One caller's stream about one job.

    :param rows: where the job is looked at
    :param job_id: the job
    :param token: the caller's access token; what it may see is decided at each look
    :param mark: what the caller has been told before
    :param ending: ends the stream without a word: its reader connects again, to whoever is there then
    :param patience: seconds for which the project's API may be away
    """

    def __init__(
        self, rows: JobRows, job_id: UUID, token: str, mark: Mark, *, ending: Ending, patience: float
    ) -> None:
        self._rows = rows
        self._job_id = job_id
        self._token = token
        self._mark = mark
        self._ending = ending
        self._patience = patience
        self._told: Row | None = None
        """The row as the caller knows it, as far as we know."""
        self._over = False

    async def look(self) -> Row:
        """Look at what is new. Raises :class:`Refusal`."""
        return await self._rows.news(self._job_id, self._token, self._mark)

    def nothing_follows(self, row: Row) -> bool:
        """Whether the job has ended, and the caller knows all of it."""
        return _ended(row) and self._knows(row) and not row["items"] and not row["logs"]

    async def tell(self, row: Row) -> AsyncIterator[JSONServerSentEvent]:
        """Yield events from what the first look brought until the job has ended, or the stream must."""
        retry: int | None = _RECONNECT_MS
        pause = _QUICK
        lost_at: float | None = None
        while True:
            changed = False
            for event in self._events(row):
                event.retry, retry = retry, None
                changed = True
                yield event
            if self._over:
                return
            pause = _QUICK if changed else min(pause * _SLOWER, _SLOW)
            more = max(len(row["items"]), len(row["logs"]))
            if more >= PAGE or (more and _ended(row)):
                pause = 0.0
            while True:
                try:
                    async with self._ending.bounded():
                        await asyncio.sleep(pause)
                        row = await self.look()
                except TimeoutError:
                    return
                except Refusal as refusal:
                    lost_at = lost_at or time.monotonic()
                    if not refusal.passes or time.monotonic() - lost_at >= self._patience:
                        yield self._event("error", refusal.body)
                        return
                    pause = _SLOW
                else:
                    lost_at = None
                    break

    def _events(self, row: Row) -> Iterator[JSONServerSentEvent]:
        """Say what is new in a row, and with each event how far the caller is; an end comes last."""
        ended = _ended(row)
        if not ended:
            yield from self._state(row)
        for item in row["items"]:
            item_at = datetime.fromisoformat(item["updated_at"])
            self._mark = replace(self._mark, item_at=item_at, item=item["position"])
            yield self._event("item", item)
        for line in row["logs"]:
            self._mark = replace(self._mark, log=line["id"])
            yield self._event("log", line)
        if ended and not row["items"] and not row["logs"]:
            yield from self._state(row)
            self._over = True

    def _state(self, row: Row) -> Iterator[JSONServerSentEvent]:
        """Say what the row itself has to say; of an end the status comes last, as readers leave with it."""
        before, self._told = self._told, row
        if before is None and self._knows(row):
            return
        row_at = replace(self._mark, row_at=datetime.fromisoformat(row["updated_at"]))
        state = {name: value for name, value in row.items() if name not in {"items", "logs"}}
        events: list[tuple[str, Row]] = []
        if before is None or any(row[name] != before[name] for name in state.keys() - _PASSING):
            events.append(("status", state))
        if before is None or any(row[name] != before[name] for name in _PROGRESS):
            events.append(("progress", {name: row[name] for name in (*_PROGRESS, "updated_at")}))
        if _ended(row):
            events.reverse()
        for name, data in events[:-1]:
            yield self._event(name, data)
        self._mark = row_at  # the caller knows all of the row with the last of its events
        for name, data in events[-1:]:
            yield self._event(name, data)

    def _knows(self, row: Row) -> bool:
        return self._mark.row_at == datetime.fromisoformat(row["updated_at"])

    def _event(self, name: str, data: Any) -> JSONServerSentEvent:
        return JSONServerSentEvent(data, event=name, id=str(self._mark), sep="\n")


def _ended(row: Row) -> bool:
    return row["finished_at"] is not None
