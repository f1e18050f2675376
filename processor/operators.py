"""What the command line asks of a project: the functions for clients and operators, and rows to read."""

from collections.abc import Sequence
from typing import Any

from processor.caller import Caller

Row = dict[str, Any]

_WATCHED = (
    "id,queue,kind,owner_id,status,progress,progress_message,items_total,items_done,items_failed,attempt,"
    "max_attempts,run_at,created_at,started_at,finished_at,cancel_requested_at,worker_id,error_code,"
    "error_message,credits_held,credits_captured,credits_refunded,children_total,children_open"
)
_WATCHED_ITEMS = "job_id,key,position,status,progress,error_code,error_message"


class Operators(Caller):
    """Jobs, queues, credits, workers and schedules of a project, as rows."""

    async def create_job(self, job: Row) -> Row:
        """Create a job from ``create_job``'s arguments; with an idempotency key it is safe to repeat."""
        return await self._row("create_job", job)

    async def cancel_job(self, job_id: str) -> Row:
        """End a job that waits, ask one that runs to stop; return it as it is then."""
        return await self._row("cancel_job", {"job_id": job_id})

    async def retry_job(self, job_id: str, *, all_items: bool) -> Row:
        """Return the new job that repeats what an ended one left undone, or all of it."""
        return await self._row("retry_job", {"job_id": job_id, "all_items": all_items})

    async def read_jobs(
        self,
        *,
        statuses: Sequence[str] = (),
        queue: str | None = None,
        search: str | None = None,
        before: str | None = None,
        limit: int,
    ) -> list[Row]:
        """Return jobs without payloads, the newest first; ``before``: older than the job of this id."""
        arguments = {
            "statuses": list(statuses) or None,
            "queue": queue,
            "search": search,
            "before": before,
            "limit": limit,
        }
        return await self._rows("read_jobs", arguments)

    async def read_job(self, job_id: str) -> Row | None:
        """Return ``job``, ``items``, ``logs`` and ``entries`` of a job; None: there is no such job."""
        found: Row | None = await self._call("read_job", {"job_id": job_id})
        return found

    async def watched_jobs(self, ids: Sequence[str]) -> list[Row]:
        """Return what changes while jobs run; asked once, because whoever watches asks again anyway."""
        query = {"select": _WATCHED, "id": f"in.({','.join(ids)})"}
        rows: list[Row] = await self._select("jobs", query, patience=0)
        return rows

    async def watched_items(self, jobs: Sequence[str], first: int) -> list[Row]:
        """Return what changes of jobs' ``first`` items."""
        query = {
            "select": _WATCHED_ITEMS,
            "job_id": f"in.({','.join(jobs)})",
            "position": f"lte.{first}",
            "order": "job_id,position",
        }
        rows: list[Row] = await self._select("job_items", query, patience=0)
        return rows

    async def read_logs(self, job_id: str, *, after: int = 0, limit: int) -> list[Row]:
        """Return log lines of a job, the oldest first, those beyond the line ``after``."""
        query = {
            "select": "id,job_id,attempt,logged_at,level,message,fields",
            "job_id": f"eq.{job_id}",
            "id": f"gt.{after}",
            "order": "id",
            "limit": str(limit),
        }
        rows: list[Row] = await self._select("job_logs", query)
        return rows

    async def read_kinds(self) -> list[Row]:
        """Return the kinds of jobs that handlers have declared."""
        rows: list[Row] = await self._select("job_kinds", {"select": "kind,queue", "order": "kind"})
        return rows

    async def read_queues(self) -> list[Row]:
        """Return each queue with its limits, and how it is doing."""
        return await self._rows("read_queues", {})

    async def pause_queue(self, name: str) -> Row:
        """Let nothing more start there."""
        return await self._row("pause_queue", {"name": name})

    async def resume_queue(self, name: str) -> Row:
        """Let it go on."""
        return await self._row("resume_queue", {"name": name})

    async def set_queue_limits(self, name: str, limits: Row) -> Row:
        """Change the limits that are given; None lifts one."""
        return await self._row("set_queue_limits", {"name": name, "limits": limits})

    async def read_account(self, owner_id: str) -> Row | None:
        """Return an owner's credits in sums; None: the owner never had any."""
        rows: list[Row] = await self._select("credit_accounts", {"select": "*", "owner_id": f"eq.{owner_id}"})
        return rows[0] if rows else None

    async def read_lots(self, owner_id: str) -> list[Row]:
        """Return what is left of an owner's grants, in the order in which it will be spent."""
        query = {
            "select": "id,amount,remaining,priority,expires_at,created_at",
            "owner_id": f"eq.{owner_id}",
            "exhausted": "is.false",
            "order": "priority.desc,expires_at.asc.nullslast,id",
        }
        rows: list[Row] = await self._select("credit_lots", query)
        return rows

    async def read_statement(self, owner_id: str, *, before: int | None, limit: int) -> list[Row]:
        """Return lines of an owner's statement, the last first; ``before``: older than this line."""
        query = {"select": "*", "owner_id": f"eq.{owner_id}", "order": "id.desc", "limit": str(limit)}
        if before is not None:
            query["id"] = f"lt.{before}"
        rows: list[Row] = await self._select("credit_statement", query)
        return rows

    async def grant_credits(self, grant: Row) -> Row:
        """Give credits with ``grant_credits``' arguments; with an idempotency key it is safe to repeat."""
        return await self._row("grant_credits", grant)

    async def read_workers(self) -> list[Row]:
        """Return the daemons, and how they are doing."""
        return await self._rows("read_workers", {})

    async def drain_worker(self, worker: str) -> list[Row]:
        """Let the worker of an id, or the workers of a name, take no more jobs."""
        return _listed(await self._call("drain_worker", {"worker": worker}))

    async def read_schedules(self) -> list[Row]:
        """Return each schedule, and how it is doing."""
        return await self._rows("read_schedules", {})

    async def pause_schedule(self, name: str) -> Row:
        """Let it make no more jobs."""
        return await self._row("pause_schedule", {"name": name})

    async def resume_schedule(self, name: str) -> Row:
        """Let it go on with the next time to come."""
        return await self._row("resume_schedule", {"name": name})

    async def run_schedule(self, name: str) -> Row:
        """Make a job of it now; asked twice it makes two, so it is asked once."""
        return await self._row("run_schedule", {"name": name}, patience=0)

    async def add_webhook(self, endpoint: Row) -> Row:
        """Add an endpoint from ``add_webhook``'s arguments; asked once, because its secret is told once."""
        return await self._row("add_webhook", endpoint, patience=0)

    async def read_webhooks(self) -> list[Row]:
        """Return each endpoint, and whether its deliveries arrive."""
        return await self._rows("read_webhooks", {})

    async def remove_webhook(self, endpoint: str) -> Row:
        """Remove an endpoint; asked once, as a second time there is none."""
        return await self._row("remove_webhook", {"endpoint": endpoint}, patience=0)

    async def enable_webhook(self, endpoint: str) -> Row:
        """Let an endpoint be told again, at once."""
        return await self._row("enable_webhook", {"endpoint": endpoint})

    async def disable_webhook(self, endpoint: str) -> Row:
        """Let an endpoint be told no more."""
        return await self._row("disable_webhook", {"endpoint": endpoint})

    async def rotate_webhook(self, endpoint: str, overlap: float) -> Row:
        """Give an endpoint a new secret, the old one signs for ``overlap`` seconds; asked once."""
        arguments = {"endpoint": endpoint, "overlap_seconds": overlap}
        return await self._row("rotate_webhook", arguments, patience=0)

    async def test_webhook(self, endpoint: str) -> Row:
        """Return the job that delivers a test; asked twice it makes two, so it is asked once."""
        return await self._row("test_webhook", {"endpoint": endpoint}, patience=0)

    async def redeliver_webhook(self, job_id: str) -> Row:
        """Return the job that repeats a delivery, or is on its way with it."""
        return await self._row("redeliver_webhook", {"job_id": job_id})

    async def read_webhook_deliveries(
        self,
        *,
        webhook: str | None = None,
        statuses: Sequence[str] = (),
        before: str | None = None,
        limit: int,
    ) -> list[Row]:
        """Return deliveries, the newest first; ``before``: older than the one of this id."""
        arguments = {
            "endpoint": webhook,
            "statuses": list(statuses) or None,
            "before": before,
            "limit": limit,
        }
        return await self._rows("read_webhook_deliveries", arguments)

    async def _row(self, function: str, arguments: Row, *, patience: float | None = None) -> Row:
        (row,) = _listed(await self._call(function, arguments, patience=patience))
        return row

    async def _rows(self, function: str, arguments: Row) -> list[Row]:
        return _listed(await self._call(function, arguments))


def _listed(answer: Any) -> list[Row]:
    """Take one row as a list of one: which of both a function answers depends on its declaration."""
    return answer if isinstance(answer, list) else [answer]
