"""The fault proxy does what its faults say: without this, a chaos run would be a calm one."""

import asyncio
import time

import httpx
import pytest

from tests.faults import FaultProxy
from tests.feed_observer import FAST, ObservedFeed
from tests.integration.scripted_api import ScriptedApi, scripted_api

pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning"
)
PATH = "/rest/v1/rpc/echo"


@pytest.fixture
async def api():
    async with scripted_api() as api:
        api.answers["echo"] = lambda arguments: (200, arguments)
        yield api


@pytest.fixture
async def proxy(api: ScriptedApi):
    async with FaultProxy(api.url) as proxy:
        yield proxy


def client(proxy: FaultProxy, timeout: float = 10) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=proxy.url, timeout=timeout, trust_env=False)


async def test_a_truncated_answer_is_of_a_request_that_was_carried_out(api: ScriptedApi, proxy: FaultProxy):
    proxy.truncate()
    async with client(proxy) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(PATH, json={"n": 1})
        assert api.calls["echo"] == [{"n": 1}]
        await proxy.heal()
        assert (await http.post(PATH, json={"n": 2})).json() == {"n": 2}


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_answer_of_the_gateways_own_never_reaches_the_server(
    api: ScriptedApi, proxy: FaultProxy, status: int
):
    async with client(proxy) as http:
        assert (await http.post(PATH, json={"n": 1})).json() == {"n": 1}
        proxy.answer(status)  # on a connection that is open already, and on a new one
        for _ in range(2):
            answer = await http.post(PATH, json={"much": "x" * 100_000})
            assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html")
        await proxy.heal()
        assert (await http.post(PATH, json={"n": 2})).json() == {"n": 2}
    assert api.calls["echo"] == [{"n": 1}, {"n": 2}]


async def test_a_black_hole_takes_everything_and_answers_nothing(api: ScriptedApi, proxy: FaultProxy):
    async with client(proxy, timeout=0.5) as http:
        await http.post(PATH, json={"n": 1})
        proxy.swallow()
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                await http.post(PATH, json={"n": 2})
        await proxy.heal()
        assert (await http.post(PATH, json={"n": 3})).json() == {"n": 3}
    assert api.calls["echo"] == [{"n": 1}, {"n": 3}]


async def test_a_throttled_answer_takes_its_time(proxy: FaultProxy):
    proxy.throttle(1000)
    async with client(proxy) as http:
        began = time.monotonic()
        assert (await http.post(PATH, json={"text": "x" * 500})).json() == {"text": "x" * 500}
        assert time.monotonic() - began > 1.0  # 500 bytes up, 500 down, and two heads


async def test_a_delay_by_chance_stays_within_its_bounds(proxy: FaultProxy):
    proxy.delay(0.1, 0.3)
    async with client(proxy) as http:
        began = time.monotonic()
        await http.post(PATH, json={})
        assert time.monotonic() - began >= 0.2  # once up, once down


@pytest.mark.parametrize(
    ("event", "payload", "cause"),
    [
        ("phx_error", {}, "channel_error"),
        ("phx_close", {}, "channel_closed"),
        (
            "system",
            {"extension": "postgres_changes", "status": "error", "message": "Token has expired"},
            "channel_error",
        ),
    ],
)
async def test_what_the_proxy_says_is_heard_as_the_servers_word(stack, event: str, payload: dict, cause: str):
    async with (
        FaultProxy(stack.url) as proxy,
        ObservedFeed(proxy.url, stack.service_role_key) as watched,
    ):
        await watched.live()
        assert await proxy.say(event, payload) == 1
        await watched.said_more("mode:polling")
        assert watched.last_cause == cause
        await watched.said_more("mode:realtime", than=1)


async def test_a_mute_server_keeps_its_socket_and_says_nothing(stack):
    async with (
        FaultProxy(stack.url) as proxy,
        ObservedFeed(proxy.url, stack.service_role_key) as watched,
    ):
        await watched.live()
        proxy.mute()
        await watched.said_more("mode:polling")
        assert watched.last_cause == "ack_timeout"
        await proxy.heal()
        await watched.live()


async def test_a_join_answered_too_late_is_given_up_and_a_slow_one_is_not(stack):
    async with FaultProxy(stack.url) as proxy:
        proxy.delay_joins(FAST.join_timeout / 4)
        async with ObservedFeed(proxy.url, stack.service_role_key) as watched:
            await watched.live()
            assert watched.feed.status.incarnations == 1
            proxy.delay_joins(FAST.join_timeout * 4)
            proxy.cut("websocket")
            await watched.until(lambda: watched.last_cause == "join_timeout")
            await proxy.heal()
            await watched.live()


async def test_faults_of_one_kind_leave_the_other_alone(api: ScriptedApi, proxy: FaultProxy):
    proxy.answer(503, "websocket")
    proxy.swallow("websocket")
    proxy.throttle(1, "websocket")
    proxy.delay(60, only="websocket")
    async with client(proxy) as http, asyncio.timeout(5):
        assert (await http.post(PATH, json={"n": 1})).json() == {"n": 1}
