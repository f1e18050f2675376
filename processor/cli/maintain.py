"""``processor maintain``: one round of housekeeping, for a timer; also when every daemon is dead."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from uuid import uuid4

import structlog
import typer

from processor import config, log
from processor.alerts import Memory, NotTold, tell
from processor.answers import Alert
from processor.cli.config import ConfigFile
from processor.cli.look import complain
from processor.cli.project import Code, refused
from processor.errors import ApiError, ConfigError
from processor.maintenance import clear_away, rescue
from processor.rpc import Rpc

_log = structlog.get_logger("processor.maintenance")


def maintain(config_file: ConfigFile = None) -> None:
    """Rescue the jobs of dead workers, clear away what is over, tell of what is wrong.

    Exit code 1: something critical is wrong, such as that no worker is alive, or housekeeping failed; 4: the
    project cannot be asked.
    """
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
    """Do all of it, whatever fails of it; say whether all is well."""
    rpc = Rpc(settings.url, settings.key.get_secret_value(), api_key=settings.api_key)
    try:
        alive = await rescue(rpc)
        failed = await clear_away(rpc)
        findings = [
            Alert(
                alert="ProcessorMaintenanceFailed",
                severity="warning",
                about=name,
                summary=f"Housekeeping failed: {name}: {reason}. What is over piles up in the database.",
            )
            for name, reason in failed.items()
        ]
        wrong, told = await _tell_once(settings, rpc, findings)
    except ApiError as error:
        await _tell_of_silence(settings, error)
        raise
    finally:
        await rpc.aclose()
    told = await _tell_of_its_end(settings) and told
    _log.info("maintenance.round", workers_alive=alive, alerts=len(wrong))
    return told and not failed and not any(alert.severity == "critical" for alert in wrong)


async def _tell_once(
    settings: config.Settings, rpc: Rpc, findings: Sequence[Alert]
) -> tuple[Sequence[Alert], bool]:
    """Tell what no other machine has told; return all that is wrong, and whether it could be told."""
    if settings.alert_webhook is None:
        wrong = (*await rpc.read_alerts(settings.alert_queue_depth), *findings)
        _write(wrong)
        return wrong, True
    request = uuid4()
    answer = await rpc.take_alerts(
        request,
        findings,
        max_depth=settings.alert_queue_depth,
        repeat_seconds=settings.alert_repeat_seconds,
    )
    _write(answer.wrong)
    if not answer.tell:
        return answer.wrong, True
    told = await _post(settings, answer.tell)
    await rpc.settle_alerts(request, told=told)
    return answer.wrong, told


async def _tell_of_silence(settings: config.Settings, error: ApiError) -> None:
    """Tell that the project cannot be asked: for this machine alone, because no other can be asked either."""
    alert = _silence(f"The project cannot be asked: {error.message}", "firing")
    _write([alert])
    memory = _memory(settings)
    if _remember(memory) and not await _post(settings, [alert]):
        _forget(memory)


async def _tell_of_its_end(settings: config.Settings) -> bool:
    memory = _memory(settings)
    if not _forget(memory):
        return True
    if await _post(settings, [_silence("The project can be asked again.", "resolved")]):
        return True
    _remember(memory)  # so that the next round tries again
    return False


def _memory(settings: config.Settings) -> Memory:
    return Memory(settings.spool_dir, settings.url, settings.alert_repeat_seconds)


def _remember(memory: Memory) -> bool:
    try:
        return memory.take()
    except OSError as trouble:
        _log.warning("maintenance.not_remembered", error=str(trouble))
        return True


def _forget(memory: Memory) -> bool:
    try:
        return memory.forget()
    except OSError as trouble:
        _log.warning("maintenance.not_remembered", error=str(trouble))
        return False


def _silence(summary: str, state: str) -> Alert:
    return Alert.model_validate(
        {
            "alert": "ProcessorApiUnreachable",
            "severity": "critical",
            "about": socket.gethostname(),
            "summary": summary,
            "state": state,
        }
    )


def _write(wrong: Sequence[Alert]) -> None:
    for alert in wrong:
        level = logging.ERROR if alert.severity == "critical" else logging.WARNING
        fields = alert.model_dump(mode="json", include={"alert", "severity", "about", "summary"})
        _log.log(level, "maintenance.alert", **fields)


async def _post(settings: config.Settings, alerts: Sequence[Alert]) -> bool:
    if settings.alert_webhook is None:
        return True
    try:
        await tell(settings.alert_webhook.get_secret_value(), alerts)
    except NotTold as error:
        _log.error("maintenance.not_told", error=str(error))
        return False
    _log.info("maintenance.told", alerts=[f"{alert.state} {alert.alert}" for alert in alerts])
    return True
