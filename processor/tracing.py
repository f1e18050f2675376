"""Spans of an attempt: claimed → handled → settled, for whoever traces; by itself nothing happens."""

from contextlib import AbstractContextManager, nullcontext

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

    async def aclose(self) -> None:
        """Hand over what is there."""


NOT_TRACED = Tracing()
"""For those whom nobody traces."""


def tracing(*, wanted: bool) -> Tracing:
    """Return what traces, if that is wanted; raises ``ConfigError`` if the SDK is missing."""
    if not wanted:
        return NOT_TRACED
    try:
        from processor.spans import spans  # noqa: PLC0415  needs an extra
    except ImportError as error:
        raise ConfigError(
            "PROCESSOR_TRACES: needs OpenTelemetry's SDK: pip install 'supabase-job-processor[otel]' "
            f"({error})"
        ) from error
    return spans()
