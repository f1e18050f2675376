"""How the story looks: redrawn in place on a terminal, line after line everywhere else."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from examples.translation.demo.story import Row, Step, Story, language

# The terminal's own colours only, and its own foreground for words: readable on light and on dark.
GOOD, BAD, BUSY, QUIET = "green", "red", "cyan", "dim"
FRAMES_A_SECOND = 12
WIDTH = 96  # beyond it, lines are hard to follow
STATUS_STYLE = {"completed": GOOD, "partial": GOOD, "failed": BAD, "cancelled": BAD}


@contextmanager
def screen(console: Console, story: Story) -> Iterator[Callable[[], None]]:
    """Show the story while the block lasts, or until what it gives is called; what was shown last stays."""
    if console.is_terminal and not console.is_dumb_terminal:
        live = Live(
            console=console, get_renderable=lambda: picture(story), refresh_per_second=FRAMES_A_SECOND
        )
        with live:
            yield live.stop
        return
    said: set[str] = set()

    def say() -> None:
        for line in lines(story):
            if line not in said:
                said.add(line)
                console.print(line, soft_wrap=True, markup=False, highlight=False)

    story.changed = say
    yield lambda: None


def lines(story: Story) -> Iterator[str]:
    """Everything there is to say so far, as lines that do not change once they are said."""
    for step in story.steps:
        if step.seconds is not None:
            yield f"{step.name}: {step.text} ({step.seconds:.1f} s)"
    if story.woken_by:
        yield f"wake-up: {wake_up(story)}"
    for code, row in _known(story):
        if row["status"] != "pending":
            yield f"{language(code)}: {row['status']}{_why(row)}"
        elif row["progress"]:
            yield f"{language(code)}: {row['progress']:.0%}"
    if story.job:
        yield "credits: {credits_held} held, {credits_captured} captured, {credits_refunded} refunded".format(
            **story.job
        )


def wake_up(story: Story) -> str:
    """Say what woke the daemon, and how long the job had to wait for its handler."""
    waited = "" if story.pickup_ms is None else f", handler started {story.pickup_ms:.1f} ms after the insert"
    return f"by {story.woken_by}{waited}"


def picture(story: Story) -> RenderableType:
    """Draw the story as it is now."""
    parts: list[RenderableType] = [_steps(story)]
    if story.items:
        parts += ["", _items(story), "", _credits(story)]
    return Padding(Constrain(Group(*parts), WIDTH), 1)


def _steps(story: Story) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", style=QUIET, no_wrap=True)
    for step in story.steps:
        table.add_row(
            _mark(step), step.name, step.text, "" if step.seconds is None else f"{step.seconds:.1f} s"
        )
    if story.woken_by:
        table.add_row(Text("✓", GOOD), "wake-up", wake_up(story), "")
    return table


def _mark(step: Step) -> RenderableType:
    return Spinner("dots", style=BUSY) if step.seconds is None else Text("✓", GOOD)


def _items(story: Story) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, min_width=24)
    for code, row in _known(story):
        status = row["status"]
        share = 1.0 if status == "completed" else row["progress"]
        bar = ProgressBar(
            total=1.0,
            completed=share,
            complete_style=STATUS_STYLE.get(status, BUSY),
            finished_style=GOOD,
            style=QUIET,
        )
        if status != "pending":
            state = Text(f"{status}{_why(row)}", STATUS_STYLE[status])
        else:
            sections = len(story.card.sections)
            state = Text(f"{round(share * sections)} of {sections} sections" if share else "waits", QUIET)
        table.add_row(language(code), bar, state)
    return table


def _known(story: Story) -> list[tuple[str, Row]]:
    return [(code, story.items[code]) for code in story.languages if code in story.items]


def _credits(story: Story) -> Table:
    """Draw what was reserved for the job as one bar that changes hands."""
    styles = {"captured": GOOD, "held": BUSY, "refunded": QUIET}
    amounts = {kind: story.job.get(f"credits_{kind}", 0) for kind in styles}
    bar = Text()
    for kind, style in styles.items():
        bar.append("■ " * amounts[kind], style)
    words = [
        Text(f"{amounts[kind]} {kind}", styles[kind] if amounts[kind] else QUIET)
        for kind in ("held", "captured", "refunded")
    ]
    table = Table.grid(padding=(0, 2))
    table.add_row("credits", bar, Text(" → ", QUIET).join(words))
    return table


def _why(row: Row) -> str:
    return f" · {row['error_code']}" if row.get("error_code") else f" · {row['credits']} credits"


def record(console: Console, title: str, columns: tuple[str, ...], row: Row) -> None:
    """Show one row, a line for each column."""
    table = _table(title)
    table.add_column(style=QUIET, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.show_header = False
    for column in columns:
        table.add_row(column, _cell(row[column]))
    console.print(Padding(table, (0, 1, 1, 1)))


def rows(console: Console, title: str, columns: tuple[str, ...], found: list[Row]) -> None:
    """Show rows of a table as they are in the database."""
    table = _table(title)
    for column in columns:
        cells = [_cell(row[column]) for row in found]
        # where there is no room, the last column is cut
        needed = None if column == columns[-1] else max(map(len, cells), default=0)
        table.add_column(column, header_style=QUIET, no_wrap=True, overflow="ellipsis", min_width=needed)
    for row in found:
        table.add_row(*(_cell(row[column]) for column in columns))
    console.print(Padding(table, (0, 1, 1, 1)))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))


def _cell(value: object) -> Text:
    if isinstance(value, str):
        return Text(value, STATUS_STYLE.get(value, ""))
    return Text(json.dumps(value, ensure_ascii=False), QUIET if value is None else "")
