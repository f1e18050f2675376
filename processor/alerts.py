"""Telling people that something is wrong, without Prometheus: a request to an address that they give."""

import hashlib
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from processor.answers import Alert

_ATTEMPTS = 4
_TIMEOUT_SECONDS = 10.0


class NotTold(Exception):  # noqa: N818 - the name says what happened
    """Nobody heard of it; the message says why, and not the address, which often is a secret."""


async def tell(webhook: str, alerts: Sequence[Alert]) -> None:
    """Post ``{"text", "host", "alerts": [{"alert", "severity", "about", "summary", "since", "state"}, …]}``.

    ``text`` is what Slack, Mattermost and their like show. Asked again where an answer would make sense.

    Raises:
        NotTold: it was refused, or nobody answered.

    """
    body = {
        "text": "\n".join(_line(alert) for alert in alerts),
        "host": socket.gethostname(),
        "alerts": [alert.model_dump(mode="json") for alert in alerts],
    }
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as http:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(_passing),
                wait=wait_random_exponential(multiplier=0.2, max=3),
                stop=stop_after_attempt(_ATTEMPTS),
                reraise=True,
            ):
                with attempt:
                    (await http.post(webhook, json=body)).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise NotTold(f"PROCESSOR_ALERT_WEBHOOK answered {error.response.status_code}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotTold(f"PROCESSOR_ALERT_WEBHOOK cannot be reached: {type(error).__name__}") from error


class Memory:
    """Remembers on this machine's disk that people were told of something about ``url``.

    For what the database cannot remember: that it cannot be asked. Without a ``directory`` nothing is
    remembered, and everything is told each time. Its methods block for a moment, and raise ``OSError``.
    """

    def __init__(self, directory: Path | None, url: str, repeat_seconds: float) -> None:
        name = f"told-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self._path = None if directory is None else directory / name
        self._repeat = repeat_seconds

    def take(self) -> bool:
        """Say whether it is to be told now, which only one process at a time is told."""
        if self._path is None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._path.touch(exist_ok=False)
        except FileExistsError:
            if time.time() - self._path.stat().st_mtime < self._repeat:
                return False
            self._path.touch()
        return True

    def forget(self) -> bool:
        """Say whether people were told, to one process, and that they are to be told anew next time."""
        if self._path is None:
            return False
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


def _line(alert: Alert) -> str:
    return f"{alert.severity if alert.state == 'firing' else alert.state}: {alert.alert}: {alert.summary}"


def _passing(error: BaseException) -> bool:
    """Whether the next attempt may fare better."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)
