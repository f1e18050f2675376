"""Metrics in OpenTelemetry's shape: each family of ours, whole, with the figures that Prometheus gets."""

from uuid import uuid4

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from processor import Processor
from processor.answers import CreatedJobs, DatabaseFigures, MetricsAnswer, QueueFigures
from processor.assignment import assign
from processor.errors import ConfigError
from processor.events.bus import Bus
from processor.events.lifecycle import JobFinished
from processor.figures import Figures
from processor.metrics import Metrics
from processor.points import points
from processor.telemetry import telemetry

app = Processor()
BEGAN = 1_700_000_000_000_000_000


@app.job("known", queue="mine")
async def known(job):
    pass


async def read() -> MetricsAnswer:
    queue = QueueFigures(
        queue="mine", paused=True, due=1, scheduled=2, waiting=3, processing=4, oldest_seconds=5.0
    )
    figures = DatabaseFigures(
        queues=(queue,),
        stuck={"paused": 1},
        workers={"alive": 1},
        webhooks={"failing": 1},
        polling=0,
        created=(CreatedJobs(queue="mine", kind="known", total=7),),
        credits={"reserve": 3},
        credit_faults=0,
        seconds=0.1,
    )
    return MetricsAnswer(figures=figures, again_in_seconds=30)


@pytest.fixture
async def metrics() -> Metrics:
    metrics = Metrics(assign(app), 90.0, Figures(read))
    metrics.listen(bus := Bus())
    await metrics.refresh()
    about = dict.fromkeys(("owner_id", "trace_context")) | {"job_id": uuid4(), "attempt": 1}
    for seconds in (0.02, 0.2, 0.2, 4000.0):
        bus.publish(JobFinished(**about, queue="mine", kind="known", ran=seconds, status="completed"))
    return metrics


def on_the_wire(metrics: Metrics) -> dict:
    """Return the metrics by name, as the official encoder writes them."""
    scope = ScopeMetrics(InstrumentationScope("test"), points(metrics.collect(), BEGAN), "")
    data = MetricsData([ResourceMetrics(Resource({}), [scope], "")])
    return {m.name: m for m in encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics}


async def test_no_family_and_no_series_is_left_out(metrics: Metrics) -> None:
    told = on_the_wire(metrics)
    families = [family for family in metrics.collect() if family.samples]
    assert told.keys() == {family.name for family in families}
    for family in families:
        data = getattr(told[family.name], told[family.name].WhichOneof("data"))
        series = {
            tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le")) for sample in family.samples
        }
        assert {
            tuple(sorted((pair.key, pair.value.string_value) for pair in point.attributes))
            for point in data.data_points
        } == series


async def test_a_histogram_has_what_fell_into_each_bucket(metrics: Metrics) -> None:
    metric = on_the_wire(metrics)["processor_job_run_seconds"]
    [point] = metric.histogram.data_points
    counted = dict(zip([*point.explicit_bounds, None], point.bucket_counts, strict=True))
    assert {bound: count for bound, count in counted.items() if count} == {0.05: 1, 0.25: 2, None: 1}
    assert (point.count, point.sum, metric.unit) == (4, pytest.approx(4000.42), "s")
    assert not point.HasField("min")
    assert point.start_time_unix_nano == BEGAN


async def test_what_the_database_tells_claims_no_beginning(metrics: Metrics) -> None:
    [point] = on_the_wire(metrics)["processor_database_jobs_created"].sum.data_points
    assert (point.as_double, point.start_time_unix_nano) == (7, 0)


@pytest.mark.parametrize("text", ["soon", "0", "-5", "nan"])
async def test_an_interval_that_is_none_is_refused_by_name(metrics: Metrics, monkeypatch, text: str) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)
    with pytest.raises(ConfigError, match=f"OTEL_METRIC_EXPORT_INTERVAL: '{text}'"):
        telemetry(metrics, wanted=True)
