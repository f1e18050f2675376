"""The feed's supervisor: keeps one incarnation alive, judges it, and polls while there is none.

```
            ready                        the first bad sign
polling ───────────────▶ realtime ───────────────────────────▶ polling
(reconnecting)  sweep   (one incarnation)                     (reconnecting)
```
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import structlog

from processor.events.bus import Bus
from processor.events.lifecycle import FeedModeChanged, JobSeen, QueuePaused
from processor.feed.channels import Changes, Messages
from processor.feed.ending import Ending
from processor.feed.polling import Poller
from processor.feed.realtime import Incarnation
from processor.feed.timings import FeedTimings
from processor.observer import NOBODY, Observer

log = structlog.get_logger("processor.feed")

Mode = Literal["realtime", "polling"]
Wake = Literal["realtime", "polling", "sweep"]
Transport = Literal["postgres_changes", "broadcast", "polling"]


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """What the feed is doing, for health pages and metrics."""

    mode: Mode
    since: datetime
    """When the mode began."""
    incarnations: int
    """How many connections were begun."""
    last_ending: str | None
    """Why the latest of them ended; None: none has."""


class Feed:
    """Says when to look for work; never claims.

    Until the first connection is ready, and whenever it is not healthy, the mode is `polling`.

    :param url: the project's URL, such as `https://abc.supabase.co`
    :param key: its service key, or a JWT of a role that may read the job tables
    :param api_key: the project's public key, where `key` is such a JWT; None: `key` serves for both
    :param worker_id: the id under which the worker is registered; its row is watched
    :param wake: called in the event loop with the reason to look: `realtime` (an event), `polling`
        (the clock) or `sweep` (events may have been missed: look whatever you believe, and heartbeat,
        so that the change path is proven at once)
    :param on_worker_row: called with the worker's row whenever it changes
    :param queues: wake only for these queues; None: for all
    :param transport: how to hear of jobs: `postgres_changes`, `broadcast` (the worker must be registered with
        it, or nothing is sent), or `polling`, which never connects
    :param timings: every duration, in seconds
    :param observer: hears of connections, wake-ups and probes
    :param bus: hears of modes, of jobs that became pending, and of queues that were paused or go on
    """

    def __init__(
        self,
        url: str,
        key: str,
        worker_id: str,
        wake: Callable[[Wake], None],
        on_worker_row: Callable[[dict[str, Any]], None],
        *,
        api_key: str | None = None,
        queues: Collection[str] | None = None,
        transport: Transport = "postgres_changes",
        timings: FeedTimings | None = None,
        observer: Observer = NOBODY,
        bus: Bus | None = None,
    ) -> None:
        self._url = url
        self._key = key
        self._api_key = api_key or key
        self._worker_id = worker_id
        self._wake_worker = wake
        self._on_worker_row = on_worker_row
        self._queues = None if queues is None else frozenset(queues)
        self._transport = transport
        self._timings = timings or FeedTimings()
        self._observer = observer
        self._bus = bus or Bus()
        self._paused: dict[str, bool] = {}

        self._mode: Mode = "polling"
        self._since = datetime.now(UTC)
        self._mode_callbacks: list[Callable[[Mode], None]] = []
        self._poller = Poller(lambda: self._wake("polling"), self._timings.poll_interval)
        self._supervisor: asyncio.Task[None] | None = None
        self._renewed = asyncio.Event()
        self._incarnation: Incarnation | None = None
        self._incarnations = 0
        self._last_ending: Ending | None = None
        # lost with a missing echo, regained only by an echo: the word "ok" of a server whose change path
        # is dead would otherwise stop the polling again and again
        self._change_path_trusted = True

    # -- what the daemon uses ---------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How the worker learns of jobs at the moment."""
        return self._mode

    @property
    def status(self) -> FeedStatus:
        """A snapshot for health pages and metrics."""
        ending = None if self._last_ending is None else str(self._last_ending)
        return FeedStatus(self._mode, self._since, self._incarnations, ending)

    def on_mode(self, callback: Callable[[Mode], None]) -> None:
        """Have a callback called with the new mode, in the event loop, once per change."""
        self._mode_callbacks.append(callback)

    async def start(self) -> None:
        """Start to poll and to connect; returns at once. A second call does nothing."""
        if self._supervisor is not None:
            return
        self._since = datetime.now(UTC)
        self._poller.resume()
        run = self._only_poll() if self._transport == "polling" else self._supervise()
        self._supervisor = asyncio.create_task(run, name="feed-supervisor")
        self._supervisor.add_done_callback(self._on_dead)

    async def stop(self) -> None:
        """Stop for good, within `close_timeout`: no callback comes after it. A second call does nothing."""
        supervisor, self._supervisor = self._supervisor, None
        self._poller.pause()
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait({supervisor})

    def set_key(self, key: str) -> None:
        """Show another key: on the live connection, which stays, and to every later one."""
        if self._api_key == self._key:
            self._api_key = key
        self._key = key
        self._renewed.set()  # whoever was refused for the old one tries at once
        if self._incarnation is not None:
            self._incarnation.renew(key)

    def heartbeat_sent(self, at: datetime) -> None:
        """Expect the worker's heartbeat back as a change of its row.

        :param at: the server's time of the heartbeat, as its response says (`heartbeat_at`)
        """
        if self._incarnation is not None:
            self._incarnation.expect_echo(at)

    # -- supervision ------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        failures = 0
        told: str | None = None
        for number in itertools.count(1):
            began = asyncio.get_running_loop().time()
            ending = await self._live(number)
            lived = asyncio.get_running_loop().time() - began
            failures = 1 if lived >= self._timings.health_interval else failures + 1
            pause = self._pause(failures, ending)
            # an outage of an hour is a thousand equal endings: one of them is news
            log.log(
                logging.DEBUG if failures > 1 and ending.cause == told else logging.INFO,
                "feed.ended",
                cause=ending.cause,
                detail=ending.detail,
                incarnation=number,
                lived_s=round(lived, 3),
                retry_in_s=round(pause, 3),
            )
            told = ending.cause
            self._renewed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._renewed.wait()

    async def _only_poll(self) -> None:
        await asyncio.get_running_loop().create_future()  # until cancelled

    async def _live(self, number: int) -> Ending:
        """Live one incarnation to its end, judging it on the way."""
        self._incarnations = number
        self._observer.connection_begun()
        incarnation = self._incarnation = Incarnation(
            self._url,
            self._key,
            self._api_key,
            self._worker_id,
            number=number,
            listen=Messages if self._transport == "broadcast" else Changes,
            timings=self._timings,
            queues=self._queues,
            on_ready=self._on_ready,
            on_event=lambda: self._wake("realtime"),
            on_job=self._on_job,
            on_queue=self._on_queue,
            on_worker_row=self._on_worker_row,
            on_echo=self._on_echo,
            on_end=self._on_end,
            on_probe=self._observer.probe_answered,
        )
        life = asyncio.create_task(incarnation.run(), name=f"feed-incarnation-{number}")
        try:
            while not (await asyncio.wait({life}, timeout=self._timings.health_interval))[0]:
                incarnation.judge()
        finally:
            self._incarnation = None
            if not life.done():
                life.cancel()
                await asyncio.wait({life})
        if life.cancelled():  # by somebody else: our own cancellation has left this function
            return Ending("crashed", "cancelled from outside")
        if error := life.exception():
            log.error("feed.crashed", incarnation=number, exc_info=error)
            return Ending("crashed", repr(error))
        return life.result()

    def _pause(self, failures: int, ending: Ending) -> float:
        """Full jitter: a fleet that lost one server together does not come back together."""
        timings = self._timings
        cap = timings.refused_cap if ending.insisting_is_pointless else timings.backoff_cap
        # the exponent is bounded because the failures of a long outage are not
        return random.uniform(0, min(cap, timings.backoff_base * 2 ** min(failures - 1, 16)))  # noqa: S311  jitter, no secret

    # -- what an incarnation says -----------------------------------------------------------------

    def _on_ready(self) -> None:
        # events before this moment were lost: look first, then rely on them
        self._wake("sweep")
        if self._change_path_trusted:
            self._change_mode(
                "realtime",
                "the workers' topics are joined"
                if self._transport == "broadcast"
                else "the server streams changes",
            )
        else:
            log.info("feed.on_probation", incarnation=self._incarnations)

    def _on_job(self, job_id: str, queue: str | None) -> None:
        if self._bus.wants(JobSeen):
            self._bus.publish(JobSeen(job_id=UUID(job_id), queue=queue))

    def _on_queue(self, queue: str, paused: bool) -> None:
        if self._paused.get(queue) is not paused:  # any knob may have been turned
            self._paused[queue] = paused
            self._bus.publish(QueuePaused(queue=queue, paused=paused))

    def _on_echo(self) -> None:
        if self._change_path_trusted:
            return
        self._change_path_trusted = True
        self._wake("sweep")
        self._change_mode("realtime", "a heartbeat came back as a change")

    def _on_end(self, ending: Ending) -> None:
        self._last_ending = ending
        self._observer.connection_ended(ending.cause)
        if ending.cause == "echo_timeout":
            self._change_path_trusted = False
        if self._supervisor is not None:  # stopping is no change of mode
            self._change_mode("polling", str(ending))

    def _change_mode(self, mode: Mode, reason: str) -> None:
        if mode == self._mode:
            return
        self._mode = mode
        self._since = datetime.now(UTC)
        self._bus.publish(FeedModeChanged(mode=mode))
        log.log(
            logging.WARNING if mode == "polling" else logging.INFO,
            "feed.mode",
            mode=mode,
            reason=reason,
            incarnation=self._incarnations,
        )
        if mode == "polling":
            self._poller.resume()
        else:
            self._poller.pause()
        for callback in self._mode_callbacks:
            try:
                callback(mode)
            except Exception:
                log.exception("feed.callback_failed", callback="on_mode")

    def _wake(self, reason: Wake) -> None:
        self._observer.woken(reason)
        try:
            self._wake_worker(reason)
        except Exception:
            log.exception("feed.callback_failed", callback="wake", reason=reason)

    def _on_dead(self, task: asyncio.Task[None]) -> None:
        """Go on by polling, and say so loudly, if supervision ends without having been stopped."""
        if self._supervisor is not task:
            return
        log.critical("feed.dead", exc_info=None if task.cancelled() else task.exception())
        self._change_mode("polling", "the feed's supervision is dead: restart this worker")
