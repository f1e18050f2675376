"""``processor status``: how the fleet and its queues are doing, and what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, Code, ask
from processor.cli.queues import tell as tell_queues
from processor.cli.workers import tell as tell_workers
from processor.operators import Operators, Row

_WAIT_SECONDS = 300
_BAD_SCHEDULES = ("problem", "overdue")

Problem = dict[str, str]
"""``what`` it is about (queue, worker, schedule, fleet), its ``name``, ``why`` it is one, what to ``try``."""


def status(
    *,
    wait: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="How long a due job may wait.")
    ] = _WAIT_SECONDS,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show workers, queues, and what is wrong; exit code 0: nothing, 1: something, 4: it cannot be asked."""
    found = ask(config_file, _read)
    found["problems"] = problems(found["queues"], found["workers"], found["schedules"], wait=wait)
    if as_json:
        look.print_json({"ok": not found["problems"], **found})
    else:
        _tell(found, look.console())
    if found["problems"]:
        raise typer.Exit(Code.REFUSED)


async def _read(project: Operators) -> dict[str, Any]:
    return {
        "queues": await project.read_queues(),
        "workers": await project.read_workers(),
        "schedules": await project.read_schedules(),
    }


def problems(queues: list[Row], workers: list[Row], schedules: list[Row], *, wait: float) -> list[Problem]:
    """Return what an operator should look at; a queue that somebody has paused is as it should be."""
    alive = [worker for worker in workers if worker["alive"]]
    found = []
    if queues and not alive:
        found.append(_problem("fleet", "workers", "none is alive", "processor run module:app"))
    for worker in alive:
        if worker["feed"] == "polling" and worker["transport"] != "polling":
            why = "it polls: Realtime is not healthy for it"
            found.append(_problem("worker", worker["name"], why, "processor doctor"))
    for queue in queues:
        late = _why_late(queue, wait)
        if late is not None:
            found.append(_problem("queue", queue["queue"], late, "select * from processor.stuck_jobs"))
    found += [
        _problem("schedule", row["schedule"], row["why"] or row["state"], "processor schedules list")
        for row in schedules
        if row["state"] in _BAD_SCHEDULES
    ]
    return found


def _why_late(queue: Row, wait: float) -> str | None:
    if not queue["due"] or queue["paused"]:
        return None
    due = f"{queue['due']:,} due"
    if not queue["live_workers"]:
        return f"{due}, and no live worker serves it"
    oldest = queue["oldest_due_seconds"] or 0
    return f"{due}, the oldest for {look.lasts(oldest)}" if oldest > wait else None


def _problem(what: str, name: str, why: str, hint: str) -> Problem:
    return {"what": what, "name": name, "why": why, "try": hint}


def _tell(found: dict[str, Any], out: Console) -> None:
    tell_workers(found["workers"], out)
    out.print()
    tell_queues(found["queues"], out)
    out.print()
    for problem in found["problems"]:
        line = f" {problem['what']} {problem['name']}: {problem['why']}. Look with: {problem['try']}"
        out.print(Text.assemble(("problem", "red"), look.plain(line)), soft_wrap=True)
    if not found["problems"]:
        out.print(Text.assemble(("ok", "green"), f" {_summary(found)}"), soft_wrap=True)


def _summary(found: dict[str, Any]) -> str:
    alive = [worker for worker in found["workers"] if worker["alive"]]
    running = sum(worker["running"] for worker in alive)
    slots = sum(worker["slots"] for worker in alive)
    due = sum(queue["due"] for queue in found["queues"])
    done = sum(queue["done_last_hour"] for queue in found["queues"])
    failed = sum(queue["failed_last_hour"] for queue in found["queues"])
    return (
        f"{look.counted(len(alive), 'worker')} alive, "
        f"{running:,} of {look.counted(slots, 'slot')} busy, {due:,} due; "
        f"in the last hour {done:,} done, {failed:,} failed"
    )
