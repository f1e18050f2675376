"""The composition root: builds the parts, starts them in order, and takes them down in order."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import structlog

from processor import __version__, dump, signals
from processor import log as logs
from processor.afterwards import Afterwards
from processor.app import Processor
from processor.assignment import assign
from processor.checks import Checks
from processor.clients import ApplicationClient
from processor.config import Settings
from processor.credential import Credential
from processor.drain import Drain
from processor.errors import ApiError
from processor.events.bus import Bus
from processor.events.lifecycle import WorkerChanged, WorkerState
from processor.executor import Executor
from processor.feed import Feed, FeedTimings
from processor.figures import Figures
from processor.hold import Hold, clock
from processor.incidents import incidents
from processor.lane import Lane
from processor.lease import Lease
from processor.maintenance import Maintenance
from processor.metrics import measure
from processor.mqtt import bridge
from processor.notify import Activity, Announcer
from processor.observer import NOBODY
from processor.redact import remember
from processor.reload import Reloader
from processor.replay import Replay
from processor.report import Reporter
from processor.resources import Resources
from processor.rpc import Rpc
from processor.schedules import Schedules
from processor.service import Background, first, unless
from processor.settle import Settler
from processor.spool import Spool
from processor.status import Status
from processor.subscribers import attend
from processor.telemetry import telemetry
from processor.tracing import tracing
from processor.web.server import WebServer
from processor.webhooks import delivering
from processor.worker import Worker

_EVENTS_SECONDS = 5.0
"""How long those who want to know what has happened may take on the way out."""

log = structlog.get_logger("processor.daemon")


class Daemon:
    """One worker process: takes jobs from a project and runs them with the handlers of an application.

    ``run()`` returns the exit code. ``reread`` looks for the settings again when SIGHUP asks for it; without
    it they stay as they are.
    """

    def __init__(
        self, app: Processor, settings: Settings, *, reread: Callable[[], Settings] | None = None
    ) -> None:
        self.id = uuid4()
        self._settings = settings
        own = delivering(settings, self.id, lambda: self.rpc)
        work = self._work = assign(app, settings.queues, own)
        self._credential = Credential(self._read_key)
        key = self._credential.token
        figures = Figures(lambda: self.rpc.read_metrics(self.id))
        self._metrics = measure(settings, self._work, figures)
        observer = self._metrics or NOBODY
        self._incidents = incidents(settings)
        self._background = Background(self._incidents.task_died)
        bus = self.bus = Bus(observer, self._background.ended)
        if self._metrics is not None:
            self._metrics.listen(bus)
        self._tracing = tracing(wanted="traces" in settings.otel)
        self._telemetry = telemetry(self._metrics, wanted="metrics" in settings.otel)
        self.rpc = Rpc(settings.url, key, api_key=settings.api_key, observer=observer)
        self._client = ApplicationClient(settings.url, key, api_key=settings.api_key)
        self._feed = Feed(
            settings.url,
            key,
            str(self.id),
            self._on_wake,
            self._on_worker_row,
            api_key=settings.api_key,
            queues=self._work.queues,
            transport=settings.feed,
            timings=FeedTimings(
                poll_interval=settings.poll_seconds,
                health_interval=settings.health_seconds,
                probe_interval=settings.probe_seconds,
            ),
            observer=observer,
            bus=bus,
        )
        # hidden before it is shown to anybody
        for follow in (_hide, self.rpc.set_key, self._client.set_key, self._feed.set_key):
            self._credential.on_change(follow)
        self._worker = Worker(
            self.rpc,
            self.id,
            queues=work.main,
            slots=settings.slots,
            on_unknown=self._register,
            observer=observer,
            bus=bus,
            aside=Lane(work.aside, settings.webhook_slots) if work.aside else None,
        )
        kept, limit = settings.spool_dir, settings.spool_max_mb * 1_000_000
        spool = None if kept is None else Spool(kept, self.id, settings.url, max_bytes=limit)
        self._replay = None if kept is None else Replay(self.rpc, kept)
        self._settler = Settler(self.rpc, self.id, on_cancel=self._worker.cancel, spool=spool)
        self._reporter = Reporter(
            self.rpc, self.id, on_cancel=self._worker.cancel, on_stale=self._worker.lose
        )
        hold = self._hold = Hold()
        self._resources = Resources(
            app.resources_of(self._work.kinds),
            lambda name, error: self._background.mourn(f"resource {name}", error),
        )
        shared = self._resources.values
        afterwards = Afterwards(self._client, shared, observer, self._incidents)
        self._executor = Executor(
            *(work.apps, settings, self._settler, self._reporter, self._client, hold, shared, bus),
            *(self._tracing, self._incidents, afterwards),
        )
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
            unsettled=lambda: self._settler.unsettled,
            on_drain=lambda drains: self._becomes("draining" if drains or self._draining else "ready"),
            bus=bus,
        )
        self._checks = Checks(
            background=self._background,
            resources=self._resources,
            credential=self._credential,
            lease=self._lease,
            worker=self._worker,
            registered=lambda: self._registered,
            stopping=lambda: self._stop.is_set() or self._draining,
        )
        self._bridge = bridge(
            settings,
            self.id,
            self._work.queues,
            self.rpc,
            bus,
            worker=self._worker,
            settler=self._settler,
            hold=hold,
            figures=figures,
            background=self._background,
            stop=self.stop,
        )
        self._reloader = Reloader(settings, reread or (lambda: self._settings), self._adopt)
        self._status = Status(
            self.id,
            __version__,
            lambda: self._settings,
            worker=self._worker,
            feed=self._feed,
            hold=hold,
            settler=self._settler,
            reporter=self._reporter,
            rpc=self.rpc,
            ready=self._checks.ready,
            mqtt=lambda: self._bridge.status,
        )
        self._web: WebServer | None = None
        self._registered = False
        self._state: WorkerState | None = None
        self._lost = 0
        self._draining = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain = Drain(self.rpc, self.id, self._worker, self._settler, afterwards, self._hurry)
        self._announcer = Announcer.of(
            os.environ,
            ready=self._checks.ready,
            alive=self._checks.moving,
            stopping=self._stop.is_set,
            activity=lambda: Activity(
                self._feed.mode, len(self._worker.running), self._worker.slots, self._worker.ended
            ),
        )

    async def run(self) -> int:
        """Work until a signal or :meth:`stop`; 0 after an orderly end, 1 if a part of it died.

        Also 1 if results were lost; those left on disk because the API is away are not.
        """
        self._loop = asyncio.get_running_loop()
        with signals.heard(stop=self.stop, reload=self._reloader.ask, dump=self.dump):
            try:
                await self._start()
                await first(self._stop, self._background.failed)
            finally:
                await self._end()
        return 1 if self._background.failed.is_set() or self._lost else 0

    def stop(self, reason: str = "stop") -> None:
        """Finish what runs, then end; a second call hurries."""
        if self._stop.is_set():
            log.warning("daemon.hurried", reason=reason)
            self._hurry.set()
            return
        hint = {"hint": "press Ctrl-C again to hurry"} if reason == "SIGINT" else {}
        log.info("daemon.stopping", reason=reason, running=len(self._worker.running), **hint)
        self._stop.set()
        if self._announcer is not None:
            self._announcer.stop()

    # -- the life of a daemon ---------------------------------------------------------------------

    async def _start(self) -> None:
        if self._announcer is not None:
            self._background.start("announcer", self._announcer.run())
        if self._settings.http_port is not None:
            self._web = WebServer(
                self._settings,
                healthy=self._checks.healthy,
                ready=self._checks.ready,
                status=self._status.read,
                on_end=self._background.ended,
                exposition=self._metrics.exposition if self._metrics and self._settings.metrics else None,
            )
            log.info("daemon.listening", url=await self._web.start())
        await self._bridge.start()
        self._becomes("starting")
        if not await unless(self._stop, "resources", self._resources.start()):
            return
        attend(self._work.subscribers, self.bus, self._resources.values)
        if not await self._replayed():
            return
        await self._register()
        await self._bridge.registered()
        for name, part in (
            ("credential", self._credential.run()),
            ("settler", self._settler.run()),
            ("reporter", self._reporter.run()),
            ("heartbeats", self._lease.beat_forever()),
            ("fence", self._lease.fence_forever()),
            ("drained", self._lease.announce_drained_forever()),
            ("claims", self._worker.run()),
            ("schedules", self._schedules.run()),
            ("reload", self._reloader.run()),
        ):
            self._background.start(name, part)
        if self._metrics is not None:
            self._metrics.watch(
                self._worker, self._settler, self._hold, lambda: not any(self._checks.ready().values())
            )
            self._background.start("metrics", self._metrics.run())
            self._metrics.also(self._bridge.collect)
        if self._telemetry is not None:
            self._background.start("telemetry", self._telemetry.run())
        if seconds := self._settings.maintenance_seconds:
            self._background.start("maintenance", Maintenance(self.rpc, seconds).run())
        if self._replay is not None:  # sooner than the lease of whoever dies from now on is over
            self._background.start("replay", self._replay.run(self._settings.lease_seconds / 3))
        self._feed.on_mode(lambda _mode: self._lease.nudge())
        await self._feed.start()
        self._worker.wake("sweep")
        log.info(
            "daemon.ready",
            worker_id=str(self.id),
            name=self._settings.name,
            url=self._settings.url,
            queues=list(self._work.queues),
            kinds=[handler.kind for handler in self._work.handlers],
            slots=self._settings.slots,
            version=__version__,
        )
        self._becomes("ready")

    async def _replayed(self) -> bool:
        """Settle what earlier processes left, before any heartbeat takes their jobs away; False: stopped."""
        if self._replay is None:
            log.info(
                "spool.off", hint="PROCESSOR_SPOOL_DIR says where to keep results while the API is away."
            )
            return True
        return await unless(self._stop, "replay", self._replay.first())

    async def _end(self) -> None:
        """End in order: no new jobs, a grace for the running ones, the last results, then goodbye."""
        self._draining = True
        self._worker.pause("stopping")
        self._becomes("draining")
        if self._registered:
            self._lost = await self._drain.finish(self._settings)
            await self._bridge.flush(_EVENTS_SECONDS)
        await self._feed.stop()
        await self._background.stop()
        if self._registered:
            await self._drain.leave(self._settings)
        self._becomes("stopped")
        await self.bus.close(_EVENTS_SECONDS)  # after the last results, and before anything they might need
        await self._bridge.close()
        await self._resources.stop()
        if self._web is not None:
            await self._web.stop()
        await self._executor.close()
        await self._tracing.aclose()
        if self._telemetry is not None:
            await self._telemetry.aclose()
        await self._incidents.aclose()
        await self._client.aclose()
        await self.rpc.aclose()
        if self._registered:
            log.info("daemon.stopped", calls=dict(self.rpc.calls))

    async def _register(self) -> None:
        sent = clock()
        answer = await self.rpc.register_worker(
            {
                "id": str(self.id),
                "name": self._settings.name,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": __version__,
                "queues": list(self._work.queues),
                "slots": self._worker.slots,
                "lease_seconds": self._settings.lease_seconds,
                "feed": self._feed.mode,
                "transport": self._settings.feed,
                "kinds": [handler.declaration() for handler in self._work.handlers],
                "schedules": [schedule.declaration() for schedule in self._work.schedules],
            }
        )
        self._registered = True
        self._lease.begin((answer.lease_expires_at - answer.now).total_seconds(), sent=sent)

    def _becomes(self, state: WorkerState) -> None:
        if state != self._state:
            self._state = state
            self.bus.publish(WorkerChanged(state=state))

    def _read_key(self) -> str:
        return self._settings.read_key()  # of those that count at that time

    async def _adopt(self, settings: Settings, changed: frozenset[str]) -> None:
        """Take over settings of which only those that can change have."""
        self._settings = settings
        logs.renew(settings.log_level, settings.secrets)
        self._executor.adopt(settings)
        self._credential.refresh()  # whatever else has changed: its file may hold another
        if "slots" in changed:
            self._worker.resize(settings.slots)
            try:
                await self._register()  # operators see it too
            except ApiError as error:
                log.warning("config.not_announced", slots=settings.slots, error=str(error))

    def _on_wake(self, source: str) -> None:
        self._worker.wake(source)
        if source == "sweep":  # the feed asks for proof of the change path: the heartbeat's echo
            self._lease.nudge()

    def _on_worker_row(self, row: dict[str, Any]) -> None:
        self._lease.on_worker_row(row)

    # -- what it shows ----------------------------------------------------------------------------

    def dump(self) -> None:
        """Log what runs and what everything waits for; may be called from any thread, whatever else hangs."""
        people = logs.for_people()
        dump.show(self._loop, self._worker, self._feed, self._settler, self._reporter, people=people)


def _hide(key: str) -> None:
    """Keep a renewed key out of the logs; a token is known by its form, and there may be thousands."""
    if not key.startswith("eyJ"):
        remember(key)
