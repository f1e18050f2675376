"""What a daemon shows to Prometheus; ``ops/METRICS.md`` says what each name means."""

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from processor import __version__
from processor.answers import MetricsAnswer
from processor.assignment import Assignment
from processor.config import Settings
from processor.errors import ErrorCode
from processor.events.bus import Bus
from processor.events.lifecycle import AttemptEnded, FeedModeChanged, ItemFinished, JobClaimed
from processor.figures import Figures
from processor.hold import Hold, clock
from processor.observer import Observer
from processor.settle import Settler
from processor.worker import Worker

OTHER = "other"
"""What a label says for names beyond those that are known."""
MOST_CODES = 50
"""How many error codes of an application are told apart."""

_LAG_SECONDS = 0.5
"""Between two looks at how late the event loop is."""

_MODES = ("realtime", "polling")
_PICKUP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_RUN = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class _Job(NamedTuple):
    """The series of one queue and kind."""

    claimed: Counter
    pickup: Histogram
    run: Histogram


class Metrics(Observer):
    """Counts what it hears, in a registry of its own.

    Labels hold the queues and kinds of ``work`` and no others. ``figures`` are those of the database, which a
    scrape waits for.
    """

    def __init__(self, work: Assignment, lease_seconds: float, figures: Figures) -> None:
        self._queues = frozenset(work.queues)
        self._kinds = work.kinds
        self._lease_seconds = lease_seconds
        self._figures = figures
        self._codes: set[str] = set(ErrorCode)
        self._most_codes = len(self._codes) + MOST_CODES
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._mode = "polling"
        self._mode_since = time.monotonic()
        self._mode_seconds = dict.fromkeys(_MODES, 0.0)
        self._swept = False
        self._watched: Callable[[], Iterable[Metric]] = tuple

        self.registry = registry = CollectorRegistry()
        job = ("queue", "kind")
        self._claims = Counter("processor_claims", "Claims answered.", ("wake", "found"), registry=registry)
        self._claimed = Counter("processor_jobs_claimed", "Attempts begun.", job, registry=registry)
        self._finished = Counter(
            "processor_jobs_finished", "Attempts ended.", (*job, "outcome"), registry=registry
        )
        self._errors = Counter(
            "processor_job_errors", "Attempts that failed.", ("kind", "code"), registry=registry
        )
        self._items = Counter("processor_job_items", "Items ended.", (*job, "outcome"), registry=registry)
        self._pickup = Histogram(
            "processor_job_pickup_seconds",
            "From when a job could have run to its claim.",
            job,
            buckets=_PICKUP,
            registry=registry,
        )
        self._run = Histogram(
            "processor_job_run_seconds",
            "From the claim to the end of the attempt.",
            job,
            buckets=_RUN,
            registry=registry,
        )
        self._connections = Counter(
            "processor_feed_connections", "Realtime connections begun.", registry=registry
        )
        self._endings = Counter(
            "processor_feed_endings", "Realtime connections ended.", ("cause",), registry=registry
        )
        self._wakes = Counter("processor_feed_wakes", "Reasons to look.", ("source",), registry=registry)
        self._missed = Counter(
            "processor_feed_missed_jobs",
            "Jobs found by a sweep in live mode, of which no event had told.",
            registry=registry,
        )
        self._probes = Histogram(
            "processor_feed_probe_seconds",
            "Round trips of the feed's probes.",
            ("probe",),
            buckets=_REQUEST,
            registry=registry,
        )
        self._requests = Counter(
            "processor_api_requests", "Requests sent.", ("function", "result"), registry=registry
        )
        self._took = Histogram(
            "processor_api_request_seconds",
            "How long answers took.",
            ("function",),
            buckets=_REQUEST,
            registry=registry,
        )
        self._hooks = Counter(
            "processor_hooks", "Hooks ended.", ("kind", "hook", "outcome"), registry=registry
        )
        self._dropped = Counter(
            "processor_events_dropped",
            "Events that a subscriber was too slow for.",
            ("subscriber",),
            registry=registry,
        )
        self._lag = Histogram(
            "processor_event_loop_lag_seconds", "How late the event loop is.", buckets=_LAG, registry=registry
        )
        registry.register(_Collected(self._collect))
        registry.register(_Collected(figures.collect))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def watch(self, worker: Worker, settler: Settler, hold: Hold, ready: Callable[[], bool]) -> None:
        """Look at these at each scrape from now on."""
        self._watched = lambda: self._look(worker, settler, hold, ready=ready())

    def listen(self, bus: Bus) -> None:
        """Hear what happens from now on."""
        bus.listen("metrics", self._job_claimed, JobClaimed)
        bus.listen("metrics", self._attempt_ended, AttemptEnded)
        bus.listen("metrics", self._item_finished, ItemFinished)
        bus.listen("metrics", self._mode_changed, FeedModeChanged)

    async def run(self) -> None:
        """See how late the event loop is, until cancelled."""
        while True:
            expected = time.perf_counter() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lag.observe(max(time.perf_counter() - expected, 0.0))

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all of it, and its media type, in the format that ``accept`` asks for."""
        await self.refresh()
        encode, media_type = choose_encoder(accept)
        return encode(_Collected(self.collect)), media_type

    async def refresh(self) -> None:
        """Read the figures of the database, if it is time."""
        await self._figures.refresh()

    def collect(self) -> Iterable[Metric]:
        """Collect all but the times at which series began: a third of all, and nobody asks for them."""
        for family in self.registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    # -- what it hears ----------------------------------------------------------------------------

    def claim_answered(self, wakes: frozenset[str], found: int) -> None:
        """Count the claim, by each reason for it, and what only a sweep found."""
        for wake in wakes:
            self._claims.labels(wake, "jobs" if found else "nothing").inc()
        if self._mode == "realtime" and "sweep" in wakes:
            # the first one after a connection finds what came while there was none
            if self._swept and len(wakes) == 1:
                self._missed.inc(found)
            self._swept = True

    def api_called(self, function: str, result: str, took: float) -> None:
        """Count a request, and how long its answer took."""
        self._requests.labels(function, result).inc()
        self._took.labels(function).observe(took)

    def woken(self, source: str) -> None:
        """Count a reason to look."""
        self._wakes.labels(source).inc()

    def connection_begun(self) -> None:
        """Count a connection."""
        self._connections.inc()

    def connection_ended(self, cause: str) -> None:
        """Count its end."""
        self._endings.labels(cause).inc()

    def probe_answered(self, probe: str, took: float) -> None:
        """Note how long a probe took."""
        self._probes.labels(probe).observe(took)

    def hook_ended(self, kind: str, hook: str, outcome: str) -> None:
        """Count a hook."""
        self._hooks.labels(kind if kind in self._kinds else OTHER, hook, outcome).inc()

    def event_dropped(self, subscriber: str) -> None:
        """Count it."""
        self._dropped.labels(subscriber).inc()

    # -- what has happened ------------------------------------------------------------------------

    def _job_claimed(self, event: JobClaimed) -> None:
        """Count an attempt, and how long its job had to wait."""
        job = self._job(event.queue, event.kind)
        job.claimed.inc()
        job.pickup.observe(event.waited)

    def _attempt_ended(self, event: AttemptEnded) -> None:
        """Count the end of an attempt, and how long that took."""
        queue, kind = self._names(event.queue, event.kind)
        self._finished.labels(queue, kind, event.outcome).inc()
        self._job(queue, kind).run.observe(event.ran)
        if event.code is not None:
            self._errors.labels(kind, self._code(event.code)).inc()

    def _item_finished(self, event: ItemFinished) -> None:
        self._items.labels(*self._names(event.queue, event.kind), event.status).inc()

    def _mode_changed(self, event: FeedModeChanged) -> None:
        """Add up the time in the mode that is over."""
        now = time.monotonic()
        self._mode_seconds[self._mode] += now - self._mode_since
        self._mode, self._mode_since, self._swept = event.mode, now, False

    # -- helpers ----------------------------------------------------------------------------------

    def _names(self, queue: str, kind: str) -> tuple[str, str]:
        return queue if queue in self._queues else OTHER, kind if kind in self._kinds else OTHER

    def _job(self, queue: str, kind: str) -> _Job:
        names = self._names(queue, kind)
        if (job := self._jobs.get(names)) is None:
            job = self._jobs[names] = _Job(
                self._claimed.labels(*names), self._pickup.labels(*names), self._run.labels(*names)
            )
        return job

    def _code(self, code: str) -> str:
        """Tell apart our codes, and so many others: a handler can make one of anything."""
        if code not in self._codes:
            if len(self._codes) >= self._most_codes:
                return OTHER
            self._codes.add(code)
        return code

    def _collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("processor_build_info", "Which version runs.", labels=("version", "python"))
        info.add_metric((__version__, platform.python_version()), 1)
        yield info
        mode = GaugeMetricFamily("processor_feed_mode", "1 for the mode it is in.", labels=("mode",))
        spent = CounterMetricFamily("processor_feed_mode_seconds", "Time in each mode.", labels=("mode",))
        for name in _MODES:
            mode.add_metric((name,), name == self._mode)
            now = time.monotonic() - self._mode_since if name == self._mode else 0.0
            spent.add_metric((name,), self._mode_seconds[name] + now)
        yield mode
        yield spent
        yield from self._watched()

    def _look(self, worker: Worker, settler: Settler, hold: Hold, *, ready: bool) -> Iterable[Metric]:
        piles = GaugeMetricFamily(
            "processor_outcomes_waiting", "Outcomes that the API has not taken.", labels=("pile",)
        )
        for pile, count in settler.waiting.items():
            piles.add_metric((pile,), count)
        yield piles
        depth = settler.depth
        for name, says, value in (
            ("ready", "1: /readyz says yes.", float(ready)),
            ("slots", "Jobs that run at most at the same time.", worker.slots),
            ("jobs_running", "Jobs that are held now.", len(worker.running)),
            ("spool_records", "Outcomes on disk.", depth.records),
            ("spool_bytes", "Their size.", depth.bytes),
            ("spool_oldest_seconds", "The age of the oldest of them.", depth.oldest),
            ("lease_left_seconds", "Until the lease ends without a heartbeat.", hold.ends - clock()),
            ("lease_duration_seconds", "What a heartbeat renews it to.", self._lease_seconds),
        ):
            yield GaugeMetricFamily(f"processor_{name}", says, value=value)


class _Collected(Collector):
    """Asks a function for metrics at each scrape, and not when it is registered."""

    def __init__(self, ask: Callable[[], Iterable[Metric]]) -> None:
        self._ask = ask

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._ask()


def measure(
    settings: Settings, work: Assignment, read: Callable[[], Awaitable[MetricsAnswer]]
) -> Metrics | None:
    """Return what counts for such a daemon, if anybody can look; ``read`` asks the database."""
    if not (settings.http_port is not None and settings.metrics) and "metrics" not in settings.otel:
        return None
    return Metrics(work, settings.lease_seconds, Figures(read))
