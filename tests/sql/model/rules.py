"""The acts: which calls are tried, and how often."""

from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from tests.sql.harness import ALICE, BOB
from tests.sql.model import clients, operators, reports, workers
from tests.sql.model.choices import QUEUES, WAITS, Basics, declaration, worker_id
from tests.sql.model.machine import agree, moment
from tests.sql.model.rules_credits import Credits
from tests.sql.model.world import Row, Worker


class Clients(Basics):
    """create_job and create_jobs, cancel_job, retry_job."""

    acts: ClassVar = {"create": 10, "create_many": 2, "cancel": 2, "retry": 2}

    def create(self) -> None:
        by = self.pick(ALICE, ALICE, BOB, "service_role", None)
        wanted = self.wanted(by)
        if self.chance(4) and not {"run_at", "delay_seconds"} & wanted.keys():
            wanted["children"] = [self.wanted(by, child=True) for _ in range(self.pick(1, 2, 3))]
        self.made(self.both(clients.create_job, "create_job", by=by, **wanted))

    def create_many(self) -> None:
        """Create several jobs at once, as JSON."""
        by = self.pick(ALICE, BOB, "service_role")
        wanted = [self.wanted(by) for _ in range(self.pick(0, 1, 2, 3, 5))]
        for one in wanted:
            if self.chance(5):
                one["children"] = [self.wanted(by, child=True)]
            one |= {name: str(one[name]) for name in ("owner_id", "parent_id", "run_at") if one.get(name)}
            if self.chance(30):
                one[self.pick("retry_of", "nonsense")] = None
        if both := self.both(clients.create_jobs, "create_jobs", by=by, jobs=wanted):
            expected, answer = both
            made = [{"id": str(m.job.id), "created": m.created} for m in expected]
            agree("create_jobs", answer, made)

    def wanted(self, by: UUID | str | None, *, child: bool = False) -> Row:
        """Describe a job to create."""
        kinds = ["translate", "translate", "translate", "report", "report", "echo"]
        kind = self.pick("unheard", "secret") if self.chance(25) else self.pick(*kinds)
        wanted: Row = {"kind": kind, "items": self.items_to_create(kind)}
        maybe = {
            "priority": lambda: self.pick(-1, 1, 5),
            "idempotency_key": lambda: self.pick("k1", "k2", "k3"),
            "unique_key": lambda: "u",
            "max_attempts": lambda: self.pick(1, 3),
            "payload": lambda: {"n": self.pick(1, 2)},
        }
        wanted |= {name: choose() for name, choose in maybe.items() if self.chance(4)}
        if "unique_key" in wanted:
            wanted["on_conflict"] = self.pick("error", "replace", "replace", "return")
        if self.chance(10):
            odd = {
                "queue": self.pick(*QUEUES, None, None, "nowhere"),
                "timeout_seconds": 5,
                "tags": ["a", "b"],
            }
            wanted |= odd
        if not child:
            wanted |= self.whose_and_when(by)
        return wanted

    def whose_and_when(self, by: UUID | str | None) -> Row:
        wanted: Row = {}
        if not isinstance(by, UUID) or self.chance(10):
            wanted["owner_id"] = self.pick(ALICE, BOB, None)
        if self.chance(4):
            wanted["delay_seconds"] = self.pick(0, 30, 300, -1 if self.chance(5) else 10)
        if self.chance(6):
            wanted["run_at"] = self.world.now + timedelta(seconds=self.pick(-60, 30, 300))
        if self.chance(8) and self.world.jobs:
            wanted |= {"parent_id": self.some_job("pending", "processing"), "owner_id": None}
        if self.chance(4):
            wanted["on_child_failure"] = self.pick("continue", "fail")
        return wanted

    def items_to_create(self, kind: str) -> list[Any] | None:
        items = self.pick([], ["i1"], ["i1", "i2"], ["i1", {"key": "i2", "payload": {"x": 1}}, "i3"])
        return items or (["i1"] if kind == "translate" and self.pick(True, True, False) else None)

    def made(self, both: tuple[clients.Made, Row] | None) -> None:
        if both:
            made, row = both
            agree("the job", (row["id"], row["status"]), (str(made.job.id), made.job.status))

    def cancel(self) -> None:
        job_id = self.some_job("pending", "processing", "processing")
        if both := self.both(clients.cancel_job, "cancel_job", by=self.some_caller(job_id), job_id=job_id):
            job, row = both
            agree("the job", (row["id"], row["status"]), (str(job.id), job.status))

    def retry(self) -> None:
        job_id = self.some_job("partial", "failed", "cancelled")
        self.made(self.both(clients.retry_job, "retry_job", by=self.some_caller(job_id), job_id=job_id))


