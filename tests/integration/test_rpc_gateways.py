"""What the worker's API client makes of answers that come from before PostgREST."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from processor.clients import ApplicationClient
from processor.errors import ApiError, ApiUnreachable, AuthFailed
from processor.rpc import Rpc


@dataclass
class Gateway:
    """Answers every call with the same, and keeps the headers it came with."""

    status: int
    body: str
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        return Response(self.body, self.status, media_type="application/json")


@asynccontextmanager
async def gateway(status: int, body: object) -> AsyncIterator[Gateway]:
    """Serve one on a free port of loopback."""
    made = Gateway(status, body if isinstance(body, str) else json.dumps(body))
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
