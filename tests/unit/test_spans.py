"""Spans of attempts, as OpenTelemetry's SDK exports them."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from processor.job import Job
from processor.spans import Spans
from processor.tracing import carried, carrier

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def job() -> Job:
    return Job(
        id=UUID(int=1), queue="mine", kind="known", payload={}, attempt=1, run_at=NOON, created_at=NOON
    )


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def attempt(spans: Spans, provider: TracerProvider, job: Job, code: str | None) -> None:
    async def handler() -> None:
        with provider.get_tracer("application").start_as_current_span("of the handler"):
            await asyncio.sleep(0)

    with spans.attempt(job, 0.25):
        with spans.step("handle"):
            await asyncio.create_task(handler())
        with spans.step("settle"):
            spans.ended("failed" if code else "completed", code)


async def test_what_a_handler_does_is_within_its_attempt(job, provider, exporter) -> None:
    await attempt(Spans(provider), provider, job, None)
    spans = by_name(exporter)
    whole = spans["process mine"]
    assert whole.kind is SpanKind.CONSUMER
    assert whole.parent is None
    assert whole.attributes["job.outcome"] == "completed"
    assert whole.attributes["job.waited_seconds"] == 0.25
    assert whole.attributes["messaging.message.id"] == str(job.id)
    assert spans["handle"].parent.span_id == spans["settle"].parent.span_id == whole.context.span_id
    assert spans["of the handler"].parent.span_id == spans["handle"].context.span_id
    assert whole.status.status_code is StatusCode.UNSET


async def test_an_attempt_that_failed_says_so_by_its_code_alone(job, provider, exporter) -> None:
    await attempt(Spans(provider), provider, job, "RATE_LIMITED")
    whole = by_name(exporter)["process mine"]
    assert whole.status.status_code is StatusCode.ERROR
    assert whole.attributes["error.type"] == "RATE_LIMITED"
    assert whole.events == ()


async def test_attempts_side_by_side_have_spans_of_their_own(job, provider, exporter) -> None:
    spans = Spans(provider)
    await asyncio.gather(*(attempt(spans, provider, job, None) for _ in range(3)))
    assert len({span.context.trace_id for span in exporter.get_finished_spans()}) == 3


CREATED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}


async def test_the_first_attempt_is_a_child_of_the_span_that_created_the_job(job, provider, exporter) -> None:
    await attempt(Spans(provider), provider, job.model_copy(update={"trace_context": CREATED}), None)
    whole = by_name(exporter)["process mine"]
    assert trace.format_trace_id(whole.context.trace_id) == "0af7651916cd43dd8448eb211c80319c"
    assert trace.format_span_id(whole.parent.span_id) == "b7ad6b7169203331"
    assert whole.parent.is_remote
    assert whole.context.trace_state.get("vendor") == "1"
    assert whole.links == ()


async def test_a_later_attempt_links_to_it_and_begins_anew(job, provider, exporter) -> None:
    again = job.model_copy(update={"trace_context": CREATED, "attempt": 2})
    await attempt(Spans(provider), provider, again, None)
    whole = by_name(exporter)["process mine"]
    assert whole.parent is None
    [link] = whole.links
    assert trace.format_span_id(link.context.span_id) == "b7ad6b7169203331"
    assert whole.context.trace_id != link.context.trace_id


async def test_what_the_creator_did_not_sample_is_not_traced(job, provider, exporter) -> None:
    quiet = {"traceparent": CREATED["traceparent"][:-2] + "00"}
    await attempt(Spans(provider), provider, job.model_copy(update={"trace_context": quiet}), None)
    assert exporter.get_finished_spans() == ()


async def test_within_an_attempt_its_trace_can_be_carried_on_and_outside_there_is_none(
    job, provider, exporter
) -> None:
    with Spans(provider).attempt(job, 0.0):
        inside = carrier()
    with carried(inside), provider.get_tracer("elsewhere").start_as_current_span("elsewhere"):
        pass
    spans = by_name(exporter)
    assert spans["elsewhere"].parent.span_id == spans["process mine"].context.span_id
    assert carrier() is None
    with carried(None), provider.get_tracer("elsewhere").start_as_current_span("alone"):
        pass
    assert by_name(exporter)["alone"].parent is None
