"""``processor jobs logs``: what a job's handler said, also while it says it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.jobs_watch import TOLD
from processor.cli.project import ask
from processor.errors import ApiUnreachable, JobNotFound
from processor.operators import Operators, Row

_PAGE = 500
_FASTEST, _SLOWEST = 0.5, 2.0
"""Seconds between two looks: while lines come, and after a while without."""
_LEVELS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "red"}


def logs(
    job: Annotated[UUID, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    config_file: ConfigFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array; with --follow a line of JSON for each.")
    ] = False,
) -> None:
    """Print what a job's handler said, the oldest line first."""
    job_id = str(job)
    out = look.console()

    async def all_lines(project: Operators) -> list[Row]:
        await _job(project, job_id)
        return await _beyond(project, job_id, 0)

    async def following(project: Operators) -> None:
        last, pause, unanswered = 0, _FASTEST, 0
        while True:
            try:
                row = await _job(project, job_id)  # before the lines: what an ended job has said is all there
                lines = await _beyond(project, job_id, last)
            except ApiUnreachable as error:
                unanswered += 1
                if unanswered == TOLD:
                    look.complain(f"{error.message}; asking again", "warning")
                await asyncio.sleep(_FASTEST if unanswered < TOLD else _SLOWEST)
                continue
            unanswered = 0
            for line in lines:
                last = line["id"]
                if as_json:
                    look.print_json(line)
                else:
                    _tell(line, out)
            if row["finished_at"] is not None:
                return
            pause = _FASTEST if lines else min(pause * 1.5, _SLOWEST)
            await asyncio.sleep(pause)

    if follow:
        ask(config_file, following)
        return
    lines = ask(config_file, all_lines)
    if as_json:
        look.print_json(lines)
        return
    for line in lines:
        _tell(line, out)
    if not lines:
        out.print("it has said nothing", style="dim")


async def _job(project: Operators, job_id: str) -> Row:
    rows = await project.watched_jobs([job_id])
    if not rows:
        raise JobNotFound(f"job not found: {job_id}")
    return rows[0]


async def _beyond(project: Operators, job_id: str, last: int) -> list[Row]:
    """Return all lines after one, page by page."""
    lines: list[Row] = []
    while page := await project.read_logs(job_id, after=last, limit=_PAGE):
        lines += page
        last = page[-1]["id"]
        if len(page) < _PAGE:
            break
    return lines


def _tell(line: Row, out: Console) -> None:
    out.print(log_line(line), soft_wrap=True)


def log_line(line: Row) -> Text:
    """Return a log line as it is shown."""
    text = Text.assemble(
        (look.clock(line["logged_at"]), "dim"),
        (f" {line['level']:<7} ", _LEVELS.get(line["level"], "")),
        look.plain(line["message"], lines=True).replace("\n", "\n  "),
    )
    for name, value in line["fields"].items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text.append(f" {look.plain(name)}=", "dim").append(look.plain(shown))
    return text
