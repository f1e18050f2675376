"""The daemon's HTTP server: health always, metrics, jobs and the panel where they are switched on."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from processor.config import Settings
from processor.errors import ConfigError
from processor.web import health, metrics
from processor.web.jobs import Jobs
from processor.web.panel import Panel


class WebServer:
    """What this process shows over HTTP; between :meth:`start` and :meth:`stop` it listens.

    An answer at all shows that the event loop is alive; ``healthy``, ``ready`` and ``status`` say the rest.
    ``on_end`` hears of a server that ended without :meth:`stop`; ``exposition`` is what ``/metrics`` shows.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        healthy: health.Checks,
        ready: health.Checks,
        status: Callable[[], Mapping[str, Any]],
        on_end: Callable[[asyncio.Task[None]], None],
        exposition: metrics.Exposition | None = None,
    ) -> None:
        self._on_end = on_end
        self._host = settings.http_host
        self._port = settings.http_port or 0
        self._jobs: Jobs | None = None
        routes: list[BaseRoute] = health.routes(healthy, ready, status)
        if exposition is not None:
            routes += metrics.routes(exposition)
        key = "" if settings.anon_key is None else settings.anon_key.get_secret_value()
        if settings.http_jobs:
            self._jobs = Jobs(settings.url, key, streams=settings.http_streams)
            routes += self._jobs.routes(settings.cors_origins)
        if settings.panel:
            routes += Panel(settings.url, key).routes()
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,  # it would write down the tokens of EventSource's addresses
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def serving(self) -> int:
        """How many requests for jobs are being served."""
        return 0 if self._jobs is None else self._jobs.serving

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
        """End what is being streamed, stop listening; a second call does nothing."""
        task, self._task = self._task, None
        if self._jobs is not None:
            self._jobs.end_streams()
        if task is not None and not task.done():
            self._server.should_exit = True
            await task
        if self._jobs is not None:
            await self._jobs.aclose()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:  # nobody has stopped it
            self._on_end(task)


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
