"""Decode the messages of PostgreSQL's built-in output plugin ``pgoutput``, protocol version 1.

Values stay in PostgreSQL's text form; what they mean is decided by their types, elsewhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeAlias

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_int16 = struct.Struct("!h").unpack_from
_int32 = struct.Struct("!i").unpack_from
_oid = struct.Struct("!I").unpack_from
_int64 = struct.Struct("!q").unpack_from


class Unchanged(Enum):
    """The mark of a large value that the update did not touch, and that is not in the WAL."""

    TOAST = "unchanged"


Value: TypeAlias = str | Unchanged | None
Row: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction's start, sent after its commit at ``committed_at``; ``xid`` has 32 bits."""

    xid: int
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction's end."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the WAL describes it; ``key`` says whether it is part of the replica identity."""

    name: str
    type_oid: int
    key: bool


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table's shape from here on; sent before its first row and again after any change to the table."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    indexes: dict[str, int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """A row's insert, update or delete.

    ``old`` is present if the WAL has it: the key columns only (``old_is_key``) or the whole row.
    """

    relation_oid: int
    event: str
    new: Row | None = None
    old: Row | None = None
    old_is_key: bool = False


class PgOutputError(ValueError):
    """Bytes that are not a pgoutput message."""


def decode(data: bytes) -> Begin | Commit | Relation | Change | None:
    """Decode one message; None for kinds that carry no row (origin, type, truncate, message).

    Raises:
        PgOutputError: an unknown kind or a broken message.

    """
    try:
        return _decode(data)
    except (struct.error, IndexError, ValueError) as error:
        raise PgOutputError(f"cannot decode a pgoutput message of kind {data[:1]!r}: {error}") from error


def peek(data: bytes, columns: int) -> Row | None:
    """Return the first columns of an insert's or update's new row; None if they are not easily found."""
    if data[5:6] != b"N":
        return None  # the old row comes first
    values: list[Value] = []
    at = 8
    try:
        for _ in range(columns):
            kind = data[at]
            if kind == 0x74:
                end = at + 5 + _int32(data, at + 1)[0]
                values.append(data[at + 5 : end].decode())
                at = end
            else:
                values.append(None if kind == 0x6E else Unchanged.TOAST)
                at += 1
    except (struct.error, IndexError, ValueError):
        return None  # decode() says what is wrong with it
    return tuple(values)


def _decode(data: bytes) -> Begin | Commit | Relation | Change | None:
    kind = data[0:1]
    if kind == b"I":
        new, _ = _row(data, 6)
        return Change(_oid(data, 1)[0], "INSERT", new=new)
    if kind == b"U":
        return _update(data)
    if kind == b"D":
        old, _ = _row(data, 6)
        return Change(_oid(data, 1)[0], "DELETE", old=old, old_is_key=data[5:6] == b"K")
    if kind == b"B":
        return Begin(_oid(data, 17)[0], EPOCH + timedelta(microseconds=_int64(data, 9)[0]))
    if kind == b"C":
        return Commit()
    if kind == b"R":
        return _relation(data)
    if kind in (b"O", b"Y", b"T", b"M"):
        return None
    raise ValueError("unknown kind")


def _update(data: bytes) -> Change:
    old, at, mark = None, 5, data[5:6]
    if mark in (b"K", b"O"):
        old, at = _row(data, 6)
    if data[at : at + 1] != b"N":
        raise ValueError("an update without its new row")
    new, _ = _row(data, at + 1)
    return Change(_oid(data, 1)[0], "UPDATE", new=new, old=old, old_is_key=mark == b"K")


def _relation(data: bytes) -> Relation:
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    count = _int16(data, at + 1)[0]
    at += 3
    columns = []
    for _ in range(count):
        key = data[at] & 1 == 1
        column, at = _string(data, at + 1)
        _int32(data, at + 4)  # the type modifier: only that it is there
        columns.append(Column(column, _oid(data, at)[0], key))
        at += 8
    return Relation(
        oid=_oid(data, 1)[0],
        schema=schema or "pg_catalog",
        name=name,
        columns=tuple(columns),
        indexes={column.name: index for index, column in enumerate(columns)},
    )


def _row(data: bytes, at: int) -> tuple[Row, int]:
    count = _int16(data, at)[0]
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at]
        at += 1
        if kind == 0x74:  # t: text
            length = _int32(data, at)[0]
            at += 4
            if len(data) < at + length:
                raise ValueError("a value is cut off")
            values.append(data[at : at + length].decode())
            at += length
        elif kind == 0x6E:  # n: null
            values.append(None)
        elif kind == 0x75:  # u: unchanged
            values.append(Unchanged.TOAST)
        else:
            raise ValueError(f"unknown kind of value {kind}")
    return tuple(values), at


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1
