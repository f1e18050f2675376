"""``/healthz`` (restart me if it fails) and ``/readyz`` (is work being taken?)."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from processor.errors import ConfigError

Checks = Callable[[], Mapping[str, str | None]]
"""Name of a check → why it fails, or None."""


class HealthServer:
    """A small HTTP server for whoever watches the daemon.

    An answer at all shows that the event loop is alive; ``healthy`` and ``ready`` say the rest.
    ``on_end`` hears of a server that ended without :meth:`stop`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        healthy: Checks,
        ready: Checks,
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._on_end = on_end
        self._host = host
        self._port = port
        app = Starlette(routes=[Route("/healthz", _endpoint(healthy)), Route("/readyz", _endpoint(ready))])
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the base URL. Raises :class:`ConfigError` if the port is taken."""
        try:
            listener = socket.create_server((self._host, self._port))
        except OSError as error:
            raise ConfigError(
                f"PROCESSOR_HTTP_PORT: cannot listen on {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        self._task = asyncio.create_task(self._server.serve([listener]), name="web")
        self._task.add_done_callback(self._ended)
        host, port = listener.getsockname()[:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening; a second call does nothing."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            self._server.should_exit = True
            await task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:  # nobody has stopped it
            self._on_end(task)


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


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
