"""The ends of jobs that the broker has not taken, on disk: a small database for each daemon, in WAL mode.

The owner holds SQLite's lock on its file for as long as it lives; a daemon that starts takes over those of
the dead. Everything here blocks, and belongs to one thread.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from processor.mqtt.messages import Message

_SUFFIX = ".mqtt"
_CORRUPT = ".corrupt"
_PAGE = 4096
_SCHEMA = """
create table if not exists ends (
  id integer primary key autoincrement, topic text not null, payload blob not null, expiry integer, trace text
);
create table if not exists clears (topic text primary key, at real not null) without rowid;
create index if not exists clears_at on clears (at);
"""

log = structlog.get_logger("processor.mqtt")


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is on disk: ends of jobs, topics to be cleared, and bytes of the file."""

    ends: int
    clears: int
    bytes: int


class Outbox:
    """Ends of jobs, and topics that are to be cleared one day.

    ``directory`` None keeps them in memory; ``project`` tells the files of several projects apart.
    """

    def __init__(self, directory: Path | None, worker_id: UUID, *, max_bytes: int) -> None:
        self._directory = directory
        self._path = None if directory is None else directory / f"{worker_id}{_SUFFIX}"
        self._max_pages = max(max_bytes // _PAGE, 16)
        self._database: sqlite3.Connection | None = None

    def open(self, prefix: str) -> int:
        """Begin, with what dead processes left of this ``prefix``; return how many ends that is.

        Raises:
            OSError, sqlite3.Error: it cannot be kept there.

        """
        if self._path is not None and self._directory is not None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = _open(":memory:" if self._path is None else str(self._path))
        database.execute(f"pragma max_page_count = {self._max_pages}")
        database.executescript(_SCHEMA)
        self._database = database
        if self._directory is None:
            return 0
        others = sorted(self._directory.glob(f"*{_SUFFIX}"))
        return sum(self._adopt(path, prefix) for path in others if path != self._path)

    def put(self, messages: Sequence[Message]) -> bool:
        """Keep ends of jobs, all or none; False: there is no room."""
        try:
            with self._open as database:
                database.executemany(
                    "insert into ends (topic, payload, expiry, trace) values (?, ?, ?, ?)",
                    [(m.topic, m.payload, m.expiry, m.trace and json.dumps(m.trace)) for m in messages],
                )
        except sqlite3.OperationalError:  # the file has its size, or the disk is full, or fails
            return False
        return True

    def load(self, after: int, most: int) -> list[Message]:
        """Read the oldest ends after a row."""
        rows = self._open.execute(
            "select id, topic, payload, expiry, trace from ends where id > ? order by id limit ?",
            (after, most),
        )
        return [
            Message(topic, payload, "status", True, expiry, True, trace and json.loads(trace), row)
            for row, topic, payload, expiry, trace in rows
        ]

    def done(self, rows: Iterable[int]) -> None:
        """Forget ends that the broker has taken."""
        with self._open as database:
            database.executemany("delete from ends where id = ?", [(row,) for row in rows])

    def clear_later(self, topics: Iterable[str], at: float) -> None:
        """Remember topics that are to be cleared at a time (of the clock); what finds no room stays there."""
        with contextlib.suppress(sqlite3.OperationalError), self._open as database:
            database.executemany(
                "insert or replace into clears (topic, at) values (?, ?)", [(topic, at) for topic in topics]
            )

    def due(self, now: float, most: int) -> list[str]:
        """Read topics whose time has come."""
        return [
            topic
            for (topic,) in self._open.execute(
                "select topic from clears where at <= ? order by at limit ?", (now, most)
            )
        ]

    def cleared(self, topics: Iterable[str]) -> None:
        """Forget topics that have been cleared."""
        with self._open as database:
            database.executemany("delete from clears where topic = ?", [(topic,) for topic in topics])

    @property
    def depth(self) -> Depth:
        """How much there is."""
        [(ends,)] = self._open.execute("select count(*) from ends")
        [(clears,)] = self._open.execute("select count(*) from clears")
        [(pages,)] = self._open.execute("pragma page_count")
        [(free,)] = self._open.execute("pragma freelist_count")
        return Depth(ends, clears, (pages - free) * _PAGE)

    def close(self) -> None:
        """Leave what there is to heirs; remove the file if that is nothing."""
        if self._database is None:
            return
        depth = self.depth
        self._database.close()
        self._database = None
        if self._path is not None and not depth.ends and not depth.clears:
            _remove(self._path)

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise RuntimeError("open() the outbox first")
        return self._database

    def _adopt(self, path: Path, prefix: str) -> int:
        """Take over a dead process's file; 0 if its owner lives, or it is another's."""
        try:
            dead = _open(str(path))
            try:
                ends = dead.execute("select topic, payload, expiry, trace from ends order by id").fetchall()
                clears = dead.execute("select topic, at from clears").fetchall()
                if any(not topic.startswith(f"{prefix}/") for topic, *_ in (*ends, *clears)):
                    log.warning("mqtt.outbox_passed_over", path=str(path), reason="it has another prefix")
                    return 0
                with self._open as mine:
                    mine.executemany(
                        "insert into ends (topic, payload, expiry, trace) values (?, ?, ?, ?)", ends
                    )
                    mine.executemany("insert or replace into clears (topic, at) values (?, ?)", clears)
            finally:
                dead.close()
        except sqlite3.OperationalError:  # it is locked: its owner lives; or there is no room for it
            return 0
        except sqlite3.DatabaseError as error:
            log.error("mqtt.outbox_broken", path=str(path), error=str(error), then="it is put aside")  # noqa: TRY400  it says all
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(_CORRUPT))
            return 0
        _remove(path)
        return len(ends)


def _open(path: str) -> sqlite3.Connection:
    """Open a database for ourselves alone; raises ``OperationalError`` if somebody else has it."""
    database = sqlite3.connect(path, timeout=0)
    try:
        for pragma in ("locking_mode = exclusive", "journal_mode = wal", "synchronous = normal"):
            database.execute(f"pragma {pragma}")
        database.execute("begin immediate")
        database.executescript(_SCHEMA)  # commits, and keeps the lock
    except sqlite3.Error:
        database.close()
        raise
    return database


def _remove(path: Path) -> None:
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)
