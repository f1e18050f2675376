"""``processor schema``: put the schema into a database, see what one has, print it for the SQL editor."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from processor import schema
from processor.rpc import SCHEMA_VERSION
from processor.schema import SchemaError

Result = TypeVar("Result")

app = typer.Typer(help="The SQL schema: apply, status, print.", no_args_is_help=True)
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
    """Put the schema into a database. Safe to repeat: what is there stays."""
    _run(schema.apply(database_url))
    out.print(f"[green]✓[/green] schema version {SCHEMA_VERSION} is in place")


@app.command()
def status(database_url: DatabaseUrl) -> None:
    """Say what a database has; exit code 1 if the daemon could not work with it."""
    found = _run(schema.status(database_url))
    if found.installed is None:
        out.print("[red]✗[/red] the schema is not installed. Run: processor schema apply --database-url …")
    elif found.installed != found.wanted:
        out.print(
            f"[red]✗[/red] the database has schema version {found.installed}, this package needs "
            f"{found.wanted}. Run: processor schema apply --database-url …"
        )
    else:
        out.print(f"[green]✓[/green] schema version {found.installed}")
    for problem in found.problems:
        out.print(f"[red]✗[/red] {escape(problem)}. To mend it: processor schema apply --database-url …")
    if not found.ok:
        raise typer.Exit(1)


@app.command("print")
def print_() -> None:
    """Print the whole schema, to be pasted into the Supabase SQL editor."""
    for name, text in schema.sql_files():
        typer.echo(f"-- ===== {name} =====\n{text}")


def _run(work: Coroutine[None, None, Result]) -> Result:
    try:
        return asyncio.run(work)
    except SchemaError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from error
