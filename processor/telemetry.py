"""OpenTelemetry: the same metrics as ``/metrics``, sent every now and then; nothing is counted twice."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from processor.errors import ConfigError
from processor.metrics import Metrics
from processor.tracing import needs_otel

if TYPE_CHECKING:
    from processor.points import Points

_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_LAST_SECONDS = 3.0
"""How long the last metrics may take on the way out."""


class Telemetry:
    """Sends what a daemon's ``metrics`` have, every ``seconds``."""

    def __init__(self, metrics: Metrics, points: "Points", seconds: float) -> None:
        self._metrics = metrics
        self._points = points
        self._seconds = seconds

    async def run(self) -> None:
        """Send them again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            await self._metrics.refresh()
            await self._send()

    async def aclose(self) -> None:
        """Send them once more, if that takes no more than a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._send()
        self._points.close()

    async def _send(self) -> None:
        families = list(self._metrics.collect())  # here, where they change
        await asyncio.to_thread(self._points.send, families)


def telemetry(metrics: Metrics | None, *, wanted: bool) -> Telemetry | None:
    """Return what sends these metrics, if that is wanted.

    Raises:
        ConfigError: the SDK is missing, or ``OTEL_METRIC_EXPORT_INTERVAL`` is no number of milliseconds.

    """
    if metrics is None or not wanted:
        return None
    seconds = _interval(os.environ)
    try:
        from processor.points import Points  # noqa: PLC0415  needs an extra
    except ImportError as error:
        raise ConfigError(needs_otel("metrics", error)) from error
    return Telemetry(metrics, Points(), seconds)


def _interval(environment: Mapping[str, str]) -> float:
    """Return the seconds between two times, as the SDK's own variable says."""
    text = environment.get(_INTERVAL) or "60000"
    try:
        seconds = float(text) / 1000
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{_INTERVAL}: {text!r} is no number of milliseconds above 0")
    return seconds
