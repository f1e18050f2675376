"""Values in PostgreSQL's text form as JSON; that they agree with the database is tested against it."""

import json

import pytest

from processor.local.realtime.values import array, parse_array, scalar


@pytest.mark.parametrize(
    ("base", "text", "expected"),
    [
        ("int8", "9007199254740993", "9007199254740993"),
        ("numeric", "1.50", "1.50"),
        ("numeric", "NaN", '"NaN"'),
        ("float8", "-Infinity", '"-Infinity"'),
        ("float8", "1e+20", "1e+20"),
        ("bool", "t", "true"),
        ("bool", "f", "false"),
        ("jsonb", '{"a": [1]}', '{"a": [1]}'),
        ("text", 'a"b', '"a\\"b"'),
        ("timestamp", "2026-01-02 03:04:05.6", '"2026-01-02T03:04:05.6"'),
        ("timestamptz", "2026-01-02 03:04:05+00", '"2026-01-02T03:04:05+00:00"'),
        ("timestamptz", "infinity", '"infinity"'),
        ("timestamptz", "0044-03-15 12:00:00+00 BC", '"0044-03-15T12:00:00+00:00 BC"'),
        ("bytea", "\\x00ff", '"\\\\x00ff"'),
    ],
)
def test_a_scalar_becomes_json(base, text, expected):
    assert scalar(base)(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", []),
        ("{1,NULL,3}", ["1", None, "3"]),
        ('{"NULL",""}', ["NULL", ""]),
        (r'{"a\"b","c\\d","e,f"}', ['a"b', r"c\d", "e,f"]),
        ("{{1,2},{3,4}}", [["1", "2"], ["3", "4"]]),
        ("[0:1]={1,2}", ["1", "2"]),
    ],
)
def test_an_array_literal_is_read(text, expected):
    assert parse_array(text) == expected
    assert json.loads(array(scalar("text"), ",")(text)) == expected


@pytest.mark.parametrize("text", ["", "1", "{1", '{"a', "{1}x", "{1}{2}"])
def test_what_is_no_array_literal_is_refused(text):
    with pytest.raises(ValueError, match=r"array|quote"):
        parse_array(text)
