"""Telling people that something is wrong, without Prometheus: a request to an address that they give."""

import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

_ATTEMPTS = 4
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong now."""

    alert: str
    """Its name, the same every time, and the same as in Prometheus' rules."""
    severity: Literal["critical", "warning"]
    summary: str
    """What it means and what to do, in a sentence or two."""
    since: str | None = None
    """Since when, as ISO 8601, as far as anybody knows."""


class NotTold(Exception):  # noqa: N818 - the name says what happened
    """Nobody heard of it; the message says why, and not the address, which often is a secret."""


async def tell(webhook: str, alerts: Sequence[Alert]) -> None:
    """Post ``{"text": …, "host": …, "alerts": [{"alert", "severity", "summary", "since"}, …]}``.

    ``text`` is what Slack, Mattermost and their like show. Asked again where an answer would make sense.

    Raises:
        NotTold: it was refused, or nobody answered.

    """
    host = socket.gethostname()
    lines = [f"{alert.severity}: {alert.alert}: {alert.summary}" for alert in alerts]
    body = {"text": "\n".join(lines), "host": host, "alerts": [asdict(alert) for alert in alerts]}
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


def _passing(error: BaseException) -> bool:
    """Whether the next attempt may fare better."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)
