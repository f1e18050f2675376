"""Warnings and errors that repeat: the first ones of each minute are logged, the rest is counted and told.

An outage or a broken handler says the same thing a thousand times a second; what an operator needs of it
is the line, once, and how often.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

Kind = tuple[str, ...]
"""What makes two lines the same: level, event, error. Ids and numbers beside them do not count."""

_MOST_KINDS = 1000
"""Kinds of lines that are counted in a minute; of what is beyond, everything is logged."""
_CHARACTERS = 200
"""Characters of an error that count."""
_SAME = ("error_code", "error", "message", "reason")
"""The fields by which lines of one event differ."""


class Repeats:
    """Says which lines are one too many, and tells of them when their minute is over.

    Args:
        most: lines of a kind in a minute; 0: any number.
        tell: is called with a kind and how many lines of it were left out, from any thread.
        seconds: the length of that minute.

    """

    def __init__(self, most: int, tell: Callable[[Kind, int], None], *, seconds: float = 60) -> None:
        self._most = most
        self._tell = tell
        self._seconds = seconds
        self._lock = threading.Lock()
        self._began = 0.0
        self._seen: dict[Kind, int] = {}
        self._timer: threading.Timer | None = None

    def too_many(self, kind: Kind) -> bool:
        """Count a line; say whether to leave it out."""
        if not self._most:
            return False
        with self._lock:
            now = time.monotonic()
            if self._timer is None and now - self._began >= self._seconds:
                self._seen.clear()
                self._began = now
            seen = self._seen.get(kind, 0) + 1
            if seen == 1 and len(self._seen) >= _MOST_KINDS:
                return False
            self._seen[kind] = seen
            if seen <= self._most:
                return False
            if self._timer is None:
                self._timer = threading.Timer(self._began + self._seconds - now, self.tell)
                self._timer.name = "log-repeats"
                self._timer.daemon = True
                self._timer.start()
            return True

    def tell(self) -> None:
        """Tell now what was left out so far, and begin a new minute."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            left_out = {kind: seen - self._most for kind, seen in self._seen.items() if seen > self._most}
            self._seen.clear()
        for kind, lines in left_out.items():
            self._tell(kind, lines)


def kind_of(level: str, event: Mapping[str, Any]) -> Kind:
    """Return the kind of a line from its fields."""
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    named = () if not isinstance(error, BaseException) else (f"exception={type(error).__name__}",)
    fields = (
        f"{name}={str(event[name])[:_CHARACTERS]}" for name in _SAME if isinstance(event.get(name), str)
    )
    return (level, str(event.get("event"))[:_CHARACTERS], *fields, *named)
