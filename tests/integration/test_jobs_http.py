"""Jobs over HTTP: rows and events for those without Realtime, decided by the caller's own token."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import jwt
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from processor.answers import Attempt
from processor.config import Settings
from processor.job import ItemOutcome, Outcome, OutcomeKind
from processor.rpc import Rpc
from processor.web import jobs as web_jobs
from processor.web.server import WebServer
from tests import places
from tests.faults import FaultProxy

ORIGIN = "https://app.example.com"


class Place(places.Place):
    """A place whose daemons show jobs over HTTP."""

    target = "tests.apps.behaviours:app"

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(
            SUPABASE_ANON_KEY=self.stack.anon_key,
            PROCESSOR_HTTP_PORT="0",
            PROCESSOR_HTTP_JOBS="true",
            PROCESSOR_LOG_LEVEL="debug",
            **settings,
        )


class Hand:
    """A worker that does what a test tells it, step by step."""

    def __init__(self, stack: Any) -> None:
        self.rpc = Rpc(stack.url, stack.service_role_key)
        self.id = uuid4()
        self.kind = f"told-{self.id.hex[:8]}"

    async def register(self) -> None:
        kind = {"kind": self.kind, "queue": self.kind, "public": True}
        about = {"id": str(self.id), "name": "hand", "host": "here", "pid": 1, "version": "0", "slots": 9}
        rest = {"queues": [self.kind], "lease_seconds": 600, "feed": "polling", "transport": "polling"}
        await self.rpc.register_worker({**about, **rest, "kinds": [kind], "schedules": []})

    async def create(self, user: Any, **options: Any) -> str:
        """Make a job as the user does, and take it."""
        created = await user.rest.rpc("create_job", {"kind": self.kind, **options}).execute()
        await self.claim()
        return created.data["id"]

    async def claim(self) -> None:
        await self.rpc.claim_jobs(self.id, uuid4(), queues=[self.kind], limit=9)

    async def log(self, job_id: str, *messages: str, fields: dict[str, str] | None = None) -> None:
        now = datetime.now(UTC).isoformat()
        line = {"id": job_id, "attempt": 1, "at": now, "level": "info", "fields": fields or {}}
        await self.rpc.append_job_logs(self.id, [{**line, "message": message} for message in messages])

    async def progress(self, job_id: str, progress: float, message: str = "") -> None:
        report = {"id": job_id, "attempt": 1, "progress": progress, "message": message, "items": None}
        await self.rpc.report_progress(self.id, [report])

    async def finish_item(self, job_id: str, key: str) -> None:
        await self.rpc.finish_items(self.id, [(Attempt(job_id, 1), [ItemOutcome(key, key.upper())])])

    async def finish(self, job_id: str, result: Any = None) -> None:
        await self.rpc.finish_jobs(self.id, [(Attempt(job_id, 1), Outcome(OutcomeKind.DONE, result))])


@pytest.fixture
async def hand(stack) -> AsyncIterator[Hand]:
    hand = Hand(stack)
    await hand.register()
    yield hand
    await hand.rpc.deregister_worker(hand.id)
    await hand.rpc.aclose()


@asynccontextmanager
async def serving(
    stack: Any, url: str | None = None, **settings: Any
) -> AsyncIterator[tuple[str, WebServer]]:
    """Run the daemon's server without a daemon around it."""
    known = {"url": url or stack.url, "key": stack.service_role_key, "anon_key": stack.anon_key}
    web = WebServer(
        Settings(**known, http_port=0, http_jobs=True, **settings),
        healthy=dict,
        ready=dict,
        status=dict,
        on_end=lambda _task: None,
    )
    try:
        yield await web.start(), web
    finally:
        await web.stop()


