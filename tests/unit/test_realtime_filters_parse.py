"""Filters as clients write them, and the comparisons that need no database."""

import pytest

from processor.local.realtime.filters import Filter, FilterError, matcher, parse
from processor.local.realtime.values import Type, scalar


def of(base: str, category: str = "S") -> Type:
    return Type(base, base, base, category, scalar(base))


def holds(text: str, type_: Type, value: str | None, canonical: str | None = None) -> bool | None:
    (condition,) = parse(text)
    match = matcher(condition, type_, condition.value if canonical is None else canonical)
    return None if match is None else match(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("id=eq.1", (Filter("id", "eq", "1"),)),
        (" id=eq.1 , n=gt.2", (Filter("id", "eq", "1"), Filter("n", "gt", "2"))),
        ("status=in.(a,b)", (Filter("status", "in", "{a,b}"),)),
        ("status=not.in.(a,b)", (Filter("status", "in", "{a,b}", negated=True),)),
        ("a=not.is.null", (Filter("a", "is", "null", negated=True),)),
        ('a=eq."x,y"', (Filter("a", "eq", "x,y"),)),
        (r'a=eq."say \"x\""', (Filter("a", "eq", 'say "x"'),)),
        ("a=eq.x=y.z", (Filter("a", "eq", "x=y.z"),)),
        ('a=in.("x,y",z)', (Filter("a", "in", '{"x,y",z}'),)),
        ("a=eq.", (Filter("a", "eq", ""),)),
    ],
)
def test_conditions_are_parsed(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["undefined", "a=foo.b", "a=eq", "a=in.1,2", "a=eq.1,,b=eq.2", "a=eq.1,"])
def test_a_condition_that_makes_no_sense_is_refused(text):
    with pytest.raises(FilterError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("n=eq.10", "10", True),
        ("n=eq.10", "10.0", True),
        ("n=gt.9", "10", True),
        ("n=lt.9", "10", False),
        ("n=gte.10", "10", True),
        ("n=lte.9", "10", False),
        ("n=neq.9", "10", True),
        ("n=in.(1,10)", "10", True),
        ("n=not.in.(1,10)", "10", False),
        ("n=not.in.(1,2)", "10", True),
        ("n=gt.5", "NaN", True),
        ("n=gt.5", "Infinity", True),
        ("n=gt.5", "-Infinity", False),
        ("n=eq.9", None, False),
        ("n=not.eq.9", None, False),
        ("n=isdistinct.9", None, True),
        ("n=isdistinct.9", "9", False),
        ("n=not.isdistinct.9", "9", True),
        ("n=not.isdistinct.9", None, False),
    ],
)
def test_numbers_compare_as_numbers(text, value, expected):
    assert holds(text, of("numeric", "N"), value) is expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("s=eq.pending", "pending", True),
        ("s=eq.pending", "Pending", False),
        ("s=not.eq.pending", "done", True),
        ("s=neq.pending", "pending", False),
        ("s=in.(a,b)", "b", True),
        ("s=is.null", None, True),
        ("s=is.null", "x", False),
        ("s=not.is.null", "x", True),
        ("s=not.is.null", None, False),
    ],
)
def test_text_is_compared_for_equality_here(text, value, expected):
    assert holds(text, of("text"), value) is expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("b=is.true", "t", True),
        ("b=is.true", None, False),
        ("b=is.false", "f", True),
        ("b=is.unknown", None, True),
        ("b=not.is.true", None, True),
    ],
)
def test_is_knows_three_truth_values(text, value, expected):
    assert holds(text, of("bool", "B"), value) is expected


@pytest.mark.parametrize(
    "text", ["s=gt.a", "s=like.a%", "s=ilike.A%", "s=match.^a", "s=imatch.^A", "s=lte.b"]
)
def test_what_depends_on_collations_is_left_to_the_database(text):
    assert holds(text, of("text"), "abc") is None


def test_equality_of_types_with_several_spellings_is_left_to_the_database():
    assert holds("i=eq.1 day", of("interval", "T"), "24:00:00") is None
    assert holds("j=eq.{}", of("jsonb", "U"), "{}") is None


def test_a_null_in_a_list_is_left_to_the_database():
    assert holds("n=in.(1,NULL)", of("int4", "N"), "2") is None
