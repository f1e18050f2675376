"""``processor queues``: how they are doing, and what operators change."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look, values
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, WrongInput, ask, names
from processor.operators import Operators, Row

app = typer.Typer(help="Queues: list, pause, resume, limits.", no_args_is_help=True)

Queue = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE",
        help="Name of the queue.",
        show_default=False,
        autocompletion=names(Operators.read_queues, "queue"),
    ),
]
Limit = Annotated[str | None, typer.Option(help="A number, or none.", show_default=False)]
_LIMITS = {
    "max_processing": "jobs running at once, over all workers",
    "rate_limit": "jobs that may start in each period",
    "rate_seconds": "length of that period, in seconds",
    "max_processing_per_owner": "jobs of one owner running at once",
    "max_pending_per_owner": "jobs of one owner waiting",
    "timeout_seconds": "length of an attempt, in seconds",
    "max_attempts": "attempts that may fail",
}


@app.command("list")
def list_(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the queues: what waits, what runs, who works, what failed."""
    rows = ask(config_file, Operators.read_queues)
    if as_json:
        look.print_json(rows)
    else:
        tell(rows, look.console())


@app.command()
def pause(queue: Queue, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let nothing more start in a queue; what runs goes on, new jobs wait."""
    row = ask(config_file, lambda project: project.pause_queue(queue))
    _changed(row, f"{queue} is paused: what runs goes on, new jobs wait", as_json=as_json)


@app.command()
def resume(queue: Queue, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Let a queue go on; its workers are woken at once."""
    row = ask(config_file, lambda project: project.resume_queue(queue))
    _changed(row, f"{queue} goes on", as_json=as_json)


@app.command()
def limits(
    queue: Queue,
    *,
    max_processing: Limit = None,
    rate_limit: Limit = None,
    rate_seconds: Limit = None,
    max_processing_per_owner: Limit = None,
    max_pending_per_owner: Limit = None,
    timeout_seconds: Limit = None,
    max_attempts: Limit = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a queue's limits, or change those that are given; they hold from the next claim on."""
    given = {
        "max_processing": max_processing,
        "rate_limit": rate_limit,
        "rate_seconds": rate_seconds,
        "max_processing_per_owner": max_processing_per_owner,
        "max_pending_per_owner": max_pending_per_owner,
        "timeout_seconds": timeout_seconds,
        "max_attempts": max_attempts,
    }

    async def do(project: Operators) -> Row:
        changes = {
            name: values.limit(f"--{name.replace('_', '-')}", text)
            for name, text in given.items()
            if text is not None
        }
        if changes:
            await project.set_queue_limits(queue, changes)
        rows = {row["queue"]: row for row in await project.read_queues()}
        if queue not in rows:
            raise WrongInput(f"unknown queue: {queue}. There are: {', '.join(sorted(rows)) or 'none'}.")
        return {name: rows[queue][name] for name in ("queue", *_LIMITS)}

    row = ask(config_file, do)
    if as_json:
        look.print_json(row)
        return
    lines = [
        [look.words(name.replace("_", "-")), look.words(_limit(row[name])), look.words(what, "dim")]
        for name, what in _LIMITS.items()
    ]
    look.print_table(look.console(), ("limit", "value", "what it is"), lines, right=("value",))


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:,.15g}"


def _changed(row: Row, said: str, *, as_json: bool) -> None:
    if as_json:
        look.print_json(row)
    else:
        look.console().print(Text(look.plain(said)), soft_wrap=True)


def state(row: Row) -> Text:
    """Say whether a queue's jobs can run."""
    if row["paused"] is None:
        return Text("no such queue", "red")
    if row["paused"]:
        return Text("paused", "yellow")
    if not row["live_workers"]:
        return Text("no worker", "red" if row["due"] else "dim")
    return Text("ok", "green")


def tell(rows: list[Row], out: Console) -> None:
    """Print queues as a table."""
    if not rows:
        out.print("no queues: the first worker that serves one makes it")
        return
    columns = ["queue", "state", "workers", "due", "oldest", "later", "running", "done/h", "failed/h"]
    if out.width >= look.WIDE:
        columns += ["p50", "p95"]
    lines = []
    for row in rows:
        running = f"{row['processing']:,}"
        if row["max_processing"] is not None:
            running += f"/{row['max_processing']}"
        line = [
            look.words(row["queue"]),
            state(row),
            look.number(row["live_workers"]),
            look.number(row["due"]),
            look.words(look.lasts(row["oldest_due_seconds"])),
            look.number(row["scheduled"] + row["waiting"]),
            look.words(running, "" if row["processing"] else "dim"),
            look.number(row["done_last_hour"]),
            look.number(row["failed_last_hour"]),
        ]
        if out.width >= look.WIDE:
            line += [look.words(look.lasts(row[f"run_seconds_{share}"])) for share in ("p50", "p95")]
        lines.append(line)
    look.print_table(out, columns, lines, right=columns[2:], flexible=("queue",))