@pytest.fixture
async def url(stack) -> AsyncIterator[str]:
    async with serving(stack, cors_origins=ORIGIN) as (url, _web):
        yield url


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def watching(
    http: httpx.AsyncClient, url: str, job_id: str, token: str, since: str = ""
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    headers = {**bearer(token), **({"Last-Event-ID": since} if since else {})}
    async with aconnect_sse(http, "GET", f"{url}/jobs/{job_id}/events", headers=headers) as source:
        assert source.response.status_code == 200, await source.response.aread()
        yield source.aiter_sse()


async def rest_of(events: AsyncIterator[ServerSentEvent]) -> list[ServerSentEvent]:
    return [event async for event in events]


async def until(
    events: AsyncIterator[ServerSentEvent], name: str, holds: Callable[[Any], bool] = lambda _data: True
) -> list[ServerSentEvent]:
    """Read up to the first event of this name whose data is as wanted."""
    read = []
    async with asyncio.timeout(15):
        async for event in events:
            read.append(event)
            if event.event == name and holds(event.json()):
                return read
    raise AssertionError(f"the stream ended without {name}: {read}")


def messages(events: list[ServerSentEvent]) -> list[str]:
    return [event.json()["message"] for event in events if event.event == "log"]


def signed(stack: Any, user_id: str, *, exp: float) -> str:
    claims = {"sub": user_id, "role": "authenticated", "exp": int(exp)}
    return jwt.encode(claims, stack.jwt_secret, algorithm="HS256")


# -- the row ---------------------------------------------------------------------------------------


async def test_the_owner_reads_the_row_with_its_items(url, http, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user, payload={"title": "Hi"}, items=["b", "a"])
    await hand.finish_item(job_id, "a")
    answer = await http.get(f"{url}/jobs/{job_id}", headers=bearer(user.access_token))
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["id"], job["status"], job["payload"], job["items_done"]) == (
        job_id, "processing", {"title": "Hi"}, 1,
    )  # fmt: skip
    assert [(item["key"], item["status"], item["result"]) for item in job["items"]] == [
        ("b", "pending", None), ("a", "completed", "A"),
    ]  # fmt: skip
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["", "/events"])
async def test_others_are_told_nothing(url, http, stack, hand, new_user, path) -> None:
    owner, other = await new_user(), await new_user()
    job_id = await hand.create(owner)
    there = f"{url}/jobs/{job_id}{path}"
    expired = signed(stack, owner.id, exp=time.time() - 60)
    forged = jwt.encode({"sub": owner.id, "role": "authenticated"}, "x" * 40, algorithm="HS256")
    for headers, status, code in [
        (bearer(other.access_token), 404, "JOB_NOT_FOUND"),
        ({}, 401, "NO_TOKEN"),
        ({"Authorization": "Basic YTpi"}, 401, "NO_TOKEN"),
        (bearer("no token"), 401, "TOKEN_REFUSED"),
        (bearer(forged), 401, "TOKEN_REFUSED"),
        (bearer(stack.anon_key), 401, "TOKEN_REFUSED"),
        (bearer(expired), 401, "TOKEN_EXPIRED"),
    ]:
        answer = await http.get(there, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert (status != 401) or answer.headers["www-authenticate"] == "Bearer"
        assert job_id not in answer.text
    unknown = await http.get(f"{url}/jobs/{uuid4()}{path}", headers=bearer(owner.access_token))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "JOB_NOT_FOUND")
    assert (await http.get(f"{url}/jobs/1{path}", headers=bearer(owner.access_token))).status_code == 404


async def test_a_token_in_the_address_is_for_streams_only(url, http, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user)
    answer = await http.get(f"{url}/jobs/{job_id}", params={"access_token": user.access_token})
    assert (answer.status_code, answer.json()["code"]) == (401, "NO_TOKEN")


