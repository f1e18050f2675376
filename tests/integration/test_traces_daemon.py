"""Spans and metrics of a real daemon, as a collector gets them, and the trace they are in."""

from collections.abc import Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from opentelemetry import propagate, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.sdk.trace import TracerProvider

from tests import places
from tests.collector import Collector


class Place(places.Place):
    """A place whose daemons tell a collector."""

    target = "tests.apps.behaviours:app"

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(**{"PROCESSOR_OTEL": "traces"} | settings)


class Traced(Place):
    """The same, with handlers that make spans."""

    target = "tests.apps.traced:app"


class Telemetry(Collector):
    """Takes OTLP."""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def traces(self) -> list[ExportTraceServiceRequest]:
        return [
            ExportTraceServiceRequest.FromString(body) for path, body in self.posted if path == "/v1/traces"
        ]

    @property
    def metrics(self) -> list[ExportMetricsServiceRequest]:
        return [
            ExportMetricsServiceRequest.FromString(body)
            for path, body in self.posted
            if path == "/v1/metrics"
        ]

    def spans(self) -> list:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def attempts(self) -> dict[str, list]:
        """Return the spans of attempts by the job's id, in the order of attempts."""
        found: dict[str, list] = {}
        for span in self.spans():
            if (told := attributes(span)) and "messaging.message.id" in told:
                found.setdefault(told["messaging.message.id"], []).append((told["job.attempt"], span))
        return {job: [span for _, span in sorted(spans, key=lambda s: s[0])] for job, spans in found.items()}

    def named(self, name: str):
        """Return the one span of this name."""
        [span] = [span for span in self.spans() if span.name == name]
        return span


def attributes(of) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


@pytest.fixture
def collector() -> Iterator[Telemetry]:
    with Telemetry() as collector:
        yield collector


@pytest.fixture
def request_span() -> Iterator[trace.Span]:
    """Give the span of an application's request, by the official SDK; code runs within it."""
    tracer = TracerProvider().get_tracer("application")
    with tracer.start_as_current_span("request") as span:
        yield span


