"""Build the SQL that inserts, updates and deletes rows."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

from typing import Any

from processor.local.rest.errors import RestError, unsupported
from processor.local.rest.query import Parameters
from processor.local.rest.read import Reader, check_columns, needed_columns
from processor.local.rest.request import Preferences
from processor.local.rest.schema import SCHEMA, Relation, literal, quote

BODY = '"_rest_body"'


def insert(
    reader: Reader,
    relation: Relation,
    parameters: Parameters,
    wishes: Preferences,
    payload: tuple[str, Any],
    returning: str,
) -> str:
    """Return ``insert … returning …`` for one object or a list of them.

    Raises:
        RestError: the body is not of that shape, or names unknown columns.

    """
    text, parsed = payload
    records = parsed if isinstance(parsed, list) else [parsed]
    columns = _columns(relation, parameters, records)
    into = f"insert into {quote(SCHEMA, relation.name)} as {quote(relation.name)}"
    if not columns:
        return f"{into} {_nothing_but_defaults(relation, records)} {returning}"
    source = reader.statement.value(text if isinstance(parsed, list) else f"[{text}]")
    typed = ", ".join(f"{quote(name)} {relation.columns[name].name}" for name in columns)
    names = ", ".join(quote(name) for name in columns)
    if wishes.values.get("missing") == "default":
        defaults = ", ".join(
            f"{literal(name)}, {relation.defaults[name]}" for name in columns if name in relation.defaults
        )
        rows = (
            f"jsonb_array_elements({source}::jsonb) element, lateral "
            f"jsonb_to_record(jsonb_build_object({defaults}) || element.value) as {BODY}({typed})"
        )
    else:
        rows = f"json_to_recordset({source}::json) as {BODY}({typed})"
    selected = ", ".join(f"{BODY}.{quote(name)}" for name in columns)
    conflict = _on_conflict(relation, parameters, wishes, columns)
    return f"{into} ({names}) select {selected} from {rows}{conflict} {returning}"


def update(
    reader: Reader, relation: Relation, parameters: Parameters, payload: tuple[str, Any], returning: str
) -> str:
    """Return ``update … returning …`` that sets what the object says.

    Raises:
        RestError: the body is no object, names unknown columns, or there is no filter.

    """
    text, parsed = payload
    if not isinstance(parsed, dict):
        raise RestError(400, "PGRST102", "Empty or invalid json", details="An update takes one JSON object.")
    columns = _columns(relation, parameters, [parsed])
    table, alias = quote(SCHEMA, relation.name), quote(relation.name)
    where = _required_where("UPDATE", reader, relation, parameters)
    if not columns:  # nothing to set touches nothing
        return f"select {alias}.* from {table} {alias} where false"
    typed = ", ".join(f"{quote(name)} {relation.columns[name].name}" for name in columns)
    settings = ", ".join(f"{quote(name)} = {BODY}.{quote(name)}" for name in columns)
    source = f"json_to_record({reader.statement.value(text)}::json) as {BODY}({typed})"
    return f"update {table} as {alias} set {settings} from {source}{where} {returning}"


def delete(reader: Reader, relation: Relation, parameters: Parameters, returning: str) -> str:
    """Return ``delete … returning …``.

    Raises:
        RestError: there is no filter.

    """
    where = _required_where("DELETE", reader, relation, parameters)
    return f"delete from {quote(SCHEMA, relation.name)} as {quote(relation.name)}{where} {returning}"


def returning(reader: Reader, relation: Relation, parameters: Parameters, wishes: Preferences) -> str:
    """Return the RETURNING clause: no more than the answer needs, since reading takes privileges."""
    alias = quote(relation.name)
    query = parameters.query
    if wishes.returning == "headers-only" and relation.primary_key:
        names = list(relation.primary_key)
    elif wishes.returning != "representation":
        names = []
    elif query.star:
        return f"returning {alias}.*"
    else:
        names = needed_columns(query, lambda embed: reader.join(relation, embed))
    return f"returning {', '.join(f'{alias}.{quote(name)}' for name in names) or '1'}"


def _columns(relation: Relation, parameters: Parameters, records: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(record, dict) for record in records):
        raise RestError(
            400,
            "PGRST102",
            "Empty or invalid json",
            details="A row is a JSON object; rows are a list of them.",
        )
    if parameters.columns is not None:
        columns = parameters.columns
    else:
        columns = tuple(records[0]) if records else ()
        if any(record.keys() != records[0].keys() for record in records):
            raise RestError(400, "PGRST102", "All object keys must match")
    check_columns(relation, columns)
    return columns


def _nothing_but_defaults(relation: Relation, records: list[Any]) -> str:
    if len(records) == 1:
        return "default values"
    if records:
        raise unsupported("inserting several empty objects at once")
    first = next(iter(relation.columns))
    return f"({quote(first)}) select null::{relation.columns[first].name} where false"


def _on_conflict(
    relation: Relation, parameters: Parameters, wishes: Preferences, columns: tuple[str, ...]
) -> str:
    resolution = wishes.values.get("resolution")
    target = parameters.on_conflict or relation.primary_key
    if resolution is None or not target:
        return ""
    names = ", ".join(quote(name) for name in target)
    if resolution == "ignore-duplicates":
        return f" on conflict ({names}) do nothing"
    settings = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in columns)
    return f" on conflict ({names}) do update set {settings}"


def _required_where(verb: str, reader: Reader, relation: Relation, parameters: Parameters) -> str:
    query = parameters.query
    if query.limit is not None or query.offset:
        raise unsupported(f"limit and offset of {verb.lower()}s")
    where = reader.where(relation, query)
    if not where:  # as on a Supabase project, where the extension safeupdate says so
        raise RestError(400, "21000", f"{verb} requires a WHERE clause")
    return where
