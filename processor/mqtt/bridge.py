"""Keeps a connection to the broker, and tells it what happens, as fast as both allow."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from aiomqtt import MqttError, ProtocolVersion
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from processor.answers import EndedJob
from processor.config import Settings
from processor.errors import ConfigError
from processor.events.bus import Bus
from processor.events.lifecycle import Event, FeedModeChanged, JobEvent, WorkerChanged
from processor.figures import Figures
from processor.mqtt import Silence
from processor.mqtt.backlog import HEARD, Backlog, Batch, End, Pace, Sent, Told
from processor.mqtt.broker import Broker, mend, speaks_another_version
from processor.mqtt.control import Control
from processor.mqtt.depths import Depths
from processor.mqtt.ended import Ended, NotTakenError
from processor.mqtt.link import WINDOW, Link
from processor.mqtt.messages import SUBJECTS, Message, Scribe
from processor.mqtt.store import Store
from processor.rpc import Rpc
from processor.service import Background

_GATHER = 0.01
"""Seconds to wait for more: a job that ends within them is told of once."""
_LONGEST_PAUSE = 30.0
_STEADY = 10.0
"""Seconds after which a connection counts as a good one, and its end as the first failure."""
_GOODBYE_SECONDS = 3.0

log = structlog.get_logger("processor.mqtt")


class Bridge(Silence):
    """Tells a broker what the bus says.

    ``control`` carries out commands, if the daemon obeys any; ``unsettled`` are the jobs of which an
    outcome is on its way, ``holds`` says whether jobs are still ours; ``figures`` are those of the
    database; ``background`` hears of tasks that end by themselves.
    """

    def __init__(
        self,
        settings: Settings,
        worker_id: UUID,
        rpc: Rpc,
        bus: Bus,
        *,
        control: Control | None,
        unsettled: Callable[[], AbstractSet[UUID]],
        holds: Callable[[], bool],
        figures: Figures,
        background: Background,
    ) -> None:
        self._broker = Broker.of(settings)
        self._identifier = f"processor-{worker_id}"
        self._scribe = Scribe(settings.mqtt_prefix, worker_id, settings.name, settings.mqtt_retain_seconds)
        self._control = control
        self._backlog = Backlog(holds, self._doubt)
        self._pace = Pace(settings.mqtt_rate, burst=WINDOW)
        self._store = Store(settings, worker_id, self._backlog, self._scribe, on_lost=self._doubt)
        self._ended = Ended(
            rpc,
            worker_id,
            self._backlog,
            seconds=max(settings.lease_seconds / 6, 1.0),
            unsettled=unsettled,
            oldest=self._oldest,
            able=lambda: self._link is not None and not self._store.behind,
            tell=self._tell,
        )
        self._depths = Depths(figures, self._scribe, lambda: self.connected, self._say)
        self._background = background
        self._bus = bus
        self._protocol = ProtocolVersion.V5
        self._link: Link | None = None
        self._since = datetime.now(UTC)
        self._last_error: str | None = None
        self._state, self._feed = "starting", "polling"
        self._stir = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self.published = dict.fromkeys(SUBJECTS, 0)
        """Messages that the broker has taken, by subject."""
        self.refused = dict.fromkeys(SUBJECTS, 0)

    # -- what the daemon uses ---------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to listen to the bus, and to connect; returns at once."""
        await self._store.open()
        for kind in HEARD:
            self._bus.listen("mqtt", self._hear_of_job, kind)
        for other in (WorkerChanged, FeedModeChanged):
            self._bus.listen("mqtt", self._hear_of_worker, other)
        self._run("mqtt", self._stay_connected())
        self._run("mqtt-outbox", self._store.run(lambda: self._link is not None, self._stir.set))

    async def registered(self) -> None:
        """Hear that the project knows the worker: from now on it answers for the jobs that it ends."""
        await self._ended.look()
        self._run("mqtt-ended", self._ended.run())
        self._run("mqtt-depths", self._depths.run())

    async def flush(self, seconds: float) -> None:
        """Wait until the broker has taken the ends of all jobs, if it is there, and say so to the project."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._link is not None and self._oldest() < float("inf"):  # noqa: ASYNC110 - several things change it
                    await asyncio.sleep(0.02)
                for _ in range(3):  # to mark a moment, to find all settled, to say it
                    await self._ended.look()

    async def close(self) -> None:
        """Say goodbye to the broker, and keep what it has not taken."""
        self._closing = True
        self._stir.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                while self._link is not None:  # noqa: ASYNC110 - it ends by itself
                    await asyncio.sleep(0.02)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if not self._link_is_five and self._state == "stopped":
            self._store.clear_later(self._scribe.worker_topic)
        await self._store.close()

    @property
    def connected(self) -> bool:
        """Whether there is a broker."""
        return self._link is not None

    @property
    def waiting(self) -> dict[str, int]:
        """What is to be told: messages in memory, ends of jobs on disk, bytes of these."""
        depth = self._store.depth
        sent = 0 if self._link is None else len(self._link.sent)
        return {"memory": len(self._backlog) + sent, "disk": depth.ends, "bytes": depth.bytes}

    @property
    def status(self) -> dict[str, Any]:
        """What it is doing, for /status."""
        return {
            "broker": str(self._broker),
            "connected": self.connected,
            "protocol": "5" if self._link_is_five else "3.1.1",
            "since": self._since.isoformat(),
            "last_error": self._last_error,
            "published": dict(self.published),
            "waiting": self.waiting,
        }

    def collect(self) -> Iterable[Metric]:
        """Return it as metrics."""
        yield GaugeMetricFamily("processor_mqtt_connected", "1: there is a broker.", value=self.connected)
        for name, says, counts in (
            ("published", "Messages that the broker has taken.", self.published),
            ("refused", "Messages that the broker does not allow.", self.refused),
            (
                "dropped",
                "States and progress that were overtaken before they were told.",
                self._backlog.dropped,
            ),
        ):
            family = CounterMetricFamily(f"processor_mqtt_{name}", says, labels=("subject",))
            for subject, count in counts.items():
                family.add_metric((subject,), count)
            yield family
        waiting = GaugeMetricFamily("processor_mqtt_waiting", "What is to be told.", labels=("place",))
        for place in ("memory", "disk"):
            waiting.add_metric((place,), self.waiting[place])
        yield waiting
        yield GaugeMetricFamily(
            "processor_mqtt_outbox_bytes", "Its size on disk.", value=self.waiting["bytes"]
        )

    # -- what is told -----------------------------------------------------------------------------

    def _hear_of_job(self, event: JobEvent) -> None:
        if self._backlog.hear(event):
            self._stir.set()

    def _hear_of_worker(self, event: Event) -> None:
        if isinstance(event, WorkerChanged):
            self._state = event.state
        elif isinstance(event, FeedModeChanged):
            self._feed = event.mode
        self._say_state()

    def _doubt(self) -> None:
        self._ended.doubt()

    def _say_state(self) -> None:
        self._say(self._scribe.worker(self._state, self._feed, last=self._state == "stopped"))

    def _say(self, message: Message) -> None:
        self._backlog.say(message)
        self._stir.set()

    async def _tell(self, jobs: Sequence[EndedJob]) -> None:
        batch = Batch([self._scribe.ended(job) for job in jobs])
        self._backlog.batch.extend(batch.told)
        self._stir.set()
        if self._link is None:
            self._drop_batch()
        if not await batch.done:
            raise NotTakenError

    def _oldest(self) -> float:
        sent = [] if self._link is None else [sent for sent, _message in self._link.sent.values()]
        return 0 if self._store.depth.ends or self._store.busy else self._backlog.oldest(sent)

    def _told(self, sent: Sent, message: Message, refused: str | None) -> None:
        """Hear what the broker has taken, or refused."""
        if refused is None:
            self.published[message.subject] += 1
        else:
            self.refused[message.subject] += 1
            self._last_error = f"{message.topic}: {refused}"
            log.error(
                "mqtt.refused",
                topic=message.topic,
                reason=refused,
                hint=f"Let the daemon write to {self._scribe.prefix}/# in the broker's access control.",
            )
        if isinstance(sent, Told):
            sent.batch.taken()
        self._store.told(message, five=self._link_is_five)

    # -- the connection ---------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        failures = 0
        while not self._closing:
            began = time.monotonic()
            try:
                await self._connect_once()
                failures = 0 if time.monotonic() - began > _STEADY else failures
            except MqttError as error:
                if self._protocol is ProtocolVersion.V5 and speaks_another_version(error):
                    self._protocol = ProtocolVersion.V311
                    log.info(
                        "mqtt.older_protocol", protocol="3.1.1", reason="the broker does not speak MQTT 5"
                    )
                    continue
                self._failed(error, mend(error, self._broker), failures)
            except ConfigError as error:
                self._failed(error, "It is read again before each connection.", failures)
            except Exception as error:
                log.exception("mqtt.crashed")
                self._last_error = f"{type(error).__name__}: {error}"
            failures += 1
            longest = min(_LONGEST_PAUSE, 0.5 * 2 ** min(failures, 8))
            await asyncio.sleep(random.uniform(0.1, longest))  # noqa: S311 - jitter

    def _failed(self, error: Exception, hint: str, failures: int) -> None:
        self._last_error = str(error)
        if not failures & (failures - 1):  # the 1st, 2nd, 3rd, 5th, 9th … time: enough to see that it lasts
            log.warning("mqtt.unreachable", broker=str(self._broker), error=str(error), hint=hint)

    async def _connect_once(self) -> None:
        """Connect, and tell until the connection ends; raises ``MqttError`` if there was none."""
        link = Link(
            self._broker,
            self._protocol,
            self._identifier,
            self._scribe.worker("offline", self._feed, last=True),
            on_told=self._told,
            on_stir=self._stir.set,
        )
        await self._enter(link)
        self._link, self._since, self._last_error = link, datetime.now(UTC), None
        log.info("mqtt.connected", broker=str(self._broker), protocol="5" if link.five else "3.1.1")
        listening = asyncio.create_task(self._listen(link), name="mqtt-control")
        listening.add_done_callback(lambda _ended: self._stir.set())
        try:
            link.watch()
            self._say_state()
            await self._pump(link, listening)
        finally:
            self._link, self._since = None, datetime.now(UTC)
            self._backlog.back(link.rest())
            self._drop_batch()
            listening.cancel()
            await asyncio.wait({listening})
            await link.leave()
        if not self._closing:
            self._last_error = link.why
            log.warning("mqtt.lost", broker=str(self._broker), reason=link.why)

    @staticmethod
    async def _enter(link: Link) -> None:
        """Connect; to be cancelled meanwhile must not leave a connection behind that nobody knows of."""
        entering = asyncio.create_task(link.connect(), name="mqtt-connect")
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            await asyncio.wait({entering})
            if entering.exception() is None:
                await link.leave()
            raise

    async def _pump(self, link: Link, listening: asyncio.Task[None]) -> None:
        while not link.over and not (self._control is not None and listening.done()):
            self._stir.clear()
            pause = self._fill(link)
            if self._closing and not link.sent and not self._backlog:
                return
            try:
                async with asyncio.timeout(pause):
                    await self._stir.wait()
                await asyncio.sleep(_GATHER)
            except TimeoutError:
                continue

    def _fill(self, link: Link) -> float | None:
        """Send what the broker and our pace allow; return how long to wait for the latter."""
        while self._backlog and len(link.sent) < WINDOW and not link.over:
            if pause := self._pace.take():
                return max(pause, _GATHER)
            if (sent := self._backlog.next()) is None:
                break
            try:
                link.send(sent, self._write(sent))
            except MqttError:
                self._backlog.back([sent])
                break
        return None

    def _write(self, sent: Sent) -> Message:
        match sent:
            case End():
                return sent.write(self._scribe)
            case Told():
                return sent.message
            case Message():
                return sent
        return self._scribe.event(sent)

    async def _listen(self, link: Link) -> None:
        if self._control is None:
            return
        try:
            for topic, reason in (await link.listen(self._control.topics)).items():
                log.error(
                    "mqtt.control_refused",
                    topic=topic,
                    reason=reason,
                    hint="Check the broker's access control.",
                )
            async for message in link.messages:
                self._control.hear(message)
        except MqttError as error:
            if not link.over:
                log.warning("mqtt.control_failed", error=str(error))

    def _drop_batch(self) -> None:
        while self._backlog.batch:
            self._backlog.batch.popleft().batch.fail()

    @property
    def _link_is_five(self) -> bool:
        return self._protocol is ProtocolVersion.V5

    def _run(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(loop, name=name)
        task.add_done_callback(self._background.ended)
        self._tasks.append(task)
