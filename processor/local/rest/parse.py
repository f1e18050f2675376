"""Parse PostgREST's query strings."""

from __future__ import annotations

import re

from processor.local.rest.errors import RestError, unreadable, unsupported
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
    Parameters,
    Query,
)

NAME = re.compile(r"[\w $]+(?:-(?!>)[\w $]+)*")
PATH_KEY = re.compile(r"(?:[^\s(\-:.,>)\"]|-(?!>))+")
CAST = re.compile(r"[A-Za-z_][A-Za-z0-9_ ]*(?:\[\])?")
OPERATOR = re.compile(r"(not\.)?([a-z]+)(?:\(([^()]*)\))?\.")
UNQUOTED = re.compile(r"[^,)]*")
ARRAY = re.compile(r'\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\}')

DEEPEST = 50
QUANTIFIED = {"eq", "gte", "gt", "lte", "lt", "like", "ilike", "match", "imatch"}
IS_VALUES = {"null", "not_null", "true", "false", "unknown"}
OPERATORS = {*COMPARISONS, *PATTERNS, *SEARCHES, "in", "is", "isdistinct"}
_RESERVED = {"order", "limit", "offset", "and", "or", "not.and", "not.or"}


class _Reader:
    """A cursor over one parameter's text."""

    def __init__(self, what: str, text: str) -> None:
        self.what = what
        self.text = text
        self.at = 0
        self._depth = 0

    def enter(self) -> None:
        """Read ``(``."""
        self.expect("(")
        self._depth += 1
        if self._depth > DEEPEST:
            raise self.fail(f"at most {DEEPEST} parentheses inside each other")

    def leave(self) -> None:
        """Read ``)``."""
        self.expect(")")
        self._depth -= 1

    def fail(self, expecting: str) -> RestError:
        found = f'"{self.text[self.at]}"' if self.at < len(self.text) else "end of input"
        return unreadable(self.what, self.text, self.at, f"unexpected {found} expecting {expecting}")

    def skip(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.skip(token):
            raise self.fail(f'"{token}"')

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def end(self) -> None:
        if self.at < len(self.text):
            raise self.fail("end of input")

    def match(self, pattern: re.Pattern[str], expecting: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.fail(expecting)
        self.at = found.end()
        return found.group()

    def quoted(self) -> str:
        """Read ``"…"`` with backslash escapes."""
        self.expect('"')
        read = []
        while (char := self.peek()) != '"':
            if char == "\\":
                self.at += 1
                char = self.peek()
            if not char:
                raise self.fail('"')
            read.append(char)
            self.at += 1
        self.at += 1
        return "".join(read)

    def name(self) -> str:
        if self.peek() == '"':
            return self.quoted()
        name = self.match(NAME, "field name (* or [a..z0..9_$])").strip(" ")
        if not name:
            raise self.fail("field name (* or [a..z0..9_$])")
        return name

    def path(self) -> tuple[tuple[str, str], ...]:
        steps = []
        while self.skip("->"):
            arrow = "->>" if self.skip(">") else "->"
            key = self.quoted() if self.peek() == '"' else self.match(PATH_KEY, "a key or an array index")
            steps.append((arrow, key))
        return tuple(steps)

    def field(self) -> Field:
        return Field(self.name(), self.path())


def parse(pairs: list[tuple[str, str]], *, calls: bool = False) -> Parameters:
    """Parse the decoded parameters of a query string.

    Args:
        pairs: names and values, in order.
        calls: whether values without an operator are a function's arguments.

    Raises:
        RestError: a parameter is not of PostgREST's grammar (PGRST100), or beyond the local gateway's.

    """
    if any("\0" in key + value for key, value in pairs):
        raise RestError(400, "PGRST100", "the query string has a null character, which no text may have")
    found = Parameters(Query(star=True))
    later: list[tuple[tuple[str, ...], str, str]] = []
    for key, value in pairs:
        if key == "select":
            found.query = _select(value)
        elif key == "columns":
            found.columns = _names("columns", value)
        elif key == "on_conflict":
            found.on_conflict = _names("on_conflict", value)
        elif key != "apikey":
            prefix, last = _split_key(key)
            if calls and not prefix and last not in _RESERVED and not _is_filter(value):
                found.arguments.append((key, value))
            else:
                later.append((prefix, last, value))
    for prefix, last, value in later:  # the embedded resources are known only now
        _apply(_descend(found.query, prefix), last, value)
    return found


def _apply(query: Query, key: str, value: str) -> None:
    if key == "order":
        query.order = _order(value)
    elif key in {"limit", "offset"}:
        if not INTEGER.match(value):
            raise unreadable(f"{key} parameter", value, 0, "expecting an integer")
        number = int(value)
        if number < 0 or number >= 2**63:
            raise RestError(
                416,
                "PGRST103",
                "Requested range not satisfiable",
                details=f"{key.capitalize()} should be greater than or equal to zero.",
            )
        if key == "limit":
            query.limit = number
        else:
            query.offset = number
    elif key in {"and", "or", "not.and", "not.or"}:
        query.where.append(_logic(key, value))
    else:
        reader = _Reader("filter field", key)
        target = reader.field()
        reader.end()
        query.where.append(_condition(target, value))


def _split_key(key: str) -> tuple[tuple[str, ...], str]:
    """Split ``items.translations.order`` into the embedded resources and the last part."""
    parts: list[str] = []
    reader = _Reader("filter field", key)
    while True:
        rest = key[reader.at :]
        if rest in _RESERVED:
            return tuple(parts), rest
        start = reader.at
        name = reader.name()
        if reader.peek() != ".":
            return tuple(parts), key[start:]
        reader.at += 1
        parts.append(name)


def _descend(query: Query, prefix: tuple[str, ...]) -> Query:
    for name in prefix:
        for embed in query.embeds:
            if name in {embed.name, embed.target}:
                query = embed.query
                break
        else:
            raise RestError(
                400,
                "PGRST108",
                f"'{name}' is not an embedded resource in this request",
                hint=f"Verify that '{name}' is included in the 'select' query parameter.",
            )
    return query


def _names(what: str, text: str) -> tuple[str, ...]:
    reader = _Reader(f"{what} parameter", text)
    names = [reader.name()]
    while reader.skip(","):
        names.append(reader.name())
    reader.end()
    return tuple(dict.fromkeys(names))


def _select(text: str) -> Query:
    reader = _Reader("select parameter", text)
    query = _items(reader)
    reader.end()
    return query


def _items(reader: _Reader) -> Query:
    query = Query()
    if reader.peek() in {"", ")"}:
        return query
    while True:
        _item(reader, query)
        if not reader.skip(","):
            return query


def _item(reader: _Reader, query: Query) -> None:
    if reader.skip("*"):
        query.star = True
        return
    if reader.skip("..."):
        raise unsupported("spread embedding ('...resource(columns)')")
    alias = None
    name = reader.name()
    if reader.peek() == ":" and not reader.text.startswith("::", reader.at):
        reader.at += 1
        alias, name = name, reader.name()
    if reader.peek() in {"(", "!"}:
        if name == "count" and reader.text.startswith("()", reader.at):
            raise _no_aggregates()
        query.columns.append(_embed(reader, alias, name))
        return
    target = Field(name, reader.path())
    cast = reader.match(CAST, "a type name").strip() if reader.skip("::") else None
    if reader.peek() == "." and re.match(r"\.(\w+)\(\)", reader.text[reader.at :]):
        raise _no_aggregates()
    query.columns.append(Column(target, alias, cast))


def _no_aggregates() -> RestError:
    return RestError(400, "PGRST123", "Use of aggregate functions is not allowed")


def _embed(reader: _Reader, alias: str | None, target: str) -> Embed:
    hint, inner = None, False
    while reader.skip("!"):
        word = reader.name()
        if word == "inner":
            inner = True
        elif word != "left":
            hint = word
    reader.enter()
    query = _items(reader)
    reader.leave()
    return Embed(target, query, alias, hint, inner)


def _order(text: str) -> tuple[Order, ...]:
    reader = _Reader("order", text)
    terms = []
    while True:
        target = reader.field()
        if reader.peek() == "(":
            raise unsupported(f"ordering by a column of an embedded resource ('{text}')")
        descending, nulls = False, None
        if reader.skip(".desc"):
            descending = True
        else:
            reader.skip(".asc")
        if reader.skip(".nullsfirst"):
            nulls = "first"
        elif reader.skip(".nullslast"):
            nulls = "last"
        terms.append(Order(target, descending, nulls))
        if not reader.skip(","):
            break
    reader.end()
    return tuple(terms)


def _is_filter(value: str) -> bool:
    found = OPERATOR.match(value)
    return found is not None and found.group(2) in OPERATORS


def _operator(reader: _Reader) -> tuple[str, str | None, bool]:
    """Read ``not.op(option).``."""
    found = OPERATOR.match(reader.text, reader.at)
    if found is None or found.group(2) not in OPERATORS:
        raise reader.fail('"not" or operator (eq, gt, ...)')
    negated, operator, option = found.groups()
    if option is not None:
        allowed = operator in SEARCHES or (operator in QUANTIFIED and option in {"any", "all"})
        if not allowed:
            raise reader.fail(f"an operator that takes '({option})'")
    reader.at = found.end()
    return operator, option, bool(negated)


def _condition(target: Field, text: str) -> Condition:
    """Parse the value of a parameter: the operator and all that follows."""
    reader = _Reader("filter", text)
    operator, option, negated = _operator(reader)
    value: str | tuple[str, ...]
    if operator == "in":
        value = _list(reader)
        reader.end()
    else:
        value = text[reader.at :]
        reader.at = len(text)
    return Condition(target, operator, _checked(reader, operator, value), negated, option)


def _checked(reader: _Reader, operator: str, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if operator != "is" or not isinstance(value, str):
        return value
    if value.lower() not in IS_VALUES:
        reader.at -= len(value)
        raise reader.fail("null value: (null, not_null, true, false, unknown)")
    return value.lower()


def _list(reader: _Reader) -> tuple[str, ...]:
    """Read ``(a,"b,c",d)``."""
    reader.expect("(")
    values: list[str] = []
    if reader.skip(")"):
        return ()
    while True:
        if reader.peek() == '"':
            values.append(reader.quoted())
        else:
            values.append(reader.match(UNQUOTED, "a value"))
        if not reader.skip(","):
            break
    reader.expect(")")
    return tuple(values)


def _logic(key: str, text: str) -> Logic:
    reader = _Reader("logic tree", text)
    operator = key.removeprefix("not.")
    logic = Logic(operator, _logic_parts(reader), negated=key.startswith("not."))
    reader.end()
    return logic


def _logic_parts(reader: _Reader) -> tuple[Condition | Logic, ...]:
    reader.enter()
    parts = [_logic_part(reader)]
    while reader.skip(","):
        parts.append(_logic_part(reader))
    reader.leave()
    return tuple(parts)


def _logic_part(reader: _Reader) -> Condition | Logic:
    for key in ("and", "or", "not.and", "not.or"):
        if reader.text.startswith(f"{key}(", reader.at):
            reader.at += len(key)
            return Logic(key.removeprefix("not."), _logic_parts(reader), negated=key.startswith("not."))
    target = reader.field()
    reader.expect(".")
    operator, option, negated = _operator(reader)
    value: str | tuple[str, ...]
    if operator == "in":
        value = _list(reader)
    elif reader.peek() == '"':
        value = reader.quoted()
    elif reader.peek() == "{":
        value = reader.match(ARRAY, "an array: {…}")
    else:
        value = reader.match(UNQUOTED, "a value")
    return Condition(target, operator, _checked(reader, operator, value), negated, option)
