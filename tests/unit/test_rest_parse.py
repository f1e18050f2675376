"""The grammar of PostgREST's query strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.local.rest.errors import RestError
from processor.local.rest.parse import parse
from processor.local.rest.query import Column, Condition, Embed, Field, Logic, Order
from processor.local.rest.schema import literal, quote


def where(key: str, value: str) -> Condition | Logic:
    (condition,) = parse([(key, value)]).query.where
    return condition


def test_no_select_means_every_column() -> None:
    query = parse([]).query
    assert (query.star, query.columns) == (True, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id", Column(Field("id"))),
        ("first name", Column(Field("first name"))),
        ("a-b", Column(Field("a-b"))),
        ('"a,b(""', None),
        ('"a,b\\"("', Column(Field('a,b"('))),
        ("n:id", Column(Field("id"), "n")),
        ("id::text", Column(Field("id"), None, "text")),
        ("n:id::double precision", Column(Field("id"), "n", "double precision")),
        ("a->b->>c", Column(Field("a", (("->", "b"), ("->>", "c"))))),
        ("x:a->0->>b::int[]", Column(Field("a", (("->", "0"), ("->>", "b"))), "x", "int[]")),
        ("id::int;drop", None),
        ("id::varchar(3)", None),
        ("a->", None),
        ("", None),
        (",id", None),
        ("id,", None),
        ("(id)", None),
    ],
)
def test_a_select_item_is_a_column_or_an_error(text: str, expected: Column | None) -> None:
    if expected is not None:
        assert parse([("select", text)]).query.columns == [expected]
    elif text:
        with pytest.raises(RestError, match="failed to parse select parameter"):
            parse([("select", text)])


def test_embedded_resources_nest_with_alias_hint_and_inner() -> None:
    query = parse([("select", "*,x:films!fk!inner(title,roles(*)),other()")]).query
    films, other = query.embeds
    assert query.star
    assert (films.name, films.target, films.hint, films.inner) == ("x", "films", "fk", True)
    assert films.query.columns[0] == Column(Field("title"))
    roles = films.query.columns[1]
    assert isinstance(roles, Embed)
    assert roles.query.star
    assert (other.query.star, other.query.columns) == (False, [])


def test_embedded_resources_have_filters_order_and_limit_of_their_own() -> None:
    query = parse(
        [
            ("films.roles.order", "id.desc"),
            ("x.limit", "3"),
            ("films.year", "gt.1"),
            ("films.not.or", "(a.eq.1,b.eq.2)"),
            ("select", "x:films(roles(*))"),
        ]
    ).query
    films = query.embeds[0].query
    assert films.limit == 3
    assert films.where[0] == Condition(Field("year"), "gt", "1")
    assert isinstance(films.where[1], Logic)
    assert films.where[1].negated
    assert films.embeds[0].query.order == (Order(Field("id"), descending=True),)
    with pytest.raises(RestError, match="not an embedded resource"):
        parse([("nope.limit", "3")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("eq.1", Condition(Field("a"), "eq", "1")),
        ("eq.", Condition(Field("a"), "eq", "")),
        ("not.eq.a.b", Condition(Field("a"), "eq", "a.b", negated=True)),
        ("is.NULL", Condition(Field("a"), "is", "null")),
        ("in.()", Condition(Field("a"), "in", ())),
        ("in.(1,2)", Condition(Field("a"), "in", ("1", "2"))),
        ('in.("a,b","c\\"d",e f)', Condition(Field("a"), "in", ("a,b", 'c"d', "e f"))),
        ("like(any).{a*,b}", Condition(Field("a"), "like", "{a*,b}", option="any")),
        ("fts(french).chat", Condition(Field("a"), "fts", "chat", option="french")),
    ],
)
def test_a_filter_has_an_operator_and_a_value(value: str, expected: Condition) -> None:
    assert where("a", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "equal.1",
        "eq",
        "is.maybe",
        "in.1",
        "in.(1",
        "in.(1)2",
        "neq(any).{1}",
        "eq(some).{1}",
        "not.not.eq.1",
    ],
)
def test_anything_else_is_no_filter(value: str) -> None:
    with pytest.raises(RestError) as caught:
        where("a", value)
    assert (caught.value.status, caught.value.code) == (400, "PGRST100")


def test_a_filter_can_reach_into_json_and_quote_its_column() -> None:
    assert where("a->b->>c", "eq.1") == Condition(Field("a", (("->", "b"), ("->>", "c"))), "eq", "1")
    assert where('"a.b"', "eq.1") == Condition(Field("a.b"), "eq", "1")


def test_conditions_combine() -> None:
    tree = where("or", '(a.eq.1,not.and(b.in.(1,"2,3"),c.not.is.null),d.cs.{1,2},e.eq."x)y",f->>g.like.*z*)')
    assert tree == Logic(
        "or",
        (
            Condition(Field("a"), "eq", "1"),
            Logic(
                "and",
                (
                    Condition(Field("b"), "in", ("1", "2,3")),
                    Condition(Field("c"), "is", "null", negated=True),
                ),
                negated=True,
            ),
            Condition(Field("d"), "cs", "{1,2}"),
            Condition(Field("e"), "eq", "x)y"),
            Condition(Field("f", (("->>", "g"),)), "like", "*z*"),
        ),
    )


@pytest.mark.parametrize("value", ["", "()", "(a.eq.1", "a.eq.1", "(a.eq.1))", "(a.eq.1)b", "(a)", "(and())"])
def test_half_a_tree_is_refused(value: str) -> None:
    with pytest.raises(RestError, match="failed to parse logic tree"):
        where("and", value)


def test_order_has_directions_and_places_for_nulls() -> None:
    order = parse([("order", "a,b.desc,c.asc.nullsfirst,d->>e.desc.nullslast")]).query.order
    assert order == (
        Order(Field("a")),
        Order(Field("b"), descending=True),
        Order(Field("c"), nulls="first"),
        Order(Field("d", (("->>", "e"),)), descending=True, nulls="last"),
    )
    with pytest.raises(RestError, match="failed to parse order"):
        parse([("order", "a.down")])


def test_limits_are_numbers_that_fit() -> None:
    query = parse([("limit", "5"), ("offset", "0")]).query
    assert (query.limit, query.offset) == (5, 0)
    for value, status in (("x", 400), ("1.5", 400), ("-1", 416), (str(2**63), 416)):
        with pytest.raises(RestError) as caught:
            parse([("limit", value)])
        assert caught.value.status == status


def test_in_a_call_values_without_operator_are_arguments() -> None:
    parameters = parse([("a", "1"), ("b", "eq.1"), ("c", "x.y"), ("limit", "2")], calls=True)
    assert parameters.arguments == [("a", "1"), ("c", "x.y")]
    assert parameters.query.where == [Condition(Field("b"), "eq", "1")]
    assert parameters.query.limit == 2


def test_lists_of_columns_keep_their_order_once() -> None:
    parameters = parse([("columns", '"b","a",b'), ("on_conflict", "x,y")])
    assert (parameters.columns, parameters.on_conflict) == (("b", "a"), ("x", "y"))


@given(st.text(), st.text())
def test_any_query_string_is_parsed_or_refused(key: str, value: str) -> None:
    for pair in ((key, value), ("select", value), ("order", value), ("or", value), ("a", f"in.{value}")):
        try:
            parse([pair])
        except RestError as error:
            assert error.status in {400, 416}  # noqa: PT017 - not raising is right, too


@given(st.text())
def test_quoting_has_no_way_out(text: str) -> None:
    assert quote(text)[1:-1].replace('""', "").count('"') == 0
    constant = literal(text).strip()
    inside = constant.removeprefix("E")[1:-1]
    assert inside.replace("''", "").count("'") == 0
    assert constant.startswith("E") == ("\\" in text)
    assert inside.replace("\\\\", "").count("\\") == 0
