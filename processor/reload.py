"""Settings read again while the daemon runs: what can change does, the rest is named."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from processor.config import SECRETS, Settings, variables
from processor.errors import ConfigError

LIVE = frozenset(
    {
        "key",
        "log_level",
        "slots",
        "item_concurrency",
        "grace_seconds",
        "cancel_grace_seconds",
        "alert_webhook",
        "alert_repeat_seconds",
        "alert_queue_depth",
    }
)
"""Settings that a running daemon takes over; the others are built into its parts."""

log = structlog.get_logger("processor.reload")


class Reloader:
    """Reads the settings again when asked to.

    Args:
        settings: those that count now.
        read: looks for them again; may block, and raises ``ConfigError``.
        adopt: takes over settings that can change; is told the names of those that have.

    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        adopt: Callable[[Settings, frozenset[str]], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._read = read
        self._adopt = adopt
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have them read again soon."""
        self._asked.set()

    async def run(self) -> None:
        """Read whenever asked to, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload()
            except ConfigError as error:
                log.error("config.refused", error=str(error), kept="the settings are as they were")  # noqa: TRY400  it says all

    async def _reload(self) -> None:
        found = await asyncio.to_thread(self._read)
        old = self._settings
        changed = frozenset(n for n in Settings.model_fields if getattr(found, n) != getattr(old, n))
        fixed = changed - LIVE
        self._settings = found.model_copy(update={name: getattr(old, name) for name in fixed})
        for warning in found.warnings:
            log.warning("config.warning", warning=warning)
        if fixed:
            log.warning("config.restart_needed", settings=sorted(variables(name)[0] for name in fixed))
        await self._adopt(self._settings, changed & LIVE)
        # after it, so that whoever waits for this line sees the new settings at work
        log.info("config.reloaded", changed={name: _shown(found, name) for name in sorted(changed & LIVE)})


def _shown(settings: Settings, name: str) -> object:
    return "changed" if name in SECRETS else getattr(settings, name)
