import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Literal
from unittest.mock import ANY

import pytest
import structlog

from processor.log import format_traceback, set_up

KEY = "eyJ-very-secret-key"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def fail() -> None:
    raise ValueError(f"key {KEY} refused")


def test_secrets_are_hidden_however_deep(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json", (KEY,))
    log = structlog.get_logger("test")
    log.info("a.b", url=f"wss://x?apikey={KEY}", deep={"list": [KEY, (KEY,)], KEY: 1}, number=1)
    try:
        fail()
    except ValueError:
        log.exception("c.d")
    text = capsys.readouterr().err
    assert KEY not in text
    first, second = map(json.loads, text.splitlines())
    assert first["url"] == "wss://x?apikey=[redacted]"
    assert first["number"] == 1
    assert "key [redacted] refused" in second["exception"]


def test_the_console_hides_them_too_tracebacks_included(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "console", (KEY,))
    try:
        fail()
    except ValueError:
        structlog.get_logger("test").exception("c.d", key=KEY)
    text = capsys.readouterr().err
    assert "refused" in text
    assert KEY not in text


def test_other_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json", (KEY,))
    logging.getLogger("some.library").warning("watch %s", KEY)
    logging.getLogger("httpx").info("HTTP Request: POST …")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("watch [redacted]", "warning")]


def test_words_too_short_for_a_secret_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", "json", ("key", ""))
    structlog.get_logger("test").info("the key")
    assert "the key" in capsys.readouterr().err


def recurse(depth: int) -> None:
    if depth == 0:
        raise ValueError("the deepest")
    (recurse, again)[depth % 2](depth - 1)


def again(depth: int) -> None:
    recurse(depth)


def test_a_long_traceback_keeps_its_beginning_and_its_end_and_says_what_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up("info", "json")
    try:
        recurse(300)
    except ValueError:
        structlog.get_logger("test").exception("a.b")
    lines = json.loads(capsys.readouterr().err)["exception"].splitlines()
    assert len(lines) == 81
    assert "Traceback" in lines[0]
    assert "lines left out" in lines[20]
    assert lines[-1] == "ValueError: the deepest"


def test_a_huge_message_in_a_traceback_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("x" * 10_000_000, "\n".join(["x" * 1500] * 70)):
        error = ValueError(text)
        assert len(format_traceback((ValueError, error, None))) < 17_000


def test_an_exception_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class BrokenError(Exception):
        __notes__ = property(lambda _self: 1 / 0)

    assert "BrokenError" in format_traceback((BrokenError, BrokenError(), None))


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_field_that_cannot_be_shown_costs_the_fields_and_not_the_job(
    capsys: pytest.CaptureFixture[str], style: Literal["json", "console"]
) -> None:
    set_up("info", style)
    structlog.get_logger("test").info("a.b", field=Unshowable())
    lost = "the fields cannot be shown: RuntimeError"
    assert json.loads(capsys.readouterr().err) == {
        "event": "a.b", "level": "info", "timestamp": ANY, "log_error": lost
    }  # fmt: skip


@pytest.mark.parametrize("problem", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_lost_and_the_next_one_is_not(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    problems: list[Exception] = [problem]

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if problems:
                raise problems.pop()
            return super().write(text)

    file = Full()
    monkeypatch.setattr(sys, "stderr", file)
    set_up("info", "json")
    structlog.get_logger("test").info("first")
    structlog.get_logger("test").info("second")
    assert [json.loads(line)["event"] for line in file.getvalue().splitlines()] == ["second"]
