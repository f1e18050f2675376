"""``processor workers``: the daemons, and taking one out of service."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, ask, names
from processor.operators import Operators, Row

_WIDE = 140
"""Columns of a terminal from which versions and ids are shown too."""

app = typer.Typer(help="Workers: list, drain.", no_args_is_help=True)


@app.command("list")
def list_(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the daemons: alive or not, what they run, how they learn of jobs."""
    rows = ask(config_file, Operators.read_workers)
    if as_json:
        look.print_json(rows)
    else:
        tell(rows, look.console())


@app.command()
def drain(
    worker: Annotated[
        str,
        typer.Argument(
            metavar="WORKER",
            help="Its name or its id.",
            show_default=False,
            autocompletion=names(Operators.read_workers, "name"),
        ),
    ],
    *,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a worker finish what it has and take no more; when it runs nothing it can be stopped."""
    rows = ask(config_file, lambda project: project.drain_worker(worker))
    if as_json:
        look.print_json(rows)
        return
    out = look.console()
    for row in rows:
        said = f"{row['name']} {row['id']} drains: {look.counted(row['running'], 'job')} to finish"
        out.print(Text(look.plain(said)), soft_wrap=True)


def tell(rows: list[Row], out: Console) -> None:
    """Print workers as a table."""
    if not rows:
        out.print("no workers: start one with processor run module:app")
        return
    columns = ["name", "state", "running", "feed", "heard", "since", "queues"]
    wide = out.width >= _WIDE
    if wide:
        columns += ["version", "id"]
    lines = []
    for row in rows:
        line = [
            look.words(row["name"]),
            _state(row),
            look.words(f"{row['running']}/{row['slots']}"),
            look.words(row["feed"], "" if row["feed"] == "realtime" else "yellow"),
            look.words(f"{look.lasts(row['heartbeat_age_seconds'])} ago"),
            look.words(look.ago(row["started_at"])),
            look.words(", ".join(row["queues"])),
        ]
        if wide:
            line += [look.words(row["version"]), look.words(row["id"])]
        lines.append(line)
    look.print_table(out, columns, lines, right=("running",), flexible=("queues",))


def _state(row: Row) -> Text:
    if not row["alive"]:
        return Text("silent", "red")
    return Text("draining", "yellow") if row["draining"] else Text("alive", "green")
