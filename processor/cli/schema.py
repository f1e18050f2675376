"""``processor schema``: put the schema into a database, see what one has, print it, export it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from processor import schema
from processor.rpc import SCHEMA_VERSION
from processor.schema import Problem, SchemaError, SchemaStatus

Result = TypeVar("Result")

app = typer.Typer(help="The SQL schema: apply, status, print, export.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="DATABASE_URL",
        help="postgresql://postgres:…@host:5432/postgres; the dashboard shows it under Connect.",
        show_default=False,
    ),
]


@app.command()
def apply(database_url: DatabaseUrl) -> None:
    """Put the schema into a database, or bring an older one up. Safe to repeat: what is there stays."""
    _run(schema.apply(database_url))
    out.print(f"[green]✓[/green] schema version {SCHEMA_VERSION} is in place")
    for problem in _run(schema.status(database_url)).problems:  # what files that may be repeated cannot mend
        _warn(problem)


@app.command()
def status(
    database_url: DatabaseUrl,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Say what is missing in a database, or is not as it should be; exit code 1 if anything is."""
    found = _run(schema.status(database_url))
    if as_json:
        typer.echo(json.dumps(_as_json(found), ensure_ascii=False))
    else:
        _tell(found)
    if not found.ok:
        raise typer.Exit(1)


@app.command("print")
def print_() -> None:
    """Print what brings any database to this version, to be pasted into the Supabase SQL editor."""
    typer.echo(schema.script(schema.migrations()))


@app.command()
def export(
    project: Annotated[Path, typer.Argument(help="Directory of the project, the one with supabase/ in it.")],
) -> None:
    """Write the schema as migrations of the Supabase CLI, or what is new since the last time."""
    try:
        written = schema.export(project)
    except SchemaError as error:
        raise _failed(error) from error
    for path in written:
        out.print(f"[green]✓[/green] {escape(str(path))}")
    out.print("run: supabase db push" if written else "nothing is new")


def _tell(found: SchemaStatus) -> None:
    if found.installed is None:
        out.print("[red]✗[/red] the schema is not installed. Run: processor schema apply --database-url …")
    elif found.installed != found.wanted:
        upgrade = (
            "processor schema apply --database-url …"
            if found.installed < found.wanted
            else "pip install --upgrade supabase-job-processor"
        )
        out.print(
            f"[red]✗[/red] the database has schema version {found.installed}, this package needs "
            f"{found.wanted}. Run: {upgrade}"
        )
    elif found.ok:
        out.print(f"[green]✓[/green] schema version {found.installed}")
    else:
        out.print(f"[red]✗[/red] schema version {found.installed}, but not as it should be")
    for problem in found.problems:
        _warn(problem)


def _warn(problem: Problem) -> None:
    mark = "[red bold]✗ serious:[/red bold]" if problem.serious else "[red]✗[/red]"
    out.print(f"{mark} {escape(problem.says)}\n    to mend it: {escape(problem.mend)}")


def _as_json(found: SchemaStatus) -> dict[str, object]:
    problems = [asdict(problem) | {"mend": problem.mend} for problem in found.problems]
    return {"ok": found.ok, "installed": found.installed, "wanted": found.wanted, "problems": problems}


def _run(work: Coroutine[None, None, Result]) -> Result:
    try:
        return asyncio.run(work)
    except SchemaError as error:
        raise _failed(error) from error


def _failed(error: SchemaError) -> typer.Exit:
    err.print(f"[red]error:[/red] {escape(str(error))}")
    return typer.Exit(1)