async def test_pages_of_the_origins_that_are_allowed_may_ask_and_others_may_not(
    url, http, stack, hand, new_user
) -> None:
    user = await new_user()
    there = f"{url}/jobs/{await hand.create(user)}"
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    preflight = await http.options(there, headers={"Origin": ORIGIN, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = await http.options(there, headers={"Origin": "https://evil.example", **asked})
    assert refused.status_code == 400
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example", None)):
        for headers in (bearer(user.access_token), {}):  # a refusal is read by the page, too
            answer = await http.get(there, headers={"Origin": origin, **headers})
            assert answer.headers.get("access-control-allow-origin") == allowed
    async with serving(stack) as (quiet, _web):  # nobody, unless somebody is named
        answer = await http.get(f"{quiet}/jobs/{uuid4()}", headers={"Origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers


# -- the events ------------------------------------------------------------------------------------


async def test_a_real_job_is_followed_to_its_end(stack, service, eventually, http, new_user) -> None:
    place = Place(stack, service, eventually)
    user = await new_user(credits=10)
    async with place.daemon() as daemon:
        await daemon.ready()
        url = (await daemon.event("daemon.listening"))["url"]
        items = [{"key": "a"}, {"key": "b", "payload": {"fail": "for good"}}]
        items.append({"key": "c", "payload": {"seconds": 1}})
        job_id = await place.create("items", owner_id=user.id, items=items)
        # as an EventSource asks, which cannot set headers
        there = f"{url}/jobs/{job_id}/events?access_token={user.access_token}"
        async with aconnect_sse(http, "GET", there) as source:
            assert source.response.headers["cache-control"] == "no-store"
            events = await rest_of(source.aiter_sse())
        assert events[0].retry == 2000
        assert all(event.id for event in events)
        last = events[-1].json()
        assert (events[-1].event, last["status"], last["result"]) == (
            "status",
            "partial",
            {"a": "A", "c": "C"},
        )
        assert (last["credits_captured"], last["credits_refunded"]) == (2, 1)
        told = {event.json()["key"]: event.json()["status"] for event in events if event.event == "item"}
        assert told == {"a": "completed", "b": "failed", "c": "completed"}
        done = [event.json()["items_done"] for event in events if event.event == "progress"]
        assert done == sorted(done)
        assert done[-1] == 2
        # an EventSource comes back, and is told to stay away
        again = await http.get(there, headers={"Last-Event-ID": events[-1].id})
        assert again.status_code == 204
        assert user.access_token not in daemon.log()


async def test_the_present_state_comes_first_and_then_what_changes(url, http, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user, items=["a", "b"])
    await hand.progress(job_id, 0.25, "first half")
    await hand.log(job_id, "begun")
    async with watching(http, url, job_id, user.access_token) as events:
        first = await until(events, "log")
        assert [event.event for event in first] == ["status", "progress", "item", "item", "log"]
        assert first[0].json()["status"] == "processing"
        assert first[1].json()["progress_message"] == "first half"
        await hand.progress(job_id, 0.75, "second half")
        assert [event.event for event in await until(events, "progress")] == ["progress"]
        await hand.finish_item(job_id, "b")
        read = await until(events, "item")
        assert read[-1].json()["status"] == "completed"
        assert read[-1].json()["key"] == "b"
        await hand.finish_item(job_id, "a")
        await hand.log(job_id, "last words")
        await hand.finish(job_id, {"sum": 2})
        end = await rest_of(events)
    assert messages(end) == ["last words"]
    assert [event.json()["key"] for event in end if event.event == "item"] == ["a"]
    assert end[-1].event == "status"
    assert (end[-1].json()["status"], end[-1].json()["result"]) == ("completed", {"sum": 2})


async def test_whoever_comes_back_misses_no_line_and_reads_none_twice(url, http, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user, items=["a", "b"])
    await hand.log(job_id, "1", "2", "3")
    async with watching(http, url, job_id, user.access_token) as events:
        read = await until(events, "log", lambda line: line["message"] == "2")
    await hand.log(job_id, "4", "5")
    await hand.finish_item(job_id, "b")
    await hand.log(job_id, "6")
    async with watching(http, url, job_id, user.access_token, read[-1].id) as events:
        missed = await until(events, "log", lambda line: line["message"] == "6")
        assert messages(missed) == ["3", "4", "5", "6"]
        assert [event.json()["key"] for event in missed if event.event == "item"] == ["b"]
        await hand.log(job_id, "7")
        assert messages(await until(events, "log")) == ["7"]
    # what is no id of ours is passed over
    async with watching(http, url, job_id, user.access_token, "99999999999999999-1-x") as events:
        assert messages(await until(events, "log", lambda line: line["message"] == "7"))[0] == "1"


async def test_from_every_event_of_a_stream_the_rest_can_be_read(url, http, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user, items=["a", "b", "c"])
    await hand.log(job_id, "1", "2")
    for key in "abc":
        await hand.finish_item(job_id, key)
    await hand.finish(job_id)

    def read(events: list[ServerSentEvent]) -> list[tuple[str, str]]:
        # progress is a state: it may be told again
        return [(event.event, event.data) for event in events if event.event != "progress"]

    async with watching(http, url, job_id, user.access_token) as events:
        whole = await rest_of(events)
    assert [event.event for event in whole] == [*["item"] * 3, "log", "log", "progress", "status"]
    for position, event in enumerate(whole[:-1], start=1):
        async with watching(http, url, job_id, user.access_token, event.id) as events:
            assert read(await rest_of(events)) == read(whole[position:])


async def test_of_thousands_of_items_that_end_at_the_same_moment_each_is_told_once(
    url, http, hand, new_user
) -> None:
    user = await new_user()
    keys = [f"k{number}" for number in range(1200)]
    created = await user.rest.rpc("create_job", {"kind": hand.kind, "items": keys}).execute()
    await user.rest.rpc("cancel_job", {"job_id": created.data["id"]}).execute()
    async with watching(http, url, created.data["id"], user.access_token) as events:
        told = await rest_of(events)
    assert [event.json()["key"] for event in told if event.event == "item"] == keys
    assert {event.json()["status"] for event in told if event.event == "item"} == {"cancelled"}
    assert told[-1].json()["status"] == "cancelled"


async def test_a_token_that_expires_ends_the_stream_and_says_so(url, http, stack, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user)
    token = signed(stack, user.id, exp=time.time() + 2)
    async with watching(http, url, job_id, token) as events:
        told = await rest_of(events)
    assert told[0].json()["status"] == "processing"
    assert (told[-1].event, told[-1].json()["code"]) == ("error", "TOKEN_EXPIRED")
    again = await http.get(f"{url}/jobs/{job_id}/events", headers=bearer(token))
    assert (again.status_code, again.json()["code"]) == (401, "TOKEN_EXPIRED")


async def test_a_job_that_is_deleted_ends_its_streams(url, http, hand, new_user, admin) -> None:
    user = await new_user()
    created = await user.rest.rpc("create_job", {"kind": hand.kind}).execute()
    async with watching(http, url, created.data["id"], user.access_token) as events:
        await until(events, "progress")
        await admin.execute("delete from public.jobs where id = $1", created.data["id"])
        assert [event.json()["code"] for event in await rest_of(events)] == ["JOB_NOT_FOUND"]


async def test_an_api_that_is_away_is_waited_for_and_then_given_up(
    http, stack, hand, new_user, monkeypatch
) -> None:
    user = await new_user()
    job_id = await hand.create(user)
    async with FaultProxy(stack.url) as proxy, serving(stack, proxy.url) as (url, _web):
        async with watching(http, url, job_id, user.access_token) as events:
            await until(events, "progress")
            asked = proxy.arrivals["http"]
            proxy.refuse("http")
            proxy.cut("http")
            await hand.log(job_id, "meanwhile")
            await proxy.arrived("http", asked)  # and was refused
            await proxy.heal()
            assert messages(await until(events, "log")) == ["meanwhile"]
        proxy.answer(503)
        proxy.cut("http")
        answer = await http.get(f"{url}/jobs/{job_id}/events", headers=bearer(user.access_token))
        assert (answer.status_code, answer.json()["code"]) == (503, "API_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0
        await proxy.heal()
        monkeypatch.setattr(web_jobs, "_PATIENCE", 0.0)
        async with watching(http, url, job_id, user.access_token) as events:
            await until(events, "log")
            proxy.answer(503)
            proxy.cut("http")
            assert [event.json()["code"] for event in await rest_of(events)] == ["API_UNAVAILABLE"]
    assert (await http.get(f"{stack.url}/auth/v1/health", headers=stack.headers())).status_code == 200


async def test_there_are_no_more_streams_than_allowed_and_whoever_leaves_makes_room(
    http, stack, hand, new_user, eventually
) -> None:
    user = await new_user()
    job_id = await hand.create(user)
    async with serving(stack, http_streams=2) as (url, web):
        async with watching(http, url, job_id, user.access_token) as one:
            await until(one, "progress")
            async with watching(http, url, job_id, user.access_token):
                for path in ("", "/events"):
                    beyond = await http.get(f"{url}/jobs/{job_id}{path}", headers=bearer(user.access_token))
                    assert (beyond.status_code, beyond.json()["code"]) == (503, "TOO_MANY_STREAMS")
                    assert int(beyond.headers["retry-after"]) > 0
                assert (await http.get(f"{url}/healthz")).status_code == 200
            await eventually(lambda: web.serving == 1)
        await eventually(lambda: web.serving == 0)
        assert (await http.get(f"{url}/jobs/{job_id}", headers=bearer(user.access_token))).status_code == 200


async def test_a_reader_that_takes_nothing_is_given_up(
    stack, hand, new_user, eventually, monkeypatch
) -> None:
    monkeypatch.setattr(web_jobs, "_STALLED_SECONDS", 0.5)
    user = await new_user()
    job_id = await hand.create(user)
    for _number in range(5):  # more than the buffers of two sockets hold
        await hand.log(job_id, *["x" * 2000] * 199, fields={"more": "x" * 4000})
    async with serving(stack) as (url, web):
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(url)
            reader.connect((address.hostname, address.port))
            request = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n"
            reader.sendall(f"{request}Authorization: Bearer {user.access_token}\r\n\r\n".encode())
            await eventually(lambda: web.serving == 1)
            await eventually(lambda: web.serving == 0, within=15)


async def test_a_quiet_stream_shows_that_it_lives(http, stack, hand, new_user, monkeypatch) -> None:
    monkeypatch.setattr(web_jobs, "_HEARTBEAT_SECONDS", 0.2)
    user = await new_user()
    job_id = await hand.create(user)
    async with (
        serving(stack) as (url, _web),
        http.stream("GET", f"{url}/jobs/{job_id}/events", headers=bearer(user.access_token)) as answer,
        asyncio.timeout(10),
    ):
        lines = answer.aiter_lines()
        while not (await anext(lines)).startswith(": "):
            pass


async def test_health_does_not_wait_for_an_api_that_never_answers(http, stack, hand, new_user) -> None:
    user = await new_user()
    job_id = await hand.create(user)
    async with FaultProxy(stack.url) as proxy, serving(stack, proxy.url) as (url, web):
        proxy.swallow()
        there = f"{url}/jobs/{job_id}/events"
        waiting = [
            asyncio.create_task(http.get(there, headers=bearer(user.access_token))) for _number in range(8)
        ]
        await proxy.arrived("http", 7)
        began = time.monotonic()
        assert (await http.get(f"{url}/healthz")).status_code == 200
        assert time.monotonic() - began < 3
        assert web.serving == 8
        await web.stop()  # nor does the end
        assert time.monotonic() - began < 8
        for answer in await asyncio.gather(*waiting):
            assert (answer.status_code, answer.json()["code"]) == (503, "STOPPING")


async def test_a_daemon_that_ends_does_not_wait_for_its_streams(
    stack, service, eventually, http, hand, new_user
) -> None:
    place = Place(stack, service, eventually)
    user = await new_user()
    job_id = await hand.create(user)
    async with place.daemon() as daemon:
        await daemon.ready()
        url = (await daemon.event("daemon.listening"))["url"]
        async with watching(http, url, job_id, user.access_token) as events:
            read = await until(events, "progress")
            daemon.signal(signal.SIGTERM)
            assert "error" not in {event.event for event in await rest_of(events)}  # ended, not broken off
        assert await daemon.ended(within=10) == 0, daemon.log()
        assert not [event for event in daemon.events if event["level"] in {"error", "critical"}]
    async with serving(stack) as (elsewhere, _web):  # another daemon goes on
        await hand.log(job_id, "after the change")
        async with watching(http, elsewhere, job_id, user.access_token, read[-1].id) as events:
            assert messages(await until(events, "log")) == ["after the change"]


async def test_jobs_are_not_shown_unless_that_is_switched_on(http, stack, new_user) -> None:
    user = await new_user()
    settings = Settings(url=stack.url, key=stack.service_role_key, anon_key=stack.anon_key, http_port=0)
    web = WebServer(settings, healthy=dict, ready=dict, status=dict, on_end=lambda _task: None)
    url = await web.start()
    try:
        for path in (f"/jobs/{uuid4()}", f"/jobs/{uuid4()}/events", "/panel/", "/panel/config.json"):
            assert (await http.get(url + path, headers=bearer(user.access_token))).status_code == 404
        assert (await http.get(f"{url}/healthz")).json() == {"status": "ok", "checks": {}}
    finally:
        await web.stop()
