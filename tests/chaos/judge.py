"""The judge: compares what was acknowledged, what the database holds and what the witness saw.

``collect`` reads the database when all is calm; ``judge`` only compares, so that a test can show it any
evidence. Each thing that is wrong is one line under one of the counters:

lost
    an acknowledged job is gone, has not ended, or has not come to what it should; an item that is completed
    was never done outside; a parent counts children that have ended as open.
doubled
    a job ended twice, an item was completed twice, one key was answered with two jobs, a step whose result
    was kept was taken again by a later attempt.
overlaps
    two attempts of a job went on at once. The exception is a process that stood still when the later attempt
    began: it cannot know. But once it goes on it may do nothing more outside for a job that another attempt
    has begun.
credit_errors
    the books are wrong by ``processor.check_credits()``, or somebody paid another price than what was done is
    worth.
leaks
    a daemon that is at rest holds more descriptors, threads, tasks or memory than at rest before, or did not
    end well.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import asyncpg

from tests.chaos.app import BAD_ITEM, PARTS
from tests.chaos.creator import Order
from tests.chaos.witness import Attempt
from tests.chaos.world import Freeze

ENDED = {"completed", "partial", "failed", "cancelled"}
PER_JOB = {
    "priced": 5,
    "retried": 1,
    "hopeless": 4,
    "long": 2,
    "thread": 2,
    "process": 2,
    "checkpoints": 2,
    "parent": 1,
    "part": 1,
}
PER_ITEM = {"items": 2, "failing_items": 3}

JOBS = """
    select id::text, replace(kind, 'chaos.', '') as kind, status, result::text, error_code, error_message,
      attempt,
      owner_id::text, parent_id::text, children_open, credits_held, credits_captured, payload ->> 'n' as n
    from public.jobs where kind like 'chaos.%'
"""
ITEMS = """
    select i.job_id::text, i.key, i.status from public.job_items i
    join public.jobs j on j.id = i.job_id and j.kind like 'chaos.%'
