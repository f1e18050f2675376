"""Trace contexts as headers (W3C Trace Context), by OpenTelemetry's API alone: a process needs no SDK for it.

Always these two headers, whatever ``OTEL_PROPAGATORS`` says: they are what ``jobs.trace_context`` holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()


def read(carrier: Mapping[str, str] | None) -> Context:
    """Return the context that a carrier brings, with nothing of the one that is here."""
    return _W3C.extract(carrier or {}, Context())


def origin(carried: Context) -> trace.SpanContext:
    """Return the span that a context was made within; it is not valid if there was none."""
    return trace.get_current_span(carried).get_span_context()


def write() -> Mapping[str, str] | None:
    """Return what carries the current span's context; None if there is none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier or None


@contextmanager
def within(carrier: Mapping[str, str]) -> Iterator[None]:
    """Have spans that begin here be children of the one that the carrier brings."""
    token = context.attach(read(carrier))
    try:
        yield
    finally:
        context.detach(token)
