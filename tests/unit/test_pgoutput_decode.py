"""Messages of pgoutput, built byte by byte as PostgreSQL's documentation lays them out."""

import struct
from datetime import UTC, datetime

import pytest

from processor.local.realtime.pgoutput import (
    Begin,
    Change,
    Commit,
    PgOutputError,
    Relation,
    Unchanged,
    decode,
    peek,
)


def row(*values: str | Unchanged | None) -> bytes:
    parts = [struct.pack("!h", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, Unchanged):
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack("!i", len(value.encode())) + value.encode())
    return b"".join(parts)


def relation(schema: bytes = b"public") -> bytes:
    head = b"R" + struct.pack("!I", 4_000_000_000) + schema + b"\0jobs\0d" + struct.pack("!h", 2)
    return head + b"\1id\0" + struct.pack("!Ii", 2950, -1) + b"\0status\0" + struct.pack("!Ii", 25, -1)


def test_a_begin_tells_when_its_transaction_committed():
    microseconds = int(
        (datetime(2026, 1, 2, 3, 4, 5, 678, UTC) - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds()
    )
    message = decode(b"B" + struct.pack("!qqi", 1, microseconds * 1_000_000 + 678, 7))
    assert message == Begin(7, datetime(2026, 1, 2, 3, 4, 5, 678, UTC))


def test_a_commit_is_a_commit():
    assert decode(b"C" + struct.pack("!bqqq", 0, 1, 2, 3)) == Commit()


def test_a_relation_lists_its_columns_and_marks_the_key():
    message = decode(relation())
    assert isinstance(message, Relation)
    assert (message.oid, message.schema, message.name) == (4_000_000_000, "public", "jobs")
    assert [(column.name, column.type_oid, column.key) for column in message.columns] == [
        ("id", 2950, True),
        ("status", 25, False),
    ]
    assert message.indexes == {"id": 0, "status": 1}


def test_an_empty_schema_name_means_pg_catalog():
    message = decode(relation(schema=b""))
    assert isinstance(message, Relation)
    assert message.schema == "pg_catalog"


def test_an_insert_carries_text_null_and_unicode():
    message = decode(b"I" + struct.pack("!I", 5) + b"N" + row("1", None, "größe"))
    assert message == Change(5, "INSERT", new=("1", None, "größe"))


def test_an_update_without_a_key_change_has_no_old_row():
    message = decode(b"U" + struct.pack("!I", 5) + b"N" + row("1", Unchanged.TOAST))
    assert message == Change(5, "UPDATE", new=("1", Unchanged.TOAST))


@pytest.mark.parametrize(("mark", "is_key"), [(b"K", True), (b"O", False)])
def test_an_update_tells_whether_its_old_row_is_only_the_key(mark, is_key):
    message = decode(b"U" + struct.pack("!I", 5) + mark + row("1", None) + b"N" + row("2", "b"))
    assert message == Change(5, "UPDATE", new=("2", "b"), old=("1", None), old_is_key=is_key)


@pytest.mark.parametrize(("mark", "is_key"), [(b"K", True), (b"O", False)])
def test_a_delete_carries_the_old_row(mark, is_key):
    message = decode(b"D" + struct.pack("!I", 5) + mark + row("1", None))
    assert message == Change(5, "DELETE", old=("1", None), old_is_key=is_key)


@pytest.mark.parametrize("kind", [b"O", b"Y", b"T", b"M"])
def test_messages_without_rows_are_passed_over(kind):
    assert decode(kind + bytes(20)) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"?",
        b"B\0",
        b"I" + struct.pack("!I", 5) + b"N" + row("abc")[:-1],
        b"I" + struct.pack("!I", 5) + b"N" + struct.pack("!h", 1) + b"x",
        b"U" + struct.pack("!I", 5) + b"?" + row("a"),
        relation()[:-1],
        b"I" + struct.pack("!I", 5) + b"N" + struct.pack("!hc", 1, b"t") + struct.pack("!i", 1) + b"\xff",
    ],
)
def test_a_broken_message_is_an_error_that_names_its_kind(broken):
    with pytest.raises(PgOutputError, match="kind"):
        decode(broken)


@pytest.mark.parametrize("kind", [b"I", b"U"])
@pytest.mark.parametrize(
    "values", [("1", "pending", None), (None, "", "ünï"), (Unchanged.TOAST, "x", Unchanged.TOAST)]
)
def test_a_peek_shows_the_first_columns_as_decoding_does(kind, values):
    data = kind + struct.pack("!I", 7) + b"N" + row(*values)
    for columns in range(len(values) + 1):
        assert peek(data, columns) == decode(data).new[:columns]


def test_a_peek_does_not_guess():
    new = b"N" + row("2", "x")
    assert (
        peek(b"U" + struct.pack("!I", 7) + b"K" + row("1", None) + new, 1) is None
    )  # the old key comes first
    whole = b"I" + struct.pack("!I", 7) + new
    for length in range(6, len(whole) - 1):
        assert peek(whole[:length], 3) is None
