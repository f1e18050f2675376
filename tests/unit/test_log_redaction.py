import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from processor.log import redactor, set_up

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


def test_words_too_short_for_a_secret_are_left_alone() -> None:
    assert redactor(("key", ""))(None, "info", "the key") == "the key"
