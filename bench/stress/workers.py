"""Workers: they claim, report, finish in batches, give back, fall silent, and ask again for lost answers."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any
from uuid import uuid4

from bench.stress.clients import Client, LostError, RefusedError, any_job
from bench.stress.journal import ENDED, Journal
from bench.stress.world import World
from processor.rpc import SCHEMA_VERSION

QUEUES = ("default", "limited", "prunable")
OUTCOMES = ("done", "done", "done", "done", "done", "retry", "snooze", "fail", "cancelled")

Job = dict[str, Any]


class Worker(Client):
    """One daemon; its lease is so short that it lapses whenever the worker dawdles."""

    role = "job_processor"

    def __init__(self, world: World, journal: Journal, seed: str, *, lease: float) -> None:
        super().__init__(world, journal, seed)
        self.lease = lease
        self.held: dict[str, Job] = {}
        self.id = ""
        self.second = Client(world, journal, f"{seed} second")
        self.second.role = self.role

    async def run(self) -> None:
        """Work, and leave the second connection too."""
        await super().run()
        await self.second.close()

    async def step(self) -> None:
        """Do one of the things that workers do."""
        if not self.id:
            await self.register()
        chance = self.random.random()
        try:
            if chance < 0.30 and len(self.held) < 40:
                await self.claim()
            elif chance < 0.40:
                await self.report()
            elif chance < 0.55:
                await self.finish_items()
            elif chance < 0.60:
                await self.spawn()
            elif chance < 0.85:
                await self.finish_jobs(twice=self.random.random() < 0.2)
            elif chance < 0.90:
                await self.release()
            elif chance < 0.985:
                await self.heartbeat()
            elif chance < 0.995:
                await asyncio.sleep(
                    self.lease * 1.2
                )  # silent for longer than its lease: others rescue its jobs
            else:
                await self.leave()
        except RefusedError as error:
            if str(error) != "JQ011":
                raise
            await self.register()

    async def register(self) -> None:
        """Enter, or enter again after the row was forgotten."""
        self.id = self.id or str(uuid4())
        worker = {"id": self.id, "slots": 40, "lease_seconds": self.lease, "schema_version": SCHEMA_VERSION}
        asked_at = time.monotonic()
        await self.surely("register_worker", worker=worker | {"queues": QUEUES, "kinds": self.world.kinds})
        self.journal.lease_renewed(self.id, asked_at, self.lease)

    async def claim(self) -> None:
        """Claim some; a claim without an answer is asked for again under the same request."""
        answer = await self.surely(
            "claim_jobs", worker_id=self.id, request_id=str(uuid4()), limit=self.random.randint(1, 20)
        )
        for job in answer["jobs"]:
            self.journal.job_claimed(job, self.id)
            self.held[job["id"]] = job
        if not answer["jobs"]:
            await asyncio.sleep(0.01)

    async def report(self) -> None:
        """Tell of progress and write logs."""
        some = self.some(10)
        reports = [fence(job) | {"progress": self.random.random(), "message": "…"} for job in some]
        answer = await self.function("report_progress", worker_id=self.id, reports=reports)
        for job in answer["stale"]:
            self.held.pop(job, None)
        lines = [fence(job) | {"message": "a line"} for job in some]
        await self.function("append_job_logs", worker_id=self.id, logs=lines)

    async def finish_items(self) -> None:
        """End some items of some jobs, which go on."""
        some = [job for job in self.some(10) if job["items"]]
        reports = [fence(job) | {"items": self.ends(job)} for job in some]
        answer = await self.surely("finish_items", worker_id=self.id, results=reports)
        for report, told in zip(reports, answer["results"], strict=True):
            self.told(report, told)

    async def finish_jobs(self, *, twice: bool) -> None:
        """End attempts, in a batch; ``twice`` sends the same report through two connections at once."""
        reports = []
        for job in self.some(15):
            outcome = self.random.choice(OUTCOMES)
            report = fence(job) | {"outcome": outcome, "items": self.ends(job, all_=outcome == "done")}
            if outcome in {"retry", "snooze"}:
                report |= {"delay_seconds": self.random.choice([0, 0.1, 0.5])}
            reports.append(report)
            self.journal.given_up(job["id"])
        if not twice:
            answers = [await self.surely("finish_jobs", worker_id=self.id, results=reports)]
        else:
            both = await asyncio.gather(
                *(c.surely("finish_jobs", worker_id=self.id, results=reports) for c in (self, self.second)),
                return_exceptions=True,
            )
            answers = [answer for answer in both if not isinstance(answer, BaseException)]
            for error in both:
                if isinstance(error, BaseException) and not isinstance(error, (LostError, RefusedError)):
                    raise error
        for n, report in enumerate(reports):
            applied = sum(self.told(report, answer[n]) for answer in answers)
            if applied > 1:
                self.journal.violation(f"one report was applied twice: {report}")
            self.held.pop(report["id"], None)

    async def spawn(self) -> None:
        """Give a job children, the same in every attempt, and have it wait for them."""
        parents = [job for job in self.held.values() if job["kind"] == "report"]
        if not parents:
            return
        parent = self.random.choice(parents)
        same = random.Random(parent["id"])
        children = [any_job(same) | {"kind": "free", "items": None} for _ in range(same.randint(1, 4))]
        answer = await self.surely(
            "spawn_jobs", worker_id=self.id, parent=fence(parent), jobs=children,
            on_child_failure=same.choice(["continue", "fail"]),
        )  # fmt: skip
        if answer["stale"]:
            return
        self.journal.created |= {job["id"] for job in answer["jobs"]}
        self.journal.given_up(parent["id"])
        report = fence(parent) | {"outcome": "wait", "items": []}
        [told] = await self.surely("finish_jobs", worker_id=self.id, results=[report])
        self.told(report, told)
        self.held.pop(parent["id"], None)

    async def release(self) -> None:
        """Give some jobs back."""
        some = self.some(5)
        for job in some:
            self.journal.given_up(job["id"])
        await self.surely("release_jobs", worker_id=self.id, jobs=[fence(job) for job in some])
        for job in some:
            self.held.pop(job["id"], None)

    async def heartbeat(self) -> None:
        """Renew the lease, rescue what others have lost, forget what was lost here."""
        asked_at = time.monotonic()
        answer = await self.function("heartbeat_worker", worker_id=self.id, running=list(self.held))
        self.journal.lease_renewed(self.id, asked_at, self.lease)
        for job in answer["lost"]:
            self.held.pop(job, None)
        self.journal.calls["jobs rescued"] += answer["rescued"]

    async def leave(self) -> None:
        """Deregister, and come back as somebody else."""
        self.journal.leases.pop(self.id, None)
        await self.surely("deregister_worker", worker_id=self.id)
        self.held.clear()
        self.id = ""

    def some(self, most: int) -> list[Job]:
        """Return up to ``most`` jobs that this worker believes to hold, in any order."""
        jobs = list(self.held.values())
        return self.random.sample(jobs, self.random.randint(0, min(most, len(jobs))))

    def ends(self, job: Job, *, all_: bool = False) -> list[dict[str, Any]]:
        """Return ends for some of a job's items, most of them good."""
        if all_ and self.random.random() < 0.9:
            return [{"key": item["key"], "status": "completed"} for item in job["items"]]
        picked = self.random.sample(job["items"], self.random.randint(0, len(job["items"])))
        return [
            {"key": item["key"], "status": "completed", "result": {"n": 1}}
            if self.random.random() < 0.8
            else {"key": item["key"], "status": "failed", "error_code": "REJECTED", "error_retryable": True}
            for item in picked
        ]

    def told(self, report: dict[str, Any], answer: dict[str, Any]) -> bool:
        """Write down what the answer to a report promises; say whether the report was applied."""
        if answer["error"] is not None:
            self.journal.violation(f"a report was refused: {answer['error']}: {report}")
            return False
        if answer["stale"]:
            self.journal.stale += 1
            return False
        done = {item["key"] for item in report["items"] if item["status"] == "completed"}
        if done:
            self.journal.captured[report["id"]] |= done
        if answer.get("status") in ENDED:
            self.journal.job_ended(report["id"], answer["status"])
        return True


def fence(job: Job) -> dict[str, Any]:
    """Return what identifies an attempt."""
    return {"id": job["id"], "attempt": job["attempt"]}
