"""Sentry, or what speaks its protocol, by its official SDK: what nobody expected becomes an event there.

The SDK's integrations are all off: they would patch what others use, tell what is logged a second time, and
show local variables, hence payloads. The client is this daemon's own, beside one that an application may have
set up. The SDK's own variables count for the rest, such as ``SENTRY_ENVIRONMENT`` and ``SENTRY_RELEASE``.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import sentry_sdk
import structlog
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event, Hint
from sentry_sdk.utils import BadDsn, event_from_exception

from processor.errors import ConfigError
from processor.incidents import Incidents
from processor.job import Job
from processor.redact import redact

_FLUSH_SECONDS = 3.0
"""How long the last events may take on the way out."""
_A_MINUTE = 60
"""Events at most: making one takes the loop's time, and a handler that is broken breaks for every job."""
_READ = 100_000
"""Characters of an exception's text that are looked at; of a longer one nothing is told."""
_KEPT = 8_000
_SHORTEST = 4
"""Characters of a payload's value that is looked for: hiding shorter ones would mangle words."""

_HIDDEN = "[payload]"
_INPUT = re.compile(r"input_value=.*?, input_type=", re.DOTALL)
"""Where pydantic quotes a value, cut short."""

log = structlog.get_logger("processor.sentry")


class Sentry(Incidents):
    """Sends events with ``client``, from a thread of the SDK's; more than so many a minute are left out."""

    def __init__(self, client: sentry_sdk.Client, *, a_minute: int = _A_MINUTE) -> None:
        self._client = client
        self._a_minute = a_minute
        self._minute = 0
        self._sent = 0

    def attempt_crashed(self, job: Job, error: BaseException) -> None:
        """Report what a handler raised."""
        self._report(error, "error", job)

    def hook_failed(self, job: Job, hook: str, error: BaseException) -> None:
        """Report what a hook raised."""
        self._report(error, "error", job, hook=hook)

    def task_died(self, name: str, error: BaseException | None) -> None:
        """Report the end of a part of the daemon, with what it raised, if it did."""
        self._report(error or RuntimeError(f"{name} ended by itself"), "fatal", task=name)

    async def aclose(self) -> None:
        """Send what has not been sent, for a moment."""
        await asyncio.to_thread(self._client.close, _FLUSH_SECONDS)

    def _report(self, error: BaseException, level: str, job: Job | None = None, **tags: str) -> None:
        if not self._may_send():
            return
        try:
            event, hint = event_from_exception(error, client_options=self._client.options)
            hide_payload(event, job)
            of_job = {} if job is None else _tags(job)
            event |= {"level": level, "logger": "processor", "tags": {**of_job, **tags}}  # type: ignore[typeddict-item]  # the level is one of them
            if job is not None:
                event["transaction"] = job.kind
            self._client.capture_event(event, hint)
        except Exception as broken:  # noqa: BLE001  an exception's own code; and nothing here may cost a job
            log.warning("sentry.not_reported", error=type(error).__name__, reason=repr(broken))

    def _may_send(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._sent = minute, 0
        self._sent += 1
        if self._sent == self._a_minute + 1:
            log.warning("sentry.enough", a_minute=self._a_minute, then="the rest of this minute is left out")
        return self._sent <= self._a_minute


class _Transport(HttpTransport):
    """Says what got lost: the SDK does so only while it is debugged."""

    def on_dropped_event(self, reason: str) -> None:
        log.warning("sentry.dropped", reason=reason)


def sentry(dsn: str, name: str) -> Sentry:
    """Return what reports to ``dsn`` as the worker of this name; raises ``ConfigError`` if that is no DSN."""
    try:
        client = sentry_sdk.Client(
            dsn=dsn,
            server_name=name,
            transport=_Transport,
            before_send=_redacted,
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            max_breadcrumbs=0,
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,
        )
    except BadDsn as error:
        raise ConfigError(
            f"PROCESSOR_SENTRY_DSN: {error}. It must look like https://key@o1.ingest.sentry.io/2: copy it "
            "from the settings of the project in Sentry (Client Keys)."
        ) from None
    return Sentry(client)


def hide_payload(event: Event, job: Job | None) -> None:
    """Take out of an event what an exception's text quotes of the job's payload: each value as a whole."""
    values = sorted(set() if job is None else set(_values(job)), key=len, reverse=True)
    for told in event.get("exception", {}).get("values", ()):
        text = str(told.get("value") or "")
        if len(text) > _READ:
            told["value"] = f"a text of {len(text)} characters, which is not told"
            continue
        text = _INPUT.sub(f"input_value={_HIDDEN}, input_type=", text)
        for value in values:
            text = text.replace(value, _HIDDEN)
        told["value"] = text[:_KEPT]


def _values(job: Job) -> Iterator[str]:
    """Go through the values of a job's payload, and of its items', as texts may quote them."""
    waiting: list[Any] = [job.payload, *(item.payload for item in job.items)]
    while waiting:
        match waiting.pop():
            case dict() as fields:
                waiting.extend(fields.values())
            case list() as parts:
                waiting.extend(parts)
            case str() as text if len(text) >= _SHORTEST:
                yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1])
            case (int() | float()) as number if len(str(number)) >= _SHORTEST and number not in {True, False}:
                yield str(number)


def _tags(job: Job) -> dict[str, str]:
    return {
        "job_id": str(job.id),
        "kind": job.kind,
        "queue": job.queue,
        "attempt": str(job.attempt),
    }


def _redacted(event: Event, _hint: Hint) -> Event:
    """Hide every secret in it, wherever it is: the last look before it leaves."""
    text = json.dumps(event, default=str, ensure_ascii=False)
    if redact(text) == text:  # one look at all of it costs a tenth of one at each of its lines of source
        return event
    clean: Event = _clean(event)
    return clean


def _clean(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {name: _clean(part) for name, part in value.items()}
        case list():
            return [_clean(part) for part in value]
    return value
