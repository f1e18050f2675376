"""What an exception means for the job: its code, and whether and when to try again."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self

import httpx

from processor.errors import ApiError, ApiUnreachable, ErrorCode, InsufficientCredits, JobError
from processor.job import Discard, Failure, Retry
from processor.jsonb import to_text

MAX_RETRY_AFTER = 3600.0
"""Seconds: an upstream may ask for patience, but not park a job for days."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One mapping that a user added."""

    code: str
    retryable: bool | None
    retry_after: Callable[[BaseException], float | None] | None


class Classifier:
    """Exception → :class:`Failure`. Knows httpx, asyncio and sockets; users add their own types."""

    def __init__(self) -> None:
        self._rules: dict[type[BaseException], Rule] = {}

    def add(
        self,
        error: type[BaseException],
        code: str,
        *,
        retryable: bool | None = None,
        retry_after: Callable[[BaseException], float | None] | None = None,
    ) -> Self:
        """Give ``error`` and its subclasses a code; ``retry_after`` may read seconds from it."""
        JobError("", code=code)  # one place knows what a code looks like
        self._rules[error] = Rule(code, retryable, retry_after)
        return self

    def classify(self, error: BaseException) -> Failure:
        """Say what ``error`` means; an unknown one is a crash of the handler, and retryable."""
        for cause in _causes(error):
            failure = self._by_rule(cause) or _built_in(cause)
            if failure is not None:
                return failure
        return _failure(ErrorCode.HANDLER_CRASHED, error)

    def _by_rule(self, error: BaseException) -> Failure | None:
        for base in type(error).__mro__:
            rule = self._rules.get(base)
            if rule is not None:
                delay = rule.retry_after(error) if rule.retry_after else None
                known = JobError(str(error), code=rule.code, retryable=rule.retryable, retry_after=delay)
                return Failure(known.code, _message(error), known.retryable, _capped(delay))
        return None


def retry_after(headers: httpx.Headers, *, now: datetime | None = None) -> float | None:
    """Read ``Retry-After`` as seconds, from either of its forms, capped; None if absent or garbage."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isdecimal():
        return _capped(float(value))
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return _capped((when - (now or datetime.now(UTC))).total_seconds())


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error, then what it was explicitly raised from, and the lone member of a group."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        if isinstance(current, BaseExceptionGroup) and len(current.exceptions) == 1:
            current = current.exceptions[0]
        else:
            current = current.__cause__
    return chain


def _built_in(error: BaseException) -> Failure | None:
    match error:
        case JobError():
            return Failure(error.code, to_text(error), error.retryable, _capped(error.retry_after))
        case Retry():
            return Failure(ErrorCode.RETRY_REQUESTED, to_text(error.reason), True, error.delay)
        case Discard():
            return Failure(ErrorCode.DISCARDED, to_text(error.reason), False)
        # a handler meets the jobs' API where it spawns children
        case InsufficientCredits():
            return _failure(ErrorCode.INSUFFICIENT_CREDITS, error)
        case ApiError(code="JQ014"):
            return _failure(ErrorCode.TOO_MANY_PENDING, error)
        case ApiUnreachable():
            return _failure(ErrorCode.UPSTREAM_UNAVAILABLE, error)
        case ApiError():
            return _failure(ErrorCode.CHILD_REFUSED, error)
        case TimeoutError() | httpx.TimeoutException():
            return _failure(ErrorCode.UPSTREAM_TIMEOUT, error)
        case httpx.UnsupportedProtocol():
            return None
        case httpx.TransportError() | ConnectionError() | socket.gaierror():
            return _failure(ErrorCode.UPSTREAM_UNAVAILABLE, error)
    # httpx.HTTPStatusError, and clients built on httpx that keep the response the same way
    response = getattr(error, "response", None)
    return _by_status(error, response) if isinstance(response, httpx.Response) else None


def _by_status(error: BaseException, response: httpx.Response) -> Failure | None:
    status = response.status_code
    delay = retry_after(response.headers)
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return _failure(ErrorCode.RATE_LIMITED, error, delay)
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return _failure(ErrorCode.AUTH_FAILED, error)
    if status in {httpx.codes.REQUEST_TIMEOUT, httpx.codes.GATEWAY_TIMEOUT}:
        return _failure(ErrorCode.UPSTREAM_TIMEOUT, error, delay)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return _failure(ErrorCode.UPSTREAM_UNAVAILABLE, error, delay)
    if status >= httpx.codes.BAD_REQUEST:
        return _failure(ErrorCode.UPSTREAM_REJECTED, error)
    return None


def _failure(code: ErrorCode, error: BaseException, delay: float | None = None) -> Failure:
    return Failure(code, _message(error), code.retryable, delay)


def _message(error: BaseException) -> str:
    text = str(error).strip()
    name = type(error).__name__
    return to_text(f"{name}: {text}" if text else name)


def _capped(delay: float | None) -> float | None:
    return None if delay is None else min(max(delay, 0.0), MAX_RETRY_AFTER)
