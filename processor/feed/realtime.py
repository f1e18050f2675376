"""One incarnation of the Realtime connection: opened, proven, watched, thrown away.

The official client is used for its protocol, never for its supervision: left alone it gives up after
five attempts, stays silent beside a mute server, and loses its listener to an exception in a callback.
So each incarnation is a client of its own, on a topic of its own, that may never reconnect or rejoin.
Whatever goes wrong first becomes its `Ending`; the supervisor starts the next one.
"""

import asyncio
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import structlog
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates
from realtime.message import SuccessSystemPayload
from realtime.types import (
    ChannelEvents,
    PostgresChangesPayload,
    RealtimeAcknowledgementStatus,
    RealtimePostgresChangesListenEvent,
)
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from processor.feed.quiet import hush_client
from processor.feed.timings import FeedTimings

log = structlog.get_logger("processor.feed")

Cause = Literal[
    "unreachable",  # no TCP, TLS or websocket within open_timeout, or refused by the network
    "refused",  # the server answered the handshake with an HTTP error
    "join_refused",  # the server answered the join with an error
    "join_timeout",  # the join, or the word that changes are streamed, did not come within join_timeout
    "closed",  # the socket was closed or reset
    "channel_error",  # phx_error, or a system message with an error
    "channel_closed",  # phx_close
    "ack_timeout",  # no broadcast acknowledgement within ack_timeout
    "ack_refused",  # an error for one
    "echo_timeout",  # the worker's own heartbeat did not come back as a change
    "listener_died",  # the client reads no more, though the socket looks open
    "stuck",  # nothing above was noticed, and yet nothing was heard: found by the judgement
    "crashed",  # an exception nobody foresaw
]

_LIMITS = ("HTTP 4", "RateLimit", "TooMany", "Too many", "DisabledForTenant")
"""How Realtime words that it will not: to a handshake, a join, in a system message or a close reason."""

_ROUNDING = timedelta(milliseconds=10)
"""The time of a heartbeat comes by two ways, each with a precision of its own."""

_UNREAD = 0.1
"""Seconds after its deadline in which an echo counts: it may lie unread if a handler blocked the loop."""

_JOB_COLUMNS = ["id", "queue", "run_at"]
"""All a wake-up needs. A payload of 256 KiB must not travel to every worker."""

