"""Build the SQL that calls a function."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

import difflib
from typing import Any

from processor.local.rest.errors import RestError, unsupported
from processor.local.rest.query import Parameters
from processor.local.rest.read import Reader, body
from processor.local.rest.request import Accept
from processor.local.rest.schema import SCHEMA, Argument, Function, Relation, Schema, quote

ARGUMENTS = '"_rest_arguments"'
CALL = '"_rest_call"'
SOURCE = '"_rest_source"'
NO_BODY: tuple[str, Any] = ("{}", {})


def find(schema: Schema, name: str, given: list[str], *, posted: bool) -> Function:
    """Choose the function for these named arguments.

    Args:
        schema: what exists.
        name: of the function.
        given: the names of the arguments.
        posted: whether a JSON body came along, which an unnamed json parameter would take.

    Raises:
        RestError: no function takes them (PGRST202), or more than one does (PGRST203).

    """
    overloads = schema.functions.get(name, [])
    found = [function for function in overloads if function.accepts(given)]
    if not found and posted:
        found = [function for function in overloads if function.takes_body]
    if len(found) > 1:
        candidates = ", ".join(
            f"{SCHEMA}.{name}({', '.join(f'{a.name} => {a.type.name}' for a in function.arguments)})"
            for function in found
        )
        raise RestError(
            300,
            "PGRST203",
            f"Could not choose the best candidate function between: {candidates}",
            hint="Try renaming the parameters or the function itself in the database so function "
            "overloading can be resolved",
        )
    if not found:
        raise _not_found(schema, name, given, overloads, posted=posted)
    return found[0]


def call(
    reader: Reader,
    function: Function,
    parameters: Parameters,
    payload: tuple[str, Any] | None,
    *,
    accept: Accept,
    count: bool,
    head: bool,
) -> str:
    """Return the select whose one row has ``total``, ``rows`` and ``body``.

    Args:
        reader: takes the parameters of the statement.
        function: to call.
        parameters: of the query string.
        payload: the body as text and parsed; None takes the arguments from the query string.
        accept: the shape of the answer.
        count: whether to count all rows of a set.
        head: whether the body is left out.

    Raises:
        RestError: the query needs columns, which the function does not return.

    """
    source = _invocation(reader, function, parameters, payload)
    query = parameters.query
    if function.rows is None and (query.columns or query.where or query.order or query.limit is not None):
        raise unsupported(
            f"columns, filters, order and limits on {function.name}, whose result has no columns"
        )
    if function.returns_void:
        return f"select null::bigint as total, count(*) as rows, null::text as body from {source}"
    counted = count and function.returns_set
    if function.rows is None:
        total = "count(*)" if counted else "null::bigint"
        answer = body(f"{CALL}.value", accept, head=head, single=not function.returns_set)
        return f"select {total} as total, count(*) as rows, {answer} as body from {source}"
    relation = Relation(
        function.name, function.rows.columns, {}, function.rows.primary_key, function.rows.links
    )
    shape = accept if function.returns_set else Accept(single=True, strip_nulls=accept.strip_nulls)
    rows = reader.rows(relation, query, SOURCE, accept=shape, count=counted, head=head)
    return f"with {SOURCE} as (select {CALL}.* from {source}) {rows}"


def _invocation(
    reader: Reader, function: Function, parameters: Parameters, payload: tuple[str, Any] | None
) -> str:
    name = quote(SCHEMA, function.name)
    alias = CALL if function.rows is not None else f"{CALL}(value)"
    if payload is None:
        return f"{name}({', '.join(_from_query(reader, function, parameters))}) as {alias}"
    text, parsed = payload
    if function.takes_body:
        return f"{name}({reader.statement.value(text)}::{function.arguments[0].type.name}) as {alias}"
    given = [argument for argument in function.arguments if argument.name in parsed]
    if not given:
        return f"{name}() as {alias}"
    typed = ", ".join(f"{quote(argument.name)} {argument.type.name}" for argument in given)
    passed = ", ".join(_pass(argument, f"{ARGUMENTS}.{quote(argument.name)}") for argument in given)
    record = f"json_to_record({reader.statement.value(text)}::json) as {ARGUMENTS}({typed})"
    return f"{record}, lateral {name}({passed}) as {alias}"


def _from_query(reader: Reader, function: Function, parameters: Parameters) -> list[str]:
    values: dict[str, list[str]] = {}
    for name, value in parameters.arguments:
        values.setdefault(name, []).append(value)
    passed = []
    for argument in function.arguments:
        if argument.name not in values:
            continue
        given = values[argument.name]
        value = reader.statement.value(given if argument.variadic and len(given) > 1 else given[-1])
        passed.append(_pass(argument, f"{value}::{argument.type.name}"))
    return passed


def _pass(argument: Argument, value: str) -> str:
    return f"{'variadic ' if argument.variadic else ''}{quote(argument.name)} => {value}"


def _not_found(
    schema: Schema, name: str, given: list[str], overloads: list[Function], *, posted: bool
) -> RestError:
    names = ", ".join(sorted(given))
    in_message = f"({names})" if given else " without parameters"
    in_details = f" with parameter{'s' if len(given) > 1 else ''} {names}" if given else " without parameters"
    if posted:
        in_details += " or with a single unnamed json/jsonb parameter"
    return RestError(
        404,
        "PGRST202",
        f"Could not find the function {SCHEMA}.{name}{in_message} in the schema cache",
        details=f"Searched for the function {SCHEMA}.{name}{in_details}, but no matches were found in the "
        "schema cache.",
        hint=_suggestion(schema, name, given, overloads),
    )


def _suggestion(schema: Schema, name: str, given: list[str], overloads: list[Function]) -> str | None:
    if overloads:
        signatures = [
            f"({', '.join(sorted(argument.name for argument in function.arguments))})"
            for function in overloads
        ]
        close = difflib.get_close_matches(f"({', '.join(sorted(given))})", signatures, 1, 0.33)
        found = name + close[0] if close else None
    else:
        close = difflib.get_close_matches(name, schema.functions, 1, 0.75)
        found = close[0] if close else None
    return f"Perhaps you meant to call the function {SCHEMA}.{found}" if found else None


def argument_names(parameters: Parameters, payload: tuple[str, Any] | None) -> list[str]:
    """Name the arguments given: in the query string, or in a body, of which only an object has any."""
    if payload is None:
        return list(dict.fromkeys(name for name, _ in parameters.arguments))
    return list(payload[1]) if isinstance(payload[1], dict) else []
