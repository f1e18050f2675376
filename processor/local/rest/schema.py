"""What the database has: relations, foreign keys, functions, roles. Read once, again when stale."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

SCHEMA = "public"

TYPES = """
select t.oid, quote_ident(n.nspname) || '.' || quote_ident(t.typname) as name, t.typarray,
  t.typtype::text as kind
from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
"""
COLUMNS = """
select c.oid, c.relname, c.reltype, c.relkind::text as relkind, a.attname, a.atttypid,
  pg_get_expr(d.adbin, d.adrelid) as default_sql, a.attidentity::text as identity
from pg_catalog.pg_class c
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_catalog.pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum and a.attgenerated = ''
where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
order by c.oid, a.attnum
"""
CONSTRAINTS = """
select k.conname, k.contype::text as kind, c.relname, f.relname as foreign_relname,
  array(select a.attname::text from unnest(k.conkey) with ordinality u(n, i)
    join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n order by u.i) as columns,
  array(select a.attname::text from unnest(k.confkey) with ordinality u(n, i)
    join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.n order by u.i)
    as foreign_columns
from pg_catalog.pg_constraint k
join pg_catalog.pg_class c on c.oid = k.conrelid
left join pg_catalog.pg_class f on f.oid = k.confrelid
where c.relnamespace = $1::text::regnamespace and k.contype in ('p', 'u', 'f') and k.conparentid = 0
  and (f.oid is null or f.relnamespace = c.relnamespace)
order by k.contype desc, k.conname
"""
FUNCTIONS = """
select p.oid, p.proname, p.proargnames, p.proargmodes::text[] as modes,
  coalesce(p.proallargtypes, p.proargtypes::oid[]) as types, p.pronargs, p.pronargdefaults,
  p.provariadic <> 0 as variadic, p.proretset, p.prorettype, p.provolatile::text as volatile
from pg_catalog.pg_proc p
where p.pronamespace = $1::text::regnamespace and p.prokind = 'f'
  and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
order by p.proname, p.oid
"""
ROLES = """
select rolname from pg_catalog.pg_roles
where pg_has_role(session_user, oid, 'member') and rolname <> session_user
"""


@dataclass(frozen=True, slots=True)
class Type:
    """A type by its quoted, qualified name; ``array`` is that of its array type, if it has one."""

    name: str
    array: str | None = None

    @property
    def is_json(self) -> bool:
        """Whether JSON paths apply to it as it is."""
        return self.name in {"pg_catalog.json", "pg_catalog.jsonb"}


@dataclass(frozen=True, slots=True)
class Link:
    """A foreign key seen from one of its sides; ``single`` when it leads to at most one row."""

    constraint: str
    target: str
    columns: tuple[str, ...]
    target_columns: tuple[str, ...]
    single: bool
    owns: bool  # whether the key's columns are on this side


@dataclass(slots=True)
class Relation:
    """A table, a view, or the rows of a function."""

    name: str
    columns: dict[str, Type] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    primary_key: tuple[str, ...] = ()
    links: list[Link] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of a function."""

    name: str
    type: Type
    required: bool
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """A function and the shape of what it returns; ``rows`` describes its columns if it has any."""

    name: str
    arguments: tuple[Argument, ...]
    rows: Relation | None
    returns_set: bool
    returns_void: bool
    volatile: bool

    def accepts(self, given: Iterable[str]) -> bool:
        """Tell whether it can be called with these named arguments."""
        names = set(given)
        known = {argument.name for argument in self.arguments}
        needed = {argument.name for argument in self.arguments if argument.required}
        return needed <= names <= known and "" not in known

    @property
    def takes_body(self) -> bool:
        """Whether the one, unnamed parameter takes the whole JSON body."""
        return len(self.arguments) == 1 and not self.arguments[0].name and self.arguments[0].type.is_json


@dataclass(slots=True)
class Schema:
    """One reading of the catalogs."""

    relations: dict[str, Relation] = field(default_factory=dict)
    functions: dict[str, list[Function]] = field(default_factory=dict)
    roles: frozenset[str] = frozenset()
    calls: dict[Hashable, tuple[Function, str, tuple[str | list[str], ...]]] = field(default_factory=dict)
    """Statements of calls that were made before, with their values after the body."""