def carrier_of(span: trace.Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return carrier


def ids(span: trace.Span) -> tuple[bytes, bytes]:
    """Return the ids of a trace and a span as the wire has them."""
    context = span.get_span_context()
    return context.trace_id.to_bytes(16), context.span_id.to_bytes(8)


def carried(carrier: dict[str, str]) -> tuple[bytes, bytes]:
    """Return the ids that a carrier brings."""
    _, trace_id, span_id, _ = carrier["traceparent"].split("-")
    return bytes.fromhex(trace_id), bytes.fromhex(span_id)


@asynccontextmanager
async def ending(place: Place, collector: Telemetry, **settings: str):
    """Have a daemon until the block ends, and what it told by then."""
    async with place.daemon(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **settings) as daemon:
        await daemon.ready()
        yield daemon
        daemon.process.terminate()
        assert await daemon.ended() == 0


async def test_an_attempt_is_a_span_that_arrives_before_the_daemon_has_ended(
    stack, service, eventually, collector: Telemetry
) -> None:
    place = Place(stack, service, eventually)
    async with ending(place, collector, OTEL_SERVICE_NAME="cards"):
        job_id = await place.create("end", {"how": "code"})
        await place.becomes(job_id, "failed")
    [whole] = collector.attempts()[job_id]
    told = attributes(whole)
    assert (told["job.outcome"], told["error.type"]) == ("failed", "CARD_TOO_LONG")
    assert whole.parent_span_id == b""
    assert collector.named("handle").parent_span_id == whole.span_id
    assert collector.named("settle").parent_span_id == whole.span_id
    resource = attributes(collector.traces[0].resource_spans[0].resource)
    assert resource["service.name"] == "cards", "OTEL_SERVICE_NAME wins"


async def test_what_a_job_caused_is_in_the_trace_of_the_request_that_created_it(
    stack, service, eventually, collector: Telemetry, request_span
) -> None:
    place = Traced(stack, service, eventually)
    async with ending(place, collector):
        job_id = await place.create("family", trace_context=carrier_of(request_span))
        parent = await place.becomes(job_id, "completed")

        async def both_ended() -> list | None:
            query = place.rest.table("jobs").select("*").eq("parent_id", job_id).eq("status", "completed")
            rows = (await query.order("id").execute()).data
            return rows if len(rows) == 2 else None

        in_thread, in_process = await eventually(both_ended, within=30)
    trace_id, span_id = ids(request_span)
    attempts = {job: spans[0] for job, spans in collector.attempts().items()}
    assert {span.trace_id for span in collector.spans()} == {trace_id}, "all of it is one trace"
    assert attempts[job_id].parent_span_id == span_id
    assert parent["result"]["given"] == carrier_of(request_span)
    own, other = collector.named("family's own"), collector.named("family's other")
    handles = {span.span_id: span for span in collector.spans() if span.name == "handle"}
    assert handles[own.parent_span_id].parent_span_id == attempts[job_id].span_id
    # children are within the span that spawned them, and so is what they do
    assert attempts[in_thread["id"]].parent_span_id == own.span_id
    assert attempts[in_process["id"]].parent_span_id == other.span_id
    threads = collector.named("thread's own")
    assert handles[threads.parent_span_id].parent_span_id == attempts[in_thread["id"]].span_id
    assert carried(in_thread["result"]) == (trace_id, threads.span_id)
    trace_there, span_there = carried(in_process["result"])
    assert trace_there == trace_id
    assert handles[span_there].parent_span_id == attempts[in_process["id"]].span_id
    assert carried(in_process["result"]["given"]) == (trace_id, other.span_id)


async def test_the_headers_of_the_request_say_which_trace_it_is(
    stack, service, eventually, collector: Telemetry, request_span
) -> None:
    place = Place(stack, service, eventually)
    key = stack.service_role_key
    headers = {"apikey": key, "authorization": f"Bearer {key}", **carrier_of(request_span)}
    async with ending(place, collector):
        async with httpx.AsyncClient(base_url=stack.url, headers=headers) as client:
            wanted = {"kind": f"{place.queue}.greet", "payload": {"name": "x"}}
            answer = (await client.post("/rest/v1/rpc/create_job", json=wanted)).raise_for_status()
        await place.becomes(answer.json()["id"], "completed")
    [attempt] = collector.attempts()[answer.json()["id"]]
    assert (attempt.trace_id, attempt.parent_span_id) == ids(request_span)


async def test_a_later_attempt_begins_a_trace_that_links_to_the_request(
    stack, service, eventually, collector: Telemetry, request_span
) -> None:
    place = Traced(stack, service, eventually)
    async with ending(place, collector):
        job_id = await place.create("second", trace_context=carrier_of(request_span))
        await place.becomes(job_id, "completed")
    first, second = collector.attempts()[job_id]
    assert (first.trace_id, first.parent_span_id) == ids(request_span)
    assert second.trace_id != first.trace_id
    assert second.parent_span_id == b""
    assert [(link.trace_id, link.span_id) for link in second.links] == [ids(request_span)]


async def test_metrics_arrive_while_it_runs_and_once_more_when_it_ends(
    stack, service, eventually, collector: Telemetry
) -> None:
    place = Place(stack, service, eventually)

    async def arrived() -> bool:
        return len(collector.metrics) >= 2

    async with ending(place, collector, PROCESSOR_OTEL="metrics", OTEL_METRIC_EXPORT_INTERVAL="200"):
        await eventually(arrived, within=30)
        assert (await place.do("greet", {"name": "x"}))["status"] == "completed"
    assert not collector.traces, "nobody asked for them"
    [resource] = collector.metrics[-1].resource_metrics
    assert attributes(resource.resource)["service.name"] == "supabase-job-processor"
    [scope] = resource.scope_metrics
    told = {metric.name: metric for metric in scope.metrics}
    job = {"queue": place.queue, "kind": f"{place.queue}.greet"}
    finished = told["processor_jobs_finished"].sum
    assert finished.is_monotonic
    assert finished.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert [(attributes(point), point.as_double) for point in finished.data_points] == [
        (job | {"outcome": "completed"}, 1)
    ]
    run = told["processor_job_run_seconds"]
    [point] = run.histogram.data_points
    assert (run.unit, attributes(point), point.count, sum(point.bucket_counts)) == ("s", job, 1, 1)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert point.sum > 0
    assert not point.HasField("min")
    assert told["processor_slots"].gauge.data_points[0].as_double == 3


async def test_a_collector_that_is_away_costs_no_job(stack, service, eventually) -> None:
    place = Place(stack, service, eventually)
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "PROCESSOR_OTEL": "traces,metrics",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
    }
    async with place.daemon(**settings) as daemon:
        await daemon.ready()
        assert (await place.do("greet", {"name": "x"}))["status"] == "completed"
        daemon.process.terminate()
        assert await daemon.ended(within=30) == 0
