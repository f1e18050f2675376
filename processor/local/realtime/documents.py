"""Write a change as the JSON text that clients receive."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from processor.local.realtime.pgoutput import Change, Relation, Row, Unchanged
from processor.local.realtime.tables import Catalogue, Table
from processor.local.realtime.wire import dumps

LARGEST_DOCUMENT = 1024 * 1024 - 4096
KEPT_OF_A_LARGE_ROW = 64


def timestamp(at: datetime) -> str:
    """``2026-01-02T03:04:05.678Z``."""
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def error_document(relation: Relation, change: Change, at: datetime, error: str) -> str:
    """Return the document that says only that something changed and why it cannot be shown."""
    empty: dict[str, Any] = {} if change.event == "DELETE" else {"record": {}}
    return dumps(
        {
            "schema": relation.schema,
            "table": relation.name,
            "type": change.event,
            "commit_timestamp": timestamp(at),
            "columns": [],
            "errors": [error],
        }
        | empty
        | ({} if change.event == "INSERT" else {"old_record": {}})
    )


def old_row(change: Change, relation: Relation, table: Table) -> dict[str, str | Unchanged | None]:
    """Return what is known of the row before the change: the whole row, or only its key.

    An update that leaves the key alone has no old row in the WAL: the key is taken from the new one.
    """
    if change.old is not None:
        named = {column.name: value for column, value in zip(relation.columns, change.old, strict=True)}
        if not change.old_is_key:
            return named
        keys = {column.name for column in relation.columns if column.key}
        return {name: value for name, value in named.items() if name in keys}
    if change.new is None:
        return {}
    return {
        name: _value(change.new, relation, name) for name in table.primary_key if name in relation.indexes
    }


def new_row(
    change: Change, relation: Relation, old: dict[str, str | Unchanged | None]
) -> dict[str, str | None]:
    """Return the row after the change; a large value that the WAL does not repeat is taken from ``old``."""
    if change.new is None:
        return {}
    row = {}
    for column, value in zip(relation.columns, change.new, strict=True):
        known = old.get(column.name, value) if isinstance(value, Unchanged) else value
        if not isinstance(known, Unchanged):
            row[column.name] = known
    return row


class Writer:
    """Writes documents of one change for different readers."""

    def __init__(
        self, catalogue: Catalogue, relation: Relation, table: Table, change: Change, at: datetime
    ) -> None:
        self._catalogue = catalogue
        self._relation = relation
        self._table = table
        self._change = change
        self._at = at
        self.old = old_row(change, relation, table)
        self.new = new_row(change, relation, self.old)

    @property
    def key(self) -> tuple[str | None, ...]:
        """The primary key of the new row."""
        return tuple(self.new.get(name) for name in self._table.primary_key)

    async def document(self, readable: frozenset[str], selected: frozenset[str] | None) -> str:
        """Return the document for a role that may read ``readable``, of a binding that wants ``selected``."""
        shown = readable if selected is None else readable & (selected | frozenset(self._table.primary_key))
        document = await self._write(shown, None)
        if len(document.encode()) > LARGEST_DOCUMENT:
            document = await self._write(shown, KEPT_OF_A_LARGE_ROW)
        return document

    async def _write(self, shown: frozenset[str], longest: int | None) -> str:
        columns = [
            {"name": name, "type": self._table.types[oid].name}
            for name, oid in self._table.columns.items()
            if name in shown
        ]
        errors = '["Error 413: Payload Too Large"]' if longest is not None else "null"
        parts = [
            f'"schema":{dumps(self._relation.schema)},"table":{dumps(self._relation.name)}',
            f'"commit_timestamp":"{timestamp(self._at)}","type":"{self._change.event}"',
            f'"columns":{dumps(columns)},"errors":{errors}',
        ]
        if self._change.event != "DELETE":
            parts.append(f'"record":{await self._record(self.new, shown, longest)}')
        if self._change.event != "INSERT":
            old = {name: value for name, value in self.old.items() if not isinstance(value, Unchanged)}
            if self._change.event == "DELETE" and self._table.row_security:
                # nobody can be asked about a row that is gone, so only its key is told
                old = {name: value for name, value in old.items() if name in self._table.primary_key}
            parts.append(f'"old_record":{await self._record(old, shown, longest)}')
        return f"{{{','.join(parts)}}}"

    async def _record(self, row: dict[str, str | None], shown: frozenset[str], longest: int | None) -> str:
        values = []
        for name, text in row.items():
            if name not in shown or (
                longest is not None and text is not None and len(text.encode()) > longest
            ):
                continue
            values.append(f"{dumps(name)}:{await self._json(name, text)}")
        return f"{{{','.join(values)}}}"

    async def _json(self, name: str, text: str | None) -> str:
        if text is None:
            return "null"
        oid = self._relation.columns[self._relation.indexes[name]].type_oid
        type_ = self._table.types.get(oid)
        if type_ is None:  # the type was dropped since
            return dumps(text)
        return await self._catalogue.to_json(type_, text) if type_.to_json is None else type_.to_json(text)


def _value(row: Row, relation: Relation, name: str) -> str | Unchanged | None:
    return row[relation.indexes[name]]
