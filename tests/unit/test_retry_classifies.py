import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

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
from processor.retry import MAX_RETRY_AFTER, Classifier, retry_after

REQUEST = httpx.Request("GET", "http://upstream.test/v1")


def status(code: int, **headers: str) -> httpx.HTTPStatusError:
    response = httpx.Response(
        code, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=REQUEST
    )
    return httpx.HTTPStatusError(f"status {code}", request=REQUEST, response=response)


def grouped(error: Exception) -> Exception:
    return ExceptionGroup("unhandled errors in a TaskGroup", [error])


def caused_by(cause: Exception) -> Exception:
    error = ValueError("the translation failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
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
def test_an_exception_gets_its_code(error: Exception, code: str, retryable: bool) -> None:
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
