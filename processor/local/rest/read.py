"""Build the SQL that reads a relation, or the rows that a function or a write returned."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from processor.local.rest.errors import RestError, no_column, unsupported
from processor.local.rest.query import (
    COMPARISONS,
    INTEGER,
    PATTERNS,
    SEARCHES,
    Column,
    Condition,
    Embed,
    Field,
    Logic,
    Order,
    Query,
)
from processor.local.rest.request import Accept
from processor.local.rest.schema import SCHEMA, Link, Relation, Schema, Type, literal, quote

# What a Supabase project returns at most for one request (its setting "Max rows").
MAX_ROWS = 1000
TEXT = Type("pg_catalog.text", "pg_catalog._text")
JSONB = Type("pg_catalog.jsonb", "pg_catalog._jsonb")
ROW = '"_rest_row"'


@dataclass(slots=True)
class Statement:
    """SQL with its parameters, all of them text or text[]; casts say what they are meant to be."""

    values: list[str | list[str]] = field(default_factory=list)
    sql: str = ""
    estimate: Statement | None = None  # its plan estimates the number of all rows
    unchecked: bool = False  # its answer needs no look before it is committed; at most two parameters, text

    def value(self, value: str | list[str]) -> str:
        """Add a parameter; return its place in the SQL."""
        self.values.append(value)
        return f"${len(self.values)}::text{'[]' if isinstance(value, list) else ''}"


class Reader:
    """Builds one statement's reading part.

    Args:
        schema: what exists.
        statement: takes the parameters.

    """

    def __init__(self, schema: Schema, statement: Statement) -> None:
        self.schema = schema
        self.statement = statement
        self._aliases = 0

    def rows(
        self,
        relation: Relation,
        query: Query,
        source: str,
        *,
        accept: Accept,
        count: bool = False,
        head: bool = False,
        filtered: bool = True,
        limited: bool = True,
    ) -> str:
        """Return the select whose one row has ``total``, ``rows`` and ``body``.

        Args:
            relation: describes the columns.
            query: what is asked of it.
            source: what to select from, quoted.
            accept: the shape of ``body``.
            count: whether ``total`` counts all rows, also those beyond the limit.
            head: whether the body is left out.
            filtered: whether the query's conditions apply here (a write has applied them already).
            limited: whether limits apply.

        """
        where = self._where(relation, query, relation.name) if filtered else ""
        inner = self._select(relation, query, source, relation.name, where, limited=limited)
        total = f"(select count(*) from {source} {quote(relation.name)}{where})" if count else "null::bigint"
        return (
            f"select {total} as total, rows, body from "
            f"(select count(*) as rows, {body(ROW, accept, head=head)} as body from ({inner}) {ROW}) answer"
        )

    def everything(self, relation: Relation, query: Query, source: str) -> str:
        """Return a select of all rows that match, for its plan."""
        where = self._where(relation, query, relation.name)
        return f"select 1 from {source} {quote(relation.name)}{where}"

    def where(self, relation: Relation, query: Query) -> str:
        """Return ``where …`` for a write: only conditions on the relation itself."""
        return self._where(relation, query, relation.name)

    def _alias(self, name: str) -> str:
        self._aliases += 1
        return f"{name}_{self._aliases}"

    def _select(
        self, relation: Relation, query: Query, source: str, alias: str, where: str, *, limited: bool = True
    ) -> str:
        columns = [f"{quote(alias)}.*"] if query.star else []
        for column in query.columns:
            if isinstance(column, Column):
                columns.append(self._column(relation, column, alias))
            elif column.query.star or column.query.columns:
                columns.append(f"{self._embedded(relation, column, alias)} as {quote(column.name)}")
        sql = f"select {', '.join(columns)} from {source} {quote(alias)}{where}"
        if query.order:
            sql += f" order by {', '.join(self._term(relation, term, alias) for term in query.order)}"
        if limited:
            limit = MAX_ROWS if query.limit is None else min(query.limit, MAX_ROWS)
            sql += f" limit {self.statement.value(str(limit))}::bigint"
            if query.offset:
                sql += f" offset {self.statement.value(str(query.offset))}::bigint"
        return sql

    def _column(self, relation: Relation, column: Column, alias: str) -> str:
        sql = self._field(relation, column.field, alias)
        if column.cast:
            sql = f"cast({sql} as {column.cast})"  # the grammar lets only words through
        return f"{sql} as {quote(column.alias or _output_name(column.field))}"

    def _field(self, relation: Relation, target: Field, alias: str) -> str:
        sql = quote(alias, target.name)
        if target.path:
            known = relation.columns.get(target.name)
            if known is None or not known.is_json:
                sql = f"to_jsonb({sql})"
            for arrow, key in target.path:
                sql += arrow + (f"({int(key)})" if INTEGER.match(key) else literal(key))
            sql = f"({sql})"
        return sql

    def _type(self, relation: Relation, target: Field) -> Type:
        if target.path:
            return TEXT if target.path[-1][0] == "->>" else JSONB
        if target.name not in relation.columns:
            raise no_column(relation.name, target.name)
        return relation.columns[target.name]

    def _term(self, relation: Relation, term: Order, alias: str) -> str:
        direction = " desc" if term.descending else ""
        nulls = f" nulls {term.nulls}" if term.nulls else ""
        return self._field(relation, term.field, alias) + direction + nulls

    def _embedded(self, relation: Relation, embed: Embed, parent: str) -> str:
        join = self.join(relation, embed)
        child = self._alias(join.target)
        target = self.schema.relations[join.target]
        where = self._where(target, embed.query, child, join.on(parent, child))
        rows = self._select(target, embed.query, quote(SCHEMA, target.name), child, where)
        if join.single:
            return f"(select row_to_json({ROW}) from ({rows}) {ROW})"
        return f"(select coalesce(json_agg({ROW}), '[]'::json) from ({rows}) {ROW})"

    def _where(self, relation: Relation, query: Query, alias: str, *conditions: str) -> str:
        parts = [*conditions]
        embeds = {embed.name: embed for embed in query.embeds}
        for condition in query.where:
            embed = embeds.get(condition.field.name) if isinstance(condition, Condition) else None
            if embed is not None and isinstance(condition, Condition) and not condition.field.path:
                parts.append(self._presence(relation, embed, alias, condition))
            else:
                parts.append(self._logic(relation, condition, alias))
        parts += [self._exists(relation, embed, alias) for embed in query.embeds if embed.inner]
        return f" where {' and '.join(parts)}" if parts else ""

    def _presence(self, relation: Relation, embed: Embed, alias: str, condition: Condition) -> str:
        """``resource=is.null`` and ``resource=not.is.null``: whether anything was embedded."""
        if condition.operator != "is" or condition.value not in {"null", "not_null"}:
            raise RestError(
                400,
                "PGRST120",
                f"Bad operator on the '{embed.name}' embedded resource",
                details="Only is null or not is null filters are allowed on embedded resources",
            )
        wanted = condition.negated == (condition.value == "null")
        return ("" if wanted else "not ") + self._exists(relation, embed, alias)

    def _exists(self, relation: Relation, embed: Embed, parent: str) -> str:
        join = self.join(relation, embed)
        child = self._alias(join.target)
        target = self.schema.relations[join.target]
        where = self._where(target, embed.query, child, join.on(parent, child))
        return f"exists (select 1 from {quote(SCHEMA, target.name)} {quote(child)}{where})"

    def _logic(self, relation: Relation, part: Condition | Logic, alias: str) -> str:
        if isinstance(part, Condition):
            sql = self._condition(relation, part, alias)
        else:
            sql = f" {part.operator} ".join(self._logic(relation, inner, alias) for inner in part.parts)
        return f"not ({sql})" if part.negated else f"({sql})"

    def _condition(self, relation: Relation, condition: Condition, alias: str) -> str:
        kind = self._type(relation, condition.field)
        left = self._field(relation, condition.field, alias)
        operator, value, option = condition.operator, condition.value, condition.option
        if isinstance(value, tuple):
            return f"{left} = any ({self.statement.value(list(value))}::{_array(kind, operator)})"
        if operator == "is":
            return f"{left} is {'not null' if value == 'not_null' else value}"
        if operator == "isdistinct":
            return f"{left} is distinct from {self.statement.value(value)}::{kind.name}"
        if operator in SEARCHES:
            return self._search(kind, left, SEARCHES[operator], value, option)
        if operator in PATTERNS:
            kind, symbol = TEXT, PATTERNS[operator]
            value = value.replace("*", "%") if operator in {"like", "ilike"} else value
        else:
            symbol = COMPARISONS[operator]
        if option:
            return f"{left} {symbol} {option} ({self.statement.value(value)}::{_array(kind, operator)})"
        return f"{left} {symbol} {self.statement.value(value)}::{kind.name}"

    def _search(self, kind: Type, left: str, function: str, value: str, language: str | None) -> str:
        config = f"{self.statement.value(language)}::regconfig, " if language else ""
        document = left if kind.name == "pg_catalog.tsvector" else f"to_tsvector({config}{left})"
        return f"{document} @@ {function}({config}{self.statement.value(value)})"

    def join(self, relation: Relation, embed: Embed) -> Join:
        """Find the one relationship between a relation and what is embedded in it.

        Raises:
            RestError: there is none (PGRST200) or more than one (PGRST201).

        """
        found = [Join(link.target, link.single, [link]) for link in relation.links if _leads_to(link, embed)]
        if not found:
            found = list(self._junctions(relation, embed))
        if len(found) > 1:
            raise _ambiguous(relation, embed, found)
        if not found:
            by_hint = f" using the hint '{embed.hint}'" if embed.hint else ""
            raise RestError(
                400,
                "PGRST200",
                f"Could not find a relationship between '{relation.name}' and '{embed.target}' "
                "in the schema cache",
                details=f"Searched for a foreign key relationship between '{relation.name}' and "
                f"'{embed.target}'{by_hint} in the schema '{SCHEMA}', but no matches were found.",
            )
        return found[0]

    def _junctions(self, relation: Relation, embed: Embed) -> list[Join]:
        """Many-to-many: a table in between whose primary key holds both foreign keys."""
        joins = []
        for near in relation.links:
            between = self.schema.relations[near.target]
            if near.owns:
                continue
            for far in between.links:
                keys = {*near.target_columns, *far.columns}
                if (
                    far.owns
                    and far.constraint != near.constraint
                    and far.target == embed.target
                    and embed.hint in {None, between.name}
                    and keys <= set(between.primary_key)
                ):
                    joins.append(Join(far.target, single=False, links=[near, far]))
        return joins


@dataclass(frozen=True, slots=True)
class Join:
    """How an embedded relation belongs to its parent: by one foreign key, or two and a table in between."""

    target: str
    single: bool
    links: list[Link]

    def on(self, parent: str, child: str) -> str:
        """Return the condition between the two aliases."""
        near = self.links[0]
        if len(self.links) == 1:
            return _pairs(near, parent, child)
        far, between = self.links[1], f"{child}_between"
        return (
            f"exists (select 1 from {quote(SCHEMA, near.target)} {quote(between)} "
            f"where {_pairs(near, parent, between)} and {_pairs(far, between, child)})"
        )


def body(row: str, accept: Accept, *, head: bool = False, single: bool = False) -> str:
    """Return the expression that makes the JSON text of all rows."""
    if head:
        return "null::text"
    sql = f"json_agg({row})"
    if accept.strip_nulls:
        sql = f"json_strip_nulls({sql})"
    return (
        f"coalesce(({sql} -> 0)::text, 'null')" if single or accept.single else f"coalesce({sql}::text, '[]')"
    )


def check_columns(relation: Relation, names: tuple[str, ...]) -> None:
    """Raise PGRST204 if a name is no column of the relation."""
    for name in names:
        if name not in relation.columns:
            raise RestError(
                400,
                "PGRST204",
                f"Could not find the '{name}' column of '{relation.name}' in the schema cache",
            )


def needed_columns(query: Query, links: Callable[[Embed], Join]) -> list[str]:
    """Name the columns a write must return so that the query can be answered from them."""
    names = [column.field.name for column in query.columns if isinstance(column, Column)]
    names += [term.field.name for term in query.order]
    for embed in query.embeds:
        names += links(embed).links[0].columns
    return list(dict.fromkeys(names))


def _output_name(target: Field) -> str:
    keys = [key for _, key in target.path if not INTEGER.match(key)]
    return keys[-1] if keys else target.name


def _array(kind: Type, operator: str) -> str:
    if kind.array is None:
        raise unsupported(f"'{operator}' on a column of type {kind.name}")
    return kind.array


def _pairs(link: Link, here: str, there: str) -> str:
    return " and ".join(
        f"{quote(here, mine)} = {quote(there, theirs)}"
        for mine, theirs in zip(link.columns, link.target_columns, strict=True)
    )


def _leads_to(link: Link, embed: Embed) -> bool:
    by_key = link.owns and (link.constraint == embed.target or link.columns == (embed.target,))
    if link.target != embed.target and not by_key:
        return False
    keys = link.columns if link.owns else link.target_columns
    return embed.hint is None or embed.hint == link.constraint or keys == (embed.hint,)


def _ambiguous(relation: Relation, embed: Embed, found: list[Join]) -> RestError:
    names = ", ".join(f"'{embed.target}!{join.links[0].constraint}'" for join in found)
    return RestError(
        300,
        "PGRST201",
        f"Could not embed because more than one relationship was found for '{relation.name}' and "
        f"'{embed.target}'",
        hint=f"Try changing '{embed.target}' to one of the following: {names}.",
    )
