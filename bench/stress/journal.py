"""What the database has acknowledged, as its clients heard it: at the end all of it must be there."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

ENDED = frozenset({"completed", "partial", "failed", "cancelled"})


@dataclass(slots=True)
class Journal:
    """One for all clients of a run."""

    created: set[str] = field(default_factory=set)
    """Jobs that a create, a retry or a claim has answered with."""

    ended: dict[str, str] = field(default_factory=dict)
    """Job → the status it was told to have ended with."""

    captured: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Job → keys of items that were told to be completed."""

    claimed: dict[tuple[str, int], str] = field(default_factory=dict)
    """(job, attempt) → the worker that was told to run it."""

    holding: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Job → the attempt and the worker that has claimed it and has not begun to give it up."""

    leases: dict[str, float] = field(default_factory=dict)
    """Worker → until when it may be sure of its jobs, by ``time.monotonic()``."""

    retried: dict[str, str] = field(default_factory=dict)
    """Job → the job that repeats it."""

    grants: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Idempotency key → (owner, amount)."""

    slowest: dict[str, float] = field(default_factory=dict)
    """Function → seconds that its slowest answer took."""

    calls: Counter[str] = field(default_factory=Counter)
    """Function → how many calls were answered."""

    refusals: Counter[str] = field(default_factory=Counter)
    """SQLSTATE → how many calls were refused with it."""

    lost: int = 0
    """Calls whose answer never came."""

    stale: int = 0
    """Reports that came too late and were told so."""

    violations: list[str] = field(default_factory=list)
    """What must not happen, as it happened."""

    def violation(self, text: str) -> None:
        """Remember what must not have happened; the first hundred are enough to see why."""
        if len(self.violations) < 100:
            self.violations.append(text)

    def answered(self, function: str, seconds: float) -> None:
        """Count an answered call."""
        self.calls[function] += 1
        self.slowest[function] = max(seconds, self.slowest.get(function, 0))

    def job_seen(self, job: dict[str, Any]) -> None:
        """Note a job as a function returned it."""
        self.created.add(job["id"])
        if job["status"] in ENDED:
            self.job_ended(job["id"], job["status"])

    def job_ended(self, job: str, status: str) -> None:
        """Note an end; a job ends once."""
        if self.ended.setdefault(job, status) != status:
            self.violation(f"job {job} ended twice: {self.ended[job]}, then {status}")

    def job_claimed(self, job: dict[str, Any], worker: str) -> None:
        """Note a claim; an attempt belongs to one worker."""
        self.created.add(job["id"])
        holder = self.claimed.setdefault((job["id"], job["attempt"]), worker)
        if holder != worker:
            self.violation(
                f"attempt {job['attempt']} of job {job['id']} was given to {holder} and to {worker}"
            )
        if job["id"] in self.ended:
            self.violation(f"job {job['id']} was claimed after it had ended {self.ended[job['id']]}")
        attempt, before = self.holding.get(job["id"], (0, ""))
        if attempt < job["attempt"]:  # not the late answer to an earlier claim
            if time.monotonic() < self.leases.get(before, 0):
                self.violation(f"job {job['id']} was taken from {before}, whose lease was not over")
            self.holding[job["id"]] = (job["attempt"], worker)

    def given_up(self, job: str) -> None:
        """Note that a worker is about to end its attempt: from now on another may have the job."""
        self.holding.pop(job, None)

    def lease_renewed(self, worker: str, asked_at: float, seconds: float) -> None:
        """Note a lease: the database counts it from a moment after it was asked for."""
        if self.leases.get(worker, 0) < time.monotonic():
            # it may have lapsed: what was rescued meanwhile is not given back
            self.holding = {job: held for job, held in self.holding.items() if held[1] != worker}
        self.leases[worker] = max(asked_at + seconds, self.leases.get(worker, 0))

    def job_retried(self, old: str, new: dict[str, Any]) -> None:
        """Note a retry; a job is repeated by one job."""
        self.job_seen(new)
        if self.retried.setdefault(old, new["id"]) != new["id"]:
            self.violation(f"job {old} was retried as {self.retried[old]} and as {new['id']}")
