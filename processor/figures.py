"""Figures of the whole database for ``/metrics``: read when somebody scrapes, by one daemon at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from processor.answers import DatabaseFigures, MetricsAnswer, QueueFigures
from processor.errors import ApiError

_PATIENCE = 5.0
"""Seconds that a scrape waits for them; Prometheus gives up after 10."""
_AGAIN = 10.0
"""Seconds until a failure is tried again."""

log = structlog.get_logger("processor.metrics")


class Figures:
    """The latest ones, if this daemon is the one that gets them. ``read`` asks the database."""

    def __init__(self, read: Callable[[], Awaitable[MetricsAnswer]]) -> None:
        self._read = read
        self._latest: DatabaseFigures | None = None
        self._next = 0.0
        self._failed = False
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Read them, unless that was done a moment ago, or another daemon does; failing is no error."""
        async with self._reading:
            if time.monotonic() < self._next:
                return
            try:
                async with asyncio.timeout(_PATIENCE):
                    answer = await self._read()
            except (ApiError, TimeoutError) as error:
                self._latest = None  # what is not known is left out: old figures would look like calm
                self._next = time.monotonic() + _AGAIN
                if not self._failed:
                    log.warning("metrics.not_read", error=str(error) or f"no answer in {_PATIENCE:g} s")
                self._failed = True
            else:
                self._latest = answer.figures
                # a little less: who scrapes every 10 s is to get new ones each time
                self._next = time.monotonic() + answer.again_in_seconds * 0.9
                self._failed = False

    @property
    def queues(self) -> tuple[QueueFigures, ...]:
        """What the queues have; nothing, if that is another daemon's to tell or cannot be read."""
        return () if self._latest is None else self._latest.queues

    def collect(self) -> Iterable[Metric]:
        """Return them as metrics; nothing, if they are another daemon's to tell or cannot be read."""
        if (told := self._latest) is None:
            return
        yield _gauge("up", "1: the figures of the database were read.", 1)
        yield _gauge("read_seconds", "What reading them took in the database.", told.seconds)
        jobs = _gauges("queue_jobs", "Jobs, each state counted up to 10,000.", "queue", "state")
        paused = _gauges("queue_paused", "1: paused.", "queue")
        oldest = _gauges("oldest_pending_seconds", "How long the longest due job has been due.", "queue")
        for queue in told.queues:
            for state in ("due", "scheduled", "waiting", "processing"):
                jobs.add_metric((queue.queue, state), getattr(queue, state))
            paused.add_metric((queue.queue,), queue.paused)
            oldest.add_metric((queue.queue,), queue.oldest_seconds)
        yield from (jobs, paused, oldest)
        yield _by("stuck_jobs", "Jobs that stand still.", "reason", told.stuck)
        yield _by("workers", "Workers.", "state", told.workers)
        yield _by("webhooks", "Endpoints in trouble.", "trouble", told.webhooks)
        yield _gauge("workers_polling", "Living workers whose feed is not live.", told.polling)
        created = CounterMetricFamily(
            "processor_database_jobs_created", "Jobs created.", labels=("queue", "kind")
        )
        for row in told.created:
            created.add_metric((row.queue, row.kind), row.total)
        yield created
        moved = CounterMetricFamily(
            "processor_database_credits", "Credits moved, by entry of the journal.", labels=("entry",)
        )
        for entry, total in told.credits.items():
            moved.add_metric((entry,), total)
        yield moved
        held = (
            told.credits.get("reserve", 0) - told.credits.get("capture", 0) - told.credits.get("release", 0)
        )
        yield _gauge("credits_held", "Credits that open jobs hold.", held)
        if told.credit_faults is not None:
            yield _gauge("credit_faults", "Rows of processor.check_credits().", told.credit_faults)


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"processor_database_{name}", says, value=value)


def _gauges(name: str, says: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"processor_database_{name}", says, labels=labels)


def _by(name: str, says: str, label: str, counts: dict[str, int]) -> GaugeMetricFamily:
    family = _gauges(name, says, label)
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family