"""
ENDS = "select job_id::text, status from chaos.ends"
ITEMS_DONE = "select job_id::text, key from chaos.items_done"
KEPT = "select job_id::text, name, attempt from public.job_checkpoints"
BOOKS = "select problem, owner_id, job_id, expected, found from processor.check_credits() limit 20"
SPENT = "select owner_id::text, spent, held, available, issued from public.credit_accounts"


@dataclass(slots=True)
class Evidence:
    """All that a judgement rests on."""

    orders: dict[str, Order] = field(default_factory=dict)
    doubled_keys: list[str] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the database, by id; results are decoded."""
    items: dict[str, dict[str, str]] = field(default_factory=dict)
    """Job → item → status."""
    ends: list[tuple[str, str]] = field(default_factory=list)
    """(job, status) for every time that a job ended."""
    items_done: list[tuple[str, str]] = field(default_factory=list)
    """(job, key) for every time that an item was completed."""
    checkpoints: list[tuple[str, str, int]] = field(default_factory=list)
    """(job, name of the step, attempt whose result was kept)."""
    faulty_books: list[str] = field(default_factory=list)
    accounts: dict[str, dict[str, int]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """A line for everything that is wrong, by counter."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    credit_errors: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return how many things of each kind are wrong."""
        return {
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "overlaps": len(self.overlaps),
            "credit_errors": len(self.credit_errors),
            "leaks": len(self.leaks),
        }

    def lines(self) -> list[str]:
        """Return everything that is wrong."""
        return [
            f"{name}: {line}"
            for name in ("lost", "doubled", "overlaps", "credit_errors", "leaks")
            for line in getattr(self, name)
        ]


async def collect(connection: asyncpg.Connection, evidence: Evidence) -> None:
    """Add what the database knows."""
    for row in await connection.fetch(JOBS):
        job = dict(row)
        job["result"] = json.loads(job["result"]) if job["result"] is not None else None
        evidence.jobs[job["id"]] = job
    for row in await connection.fetch(ITEMS):
        evidence.items.setdefault(row["job_id"], {})[row["key"]] = row["status"]
    evidence.ends += [tuple(row) for row in await connection.fetch(ENDS)]
    evidence.items_done += [tuple(row) for row in await connection.fetch(ITEMS_DONE)]
    evidence.checkpoints += [tuple(row) for row in await connection.fetch(KEPT)]
    evidence.faulty_books += [str(dict(row)) for row in await connection.fetch(BOOKS)]
    evidence.accounts |= {row["owner_id"]: dict(row) for row in await connection.fetch(SPENT)}


def judge(evidence: Evidence) -> Verdict:
    """Compare."""
    return Verdict(
        lost=[*_gone(evidence), *_wrong(evidence), *_unseen(evidence)],
        doubled=list(_doubled(evidence)),
        overlaps=list(_overlaps(evidence)),
        credit_errors=list(_money(evidence)),
        leaks=list(evidence.leaks),
    )


def _gone(evidence: Evidence) -> Iterator[str]:
    for order in evidence.orders.values():
        if order.id not in evidence.jobs:
            yield f"job {order.id} ({order.kind}) is gone"
    for job in evidence.jobs.values():
        if job["status"] not in ENDED:
            why = f", after {job['error_code']}: {job['error_message']}" if job["error_code"] else ""
            yield f"job {job['id']} ({job['kind']}) is still {job['status']}, attempt {job['attempt']}{why}"
        elif job["children_open"]:
            yield f"job {job['id']} ({job['kind']}) counts {job['children_open']} children as open"


def _wrong(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs.values():
        order = evidence.orders.get(job["id"])
        if job["status"] not in ENDED or order is None:
            continue
        came_to = (job["status"], job["error_code"], job["result"])
        if job["error_code"] == "WORKER_CRASHED" and job["attempt"] >= 2:
            continue  # two workers were lost with it, which is the end that is promised then
        if order.cancelled and came_to == ("cancelled", "CANCELLED", None):
            continue
        if came_to != (should := _should(evidence, order, job["error_code"])):
            yield f"job {job['id']} ({order.kind}) came to {came_to}, and should to {should}"


def _should(evidence: Evidence, order: Order, code: str | None) -> tuple[str, str | None, Any]:
    """Return status, error code and result of a job that nobody cancelled."""
    n = order.payload["n"]
    match order.kind:
        case "items":
            return "completed", None, {key: key.upper() for key in order.items}
        case "failing_items":
            result = {key: key.upper() for key in order.items if key != BAD_ITEM}
            return "partial", code, result
        case "hopeless":
            return "failed", "DISCARDED", None
        case "parent":
            parts = [job for job in evidence.jobs.values() if job["parent_id"] == order.id]
            whole = PARTS * n + sum(range(PARTS))
            missing = sum(int(part["n"]) for part in parts if part["error_code"] == "WORKER_CRASHED")
            return "completed", None, {"n": whole - missing}
    return "completed", None, {"n": n}


def _unseen(evidence: Evidence) -> Iterator[str]:
    did: dict[str, set[str]] = defaultdict(set)
    for attempt in evidence.attempts:
        did[attempt.job] |= {what for _, what in attempt.did}
    for job in evidence.jobs.values():
        if job["status"] == "completed" and job["id"] not in evidence.items and not did[job["id"]]:
            yield f"job {job['id']} ({job['kind']}) is completed, and nothing was done outside"
        for key, status in evidence.items.get(job["id"], {}).items():
            if status == "completed" and key not in did[job["id"]]:
                yield f"item {key} of job {job['id']} is completed, and was never done outside"


def _doubled(evidence: Evidence) -> Iterator[str]:
    for key in evidence.doubled_keys:
        yield f"key {key} was answered with two jobs"
    for job_id, times in Counter(job_id for job_id, _ in evidence.ends).items():
        if times > 1:
            yield f"job {job_id} ended {times} times"
    for (job_id, key), times in Counter(evidence.items_done).items():
        if times > 1:
            yield f"item {key} of job {job_id} was completed {times} times"
    kept = {(job_id, name): attempt for job_id, name, attempt in evidence.checkpoints}
    for attempt in evidence.attempts:
        for _, what in attempt.did:
            if attempt.attempt > (before := kept.get((attempt.job, what), attempt.attempt)):
                yield f"{what} of job {attempt.job}, kept in attempt {before}, was taken in {attempt.attempt}"


def _overlaps(evidence: Evidence) -> Iterator[str]:
    by_job: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in evidence.attempts:
        by_job[attempt.job].append(attempt)
    for attempts in by_job.values():
        attempts.sort(key=lambda attempt: attempt.began)
        for earlier, later in pairwise(attempts):
            ended = earlier.ended or float("inf")
            if ended <= later.began:
                continue
            which = f"attempt {earlier.attempt} of job {earlier.job}"
            stood_still = any(
                freeze.pid == earlier.pid and freeze.began < later.began < freeze.ended
                for freeze in evidence.freezes
            )
            if acted := [what for when, what in earlier.did if when > later.began]:
                yield f"{which} did {acted} after attempt {later.attempt} began"
            elif not stood_still:
                yield f"{which} went on for {ended - later.began:.3f} s after attempt {later.attempt} began"


def _money(evidence: Evidence) -> Iterator[str]:
    yield from evidence.faulty_books
    spent: Counter[str] = Counter()
    for job in evidence.jobs.values():
        done = sum(status == "completed" for status in evidence.items.get(job["id"], {}).values())
        price = PER_ITEM.get(job["kind"], 0) * done
        price += PER_JOB.get(job["kind"], 0) * (job["status"] == "completed")
        if job["credits_captured"] != price:
            which = f"job {job['id']} ({job['kind']}, {job['status']})"
            yield f"{which} cost {job['credits_captured']}, not {price}"
        if job["owner_id"] is not None:
            spent[job["owner_id"]] += price
    for owner, account in evidence.accounts.items():
        if account["spent"] != spent[owner]:
            yield f"{owner} has spent {account['spent']}, and what was done costs {spent[owner]}"
        if account["held"] != 0 or account["available"] + account["spent"] != account["issued"]:
            yield f"{owner} has an account that does not add up: {account}"
