"""The panel's page: built files, what they need to know, and a policy that lets them do nothing else."""

from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).with_name("static")
"""Where `./scripts/panel` puts the files; a wheel has them."""

_MISSING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>The panel is not built</title>
<h1>The panel is not built</h1>
<p>Its files are not in <code>processor/web/static</code>. In a clone of the project run</p>
<pre>./scripts/panel</pre>
<p>which needs Node.js 20.19 or newer with npm, and reload this page. Nothing needs a restart; all else works
without it. A published wheel has the files.</p>
</html>
"""


class Panel:
    """Serves the page under ``/panel/``.

    :param url: the project's address, as browsers reach it
    :param key: its publishable (anon) key, which everybody gets to see
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._index = STATIC / "index.html"
        self._files = StaticFiles(directory=STATIC, check_dir=False)
        self.demo: list[dict[str, str]] = []
        """Email and password of users that are offered to everybody."""

    @property
    def built(self) -> bool:
        """Whether the files are there."""
        return self._index.is_file()

    def routes(self) -> list[BaseRoute]:
        """Return the routes, ``/panel`` and all below."""
        pages = Starlette(routes=[Route("/config.json", self._config), Route("/{path:path}", self._file)])
        return [
            Route("/panel", _to_the_page),
            Mount("/panel", _Guarded(pages, policy(self._url))),
        ]

    async def _file(self, request: Request) -> Response:
        path = request.path_params["path"] or "index.html"
        if "\0" in path:
            raise HTTPException(404)
        if path == "index.html" and not self.built:
            return HTMLResponse(_MISSING, status_code=503)
        return await self._files.get_response(path, request.scope)

    async def _config(self, _request: Request) -> Response:
        return JSONResponse({"url": self._url, "key": self._key, "demo": self.demo})


def policy(url: str) -> str:
    """Return the Content-Security-Policy for a page that talks to the project at this address only."""
    parts = urlsplit(url)
    socket = "wss" if parts.scheme == "https" else "ws"
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"connect-src 'self' {parts.scheme}://{parts.netloc} {socket}://{parts.netloc}",
            "img-src 'self' data: https:",
            "font-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


async def _to_the_page(_request: Request) -> Response:
    return RedirectResponse("/panel/")


class _Guarded:
    """Adds to every answer what a browser must not do with it, and how long it may keep it."""

    def __init__(self, app: ASGIApp, content_security_policy: str) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": content_security_policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hashed = "/assets/" in scope["path"]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                # the name of an asset changes with what is in it
                keep = hashed and message["status"] in {200, 206, 304}
                headers["Cache-Control"] = "public, max-age=31536000, immutable" if keep else "no-cache"
            await send(message)

        await self._app(scope, receive, guarded)
