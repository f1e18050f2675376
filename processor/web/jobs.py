"""``GET /jobs/{id}`` and ``GET /jobs/{id}/events``, for frontends without Realtime."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from uuid import UUID

import structlog
from sse_starlette import EventSourceResponse
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Message, Receive, Scope, Send

from processor.web.events import Ending, JobEvents
from processor.web.marks import Mark
from processor.web.rows import JobRows, Refusal

_PATIENCE = 30.0
"""Seconds for which streams outlast an API that is away."""
_HEARTBEAT_SECONDS = 15.0
"""Between two comments that keep a quiet stream alive in the eyes of proxies."""
_STALLED_SECONDS = 30.0
"""After which a reader that takes nothing is given up."""
_RETRY_SECONDS = 2
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,8192}")

log = structlog.get_logger("processor.web")


class Jobs:
    """Shows jobs to whoever may see them: each look is made with the caller's own access token.

    :param url: the project's
    :param key: its publishable (anon) key
    :param streams: how many requests, streams above all, are served at the same time
    """

    def __init__(self, url: str, key: str, *, streams: int) -> None:
        self._rows = JobRows(url, key)
        self._ending = Ending()
        self._limit = streams
        self.serving = 0
        """How many are served now."""

    def routes(self, origins: Sequence[str]) -> list[BaseRoute]:
        """Return the routes; pages of these origins may use them, others may not."""
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET"],
            allow_headers=["Authorization", "Cache-Control", "Last-Event-ID"],
            expose_headers=["Retry-After"],
            max_age=3600,
        )
        return [
            Mount(
                "/jobs",
                routes=[
                    Route("/{id:uuid}", _Endpoint(self._whole), methods=["GET"]),
                    Route("/{id:uuid}/events", _Endpoint(self._events), methods=["GET"]),
                ],
                middleware=[cors] if origins else [],
            )
        ]

    def end_streams(self) -> None:
        """End all streams at once: their readers connect again, wherever somebody answers."""
        self._ending.end()

    async def aclose(self) -> None:
        """Close the connections to the project."""
        await self._rows.aclose()

    async def _whole(self, request: Request, held: AsyncExitStack) -> Response:
        token = _bearer(request) or _nobody()
        held.enter_context(self._place())
        pieces = await held.enter_async_context(self._rows.whole(_job_id(request), token))
        return StreamingResponse(pieces, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _events(self, request: Request, held: AsyncExitStack) -> Response:
        # an EventSource cannot set headers
        token = _bearer(request) or request.query_params.get("access_token") or _nobody()
        held.enter_context(self._place())
        stream = JobEvents(
            self._rows,
            _job_id(request),
            _well_formed(token),
            Mark.read(request.headers.get("last-event-id")),
            ending=self._ending,
            patience=_PATIENCE,
        )
        try:
            async with self._ending.bounded():
                row = await stream.look()
        except TimeoutError:
            raise Refusal(503, "STOPPING", "this server is about to end: try again soon") from None
        if stream.nothing_follows(row):
            return Response(status_code=204)  # to an EventSource: do not come back
        return EventSourceResponse(stream.tell(row), ping=_HEARTBEAT_SECONDS, sep="\n")

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.serving >= self._limit:
            raise Refusal(503, "TOO_MANY_STREAMS", f"{self._limit} requests are being served: try again soon")
        self.serving += 1
        try:
            yield
        finally:
            self.serving -= 1


class _Endpoint:
    """An endpoint whose answer may hold things until it has been sent, or its reader is gone."""

    def __init__(self, answer: Callable[[Request, AsyncExitStack], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(message: Message) -> None:
            async with asyncio.timeout(_STALLED_SECONDS):
                await send(message)

        request = Request(scope, receive)
        async with AsyncExitStack() as held:
            try:
                response = await self._answer(request, held)
            except Refusal as refusal:
                response = _refused(refusal)
            try:
                await response(scope, receive, bounded)
            except TimeoutError:
                log.info("web.reader_stalled", job_id=str(_job_id(request)), seconds=_STALLED_SECONDS)


def _job_id(request: Request) -> UUID:
    job_id: UUID = request.path_params["id"]
    return job_id


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return _well_formed(token.strip()) if scheme.lower() == "bearer" and token.strip() else None


def _well_formed(token: str) -> str:
    if _TOKEN.fullmatch(token) is None:
        raise Refusal(401, "TOKEN_REFUSED", "this is no access token: it has characters that none has")
    return token


def _nobody() -> str:
    raise Refusal(
        401,
        "NO_TOKEN",
        "send the access token of a signed-in user: Authorization: Bearer …; an EventSource, which cannot, "
        "may put it into the address: ?access_token=…",
    )


def _refused(refusal: Refusal) -> JSONResponse:
    headers = {"Cache-Control": "no-store"}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status == 503:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    return JSONResponse(refusal.body, status_code=refusal.status, headers=headers)
