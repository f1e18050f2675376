"""``processor maintain``: one round of housekeeping, for a timer; also when every daemon is dead."""

from __future__ import annotations

import asyncio

import structlog
import typer

from processor import config, log
from processor.alerts import Alert, NotTold, tell
from processor.cli.config import ConfigFile
from processor.cli.look import complain
from processor.cli.project import Code, refused
from processor.errors import ApiError, ConfigError
from processor.maintenance import clear_away, rescue
from processor.rpc import Rpc

_log = structlog.get_logger("processor.maintenance")


def maintain(config_file: ConfigFile = None) -> None:
    """Rescue the jobs of dead workers, clear away what is over; exit code 1 if no worker is alive."""
    log.set_up()
    try:
        settings = config.load(config=config_file)
        log.set_up(settings.log_level, settings.log_format, settings.secrets)
        well = asyncio.run(_round(settings))
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(Code.WRONG) from None
    except ApiError as error:
        raise typer.Exit(refused(error)) from None
    raise typer.Exit(0 if well else Code.REFUSED)


async def _round(settings: config.Settings) -> bool:
    """Do all of it, whatever fails of it, and tell of what is wrong; say whether all is well."""
    rpc = Rpc(settings.url, settings.key.get_secret_value(), api_key=settings.api_key)
    alerts: list[Alert] = []
    try:
        alive = await rescue(rpc)
        failed = await clear_away(rpc)
    except ApiError as error:
        alerts.append(
            Alert("ProcessorApiUnreachable", "critical", f"The project cannot be asked: {error.message}")
        )
        raise
    else:
        if not alive:
            alerts.append(
                Alert(
                    "ProcessorNoLiveWorker",
                    "critical",
                    "No worker renews its lease: what is pending waits until one is started. "
                    "On the daemons' machines: systemctl status 'processor*'",
                )
            )
        if failed:
            what = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            alerts.append(Alert("ProcessorMaintenanceFailed", "warning", f"Housekeeping failed: {what}"))
        _log.info("maintenance.round", workers_alive=alive, alerts=len(alerts))
    finally:
        await rpc.aclose()
        told = await _tell(settings, alerts)
    return told and not alerts


async def _tell(settings: config.Settings, alerts: list[Alert]) -> bool:
    for alert in alerts:
        _log.error("maintenance.alert", alert=alert.alert, severity=alert.severity, summary=alert.summary)
    if settings.alert_webhook is None or not alerts:
        return True
    try:
        await tell(settings.alert_webhook.get_secret_value(), alerts)
    except NotTold as error:
        _log.error("maintenance.not_told", error=str(error))
        return False
    return True
