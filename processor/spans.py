"""OpenTelemetry: attempts as spans, by the official SDK, which reads its own ``OTEL_*`` variables.

The names follow OpenTelemetry's conventions for messaging: an attempt is `process` and its queue.

A job's first attempt is a child of the span that it was created within, so that one trace shows the request
and what came of it. Later ones begin a trace of their own, with a link to that span: they may be days later,
and thousands (a job that snoozes), and no trace store keeps a trace open for that.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from processor import __version__, carriers
from processor.job import Job
from processor.tracing import TRACED_BY, Tracing

_FLUSH_MS = 3000
"""How long the last spans may take on the way out."""
_INSTANCE = str(uuid4())
"""Tells this process from the others of a fleet."""

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
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.queue,
            "messaging.message.id": str(job.id),
            "job.kind": job.kind,
            "job.attempt": job.attempt,
            "job.waited_seconds": waited,
        }
        created = carriers.read(job.trace_context)
        origin = carriers.origin(created)
        again = job.attempt > 1
        with self._tracer.start_as_current_span(
            f"process {job.queue}",
            context=Context() if again else created,
            links=[Link(origin)] if again and origin.is_valid else None,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            start_time=time.time_ns(),
            record_exception=False,  # it may hold what nobody outside is to see
        ) as span:
            token, tracing = _attempt.set(span), TRACED_BY.set(self)
            try:
                yield
            finally:
                TRACED_BY.reset(tracing)
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

    def carrier(self) -> Mapping[str, str] | None:
        """Return the current span's context."""
        return carriers.write()

    async def aclose(self) -> None:
        """Send what has not been sent, for a moment."""
        if isinstance(self._provider, TracerProvider):
            await asyncio.to_thread(self._provider.force_flush, _FLUSH_MS)


def spans() -> Spans:
    """Use the provider that the application has set up, or set one up: OTLP over HTTP, as ``OTEL_*`` say."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # nobody has
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  slow

        own = TracerProvider(resource=resource())
        own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(own)
        provider = own
    return Spans(provider)


def resource() -> Resource:
    """Return who tells all this; what ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say wins."""
    ours: dict[str, str] = {
        "service.name": "supabase-job-processor",
        "service.version": __version__,
        "service.instance.id": _INSTANCE,
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})
