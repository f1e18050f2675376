"""One thing that was looked at."""

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    """It works, but not for ever, or not for everybody."""
    FAIL = "fail"
    """The daemon cannot work so, or not as it should."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and what to do about it."""

    check: str
    mark: Mark
    seen: str
    mend: str = ""


def ok(check: str, seen: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(check, Mark.OK, seen)


def warn(check: str, seen: str, mend: str) -> Finding:
    """Return a finding that somebody should know of."""
    return Finding(check, Mark.WARN, seen, mend)


def fail(check: str, seen: str, mend: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding(check, Mark.FAIL, seen, mend)
