"""The lines of a spool file, each a checksum and JSON.

A line is an outcome, or the numbers of outcomes that need no keeping any more. Every outcome names its
project and worker, so no line needs another one to be understood.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One outcome as it is kept; ``at`` is when it came, in seconds since 1970."""

    number: int
    worker_id: UUID
    pile: str
    job_id: UUID
    attempt: int
    at: float
    body: Mapping[str, Any]


@dataclass(slots=True)
class Contents:
    """What a file has in it: the outcomes still to be offered, in order, and what could not be read."""

    records: list[Record] = field(default_factory=list)
    broken: int = 0
    """Lines that are not what was written."""
    torn: bool = False
    """The last line was never finished."""
    strange: str | None = None
    """Why the file is none of this daemon's business."""


def keeping(record: Record, project: str) -> bytes:
    """Return the line that keeps an outcome."""
    return _line(
        {
            "v": _FORMAT,
            "n": record.number,
            "project": project,
            "worker": str(record.worker_id),
            "pile": record.pile,
            "job": str(record.job_id),
            "attempt": record.attempt,
            "at": record.at,
            "body": record.body,
        }
    )


def forgetting(numbers: Sequence[int]) -> bytes:
    """Return the line that forgets outcomes."""
    return _line({"v": _FORMAT, "gone": list(numbers)})


def read(data: bytes, project: str) -> Contents:
    """Understand what a file has in it, whatever has become of it."""
    contents = Contents()
    records: dict[int, Record] = {}
    *lines, rest = data.split(b"\n")
    contents.torn = bool(rest)
    for line in lines:
        wire = _parse(line)
        try:
            if wire is None:
                contents.broken += 1
            elif wire["v"] != _FORMAT:
                contents.strange = f"it is of format {wire['v']}, and this version knows {_FORMAT}"
            elif "gone" in wire:
                for number in wire["gone"]:
                    records.pop(number, None)
            elif wire["project"] != project:
                contents.strange = f"it belongs to {wire['project']}"
            else:
                record = _record(wire)
                records[record.number] = record
        except (KeyError, TypeError, ValueError):  # rightly written, by somebody who means something else
            contents.strange = "it has lines that this version does not know"
    contents.records = list(records.values())
    return contents


def _line(wire: Mapping[str, Any]) -> bytes:
    text = json.dumps(wire, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None if it is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != _checksum(text):
        return None
    try:
        wire = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return wire if isinstance(wire, dict) else None


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _record(wire: dict[str, Any]) -> Record:
    return Record(
        number=int(wire["n"]),
        worker_id=UUID(wire["worker"]),
        pile=str(wire["pile"]),
        job_id=UUID(wire["job"]),
        attempt=int(wire["attempt"]),
        at=float(wire["at"]),
        body=dict(wire["body"]),
    )
