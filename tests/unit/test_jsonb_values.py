from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from processor.jsonb import to_jsonb, to_text


class Card(BaseModel):
    title: str


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        ({"a": (1, 2.5, True)}, {"a": [1, 2.5, True]}),
        (Card(title="é\\u0000"), {"title": "é\\u0000"}),
        ([Point(1)], [{"x": 1}]),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    ],
)
def test_values_become_plain_json(value: object, plain: object) -> None:
    assert to_jsonb(value) == plain


def endless() -> list:
    loop: list = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not JSON"),
        ([float("inf")], "not JSON"),
        (object(), "not JSON"),
        (endless(), "not JSON"),
        ({"a": ["x\x00"]}, "NUL"),
        ({"\x00": 1}, "NUL"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_jsonb_cannot_hold_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_jsonb(value)


def test_text_is_made_storable_and_cut() -> None:
    assert to_text("a\x00b\ud800") == "a�b?"
    assert to_text("x" * 11, 10) == "x" * 9 + "…"
    assert to_text("x" * 10, 10) == "x" * 10
