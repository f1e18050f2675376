"""What a worker listens to: rows by Postgres Changes, or messages that the database broadcasts.

A worker waits for a job's start while its wake-up is read, so those are taken from the socket before the
official client validates them and writes them out for its log, which costs ten times what reading them does.
All else it gets as ever, also what does not look as expected.

Both say the same three things to the same `Ears`; whether they are believed is decided elsewhere.
"""

import json
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import structlog
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient
from realtime.message import SuccessSystemPayload
from realtime.types import BroadcastPayload, PostgresChangesPayload, RealtimePostgresChangesListenEvent
from websockets.asyncio.client import ClientConnection

log = structlog.get_logger("processor.feed")

_JOB_COLUMNS = ["id", "queue", "run_at"]
"""All a wake-up needs. A payload of 256 KiB must not travel to every worker."""

_Payload = TypeVar("_Payload")


@dataclass(frozen=True, slots=True)
class Ears:
    """Where what is heard goes."""

    streaming: Callable[[], None]
    """The server says that changes (or messages) are streamed from now on."""
    look: Callable[[Collection[str | None]], None]
    """Something may be claimable in these queues; None: it is not known in which."""
    seen: Callable[[str, str | None], None]
    """The job of this id, in this queue, has become pending."""
    paused: Callable[[str, bool], None]
    """This queue has changed, and is paused, or not."""
    row: Callable[[dict[str, Any]], None]
    """The worker's row has changed."""
    alive: Callable[[], bool]
    """Something was heard; says whether anybody still wants to know what."""

    def guard(self, callback: Callable[[_Payload], None]) -> Callable[[_Payload], None]:
        """Keep an exception from the client, whose listener would die of it in silence."""

        def guarded(payload: _Payload) -> None:
            if not self.alive():
                return
            try:
                callback(payload)
            except Exception:
                log.exception("feed.callback_failed", callback=callback.__name__)

        return guarded


class Client(AsyncRealtimeClient):
    """The official client, but for the wake-ups that ``hear`` takes from its socket first.

    Should a later version listen in another way, it gets them too, and they take longer.
    """

    hear: Callable[[dict[str, Any]], bool] | None = None
    """Says of a message, as the server wrote it, whether nothing is left to be done about it."""

    async def _listen(self) -> None:
        if self._ws_connection is not None and self.hear is not None:
            self._ws_connection = cast("ClientConnection", _Filtered(self._ws_connection, self.hear))
        await super()._listen()


class _Filtered:
    """A connection without the messages that somebody else has heard."""

    def __init__(self, connection: ClientConnection, hear: Callable[[dict[str, Any]], bool]) -> None:
        self._connection = connection
        self._hear = hear

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        async for message in self._connection:
            try:
                heard = self._hear(json.loads(message))
            except (ValueError, TypeError, KeyError, RecursionError):
                heard = False  # the client says what is wrong with it
            if not heard:
                yield message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class Changes:
    """Changes of rows, on a public topic that nobody else uses.

    It is joined when the server has said so, and listened to when it has said that changes are streamed.
    """

    says_when_streaming = True

    def __init__(self, client: AsyncRealtimeClient, worker_id: str, number: int, ears: Ears) -> None:
        self._ears = ears
        self.probed = _channel(client, f"worker:{worker_id}:{number}", private=False)
        self.channels: tuple[AsyncRealtimeChannel, ...] = (self.probed,)
        self._pending = ears.guard(self._job_pending)
        events, pending = RealtimePostgresChangesListenEvent, "status=eq.pending"
        on, guard = self.probed.on_postgres_changes, ears.guard
        for event in (events.Insert, events.Update):
            on(event, self._pending, table="jobs", filter=pending, select=_JOB_COLUMNS)
        on(events.Update, guard(self._queue_changed), table="job_queues")
        on(events.Update, guard(self._worker_changed), table="job_workers", filter=f"id=eq.{worker_id}")
        self.probed.on_system(guard(self._system_ok))

    def hear(self, message: dict[str, Any]) -> bool:
        """Look for work, if a message says that a job became pending."""
        payload = message["payload"]
        if message["event"] != "postgres_changes" or message["topic"] != self.probed.topic:
            return False
        if payload["data"]["table"] != "jobs" or payload["data"]["errors"]:
            return False
        self._pending(payload)
        return True

    def _system_ok(self, payload: SuccessSystemPayload) -> None:
        if payload.extension == "postgres_changes":
            self._ears.streaming()

    def _job_pending(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        # what waits for its children changes with each that ends; the last one makes it due
        if not str(record.get("run_at")).startswith("9999-"):
            self._ears.look((record.get("queue"),))
            if "id" in record:
                self._ears.seen(record["id"], record.get("queue"))

    def _queue_changed(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        if not record.get("paused"):
            self._ears.look((record.get("name"),))
        if "name" in record and "paused" in record:
            self._ears.paused(record["name"], record["paused"])

    def _worker_changed(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record")
        if record:
            self._ears.row(record)
        else:
            log.warning("feed.row_withheld", table="job_workers", errors=payload["data"].get("errors"))


class Messages:
    """Messages of the database, on two private topics: one of all workers, one of this worker.

    Being let in is all there is to wait for. A server that tells when it listens to the database is heard.
    """

    says_when_streaming = False

    def __init__(self, client: AsyncRealtimeClient, worker_id: str, number: int, ears: Ears) -> None:
        self._ears = ears
        jobs = _channel(client, "processor:jobs", private=True)
        self.probed = _channel(client, f"processor:worker:{worker_id}", private=True)
        self.channels: tuple[AsyncRealtimeChannel, ...] = (jobs, self.probed)
        self._looked = ears.guard(self._look)
        jobs.on_broadcast("look", self._looked)
        self.probed.on_broadcast("worker", ears.guard(self._worker))
        self.probed.on_system(ears.guard(self._system_ok))

    def hear(self, message: dict[str, Any]) -> bool:
        """Look for work, if a message says so."""
        payload = message["payload"]
        if message["event"] != "broadcast" or message["topic"] != self.channels[0].topic:
            return False
        if payload["event"] != "look":
            return False
        self._looked(payload)
        return True

    def _system_ok(self, _payload: SuccessSystemPayload) -> None:
        self._ears.streaming()

    def _look(self, message: BroadcastPayload) -> None:
        self._ears.look(message["payload"].get("queues") or (None,))

    def _worker(self, message: BroadcastPayload) -> None:
        self._ears.row(message["payload"])


def _channel(client: AsyncRealtimeClient, topic: str, *, private: bool) -> AsyncRealtimeChannel:
    broadcast: Any = {"ack": True, "self": False}
    if private:
        broadcast["replication_ready"] = True  # newer than the client's types; older servers ignore it
    return client.channel(
        topic,
        {
            "config": {
                "broadcast": broadcast,
                "presence": {"key": "", "enabled": False},
                "private": private,
            }
        },
    )
