"""A model in Python predicts every answer and balance, over random programs of several owners and workers."""

# ruff: noqa: PT017 - whether a call is refused is what the model predicts, so both ways are right

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, NOON, Project, Worker, done, failed, fixture

OWNERS = (ALICE, BOB)
STEPS = 80
PRICES = {"item": (0, 10), "job": (7, 0), "free": (0, 0)}


@dataclass
class ModelJob:
    owner: UUID
    kind: str
    items: dict[str, str]
    hold: int
    status: str = "pending"
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    cancel: bool = False
    holder: int | None = None
    captured: int = 0
    reopen: set[str] = field(default_factory=set)
    retried_as: str | None = None


class Model:
    """What should be true, and the database it should be true of; each step asks both and compares."""

    def __init__(self, project: Project, workers: list[Worker], seed: int) -> None:
        self.project = project
        self.workers = workers
        self.random = random.Random(seed)
        self.available = Counter[UUID]()
        self.held = Counter[UUID]()
        self.spent = Counter[UUID]()
        self.jobs: dict[str, ModelJob] = {}
        self.keys: dict[tuple[UUID, str], tuple[str, tuple]] = {}

    # what the model does

    def end(self, job: ModelJob, status: str) -> None:
        job.status = status
        self.held[job.owner] -= job.hold
        self.spent[job.owner] += job.captured
        self.available[job.owner] += job.hold - job.captured
        for key, item in job.items.items():
            if item == "pending":
                job.items[key] = "cancelled" if status == "cancelled" else "failed"

    def requeue(self, job: ModelJob) -> None:
        job.status, job.holder = "pending", None
        for key in job.reopen:
            job.items[key] = "pending"
        job.reopen = set()

    def capture(self, job: ModelJob, key: str) -> None:
        job.items[key] = "completed"
        job.reopen.discard(key)
        job.captured += PRICES[job.kind][1]

    def price(self, kind: str, items: list[str]) -> int:
        per_job, per_item = PRICES[kind]
        return per_job + per_item * len(items)

    # the steps

    async def grant(self) -> None:
        owner, amount = self.random.choice(OWNERS), self.random.randint(1, 60)
        await self.project.grant(owner, amount)
        self.available[owner] += amount

    async def create(self) -> None:
        owner, kind = self.random.choice(OWNERS), self.random.choice(list(PRICES))
        items = [f"i{n}" for n in range(self.random.randint(1 if kind == "item" else 0, 3))]
        key = self.random.choice([None, None, "k1", "k2"])
        needed, known = self.price(kind, items), self.keys.get((owner, key or ""))
        expected = "ok"
        if known:
            expected = "same" if known[1] == (kind, items) else "JQ007"
        elif needed > self.available[owner]:
            expected = "PT402"
        try:
            async with self.project.connection.transaction():
                row = await self.project.create(
                    kind, by=owner, items=items, idempotency_key=key, max_attempts=2
                )
        except asyncpg.PostgresError as error:
            assert error.sqlstate == expected, error
            return
        if expected == "same":
            assert known
            assert row["id"] == known[0]
            return
        assert expected == "ok"
        self.add(row, owner, kind, items)
        if key:
            self.keys[owner, key] = (row["id"], (kind, items))

    def add(self, row: dict[str, Any], owner: UUID, kind: str, items: list[str]) -> None:
        needed = self.price(kind, items)
        self.jobs[row["id"]] = ModelJob(owner, kind, dict.fromkeys(items, "pending"), needed)
        self.available[owner] -= needed
        self.held[owner] += needed

    async def claim(self) -> None:
        number, limit = self.random.randrange(len(self.workers)), self.random.randint(1, 3)
        pending = {job_id for job_id, job in self.jobs.items() if job.status == "pending"}
        claimed = await self.workers[number].claim(limit)
        assert len(claimed) == min(limit, len(pending))
        for row in claimed:
            assert row["id"] in pending
            job = self.jobs[row["id"]]
            job.status, job.holder, job.attempt = "processing", number, job.attempt + 1
            assert row["attempt"] == job.attempt
            assert {item["key"] for item in row["items"]} == {
                k for k, v in job.items.items() if v == "pending"
            }

    def pick(self) -> tuple[str, ModelJob, int, int] | None:
        """Choose a job, a worker and an attempt: mostly those that belong together."""
        if not self.jobs:
            return None
        running = [job_id for job_id, job in self.jobs.items() if job.status == "processing"]
        job_id = self.random.choice(running if running and self.random.random() < 0.8 else list(self.jobs))
        job = self.jobs[job_id]
        worker = job.holder if job.holder is not None else 0
        attempt = job.attempt
        if self.random.random() < 0.15:
            worker = self.random.randrange(len(self.workers))
        if self.random.random() < 0.15:
            attempt -= 1
        return job_id, job, worker, attempt

    def holds(self, job: ModelJob, worker: int, attempt: int) -> bool:
        return job.status == "processing" and job.holder == worker and job.attempt == attempt

    def choose_items(self, job: ModelJob) -> list[dict[str, Any]]:
        keys = [key for key in job.items if self.random.random() < 0.6]
        return [
            done(key) if self.random.random() < 0.6 else failed(key, retryable=self.random.random() < 0.5)
            for key in keys
        ]

    def apply_items(self, job: ModelJob, items: list[dict[str, Any]]) -> None:
        for item in items:
            key = item["key"]
            if job.items[key] == "completed":
                continue
            if item["status"] == "completed":
                self.capture(job, key)
            else:
                job.items[key] = "failed"
                (job.reopen.add if item["error_retryable"] else job.reopen.discard)(key)

    async def finish_items(self) -> None:
        if not (picked := self.pick()):
            return
        job_id, job, worker, attempt = picked
        items = self.choose_items(job)
        answer = await self.workers[worker].finish_items({"id": job_id, "attempt": attempt}, *items)
        held = self.holds(job, worker, attempt)
        assert answer == {"id": job_id, "stale": not held, "error": None}
        if held:
            self.apply_items(job, items)

    async def finish(self) -> None:
        if not (picked := self.pick()):
            return
        job_id, job, worker, attempt = picked
        outcome = self.random.choice(["done", "done", "fail", "retry", "snooze", "cancelled"])
        items = self.choose_items(job)
        report = {"id": job_id, "attempt": attempt, "outcome": outcome, "items": items, "delay_seconds": 0}
        # the same report several times at once has one effect
        answers = await self.workers[worker].finish_all([report] * self.random.randint(1, 3))
        held = self.holds(job, worker, attempt)
        if held:
            self.apply_items(job, items)
            self.finish_model(job, outcome)
        for number, answer in enumerate(answers):
            assert (answer["stale"], answer["error"]) == (not held or number > 0, None)
            assert answer["status"] == job.status

    def finish_model(self, job: ModelJob, outcome: str) -> None:
        completed = sum(item == "completed" for item in job.items.values())
        if outcome == "done" and completed == len(job.items):
            job.captured += PRICES[job.kind][0]
            self.end(job, "completed")
        elif outcome == "cancelled" or (job.cancel and outcome in {"retry", "snooze"}):
            self.end(job, "cancelled")
        elif outcome == "snooze":
            self.requeue(job)
        else:
            is_open = any(v == "pending" for v in job.items.values()) or bool(job.reopen)
            retryable = outcome == "retry" or (outcome == "done" and is_open)
            if retryable and job.cancel:
                self.end(job, "cancelled")
                return
            job.failures += 1
            if retryable and job.failures < 2:
                self.requeue(job)
            else:
                self.end(job, "partial" if completed else "failed")

    async def release(self) -> None:
        if not (picked := self.pick()):
            return
        job_id, job, worker, attempt = picked
        [answer] = await self.workers[worker].release({"id": job_id, "attempt": attempt})
        held = self.holds(job, worker, attempt)
        assert answer["stale"] is not held
        if held and job.cancel:
            self.end(job, "cancelled")
        elif held:
            self.requeue(job)

    async def cancel(self) -> None:
        if not self.jobs:
            return
        job_id = self.random.choice(list(self.jobs))
        job = self.jobs[job_id]
        row = await self.project.cancel({"id": job_id}, by=job.owner)
        if job.status == "pending":
            self.end(job, "cancelled")
        elif job.status == "processing":
            job.cancel = True
        assert row["status"] == job.status

    async def retry(self) -> None:
        if not self.jobs:
            return
        ended = [
            job_id for job_id, job in self.jobs.items() if job.status in {"partial", "failed", "cancelled"}
        ]
        job_id = self.random.choice(ended if ended and self.random.random() < 0.7 else list(self.jobs))
        job = self.jobs[job_id]
        items = [key for key, item in job.items.items() if item != "completed"]
        expected = "ok"
        if job.status not in {"partial", "failed", "cancelled"} or (job.items and not items):
            expected = "JQ009"
        elif job.retried_as:
            expected = "same"
        elif self.price(job.kind, items) > self.available[job.owner]:
            expected = "PT402"
        try:
            async with self.project.connection.transaction():
                row = await self.project.retry({"id": job_id}, by=job.owner)
        except asyncpg.PostgresError as error:
            assert error.sqlstate == expected, error
            return
        assert expected in {"ok", "same"}
        if expected == "same":
            assert row["id"] == job.retried_as
        else:
            job.retried_as = row["id"]
            self.add(row, job.owner, job.kind, items)

    async def rescue(self) -> None:
        """Let one worker lapse while the others go on."""
        busy = [
            job.holder for job in self.jobs.values() if job.status == "processing" and job.holder is not None
        ]
        dead = self.random.choice(busy or [0])
        living = [worker for number, worker in enumerate(self.workers) if number != dead]
        await self.project.later(seconds=60)
        for worker in living:
            await worker.heartbeat()
        await self.project.later(seconds=60)
        rescued = [(await worker.heartbeat())["rescued"] for worker in living]
        await self.workers[dead].heartbeat()
        lost = [job for job in self.jobs.values() if job.status == "processing" and job.holder == dead]
        assert sum(rescued) == len(lost)
        for job in lost:
            if job.cancel:
                self.end(job, "cancelled")
            elif job.crashes:
                self.end(job, "partial" if "completed" in job.items.values() else "failed")
            else:
                job.crashes += 1
                self.requeue(job)

    async def step(self) -> None:
        often = [self.create, self.claim, self.finish_items, self.finish] * 2
        seldom = [self.grant, self.release, self.cancel, self.retry, self.rescue]
        await self.random.choice(often + seldom)()

    async def compare(self) -> None:
        assert await self.project.faults() == []
        for owner in OWNERS:
            expected = (self.available[owner], self.held[owner], self.spent[owner])
            assert await self.project.balance(owner) == expected
        rows = await self.project.rows(
            "select id::text, status, credits_captured, credits_held, credits_refunded from public.jobs"
        )
        for row in rows:
            job = self.jobs[row["id"]]
            is_open = job.status in {"pending", "processing"}
            rest = job.hold - job.captured
            assert row == {
                "id": row["id"], "status": job.status, "credits_captured": job.captured,
                "credits_held": rest if is_open else 0, "credits_refunded": 0 if is_open else rest,
            }  # fmt: skip
        assert len(rows) == len(self.jobs)


@fixture
async def workers(project) -> list[Worker]:
    await project.queue("default", retry_delays=[timedelta(0)], jitter=0)
    for kind, (per_job, per_item) in PRICES.items():
        await project.kind(kind, credits_per_job=per_job, credits_per_item=per_item)
    return [await project.worker() for _ in range(3)]


@pytest.mark.parametrize("seed", range(8))
async def test_every_answer_and_balance_is_as_the_model_says(project, workers, seed):
    model = Model(project, workers, seed)
    await project.at(NOON)
    for number in range(STEPS):
        await model.step()
        try:
            await model.compare()
        except AssertionError as error:
            error.add_note(f"seed {seed}, step {number}")
            raise
