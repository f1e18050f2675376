"""What workers do to get jobs and to keep them: register, heartbeat, claim; and what happens to the lost."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

from tests.sql.model.reports import release_jobs
from tests.sql.model.world import (
    NEVER,
    Job,
    Kind,
    Queue,
    Refused,
    Row,
    Verdict,
    Worker,
    World,
    cancelled,
)


def register_worker(world: World, *, worker: Row) -> None:
    for declared in worker["kinds"]:
        for name in (*worker["queues"], declared["queue"]):
            world.queues.setdefault(name, Queue(name))
        declare_kind(world, declared)
    lease = timedelta(seconds=worker["lease_seconds"])
    known = world.workers.setdefault(
        UUID(worker["id"]),
        Worker(UUID(worker["id"]), worker["name"], [], [], 1, lease, world.now, world.now),
    )
    known.queues = worker["queues"]
    known.kinds = [kind["kind"] for kind in worker["kinds"]]
    known.slots, known.feed, known.lease = worker["slots"], worker["feed"], lease
    known.heartbeat_at, known.lease_expires_at = world.now, world.now + lease


def declare_kind(world: World, declared: Row) -> None:
    """Follow a declaration, but not where an operator has changed what was declared."""
    name = declared["kind"]
    kind = world.kinds.get(name)
    if not kind:
        world.kinds[name] = Kind(
            name,
            declared["queue"],
            declared["public"],
            declared["credits_per_job"],
            declared["credits_per_item"],
            declared,
        )
    elif kind.declared != declared:
        before = kind.declared
        if (kind.credits_per_job, kind.credits_per_item) == (
            before["credits_per_job"],
            before["credits_per_item"],
        ):
            kind.credits_per_job = declared["credits_per_job"]
            kind.credits_per_item = declared["credits_per_item"]
        if kind.public == before["public"]:
            kind.public = declared["public"]
        kind.declared = declared


def deregister_worker(world: World, *, worker_id: UUID) -> Row:
    held = [
        {"id": str(j.id), "attempt": j.attempt}
        for j in world.jobs.values()
        if j.worker_id == worker_id and j.status == "processing"
    ]
    release_jobs(world, worker_id=worker_id, jobs=held)
    world.workers.pop(worker_id, None)
    return {"released": len(held)}


def heartbeat_worker(world: World, *, worker_id: UUID, running: list[UUID], feed: str) -> Row:
    worker = world.workers.get(worker_id)
    if not worker:
        raise Refused("JQ011")
    # whoever had lapsed only renews
    rescued = rescue_jobs(world) if worker.lease_expires_at >= world.now else 0
    worker.heartbeat_at, worker.lease_expires_at = world.now, world.now + worker.lease
    worker.running, worker.feed = len(running), feed
    owned = world.held_by(worker)
    return {
        "rescued": rescued,
        "draining": worker.draining,
        "inbox": worker.inbox,
        "next_due_at": next_due_at(world, worker, None),
        "lease_expires_at": worker.lease_expires_at,
        "cancel": {j.id for j in owned if j.cancel_requested_at or is_orphan(world, j)},
        "lost": [r for r in running if r not in {j.id for j in owned}],
        "unknown": {
            (j.id, j.attempt)
            for j in owned
            if j.id not in running and j.started_at < world.now - timedelta(seconds=10)
        },
    }


def is_orphan(world: World, job: Job) -> bool:
    """Say whether the job's parent has ended, but not well."""
    return job.parent_id in world.jobs and job.parent.status in {"partial", "failed", "cancelled"}


def rescue_jobs(world: World) -> int:
    lapsed = {w.id for w in world.workers.values() if w.lease_expires_at < world.now}
    lost = [
        j
        for j in world.jobs.values()
        if j.status == "processing" and (j.worker_id in lapsed or j.worker_id not in world.workers)
    ]
    if not lost:
        long_ago = world.now - timedelta(days=1)
        for worker in list(world.workers.values()):
            if worker.lease_expires_at < long_ago:
                del world.workers[worker.id]
    world.conclude([verdict_on_lost(world, job) for job in lost])
    return len(lost)


