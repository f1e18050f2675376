"""What operators do in the SQL editor."""

from datetime import datetime

from tests.sql.model.clients import retry_job
from tests.sql.model.world import Job, Refused, Row, World, cancelled


def known_queue(world: World, name: str) -> None:
    if name not in world.queue_names():
        raise Refused("JQ002")


def set_paused(world: World, *, name: str, paused: bool) -> None:
    if name not in world.queues:
        raise Refused("JQ002")
    world.queues[name].paused = paused


def drain_worker(world: World, *, worker: str) -> None:
    drained = [w for w in world.workers.values() if worker in {w.name, str(w.id)}]
    if not drained:
        raise Refused("JQ011")
    for w in drained:
        w.inbox += not w.draining
        w.draining = True


def cancel_queue(world: World, *, name: str) -> Row:
    """In one batch that is large enough: which jobs a smaller one takes is the database's choice."""
    known_queue(world, name)
    pending = world.waiting(name)
    told = [j for j in world.running(name) if not j.cancel_requested_at]
    world.conclude([cancelled(j, "cancelled with its queue before it started") for j in pending])
    world.request_cancel(told)
    return {"cancelled": len(pending), "asked": len(told), "remaining": 0}


def move_jobs(world: World, *, from_queue: str, to_queue: str, max_jobs: int) -> Row:
    known_queue(world, from_queue)
    if from_queue == to_queue:
        raise Refused("JQ006")
    if to_queue not in world.queues:
        raise Refused("JQ002")
    waiting = sorted(world.waiting(from_queue), key=Job.due_order)
    for job in waiting[:max_jobs]:
        job.queue = to_queue
    return {
        "moved": min(max_jobs, len(waiting)),
        "remaining": max(0, len(waiting) - max_jobs),
    }


def retry_failed(world: World, *, queue: str, since: datetime, kind: str | None, max_jobs: int) -> Row:
    known_queue(world, queue)
    if kind and kind not in world.kinds:
        raise Refused("JQ001")
    retried = {j.retry_of for j in world.every()}
    batch = sorted(
        (
            j
            for j in world.jobs.values()
            if j.queue == queue
            and j.status in {"failed", "partial"}
            and j.finished_at >= since
            and kind in {None, j.kind}
            and j.id not in retried
        ),
        key=lambda j: (j.finished_at, j.id),
    )[:max_jobs]
    ids = [j.id for j in batch]
    problems = []
    for job_id in sorted(ids):
        try:
            retry_job(world, by=None, job_id=job_id)
        except Refused as refused:
            problems.append({"job_id": str(job_id), "code": refused.code})
    return {
        "retried": len(batch) - len(problems),
        "skipped": len(problems),
        "next_since": max(j.finished_at for j in batch) if len(batch) == max_jobs else None,
        "problems": problems,
    }


def prune_jobs(world: World, *, batch: int) -> int:
    pruned = 0
    for name in world.queue_names():
        queue = world.queues[name]
        ended = [j for j in world.jobs.values() if j.queue == name and j.ended]
        ended.sort(key=lambda j: (j.finished_at, j.id), reverse=True)
        old = [
            j
            for j in ended[queue.retain_last :]
            if j.finished_at < world.now - queue.retain_for
            # a parent still looks at its children
            and not (j.parent_id in world.jobs and not j.parent.ended)
        ]
        for job in old[::-1][: batch - pruned]:
            del world.jobs[job.id]
            pruned += 1
    return pruned
