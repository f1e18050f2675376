"""What Prometheus' client has counted, in the shape of OpenTelemetry's SDK, and its official exporter.

The SDK's own instruments would not do: none of them can be told of a histogram that somebody else keeps.
"""

import time
from collections.abc import Iterable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family

from processor import __version__
from processor.spans import resource

_UNITS = {"seconds": "s", "bytes": "By"}
"""By the end of a name; all else has none: of "1" a collector makes names that end in `_ratio`."""
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_UNKNOWN: Any = None
"""The least and the greatest value in a histogram: the protocol can do without them, its types cannot."""


class Points:
    """Sends metrics to where ``OTEL_*`` variables say, by OTLP over HTTP."""

    def __init__(self) -> None:
        self._exporter = OTLPMetricExporter()
        self._resource = resource()
        self._began = time.time_ns()

    def send(self, families: Iterable[Family]) -> None:
        """Send them, for at most ``OTEL_EXPORTER_OTLP_TIMEOUT``; the exporter logs what goes wrong."""
        scope = InstrumentationScope("processor", __version__)
        told = ScopeMetrics(scope, points(families, self._began), "")
        self._exporter.export(MetricsData([ResourceMetrics(self._resource, [told], "")]))

    def close(self) -> None:
        """Give up what is still being tried."""
        self._exporter.shutdown()


def points(families: Iterable[Family], began: int) -> list[Metric]:
    """Return families as OpenTelemetry has them; ``began``: the daemon, in nanoseconds since 1970."""
    now = time.time_ns()
    found = []
    for family in families:
        if not family.samples:
            continue
        # what the database tells has grown since long before, and who knows when that began
        since = 0 if family.name.startswith("processor_database_") else began
        data: Sum | Gauge | Histogram
        match family.type:
            case "counter":
                data = Sum(_numbers(family, since, now), _CUMULATIVE, is_monotonic=True)
            case "gauge":
                data = Gauge(_numbers(family, 0, now))
            case "histogram":
                data = Histogram(_distributions(family, since, now), _CUMULATIVE)
            case _:
                continue
        unit = _UNITS.get(family.name.rpartition("_")[2], "")
        found.append(Metric(family.name, family.documentation, unit, data))
    return found


def _numbers(family: Family, since: int, now: int) -> list[NumberDataPoint]:
    # some are truth values to Prometheus' client, which the wire has no place for
    return [NumberDataPoint(sample.labels, since, now, float(sample.value)) for sample in family.samples]


def _distributions(family: Family, since: int, now: int) -> list[HistogramDataPoint]:
    """Return the histograms of a family; Prometheus counts in each bucket what is in those before it, too."""
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        series = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            buckets.setdefault(series, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[series] = sample.value
    points = []
    for series, counted in buckets.items():
        up_to = [int(count) for _, count in counted]
        points.append(
            HistogramDataPoint(
                attributes=dict(series),
                start_time_unix_nano=since,
                time_unix_nano=now,
                count=up_to[-1],
                sum=sums[series],
                bucket_counts=[here - before for before, here in zip([0, *up_to], up_to, strict=False)],
                explicit_bounds=[bound for bound, _ in counted[:-1]],  # the last one is infinite
                min=_UNKNOWN,
                max=_UNKNOWN,
            )
        )
    return points
