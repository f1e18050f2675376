"""An HTTP server in the place of a project's API, which answers each function as a test says."""

import asyncio
import json
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
"""Arguments → HTTP status and body."""


class ScriptedApi:
    """`answers` by function; what a function without one is told is 503."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, Answer] = {}
        self.calls: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def answer(self, request: Request) -> Response:
        function = request.path_params["function"]
        arguments = await request.json()
        self.calls[function].append(arguments)
        given = self.answers.get(function)
        status, body = given(arguments) if given else (503, {"message": "name resolution failed"})
        return Response(json.dumps(body), status, media_type="application/json")


@asynccontextmanager
async def scripted_api() -> AsyncIterator[ScriptedApi]:
    """Serve one on a free port of loopback."""
    made = ScriptedApi()
    app = Starlette(routes=[Route("/rest/v1/rpc/{function}", made.answer, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve([listener]), name="scripted-api")
    try:
        yield made
    finally:
        server.should_exit = True
        await task
