"""The composition root: builds the parts, starts them in order, and takes them down in order."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine, Mapping
from typing import Any
from uuid import uuid4

import structlog

from processor import __version__
from processor.app import Processor
from processor.clients import ApplicationClient
from processor.config import Settings
from processor.errors import ApiError, ConfigError
from processor.executor import Executor
from processor.feed import Feed, FeedTimings
from processor.hold import Hold, clock
from processor.lease import Lease
from processor.maintenance import Maintenance
from processor.report import Reporter
from processor.resources import Resources
from processor.rpc import Rpc
from processor.run import Stop
from processor.schedules import Schedules
from processor.service import Background
from processor.settle import Settler
from processor.web.health import HealthServer
from processor.worker import Worker

_FLUSH_SECONDS = 10.0
"""How long the last results may take on the way out; what does not make it is rescued by others."""
_GOODBYE_SECONDS = 3.0
"""How long deregistering may take: without it the lease just runs out."""

log = structlog.get_logger("processor.daemon")


class Daemon:
    """One worker process: takes jobs from a project and runs them with the handlers of an application.

    ``run()`` returns the exit code.
    """

    def __init__(self, app: Processor, settings: Settings) -> None:
        self.id = uuid4()
        self._app = app
        self._settings = settings
        self._queues = settings.queues or tuple(sorted({h.queue for h in app.handlers.values()}))
        self._kinds = [h for h in app.handlers.values() if h.queue in self._queues]
        kinds = {handler.kind for handler in self._kinds}
        self._planned = [s for s in app.schedules.values() if s.kind in kinds]
        if idle := _without_handler(app, self._queues):
            raise ConfigError(_nothing_to_do(app, idle))
        needed = app.resources_of(kinds)
        key = settings.key.get_secret_value()
        self.rpc = Rpc(settings.url, key, api_key=settings.api_key)
        self._client = ApplicationClient(settings.url, key, api_key=settings.api_key)
        self._feed = Feed(
            settings.url,
            key,
            str(self.id),
            self._on_wake,
            self._on_worker_row,
            api_key=settings.api_key,
            queues=self._queues,
            transport="polling" if settings.feed == "polling" else "postgres_changes",
            timings=FeedTimings(poll_interval=settings.poll_seconds, health_interval=settings.health_seconds),
        )
        self._worker = Worker(
            self.rpc, self.id, queues=self._queues, slots=settings.slots, on_unknown=self._register
        )
        self._settler = Settler(self.rpc, self.id, on_cancel=self._worker.cancel)
        self._reporter = Reporter(
            self.rpc, self.id, on_cancel=self._worker.cancel, on_stale=self._worker.lose
        )
        hold = Hold()
        self._background = Background()
        self._resources = Resources(
            needed, lambda name, error: self._background.mourn(f"resource {name}", error)
        )
        shared = self._resources.values
        self._executor = Executor(app, settings, self._settler, self._reporter, self._client, hold, shared)
        self._worker.employ(self._executor)
        self._schedules = Schedules(self.rpc, self.id)
        self._lease = Lease(
            self.rpc,
            self.id,
            self._worker,
            hold,
            seconds=settings.lease_seconds,
            feed_mode=lambda: self._feed.mode,
            on_beat=self._feed.heartbeat_sent,
            on_schedule=self._schedules.due_in,
            register=self._register,
        )
        self._web: HealthServer | None = None
        self._registered = False
        self._draining = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Work until a signal or :meth:`stop`; 0 after an orderly end, 1 if a part of it died."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, signal.Signals(number).name)
        try:
            try:
                await self._start()
                await self._until_stopped()
            finally:
                await self._drain()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return 1 if self._background.failed.is_set() else 0

    def stop(self, reason: str = "stop") -> None:
        """Finish what runs, then end; a second call hurries."""
        if self._stop.is_set():
            log.warning("daemon.hurried", reason=reason)
            self._hurry.set()
            return
        log.info("daemon.stopping", reason=reason, running=len(self._worker.running))
        self._stop.set()

    # -- the life of a daemon ---------------------------------------------------------------------

    async def _start(self) -> None:
        if self._settings.http_port is not None:
            self._web = HealthServer(
                self._settings.http_host,
                self._settings.http_port,
                healthy=self._healthy,
                ready=self._ready,
                on_end=self._background.ended,
            )
            log.info("daemon.listening", url=await self._web.start())
        if not await self._unless_stopped("resources", self._resources.start()):
            return
        await self._register()
        for name, part in (
            ("settler", self._settler.run()),
            ("reporter", self._reporter.run()),
            ("heartbeats", self._lease.beat_forever()),
            ("fence", self._lease.fence_forever()),
            ("claims", self._worker.run()),
            ("schedules", self._schedules.run()),
        ):
            self._background.start(name, part)
        if self._settings.maintenance_seconds:
            maintenance = Maintenance(self.rpc, self._settings.maintenance_seconds)
            self._background.start("maintenance", maintenance.run())
        self._feed.on_mode(lambda _mode: self._lease.nudge())
        await self._feed.start()
        self._worker.wake("sweep")
        log.info(
            "daemon.ready",
            worker_id=str(self.id),
            name=self._settings.name,
            url=self._settings.url,
            queues=list(self._queues),
            kinds=[handler.kind for handler in self._kinds],
            slots=self._settings.slots,
            version=__version__,
        )

    async def _unless_stopped(self, name: str, part: Coroutine[Any, Any, None]) -> bool:
        """Do a part of the start, until somebody wants to stop; say whether to go on."""
        doing = asyncio.create_task(part, name=name)
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                await doing  # raises what kept it from being done
        finally:
            stop.cancel()
            doing.cancel()
            await asyncio.wait({doing})
        return not self._stop.is_set()

    async def _until_stopped(self) -> None:
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        failed = asyncio.create_task(self._background.failed.wait(), name="failed")
        try:
            await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            failed.cancel()

    async def _drain(self) -> None:
        """End in order: no new jobs, a grace for the running ones, the last results, then goodbye."""
        self._draining = True
        self._worker.pause("stopping")
        if self._registered:
            if not await self._settled(self._settings.grace_seconds):
                log.warning("daemon.releasing", running=len(self._worker.running))
                self._worker.stop_all(Stop.RELEASE)
                await self._settled(self._settings.cancel_grace_seconds + 1, hurry=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await self._settler.flushed()
        await self._feed.stop()
        await self._background.stop()
        if self._registered:
            try:
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self.rpc.deregister_worker(self.id)
            except (ApiError, TimeoutError) as error:
                log.warning("daemon.not_deregistered", error=str(error) or "no answer in time")
        await self._resources.stop()
        if self._web is not None:
            await self._web.stop()
        await self._executor.close()
        await self._client.aclose()
        await self.rpc.aclose()
        if self._registered:
            log.info("daemon.stopped", calls=dict(self.rpc.calls))

    async def _settled(self, seconds: float, *, hurry: bool = True) -> bool:
        """Wait until nothing runs, for so long, or until somebody hurries; say whether nothing runs."""
        idle = asyncio.create_task(self._worker.idle(), name="idle")
        hurried = asyncio.create_task(self._hurry.wait(), name="hurry")
        try:
            waits = {idle, hurried} if hurry else {idle}
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return idle.done()
        finally:
            idle.cancel()
            hurried.cancel()

    async def _register(self) -> None:
        sent = clock()
        answer = await self.rpc.register_worker(
            {
                "id": str(self.id),
                "name": self._settings.name,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": __version__,
                "queues": list(self._queues),
                "slots": self._settings.slots,
                "lease_seconds": self._settings.lease_seconds,
                "feed": self._feed.mode,
                "kinds": [handler.declaration() for handler in self._kinds],
                "schedules": [schedule.declaration() for schedule in self._planned],
            }
        )
        self._registered = True
        self._lease.begin((answer.lease_expires_at - answer.now).total_seconds(), sent=sent)

    def _on_wake(self, source: str) -> None:
        self._worker.wake(source)
        if source == "sweep":  # the feed asks for proof of the change path: the heartbeat's echo
            self._lease.nudge()

    def _on_worker_row(self, row: dict[str, Any]) -> None:
        self._lease.on_worker_row(row)

    # -- what it shows ----------------------------------------------------------------------------

    def _healthy(self) -> Mapping[str, str | None]:
        dead = ", ".join(self._background.dead)
        return {"background": f"ended by themselves: {dead}" if dead else None}

    def _ready(self) -> Mapping[str, Any]:
        return {
            **self._healthy(),
            "resources": self._resources.starting and f"{self._resources.starting} is being started",
            "registered": None if self._registered else "the API has not accepted this worker yet",
            "lease": "no heartbeat gets through" if self._lease.fenced else None,
            "first_sweep": None if self._worker.looked else "no claim has been answered yet",
            "slots": self._worker.blocked,
            "accepting": "it is stopping" if self._draining or self._stop.is_set() else None,
        }


def _without_handler(app: Processor, queues: tuple[str, ...]) -> tuple[str, ...]:
    """Return the queues that no handler works on; all of nothing is nothing, so an empty app has one too."""
    served = {handler.queue for handler in app.handlers.values()}
    return tuple(queue for queue in queues or ("default",) if queue not in served)


def _nothing_to_do(app: Processor, queues: tuple[str, ...]) -> str:
    if not app.handlers:
        return 'The Processor has no handlers. Declare one with @app.job("name").'
    have = ", ".join(sorted({handler.queue for handler in app.handlers.values()}))
    return f"PROCESSOR_QUEUES: no handler works on {', '.join(queues)}. The handlers' queues: {have}."
