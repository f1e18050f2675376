"""How commands reach the project: the daemon's settings, one connection, errors in one line, exit codes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from processor import config, errors, log
from processor.cli.look import complain
from processor.operators import Operators

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

_PATIENCE_SECONDS = 5.0
"""How long somebody at a terminal waits for a project that does not answer."""
_COMPLETION_SECONDS = 2.0


class Code(IntEnum):
    """The exit codes, beside 0."""

    REFUSED = 1
    """The project said no; of a watched job: it failed, or was cancelled."""
    WRONG = 2
    """What was typed, or a setting, cannot be right."""
    PARTIAL = 3
    """A watched job did only some of its items."""
    UNREACHABLE = 4
    """The project could not be asked: network, key, or schema."""
    INTERRUPTED = 130


class WrongInput(Exception):  # noqa: N818 - the name says what happened
    """What was typed cannot be right; the message says why."""


_WRONG = (
    errors.UnknownKind,
    errors.UnknownQueue,
    errors.InvalidPayload,
    errors.PayloadTooLarge,
    errors.InvalidItems,
    errors.InvalidArgument,
    errors.JobNotFound,
    errors.WorkerUnknown,
)
_UNREACHABLE = (errors.ApiUnreachable, errors.AuthFailed, errors.SchemaMissing, errors.SchemaMismatch)
_ADVICE: dict[type[errors.ApiError], str] = {
    errors.InsufficientCredits: "Give some with: processor credits grant OWNER AMOUNT",
    errors.JobNotFound: "Look for it with: processor jobs list",
    errors.UnknownQueue: "Their names: processor queues list",
    errors.WorkerUnknown: "Their names: processor workers list",
    errors.UnknownKind: "A kind is known once a worker with its handler has started: processor workers list",
}
"""What to do, at a terminal; for all others the database says it."""


def ask(config_file: Path | None, work: Callable[[Operators], Awaitable[T]]) -> T:
    """Do ``work`` with a connection to the project that the settings name, and return what it returns.

    Whatever goes wrong is said in one line on standard error, and ends the command with its exit code.
    """
    log.set_up("critical", "console")
    try:
        return asyncio.run(_ask(config_file, work))
    except (errors.ConfigError, WrongInput) as error:
        complain(str(error))
        raise typer.Exit(Code.WRONG) from None
    except errors.ApiError as error:
        raise typer.Exit(refused(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(Code.INTERRUPTED) from None


def refused(error: errors.ApiError) -> Code:
    """Say what the project refused, and what to do about it; return the exit code for that."""
    hint = _ADVICE.get(type(error), error.hint)
    said = f"{error.message} ({error.code})" if error.code else error.message
    complain(f"{said}. {hint}" if hint else said)
    if isinstance(error, _UNREACHABLE):
        return Code.UNREACHABLE
    return Code.WRONG if isinstance(error, _WRONG) else Code.REFUSED


async def _ask(config_file: Path | None, work: Callable[[Operators], Awaitable[T]]) -> T:
    settings = config.load(config=config_file)
    for warning in settings.warnings:
        complain(warning, "warning")
    log.set_up("critical", "console", settings.secrets)
    return await _connected(settings, work, _PATIENCE_SECONDS)


async def _connected(
    settings: config.Settings, work: Callable[[Operators], Awaitable[T]], patience: float
) -> T:
    key = settings.key.get_secret_value()
    project = Operators(settings.url, key, api_key=settings.api_key, patience=patience)
    try:
        return await work(project)
    finally:
        await project.aclose()


def names(
    rows: Callable[[Operators], Awaitable[list[dict[str, object]]]], column: str
) -> Callable[[str], list[str]]:
    """Return what completes names in the shell: a column of rows, or none if it cannot be had at once."""

    async def look(incomplete: str) -> list[str]:
        async with asyncio.timeout(_COMPLETION_SECONDS):
            found = await _connected(config.load(), rows, 0)
        return sorted({str(row[column]) for row in found if str(row[column]).startswith(incomplete)})

    def complete(incomplete: str) -> list[str]:
        log.set_up("critical", "console")
        try:
            return asyncio.run(look(incomplete))
        except (errors.ProcessorError, TimeoutError):
            return []  # a shell that completes has no place for reasons

    return complete
