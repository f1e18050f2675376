"""``processor doctor``: what can be wrong, what was seen, and how to mend it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from processor import config, log
from processor.cli.config import ConfigFile
from processor.doctor import Finding, Mark, examine
from processor.errors import ConfigError

_SIGNS = {Mark.OK: "[green]✓[/]", Mark.WARN: "[yellow]![/]", Mark.FAIL: "[red]✗[/]"}
_NAMES = 8
"""Characters of the longest check's name."""


def doctor(
    config_file: ConfigFile = None,
    *,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar="DATABASE_URL",
            help="postgresql://…, to compare every object of the schema too",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Look at settings, keys, API, schema, Realtime and clock; exit code 1 if anything must be mended."""
    log.set_up("critical", "console")
    found = asyncio.run(_look(config_file, database_url, None if as_json else Console(highlight=False)))
    failed = any(finding.mark is Mark.FAIL for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(f) for f in found]}, ensure_ascii=False))
    raise typer.Exit(1 if failed else 0)


async def _look(config_file: ConfigFile, database_url: str | None, out: Console | None) -> list[Finding]:
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if out is not None:
            out.print(_row(finding))

    try:
        settings = config.load(config=config_file)
    except ConfigError as error:
        for problem in str(error).splitlines()[1:]:
            tell(Finding("settings", Mark.FAIL, problem.strip(), "The README's table has every setting."))
        return found
    log.set_up("critical", "console", settings.secrets)
    async for finding in examine(settings, database_url):
        tell(finding)
    return found


def _row(finding: Finding) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(width=_NAMES)
    row.add_column(overflow="fold")
    text = Text(finding.seen)
    if finding.mend:
        text.append(f"\nto mend it: {finding.mend}", style="italic")
    row.add_row(_SIGNS[finding.mark], finding.check, text)
    return row
