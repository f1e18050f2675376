"""What a daemon is doing, for whoever asks: counts, modes, reasons. No ids, nothing of what is in jobs."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from processor.config import Settings
from processor.feed import Feed
from processor.hold import Hold, clock
from processor.redact import redact
from processor.report import Reporter
from processor.rpc import Rpc
from processor.settle import Settler
from processor.worker import Worker


class Status:
    """Looks at the parts of a daemon; waits for nothing.

    ``settings`` are asked for each time, because they change; ``ready`` tells check by check why it does not
    work, or None.
    """

    def __init__(
        self,
        worker_id: UUID,
        version: str,
        settings: Callable[[], Settings],
        *,
        worker: Worker,
        feed: Feed,
        hold: Hold,
        settler: Settler,
        reporter: Reporter,
        rpc: Rpc,
        ready: Callable[[], Mapping[str, str | None]],
        mqtt: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self._id = worker_id
        self._version = version
        self._settings = settings
        self._worker = worker
        self._feed = feed
        self._hold = hold
        self._settler = settler
        self._reporter = reporter
        self._rpc = rpc
        self._ready = ready
        self._mqtt = mqtt
        self._began = datetime.now(UTC)

    def read(self) -> dict[str, Any]:
        """Return all of it; times are ISO 8601, everything that lasts is in seconds."""
        settings, runs, feed, spool = (
            self._settings(),
            self._worker.runs,
            self._feed.status,
            self._settler.depth,
        )
        why_not = {name: redact(why) for name, why in self._ready().items() if why is not None}
        lease_left = self._hold.ends - clock()
        return {
            "ready": not why_not,
            "why_not": why_not,
            "name": settings.name,
            "worker_id": str(self._id),
            "pid": os.getpid(),
            "version": self._version,
            "started_at": self._began.isoformat(),
            "uptime_seconds": _seconds((datetime.now(UTC) - self._began).total_seconds()),
            "slots": self._worker.slots,
            "running": len(runs),
            "running_kinds": dict(Counter(run.job.kind for run in runs)),
            "running_longest_seconds": _seconds(
                max((time.monotonic() - run.began for run in runs), default=0)
            ),
            "ignoring_cancellation": len(self._worker.strays),
            "paused_for": list(self._worker.pauses),
            "feed": {
                "mode": feed.mode,
                "transport": settings.feed,
                "since": feed.since.isoformat(),
                "connections": feed.incarnations,
                "last_ending": None if feed.last_ending is None else redact(feed.last_ending),
            },
            # before the first registration there is none
            "lease_left_seconds": max(_seconds(lease_left), 0) if self._hold.holds else None,
            "waiting": {**self._settler.waiting, "log_lines": self._reporter.waiting},
            "spool": {
                "records": spool.records,
                "bytes": spool.bytes,
                "oldest_seconds": _seconds(spool.oldest),
            },
            "mqtt": self._mqtt(),
            "calls": dict(self._rpc.calls),
        }


def _seconds(value: float) -> float:
    return round(value, 1)