_Payload = TypeVar("_Payload")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an incarnation ended: a cause to act on and count, and a detail for people."""

    cause: Cause
    detail: str = ""

    @property
    def insisting_is_pointless(self) -> bool:
        """Whether the server said no in a way that a quick retry would only make worse."""
        return any(word in self.detail for word in _LIMITS)

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


class Incarnation:
    """One connection, one channel, one life.

    All callbacks run in the event loop, may raise (it is logged, and nothing else happens), and stop
    with the ending.

    :param url: the project's URL
    :param key: its service key, or any JWT allowed to read the tables
    :param api_key: what opens the websocket: the same service key, or the public key beside such a JWT
    :param worker_id: whose row is watched
    :param number: counts the incarnations of a feed; makes the topic unique
    :param queues: wake only for jobs of these; None: for all
    :param on_ready: the server streams changes from now on (said again after a token refresh): sweep
    :param on_event: something may be claimable
    :param on_worker_row: the worker's row changed; gets the row
    :param on_echo: the worker's own heartbeat came back, so the change path works
    :param on_end: called once, the moment something goes wrong
    """

    def __init__(
        self,
        url: str,
        key: str,
        api_key: str,
        worker_id: str,
        *,
        number: int,
        timings: FeedTimings,
        queues: Collection[str] | None,
        on_ready: Callable[[], None],
        on_event: Callable[[], None],
        on_worker_row: Callable[[dict[str, Any]], None],
        on_echo: Callable[[], None],
        on_end: Callable[[Ending], None],
    ) -> None:
        self._worker_id = worker_id
        self._timings = timings
        self._queues = queues
        self._on_ready = on_ready
        self._on_event = on_event
        self._on_worker_row = on_worker_row
        self._on_echo = on_echo
        self._on_end = on_end

        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._subscribed = False
        self._heard_at = self._loop.time()
        self._echoed: datetime | None = None
        self._awaited: tuple[datetime, asyncio.TimerHandle] | None = None

        self._client = AsyncRealtimeClient(
            f"{url.rstrip('/')}/realtime/v1",
            api_key,
            auto_reconnect=False,
            max_retries=1,
            # ours are shorter and decide; the client's only has to be no shorter
            timeout=math.ceil(max(timings.open_timeout, timings.join_timeout, timings.ack_timeout)) + 1,
        )
        # joins carry it, if it is a token; one of another form is known by the api key alone
        self._client.access_token = None if key.startswith("sb_") else key
        self._channel: AsyncRealtimeChannel = self._client.channel(
            f"worker:{worker_id}:{number}",
            {
                "config": {
                    "broadcast": {"ack": True, "self": False},
                    "presence": {"key": "", "enabled": False},
                    "private": False,
                }
            },
        )
        self._socket: ClientConnection | None = None
        self._bind()

    # -- what the supervisor asks -----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the server has said that it streams changes, and nothing bad has happened since."""
        return self._ready.done() and not self._ended.done()

    async def run(self) -> Ending:
        """Live until something goes wrong, clean up, and return what it was."""
        hush_client()
        try:
            await self._open()
            await self._join()
            while not self._ended.done():
                await self._probe_after_silence()
            return self._ended.result()
        finally:
            # a cancelled or crashed life ends too: no callback may come after it
            self.end("closed", "by this worker")
            await self._discard()

    def end(self, cause: Cause, detail: str = "") -> None:
        """End this life. The first cause is kept; later ones are its consequences."""
        if self._ended.done():
            return
        ending = Ending(cause, detail)
        self._ended.set_result(ending)
        if self._awaited:
            self._awaited[1].cancel()
        try:
            self._on_end(ending)
        except Exception:
            log.exception("feed.callback_failed", callback="on_end")

    def expect_echo(self, at: datetime) -> None:
        """Expect the heartbeat the server made at this time (its clock) to come back as a change."""
        if not self.ready or self._has_echoed(at) or self._awaited:
            return
        timer = self._loop.call_later(self._timings.echo_timeout, self._read_on)
        self._awaited = (at, timer)

    def judge(self) -> None:
        """End this life if it only looks alive. The probes notice nearly everything long before."""
        if not self.ready:
            return
        silent = self._loop.time() - self._heard_at
        if silent > self._timings.probe_interval + 2 * self._timings.ack_timeout:
            self.end("stuck", f"nothing heard for {silent:.1f} s")

    # -- its life, step by step -------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._timings.open_timeout):
                await self._client.connect()
        except TimeoutError:
            self.end("unreachable", f"no websocket within {self._timings.open_timeout:g} s")
        except InvalidStatus as error:
            self.end("refused", f"HTTP {error.response.status_code}")
        except (OSError, WebSocketException) as error:
            self.end("unreachable", f"{type(error).__name__}: {error}")
        else:
            self._socket = self._client._ws_connection  # noqa: SLF001  the client has no way to abort it
            if listener := self._client._listen_task:  # noqa: SLF001  nor to tell that it reads no more
                listener.add_done_callback(self._listener_done)

    async def _join(self) -> None:
        if self._ended.done():
            return
        try:
            async with asyncio.timeout(self._timings.join_timeout):
                await self._channel.subscribe(self._on_state)
                await _first_of(self._ready, self._ended)
        except TimeoutError:
            if self._ready.done():  # just in time, in a process that was slow to see it
                return
            what = (
                "the server's word that changes are streamed"
                if self._channel.is_joined
                else "the join's reply"
            )
            self.end("join_timeout", f"{what} did not come within {self._timings.join_timeout:g} s")

    async def _probe_after_silence(self) -> None:
        """Wait until nothing has been heard for the probe interval, then ask for an acknowledgement."""
        quiet_for = self._loop.time() - self._heard_at
        if (rest := self._timings.probe_interval - quiet_for) > 0:
            await asyncio.wait({self._ended}, timeout=rest)
            return

        acknowledged: asyncio.Future[None] = self._loop.create_future()

        def accept(_: object) -> None:
            self._heard_at = self._loop.time()
            if not acknowledged.done():
                acknowledged.set_result(None)

        def refuse(response: dict[str, Any]) -> None:
            self.end("ack_refused", json.dumps(response))

        try:
            async with asyncio.timeout(self._timings.ack_timeout):
                # sending waits too, when the peer no longer reads
                push = await self._channel.push(
                    ChannelEvents.broadcast, {"type": "broadcast", "event": "probe", "payload": {}}
                )
                push.receive(RealtimeAcknowledgementStatus.Ok, accept)
                push.receive(RealtimeAcknowledgementStatus.Error, refuse)
                await _first_of(acknowledged, self._ended)
        except TimeoutError:
            if not acknowledged.done():  # a process that was blocked may have read it only now
                self.end("ack_timeout", f"no acknowledgement within {self._timings.ack_timeout:g} s")

    async def _discard(self) -> None:
        """Leave nothing behind: no timer, no task, no socket, whatever state the client is in."""
        client, channel, socket = self._client, self._channel, self._socket
        channel.rejoin_timer.reset()
        for push in (channel.join_push, *channel.messages_waiting_for_ack.values(), *channel._push_buffer):  # noqa: SLF001  they have no public owner
            push.destroy()
        tasks = {
            task
            for task in (client._listen_task, client._heartbeat_task, *channel._background_tasks)  # noqa: SLF001  close() forgets them when it is interrupted
            if task is not None
        }
        try:
            async with asyncio.timeout(self._timings.close_timeout):
                await client.close()
                if socket is not None:
                    await socket.close()  # close() skips a socket that the client believes lost
        except (OSError, WebSocketException) as error:  # the timeout is an OSError
            log.debug("feed.close_failed", error=repr(error))
        finally:
            for task in tasks:
                task.cancel()
            if socket is not None:
                socket.transport.abort()
                tasks.add(asyncio.ensure_future(socket.wait_closed()))
            if tasks:
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.exception()  # seen: the listener's has become the ending

    # -- what the server says ---------------------------------------------------------------------

    def _bind(self) -> None:
        changes = RealtimePostgresChangesListenEvent
        pending = "status=eq.pending"
        on = self._channel.on_postgres_changes
        on(changes.Insert, self._guard(self._job_pending), table="jobs", filter=pending, select=_JOB_COLUMNS)
        on(changes.Update, self._guard(self._job_pending), table="jobs", filter=pending, select=_JOB_COLUMNS)
        on(changes.Update, self._guard(self._queue_changed), table="job_queues")
        own = f"id=eq.{self._worker_id}"
        on(changes.Update, self._guard(self._worker_changed), table="job_workers", filter=own)
        self._channel.on_system(self._guard(self._system_ok))

    def _guard(self, callback: Callable[[_Payload], None]) -> Callable[[_Payload], None]:
        """Keep an exception from the client, whose listener would die of it in silence."""

        def guarded(payload: _Payload) -> None:
            self._heard_at = self._loop.time()
            if self._ended.done():
                return
            try:
                callback(payload)
            except Exception:
                log.exception("feed.callback_failed", callback=callback.__name__)

        return guarded

    def _system_ok(self, payload: SuccessSystemPayload) -> None:
        if payload.extension != "postgres_changes":
            return
        if not self._ready.done():
            self._ready.set_result(None)
        self._on_ready()

    def _job_pending(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        if str(record.get("run_at")).startswith("9999-"):
            return  # it waits for its children, each of which changes it at its end: the last makes it due
        queue = record.get("queue")
        if self._queues is None or queue is None or queue in self._queues:
            self._on_event()

    def _queue_changed(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        name = record.get("name")
        if not record.get("paused") and (self._queues is None or name is None or name in self._queues):
            self._on_event()

    def _worker_changed(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record")
        if not record:
            log.warning("feed.row_withheld", table="job_workers", errors=payload["data"].get("errors"))
            return
        if heartbeat_at := record.get("heartbeat_at"):
            self._note_echo(datetime.fromisoformat(heartbeat_at))
        self._on_worker_row(record)

    def _on_state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        self._heard_at = self._loop.time()
        match state:
            case RealtimeSubscribeStates.SUBSCRIBED:
                self._subscribed = True
            case RealtimeSubscribeStates.TIMED_OUT:
                self.end("join_timeout", "the client's own timeout")
            case RealtimeSubscribeStates.CLOSED:
                self.end("channel_closed", "the server closed the channel")
            case RealtimeSubscribeStates.CHANNEL_ERROR if isinstance(error, ConnectionClosed):
                self.end("closed", str(error))
            case RealtimeSubscribeStates.CHANNEL_ERROR:
                self.end("channel_error" if self._subscribed else "join_refused", str(error))

    def _listener_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self.end("listener_died", repr(error) if error else "it returned without a word")

    # -- the echo ---------------------------------------------------------------------------------

    def _has_echoed(self, at: datetime) -> bool:
        return self._echoed is not None and self._echoed >= at - _ROUNDING

    def _note_echo(self, heartbeat_at: datetime) -> None:
        self._echoed = max(heartbeat_at, self._echoed or heartbeat_at)
        if self._awaited and self._has_echoed(self._awaited[0]):
            self._awaited[1].cancel()
            self._awaited = None
        self._on_echo()

    def _read_on(self) -> None:
        if self._awaited:
            self._awaited = (self._awaited[0], self._loop.call_later(_UNREAD, self._miss_echo))

    def _miss_echo(self) -> None:
        self.end("echo_timeout", f"the heartbeat did not come back within {self._timings.echo_timeout:g} s")


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
