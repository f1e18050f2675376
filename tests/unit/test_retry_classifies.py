import asyncio
import errno
import http.client
import json
import socket
import ssl
import urllib.error
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from postgrest.exceptions import APIError
from pydantic import BaseModel, ValidationError
from storage3.exceptions import StorageApiError
from supabase_auth.errors import AuthApiError, AuthRetryableError
from supabase_functions.errors import FunctionsHttpError
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.http11 import Headers, Response

from processor.errors import (
    ApiError,
    ApiUnreachable,
    ErrorCode,
    InsufficientCredits,
    JobError,
    UnknownKind,
    UsageError,
)
from processor.job import Discard, Retry
from processor.redact import remember
from processor.retry import Classifier
from processor.upstream import MAX_RETRY_AFTER, retry_after

REQUEST = httpx.Request("GET", "http://upstream.test/v1")


def status(code: int, **headers: str) -> httpx.HTTPStatusError:
    response = httpx.Response(
        code, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=REQUEST
    )
    return httpx.HTTPStatusError(f"status {code}", request=REQUEST, response=response)


def grouped(error: BaseException) -> Exception:
    return ExceptionGroup("unhandled errors in a TaskGroup", [error])


def caused_by(cause: Exception) -> Exception:
    error = ValueError("the translation failed")
    error.__cause__ = cause
    return error


class Card(BaseModel):
    title: str


def misfit() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Card.model_validate({"title": {"secret": 1}})
    return caught.value


def postgrest(code: str) -> APIError:
    return APIError({"message": "no", "code": code, "details": None, "hint": None})


