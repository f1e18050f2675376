"""A real OpenAI-compatible server on loopback that misbehaves on request."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[["Question"], Awaitable[Response]]


class Question:
    """One request, and what it asks for."""

    def __init__(self, body: dict[str, Any], authorization: str | None) -> None:
        self.body = body
        self.authorization = authorization
        named = re.search(r"into (\w+)\.", body["messages"][0]["content"])
        assert named, "the prompt must name the language"
        self.language = named.group(1)
        self.card = json.loads(body["messages"][1]["content"])

    def translation(self) -> dict[str, Any]:
        sections = [
            {"heading": f"{self.language}: {one['heading']}", "text": f"{self.language}: {one['text']}"}
            for one in self.card["sections"]
        ]
        return {"title": f"{self.language}: {self.card['title']}", "sections": sections}


class Endpoint:
    """Answers well unless `plan` has other answers for a language: they are used up in their order."""

    def __init__(self) -> None:
        self.url = ""
        self.questions: list[Question] = []
        self.plan: dict[str, list[Answer]] = {}

    def asked(self, language: str) -> int:
        return sum(question.language == language for question in self.questions)

    async def completions(self, request: Request) -> Response:
        question = Question(await request.json(), request.headers.get("authorization"))
        self.questions.append(question)
        planned = self.plan.get(question.language)
        return await (planned.pop(0) if planned else well)(question)


@asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    """Serve an endpoint on a free port of loopback."""
    made = Endpoint()
    app = Starlette(routes=[Route("/v1/chat/completions", made.completions, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    serving = asyncio.create_task(server.main_loop(), name="endpoint")
    try:
        yield made
    finally:
        server.should_exit = True
        await serving
        await server.shutdown()


async def well(question: Question) -> Response:
    """Stream the translation, a few characters at a time."""
    return _stream(json.dumps(question.translation()))


async def one_section_too_few(question: Question) -> Response:
    translation = question.translation()
    translation["sections"].pop()
    return _stream(json.dumps(translation))


async def prose(question: Question) -> Response:
    return _stream(f"Certainly! Here is your card in {question.language}:")


async def a_web_page(_question: Question) -> Response:
    return PlainTextResponse("<html>data: our proxy is very sorry</html>")


async def another_stream(_question: Question) -> Response:
    return PlainTextResponse('data: {"error": "overloaded"}\n\n', media_type="text/event-stream")


async def internal_error(_question: Question) -> Response:
    return JSONResponse({"error": {"message": "oops"}}, 500)


async def wrong_key(_question: Question) -> Response:
    return JSONResponse({"error": {"message": "Incorrect API key provided"}}, 401)


def too_many(retry_after: str) -> Answer:
    async def answer(_question: Question) -> Response:
        return JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": retry_after})

    return answer


async def stall(question: Question) -> Response:
    """Begin well, then say nothing more until the other side hangs up."""
    text = json.dumps(question.translation())

    async def pieces() -> AsyncIterator[str]:
        yield _event(text[: len(text) // 2])
        await asyncio.Event().wait()

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def cut(question: Question) -> Response:
    """Announce more than is sent: the connection ends in the middle of the answer."""

    async def pieces() -> AsyncIterator[str]:
        yield _event(json.dumps(question.translation())[:40])

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"Content-Length": "100000"})


def _stream(text: str) -> Response:
    async def pieces() -> AsyncIterator[str]:
        yield 'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
        for start in range(0, len(text), 24):
            yield _event(text[start : start + 24])
        yield 'data: {"choices": [], "usage": {"total_tokens": 1}}\n\ndata: [DONE]\n\n'

    return StreamingResponse(pieces(), media_type="text/event-stream")


def _event(content: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n"
