"""What is sent, and how little of an answer is believed."""

import asyncio
import base64
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from processor.errors import ErrorCode, JobError
from processor.webhooks.deliveries import judged
from processor.webhooks.guard import Guard, resolve
from processor.webhooks.sender import Answer, Sender
from tests.webhooks.receiver import Receiver, answer, drop, endless, endless_head, hang

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
HERE = ip_network("127.0.0.0/8")
BODY = '{"type":"job.completed","data":{"title":"Köln"}}'.encode()


@pytest.fixture
def sender(authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sender]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority[1]))
    return lambda **names: Sender(Guard([HERE], _resolver(names)))


def _resolver(names: dict[str, list[str]]):
    async def look_up(host: str, port: int) -> list[str]:
        known = {"localhost": ["127.0.0.1"], **{name.replace("_", "."): to for name, to in names.items()}}
        return known.get(host) or list(await resolve(host, port))

    return look_up


async def send(sender: Sender, url: str, *, within: float = 5.0, plain: bool = False, **keys) -> Answer:
    return await sender.send(url, "msg_1", BODY, keys.get("secrets", [NEW]), within=within, plain=plain)


async def test_a_webhook_is_signed_as_the_standard_has_it(sender, receivers) -> None:
    receiver: Receiver = await receivers()
    said = await send(sender(), receiver.url(path="/hooks?team=a%20b"))
    assert said.status == 204
    [hook] = receiver.hooks
    assert hook.verify(NEW) == {"type": "job.completed", "data": {"title": "Köln"}}
    assert hook.path == "/hooks?team=a%20b"
    assert hook.headers["host"] == f"localhost:{receiver.port}"
    assert hook.headers["content-type"] == "application/json"
    assert hook.message_id == "msg_1"
    assert abs(int(hook.headers["webhook-timestamp"]) - time.time()) < 60
    with pytest.raises(Exception, match="No matching signature"):
        hook.verify(OLD)