class SchemaCache:
    """The latest reading, shared by all requests.

    Args:
        pool: connected as the role that switches to the API roles.

    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._schema: Schema | None = None
        self._stale = False
        self._reading = asyncio.Lock()

    def expire(self) -> None:
        """Have the next request read the catalogs again."""
        self._stale = True

    async def get(self) -> Schema:
        """Return the latest reading, the first time by reading."""
        if self._schema is None or self._stale:
            return await self.reload(self._schema)
        return self._schema

    async def reload(self, seen: Schema | None) -> Schema:
        """Read again, unless somebody did since the caller got ``seen``."""
        async with self._reading:
            if self._schema is None or self._schema is seen or self._stale:
                self._stale = False
                try:
                    async with self._pool.acquire() as connection:
                        self._schema = await _read(connection)
                except BaseException:
                    self._stale = True
                    raise
            return self._schema


async def _read(connection: PoolConnectionProxy[asyncpg.Record]) -> Schema:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        types = {record["oid"]: record for record in await connection.fetch(TYPES)}
        columns = await connection.fetch(COLUMNS, SCHEMA)
        constraints = await connection.fetch(CONSTRAINTS, SCHEMA)
        functions = await connection.fetch(FUNCTIONS, SCHEMA)
        roles = await connection.fetch(ROLES)

    def type_of(oid: int) -> Type:
        array = types.get(types[oid]["typarray"])
        return Type(types[oid]["name"], array["name"] if array else None)

    schema = Schema(roles=frozenset(record["rolname"] for record in roles))
    row_types: dict[int, Relation] = {}
    for record in columns:
        relation = schema.relations.setdefault(record["relname"], Relation(record["relname"]))
        row_types[record["reltype"]] = relation
        name = record["attname"]
        relation.columns[name] = type_of(record["atttypid"])
        if record["default_sql"] is not None:
            relation.defaults[name] = record["default_sql"]
        elif record["identity"]:
            sequence = f"pg_get_serial_sequence({literal(quote(SCHEMA, relation.name))}, {literal(name)})"
            relation.defaults[name] = f"nextval({sequence})"
    _link(schema, constraints)
    for record in functions:
        function = _function(record, types, type_of, row_types)
        schema.functions.setdefault(function.name, []).append(function)
    return schema


def _link(schema: Schema, constraints: list[asyncpg.Record]) -> None:
    unique: set[tuple[str, frozenset[str]]] = set()
    for record in constraints:  # unique and primary keys come before foreign keys
        relation = schema.relations[record["relname"]]
        columns = tuple(record["columns"])
        if record["kind"] == "p":
            relation.primary_key = columns
        if record["kind"] in {"p", "u"}:
            unique.add((relation.name, frozenset(columns)))
            continue
        target = schema.relations[record["foreign_relname"]]
        theirs = tuple(record["foreign_columns"])
        one_to_one = (relation.name, frozenset(columns)) in unique
        name = record["conname"]
        relation.links.append(Link(name, target.name, columns, theirs, single=True, owns=True))
        target.links.append(Link(name, relation.name, theirs, columns, single=one_to_one, owns=False))


def _function(
    record: asyncpg.Record,
    types: dict[int, asyncpg.Record],
    type_of: Callable[[int], Type],
    row_types: dict[int, Relation],
) -> Function:
    oids = record["types"]
    modes = record["modes"] or ["i"] * len(oids)
    names = record["proargnames"] or [""] * len(oids)
    inputs = [(names[i], oids[i], modes[i]) for i in range(len(oids)) if modes[i] in {"i", "b", "v"}]
    first_default = len(inputs) - record["pronargdefaults"]
    arguments = tuple(
        Argument(name, type_of(oid), required=i < first_default and mode != "v", variadic=mode == "v")
        for i, (name, oid, mode) in enumerate(inputs)
    )
    outputs = {names[i]: type_of(oids[i]) for i in range(len(oids)) if modes[i] in {"o", "b", "t"}}
    returned = types[record["prorettype"]]
    if outputs:
        rows: Relation | None = Relation(record["proname"], outputs)
    elif record["prorettype"] in row_types:
        rows = row_types[record["prorettype"]]
    elif returned["kind"] == "c":
        rows = Relation(record["proname"])
    else:
        rows = None
    return Function(
        name=record["proname"],
        arguments=arguments,
        rows=rows,
        returns_set=record["proretset"],
        returns_void=returned["name"] == "pg_catalog.void",
        volatile=record["volatile"] == "v",
    )


def quote(*names: str) -> str:
    """Quote an identifier, qualified if there are several."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(text: str) -> str:
    """Quote a string constant; safe whatever ``standard_conforming_strings`` says."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted
