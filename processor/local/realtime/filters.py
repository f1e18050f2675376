"""Filters of ``postgres_changes``: ``status=eq.pending,amount=not.in.(1,2)``.

A filter is parsed when a client joins and bound to a column's type when the table is known. Comparisons that
cannot come out differently in Python are made here (numbers, and equality where equal values have equal
text); all others, and so everything about collations and patterns, are made by the database.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from processor.local.realtime.values import Type, parse_array

OPERATORS = {
    "eq": "=",
    "neq": "<>",
    "lt": "<",
    "lte": "<=",
    "gt": ">",
    "gte": ">=",
    "in": "= any",
    "like": "like",
    "ilike": "ilike",
    "is": "is",
    "match": "~",
    "imatch": "~*",
    "isdistinct": "is distinct from",
}
KEYWORDS = ("null", "true", "false", "unknown")
LONGEST_LIST = 100
NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "oid"})
# equal values have equal text: one canonical form each, as the server writes them in UTC
EQUAL_BY_TEXT = frozenset(
    {"bool", "uuid", "text", "varchar", "date", "timestamp", "timestamptz", "int2", "int4"}
)

Matcher: TypeAlias = Callable[[str | None], bool]


class FilterError(ValueError):
    """A filter that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on one column. ``value`` is as the client wrote it; a list is an array literal."""

    column: str
    operator: str
    value: str
    negated: bool = False

    def __str__(self) -> str:
        negation = "not." if self.negated else ""
        return f"{self.column}={negation}{self.operator}.{self.value}"

    def sql(self, type_: Type) -> str:
        """Return the condition as SQL over ``$1`` (the column's value) and ``$2`` (the filter's)."""
        left, symbol = f"$1::text::{type_.sql}", OPERATORS[self.operator]
        if self.operator == "in":
            condition = f"{left} = any ($2::text::{type_.sql}[])"
        else:
            condition = f"{left} {symbol} $2::text::{type_.sql}"
        return f"select {'not ' if self.negated else ''}({condition})"


def parse(text: str) -> tuple[Filter, ...]:
    """Parse conditions joined by commas; nothing but blanks is no condition.

    Raises:
        FilterError: an unknown operator, an empty condition or a list without parentheses.

    """
    if not text.strip():
        return ()
    return tuple(_parse_one(part.strip()) for part in _split(text.strip()))


def _parse_one(text: str) -> Filter:
    if not text:
        raise FilterError("filter must not contain empty segments (check for extra commas)")
    column, equals, rest = text.partition("=")
    if not equals:
        raise FilterError(f'["{text}"]')
    negated = rest.startswith("not.")
    operator, dot, value = rest.removeprefix("not.").partition(".")
    if not dot or operator not in OPERATORS:
        raise FilterError(f'["{operator}", "{value}"]' if dot else f'["{operator}"]')
    if operator == "in":
        if not (value.startswith("(") and value.endswith(")")):
            raise FilterError("`in` filter value must be wrapped by parentheses")
        return Filter(column, operator, f"{{{value[1:-1]}}}", negated)
    return Filter(column, operator, _unquote(value), negated)


def _split(text: str) -> list[str]:
    """Split at commas that are neither inside parentheses nor inside a quoted value."""
    parts, depth, quoted, start, at = [], 0, False, 0, 0
    while at < len(text):
        character = text[at]
        if quoted:
            if character == "\\":
                at += 1
            elif character == '"':
                quoted = False
        elif character == '"' and at and text[at - 1] in ".(,":
            quoted = True
        elif character == "(":
            depth += 1
        elif character == ")":
            depth = max(0, depth - 1)
        elif character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]


def _unquote(value: str) -> str:
    if len(value) < 2 or not value.startswith('"'):
        return value
    characters, at = [], 1
    while at < len(value):
        if value[at] == "\\":
            characters.append(value[at + 1 : at + 2])
            at += 2
        elif value[at] == '"':
            return "".join(characters) if at == len(value) - 1 else value
        else:
            characters.append(value[at])
            at += 1
    return value


def matcher(condition: Filter, type_: Type, canonical: str) -> Matcher | None:
    """Return the comparison as a function of the column's text, or None if the database must make it.

    Args:
        condition: the filter.
        type_: the column's type.
        canonical: the filter's value as the server writes it after reading it as this type.

    """
    if condition.operator == "is":
        return _is(condition)
    comparison = _comparison(condition, type_, canonical)
    if comparison is None:
        return None

    def match(text: str | None) -> bool:
        # as in SQL, null compares to nothing, and its negation neither
        return text is not None and comparison(text) is not condition.negated

    if condition.operator == "isdistinct":
        return lambda text: (text is None or comparison(text)) is not condition.negated
    return match


def _is(condition: Filter) -> Matcher:
    if condition.value in ("null", "unknown"):
        return lambda text: (text is None) is not condition.negated
    wanted = condition.value[0]  # booleans are written t and f
    return lambda text: (text == wanted) is not condition.negated


def _comparison(condition: Filter, type_: Type, canonical: str) -> Callable[[str], bool] | None:
    operator = condition.operator
    if operator == "in":
        listed = parse_array(canonical)
        values = [value for value in listed if isinstance(value, str)] if isinstance(listed, list) else []
        if not isinstance(listed, list) or len(values) < len(listed):
            return None  # a null in the list makes the answer null: leave it to SQL
    else:
        values = [canonical]
    if type_.base in NUMBERS:
        return _compare_numbers(operator, [_number(value) for value in values])
    if type_.base in EQUAL_BY_TEXT or type_.category == "E":
        return _compare_text(operator, values)
    return None


def _compare_numbers(operator: str, values: list[tuple[int, Decimal]]) -> Callable[[str], bool] | None:
    if operator == "in":
        return lambda text: _number(text) in values
    value = values[0]
    comparisons: dict[str, Callable[[str], bool]] = {
        "eq": lambda text: _number(text) == value,
        "neq": lambda text: _number(text) != value,
        "isdistinct": lambda text: _number(text) != value,
        "lt": lambda text: _number(text) < value,
        "lte": lambda text: _number(text) <= value,
        "gt": lambda text: _number(text) > value,
        "gte": lambda text: _number(text) >= value,
    }
    return comparisons.get(operator)


def _compare_text(operator: str, values: list[str]) -> Callable[[str], bool] | None:
    if operator in ("eq", "in"):
        wanted = frozenset(values)
        return lambda text: text in wanted
    if operator in ("neq", "isdistinct"):
        return lambda text: text != values[0]
    return None


def _number(text: str) -> tuple[int, Decimal]:
    """Order numbers as PostgreSQL does: -Infinity, the finite ones, Infinity, NaN, which equals itself."""
    special = {"-Infinity": -1, "Infinity": 1, "NaN": 2}.get(text)
    return (0, Decimal(text)) if special is None else (special, Decimal(0))
