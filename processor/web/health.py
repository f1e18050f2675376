"""``/healthz`` (restart me if it fails), ``/readyz`` (is work being taken?), ``/status`` (what goes on?)."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

Checks = Callable[[], Mapping[str, str | None]]
"""Name of a check → why it fails, or None."""


def routes(healthy: Checks, ready: Checks, status: Callable[[], Mapping[str, Any]]) -> list[BaseRoute]:
    """Return the three routes; what they ask for is asked anew each time, and waits for nothing."""

    async def tell(_request: Request) -> JSONResponse:
        return JSONResponse(status())

    return [
        Route("/healthz", _endpoint(healthy)),
        Route("/readyz", _endpoint(ready)),
        Route("/status", tell),
    ]


def _endpoint(checks: Checks) -> Callable[[Request], JSONResponse]:
    async def answer(_request: Request) -> JSONResponse:
        results = checks()
        failing = {name: reason for name, reason in results.items() if reason is not None}
        body = {
            "status": "failing" if failing else "ok",
            "checks": {name: reason or "ok" for name, reason in results.items()},
        }
        return JSONResponse(body, status_code=503 if failing else 200)

    return answer  # type: ignore[return-value]  # starlette's Route takes either kind of function
