"""What nobody expected: told to whoever collects errors; by itself nothing happens."""

from processor.config import Settings
from processor.errors import ConfigError
from processor.job import Job


class Incidents:
    """Hears of errors that somebody should mend; whoever reports inherits. No method may raise or block."""

    def attempt_crashed(self, job: Job, error: BaseException) -> None:
        """Hear that a handler raised what nothing knows, or did so for an item."""

    def hook_failed(self, job: Job, hook: str, error: BaseException) -> None:
        """Hear that a hook raised something, or took too long."""

    def task_died(self, name: str, error: BaseException | None) -> None:
        """Hear that a part of the daemon ended by itself."""

    async def aclose(self) -> None:
        """Hand over what is there, for a moment."""


UNREPORTED = Incidents()
"""For those whose errors nobody collects."""


def incidents(settings: Settings) -> Incidents:
    """Return what reports, if that is wanted.

    Raises ``ConfigError`` if the SDK is missing, or the address is none.
    """
    if settings.sentry_dsn is None:
        return UNREPORTED
    try:
        from processor.sentry import sentry  # noqa: PLC0415  needs an extra
    except ImportError as error:
        raise ConfigError(
            "PROCESSOR_SENTRY_DSN: needs Sentry's SDK: pip install 'supabase-job-processor[sentry]' "
            f"({error})"
        ) from error
    return sentry(settings.sentry_dsn.get_secret_value(), settings.name)
