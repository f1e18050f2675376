"""Progress and log lines of running jobs, gathered: at most two calls of each kind a second."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from processor.errors import ApiError, ApiUnreachable
from processor.job import Job
from processor.jsonb import to_jsonb, to_text
from processor.rpc import Rpc

_EVERY = 0.5
_MAX_LINES = 500
_MAX_WAITING = 10_000
"""Log lines kept until they can be written; later ones stand in the daemon's own log only."""

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
        self._lines: list[dict[str, Any]] = []
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
            report["message"] = to_text(message, 500)
        self._wanted.set()

    def item_progress(self, job: Job, key: str, fraction: float) -> None:
        """Note an item's progress."""
        self._report(job)["items"][key] = fraction
        self._wanted.set()

    def line(self, job: Job, level: str, message: str, fields: dict[str, Any]) -> None:
        """Keep a log line; fields that are not JSON are kept as text."""
        if len(self._lines) >= _MAX_WAITING:
            return
        self._lines.append(
            {
                "id": str(job.id),
                "attempt": job.attempt,
                "at": datetime.now(UTC).isoformat(),
                "level": level,
                "message": to_text(message),
                "fields": {to_text(name, 100): _field(value) for name, value in fields.items()},
            }
        )
        self._wanted.set()

    async def close(self, job: Job) -> None:
        """Write the job's last lines, before the job ends and takes no more; its progress is moot."""
        self._reports.pop(job.id, None)
        if any(line["id"] == str(job.id) for line in self._lines) or self._sending.locked():
            await self._send_lines()

    async def run(self) -> None:
        """Write what has gathered, at most twice a second, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._send_reports()
            await self._send_lines()
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

    async def _send_lines(self) -> None:
        async with self._sending:
            while self._lines:
                lines = self._lines[:_MAX_LINES]
                del self._lines[:_MAX_LINES]
                try:
                    await self._rpc.append_job_logs(self._worker_id, lines)
                except ApiError as error:  # they stand in the daemon's own log too
                    dropped = len(lines)
                    if isinstance(error, ApiUnreachable):  # results wait behind the lines: try no more
                        dropped += len(self._lines)
                        self._lines.clear()
                    log.warning("report.lines_dropped", lines=dropped, error=str(error))


def _field(value: Any) -> Any:
    try:
        return to_jsonb(value)
    except ValueError:
        return to_text(value)
