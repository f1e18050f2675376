"""What a database has of the schema, and what it should have: objects, each with the facts that matter.

What it should have is the manifest: what the same query says of a new database, kept in ``manifest.json``.
``scripts/manifest`` writes it anew; a test fails when it is older than the schema.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import asyncpg

Facts = dict[str, str | bool]

_QUERY = Path(__file__).with_suffix(".sql")
MANIFEST = Path(__file__).with_name("manifest.json")

# what PostgreSQL prints must depend on nobody's settings
_PLAIN = """\
set local search_path = ''; set local datestyle = 'iso, ymd'; set local intervalstyle = postgres;
set local timezone = 'utc'; set local bytea_output = hex; set local quote_all_identifiers = off"""


class Key(NamedTuple):
    """What an object is known by."""

    kind: str
    part_of: str
    """The object it is nothing without, such as the table of a column; empty if there is none."""
    name: str


Objects = dict[Key, Facts]


async def found(connection: asyncpg.Connection, *, everything: bool = False) -> Objects:
    """Return what a database has of the schema; changes nothing.

    Args:
        connection: to the database.
        everything: take all of schema public for ours, not only what has a name of ours.

    """
    relations = None if everything else _in_public("table", "view", "sequence")
    functions = None if everything else _in_public("function")
    async with connection.transaction():
        await connection.execute(_PLAIN)
        rows = await connection.fetch(_QUERY.read_text(encoding="utf-8"), relations, functions)
    return {Key(row["kind"], row["part_of"], row["name"]): json.loads(row["facts"]) for row in rows}


@cache
def expected() -> Objects:
    """Return what a database of the newest version has."""
    objects = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {Key(kind, part_of, name): facts for kind, part_of, name, facts in objects}


def manifest(objects: Objects) -> str:
    """Return the text of a manifest: one object per line, so that two changes to it can be merged."""
    lines = (json.dumps([*key, facts], ensure_ascii=False, sort_keys=True) for key, facts in objects.items())
    return "[\n" + ",\n".join(lines) + "\n]\n"


def names(kind: str) -> list[str]:
    """Return the names of all objects of a kind that the newest version has."""
    return [key.name for key in expected() if key.kind == kind]


def _in_public(*kinds: str) -> list[str]:
    ours = (name.partition("(")[0] for kind in kinds for name in names(kind))
    return [name.removeprefix("public.") for name in ours if name.startswith("public.")]
