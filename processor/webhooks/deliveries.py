"""The handler of ``webhook.deliver``: may it be sent now, send it, and what the answer means."""

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from pydantic import BaseModel
from pydantic_core import to_json

from processor.answers import Attempt, Delivery
from processor.app import Processor
from processor.context import JobContext
from processor.errors import ApiError, ApiUnreachable, ErrorCode, JobError
from processor.job import Snooze
from processor.rpc import Rpc
from processor.upstream import by_status, retry_after
from processor.webhooks.sender import Answer, Sender

log = structlog.get_logger("processor.webhooks")

QUEUE = "webhooks"
KIND = "webhook.deliver"
_AWAY_SECONDS = 5.0
"""Until it is tried again when the API was away; that costs no attempt."""
_PATIENT = frozenset({429, 503})
"""The statuses whose ``Retry-After`` counts."""
_GONE = 410
_WHY_GONE = {
    "removed": "its endpoint was removed",
    "disabled": "its endpoint is disabled",
    "expired": "its endpoint took nothing for as long as it was to be tried",
}


class Message(BaseModel):
    """What the database writes into a delivery."""

    endpoint_id: UUID
    message_id: str
    event: dict[str, Any]


class Deliveries:
    """Carries webhooks out, for one worker."""

    def __init__(self, rpc: Callable[[], Rpc], worker_id: UUID, sender: Sender) -> None:
        self._rpc = rpc
        self._worker_id = worker_id
        self._sender = sender

    def application(self) -> Processor:
        """Return the handler as an application of its own: the user's rules and middleware are not for it."""
        app = Processor()
        app.job(KIND, queue=QUEUE, description="Send one webhook to its endpoint.")(self.deliver)
        return app

    async def deliver(self, job: JobContext[Message]) -> dict[str, Any]:
        """Send one webhook.

        Raises:
            JobError: it was not taken; another attempt is made where that may help.
            Snooze: the endpoint is asked too often, or has failed too often in a row.

        """
        attempt = Attempt(job.id, job.attempt)
        delivery = await self._begun(attempt)
        began = time.monotonic()
        status: int | None = None
        try:
            answer = await self._sender.send(
                delivery.url,
                job.payload.message_id,
                to_json(job.payload.event),
                delivery.secrets,
                within=delivery.timeout_seconds,
                plain=delivery.allow_http,
            )
        except JobError as error:
            failure: JobError | None = error
        else:
            status = answer.status
            failure = judged(answer, wait=delivery.retry_seconds)
        seconds = round(time.monotonic() - began, 3)
        await self._ended(attempt, failure, status, seconds)
        about = {"endpoint_id": str(job.payload.endpoint_id), "message_id": job.payload.message_id}
        if failure is not None:
            log.warning("webhook.failed", status=status, seconds=seconds, error=str(failure), **about)
            raise failure
        log.info("webhook.delivered", status=status, seconds=seconds, **about)
        return {"status": status, "seconds": seconds}

    async def _begun(self, attempt: Attempt) -> Delivery:
        """Ask whether it may be sent now, and where to; raises what a job that may not be sent comes to."""
        try:
            delivery = await self._rpc().begin_delivery(self._worker_id, attempt)
        except ApiUnreachable as error:
            raise Snooze(_AWAY_SECONDS, "the API was away") from error
        except ApiError as error:  # whatever is wrong there may be mended in a day
            raise JobError(str(error), code=ErrorCode.UPSTREAM_REJECTED, retryable=True) from error
        if delivery.go:
            return delivery
        if delivery.stale:
            raise JobError("another worker has the job", code=ErrorCode.LEASE_LOST)
        if delivery.gone or delivery.wait_seconds is None:
            why = _WHY_GONE.get(delivery.reason or "", f"{delivery.reason}")
            raise JobError(f"the webhook is not sent: {why}", code=ErrorCode.WEBHOOK_GONE)
        raise Snooze(delivery.wait_seconds, f"its endpoint is left alone: {delivery.reason}")

    async def _ended(
        self, attempt: Attempt, failure: JobError | None, status: int | None, seconds: float
    ) -> None:
        """Have the endpoint know what came of it; whatever comes of that, the message is sent or is not."""
        error = None if failure is None else str(failure)
        try:
            await self._rpc().end_delivery(
                self._worker_id,
                attempt,
                succeeded=failure is None,
                status=status,
                error=error,
                seconds=seconds,
            )
        except ApiError as refused:
            log.warning("webhook.not_counted", error=str(refused))


def judged(answer: Answer, *, wait: float | None) -> JobError | None:
    """Say what is wrong with an answer; None: the receiver has the message.

    ``wait`` is how long, in seconds, the queue waits before the next attempt: ``Retry-After`` may ask for
    more, but not for less, or the attempts of a day would be over in a moment.
    """
    if 200 <= answer.status <= 299:
        return None
    said = f"{answer.receiver} answered {answer.status}"
    if answer.status == _GONE:
        return JobError(f"{said}: it wants no more webhooks", code=ErrorCode.WEBHOOK_GONE)
    if 300 <= answer.status <= 399:
        reason = "redirects are not followed, so the endpoint needs the URL of its last one"
    else:
        reason = answer.excerpt or "and nothing else"
    code, _ = by_status(answer.status, None) or (ErrorCode.UPSTREAM_INVALID, None)
    patience = retry_after(answer.headers) if answer.status in _PATIENT else None
    delay = None if patience is None or wait is None else max(patience, wait)
    return JobError(f"{said}: {reason}", code=code, retryable=True, retry_after=delay)
