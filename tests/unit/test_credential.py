"""The key as a thing that changes."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from processor.credential import Credential, expiry_of, issue_of
from processor.errors import ConfigError


def token(life: float, *, name: str = "a", issued: float | None = None) -> str:
    """Make an unsigned token that ends in so many seconds."""
    claims = {"exp": time.time() + life, "jti": name} | ({"iat": issued} if issued is not None else {})
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.signature"


class Source:
    """Where a key comes from; counts how often it was asked."""

    def __init__(self, key: str | Exception) -> None:
        self.key = key
        self.read = 0

    def __call__(self) -> str:
        self.read += 1
        if isinstance(self.key, Exception):
            raise self.key
        return self.key


@asynccontextmanager
async def running(credential: Credential) -> AsyncIterator[None]:
    task = asyncio.create_task(credential.run())
    yield
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled(), "it ended by itself"


async def changed(credential: Credential) -> str:
    """Wait for the next key."""
    new: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    credential.on_change(lambda key: None if new.done() else new.set_result(key))
    return await asyncio.wait_for(new, 10)


async def test_a_token_is_read_again_before_it_expires_and_everybody_follows():
    source = Source(first := token(3))
    credential = Credential(source)
    assert (credential.token, credential.expires_at) == (first, expiry_of(first))
    seen: list[str] = []
    credential.on_change(seen.append)
    async with running(credential):
        source.key = second = token(3, name="b")
        assert await changed(credential) == second
        assert time.time() < (expiry_of(first) or 0), "it was late"
        assert time.time() > (expiry_of(first) or 0) - 1.5, "it was read long before its time"
        source.key = third = token(60, name="c")
        assert await changed(credential) == third
    assert seen == [second, third]
    assert credential.token == third
    assert source.read <= 5


async def test_a_token_that_says_when_it_was_issued_is_renewed_by_its_whole_life():
    old = token(10, issued=time.time() - 90)  # 90 % of its life is over
    source = Source(old)
    credential = Credential(source)
    async with running(credential):
        source.key = new = token(60, name="new")
        assert await changed(credential) == new


async def test_a_key_without_an_end_is_read_again_only_when_told_to():
    source = Source("sb_secret_1234567890")
    credential = Credential(source)
    assert credential.expires_at is None
    assert credential.problem is None
    async with running(credential):
        source.key = "sb_secret_0987654321"
        await asyncio.sleep(0.05)  # nothing may happen: there is no signal for that
        assert source.read == 1
        assert credential.refresh() is True
        assert credential.token == "sb_secret_0987654321"
        assert credential.refresh() is False


async def test_a_new_token_is_watched_though_the_one_before_had_no_end():
    source = Source("sb_secret_1234567890")
    credential = Credential(source)
    async with running(credential):
        await asyncio.sleep(0)
        source.key = token(1)
        assert credential.refresh()
        source.key = last = token(60, name="b")
        assert await changed(credential) == last


@pytest.mark.parametrize(
    ("key", "event"),
    [
        (ConfigError("the file is empty"), "credential.unreadable"),
        (FileNotFoundError("no such file"), "credential.unreadable"),
        (token(-1, name="old"), "credential.stale"),
    ],
    ids=["refused", "missing", "stale"],
)
async def test_what_cannot_be_used_is_said_and_the_key_at_hand_kept(key: str | Exception, event: str):
    source = Source(good := token(60))
    credential = Credential(source)
    source.key = key
    with capture_logs() as logs:
        assert credential.refresh() is False
    assert credential.token == good
    assert [(line["event"], line["log_level"]) for line in logs] == [(event, "error")]


async def test_a_token_that_nobody_renews_is_loud_before_its_end_and_once_after_it():
    credential = Credential(Source(token(1.5)))
    with capture_logs() as logs:
        async with running(credential), asyncio.timeout(10):
            while not [line for line in logs if line["event"] == "credential.expired"]:  # noqa: ASYNC110  a log has no event
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.2)  # further readings say nothing more
    told = [(line["event"], line["log_level"]) for line in logs]
    assert told == [("credential.not_renewed", "error"), ("credential.expired", "critical")]
    assert logs[0]["expires_in_s"] > 0
    assert "renew the token" in logs[0]["reason"]
    assert "expired" in (credential.problem or "")


async def test_a_token_that_comes_after_the_end_of_the_last_is_taken_within_seconds():
    source = Source(token(0.3))
    credential = Credential(source)
    async with running(credential):
        await asyncio.sleep(0.5)
        assert credential.problem
        source.key = late = token(60, name="late")
        assert await changed(credential) == late
        assert credential.problem is None


async def test_who_fails_to_follow_does_not_keep_others_from_it():
    source = Source(token(60))
    credential = Credential(source)
    seen: list[str] = []

    def fail(_key: str) -> None:
        raise RuntimeError("the follower's own mistake")

    credential.on_change(fail)
    credential.on_change(seen.append)
    source.key = token(60, name="b")
    with capture_logs() as logs:
        assert credential.refresh()
    assert seen == [source.key]
    assert "credential.callback_failed" in [line["event"] for line in logs]


def test_without_a_first_key_there_is_nothing_to_begin_with():
    with pytest.raises(ConfigError, match="empty"):
        Credential(Source(ConfigError("the file is empty")))


@pytest.mark.parametrize("key", ["", "sb_secret_x", "a.b.c", "a.e30.c", "a.bnVsbA.c"])
def test_a_key_that_names_no_time_has_no_end(key: str):
    assert (expiry_of(key), issue_of(key)) == (None, None)
