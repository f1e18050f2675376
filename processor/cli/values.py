"""What is typed at a terminal, as values: lengths of time, moments, JSON, files."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from processor.cli.project import WrongInput

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(option: str, text: str) -> float:
    """Read a length of time: ``90``, ``90s``, ``10m``, ``2h`` or ``1d``."""
    found = _LENGTH.fullmatch(text.strip().lower())
    if found is None:
        raise WrongInput(f"{option}: {text!r} is no length of time. Write it as 90s, 10m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def moment(option: str, text: str) -> str:
    """Read a moment as ISO 8601; without a zone it is by the clock of this machine."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise WrongInput(
            f"{option}: {text!r} is no time. Write it as 2026-12-24T18:00, or 2026-12-24T18:00+01:00."
        ) from None


def content(option: str, text: str) -> str:
    """Return what an option gives: itself, the content of ``@file``, or with ``-`` standard input."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongInput(f"{option}: cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise WrongInput(f"{option}: {path} is no text.") from None


def payload(text: str) -> dict[str, Any]:
    """Read a payload: a JSON object, typed, in ``@file``, or with ``-`` on standard input."""
    written = content("--payload", text)
    try:
        value = json.loads(written)
    except ValueError as error:
        raise WrongInput(
            f'--payload is no JSON: {error}. In a shell quote it: \'{{"title": "Hello"}}\'.'
        ) from None
    if not isinstance(value, dict):
        raise WrongInput(
            f'--payload must be a JSON object, like \'{{"title": "Hello"}}\', not {written.strip()!r}.'
        )
    return value


def items(keys: list[str], more: str | None) -> list[Any] | None:
    """Return a job's items: keys, and what ``more`` gives, a JSON array or one key a line."""
    if more is None:
        return list(keys) or None
    written = content("--items", more)
    if not written.lstrip().startswith("["):
        return [*keys, *(line.strip() for line in written.splitlines() if line.strip())]
    try:
        return [*keys, *json.loads(written)]
    except ValueError as error:
        raise WrongInput(f"--items is no JSON array: {error}.") from None


def limit(option: str, text: str | None) -> float | None:
    """Read a limit: a number, or ``none`` for having no limit."""
    if text is None or text.strip().lower() == "none":
        return None
    try:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError  # noqa: TRY301 - it is as little a number as any other word
    except ValueError:
        raise WrongInput(f"{option}: {text!r} must be a number, or none.") from None
    return int(value) if value.is_integer() else value


def moment_or_length(option: str, text: str) -> str:
    """Read a moment, given as one or as a length of time from now."""
    if not _LENGTH.fullmatch(text.strip().lower()):
        return moment(option, text)
    try:
        return (datetime.now(UTC) + timedelta(seconds=seconds(option, text))).isoformat()
    except OverflowError:
        raise WrongInput(f"{option}: {text!r} from now is later than any calendar has.") from None