def verdict_on_lost(world: World, job: Job) -> Verdict:
    if job.cancel_requested_at:
        verdict = cancelled(job, "cancelled while its worker was lost")
    elif job.crashes > 1 or (job.crashes and not shared_suspicion(world, job)):
        why = f"{job.crashes + 1} workers in a row were lost while running it"
        status = "partial" if job.items_done else "failed"
        verdict = Verdict(job, status, code="WORKER_CRASHED", message=why, crashed=True)
    else:
        verdict = Verdict(job, "pending", run_at=world.now, crashed=True)
    verdict.note = "LEASE_LOST"
    return verdict


def shared_suspicion(world: World, job: Job) -> bool:
    """Say whether its worker held another job that had lost one before: either may be the cause."""
    return any(o is not job and o.crashes for o in world.jobs.values() if o.held_by(job.worker_id, o.attempt))


def next_due_at(world: World, worker: Worker, queues: list[str] | None) -> datetime | None:
    """Return when the worker's next claim makes sense; any moment that has passed is now."""
    if worker.draining:
        return None
    named = worker.queues if queues is None else queues
    moments = [due_in(world, worker, q) for q in world.queues.values() if q.name in named and not q.paused]
    return min((max(world.now, m) for m in moments if m), default=None)


def due_in(world: World, worker: Worker, queue: Queue) -> datetime | None:
    if queue.max_processing is not None and queue.max_processing <= len(world.running(queue.name)):
        return None
    mine = [j for j in world.waiting(queue.name) if j.kind in worker.kinds and j.run_at < NEVER]
    waiting = [j for j in mine if j.crashes < 2]
    if queue.max_processing_per_owner is not None and not pick_in_turns(world, worker, queue, 1):
        waiting = [j for j in waiting if j.run_at > world.now]
    due = min((j.run_at for j in waiting), default=None)
    if pick_suspect(world, worker, queue):
        due = world.now
    return max(due, queue.next_token_at(world.now)) if due and queue.rate_limit is not None else due


@dataclass
class Claim:
    """A claim that is allowed: whom it may take, depending on the order in which queues are read."""

    worker: Worker
    request_id: UUID
    replayed: list[Job]
    choices: list[list[Job]]

    def settle(self, world: World, ids: set[UUID]) -> list[Job]:
        """Take what the database took, if that is one of the choices, in the order of the answer."""
        if self.replayed:
            taken = self.replayed
        else:
            [taken] = [c for c in self.choices if {j.id for j in c} == ids][:1] or [self.choices[0]]
            for job in taken:
                job.status, job.worker_id, job.claim_id = "processing", self.worker.id, self.request_id
                job.attempt += 1
                job.started_at = world.now
            for name, number in Counter(j.queue for j in taken).items():
                queue = world.queues[name]
                if queue.rate_limit is not None:
                    queue.bucket = (queue.tokens(world.now) - number, world.now)
                in_turn = [j.owner_id for j in taken if j.queue == name and j.crashes < 2]
                if queue.max_processing_per_owner is not None and in_turn:
                    queue.turn = (in_turn[-1],)
        return sorted(taken, key=Job.due_order)


def claim_jobs(
    world: World, *, worker_id: UUID, request_id: UUID, queues: list[str] | None, limit: int
) -> Claim:
    if not 1 <= limit <= 1000:
        raise Refused("JQ006")
    worker = world.workers.get(worker_id)
    if not worker or worker.lease_expires_at < world.now:
        raise Refused("JQ011")
    replayed = [j for j in world.held_by(worker) if j.claim_id == request_id]
    names = [
        q.name
        for q in world.queues.values()
        if q.name in (worker.queues if queues is None else queues) and not q.paused and not worker.draining
    ]
    choices = [list(choose(world, worker, order, limit)) for order in permutations(names)]
    return Claim(worker, request_id, replayed, choices)


def choose(world: World, worker: Worker, names: tuple[str, ...], limit: int) -> Iterator[Job]:
    """Go through the queues in this order."""
    careful = False
    for name in names:
        queue = world.queues[name]
        room = limit
        if queue.max_processing is not None:
            room = min(room, max(0, queue.max_processing - len(world.running(name))))
        if queue.rate_limit is not None:
            room = min(room, max(0, int(queue.tokens(world.now) + 1e-12)))
        taken = pick_suspect(world, worker, queue) if room and not careful else []
        careful = careful or bool(taken)
        if queue.max_processing_per_owner is None:
            taken += sorted(due_jobs(world, worker, queue), key=Job.due_order)[: room - len(taken)]
        elif not taken:
            taken = pick_in_turns(world, worker, queue, room)
        limit -= len(taken)
        yield from taken


