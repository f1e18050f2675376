"""Build the SQL that inserts, updates and deletes rows."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from processor.local.rest.errors import RestError, unsupported
from processor.local.rest.query import Parameters
from processor.local.rest.read import Reader, check_columns, needed_columns
from processor.local.rest.request import Preferences
from processor.local.rest.schema import SCHEMA, Relation, literal, quote

BODY = '"_rest_body"'


@dataclass(frozen=True, slots=True)
class Write:
    """One write, of which the answer may return the rows.

    Args:
        reader: takes the parameters of the statement.
        relation: what is written to.
        parameters: of the query string.
        wishes: decide on conflicts, defaults and what is returned.

    """

    reader: Reader
    relation: Relation
    parameters: Parameters
    wishes: Preferences

    def insert(self, text: str, parsed: Any) -> str:
        """Return ``insert … returning …`` for one object or a list of them.

        Raises:
            RestError: the body is not of that shape, or names unknown columns.

        """
        relation = self.relation
        records = parsed if isinstance(parsed, list) else [parsed]
        columns = self._columns(records)
        into = f"insert into {quote(SCHEMA, relation.name)} as {quote(relation.name)}"
        if not columns:
            return f"{into} {_nothing_but_defaults(relation, records)} {self._returning()}"
        source = self.reader.statement.value(text if isinstance(parsed, list) else f"[{text}]")
        names = ", ".join(quote(name) for name in columns)
        if self.wishes.values.get("missing") == "default":
            defaults = ", ".join(
                f"{literal(name)}, {relation.defaults[name]}" for name in columns if name in relation.defaults
            )
            rows = (
                f"jsonb_array_elements({source}::jsonb) element, lateral jsonb_to_record("
                f"jsonb_build_object({defaults}) || element.value) as {BODY}({_typed(relation, columns)})"
            )
        else:
            rows = f"json_to_recordset({source}::json) as {BODY}({_typed(relation, columns)})"
        selected = ", ".join(f"{BODY}.{quote(name)}" for name in columns)
        conflict = self._on_conflict(columns)
        return f"{into} ({names}) select {selected} from {rows}{conflict} {self._returning()}"

    def update(self, text: str, parsed: Any) -> str:
        """Return ``update … returning …`` that sets what the object says.

        Raises:
            RestError: the body is no object, names unknown columns, or there is no filter.

        """
        if not isinstance(parsed, dict):
            raise RestError(
                400, "PGRST102", "Empty or invalid json", details="An update takes one JSON object."
            )
        columns = self._columns([parsed])
        table, alias = quote(SCHEMA, self.relation.name), quote(self.relation.name)
        where = self._required_where("UPDATE")
        if not columns:  # nothing to set touches nothing
            return f"select {alias}.* from {table} {alias} where false"
        typed = _typed(self.relation, columns)
        settings = ", ".join(f"{quote(name)} = {BODY}.{quote(name)}" for name in columns)
        source = f"json_to_record({self.reader.statement.value(text)}::json) as {BODY}({typed})"
        return f"update {table} as {alias} set {settings} from {source}{where} {self._returning()}"

    def delete(self) -> str:
        """Return ``delete … returning …``.

        Raises:
            RestError: there is no filter.

        """
        table, alias = quote(SCHEMA, self.relation.name), quote(self.relation.name)
        return f"delete from {table} as {alias}{self._required_where('DELETE')} {self._returning()}"

    def _columns(self, records: list[Any]) -> tuple[str, ...]:
        if not all(isinstance(record, dict) for record in records):
            details = "A row is a JSON object; rows are a list of them."
            raise RestError(400, "PGRST102", "Empty or invalid json", details=details)
        if self.parameters.columns is not None:
            columns = self.parameters.columns
        else:
            columns = tuple(records[0]) if records else ()
            if any(record.keys() != records[0].keys() for record in records):
                raise RestError(400, "PGRST102", "All object keys must match")
        check_columns(self.relation, columns)
        return columns

    def _returning(self) -> str:
        """Return no more than the answer needs, since reading takes privileges."""
        relation, query = self.relation, self.parameters.query
        alias = quote(relation.name)
        names: list[str] = []
        if self.wishes.returning == "headers-only":
            names = list(relation.primary_key)
        elif self.wishes.returning == "representation":
            if query.star:
                return f"returning {alias}.*"
            names = needed_columns(query, lambda embed: self.reader.join(relation, embed))
        return f"returning {', '.join(f'{alias}.{quote(name)}' for name in names) or '1'}"

    def _on_conflict(self, columns: tuple[str, ...]) -> str:
        resolution = self.wishes.values.get("resolution")
        target = self.parameters.on_conflict or self.relation.primary_key
        if resolution is None or not target:
            return ""
        names = ", ".join(quote(name) for name in target)
        if resolution == "ignore-duplicates":
            return f" on conflict ({names}) do nothing"
        settings = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in columns)
        return f" on conflict ({names}) do update set {settings}"

    def _required_where(self, verb: str) -> str:
        query = self.parameters.query
        if query.limit is not None or query.offset:
            raise unsupported(f"limit and offset of {verb.lower()}s")
        where = self.reader.where(self.relation, query)
        if not where:  # as on a Supabase project, where the extension safeupdate says so
            raise RestError(400, "21000", f"{verb} requires a WHERE clause")
        return where


def _typed(relation: Relation, columns: tuple[str, ...]) -> str:
    return ", ".join(f"{quote(name)} {relation.columns[name].name}" for name in columns)


def _nothing_but_defaults(relation: Relation, records: list[Any]) -> str:
    if len(records) == 1:
        return "default values"
    if records:
        raise unsupported("inserting several empty objects at once")
    first = next(iter(relation.columns))
    return f"({quote(first)}) select null::{relation.columns[first].name} where false"
