"""What the catalogs know about a published table: columns, types, key, row security, and who may read it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from processor.local.realtime.filters import KEYWORDS, LONGEST_LIST, Filter, FilterError, Matcher, matcher
from processor.local.realtime.values import ToJson, Type, array, parse_array, scalar

# a change of a table or its grants shows in the WAL; a change of a role does not, so look again after this
ACCESS_LIFETIME = 2.0
XIDS = 2**32
PATTERNS = {"like": "~~", "ilike": "~~*", "match": "~", "imatch": "~*"}

TABLES = """
select c.oid, n.nspname::text as schema, c.relname::text as name, c.relrowsecurity as row_security,
  coalesce((
    select array_agg(a.attname::text order by k.position)
    from pg_index i
    cross join unnest(i.indkey) with ordinality as k (attnum, position)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = c.oid and i.indisprimary
  ), '{}') as primary_key,
  (select array_agg(a.attname::text order by a.attnum)
   from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as names,
  (select array_agg(a.atttypid order by a.attnum)
   from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as types
from pg_class c join pg_namespace n on n.oid = c.relnamespace
"""

PUBLISHED = """
join pg_publication_tables p on p.schemaname = n.nspname and p.tablename = c.relname
where p.pubname = $1::text and $2::text in ('*', n.nspname::text) and $3::text in ('*', c.relname::text)
order by c.oid
"""

TYPES = """
select t.oid, t.typname::text as name, format_type(t.oid, null) as sql, t.typtype::text as kind,
  t.typcategory::text as category, t.typbasetype as base, t.typelem as element, t.typdelim::text as delimiter,
  t.typcategory = 'A' and t.typelem <> 0 and t.typlen = -1 as is_array,
  exists (
    select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype and c.castfunc <> 0
  ) as casts_to_json
from pg_type t where t.oid = any ($1::oid[])
"""

ACCESS = """
select r.rolbypassrls or r.rolsuper as bypasses,
  array(
    select a.attname::text from pg_attribute a
    where a.attrelid = $2 and a.attnum > 0 and not a.attisdropped
      and has_column_privilege(r.oid, a.attrelid, a.attnum, 'select')
  ) as readable
from pg_roles r where r.rolname = $1::text and pg_has_role('authenticator', r.oid, 'member')
"""


@dataclass(frozen=True, slots=True)
class Access:
    """What one role may see of one table."""

    readable: frozenset[str]
    bypasses_row_security: bool


@dataclass(eq=False)
class Table:
    """A table as the catalogs describe it now. ``columns`` are in order; ``types`` go by OID."""

    oid: int
    schema: str
    name: str
    primary_key: tuple[str, ...]
    row_security: bool
    columns: dict[str, int]
    types: dict[int, Type]
    access: dict[str, tuple[float, Access]] = field(default_factory=dict)
    matchers: dict[Filter, Matcher | None] = field(default_factory=dict)

    @property
    def sql(self) -> str:
        """The qualified, quoted name."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    def type_of(self, column: str) -> Type:
        """Return the type of a column that exists."""
        return self.types[self.columns[column]]


def quote(name: str) -> str:
    """Quote an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def refusal(event: str, table: Table, access: Access) -> str | None:
    """Return why nothing but the fact of a change can be told, if that is so."""
    if event == "DELETE":
        return None
    if not table.primary_key:
        return "Error 400: Bad Request, no primary key"
    if not access.readable.issuperset(table.primary_key):
        return "Error 401: Unauthorized"
    return None


class Catalogue:
    """Tables by OID, remembered until the WAL says that they have changed.

    It asks as the superuser: types may live in schemas that the API roles must not see.
    """

    def __init__(self, pool: asyncpg.Pool, publication: str) -> None:
        self._pool = pool
        self._publication = publication
        self._tables: dict[int, Table] = {}

    def forget(self, oid: int | None = None) -> None:
        """Drop what is known about one table, or about all."""
        if oid is None:
            self._tables.clear()
        else:
            self._tables.pop(oid, None)

    def known(self, oid: int) -> Table | None:
        """Return the table if it is remembered."""
        return self._tables.get(oid)

    async def table(self, oid: int, type_oids: Iterable[int]) -> Table | None:
        """Return the table, or None if it is gone. ``type_oids`` are further types needed for its rows."""
        table = self._tables.get(oid)
        if table is None:
            row = await self._pool.fetchrow(f"{TABLES} where c.oid = $1", oid)
            if row is None:
                return None
            table = self._tables[oid] = await self._table(row, type_oids)
        return table

    async def published(self, schema: str, name: str) -> list[Table]:
        """Return the tables of the publication with this schema and name; ``*`` means any."""
        rows = await self._pool.fetch(TABLES + PUBLISHED, self._publication, schema, name)
        return [await self._table(row, ()) for row in rows]

    async def access(self, table: Table, role: str) -> Access:
        """Return what ``role`` may read, at most two seconds old.

        A role that the gateway may not switch to may read nothing, whatever it is in the database.
        """
        now = time.monotonic()
        found = table.access.get(role)
        if found is None or found[0] <= now:
            row = await self._pool.fetchrow(ACCESS, role, table.oid)
            access = (
                Access(frozenset(), bypasses_row_security=False)
                if row is None
                else Access(frozenset(row["readable"]), row["bypasses"])
            )
            found = table.access[role] = (now + ACCESS_LIFETIME, access)
        return found[1]

    async def unseen(self, xids: Iterable[int]) -> bool:
        """Tell whether some of these transactions, given by their lower 32 bits, are not yet visible."""
        snapshot: str = await self._pool.fetchval("select pg_current_snapshot()::text")
        _, xmax, running = snapshot.split(":")
        in_progress = {int(xid) % XIDS for xid in running.split(",") if xid}
        # transaction numbers go round: later means less than half a turn ahead
        return any(xid in in_progress or (xid - int(xmax)) % XIDS < XIDS // 2 for xid in xids)

    async def bind(self, condition: Filter, table: Table) -> Matcher | None:
        """Make a condition comparable with a column's text; None means that `compare` must be asked.

        Raises:
            FilterError: the column does not exist, or the value or operator does not fit its type.

        """
        if condition not in table.matchers:
            if condition.column not in table.columns:
                raise FilterError(f"invalid column for filter {condition.column}")
            type_ = table.type_of(condition.column)
            table.matchers[condition] = matcher(condition, type_, await self._canonical(condition, type_))
        return table.matchers[condition]

    async def compare(self, condition: Filter, table: Table, text: str | None) -> bool:
        """Let the database compare; null means no."""
        sql = condition.sql(table.type_of(condition.column))
        return await self._pool.fetchval(sql, text, condition.value) is True

    async def to_json(self, type_: Type, text: str) -> str:
        """Let the database write a value as JSON text."""
        written: str = await self._pool.fetchval(f"select to_jsonb($1::text::{type_.sql})::text", text)
        return written

    async def _canonical(self, condition: Filter, type_: Type) -> str:
        """Check that the value fits the type, and return it as the server would write it."""
        operator, value = condition.operator, condition.value
        if operator == "is":
            return _keyword(value, type_)
        if operator in PATTERNS:
            return await self._pattern(operator, value, type_)
        if operator == "in":
            _check_list(value)
        sql = f"{type_.sql}[]" if operator == "in" else type_.sql
        try:
            # unlike a cast to text, format() writes booleans as the WAL has them
            text: str = await self._pool.fetchval(f"select format('%s', $1::text::{sql})", value)
        except (asyncpg.DataError, asyncpg.SyntaxOrAccessError) as error:
            raise FilterError(str(error)) from error
        return text

    async def _pattern(self, operator: str, value: str, type_: Type) -> str:
        exists = await self._pool.fetchval(
            "select exists (select from pg_operator where oprname = $1 and oprleft = $2::text::regtype)",
            PATTERNS[operator],
            type_.sql,
        )
        if not exists:
            raise FilterError(f"operator {operator} requires a text-compatible column type, got {type_.sql}")
        if operator in ("match", "imatch"):
            try:
                await self._pool.fetchval("select '' ~ $1::text", value)
            except asyncpg.PostgresError as error:
                raise FilterError(f"invalid regular expression for {operator} filter: {error}") from error
        return value

    async def _table(self, row: asyncpg.Record, type_oids: Iterable[int]) -> Table:
        columns = dict(zip(row["names"] or (), row["types"] or (), strict=True))
        return Table(
            oid=row["oid"],
            schema=row["schema"],
            name=row["name"],
            primary_key=tuple(row["primary_key"]),
            row_security=row["row_security"],
            columns=columns,
            types=await self._types({*columns.values(), *type_oids}),
        )

    async def _types(self, oids: set[int]) -> dict[int, Type]:
        rows: dict[int, asyncpg.Record] = {}
        wanted = oids
        while wanted:
            found: Sequence[Any] = await self._pool.fetch(TYPES, list(wanted))
            rows |= {row["oid"]: row for row in found}
            wanted = {related for row in found for related in (row["base"], row["element"]) if related}
            wanted -= rows.keys()
        return {oid: _type(oid, rows) for oid in oids if oid in rows}


def _check_list(value: str) -> None:
    try:
        listed = parse_array(value)
    except ValueError as error:
        raise FilterError(f"malformed list for `in` filter: {error}") from error
    if isinstance(listed, list) and len(listed) > LONGEST_LIST:
        raise FilterError(f"too many values for `in` filter. Maximum {LONGEST_LIST}")


def _keyword(value: str, type_: Type) -> str:
    if value not in KEYWORDS:
        raise FilterError("invalid value for is filter: must be null, true, false, or unknown")
    if value != "null" and type_.base != "bool":
        raise FilterError(f"is {value} filter requires a boolean column, got {type_.sql}")
    return value


def _type(oid: int, rows: dict[int, asyncpg.Record]) -> Type:
    row = base = rows[oid]
    while base["kind"] == "d" and base["base"] in rows:
        base = rows[base["base"]]
    return Type(row["name"], row["sql"], base["name"], base["category"], _converter(base, rows))


def _converter(row: asyncpg.Record, rows: dict[int, asyncpg.Record]) -> ToJson | None:
    if row["is_array"] and row["element"] in rows:
        element = _type(row["element"], rows).to_json
        return None if element is None else array(element, rows[row["element"]]["delimiter"])
    if row["kind"] == "c" or (row["casts_to_json"] and row["name"] not in ("json", "jsonb")):
        return None
    return scalar(row["name"])
