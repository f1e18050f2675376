"""What the worker's API client makes of answers that come from before PostgREST."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
import uvicorn
from aiohttp import ClientTimeout
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from processor import transport
from processor.clients import ApplicationClient
from processor.errors import ApiError, ApiUnreachable, AuthFailed, ConfigError
from processor.rpc import Rpc


@dataclass
class Gateway:
    """Answers every call with the same, and keeps the headers it came with."""

    status: int
    body: str
    extra: dict[str, str] = field(default_factory=dict)
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        return Response(self.body, self.status, self.extra, "application/json")


@asynccontextmanager
async def gateway(status: int, body: object, headers: dict[str, str] | None = None) -> AsyncIterator[Gateway]:
    """Serve one on a free port of loopback."""
    made = Gateway(status, body if isinstance(body, str) else json.dumps(body), headers or {})
    app = Starlette(routes=[Route("/{path:path}", made.answer, methods=["GET", "POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve([listener]), name="gateway")
    try:
        yield made
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, {"message": "name resolution failed"}, ApiUnreachable),
        (502, {"message": "An invalid response was received from the upstream server"}, ApiUnreachable),
        (429, {"message": "API rate limit exceeded"}, ApiUnreachable),
        (540, {"error": "Project paused"}, ApiUnreachable),
        (521, "<html>Web server is down</html>", ApiUnreachable),
        (401, {"message": "Unauthorized"}, AuthFailed),
        (401, {"message": "Invalid API key", "hint": "Double check your key."}, AuthFailed),
        (404, {"message": "no Route matched with those values"}, ApiUnreachable),
        (400, {"message": "Bad request"}, ApiError),
        (413, {"message": "Request size limit exceeded"}, ApiError),
        (200, "[" * 2000 + "]" * 2000, ApiError),
        (200, "<html>Please log in to the hotel's network</html>", ApiUnreachable),
    ],
)
async def test_an_answer_from_before_postgrest_is_told_apart(
    status: int, body: object, expected: type[ApiError]
) -> None:
    async with gateway(status, body) as before:
        rpc = Rpc(before.url, "e30.e30.x", patience=0)
        with pytest.raises(ApiError) as caught:
            await rpc.deregister_worker(uuid4())
        await rpc.aclose()
    assert type(caught.value) is expected


async def test_a_secret_key_is_never_sent_as_a_token() -> None:
    async with gateway(200, {}) as before:
        rpc = Rpc(before.url, "sb_secret_abc")
        await rpc.deregister_worker(uuid4())
        await rpc.aclose()
    assert before.headers[0]["apikey"] == "sb_secret_abc"
    assert "authorization" not in before.headers[0]


async def test_a_token_of_a_lesser_role_goes_beside_the_public_key() -> None:
    async with gateway(200, {}) as before:
        rpc = Rpc(before.url, "e30.e30.x", api_key="sb_publishable_abc")
        await rpc.deregister_worker(uuid4())
        await rpc.aclose()
    assert before.headers[0]["apikey"] == "sb_publishable_abc"
    assert before.headers[0]["authorization"] == "Bearer e30.e30.x"


async def test_the_handlers_client_opens_the_gateway_with_the_public_key() -> None:
    async with gateway(200, []) as before:
        client = ApplicationClient(before.url, "e30.e30.x", api_key="sb_publishable_abc")
        await client.get().table("cards").select("*").execute()
        await client.aclose()
    assert before.headers[0]["apikey"] == "sb_publishable_abc"
    assert before.headers[0]["authorization"] == "Bearer e30.e30.x"


async def test_the_key_follows_no_redirect() -> None:
    async with gateway(200, {}) as elsewhere, gateway(302, "", {"Location": elsewhere.url}) as before:
        rpc = Rpc(before.url, "sb_secret_abc", patience=0)
        with pytest.raises(ApiError):
            await rpc.deregister_worker(uuid4())
        await rpc.aclose()
    assert elsewhere.headers == []


async def test_calls_go_through_the_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway(200, {}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "localhost")
        rpc = Rpc("http://project.example", "sb_secret_abc", patience=0)
        await rpc.deregister_worker(uuid4())
        await rpc.aclose()
        direct = Rpc("http://localhost:1", "sb_secret_abc", patience=0)
        with pytest.raises(ApiUnreachable):
            await direct.deregister_worker(uuid4())
        await direct.aclose()
    assert [seen["host"] for seen in proxy.headers] == ["project.example"]


async def test_a_proxy_of_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    rpc = Rpc("http://project.example", "sb_secret_abc", patience=0)
    with pytest.raises(ConfigError, match="HTTP_PROXY: 'socks5://127"):
        await rpc.deregister_worker(uuid4())


@pytest.mark.parametrize("reads", [False, True])
async def test_a_silent_peer_is_given_up_whether_it_takes_the_request_or_not(
    monkeypatch: pytest.MonkeyPatch, *, reads: bool
) -> None:
    monkeypatch.setattr(transport, "_TIMEOUT", ClientTimeout(sock_connect=5, sock_read=0.5 if reads else 60))
    monkeypatch.setattr(transport, "_ANSWER_SECONDS", 60 if reads else 0.5)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (reader.read() if reads else gone.wait())
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    gone, ended = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    rpc = Rpc(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "sb_secret_abc", patience=0)
    with pytest.raises(ApiUnreachable, match="No answer from"):
        # more than the buffers of two sockets and a reader hold
        await rpc.append_job_logs(uuid4(), [{"message": "x" * 20_000_000}])
    await rpc.aclose()
    gone.set()
    await ended.wait()
    server.close()
    await server.wait_closed()


async def test_a_connection_that_was_closed_meanwhile_costs_nothing_but_another() -> None:
    answered = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        answered += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    rpc = Rpc(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "sb_secret_abc")
    for _ in range(3):
        await rpc.deregister_worker(uuid4())
    assert answered == 3
    await rpc.aclose()
    server.close()
    await server.wait_closed()
