"""One incarnation of the Realtime connection: opened, proven, watched, thrown away.

The official client is used for its protocol, never for its supervision: left alone it gives up after
five attempts, stays silent beside a mute server, and loses its listener to an exception in a callback.
So each incarnation is a client of its own, on a topic of its own, that may never reconnect or rejoin.
Whatever goes wrong first becomes its `Ending`; the supervisor starts the next one.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from realtime import RealtimeSubscribeStates
from realtime.types import ChannelEvents, RealtimeAcknowledgementStatus
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from processor.feed.channels import Changes, Client, Ears, Messages
from processor.feed.echo import Echo
from processor.feed.ending import Cause, Ending
from processor.feed.quiet import hush_client
from processor.feed.timings import FeedTimings

log = structlog.get_logger("processor.feed")


class Incarnation:
    """One connection, its channels, one life.

    All callbacks run in the event loop, may raise (it is logged, and nothing else happens), and stop
    with the ending.

    :param url: the project's URL
    :param key: its service key, or any JWT allowed to read the tables
    :param api_key: what opens the websocket: the same service key, or the public key beside such a JWT
    :param worker_id: whose row is watched
    :param number: counts the incarnations of a feed
    :param listen: to what: `Changes` or `Messages`
    :param queues: wake only for jobs of these; None: for all
    :param on_ready: the server streams changes from now on (said again after a token refresh): sweep
    :param on_event: something may be claimable
    :param on_job: a job of these queues became pending; gets its id and queue, if it is known
    :param on_queue: one of these queues has changed; gets its name, and whether it is paused
    :param on_worker_row: the worker's row changed; gets the row
    :param on_echo: the worker's own heartbeat came back, so the change path works
    :param on_probe: called with the name of a probe that came back, and how many seconds that took
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
        listen: type[Changes] | type[Messages],
        timings: FeedTimings,
        queues: Collection[str] | None,
        on_ready: Callable[[], None],
        on_event: Callable[[], None],
        on_job: Callable[[str, str | None], None],
        on_queue: Callable[[str, bool], None],
        on_worker_row: Callable[[dict[str, Any]], None],
        on_echo: Callable[[], None],
        on_end: Callable[[Ending], None],
        on_probe: Callable[[str, float], None] = lambda _probe, _took: None,
    ) -> None:
        self._timings = timings
        self._queues = queues
        self._on_ready = on_ready
        self._on_event = on_event
        self._on_job = on_job
        self._on_queue = on_queue
        self._on_worker_row = on_worker_row
        self._on_echo = on_echo
        self._on_end = on_end
        self._on_probe = on_probe

        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._heard_at = self._loop.time()
        self._echo = Echo(timings.echo_timeout, self._miss_echo, partial(on_probe, "echo"))

        self._client = Client(
            f"{url.rstrip('/')}/realtime/v1",
            api_key,
            auto_reconnect=False,
            max_retries=1,
            # ours are shorter and decide; the client's only has to be no shorter
            timeout=math.ceil(max(timings.open_timeout, timings.join_timeout, timings.ack_timeout)) + 1,
        )
        # joins carry it, if it is a token; one of another form is known by the api key alone
        self._client.access_token = None if key.startswith("sb_") else key
        self._listening = listen(
            self._client,
            worker_id,
            number,
            Ears(self._streaming, self._look, self._seen, self._paused, self._row, self._alive),
        )
        self._client.hear = self._listening.hear
        self._joined: set[str] = set()
        self._renewals: set[asyncio.Task[None]] = set()
        self._socket: ClientConnection | None = None

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
        self._echo.cancel()
        try:
            self._on_end(ending)
        except Exception:
            log.exception("feed.callback_failed", callback="on_end")

    def expect_echo(self, at: datetime) -> None:
        """Expect the heartbeat the server made at this time (its clock) to come back as a change."""
        if self.ready:
            self._echo.expect(at)

    def renew(self, key: str) -> None:
        """Show another key to the server, and stay subscribed."""
        if not key.startswith("sb_"):  # of the other form only the socket knows, from its beginning
            self._show(key)

    def judge(self) -> None:
        """End this life if it only looks alive. The probes notice nearly everything long before."""
        if not self.ready:
            return
        silent = self._loop.time() - self._heard_at
        if silent > self._timings.probe_interval + 2 * self._timings.ack_timeout:
            self.end("stuck", f"nothing heard for {silent:.1f} s")

    def _show(self, token: str | None) -> None:
        task = asyncio.create_task(self._client.set_auth(token), name="feed-renewal")
        self._renewals.add(task)
        task.add_done_callback(self._shown)

    def _shown(self, task: asyncio.Task[None]) -> None:
        self._renewals.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.end("crashed", f"the new key could not be shown: {error!r}")

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
        token, channels = self._client.access_token, self._listening.channels
        try:
            async with asyncio.timeout(self._timings.join_timeout):
                for channel in channels:
                    await channel.subscribe(partial(self._on_state, channel.topic))
                    if self._ended.done():
                        return
                if not self._listening.says_when_streaming:
                    self._streaming()
                await _first_of(self._ready, self._ended)
        except TimeoutError:
            if self._ready.done():  # just in time, in a process that was slow to see it
                return
            what = (
                "the server's word that changes are streamed"
                if len(self._joined) == len(channels)
                else "the join's reply"
            )
            self.end("join_timeout", f"{what} did not come within {self._timings.join_timeout:g} s")
        if self._client.access_token != token:  # renewed meanwhile: the joins took the old one along
            self._show(self._client.access_token)

    async def _probe_after_silence(self) -> None:
        """Wait until nothing has been heard for the probe interval, then ask for an acknowledgement."""
        quiet_for = self._loop.time() - self._heard_at
        if (rest := self._timings.probe_interval - quiet_for) > 0:
            await asyncio.wait({self._ended}, timeout=rest)
            return

        acknowledged: asyncio.Future[None] = self._loop.create_future()
        sent = time.monotonic()  # the loop's clock stands still while a callback runs

        def accept(_: object) -> None:
            self._heard_at = self._loop.time()
            if not acknowledged.done():
                acknowledged.set_result(None)
                self._on_probe("ack", time.monotonic() - sent)

        def refuse(response: dict[str, Any]) -> None:
            self.end("ack_refused", json.dumps(response))

        try:
            async with asyncio.timeout(self._timings.ack_timeout):
                # sending waits too, when the peer no longer reads
                push = await self._listening.probed.push(
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
        client, socket = self._client, self._socket
        tasks: set[asyncio.Task[Any] | asyncio.Future[None]] = {*self._renewals}
        for channel in self._listening.channels:
            channel.rejoin_timer.reset()
            unsent = channel._push_buffer  # noqa: SLF001  it has no public owner
            for push in (channel.join_push, *channel.messages_waiting_for_ack.values(), *unsent):
                push.destroy()
            tasks |= channel._background_tasks  # noqa: SLF001  nobody else ends them
        # close() forgets them when it is interrupted
        tasks |= {task for task in (client._listen_task, client._heartbeat_task) if task is not None}  # noqa: SLF001
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

    def _alive(self) -> bool:
        self._heard_at = self._loop.time()
        return not self._ended.done()

    def _streaming(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)
        self._on_ready()

    def _look(self, queues: Collection[str | None]) -> None:
        if any(self._ours(queue) for queue in queues):
            self._on_event()

    def _seen(self, job_id: str, queue: str | None) -> None:
        if self._ours(queue):
            self._on_job(job_id, queue)

    def _paused(self, queue: str, paused: bool) -> None:
        if self._ours(queue):
            self._on_queue(queue, paused)

    def _ours(self, queue: str | None) -> bool:
        return self._queues is None or queue is None or queue in self._queues

    def _row(self, record: dict[str, Any]) -> None:
        if heartbeat_at := record.get("heartbeat_at"):
            self._echo.heard(datetime.fromisoformat(heartbeat_at))
            self._on_echo()
        self._on_worker_row(record)

    def _on_state(self, topic: str, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        self._heard_at = self._loop.time()
        match state:
            case RealtimeSubscribeStates.SUBSCRIBED:
                self._joined.add(topic)
            case RealtimeSubscribeStates.TIMED_OUT:
                self.end("join_timeout", "the client's own timeout")
            case RealtimeSubscribeStates.CLOSED:
                self.end("channel_closed", "the server closed the channel")
            case RealtimeSubscribeStates.CHANNEL_ERROR if isinstance(error, ConnectionClosed):
                self.end("closed", str(error))
            case RealtimeSubscribeStates.CHANNEL_ERROR:
                self.end("channel_error" if topic in self._joined else "join_refused", str(error))

    def _listener_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self.end("listener_died", repr(error) if error else "it returned without a word")

    def _miss_echo(self) -> None:
        self.end("echo_timeout", f"the heartbeat did not come back within {self._timings.echo_timeout:g} s")


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
