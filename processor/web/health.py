"""``/healthz`` (restart me if it fails) and ``/readyz`` (is work being taken?)."""

from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

Checks = Callable[[], Mapping[str, str | None]]
"""Name of a check → why it fails, or None."""


def routes(healthy: Checks, ready: Checks) -> list[BaseRoute]:
    """Return the two routes; what they ask for is asked anew each time, and waits for nothing."""
    return [Route("/healthz", _endpoint(healthy)), Route("/readyz", _endpoint(ready))]


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
