"""OpenTelemetry: attempts as spans, by the official SDK, which reads its own ``OTEL_*`` variables.

The names follow OpenTelemetry's conventions for messaging: an attempt is `process` and its queue.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from processor.job import Job
from processor.tracing import Tracing

_FLUSH_MS = 3000
"""How long the last spans may take on the way out."""


_attempt: ContextVar[trace.Span] = ContextVar("attempt")


class Spans(Tracing):
    """Makes spans with ``provider``; those that handlers make meanwhile are their children."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("processor")

    @contextmanager
    def attempt(self, job: Job, waited: float) -> Iterator[None]:
        """Make the span of an attempt."""
        attributes: dict[str, str | int | float] = {
            "messaging.system": "supabase_job_processor",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.queue,
            "messaging.message.id": str(job.id),
            "job.kind": job.kind,
            "job.attempt": job.attempt,
            "job.waited_seconds": waited,
        }
        with self._tracer.start_as_current_span(
            f"process {job.queue}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            start_time=time.time_ns(),
            record_exception=False,  # it may hold what nobody outside is to see
        ) as span:
            token = _attempt.set(span)
            try:
                yield
            finally:
                _attempt.reset(token)

    def step(self, name: str) -> AbstractContextManager[None]:
        """Make the span of a part."""
        return self._step(name)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, record_exception=False):
            yield

    def ended(self, outcome: str, code: str | None) -> None:
        """Put the outcome on the attempt's span."""
        span = _attempt.get(trace.INVALID_SPAN)
        span.set_attribute("job.outcome", outcome)
        if code is not None:
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR))

    async def aclose(self) -> None:
        """Send what has not been sent, for a moment."""
        if isinstance(self._provider, TracerProvider):
            await asyncio.to_thread(self._provider.force_flush, _FLUSH_MS)


def spans() -> Spans:
    """Use the provider that the application has set up, or set one up: OTLP over HTTP, as ``OTEL_*`` say."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # nobody has
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  slow

        own = TracerProvider(resource=Resource.create({SERVICE_NAME: "supabase-job-processor"}))
        own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(own)
        provider = own
    return Spans(provider)
