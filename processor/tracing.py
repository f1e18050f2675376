"""Spans of an attempt: claimed → handled → settled, for whoever traces; by itself nothing happens."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

from processor.errors import ConfigError
from processor.job import Job

_NOTHING = nullcontext()


class Tracing:
    """Goes along with attempts; whoever wants spans inherits. No method may raise or block."""

    def attempt(self, job: Job, waited: float) -> AbstractContextManager[None]:
        """Go around an attempt, until it is settled; ``waited``: seconds since the job could have run."""
        return _NOTHING

    def step(self, name: str) -> AbstractContextManager[None]:
        """Go around a part of it, `handle` or `settle`; what the handler does happens inside."""
        return _NOTHING

    def ended(self, outcome: str, code: str | None) -> None:
        """Hear, within the attempt, what became of it; ``code``: it failed."""

    def carrier(self) -> Mapping[str, str] | None:
        """Return the trace context of the code that runs now, as headers; None: it has none."""
        return None

    async def aclose(self) -> None:
        """Hand over what is there."""


NOT_TRACED = Tracing()
"""For those whom nobody traces."""

TRACED_BY: ContextVar[Tracing] = ContextVar("traced_by", default=NOT_TRACED)
"""Who traces the attempt that the running code is part of."""


def carrier() -> Mapping[str, str] | None:
    """Return what carries the trace of the running code on, to a child or a process; None: nobody traces."""
    return TRACED_BY.get().carrier()


def carried(carrier: Mapping[str, str] | None) -> AbstractContextManager[None]:
    """Go around what belongs to a trace that was carried here, into a process; None: it belongs to none."""
    if carrier is None:
        return _NOTHING
    from processor.carriers import within  # noqa: PLC0415  needs an extra, which whoever made the carrier has

    return within(carrier)


def tracing(*, wanted: bool) -> Tracing:
    """Return what traces, if that is wanted; raises ``ConfigError`` if the SDK is missing."""
    if not wanted:
        return NOT_TRACED
    try:
        from processor.spans import spans  # noqa: PLC0415  needs an extra
    except ImportError as error:
        raise ConfigError(needs_otel("traces", error)) from error
    return spans()


def needs_otel(what: str, error: ImportError) -> str:
    """Say what is missing for one of the words of ``PROCESSOR_OTEL``."""
    return f"PROCESSOR_OTEL: {what} need more: pip install 'supabase-job-processor[otel]' ({error})"