class Workers(Basics):
    """Everything workers call, on time and late."""

    acts: ClassVar = {
        "claim": 7,
        "say": 2,
        "finish_items": 4,
        "finish": 8,
        "spawn": 2,
        "release": 1,
        "heartbeat": 1,
        "lose_a_worker": 2,
        "wait_with_all": 2,
        "wait_alone": 1,
        "come_and_go": 1,
    }

    def claim(self) -> None:
        self.requests += not self.chance(6)
        worker_id = self.some_worker()
        known = self.world.workers.get(worker_id)
        if known and known.lease_expires_at < self.world.now and not self.chance(5):
            self.beat(worker_id)
        arguments = {
            "worker_id": worker_id,
            "request_id": UUID(int=1000 + self.requests),
            "queues": self.pick(None, None, None, None, None, ["default"], ["other", "nowhere"], []),
            "limit": 0 if self.chance(25) else self.pick(1, 2, 3, 10),
        }
        if both := self.both(workers.claim_jobs, "claim_jobs", **arguments):
            claim, answer = both
            taken = claim.settle(self.world, {UUID(row["id"]) for row in answer["jobs"]})
            agree("the jobs claimed", [row["id"] for row in answer["jobs"]], [str(job.id) for job in taken])
            for row, job in zip(answer["jobs"], taken, strict=True):
                times = moment(row.pop("run_at")), moment(row.pop("created_at"))
                agree("the times of a job claimed", times, (job.run_at, job.created_at))
                agree("a job claimed", row, workers.as_claimed(self.world, job))
            due = workers.next_due_at(self.world, self.world.workers[worker_id], arguments["queues"])
            self.compare_due(answer["next_due_at"], due)

    def compare_due(self, told: str | None, due: datetime | None) -> None:
        """Compare moments at which the next claim makes sense: all that have passed mean now."""
        at = moment(told)
        if not (at and due and abs(max(at, self.world.now) - due) < timedelta(milliseconds=1)):
            agree("next_due_at", at, due)

    def say(self) -> None:
        """Report progress, write logs: nothing that decides anything."""
        worker = self.some_busy_worker()
        reported = self.some_reports(worker)
        if self.pick(True, False):
            lines = [r | {"level": "info", "message": "at it"} for r in reported]
            self.same(reports.append_job_logs, "append_job_logs", worker_id=worker, logs=lines)
            return
        for report in reported:
            report["progress"] = self.pick(None, 0.25, 0.5, 7)
            report["message"] = self.pick(None, "half of it")
            job = self.job_of(report)
            report["items"] = [{"key": key, "progress": 0.5} for key in (job.items if job else ())][:2]
        self.same(reports.report_progress, "report_progress", worker_id=worker, reports=reported)

    def finish_items(self) -> None:
        worker = self.some_busy_worker()
        results = [r | {"items": self.some_items(r)} for r in self.some_reports(worker)]
        arguments = {"worker_id": worker, "results": results}
        for _ in range(self.pick(1, 1, 2)):  # a repeated call changes nothing
            if both := self.both(reports.finish_items, "finish_items", **arguments):
                expected, answer = both
                for result in answer["results"]:
                    result["error"] = result["error"] and result["error"].split(":")[0]
                agree("finish_items", answer, expected)

    def finish(self) -> None:
        worker = self.some_busy_worker()
        results = [r | self.some_end(r) | {"items": self.some_items(r)} for r in self.some_reports(worker)]
        self.finish_all(worker, results)

    def finish_all(self, worker: UUID, results: list[Row]) -> None:
        arguments = {"worker_id": worker, "results": results}
        for _ in range(self.pick(1, 1, 2)):  # a repeated call is stale
            if both := self.both(reports.finish_jobs, "finish_jobs", **arguments):
                expected, answers = both
                for answer in answers:
                    answer["error"] = answer["error"] and answer["error"].split(":")[0]
                    answer["run_at"] = moment(answer["run_at"])
                agree("finish_jobs", answers, expected)

    def some_end(self, report: Row) -> Row:
        job = self.job_of(report)
        outcome = self.pick(
            "done", "done", "done", "done", "done", "fail", "retry", "retry", "snooze", "cancelled"
        )
        if self.chance(20):
            outcome = self.pick("lost", "wait")
        if job and job.children_total and self.chance(2):
            outcome = "wait"
        if job and job.failures and self.chance(2):
            outcome = "retry"
        end: Row = {"outcome": outcome}
        if outcome == "done":
            end["result"] = self.pick(None, {"pages": 3})
        elif outcome in {"fail", "retry"}:
            end |= {"error_code": self.pick(None, "UPSTREAM_TIMEOUT"), "error_message": "it broke"}
            end["error_retryable"] = self.pick(None, True, True, False)
        if outcome in {"retry", "snooze"}:
            waits = [None, None, None] if outcome == "retry" else [0, 20, 20]
            end["delay_seconds"] = self.pick(*waits, 0, 45, -1 if self.chance(3) else None)
        return end

    def spawn(self) -> None:
        worker = self.some_busy_worker()
        parent = self.some_reports(worker)[0]
        children = [self.wanted(None, child=True) for _ in range(self.pick(1, 2))]
        for child in children:
            if self.chance(2):
                child["key"] = self.pick("x", "y")
        arguments = {
            "parent": parent,
            "jobs": children,
            "on_child_failure": self.pick("continue", "fail", None),
        }
        if both := self.both(reports.spawn_jobs, "spawn_jobs", worker_id=worker, **arguments):
            expected, answer = both
            told = [{"id": str(m.job.id), "created": m.created} for m in expected or []]
            agree("spawn_jobs", answer, {"stale": expected is None, "jobs": told})
            if expected is not None and not self.chance(3):
                wait = parent | {"outcome": "wait", "message": "for its children"}
                self.finish_all(worker, [wait])

    def release(self) -> None:
        worker = self.some_busy_worker()
        self.same(reports.release_jobs, "release_jobs", worker_id=worker, jobs=self.some_reports(worker))

    def heartbeat(self) -> None:
        self.beat(self.some_worker())

    def beat(self, worker: UUID) -> None:
        held = [j.id for j in self.world.jobs.values() if j.worker_id == worker and j.status == "processing"]
        running = self.pick(held, held, held[:1], [*held, self.some_job("pending")])
        feed = self.pick("polling", "realtime")
        arguments = {"worker_id": worker, "running": running, "feed": feed}
        if both := self.both(workers.heartbeat_worker, "heartbeat_worker", **arguments):
            expected, answer = both
            del answer["now"], answer["heartbeat_at"], answer["next_schedule_at"], answer["next_rescue_at"]
            self.compare_due(answer.pop("next_due_at"), expected.pop("next_due_at"))
            answer["lease_expires_at"] = moment(answer["lease_expires_at"])
            answer["cancel"] = {UUID(i) for i in answer["cancel"]}
            answer["lost"] = [UUID(i) for i in answer["lost"]]
            answer["unknown"] = {(UUID(u["id"]), u["attempt"]) for u in answer["unknown"]}
            agree("heartbeat_worker", answer, expected)

    def lose_a_worker(self) -> None:
        """Let time pass in which all workers but one are heard of."""
        lost = self.some_busy_worker()
        for _ in range(2):
            self.pass_time(60)
            for worker in self.living():
                if worker.id != lost:
                    self.beat(worker.id)

    def living(self) -> list[Worker]:
        return sorted(self.world.workers.values(), key=lambda w: w.id)

    def wait_with_all(self) -> None:
        """Let time pass in which all workers are heard of."""
        self.pass_time(self.pick(1, 60, 60, 85))
        for worker in self.living():
            self.beat(worker.id)

    def wait_alone(self) -> None:
        self.pass_time(self.pick(*WAITS))

    def pass_time(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)
        self.wait(self.project.at(self.world.now))

    def come_and_go(self) -> None:
        number = self.pick(0, 1, 2)
        if self.pick(True, False):
            self.same(workers.deregister_worker, "deregister_worker", worker_id=worker_id(number))
        if self.pick(True, True, False):
            price = self.pick(10, 10, 12)
            kinds = [declaration("echo"), declaration("translate", credits_per_item=price)]
            others = [declaration(kind) for kind in ("report", "secret") if number < 2]
            self.register(number, kinds=kinds + others, feed=self.pick("polling", "realtime"))


