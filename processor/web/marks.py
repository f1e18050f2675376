"""How far a stream of events has come: what its ids say, and a new connection resumes from."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ID = re.compile(r"(\d{1,17})-(\d{1,17})-(\d{1,9})-(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Mark:
    """What has been told of a job.

    The changes of one job follow each other under the lock of its row, and the database's clock stamps them
    there: whatever comes after a mark is greater than it.
    """

    row_at: datetime = _EPOCH
    """The row, as it was at this change, if all of it has been told."""
    item_at: datetime = _EPOCH
    """The items that had changed until then …"""
    item: int = 0
    """… of those that changed at that moment, up to this position."""
    log: int = 0
    """The log lines up to this id."""

    def __str__(self) -> str:
        """Write the id of an event."""
        return f"{_number(self.row_at)}-{_number(self.item_at)}-{self.item}-{self.log}"

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Read an id; what is none means that nothing has been told."""
        found = _ID.fullmatch(text or "")
        if found is None:
            return cls()
        row_at, item_at, item, log = map(int, found.groups())
        try:
            return cls(_moment(row_at), _moment(item_at), item, log)
        except OverflowError:
            return cls()


def _number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(number: int) -> datetime:
    return _EPOCH + number * _MICROSECOND
