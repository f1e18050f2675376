"""``processor config``: the settings that count, and where each came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from processor import config
from processor.errors import ConfigError

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file with settings; else PROCESSOR_CONFIG may name one", show_default=False
    ),
]
_SHOWN = 4
"""How many characters of a key are shown, the last ones, of which random ones are left enough."""
_LONG_ENOUGH = 20


def show(
    config_file: ConfigFile = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Print the settings as they count, where each came from, and no key."""
    try:
        settings = config.load(config=config_file)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(_as_json(settings), ensure_ascii=False))
    else:
        _tell(settings, Console(highlight=False))


def masked(key: str) -> str:
    """Return what may be shown of a key: enough to tell two apart."""
    return f"…{key[-_SHOWN:]}" if len(key) >= _LONG_ENOUGH else "…"


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return masked(value.get_secret_value())
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _as_json(settings: config.Settings) -> dict[str, Any]:
    return {
        "settings": {
            name: {
                "variable": config.variables(name)[0],
                "value": _shown(getattr(settings, name)),
                "origin": settings.origin(name).kind,
                "from": settings.origin(name).name or None,
            }
            for name in config.Settings.model_fields
        },
        "warnings": list(settings.warnings),
    }


def _tell(settings: config.Settings, out: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for name in config.Settings.model_fields:
        origin = settings.origin(name)
        value = _text(_shown(getattr(settings, name)))
        came_from = origin.name if origin.kind in {"variable", "command line"} else str(origin)
        style = "dim" if origin.kind == "default" else ""
        table.add_row(config.variables(name)[0], value, came_from, style=style)
    out.print(table)
    for warning in settings.warnings:
        out.print(Text.assemble(("! ", "yellow bold"), warning))


def _text(value: Any) -> str:
    match value:
        case None | []:
            return "-"
        case list():
            return ", ".join(value)
        case float():
            return f"{value:g}"
    return str(value)
