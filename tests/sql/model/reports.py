"""What workers tell about jobs they hold, or believe to hold: progress, logs, items, ends."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from tests.sql.model.clients import Made, add_jobs
from tests.sql.model.world import NEVER, Item, Job, Refused, Row, Verdict, World, cancelled

OUTCOMES = frozenset({"done", "fail", "retry", "snooze", "cancelled", "wait"})


def look_up(world: World, worker_id: UUID, reports: list[Row]) -> list[tuple[Row, Job | None, bool, bool]]:
    """Say of each report whether its job is held and whether it is to be cancelled."""
    found = [(r, world.jobs.get(UUID(r["id"]))) for r in reports]
    return [
        (r, j, bool(j and j.held_by(worker_id, r["attempt"])), bool(j and j.cancel_requested_at))
        for r, j in found
    ]


def report_progress(world: World, *, worker_id: UUID, reports: list[Row]) -> Row:
    answer: Row = {"stale": [], "cancel": []}
    for report, job, held, cancel in look_up(world, worker_id, reports):
        if not held or not job:
            answer["stale"].append(report["id"])
            continue
        if cancel:
            answer["cancel"].append(report["id"])
        job.progress = share(report.get("progress"), job.progress)
        job.progress_message = report.get("message") or job.progress_message
        for told in report.get("items", []):
            item = job.items.get(told["key"])
            if item and item.status == "pending":
                item.progress = share(told.get("progress"), item.progress)
    return answer


def share(told: float | None, before: float) -> float:
    return before if told is None else max(0, min(1, told))


def append_job_logs(world: World, *, worker_id: UUID, logs: list[Row]) -> Row:
    stored = 0
    for _, job, held, _ in look_up(world, worker_id, logs):
        if held and job and job.logs < 1000:
            job.logs += 1
            stored += 1
    return {"stored": stored}


def finish_items(world: World, *, worker_id: UUID, results: list[Row]) -> Row:
    answer: Row = {"results": [], "cancel": []}
    for report, job, held, cancel in look_up(world, worker_id, results):
        problem = None
        if held and job:
            if cancel:
                answer["cancel"].append(report["id"])
            try:
                check_items(job, report.get("items"))
                apply_items(world, job, report.get("items"))
            except Refused as refused:
                problem = refused.code
        answer["results"].append({"id": report["id"], "stale": not held, "error": problem})
    return answer


def check_items(job: Job, items: list[Row] | None) -> None:
    told = items or []
    keys = [item["key"] for item in told]
    if len(set(keys)) < len(keys) or any(
        item["key"] not in job.items or item["status"] not in {"completed", "failed"} for item in told
    ):
        raise Refused("JQ005")


def apply_items(world: World, job: Job, items: list[Row] | None) -> None:
    news = [(job.items[told["key"]], told) for told in items or [] if is_new(job.items[told["key"]], told)]
    done = [item.position for item, told in news if told["status"] == "completed"]
    price = world.capture(job, done, per_item=True) if done else 0
    for item, told in news:
        completed = told["status"] == "completed"
        item.status = told["status"]
        item.result = told.get("result")
        item.progress = 1 if completed else item.progress
        item.attempts += 1
        item.credits = price if completed else 0
        item.error_code, item.error_message, item.error_retryable = error_of(told)
    if news:
        job.items_done = sum(i.status == "completed" for i in job.items.values())
        job.items_failed = sum(i.status == "failed" for i in job.items.values())
        job.progress = max(job.progress, (job.items_done + job.items_failed) / job.items_total)


def is_new(item: Item, told: Row) -> bool:
    """Say whether a report is news: a completed item stays so, a failure told again is no second one."""
    if item.status == "failed":
        before = (item.error_code, item.error_message, item.error_retryable)
        return told["status"] == "completed" or error_of(told) != before
    return item.status == "pending"


def error_of(told: Row) -> tuple[Any, ...]:
    return told.get("error_code"), told.get("error_message"), told.get("error_retryable")


def finish_jobs(world: World, *, worker_id: UUID, results: list[Row]) -> list[Row]:
    """All at once, or, if one cannot be taken, one after the other."""
    try:
        with world.all_or_nothing():
            return finish_batch(world, worker_id, results)
    except Refused:
        return [answer for report in results for answer in finish_alone(world, worker_id, report)]


def finish_batch(world: World, worker_id: UUID, results: list[Row]) -> list[Row]:
    held: dict[int, tuple[Job, Row]] = {}
    for place, (report, job, is_held, _) in enumerate(look_up(world, worker_id, results)):
        if is_held and job and job not in [j for j, _ in held.values()]:
            held[place] = (job, report)
    for job, report in held.values():
        check_items(job, report.get("items"))
        apply_items(world, job, report.get("items"))
    world.conclude([decide(world, job, report) for job, report in held.values()])
    return [answer(world, report, place in held) for place, report in enumerate(results)]


def finish_alone(world: World, worker_id: UUID, report: Row) -> list[Row]:
    try:
        with world.all_or_nothing():
            return finish_batch(world, worker_id, [report])
    except Refused as refused:
        return [answer(world, report, True) | {"error": refused.code, "facts": None}]


def answer(world: World, report: Row, held: bool) -> Row:
    job = world.jobs.get(UUID(report["id"]))
    return {
        "id": report["id"],
        "status": job and job.status,
        "run_at": job and job.run_at,
        "stale": not held,
        "error": None,
        "facts": job and facts(job),
    }


def facts(job: Job) -> Row | None:
    """Tell what else there is to tell of a job, if there is anything."""
    if not (job.error_code or job.items_total or job.credits_captured or job.credits_refunded):
        return None
    return {
        name: getattr(job, name)
        for name in (
            *("error_code", "error_message", "items_total", "items_done", "items_failed"),
            *("credits_captured", "credits_refunded"),
        )
    }


def decide(world: World, job: Job, report: Row) -> Verdict:
    """Decide what the end of an attempt means."""
    outcome, delay = report.get("outcome"), report.get("delay_seconds")
    code, message = report.get("error_code"), report.get("error_message")
    if outcome not in OUTCOMES or (delay is not None and not 0 <= delay <= 31_536_000):
        raise Refused("JQ006")
    if outcome == "done" and job.items_done == job.items_total:
        return Verdict(job, "completed", result=report.get("result"))
    if outcome == "cancelled" or (job.cancel_requested_at and outcome in {"retry", "snooze", "wait"}):
        return cancelled(job, message or "cancelled while it ran", code or "CANCELLED")
    if outcome == "snooze" or (
        outcome == "wait" and not (job.children_failed and job.on_child_failure == "fail")
    ):
        return wait(world, job, outcome, delay, report.get("message"))
    return fail(world, job, report)


def wait(world: World, job: Job, outcome: str, delay: float | None, message: str | None) -> Verdict:
    if (outcome == "snooze" and delay is None) or (outcome == "wait" and not job.children_total):
        raise Refused("JQ006")
    if outcome == "snooze":
        until = world.now + timedelta(seconds=delay or 0)
    else:
        until = NEVER if job.children_open else world.now
    return Verdict(job, "pending", run_at=until, progress_message=message)


def fail(world: World, job: Job, report: Row) -> Verdict:
    """Decide about a failure; "done" with open items is one too, and "wait" for children that failed."""
    outcome, told, delay = report["outcome"], report.get("error_retryable"), report.get("delay_seconds")
    again = outcome == "retry" and (told is None or told)
    code, message = report.get("error_code"), report.get("error_message")
    if outcome == "done":
        again = any(item.runs_again for item in job.items.values())
        code = "ITEMS_FAILED"
        message = f"{job.items_total - job.items_done} of {job.items_total} items did not complete"
    elif outcome == "wait":
        code = "CHILD_FAILED"
        message = f"{job.children_failed} of {job.children_total} children did not complete"
    code = code or "HANDLER_CRASHED"
    if again and job.cancel_requested_at:
        return Verdict(job, "cancelled", code="CANCELLED", message="cancelled while it ran", note=code)
    if again and job.failures + 1 < job.max_attempts:
        delays = world.queues[job.queue].retry_delays
        pause = delays[min(job.failures, len(delays) - 1)] if delay is None else timedelta(seconds=delay)
        return Verdict(
            job, "pending", run_at=world.now + pause, code=code, message=message, note=code, failed=True
        )
    status = "partial" if job.items_done else "failed"
    return Verdict(
        job, status, result=report.get("result"), code=code, message=message, note=code, failed=True
    )


def release_jobs(world: World, *, worker_id: UUID, jobs: list[Row]) -> list[Row]:
    held: dict[int, Job] = {}
    for place, (_, job, is_held, _) in enumerate(look_up(world, worker_id, jobs)):
        if is_held and job and job not in held.values():
            held[place] = job
    world.conclude(
        [
            cancelled(j, "cancelled while it ran")
            if j.cancel_requested_at
            else Verdict(j, "pending", run_at=world.now, crashed=None)
            for j in held.values()
        ]
    )
    return [{"id": report["id"], "stale": place not in held} for place, report in enumerate(jobs)]


def spawn_jobs(
    world: World, *, worker_id: UUID, parent: Row, jobs: list[Row], on_child_failure: str | None
) -> list[Made] | None:
    """Return the children, or None if the worker does not hold the parent."""
    [(_, job, held, _)] = look_up(world, worker_id, [parent])
    if not held or not job:
        return None
    if any(child.get("on_conflict") == "return" for child in jobs):
        raise Refused("JQ006")
    with world.all_or_nothing():
        job.on_child_failure = on_child_failure or job.on_child_failure
        wanted = [
            {name: value for name, value in child.items() if name != "key"}
            | {"parent_id": job.id, "idempotency_key": f"{job.id}/{child.get('key', f'#{number}')}"}
            for number, child in enumerate(jobs, 1)
        ]
        return add_jobs(world, None, wanted)
