"""``/metrics``: for Prometheus, and whoever reads its formats."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]
"""What a client accepts → the text, and its media type."""


def routes(exposition: Exposition) -> list[BaseRoute]:
    """Return the route."""

    async def answer(request: Request) -> Response:
        text, media_type = await exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})

    return [Route("/metrics", answer)]
