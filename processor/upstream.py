"""What the exceptions of others mean: of httpx, asyncio, sockets, files, supabase, and clients like them.

Libraries that are not there are known by what their exceptions look like: a response with a status and
headers, a status of their own, or, from a library that does nothing but talk to others, a telling name.
"""

import asyncio
import concurrent.futures
import errno
import http.client
import json
import math
import socket
import ssl
import urllib.error
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import ValidationError

from processor.errors import ErrorCode
from processor.refusal import is_transient

MAX_RETRY_AFTER = 3600.0
"""Seconds: an upstream may ask for patience, but not park a job for days."""

_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_UNREACHABLE = frozenset(
    {
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.EADDRNOTAVAIL, errno.ENOTCONN, errno.EPROTO),
    }
)
_TALKERS = frozenset({"aiohttp", "requests", "urllib3", "websockets", "botocore", "grpc", "redis", "aiomqtt"})
"""Libraries of whose exceptions the name tells enough."""
_BROKEN = ("connect", "closed", "protocol", "ssl", "proxy", "payload", "chunkedencoding", "incomplete")
_INVALID_TOKENS = frozenset({"PGRST301", "PGRST302", "PGRST303", "42501"})
_CREATING = {"PT402": ErrorCode.INSUFFICIENT_CREDITS, "JQ014": ErrorCode.TOO_MANY_PENDING}
"""What creating a job through ``job.supabase`` may be refused for, beside what makes no sense."""


def meaning(error: BaseException) -> tuple[ErrorCode, float | None] | None:
    """Return the code and the wait in seconds that ``error`` asks for, or None if it is unknown here."""
    match error:
        case TimeoutError() | httpx.TimeoutException() | asyncio.TimeoutError():
            return ErrorCode.UPSTREAM_TIMEOUT, None
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError():
            return None  # the request was wrong, not the answer
        case httpx.DecodingError() | json.JSONDecodeError() | ValidationError():
            return ErrorCode.UPSTREAM_INVALID, None
        case httpx.TooManyRedirects():
            return ErrorCode.UPSTREAM_REJECTED, None
        case httpx.TransportError() | http.client.HTTPException():
            return ErrorCode.UPSTREAM_UNAVAILABLE, None
        case asyncio.IncompleteReadError() | asyncio.LimitOverrunError():
            return ErrorCode.UPSTREAM_UNAVAILABLE, None
        case MemoryError():
            return ErrorCode.OUT_OF_RESOURCES, None
        case concurrent.futures.BrokenExecutor():
            return ErrorCode.HANDLER_CRASHED, None
        case urllib.error.HTTPError():
            return by_status(error.code, error.headers)
    return _by_response(error) or _by_postgrest(error) or _by_system(error) or _by_name(error)


def by_status(status: int, headers: Any) -> tuple[ErrorCode, float | None] | None:
    """Say what an HTTP status means; None if it is none that an error has."""
    match status:
        case 429:
            return ErrorCode.RATE_LIMITED, retry_after(headers)
        case 401 | 403:
            return ErrorCode.AUTH_FAILED, None
        case 408 | 504:
            return ErrorCode.UPSTREAM_TIMEOUT, retry_after(headers)
        case 425:
            return ErrorCode.UPSTREAM_UNAVAILABLE, retry_after(headers)
    if 500 <= status <= 599:
        return ErrorCode.UPSTREAM_UNAVAILABLE, retry_after(headers)
    return (ErrorCode.UPSTREAM_REJECTED, None) if 300 <= status <= 499 else None


def retry_after(headers: Any, *, now: datetime | None = None) -> float | None:
    """Read ``Retry-After`` as seconds, from either of its forms, capped; None if absent or garbage.

    A date is compared with the answer's own ``Date``, because the two clocks may differ; without one with
    ``now``, by default the local clock.
    """
    value = _header(headers, "Retry-After")
    if value.isdecimal():
        return capped(float(value))
    when = _date(value)
    if when is None:
        return None
    sent = _date(_header(headers, "Date")) or now or datetime.now(UTC)
    return capped((when - sent).total_seconds())


def capped(delay: Any) -> float | None:
    """Bring a wait in seconds into its range; None if it is no number."""
    try:
        seconds = float(delay)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _header(headers: Any, name: str) -> str:
    if not isinstance(headers, Mapping) and not hasattr(headers, "get"):
        return ""
    value = headers.get(name) or headers.get(name.lower())
    return value.strip() if isinstance(value, str) else ""


def _date(value: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when


def _by_response(error: BaseException) -> tuple[ErrorCode, float | None] | None:
    """Look for a status: of a response that the error keeps, or its own."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        metadata = response.get("ResponseMetadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders")
    else:
        source = error if response is None else response
        status = getattr(source, "status_code", None) or getattr(source, "status", None)
        headers = getattr(source, "headers", None)
    if isinstance(status, str) and status.isdecimal():  # storage3's
        status = int(status)
    return by_status(status, headers) if isinstance(status, int) else None


def _by_postgrest(error: BaseException) -> tuple[ErrorCode, float | None] | None:
    """Read PostgREST's codes, and the SQLSTATEs it passes on."""
    if type(error).__module__.partition(".")[0] != "postgrest":
        return None
    code = str(getattr(error, "code", None) or "")
    if code.isdecimal() and len(code) == 3:  # an answer that was not PostgREST's
        return by_status(int(code), None)
    if code in _CREATING:
        return _CREATING[code], None
    if code in _INVALID_TOKENS:
        return ErrorCode.AUTH_FAILED, None
    if code in {"57014", "PGRST003"}:
        return ErrorCode.UPSTREAM_TIMEOUT, None
    return (ErrorCode.UPSTREAM_UNAVAILABLE if is_transient(code) else ErrorCode.UPSTREAM_REJECTED), None


def _by_system(error: BaseException) -> tuple[ErrorCode, float | None] | None:
    """Read what the operating system says; a file that is missing or forbidden is the handler's affair."""
    if isinstance(error, (ConnectionError, socket.gaierror, socket.herror, ssl.SSLError)):
        return ErrorCode.UPSTREAM_UNAVAILABLE, None
    if not isinstance(error, OSError):
        return None
    if error.errno in _EXHAUSTED:
        return ErrorCode.OUT_OF_RESOURCES, None
    # asyncio tried several addresses of a host, and puts what went wrong into one text
    several = error.errno is None and "Connect call failed" in str(error)
    return (ErrorCode.UPSTREAM_UNAVAILABLE, None) if several or error.errno in _UNREACHABLE else None


def _by_name(error: BaseException) -> tuple[ErrorCode, float | None] | None:
    for base in type(error).__mro__:
        if base.__module__.partition(".")[0] in _TALKERS:
            name = base.__name__.lower()
            if "timeout" in name or "timedout" in name:
                return ErrorCode.UPSTREAM_TIMEOUT, None
            if any(word in name for word in _BROKEN):
                return ErrorCode.UPSTREAM_UNAVAILABLE, None
    return None