def due_jobs(world: World, worker: Worker, queue: Queue) -> list[Job]:
    jobs = world.waiting(queue.name)
    return [j for j in jobs if j.run_at <= world.now and j.kind in worker.kinds and j.crashes < 2]


def pick_suspect(world: World, worker: Worker, queue: Queue) -> list[Job]:
    """Take one of the jobs that were lost with two workers: a worker runs one of them at a time."""
    if any(j.crashes > 1 for j in world.held_by(worker)):
        return []
    running = Counter(j.owner_id for j in world.running(queue.name))
    most = queue.max_processing_per_owner
    suspects = [
        j
        for j in world.waiting(queue.name)
        if j.crashes > 1 and j.run_at <= world.now and j.kind in worker.kinds
        if most is None or j.owner_id is None or running[j.owner_id] < most
    ]
    return sorted(suspects, key=Job.due_order)[:1]


def pick_in_turns(world: World, worker: Worker, queue: Queue, room: int) -> list[Job]:
    """Take the jobs of owners in turns: who has least running first, then who comes next in the ring."""
    due = due_jobs(world, worker, queue)
    candidates, alone = [], 0
    for place, owner in enumerate(ring(world, queue)):
        running = sum(j.owner_id == owner for j in world.running(queue.name))
        most = room if not owner else min(room, max(0, (queue.max_processing_per_owner or 0) - running))
        own = sorted((j for j in due if j.owner_id == owner), key=Job.due_order)[:most]
        candidates += [(running + n, place, n, j) for n, j in enumerate(own, 1)]
        alone += bool(own) and not running
        if alone >= room:
            break
    return [candidate[-1] for candidate in sorted(candidates, key=lambda c: c[:3])[:room]]


def ring(world: World, queue: Queue) -> list[UUID | None]:
    """Return the owners with waiting jobs, beginning after the last turn; nobody comes after the greatest."""
    owners = sorted({j.owner_id for j in world.waiting(queue.name) if j.owner_id})
    [last] = queue.turn or (None,)
    if last is None:
        return [*owners, None]
    return [*(o for o in owners if o > last), None, *(o for o in owners if o <= last)]


def as_claimed(world: World, job: Job) -> Row:
    """Return a job as a worker gets it; ids and times are texts in the answer."""
    queue = world.queues[job.queue]
    items = job.items.values()
    return {
        "id": str(job.id),
        "queue": job.queue,
        "kind": job.kind,
        "owner_id": job.owner_id and str(job.owner_id),
        "priority": job.priority,
        "payload": job.payload,
        "attempt": job.attempt,
        "failures": job.failures,
        "max_attempts": job.max_attempts,
        "tags": job.tags,
        "trace_context": None,  # no act of the model traces
        "timeout_seconds": (job.timeout or queue.timeout).total_seconds(),
        "cancel_requested": job.cancel_requested_at is not None,
        "items_total": job.items_total,
        "items_done": job.items_done,
        "items": [_open(i) for i in items if i.status == "pending"],
        "done": [_done(i) for i in items if i.status == "completed"],
        "parent_id": job.parent_id and str(job.parent_id),
        "children": [_child(c) for c in known_children(world, job)],
        "checkpoints": [],  # no act of the model takes steps
    }


def known_children(world: World, job: Job) -> list[Job]:
    """Return its children, and those that completed under the jobs it is a retry of."""
    line, old = [job], job
    while old := world.jobs.get(old.retry_of):
        line.append(old)
    children = [c for o in line for c in world.children_of(o) if o is job or c.status == "completed"]
    return sorted(children, key=lambda c: c.id)


def _open(item: Any) -> Row:
    return {
        "key": item.key,
        "position": item.position,
        "payload": item.payload,
        "attempts": item.attempts,
    }


def _done(item: Any) -> Row:
    return {"key": item.key, "position": item.position, "result": item.result}


def _child(job: Job) -> Row:
    return {
        "id": str(job.id),
        "kind": job.kind,
        "status": job.status,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "result": job.result,
    }
