"""How things look in a terminal: statuses, times, tables; and what comes from elsewhere made harmless."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS = {
    "pending": "cyan",
    "processing": "blue",
    "completed": "green",
    "partial": "yellow",
    "failed": "red",
    "cancelled": "magenta",
}
WIDE = 110
"""Columns of a terminal from which tables show what narrower ones leave out."""
_UNLIMITED = 400
"""Columns where there is no terminal: what reads it wants nothing cut off."""
_NAME = 36
"""Characters of an id; names that are longer may be cut."""
_NEVER = 9000
"""Years from which a time means "when something else has happened"."""
_C1 = re.compile("[\x7f-\x9f]")
_UNITS = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (120, 60, "min"))


def console(*, stderr: bool = False) -> Console:
    """Return where to print: with colours on a terminal that wants them, else as plain text."""
    plain_text = bool(os.environ.get("NO_COLOR"))
    out = Console(highlight=False, stderr=stderr, color_system=None if plain_text else "auto")
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = _UNLIMITED
    return out


def complain(message: str, kind: str = "error") -> None:
    """Say on standard error what is wrong."""
    style = "red" if kind == "error" else "yellow"
    line = Text.assemble((f"{kind}: ", style), plain(message, lines=True))
    console(stderr=True).print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one line of JSON, in which nothing can steer a terminal."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    typer.echo(_C1.sub(lambda found: f"\\u{ord(found[0]):04x}", line))


def plain(value: object, *, lines: bool = False) -> str:
    """Return text that moves no cursor and hides nothing: what cannot be printed shows as its escape."""
    text = str(value)
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    text = text if lines else " ".join(text.splitlines())
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def words(value: object, style: str = "") -> Text:
    """Return a value for a table; nothing for None."""
    return Text("" if value is None else plain(value), style=style)


def status(value: str) -> Text:
    """Return a job's status in its colour."""
    return words(value, STATUS.get(value, ""))


def number(value: float | None, none: str = "-") -> Text:
    """Return a count; zeros step back."""
    return words(none if value is None else f"{value:,}", "" if value else "dim")


def print_table(
    out: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[Text]],
    *,
    right: Sequence[str] = (),
    flexible: Sequence[str] = (),
) -> None:
    """Print rows under the names of their columns; where they are too wide, ``flexible`` columns are cut."""
    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 1, 0, 0)
    )
    lines = [list(row) for row in rows]
    needed = [
        max([len(column), *(line[place].cell_len for line in lines)]) for place, column in enumerate(columns)
    ]
    for place, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if column in flexible else min(_NAME, needed[place]),
        )
    for line in lines:
        made.add_row(*line)
    out.print(made)


def moment(stamp: str | None) -> datetime | None:
    """Read a time as the API writes it."""
    return None if stamp is None else datetime.fromisoformat(stamp)


def clock(stamp: str | None) -> str:
    """Return a time of the API by the clock of this machine."""
    at = moment(stamp)
    return "-" if at is None or at.year > _NEVER else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(stamp: str | None) -> str:
    """Say how long ago a time was, or in how long it will be."""
    at = moment(stamp)
    if at is None:
        return "-"
    if at.year > _NEVER:
        return "after its children"
    seconds = (datetime.now(UTC) - at).total_seconds()
    if seconds < 0:
        return f"in {lasts(-seconds)}"
    return f"{lasts(seconds)} ago" if seconds >= 1 else "now"


def later(stamp: str | None) -> str | None:
    """Say when a time will be, if it is still to come."""
    said = ago(stamp)
    return said if said.startswith(("in ", "after ")) else None


def lasts(seconds: float | None) -> str:
    """Say a length of time in one unit, or two where the first is small."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for least, unit, name in _UNITS:
        if seconds >= least:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def between(begin: str | None, end: str | None) -> float | None:
    """Return the seconds from one time of the API to another; None: one of them is open."""
    first, last = moment(begin), moment(end)
    return None if first is None or last is None else (last - first).total_seconds()


def counted(count: int, noun: str) -> str:
    """Say how many of something there are."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
