"""What a query string asks for: what to select, filter, order and embed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

INTEGER = re.compile(r"-?\d+\Z")
COMPARISONS = {
    "eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=",
    "cs": "@>", "cd": "<@", "ov": "&&", "sl": "<<", "sr": ">>", "nxr": "&<", "nxl": "&>", "adj": "-|-",
}  # fmt: skip
PATTERNS = {"like": "like", "ilike": "ilike", "match": "~", "imatch": "~*"}
SEARCHES = {
    "fts": "to_tsquery",
    "plfts": "plainto_tsquery",
    "phfts": "phraseto_tsquery",
    "wfts": "websearch_to_tsquery",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A column, or what a JSON path finds in it: ``payload->a->>b``."""

    name: str
    path: tuple[tuple[str, str], ...] = ()  # (arrow, key)


@dataclass(frozen=True, slots=True)
class Condition:
    """``field=not.op.value``; ``option`` is what stood in parentheses: any, all or a search language."""

    field: Field
    operator: str
    value: str | tuple[str, ...]
    negated: bool = False
    option: str | None = None


@dataclass(frozen=True, slots=True)
class Logic:
    """``and=(…)`` or ``or=(…)``."""

    operator: str
    parts: tuple[Condition | Logic, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column to return, under another name or type if asked."""

    field: Field
    alias: str | None = None
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One term of ``order``."""

    field: Field
    descending: bool = False
    nulls: str | None = None


@dataclass(slots=True)
class Query:
    """What is asked of one relation: of the one in the path, or of an embedded one."""

    columns: list[Column | Embed] = field(default_factory=list)
    star: bool = False
    where: list[Condition | Logic] = field(default_factory=list)
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0

    @property
    def embeds(self) -> list[Embed]:
        """The embedded resources, in the order asked for."""
        return [column for column in self.columns if isinstance(column, Embed)]


@dataclass(slots=True)
class Embed:
    """A related resource inside each row: ``alias:target!hint!inner(…)``."""

    target: str
    query: Query
    alias: str | None = None
    hint: str | None = None
    inner: bool = False

    @property
    def name(self) -> str:
        """The key under which it is returned, and by which filters find it."""
        return self.alias or self.target


@dataclass(slots=True)
class Parameters:
    """A whole query string.

    ``arguments`` are the values without an operator: a function's arguments in a GET.
    """

    query: Query
    columns: tuple[str, ...] | None = None
    on_conflict: tuple[str, ...] | None = None
    arguments: list[tuple[str, str]] = field(default_factory=list)
