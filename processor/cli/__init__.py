"""The ``processor`` command: one file per command or command group."""

from __future__ import annotations

from typing import Annotated

import typer

from processor import __version__
from processor.cli.bench import app as bench
from processor.cli.config import show
from processor.cli.credits import app as credits_
from processor.cli.dev import dev
from processor.cli.doctor import doctor
from processor.cli.jobs import app as jobs
from processor.cli.maintain import maintain
from processor.cli.queues import app as queues
from processor.cli.run import run
from processor.cli.schedules import app as schedules
from processor.cli.schema import app as schema
from processor.cli.status import status
from processor.cli.webhooks import app as webhooks
from processor.cli.workers import app as workers

app = typer.Typer(
    name="processor",
    help="Turn rows of public.jobs in a Supabase project into finished work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # what users can mend is printed as one line; the rest is a traceback
)
app.command()(run)
app.command()(dev)
app.command("config")(show)
app.command()(status)
app.command()(doctor)
app.command()(maintain)
app.add_typer(jobs, name="jobs")
app.add_typer(queues, name="queues")
app.add_typer(credits_, name="credits")
app.add_typer(workers, name="workers")
app.add_typer(schedules, name="schedules")
app.add_typer(webhooks, name="webhooks")
app.add_typer(schema, name="schema")
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def options(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Turn rows of public.jobs in a Supabase project into finished work."""
    if version:
        typer.echo(f"processor {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the ``processor`` script."""
    app()
