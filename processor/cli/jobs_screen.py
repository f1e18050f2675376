"""What ``processor jobs watch`` shows on a terminal: for each job a bar, and a line for each item."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from processor.cli import look
from processor.operators import Row

_SIGNS = {
    "pending": ("○", "dim"),
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("-", "dim"),
}
_BAR = 30
_LINES = 12
"""Lines for the items of a job; beyond that those that completed, or did not begin, are only counted."""


class Screen:
    """Jobs and their items, as they are now; what was shown last stays when it ends."""

    def __init__(self, console: Console, ids: list[str]) -> None:
        self._jobs: dict[str, tuple[Row, list[Row]] | None] = dict.fromkeys(ids)
        self._trouble: str | None = None
        self._live = Live(self, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, job: Row, items: list[Row]) -> None:
        """Show a job that has changed."""
        self._jobs[job["id"]] = (job, items)
        self._live.refresh()

    def trouble(self, reason: str | None) -> None:
        """Show that the project does not answer, or that it does again."""
        self._trouble = reason
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for watched in self._jobs.values():
            if watched is not None:
                yield from _job(*watched)
        if self._trouble is not None:
            yield Text(f"{look.plain(self._trouble)}; asking again", style="yellow")


def _job(job: Row, items: list[Row]) -> Iterator[RenderableType]:
    ended = job["finished_at"] is not None
    yield Text.assemble(
        (look.plain(job["kind"]), "bold"), " ", (job["id"], "dim"), no_wrap=True, overflow="ellipsis"
    )
    if ended:
        yield Text(look.plain(ending(job)), style=look.STATUS.get(job["status"], ""))
    else:
        yield _bar(job)
        if said := says(job):
            yield Text(f"  {look.plain(said)}", style="dim", no_wrap=True, overflow="ellipsis")
    told = _worth_a_line(items)
    for item in told:
        yield item_line(item)
    if told and (hidden := job["items_total"] - len(told)):
        yield Text(f"  … and {hidden:,} more", style="dim")


def _bar(job: Row) -> Table:
    row = Table.grid(padding=(0, 1))
    share = job["items_done"] / job["items_total"] if job["items_total"] else job["progress"]
    share = max(share, job["progress"])
    bar = ProgressBar(total=1, completed=share, width=_BAR, complete_style="blue", finished_style="blue")
    of = f"{job['items_done']}/{job['items_total']}" if job["items_total"] else ""
    since = job["created_at"] if job["status"] == "pending" else job["started_at"]
    took = look.lasts(look.between(since, datetime.now(UTC).isoformat()))
    row.add_row(look.status(job["status"]), bar, f"{share:>4.0%}", of, Text(took, style="dim"))
    return row


def says(job: Row) -> str | None:
    """Say what a job that has not ended does, or waits for."""
    if job["cancel_requested_at"] is not None:
        return "is asked to stop"
    if job["status"] == "pending":
        when = look.later(job["run_at"])
        runs = f"runs {when}" if when else None
        why = f"after {job['error_code']}: {job['error_message']}" if job["error_code"] else None
        waits = f"waits: {job['waits_for']}" if job["waits_for"] else None
        return ", ".join(part for part in (runs, waits, why) if part)
    message: str | None = job["progress_message"]
    return message


def _worth_a_line(items: list[Row]) -> list[Row]:
    """Return the items that are shown: all, or else those that failed or have begun, as far as they fit."""
    if len(items) <= _LINES:
        return items
    told = [item for item in items if item["status"] == "failed" or _has_begun(item)]
    return told[:_LINES]


def _has_begun(item: Row) -> bool:
    return item["status"] == "pending" and bool(item["progress"])


def item_line(item: Row, *, whole: bool = False) -> Text:
    """Return an item in a line, cut where the terminal ends unless it is to be ``whole``."""
    sign, style = _SIGNS.get(item["status"], ("?", ""))
    begun = _has_begun(item)
    line = Text.assemble(
        "  ", ("◐" if begun else sign, "blue" if begun else style), " ", look.plain(item["key"])
    )
    if not whole:
        line.no_wrap, line.overflow = True, "ellipsis"
    if begun:
        line.append(f" {item['progress']:.0%}", "dim")
    if item["error_code"] is not None and item["status"] != "completed":
        line.append(f" {item['error_code']}", "red")
        line.append(f" {look.plain(item['error_message'])}", "dim")
    return line


def ending(job: Row) -> str:
    """Say how a job ended: how long it took, what is done, what it cost, and why it failed."""
    took = look.between(job["started_at"], job["finished_at"])
    parts = [job["status"] + (f" in {look.lasts(took)}" if took is not None else "")]
    if job["items_total"]:
        parts.append(f"{job['items_done']}/{job['items_total']} items")
    if job["credits_captured"] or job["credits_refunded"]:
        parts.append(f"{look.counted(job['credits_captured'], 'credit')} paid")
    if job["credits_refunded"]:
        parts.append(f"{job['credits_refunded']:,} refunded")
    said = ", ".join(parts)
    return f"{said}: {job['error_code']}: {job['error_message']}" if job["error_code"] else said
