"""``processor run``: the daemon."""

import asyncio
import gc
import importlib
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from processor import config, log
from processor.app import Processor
from processor.cli.config import ConfigFile
from processor.daemon import Daemon
from processor.errors import ApiError, ConfigError, ResourceFailed, UsageError, did_you_mean
from processor.logfile import LogFile
from processor.single import named

_LEAVE_SECONDS = 3.0
"""How long a daemon that has ended may take to leave Python."""
GARBAGE = 10_000
"""New objects until Python looks for cycles: at its own 700 that takes a sixth of a busy daemon's time."""


def run(
    target: Annotated[
        str, typer.Argument(help="module:app, as in examples.translation.app:app", show_default=False)
    ],
    queue: Annotated[
        list[str] | None, typer.Option(help="work on this queue only; repeat it for more", show_default=False)
    ] = None,
    slots: Annotated[int | None, typer.Option(help="jobs at the same time", show_default=False)] = None,
    config_file: ConfigFile = None,
) -> None:
    """Run the daemon of an application, until SIGTERM or Ctrl-C."""
    _open_standard_streams()
    read = partial(config.load, config=config_file, queues=tuple(queue) if queue else None, slots=slots)
    try:
        settings = read()
        log.set_up(
            settings.log_level,
            settings.log_format,
            settings.secrets,
            file=None
            if settings.log_file is None
            else LogFile(settings.log_file, settings.log_file_max_mb * 1_000_000),
            repeats=settings.log_repeats,
        )
        for warning in settings.warnings:
            structlog.get_logger("processor.cli").warning("config.warning", warning=warning)
        app = load_app(target)
        with named(settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_run(Daemon(app, settings, reread=read)))
    except (ConfigError, UsageError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except ApiError as error:
        typer.echo(_several_lines(error), err=True)
        raise typer.Exit(1) from None
    except ResourceFailed as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _open_standard_streams() -> None:
    """Give the numbers 0 to 2 to /dev/null where a supervisor closed them: libuv aborts if it gets one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


async def _run(daemon: Daemon) -> int:
    gc.freeze()  # the modules stay for good: nobody need go through them again
    gc.set_threshold(GARBAGE)
    code = await daemon.run()
    log.flush()
    # all is settled, but asyncio and the interpreter would wait for handlers and threads that nobody can stop
    leave = threading.Timer(_LEAVE_SECONDS, _leave, [code])
    leave.daemon = True
    leave.start()
    return code


def _leave(code: int) -> None:
    """End the process whatever still runs in it."""
    structlog.get_logger("processor.cli").warning(
        "daemon.left_running", reason="a handler or one of its threads could not be stopped"
    )
    os._exit(code)


def load_app(target: str) -> Processor:
    """Import ``module:attribute``, with the working directory on the path.

    Raises :class:`UsageError` if it is not a :class:`Processor`; what the module itself raises passes.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{target!r} must name a module and an attribute in it, like jobs:app.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        near = did_you_mean(module_name, (path.stem for path in Path.cwd().glob("*.py")))
        raise UsageError(
            f"There is no module {module_name!r} in {here} or on the Python path.{near}"
        ) from None
    apps = [name for name, value in vars(module).items() if isinstance(value, Processor)]
    found = getattr(module, attribute, None)
    if found is None:
        near = did_you_mean(attribute, apps) or (f" It has {', '.join(apps)}." if apps else "")
        raise UsageError(f"{module_name} has no {attribute!r}.{near}")
    if not isinstance(found, Processor):
        raise UsageError(
            f"{target} is a {type(found).__name__}, not a Processor."
            + (f" Did you mean {module_name}:{apps[0]}?" if apps else " Write `app = Processor()`.")
        )
    return found


def _several_lines(error: ApiError) -> str:
    lines = [f"{error.message} ({error.code})" if error.code else error.message]
    return "\n".join(lines + [text for text in (error.detail, error.hint) if text])
