"""``processor maintain``: one round of housekeeping, for a timer; also when every daemon is dead."""

from __future__ import annotations

import asyncio

import structlog
import typer

from processor import config, log
from processor.cli.config import ConfigFile
from processor.cli.look import complain
from processor.cli.project import Code, refused
from processor.errors import ApiError, ConfigError
from processor.maintenance import clear_away, rescue
from processor.rpc import Rpc


def maintain(config_file: ConfigFile = None) -> None:
    """Rescue the jobs of dead workers, clear away what is over; exit code 1 if no worker is alive."""
    log.set_up()
    try:
        settings = config.load(config=config_file)
        log.set_up(settings.log_level, settings.log_format, settings.secrets)
        problems = asyncio.run(_round(settings))
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(Code.WRONG) from None
    except ApiError as error:
        raise typer.Exit(refused(error)) from None
    raise typer.Exit(Code.REFUSED if problems else 0)


async def _round(settings: config.Settings) -> bool:
    """Do all of it, whatever fails of it; say whether somebody must look."""
    logger = structlog.get_logger("processor.maintenance")
    rpc = Rpc(settings.url, settings.key.get_secret_value(), api_key=settings.api_key)
    try:
        alive = await rescue(rpc)
        failed = await clear_away(rpc)
    finally:
        await rpc.aclose()
    if not alive:
        logger.error(
            "maintenance.no_worker",
            reason="no worker renews its lease: pending jobs wait until one is started",
            hint="On the daemons' machines: systemctl status 'processor*'",
        )
    logger.info("maintenance.round", workers_alive=alive, failed=sorted(failed))
    return not alive or bool(failed)
