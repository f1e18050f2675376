r"""PostgreSQL's text form of a value → the JSON text that ``to_jsonb`` gives for it.

========================================= ==============================================================
int2 int4 int8 float4 float8 numeric      a number, digits as they are; ``NaN`` and ``Infinity`` a string
bool                                      ``true`` or ``false``
json jsonb                                the value itself
timestamp timestamptz                     a string, ISO 8601, time zone UTC
arrays of these                           arrays, of any depth
domains                                   as their base type
enum uuid date time interval bytea …      the text as a string (bytea as ``\x…``)
composite types, types with a cast to     asked from the database
json (hstore, …), arrays of them
========================================= ==============================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from processor.local.realtime.wire import dumps

ToJson: TypeAlias = Callable[[str], str]
Element: TypeAlias = "str | list[Element] | None"

_timestamp = re.compile(r"(\S+) (\d\d:\S+?)(?:\+00)?( BC)?")
_bounds = re.compile(r"(\[-?\d+:-?\d+\])+=")


@dataclass(frozen=True, slots=True)
class Type:
    """A column's type.

    Attributes:
        name: as the client sees it in ``columns`` (``int8``, ``_text``).
        sql: as SQL writes it, qualified where needed.
        base: the built-in type it behaves as (``int8`` for a domain over bigint), or its own name.
        category: PostgreSQL's category of the base type (``N`` numeric, ``S`` string, ``E`` enum, …).
        to_json: None if only the database can tell.

    """

    name: str
    sql: str
    base: str
    category: str
    to_json: ToJson | None


def number(text: str) -> str:
    """Return the digits as they are; what JSON has no number for, as a string."""
    return dumps(text) if text[-1] in "yN" else text


def boolean(text: str) -> str:
    """``t`` → ``true``."""
    return "true" if text == "t" else "false"


def verbatim(text: str) -> str:
    """JSON stays JSON."""
    return text


def timestamp(text: str) -> str:
    """``2026-01-02 03:04:05`` → ``"2026-01-02T03:04:05"``."""
    found = _timestamp.fullmatch(text)
    return dumps(text if found is None else f"{found[1]}T{found[2]}{found[3] or ''}")


def timestamptz(text: str) -> str:
    """``2026-01-02 03:04:05+00`` → ``"2026-01-02T03:04:05+00:00"``."""
    found = _timestamp.fullmatch(text)
    return dumps(text if found is None else f"{found[1]}T{found[2]}+00:00{found[3] or ''}")


SCALARS: dict[str, ToJson] = {
    "int2": number,
    "int4": number,
    "int8": number,
    "float4": number,
    "float8": number,
    "numeric": number,
    "bool": boolean,
    "json": verbatim,
    "jsonb": verbatim,
    "timestamp": timestamp,
    "timestamptz": timestamptz,
}


def scalar(base: str) -> ToJson:
    """Return the conversion of a type that is no array; unknown ones are strings."""
    return SCALARS.get(base, dumps)


def array(element: ToJson, delimiter: str) -> ToJson:
    """Return the conversion of arrays whose elements ``element`` converts."""

    def write(value: Element) -> str:
        if value is None:
            return "null"
        if isinstance(value, list):
            return f"[{','.join(map(write, value))}]"
        return element(value)

    return lambda text: write(parse_array(text, delimiter))


def parse_array(text: str, delimiter: str = ",") -> Element:
    r"""Read an array literal: ``{1,NULL,"a \"b\""}``, nested ones too.

    Raises:
        ValueError: it is not an array literal.

    """
    bounds = _bounds.match(text)
    value, at = _parse(text, bounds.end() if bounds else 0, delimiter)
    if at != len(text):
        raise ValueError(f"text after the end of an array: {text[at:]!r}")
    return value


def _parse(text: str, at: int, delimiter: str) -> tuple[list[Element], int]:
    if text[at : at + 1] != "{":
        raise ValueError(f"an array must start with a brace: {text!r}")
    at += 1
    values: list[Element] = []
    if text[at : at + 1] == "}":
        return values, at + 1
    while at < len(text):
        value: Element
        if text[at] == "{":
            value, at = _parse(text, at, delimiter)
        elif text[at] == '"':
            value, at = _quoted(text, at + 1)
        else:
            end = at
            while end < len(text) and text[end] not in (delimiter, "}"):
                end += 1
            value, at = text[at:end], end
            if value.upper() == "NULL":
                value = None
        values.append(value)
        if text[at : at + 1] == "}":
            return values, at + 1
        if text[at : at + 1] != delimiter:
            break
        at += 1
    raise ValueError(f"an array without its end: {text!r}")


def _quoted(text: str, at: int) -> tuple[str, int]:
    characters = []
    while at < len(text):
        if text[at] == "\\":
            characters.append(text[at + 1 : at + 2])
            at += 2
        elif text[at] == '"':
            return "".join(characters), at + 1
        else:
            characters.append(text[at])
            at += 1
    raise ValueError(f"a quote without its end: {text!r}")
