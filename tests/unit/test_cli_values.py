"""What is typed at a terminal becomes values, and what is shown there stays text."""

from datetime import UTC, datetime, timedelta

import pytest

from processor.cli import look, values
from processor.cli.project import WrongInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("10 m", 600), ("2h", 7200), ("1D", 86400), ("0", 0)],
)
def test_a_length_of_time_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert values.seconds("--delay", text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1w", "1h30m", "٣s", "1e3"])
def test_what_is_no_length_of_time_is_refused_with_the_option_and_examples(text: str) -> None:
    with pytest.raises(WrongInput, match=r"--delay: .* 90s, 10m, 2h or 1d"):
        values.seconds("--delay", text)


def test_a_moment_keeps_its_zone_and_a_length_counts_from_now() -> None:
    assert values.moment("--at", "2026-12-24T18:00+01:00") == "2026-12-24T17:00:00+00:00"
    soon = datetime.fromisoformat(values.moment_or_length("--expires", "1h"))
    assert timedelta(minutes=59) < soon - datetime.now(UTC) <= timedelta(hours=1)
    with pytest.raises(WrongInput, match="--expires"):
        values.moment_or_length("--expires", "9999999d")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (None, ["a"]),
        ("de\n fr \n\n", ["a", "de", "fr"]),
        ('["de", {"key": "fr", "payload": {}}]', ["a", "de", {"key": "fr", "payload": {}}]),
    ],
)
def test_items_are_keys_or_lines_or_json(more: str | None, expected: list[object]) -> None:
    assert values.items(["a"], more) == expected


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("0.5", 0.5), ("none", None), (" NONE ", None)])
def test_a_limit_is_a_number_or_none(text: str, value: float | None) -> None:
    assert values.limit("--rate-limit", text) == value


@pytest.mark.parametrize("text", ["many", "nan", "inf", ""])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(WrongInput, match="--rate-limit"):
        values.limit("--rate-limit", text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59, "59 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (2e5, "2 d"),
    ],
)
def test_a_length_of_time_is_said_in_one_unit(seconds: float, said: str) -> None:
    assert look.lasts(seconds) == said


def test_a_time_is_said_as_seen_from_now() -> None:
    now = datetime.now(UTC)
    assert look.ago(now.isoformat()) == "now"
    assert look.ago((now - timedelta(minutes=5)).isoformat()) == "5 min ago"
    assert look.ago((now + timedelta(hours=3, minutes=1)).isoformat()) == "in 3 h"
    assert look.ago("9999-12-31T00:00:00+00:00") == "after its children"
    assert look.later(now.isoformat()) is None
    assert look.later("9999-12-31T00:00:00+00:00") == "after its children"


def test_text_from_elsewhere_shows_what_it_is_made_of() -> None:
    assert look.plain("Grüße, 世界 👋") == "Grüße, 世界 👋"
    assert look.plain("a\x1b[31mb\x9b2J\u202ec") == "a\\x1b[31mb\\x9b2J\\u202ec"
    assert look.plain("one\r\ntwo") == "one two"
    assert look.plain("one\ntwo\x07", lines=True) == "one\ntwo\\x07"
