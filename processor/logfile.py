"""A log file for places without a journal: renamed when it is full, opened again when somebody moved it."""

import os
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from processor.errors import ConfigError

KEPT = 5
"""Full files that are kept: ``processor.log.1`` is the youngest."""
_MODE = 0o640
"""Who may read it: what jobs say is not for everybody on the machine."""


class LogFile(RotatingFileHandler):
    """The standard library's rotating file, written to as a stream: whole lines, from any thread.

    Each process needs a file of its own.

    Args:
        path: the file; what is in it stays.
        max_bytes: rename it before it gets larger than this; 0: never, somebody else does.

    Raises:
        ConfigError: it cannot be written.

    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        try:
            super().__init__(
                path, maxBytes=max_bytes, backupCount=KEPT, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise ConfigError(
                f"PROCESSOR_LOG_FILE: cannot write {path}: {error.strerror or error}. "
                "Its directory must exist, and be writable for the daemon's user."
            ) from error

    def write(self, line: str) -> None:
        """Write a line; one that cannot be written raises OSError."""
        self.acquire()
        try:
            stream = self.stream or self._open()  # none: renaming or opening has failed before
            if self.maxBytes and stream.tell() and stream.tell() + len(line) > self.maxBytes:
                self.stream = stream
                self.doRollover()
                stream = self.stream or self._open()
            self.stream = stream
            stream.write(line)
        finally:
            self.release()

    def reopen(self) -> None:
        """Write to the file of that name from now on, wherever the old one is; OSError: it stays as it is."""
        self.acquire()
        try:
            old, self.stream = self.stream, self._open()
            if old is not None:
                old.close()
        finally:
            self.release()

    def isatty(self) -> bool:
        """Say that nobody reads it as it is written."""
        return False

    def _open(self) -> Any:
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, _MODE)

        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=private)