async def test_while_a_secret_is_replaced_both_verify(sender, receivers) -> None:
    receiver = await receivers()
    await send(sender(), receiver.url(), secrets=[NEW, OLD])
    [hook] = receiver.hooks
    assert hook.verify(OLD) == hook.verify(NEW)
    assert len(hook.headers["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize("secrets", [[], ["whsec_"], ["whsec_a"]])
async def test_nothing_is_sent_unsigned_and_no_error_shows_a_secret(sender, receivers, secrets) -> None:
    receiver = await receivers()
    with pytest.raises(JobError, match="rotate it") as raised:
        await send(sender(), receiver.url(), secrets=secrets)
    assert raised.value.code == ErrorCode.WEBHOOK_REFUSED
    assert receiver.connections == 0


async def test_a_certificate_for_another_name_is_not_taken(sender, receivers) -> None:
    receiver = await receivers("other.test")
    with pytest.raises(JobError, match=r"(?i)certificate") as raised:
        await send(sender(hooks_test=["127.0.0.1"]), receiver.url("hooks.test"))
    assert raised.value.code == ErrorCode.UPSTREAM_UNAVAILABLE
    assert not receiver.hooks


async def test_a_certificate_of_an_unknown_authority_is_not_taken(receivers) -> None:
    receiver = await receivers()
    with pytest.raises(JobError, match=r"(?i)certificate verify failed"):
        await send(Sender(Guard([HERE], _resolver({}))), receiver.url())
    assert not receiver.hooks


async def test_the_connection_goes_to_the_address_and_tls_speaks_of_the_name(sender, receivers) -> None:
    receiver = await receivers("hooks.test")
    assert (await send(sender(hooks_test=["127.0.0.1"]), receiver.url("hooks.test"))).status == 204
    assert receiver.hooks[0].headers["host"] == f"hooks.test:{receiver.port}"


async def test_an_address_that_does_not_answer_is_passed_over(sender, receivers) -> None:
    receiver = await receivers("hooks.test")
    assert (
        await send(sender(hooks_test=["127.0.0.3", "127.0.0.1"]), receiver.url("hooks.test"))
    ).status == 204


async def test_a_redirect_is_an_answer_and_is_not_followed(sender, receivers) -> None:
    receiver, other = await receivers(), await receivers()
    receiver.always = answer(307, location=other.url())
    said = await send(sender(), receiver.url())
    failure = judged(said, wait=5)
    assert failure is not None
    assert failure.retryable
    assert "redirects are not followed" in str(failure)
    assert other.connections == 0


async def test_no_proxy_of_the_environment_is_asked(sender, receivers, monkeypatch) -> None:
    receiver, proxy = await receivers(), await receivers(None)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url("127.0.0.1", ""))
    await send(sender(), receiver.url())
    assert (len(receiver.hooks), proxy.connections) == (1, 0)


@pytest.mark.parametrize(("chunk", "every"), [(b"x" * 65536, 0), (b"y", 0.01)], ids=["huge", "trickling"])
async def test_a_body_without_end_is_cut(sender, receivers, chunk, every) -> None:
    receiver = await receivers()
    receiver.always = endless(chunk, every=every)
    said = await asyncio.wait_for(send(sender(), receiver.url(), within=30), 20)
    assert said.status == 500
    assert 0 < len(said.excerpt) <= 500


async def test_the_status_counts_whatever_becomes_of_the_body(sender, receivers) -> None:
    receiver = await receivers()
    receiver.always = endless(b"z", every=0.05, status=202)
    said = await send(sender(), receiver.url(), within=1)
    assert judged(said, wait=5) is None


async def test_a_body_is_not_unpacked(sender, receivers) -> None:
    receiver = await receivers()
    receiver.always = answer(400, "as\nit\tcame\x00\x1b[2J", content_encoding="gzip")
    assert (await send(sender(), receiver.url())).excerpt == "as it came[2J"


@pytest.mark.parametrize("silence", [hang, endless_head], ids=["no answer", "no end of the head"])
async def test_who_does_not_answer_in_time_is_given_up(sender, receivers, silence) -> None:
    receiver = await receivers()
    receiver.always = silence
    with pytest.raises(JobError, match=r"did not answer within 0\.5 s") as raised:
        await send(sender(), receiver.url(), within=0.5)
    assert raised.value.code == ErrorCode.UPSTREAM_TIMEOUT


async def test_broken_and_refused_connections_say_so_without_the_path(sender, receivers) -> None:
    receiver = await receivers()
    receiver.always = drop
    with pytest.raises(JobError, match="cannot be asked") as broken:
        await send(sender(), receiver.url(path="/secret"))
    await receiver.close()
    with pytest.raises(JobError, match="cannot be asked") as refused:
        await send(sender(), receiver.url(path="/secret"))
    for raised in (broken, refused):
        assert raised.value.code == ErrorCode.UPSTREAM_UNAVAILABLE
        assert "secret" not in str(raised.value)


async def test_http_goes_only_where_it_is_allowed(sender, receivers) -> None:
    receiver = await receivers(None)
    with pytest.raises(JobError, match="begins with 'http'"):
        await send(sender(), receiver.url())
    assert receiver.connections == 0
    assert (await send(sender(), receiver.url(), plain=True)).status == 204


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (301, "UPSTREAM_REJECTED", True),
        (400, "UPSTREAM_REJECTED", True),
        (401, "AUTH_FAILED", True),
        (404, "UPSTREAM_REJECTED", True),
        (410, "WEBHOOK_GONE", False),
        (429, "RATE_LIMITED", True),
        (500, "UPSTREAM_UNAVAILABLE", True),
        (503, "UPSTREAM_UNAVAILABLE", True),
        (666, "UPSTREAM_INVALID", True),
    ],
)
def test_what_is_not_2xx_is_tried_again_but_410(status: int, code: str, *, retryable: bool) -> None:
    failure = judged(Answer("https://a.test", status, {}, "why"), wait=5)
    assert failure is not None
    assert (failure.code, failure.retryable, failure.retry_after) == (code, retryable, None)
    assert f"https://a.test answered {status}" in str(failure)


@pytest.mark.parametrize(
    ("status", "said", "wait", "expected"),
    [
        (429, "60", 5.0, 60),
        (503, "60", 5.0, 60),
        (503, "0", 300.0, 300),
        (429, "999999", 5.0, 3600),
        (429, "soon", 5.0, None),
        (500, "60", 5.0, None),
        (429, "60", None, None),
    ],
)
def test_retry_after_may_ask_for_more_patience_than_the_queue_has_but_not_for_less(
    status: int, said: str, wait: float | None, expected: float | None
) -> None:
    failure = judged(Answer("https://a.test", status, {"retry-after": said}, ""), wait=wait)
    assert failure is not None
    assert failure.retry_after == expected


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_takes_the_message(status: int) -> None:
    assert judged(Answer("https://a.test", status, {}, ""), wait=5) is None
