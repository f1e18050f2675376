"""``processor status``: how the fleet and its queues are doing, and what is wrong."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from processor import config
from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, Code, ask
from processor.cli.queues import tell as tell_queues
from processor.cli.workers import tell as tell_workers
from processor.operators import Operators

_STYLES = {"critical": "bold red", "warning": "yellow"}


def status(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show workers, queues, and what is wrong; exit code 0: nothing, 1: something, 4: it cannot be asked."""

    async def read(project: Operators) -> dict[str, Any]:
        return {
            "alerts": await project.read_alerts(config.load(config=config_file).alert_queue_depth),
            "queues": await project.read_queues(),
            "workers": await project.read_workers(),
            "schedules": await project.read_schedules(),
        }

    found = ask(config_file, read)
    if as_json:
        look.print_json({"ok": not found["alerts"], **found})
    else:
        _tell(found, look.console())
    if found["alerts"]:
        raise typer.Exit(Code.REFUSED)


def _tell(found: dict[str, Any], out: Console) -> None:
    tell_workers(found["workers"], out)
    out.print()
    tell_queues(found["queues"], out)
    out.print()
    for alert in found["alerts"]:
        line = f" {alert['alert']}: {alert['summary']}"
        severity = (alert["severity"], _STYLES[alert["severity"]])
        out.print(Text.assemble(severity, look.plain(line)), soft_wrap=True)
    if not found["alerts"]:
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
