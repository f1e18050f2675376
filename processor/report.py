"""Progress and log lines of running jobs, gathered: at most two calls of each kind a second.

Neither holds a job up. What is dropped of progress is replaced by the next; of log lines it is counted, and
said where it is missing: in the job's own log, and in the daemon's, which has every line.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from processor.errors import ApiError, ApiUnreachable
from processor.job import Job
from processor.jsonb import to_jsonb, to_text
from processor.redact import redact
from processor.rpc import Rpc

_EVERY = 0.5
_MAX_LINES = 500
_MAX_WAITING = 10_000
"""Log lines kept until they can be written."""
_MAX_OF_JOB = 200
"""The same of one job: as it is written twice a second, 400 lines a second."""
_MAX_KEPT = 1000
"""Lines of a job that the database keeps; its last one says that it keeps no more."""
_MAX_FIELDS = 4096
"""Bytes of a line's fields as JSON."""

log = structlog.get_logger("processor.report")


class Reporter:
    """Writes what handlers say about their progress; the latest of a moment wins.

    ``on_cancel`` and ``on_stale`` hear of jobs that somebody wants cancelled, or took away.
    """

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        *,
        on_cancel: Callable[[Iterable[UUID]], None],
        on_stale: Callable[[UUID, int], None],
    ) -> None:
        self._rpc = rpc
        self._worker_id = worker_id
        self._on_cancel = on_cancel
        self._on_stale = on_stale
        self._reports: dict[UUID, dict[str, Any]] = {}
        self._lines: list[_Line] = []
        self._told: dict[UUID, _Told] = {}
        self._dropped: Counter[str] = Counter()
        self._wanted = asyncio.Event()
        self._sending = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many log lines are not written yet."""
        return len(self._lines)

    def progress(self, job: Job, fraction: float, message: str | None) -> None:
        """Note a job's progress."""
        report = self._report(job)
        report["progress"] = fraction
        if message is not None:
            report["message"] = to_text(redact(message), 500)
        self._wanted.set()

    def item_progress(self, job: Job, key: str, fraction: float) -> None:
        """Note an item's progress."""
        self._report(job)["items"][key] = fraction
        self._wanted.set()

    def line(self, job: Job, level: str, message: str, fields: dict[str, Any]) -> None:
        """Keep a log line; fields that are not JSON are kept as text."""
        told = self._told.setdefault(job.id, _Told(job.attempt))
        if told.kept >= _MAX_KEPT:
            self._dropped["the job has as many as are kept"] += 1
        elif told.waiting >= _MAX_OF_JOB or len(self._lines) >= _MAX_WAITING:
            told.missing += 1
            self._dropped["they came faster than they can be written"] += 1
        else:
            self._say_missing(job.id, told)
            self._keep(job.id, told, level, to_text(redact(message)), _fields(fields))
        self._wanted.set()

    async def close(self, job: Job) -> None:
        """Write the job's last lines, before the job ends and takes no more; its progress is moot."""
        self._reports.pop(job.id, None)
        told = self._told.get(job.id)
        if told is not None:
            self._say_missing(job.id, told)
            if told.waiting or self._sending.locked():
                await self._send_lines()
            self._told.pop(job.id, None)

    async def run(self) -> None:
        """Write what has gathered, at most twice a second, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._send_reports()
            await self._send_lines()
            self._say_dropped()
            await asyncio.sleep(_EVERY)

    def _report(self, job: Job) -> dict[str, Any]:
        return self._reports.setdefault(
            job.id, {"id": str(job.id), "attempt": job.attempt, "progress": None, "items": {}}
        )

    async def _send_reports(self) -> None:
        reports, self._reports = self._reports, {}
        if not reports:
            return
        wire = [
            {**report, "items": [{"key": key, "progress": done} for key, done in report["items"].items()]}
            for report in reports.values()
        ]
        try:
            answer = await self._rpc.report_progress(self._worker_id, wire)
        except ApiError as error:  # a picture of the moment: the next one replaces it
            log.warning("report.progress_dropped", jobs=len(wire), error=str(error))
            return
        self._on_cancel(answer.cancel)
        for job_id in answer.stale:
            self._on_stale(job_id, reports[job_id]["attempt"])

    def _keep(
        self, job_id: UUID, told: "_Told", level: str, message: str, fields: dict[str, Any], missing: int = 0
    ) -> None:
        told.waiting += 1
        told.kept += 1
        wire = {
            "id": str(job_id),
            "attempt": told.attempt,
            "at": datetime.now(UTC).isoformat(),
            "level": level,
            "message": message,
            "fields": fields,
        }
        self._lines.append(_Line(job_id, wire, missing))

    def _say_missing(self, job_id: UUID, told: "_Told") -> None:
        """Tell the job's owner how many lines are missing at this place."""
        if told.missing:
            missing, told.missing = told.missing, 0
            self._keep(job_id, told, "warning", f"{missing} log lines are missing here", {}, missing)

    def _say_dropped(self) -> None:
        for reason, lines in self._dropped.items():
            log.warning("report.lines_dropped", lines=lines, reason=reason)
        self._dropped.clear()

    async def _send_lines(self) -> None:
        async with self._sending:
            while self._lines:
                lines = self._take(_MAX_LINES)
                try:
                    await self._rpc.append_job_logs(self._worker_id, [line.wire for line in lines])
                except ApiError as error:
                    if isinstance(error, ApiUnreachable):  # results wait behind the lines: try no more
                        lines += self._take(len(self._lines))
                    for line in lines:
                        if (told := self._told.get(line.job_id)) is not None:
                            told.missing += line.missing or 1
                    self._dropped[str(error)] += sum(not line.missing for line in lines)
                    self._say_dropped()

    def _take(self, number: int) -> "list[_Line]":
        """Take the next lines to be written."""
        lines = self._lines[:number]
        del self._lines[:number]
        for line in lines:
            if (told := self._told.get(line.job_id)) is not None:
                told.waiting -= 1
        return lines


@dataclass(frozen=True, slots=True)
class _Line:
    """A log line on its way; or the one that says how many are missing."""

    job_id: UUID
    wire: dict[str, Any]
    missing: int


@dataclass(slots=True)
class _Told:
    """What one attempt of a job has said so far."""

    attempt: int
    kept: int = 0
    waiting: int = 0
    """Lines not written yet."""
    missing: int = 0
    """Lines lost since the last one that was kept."""


def _fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a line's fields as plain JSON, without secrets, if they are not too many."""
    plain = {to_text(name, 100): _field(value) for name, value in fields.items()}
    text = json.dumps(plain, ensure_ascii=False)
    if len(text.encode()) > _MAX_FIELDS:
        return {"cut": "the fields had more than 4 KiB"}
    shown = redact(text)
    if shown == text:
        return plain
    try:
        clean: dict[str, Any] = json.loads(shown)
    except ValueError:
        clean = {"cut": "the fields had a secret in them"}
    return clean


def _field(value: Any) -> Any:
    try:
        return to_jsonb(value)
    except ValueError:
        return to_text(value)