def looking_like(module: str, name: str, base: type[Exception] = Exception, **attributes: Any) -> Exception:
    """Make an exception of a library that is not installed here."""
    return type(name, (base,), {"__module__": module, **attributes})("no")


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "OUT_OF_RESOURCES", True),
        (OSError(errno.EMFILE, "Too many open files"), "OUT_OF_RESOURCES", True),
        (BlockingIOError(errno.EAGAIN, "try again"), "HANDLER_CRASHED", True),
        (MemoryError(), "OUT_OF_RESOURCES", True),
        (PermissionError(errno.EACCES, "Permission denied"), "HANDLER_CRASHED", True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "UPSTREAM_UNAVAILABLE", True),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "UPSTREAM_TIMEOUT", True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), "UPSTREAM_UNAVAILABLE", True),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "UPSTREAM_UNAVAILABLE", True),
        (ssl.SSLCertVerificationError(1, "certificate has expired"), "UPSTREAM_UNAVAILABLE", True),
        (asyncio.IncompleteReadError(b"", 10), "UPSTREAM_UNAVAILABLE", True),
        (http.client.IncompleteRead(b""), "UPSTREAM_UNAVAILABLE", True),
        (urllib.error.HTTPError("http://a", 404, "no", Message(), None), "UPSTREAM_REJECTED", False),
        (urllib.error.HTTPError("http://a", 503, "no", Message(), None), "UPSTREAM_UNAVAILABLE", True),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "UPSTREAM_INVALID", True),
        (httpx.DecodingError("no gzip", request=REQUEST), "UPSTREAM_INVALID", True),
        (httpx.TooManyRedirects("20", request=REQUEST), "UPSTREAM_REJECTED", False),
        (httpx.UnsupportedProtocol("ftp", request=REQUEST), "HANDLER_CRASHED", True),
        (misfit(), "UPSTREAM_INVALID", True),
        (BrokenProcessPool("killed"), "HANDLER_CRASHED", True),
        (RecursionError("maximum recursion depth exceeded"), "HANDLER_CRASHED", True),
        (KeyboardInterrupt(), "HANDLER_CRASHED", True),
        (GeneratorExit(), "HANDLER_CRASHED", True),
        (status(425), "UPSTREAM_UNAVAILABLE", True),
        (postgrest("23505"), "UPSTREAM_REJECTED", False),
        (postgrest("PGRST116"), "UPSTREAM_REJECTED", False),
        (postgrest("42501"), "AUTH_FAILED", False),
        (postgrest("PGRST301"), "AUTH_FAILED", False),
        (postgrest("57014"), "UPSTREAM_TIMEOUT", True),
        (postgrest("PGRST002"), "UPSTREAM_UNAVAILABLE", True),
        (postgrest("40001"), "UPSTREAM_UNAVAILABLE", True),
        (postgrest("503"), "UPSTREAM_UNAVAILABLE", True),
        (postgrest("PT402"), "INSUFFICIENT_CREDITS", False),
        (postgrest("JQ014"), "TOO_MANY_PENDING", True),
        (postgrest("JQ001"), "UPSTREAM_REJECTED", False),
        (StorageApiError("not found", "NoSuchKey", "404"), "UPSTREAM_REJECTED", False),
        (StorageApiError("busy", "SlowDown", 503), "UPSTREAM_UNAVAILABLE", True),
        (AuthApiError("bad jwt", 401, "bad_jwt"), "AUTH_FAILED", False),
        (AuthRetryableError("bad gateway", 502), "UPSTREAM_UNAVAILABLE", True),
        (FunctionsHttpError("boom", 500), "UPSTREAM_UNAVAILABLE", True),
        (ConnectionClosedError(None, None), "UPSTREAM_UNAVAILABLE", True),
        (InvalidStatus(Response(429, "slow down", Headers())), "RATE_LIMITED", True),
        (looking_like("aiohttp.client_exceptions", "ClientResponseError", status=403), "AUTH_FAILED", False),
        (
            looking_like("aiohttp.client_exceptions", "ServerDisconnectedError"),
            "UPSTREAM_UNAVAILABLE",
            True,
        ),
        (looking_like("requests.exceptions", "ReadTimeout", OSError), "UPSTREAM_TIMEOUT", True),
        (looking_like("requests.exceptions", "ConnectionError", OSError), "UPSTREAM_UNAVAILABLE", True),
        (looking_like("urllib3.exceptions", "NewConnectionError"), "UPSTREAM_UNAVAILABLE", True),
        (looking_like("my.module", "ConnectionLostError"), "HANDLER_CRASHED", True),
        (
            looking_like(
                "botocore.exceptions",
                "ClientError",
                response={"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {}}},
            ),
            "UPSTREAM_UNAVAILABLE",
            True,
        ),
        (looking_like("my.module", "OddError", response=7, status="fine"), "HANDLER_CRASHED", True),
        (TimeoutError(), "UPSTREAM_TIMEOUT", True),
        (httpx.ReadTimeout("slow", request=REQUEST), "UPSTREAM_TIMEOUT", True),
        (httpx.PoolTimeout("busy", request=REQUEST), "UPSTREAM_TIMEOUT", True),
        (status(504), "UPSTREAM_TIMEOUT", True),
        (httpx.ConnectError("refused", request=REQUEST), "UPSTREAM_UNAVAILABLE", True),
        (httpx.RemoteProtocolError("gone", request=REQUEST), "UPSTREAM_UNAVAILABLE", True),
        (ConnectionResetError("reset"), "UPSTREAM_UNAVAILABLE", True),
        (socket.gaierror(-2, "Name or service not known"), "UPSTREAM_UNAVAILABLE", True),
        (status(500), "UPSTREAM_UNAVAILABLE", True),
        (status(503), "UPSTREAM_UNAVAILABLE", True),
        (status(429), "RATE_LIMITED", True),
        (status(401), "AUTH_FAILED", False),
        (status(403), "AUTH_FAILED", False),
        (status(400), "UPSTREAM_REJECTED", False),
        (status(404), "UPSTREAM_REJECTED", False),
        (KeyError("title"), "HANDLER_CRASHED", True),
        (FileNotFoundError(2, "No such file"), "HANDLER_CRASHED", True),
        (JobError("too long", code="CARD_TOO_LONG", retryable=False), "CARD_TOO_LONG", False),
        (Retry("again"), "RETRY_REQUESTED", True),
        (Discard("never"), "DISCARDED", False),
        (UnknownKind("unknown kind: x", code="JQ001"), "CHILD_REFUSED", False),
        (InsufficientCredits("4 credits needed", code="PT402"), "INSUFFICIENT_CREDITS", False),
        (ApiError("too many pending jobs", code="JQ014"), "TOO_MANY_PENDING", True),
        (ApiUnreachable("no answer"), "UPSTREAM_UNAVAILABLE", True),
        (grouped(status(429)), "RATE_LIMITED", True),
        (caused_by(status(401)), "AUTH_FAILED", False),
    ],
)
def test_an_exception_gets_its_code(error: BaseException, code: str, retryable: bool) -> None:
    failure = Classifier().classify(error)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert failure.message


def test_the_wait_that_an_upstream_asks_for_is_kept_with_the_failure() -> None:
    assert Classifier().classify(status(429, retry_after="7")).delay == 7
    assert Classifier().classify(status(503, retry_after="9")).delay == 9
    assert Classifier().classify(status(429)).delay is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12),
        (" 0 ", 0),
        ("999999", MAX_RETRY_AFTER),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Wed, 99 Foo 2026 10:00:00 GMT", None),
    ],
)
def test_retry_after_in_seconds_is_capped_and_garbage_is_ignored(value: str, seconds: float | None) -> None:
    assert retry_after(httpx.Headers({"retry-after": value})) == seconds


