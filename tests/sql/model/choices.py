"""Where every program begins, and how it chooses: so that most calls make sense and some do not."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.sql.harness import ALICE, BOB, done, failed
from tests.sql.model import credits as credits_
from tests.sql.model import workers
from tests.sql.model.machine import Machine
from tests.sql.model.world import Job, Row

OWNERS = (ALICE, BOB)
NOBODY = UUID(int=0)
QUEUES = ("default", "other")
LEASE = 90
KINDS = {
    "translate": {"queue": "default", "credits_per_item": 10},
    "report": {"queue": "default", "credits_per_job": 7},
    "echo": {"queue": "other"},
    "secret": {"queue": "other", "credits_per_job": 3, "public": False},
}
WAITS = (0, 1, 11, 60, 60, 60, 91, 300, 3600, 90_000, 700_000)


def declaration(kind: str, **columns: Any) -> Row:
    return {
        "kind": kind,
        "public": True,
        "credits_per_job": 0,
        "credits_per_item": 0,
        **KINDS[kind],
        **columns,
    }


class Basics(Machine):
    """Queues, kinds, workers and some credits to begin with, and ways to choose among what is there."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.data = data
        self.requests = 0
        for number in range(3):
            self.register(number)
        for queue in QUEUES:
            delays = {"retry_delays": self.some_delays(), "jitter": 0.0, "max_attempts": self.pick(2, 3, 5)}
            self.change_queue(queue, **self.some_limits(), **delays, **self.some_retention())
        self.chances += [*(self.inclined or (self.pick(*self.acts), self.pick(*self.acts)))] * 5
        for owner in OWNERS:
            self.give(owner, self.pick(200, 200, 30))
        for _ in range(3):
            self.create()

    def some_delays(self) -> list[timedelta]:
        return [timedelta(seconds=s) for s in self.pick([0], [0, 60], [60], [0, 10, 60], [0, 10, 60])]

    def some_limits(self) -> Row:
        """Choose how much of a queue may run, start and wait; mostly as much as there is."""
        return {
            "max_processing": self.pick(None, None, None, 1, 2),
            "max_processing_per_owner": self.pick(None, None, 1, 2),
            "max_pending_per_owner": self.pick(None, None, None, 2, 4),
            "rate_limit": self.pick(None, None, None, 1, 3),
            "rate_period": timedelta(seconds=self.pick(60, 300)),
        }

    def some_retention(self) -> Row:
        retain_for = timedelta(seconds=self.pick(0, 300, 604_800))
        return {"retain_for": retain_for, "retain_last": self.pick(0, 1, 2, 100)}

    def change_queue(self, name: str, **columns: Any) -> None:
        """Change a queue as operators do, by an update."""
        self.wait(self.project.queue(name, **columns))
        for column, value in columns.items():
            setattr(self.world.queues[name], column, value)

    def register(self, number: int, **changes: Any) -> None:
        """Register worker 0, 1 (who take everything) or 2 (who handles but two kinds)."""
        kinds = ("echo", "translate") if number == 2 else KINDS
        worker = {
            "id": str(worker_id(number)),
            "name": f"web-{number % 2}",
            "schema_version": self.arena.schema_version,
            "queues": list(QUEUES),
            "kinds": [declaration(kind) for kind in kinds],
            "slots": 5,
            "lease_seconds": LEASE,
            "feed": "polling",
        } | changes
        self.both(workers.register_worker, "register_worker", worker=worker)

    def give(self, owner: UUID, amount: int, key: str | None = None, **how: Any) -> None:
        arguments = {"owner_id": owner, "amount": amount, "idempotency_key": key}
        arguments |= {"priority": 0, "expires_at": None} | how
        if both := self.both(credits_.grant_credits, "processor.grant_credits", **arguments):
            grant, _ = both
            if grant:
                query = "select max(id) from public.credit_entries where kind = 'grant'"
                grant.entry_id = self.wait(self.project.sql(query))

    # choosing

    def some_job(self, *statuses: str) -> UUID:
        """Mostly a job in one of these states, else any, seldom an unknown one."""
        jobs = self.world.jobs.values()
        fit = [j.id for j in jobs if j.status in statuses]
        ids = fit if fit and not self.chance(5) else [j.id for j in jobs]
        return UUID(int=99) if not ids or self.chance(15) else self.pick(*ids)

    def some_worker(self) -> UUID:
        return worker_id(self.pick(0, 0, 0, 1, 1, 2))

    def some_busy_worker(self) -> UUID:
        """Mostly one that holds jobs."""
        busy = [j.worker_id for j in self.world.jobs.values() if j.status == "processing" and j.worker_id]
        return self.some_worker() if not busy or self.chance(8) else self.pick(*busy)

    def some_caller(self, job_id: UUID) -> UUID | str | None:
        """Mostly whoever owns the job, else the service or another user."""
        job = self.world.jobs.get(job_id)
        owner = (job.owner_id if job else None) or "service_role"
        return self.pick(owner, owner, owner, None, ALICE)

    def some_reports(self, worker: UUID) -> list[Row]:
        """Mostly of jobs that the worker holds; some late, of others' jobs, of unknown ones; some twice."""
        jobs = list(self.world.jobs.values())
        held = [j for j in jobs if j.worker_id == worker and j.status == "processing"]
        reports: list[Row] = []
        for _ in range(self.pick(1, 1, 2, 3)):
            choice = self.pick("held", "held", "held", "held", "any", "late", "unknown")
            if choice == "unknown" or not jobs:
                reports.append({"id": str(UUID(int=99)), "attempt": 1})
                continue
            job = self.pick(*(held if held and choice != "any" else jobs))
            reports.append({"id": str(job.id), "attempt": job.attempt - (choice == "late")})
        return reports

    def job_of(self, report: Row) -> Job | None:
        return self.world.jobs.get(UUID(report["id"]))

    def some_items(self, report: Row) -> list[Row]:
        """Report the ends of some of the job's items; seldom one that cannot be taken."""
        job = self.job_of(report)
        ends: list[Row] = []
        all_done = self.chance(3)
        for key in job.items if job else ():
            end = "done" if all_done else self.pick("done", "done", "done", "failed", "again", "open")
            if end == "done":
                ends.append(done(key, self.pick(None, {"text": key})))
            elif end != "open":
                ends.append(failed(key, retryable=end == "again"))
        if self.chance(15):
            ends.append(self.pick(done("nowhere"), *ends, {"key": "i1", "status": "lost"}))
        return ends


def worker_id(number: int) -> UUID:
    return UUID(int=0xA + number)
