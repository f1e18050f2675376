"""The files that keep outcomes while the API is away: one for each worker process, removed when empty.

The owner holds a lock (``flock``) on its file for as long as it lives; whoever gets the lock is its heir.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import UUID

from processor.records import Contents, Record, forgetting, keeping, read

_SUFFIX = ".spool"
CORRUPT = ".corrupt"
"""What a file is called that had something unreadable in it, once it has been dealt with."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is kept: outcomes, bytes of them, and the age of the oldest one in seconds."""

    records: int
    bytes: int
    oldest: float


class Spool:
    """Outcomes of one worker on disk.

    Its methods block, may be called from any thread, and raise ``OSError``.
    ``max_bytes`` bounds a file; what does not fit is not kept, and ``full`` says so.
    """

    def __init__(self, directory: Path, worker_id: UUID, project: str, *, max_bytes: int) -> None:
        self.directory = directory
        self.worker_id = worker_id
        self.full = False
        """The last outcomes did not all fit."""
        self._project = project
        self._max = max_bytes
        self._lock = threading.Lock()
        self._names = itertools.count(1)
        self._numbers = itertools.count(1)
        self._kept: dict[int, tuple[int, float]] = {}
        self._path: Path | None = None
        self._fd = -1
        self._size = 0
        self._unsynced: list[Path] = []
        self._distrusted: tuple[int, Path] | None = None
        self._broken = False

    @classmethod
    def adopt(cls, path: Path, project: str) -> tuple[Self, Contents] | None:
        """Take over the file of a dead process; None if its owner lives, or it has just gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            contents, data = _examine(fd, project)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        worker_id = contents.records[0].worker_id if contents.records else UUID(int=0)
        spool = cls(path.parent, worker_id, project, max_bytes=len(data))
        spool._path, spool._fd, spool._size = path, fd, data.rfind(b"\n") + 1
        spool._broken = contents.broken > 0
        spool._kept = {r.number: (0, r.at) for r in contents.records}
        return spool, contents

    @property
    def path(self) -> Path | None:
        """The file, while there is one."""
        return self._path

    @property
    def exists(self) -> bool:
        """Whether there is anything on disk."""
        return self._path is not None or self._distrusted is not None

    @property
    def depth(self) -> Depth:
        """How much is kept."""
        kept = list(self._kept.values())
        oldest = max(time.time() - min(at for _, at in kept), 0.0) if kept else 0.0
        return Depth(len(kept), sum(size for size, _ in kept), oldest)

    def number(self) -> int:
        """Return a number for another outcome."""
        return next(self._numbers)

    def keeps(self, number: int) -> bool:
        """Whether the outcome of this number would survive the machine's loss of power."""
        return number in self._kept

    def write(self, records: Sequence[Record], gone: Iterable[int]) -> None:
        """Forget outcomes, and keep others, which is durable when this returns."""
        with self._lock:
            self._forget([number for number in gone if number in self._kept])
            if records:
                self._append(records)

    def discard(self) -> None:
        """Have done with the file: remove it, or put it aside if something in it could not be read."""
        with self._lock:
            self._discard()

    def close(self) -> None:
        """Leave what is kept to heirs."""
        with self._lock:
            self._close()
            if self._distrusted is not None:
                _close(self._distrusted[0])
                self._distrusted = None

    # -- with the lock held -----------------------------------------------------------------------

    def _append(self, records: Sequence[Record]) -> None:
        if self._path is not None and os.fstat(self._fd).st_nlink == 0:
            self._distrust()  # somebody deleted it: what is in it is not kept
        if self._path is None:
            self._create()
        lines = bytearray()
        news: dict[int, tuple[int, float]] = {}
        self.full = False
        for record in records:
            line = keeping(record, self._project)
            if self._size + len(lines) + len(line) > self._max:
                self.full = True
                break
            lines += line
            news[record.number] = (len(line), record.at)
        self._write_at_end(bytes(lines))
        try:
            os.fsync(self._fd)
            while self._unsynced:
                _sync_directory(self._unsynced[-1])
                self._unsynced.pop()
        except OSError:
            self._distrust()
            raise
        self._size += len(lines)
        self._kept |= news
        if self._distrusted is not None:
            _remove(*self._distrusted)
            self._distrusted = None

    def _write_at_end(self, data: bytes) -> None:
        """Write all of it behind what is known to be good, or nothing."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self._size + done)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                if self._size == 0 and self._path is not None:
                    _remove(self._fd, self._path)
                    self._path, self._fd = None, -1
            raise

    def _forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self._kept[number]
        if numbers:
            line = forgetting(numbers)
            # not worth a disk's wait, nor an error: at worst they are offered again, and found stale
            with contextlib.suppress(OSError):
                self._write_at_end(line)
                self._size += len(line)

    def _create(self) -> None:
        missing = [place for place in (self.directory, *self.directory.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(mode=0o700, exist_ok=True)
        path = self.directory / f"{self.worker_id}.{next(self._names)}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(
                    errno.ENOENT, "another daemon took it for one of a dead process", path
                )
        except OSError:
            os.close(fd)
            raise
        self._path, self._fd, self._size = path, fd, 0
        self._unsynced = [*(place.parent for place in reversed(missing)), self.directory]

    def _distrust(self) -> None:
        """Start afresh with the next outcome: after a failed fsync nobody knows what is on the disk.

        The kernel may think of the pages as written now, so a second fsync of them would prove nothing. The
        file stays until another one has all that is in hand.
        """
        if self._path is None:
            return
        if self._distrusted is None:
            self._distrusted = (self._fd, self._path)
        else:
            _remove(self._fd, self._path)
        self._path, self._fd, self._size = None, -1, 0
        self._kept.clear()

    def _discard(self) -> None:
        if self._path is not None:
            if self._broken:
                self._path.replace(self._path.with_suffix(CORRUPT))
                self._close()
            else:
                _remove(self._fd, self._path)
        if self._distrusted is not None:
            _remove(*self._distrusted)
        self._path, self._fd, self._size, self._distrusted = None, -1, 0, None
        self.full = False
        self._kept.clear()

    def _close(self) -> None:
        if self._path is not None:
            _close(self._fd)
        self._path, self._fd = None, -1


def default_directory() -> Path | None:
    """Return where state belongs: systemd's directory for the service, or the user's; None: neither."""
    if service := os.environ.get("STATE_DIRECTORY"):
        return Path(service.split(":", maxsplit=1)[0])
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        return None
    return Path(state) / "supabase-job-processor"


def trouble(directory: Path) -> OSError | None:
    """Say what speaks against keeping files there, trying it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"x")
    except OSError as error:
        return error
    return None


def files(directory: Path) -> list[Path]:
    """Return the files there, of the dead and of the living, in a fixed order."""
    return sorted(directory.glob(f"*{_SUFFIX}"))


def _examine(fd: int, project: str) -> tuple[Contents, bytes]:
    """Lock a file and read it; raises ``BlockingIOError`` if it is somebody's, or has just gone."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    facts = os.fstat(fd)
    if facts.st_nlink == 0:
        raise BlockingIOError(errno.EWOULDBLOCK, "it was removed a moment ago")
    if not stat.S_ISREG(facts.st_mode):
        return Contents(strange="it is no file"), b""
    if facts.st_uid != os.geteuid():  # what others put there is not to be believed
        return Contents(strange=f"it belongs to user {facts.st_uid}"), b""
    with os.fdopen(os.dup(fd), "rb") as file:
        data = file.read()
    return read(data, project), data


def _remove(fd: int, path: Path) -> None:
    """Remove a file while its lock is held: nobody else can have it in hand."""
    path.unlink(missing_ok=True)
    _close(fd)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # what counts was synced; a network's disk may still complain here
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(fd)
