"""One application for all that a Supabase project has on one address; and for the panel, ``/panel``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from processor.local.auth import Auth
from processor.local.context import GatewayContext
from processor.local.realtime import Realtime
from processor.local.rest import Rest
from processor.web.panel import Panel

# what browsers may read besides the few headers they always may
EXPOSED_HEADERS = [
    "Content-Encoding",
    "Content-Location",
    "Content-Range",
    "Link",
    "Location",
    "Preference-Applied",
    "X-Total-Count",
]


def gateway(
    context: GatewayContext, rest: Rest, auth: Auth, realtime: Realtime, panel: Panel
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Compose the application; the three rooms of its API are started and stopped by the caller."""
    pages = Starlette(routes=panel.routes())
    api = _api(context, [*rest.routes(), *auth.routes(), *realtime.routes()])

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # a page is for people: it needs no key, and no other page may read it
        is_page = scope["type"] == "http" and f"{scope['path']}/".startswith("/panel/")
        await (pages if is_page else api)(scope, receive, send)

    return answer


def _api(context: GatewayContext, routes: list[BaseRoute]) -> Starlette:
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(
                Cors,
                allow_origins=["*"],
                allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
                max_age=3600,
            ),
            Middleware(RequireApiKey, keys=frozenset({context.anon_key, context.service_role_key})),
        ],
    )


class Cors(CORSMiddleware):
    """Add nothing to what no browser asked for: looking for that takes longer than it should."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer a browser's question about it."""
        if any(name == b"origin" for name, _ in scope.get("headers", ())):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class RequireApiKey:
    """Answer 401 to HTTP requests without the project's ``apikey``; websockets show theirs to Realtime."""

    def __init__(self, app: ASGIApp, keys: frozenset[str]) -> None:
        self.app = app
        self._keys = {key.encode() for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            key = next((value for name, value in scope["headers"] if name == b"apikey"), None)
            if key not in self._keys:
                await self._refuse(key)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    def _refuse(key: bytes | None) -> JSONResponse:
        if key is None:
            message = "No API key found in request"
            hint = "No `apikey` request header was found."
        else:
            message = "Invalid API key"
            hint = "Double check your Supabase `anon` or `service_role` API key."
        return JSONResponse({"message": message, "hint": hint}, status_code=401)