def test_retry_after_as_a_date_counts_from_now_and_is_never_negative() -> None:
    now = datetime(2026, 11, 22, 10, tzinfo=UTC)

    def at(moment: datetime) -> float | None:
        return retry_after(httpx.Headers({"retry-after": format_datetime(moment, usegmt=True)}), now=now)

    assert at(now + timedelta(seconds=30)) == 30
    assert at(now - timedelta(seconds=30)) == 0
    assert at(now + timedelta(days=3)) == MAX_RETRY_AFTER


def test_retry_after_as_a_date_is_compared_with_the_answers_own_clock() -> None:
    theirs = datetime(2020, 1, 1, 10, tzinfo=UTC)
    later = format_datetime(theirs + timedelta(seconds=40), usegmt=True)
    asked = status(429, retry_after=later, date=format_datetime(theirs, usegmt=True))
    assert Classifier().classify(asked).delay == 40
    assert retry_after(httpx.Headers({"retry-after": later, "date": "noon"}), now=theirs) == 40


def test_headers_of_other_libraries_are_read_too() -> None:
    assert retry_after({"Retry-After": "3"}) == 3
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after(None) is None


class QuotaError(Exception):
    seconds = 42.0


class DailyQuotaError(QuotaError):
    pass


def test_a_users_mapping_covers_subclasses_and_the_nearest_one_wins() -> None:
    classifier = Classifier()
    classifier.add(QuotaError, "QUOTA", retry_after=lambda error: error.seconds)
    failure = classifier.classify(DailyQuotaError("used up"))
    assert (failure.code, failure.retryable, failure.delay) == ("QUOTA", True, 42)
    classifier.add(DailyQuotaError, "DAILY_QUOTA", retryable=False)
    assert classifier.classify(DailyQuotaError("used up")).code == "DAILY_QUOTA"
    assert classifier.classify(QuotaError("used up")).code == "QUOTA"


def test_a_users_mapping_wins_over_what_is_built_in() -> None:
    failure = Classifier().add(TimeoutError, "TOO_SLOW", retryable=False).classify(TimeoutError())
    assert (failure.code, failure.retryable) == ("TOO_SLOW", False)


def test_a_mapping_with_an_odd_code_is_refused() -> None:
    with pytest.raises(UsageError):
        Classifier().add(TimeoutError, "too slow")


def test_messages_name_the_exception_and_hold_nothing_postgres_refuses() -> None:
    failure = Classifier().classify(ValueError("a\x00b" + "x" * 5000))
    assert failure.message.startswith("ValueError: a")
    assert "\x00" not in failure.message
    assert len(failure.message) == 2000
    assert failure.code == ErrorCode.HANDLER_CRASHED


@pytest.mark.parametrize("delay", ["soon", None, float("nan"), [1]])
def test_a_rule_that_knows_no_delay_leaves_it_to_the_queue(delay: Any) -> None:
    classifier = Classifier().add(QuotaError, "QUOTA", retry_after=lambda _error: delay)
    failure = classifier.classify(QuotaError("used up"))
    assert (failure.code, failure.delay) == ("QUOTA", None)


def test_a_rule_that_fails_keeps_its_code() -> None:
    classifier = Classifier().add(QuotaError, "QUOTA", retry_after=lambda error: error.hours)
    assert classifier.classify(QuotaError("used up")).code == "QUOTA"
    classifier.add(TimeoutError, "SLOW", retry_after=lambda _error: 10**9)
    assert classifier.classify(TimeoutError()).delay == MAX_RETRY_AFTER


def test_an_exception_that_cannot_be_read_keeps_its_code() -> None:
    class MuteError(TimeoutError):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    failure = Classifier().classify(MuteError())
    assert failure.code == ErrorCode.UPSTREAM_TIMEOUT
    assert failure.message == "MuteError: its text cannot be read, because of RuntimeError"


def test_messages_hide_secrets_before_they_are_cut() -> None:
    key = "k" * 40
    remember(key)
    for text in (f"GET https://a.test/?apikey={key}", f"sent Bearer {key}", "x" * 1970 + key):
        for error in (ValueError(text), JobError(text, code="X1"), Retry(text), Discard(text), status(401)):
            assert "kkk" not in Classifier().classify(error).message


def test_what_does_not_fit_a_model_is_named_without_its_value() -> None:
    assert Classifier().classify(misfit()).message == "ValidationError: title: Input should be a valid string"
