"""When a cron expression comes next, on the clock of a time zone.

The arithmetic is cronsim's, which follows Debian's cron where clocks change: a fixed time that spring
leaves out runs right after the gap, one that autumn has twice runs the first time, and what runs every
hour or more often goes by real time.
"""

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from processor.errors import UsageError

_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Cron:
    """A plan: five fields (minute, hour, day of month, month, weekday) and whose clock they mean.

    Raises :class:`UsageError`, which says what is wrong with them.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        self.after(_SOME_TIME)

    def after(self, moment: datetime) -> datetime:
        """Return the first time after ``moment``, in UTC.

        Raises :class:`UsageError` if there is none.
        """
        for local in self._from(moment):
            tick = local.astimezone(UTC)
            if tick > moment:  # in the second of two equal hours, the first is offered again
                return tick
        raise UsageError(f"{self.expression!r} never comes: look at its day and month.")

    def _from(self, moment: datetime) -> CronSim:
        zone = _zone(self.timezone)
        if not isinstance(self.expression, str) or len(self.expression.split()) != _FIELDS:
            raise UsageError(f"{self.expression!r} is not a cron expression. {_RULE}")
        try:
            return CronSim(self.expression, moment.astimezone(zone))
        except (CronSimError, ValueError) as error:
            raise UsageError(f"{self.expression!r} is not a cron expression: {error}. {_RULE}") from error


_RULE = (
    "Five fields: minute, hour, day of month, month, weekday. "
    '"0 3 * * *" is every day at 3:00, "*/15 * * * *" every 15 minutes, "0 9 * * MON" Mondays at 9:00.'
)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        near = difflib.get_close_matches(str(name)[:100], available_timezones(), n=1)
        suggestion = f"Did you mean {near[0]!r}?" if near else 'Give a name such as "Europe/Berlin".'
        raise UsageError(f"There is no time zone {str(name)[:100]!r}. {suggestion}") from error
