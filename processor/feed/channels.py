"""What a worker listens to: rows by Postgres Changes, or messages that the database broadcasts.

Both say the same three things to the same `Ears`; whether they are believed is decided elsewhere.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient
from realtime.message import SuccessSystemPayload
from realtime.types import BroadcastPayload, PostgresChangesPayload, RealtimePostgresChangesListenEvent

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


class Changes:
    """Changes of rows, on a public topic that nobody else uses.

    It is joined when the server has said so, and listened to when it has said that changes are streamed.
    """

    says_when_streaming = True

    def __init__(self, client: AsyncRealtimeClient, worker_id: str, number: int, ears: Ears) -> None:
        self._ears = ears
        self.probed = _channel(client, f"worker:{worker_id}:{number}", private=False)
        self.channels: tuple[AsyncRealtimeChannel, ...] = (self.probed,)
        events, pending = RealtimePostgresChangesListenEvent, "status=eq.pending"
        on, guard = self.probed.on_postgres_changes, ears.guard
        for event in (events.Insert, events.Update):
            on(event, guard(self._job_pending), table="jobs", filter=pending, select=_JOB_COLUMNS)
        on(events.Update, guard(self._queue_changed), table="job_queues")
        on(events.Update, guard(self._worker_changed), table="job_workers", filter=f"id=eq.{worker_id}")
        self.probed.on_system(guard(self._system_ok))

    def _system_ok(self, payload: SuccessSystemPayload) -> None:
        if payload.extension == "postgres_changes":
            self._ears.streaming()

    def _job_pending(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        # what waits for its children changes with each that ends; the last one makes it due
        if not str(record.get("run_at")).startswith("9999-"):
            self._ears.look((record.get("queue"),))

    def _queue_changed(self, payload: PostgresChangesPayload) -> None:
        record = payload["data"].get("record") or {}
        if not record.get("paused"):
            self._ears.look((record.get("name"),))

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
        jobs.on_broadcast("look", ears.guard(self._look))
        self.probed.on_broadcast("worker", ears.guard(self._worker))
        self.probed.on_system(ears.guard(self._system_ok))

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
