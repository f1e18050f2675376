"""``processor schedules``: what runs by the clock, and what operators change."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, ask, names
from processor.errors import ApiUnreachable, InvalidArgument
from processor.operators import Operators, Row

app = typer.Typer(help="Schedules: list, pause, resume, run.", no_args_is_help=True)

Schedule = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE",
        help="Name of the schedule.",
        show_default=False,
        autocompletion=names(Operators.read_schedules, "schedule"),
    ),
]
_STATES = {"ok": "green", "paused": "yellow", "problem": "red", "overdue": "red", "new": "cyan"}


@app.command("list")
def list_(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the schedules: when they run next, how the last run went, and what is wrong."""
    rows = ask(config_file, Operators.read_schedules)
    if as_json:
        look.print_json(rows)
    else:
        _tell(rows, look.console())


@app.command()
def pause(schedule: Schedule, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let a schedule make no more jobs; what a pause leaves out is not caught up."""
    row = ask(config_file, lambda project: _known(project.pause_schedule(schedule)))
    _changed(row, f"{schedule} is paused", as_json=as_json)


@app.command()
def resume(schedule: Schedule, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let a schedule go on with the next time to come."""
    row = ask(config_file, lambda project: _known(project.resume_schedule(schedule)))
    _changed(row, f"{schedule} goes on", as_json=as_json)


@app.command()
def run(schedule: Schedule, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Make a job of a schedule now, beside its plan, paused or not."""

    async def once(project: Operators) -> Row:
        try:
            return await _known(project.run_schedule(schedule))
        except ApiUnreachable as error:
            error.hint = (
                "It may have made the job all the same, see processor jobs list, so it is not repeated."
            )
            raise

    row = ask(config_file, once)
    _changed(row, f"{row['id']} {row['kind']} {row['status']}", as_json=as_json)


async def _known(doing: Awaitable[Row]) -> Row:
    """Say where the names are, if this is none."""
    try:
        return await doing
    except InvalidArgument as error:
        error.hint = "Their names: processor schedules list"
        raise


def _changed(row: Row, said: str, *, as_json: bool) -> None:
    if as_json:
        look.print_json(row)
    else:
        look.console().print(Text(look.plain(said)), soft_wrap=True)


def _tell(rows: list[Row], out: Console) -> None:
    if not rows:
        out.print("no schedules: declare one with @app.cron, or insert a row into job_schedules")
        return
    columns = ["schedule", "state", "next", "plan", "last"]
    wide = out.width >= look.WIDE
    if wide:
        columns.append("kind")
    lines = []
    for row in rows:
        last = f"{look.ago(row['last_run_at'])} {row['last_status'] or ''}"
        line = [
            look.words(row["schedule"]),
            look.words(row["state"], _STATES.get(row["state"], "")),
            look.words(look.ago(row["next_run_at"])),
            look.words(row["cron"] + ("" if row["timezone"] == "UTC" else f" {row['timezone']}")),
            look.words(last.strip(), look.STATUS.get(row["last_status"] or "", "")),
        ]
        if wide:
            line.append(look.words(row["kind"]))
        lines.append(line)
    look.print_table(out, columns, lines, flexible=("kind", "plan", "schedule"))
    for row in rows:
        if row["why"] and row["state"] in {"problem", "overdue"}:
            out.print(Text(look.plain(f"{row['schedule']}: {row['why']}"), style="red"), soft_wrap=True)
