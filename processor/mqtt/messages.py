"""What is told: topics and payloads, made of events and of rows. ``ops/MQTT.md`` describes them."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from processor import __version__
from processor.answers import EndedJob
from processor.events.lifecycle import (
    JobEvent,
    JobFinished,
    JobProgress,
    JobRetried,
    JobSnoozed,
    end_id,
)
from processor.redact import redact

VERSION = 1
"""Of the payloads: it grows when a field goes or changes its meaning, not when one is added."""

_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode

Subject = Literal["status", "progress", "worker", "depth"]
SUBJECTS: tuple[Subject, ...] = ("status", "progress", "worker", "depth")


@dataclass(frozen=True, slots=True)
class Message:
    """One message, ready to be sent at least once."""

    topic: str
    payload: bytes
    subject: Subject
    retain: bool = False
    expiry: int | None = None
    """Seconds after which nobody needs it any more; None: it counts until the next one."""
    terminal: bool = False
    """It tells of the end of a job."""
    trace: Mapping[str, str] | None = None
    """What the job was created within: W3C's ``traceparent`` and ``tracestate``."""
    row: int | None = None
    """Its number on disk, if it is there."""


class Scribe:
    """Writes messages; ``retain_seconds`` is how long the last word on a job or a worker is kept."""

    def __init__(self, prefix: str, worker_id: UUID, name: str, retain_seconds: int) -> None:
        self.prefix = prefix
        self.retain_seconds = retain_seconds
        self._worker_id = str(worker_id)
        self._worker = {
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
        }
        self.worker_topic = f"{prefix}/workers/{worker_id}/state"

    def status(self, event: JobEvent) -> Message:
        """Tell what has become of a job."""
        body: dict[str, Any] = {
            **self._head(event.name, event.event_id, event.at),
            "job_id": str(event.job_id),
            "queue": event.queue,
            "kind": event.kind,
            "owner_id": None if event.owner_id is None else str(event.owner_id),
            "worker_id": self._worker_id,
            "attempt": event.attempt,
            "status": "processing",
        }
        match event:
            case JobFinished():
                body |= {
                    "status": event.status,
                    "error_code": event.error_code,
                    "error_message": _shown(event.error_message),
                    "items_total": event.items_total,
                    "items_done": event.items_done,
                    "items_failed": event.items_failed,
                    "credits_captured": event.credits_captured,
                    "credits_refunded": event.credits_refunded,
                }
            case JobRetried():
                body |= {
                    "status": "pending",
                    "run_at": _time(event.run_at),
                    "error_code": event.error_code,
                    "error_message": _shown(event.error_message),
                }
            case JobSnoozed():
                body |= {"status": "pending", "run_at": _time(event.run_at)}
        return self._of_job(event.queue, event.job_id, body, event.trace_context, terminal=event.terminal)

    def ended(self, job: EndedJob) -> Message:
        """Tell of the end of a job, as its row has it; the same event as whoever ended it would tell."""
        body = {
            **self._head(f"job.{job.status}", end_id(job.id, job.status), job.finished_at),
            "job_id": str(job.id),
            "queue": job.queue,
            "kind": job.kind,
            "owner_id": None if job.owner_id is None else str(job.owner_id),
            "worker_id": None if job.worker_id is None else str(job.worker_id),
            "attempt": job.attempt,
            "status": job.status,
            "error_code": job.error_code,
            "error_message": _shown(job.error_message),
            "items_total": job.items_total,
            "items_done": job.items_done,
            "items_failed": job.items_failed,
            "credits_captured": job.credits_captured,
            "credits_refunded": job.credits_refunded,
        }
        return self._of_job(job.queue, job.id, body, job.trace_context, terminal=True)

    def event(self, event: JobEvent) -> Message:
        """Tell of an event that is no end."""
        return self.progress(event) if isinstance(event, JobProgress) else self.status(event)

    def progress(self, event: JobProgress) -> Message:
        """Tell how far a job is."""
        body = {
            **self._head(event.name, event.event_id, event.at),
            "job_id": str(event.job_id),
            "queue": event.queue,
            "kind": event.kind,
            "attempt": event.attempt,
            "progress": event.progress,
            "message": event.message,
        }
        topic = f"{self.prefix}/jobs/{event.queue}/{event.job_id}/progress"
        return Message(topic, _json(body), "progress", expiry=self.retain_seconds, trace=event.trace_context)

    def worker(self, state: str, feed: str, *, last: bool = False) -> Message:
        """Tell what this daemon is doing; ``last``: nothing will come after it."""
        body = {
            "v": VERSION,
            "worker_id": self._worker_id,
            "state": state,
            "feed": feed,
            **self._worker,
            "at": _time(datetime.now(UTC)),
        }
        expiry = self.retain_seconds if last else None
        return Message(self.worker_topic, _json(body), "worker", retain=True, expiry=expiry)

    def depth(self, queue: str, figures: Mapping[str, Any], *, expiry: int) -> Message:
        """Tell how full a queue is; it is told again before that has expired."""
        body = {"v": VERSION, "queue": queue, **figures, "at": _time(datetime.now(UTC))}
        topic = f"{self.prefix}/queues/{queue}/depth"
        return Message(topic, _json(body), "depth", retain=True, expiry=expiry)

    @staticmethod
    def nothing(topic: str) -> Message:
        """Take back what a broker of MQTT 3.1.1, which knows no expiry, keeps of a topic."""
        return Message(topic, b"", "status", retain=True)

    def _of_job(
        self,
        queue: str,
        job_id: UUID,
        body: dict[str, Any],
        trace: Mapping[str, str] | None,
        *,
        terminal: bool,
    ) -> Message:
        return Message(
            f"{self.prefix}/jobs/{queue}/{job_id}/status",
            _json(body),
            "status",
            retain=True,
            expiry=self.retain_seconds if terminal else None,
            terminal=terminal,
            trace=trace,
        )

    @staticmethod
    def _head(name: str, event_id: UUID, at: datetime) -> dict[str, Any]:
        return {"v": VERSION, "id": str(event_id), "event": name, "at": _time(at)}


def _json(body: Mapping[str, Any]) -> bytes:
    return _ENCODE(body).encode()


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _shown(message: str | None) -> str | None:
    return None if message is None else redact(message)