class Operators(Basics):
    """The SQL editor: queues, workers, bulk changes."""

    acts: ClassVar = {"turn_a_knob": 2, "drain": 1, "change_many": 2, "prune": 1}

    def turn_a_knob(self) -> None:
        queue = self.pick(*QUEUES)
        knob = self.pick("pause", "limits", "limits", "attempts", "retention", "price")
        if any(q.paused for q in self.world.queues.values()) and not self.chance(4):
            queue, knob = next(q.name for q in self.world.queues.values() if q.paused), "resume"
        if knob in {"pause", "resume"}:
            name = self.pick(queue, queue, queue, "nowhere")
            self.both(
                lambda world, name: operators.set_paused(world, name=name, paused=knob == "pause"),
                f"processor.{knob}_queue",
                name=name,
            )
        elif knob == "limits":
            self.change_queue(queue, **self.some_limits())
        elif knob == "attempts":
            self.change_queue(queue, max_attempts=self.pick(1, 2, 3), retry_delays=self.some_delays())
        elif knob == "retention":
            self.change_queue(queue, **self.some_retention())
        else:
            price = self.pick(0, 5, 10)
            query = "update public.job_kinds set credits_per_item = $1 where kind = 'translate'"
            self.wait(self.project.sql(query, price))
            self.world.kinds["translate"].credits_per_item = price

    def drain(self) -> None:
        worker = self.pick("web-0", "web-1", str(worker_id(2)), "nobody")
        undo = "update public.job_workers set draining = false"
        if any(w.draining for w in self.world.workers.values()):
            self.wait(self.project.sql(undo))
            for w in self.world.workers.values():
                w.draining = False
            return
        self.both(operators.drain_worker, "processor.drain_worker", worker=worker)

    def change_many(self) -> None:
        queue = self.pick(*QUEUES, *QUEUES, *QUEUES, "nowhere")
        act = self.pick("cancel", "move", "move", "retry", "retry", "retry", "retry")
        if act == "cancel":
            self.same(operators.cancel_queue, "processor.cancel_queue", name=queue)
        elif act == "move":
            arguments = {"from_queue": queue, "to_queue": self.pick(*QUEUES), "max_jobs": self.pick(1, 2, 50)}
            self.same(operators.move_jobs, "processor.move_jobs", **arguments)
        else:
            since = self.world.now - timedelta(seconds=self.pick(0, 600, 90_000))
            kind = self.pick(None, None, "translate", "unheard")
            arguments = {"queue": queue, "since": since, "kind": kind, "max_jobs": self.pick(1, 2, 50)}
            self.retry_failed(arguments)

    def retry_failed(self, arguments: Row) -> None:
        if both := self.both(operators.retry_failed, "processor.retry_failed", **arguments):
            expected, answer = both
            answer["next_since"] = moment(answer["next_since"])
            answer["problems"] = [{"job_id": p["job_id"], "code": p["code"]} for p in answer["problems"]]
            agree("retry_failed", answer, expected)

    def prune(self) -> None:
        self.same(operators.prune_jobs, "prune_jobs", batch=self.pick(1, 1000, 1000))


class Everything(Clients, Workers, Operators, Credits):
    """All acts together."""

    acts: ClassVar = Clients.acts | Workers.acts | Operators.acts | Credits.acts | {"look_around": 1}
