"""A wall clock that can be moved while a process looks at it; its monotonic clock is left alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PLACES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
PATTERNS = ("*/faketime/libfaketime.so.1", "faketime/libfaketime.so.1")
WHERE_TO_GET_IT = "libfaketime is missing; on Debian: apt-get install faketime"


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one process, kept in a file."""

    library: Path
    file: Path

    @classmethod
    def find(cls, file: Path) -> Clock | None:
        """Make a clock that is right, if the library for it is there."""
        found = [path for place in PLACES for pattern in PATTERNS for path in Path(place).glob(pattern)]
        if not found:
            return None
        clock = cls(found[0], file)
        clock.set(0)
        return clock

    def environment(self) -> dict[str, str]:
        """Return what a process must be started with."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, hours: int) -> None:
        """Put the clock forward, or back, from the right time; it is seen within a second."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{hours:+d}h\n")
        os.replace(fresh, self.file)  # noqa: PTH105  in one step: the process reads at any moment
