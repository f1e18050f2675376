"""What clients do: create, cancel, retry; and the service, which may do so for anybody."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tests.sql.model.ledger import Hold
from tests.sql.model.world import NEVER, Item, Job, Refused, Row, World, cancelled

Caller = UUID | str | None


@dataclass
class Made:
    """One that create_job or retry_job made, or one that was there."""

    job: Job
    created: bool


@dataclass(eq=False)
class Draft:
    """A job that may be created."""

    job: Job
    n: int
    """Its place in the call; a child has its parent's."""
    depth: int
    on_conflict: str
    children: list[Row]

    def writing_order(self) -> tuple[Any, ...]:
        owner, key = self.job.owner_id, self.job.idempotency_key
        return owner is None, owner, key is None, key, self.n


def as_id(given: UUID | str | None) -> UUID | None:
    return UUID(given) if isinstance(given, str) else given


def is_client(by: Caller) -> bool:
    return isinstance(by, UUID)


def create_job(world: World, *, by: Caller, **wanted: Any) -> Made:
    return create_jobs(world, by=by, jobs=[wanted])[0]


def create_jobs(world: World, *, by: Caller, jobs: list[Row]) -> list[Made]:
    if any(set(wanted) & {"retry_of", "nonsense"} for wanted in jobs):
        raise Refused("JQ006")
    with world.all_or_nothing():
        return add_jobs(world, by, jobs)


def parse_items(items: list[Any] | None) -> dict[str, Item]:
    parsed = [i if isinstance(i, dict) else {"key": i} for i in items or []]
    if len({i["key"] for i in parsed}) < len(parsed):
        raise Refused("JQ005")
    return {i["key"]: Item(i["key"], n, i.get("payload", {})) for n, i in enumerate(parsed, 1)}


def draft_all(world: World, by: Caller, wanted: list[Row]) -> list[Draft]:
    """Check all jobs, level by level of children."""
    drafts = [draft(world, by, w, n) for n, w in enumerate(wanted, 1)]
    level = drafts
    while any(d.children for d in level):
        level = [draft(world, by, child, d.n, d) for d in level for child in d.children]
        drafts += level
    return drafts


def draft(world: World, by: Caller, wanted: Row, n: int, above: Draft | None = None) -> Draft:
    """Check one job, in the order in which the database does."""
    owner = as_id(wanted.get("owner_id"))
    parent = above.job if above else world.find(as_id(wanted.get("parent_id")), by)
    if above and wanted.get("parent_id"):
        raise Refused("JQ006")
    if wanted.get("parent_id") and not parent:
        raise Refused("JQ008")
    if parent:
        if owner and owner != parent.owner_id:
            raise Refused("JQ010")
        owner = parent.owner_id
    elif is_client(by):
        if owner and owner != by:
            raise Refused("JQ010")
        owner = by
    kind = world.kinds.get(wanted["kind"])
    if not kind or (is_client(by) and not kind.public):
        raise Refused("JQ001")
    queue = world.queues.get(wanted.get("queue") or kind.queue)
    if not queue:
        raise Refused("JQ002")
    if is_client(by) and queue.name != kind.queue and not wanted.get("retry_of"):
        raise Refused("JQ010")
    run_at, delay = wanted.get("run_at"), wanted.get("delay_seconds")
    run_at = datetime.fromisoformat(run_at) if isinstance(run_at, str) else run_at
    if delay is not None and (run_at or delay < 0):
        raise Refused("JQ006")
    items = parse_items(wanted.get("items"))
    if kind.credits_per_item and not items:
        raise Refused("JQ005")
    children = wanted.get("children") or []
    if children and (run_at or delay is not None):
        raise Refused("JQ006")
    payload = wanted.get("payload") or {}
    timeout = wanted.get("timeout_seconds")
    job = Job(
        queue=queue.name,
        kind=kind.kind,
        owner_id=owner,
        priority=wanted.get("priority") or 0,
        payload=payload,
        run_at=NEVER if children else run_at or world.now + timedelta(seconds=delay or 0),
        created_at=world.now,
        max_attempts=wanted.get("max_attempts") or queue.max_attempts,
        items=items,
        items_total=len(items),
        timeout=None if timeout is None else timedelta(seconds=timeout),
        tags=wanted.get("tags") or [],
        idempotency_key=wanted.get("idempotency_key"),
        unique_key=wanted.get("unique_key"),
        retry_of=wanted.get("retry_of"),
        parent=parent,
        on_child_failure=wanted.get("on_child_failure") or "continue",
        input=(kind.kind, queue.name, payload, [(i.key, i.payload) for i in items.values()]),
    )
    price = kind.credits_per_item + kind.credits_per_job
    if owner and price:
        per_item = kind.credits_per_item > 0
        job.hold = Hold(owner, len(items) if per_item else 1, price, per_item)
        job.credits_held = job.hold.amount
    world.drafted += 1
    job.place = world.drafted
    return Draft(job, n, above.depth + 1 if above else 0, wanted.get("on_conflict") or "error", children)


def add_jobs(world: World, by: Caller, wanted: list[Row]) -> list[Made]:
    """Create all, or refuse; the caller has world.all_or_nothing."""
    drafts = draft_all(world, by, wanted)
    answers: dict[int, Made] = {}
    made: list[Draft] = []
    for depth in range(len(drafts)):
        wave = [d for d in drafts if d.depth == depth and (not depth or d.job.parent in world.new)]
        wave.sort(key=Draft.writing_order)
        make_way(world, wave, made)
        if any(d.job.parent and d.job.parent.ended for d in wave):
            raise Refused("JQ009")
        written = [d for d in wave if try_to_write(world, d.job)]
        found = {d.n: Made(stands_for(world, d), False) for d in wave if d not in written}
        if not depth:
            answers = found | {d.n: Made(d.job, True) for d in written}
        for d in written:
            if d.job.parent:
                d.job.parent.children_total += 1
                d.job.parent.children_open += 1
        made += written
    complete(world, made)
    return [answers[n] for n in sorted(answers)]


def make_way(world: World, wave: list[Draft], made: list[Draft]) -> None:
    """Cancel the pending jobs that others replace; their parents wait on if those become their children."""
    mine = [d.job for d in made]
    replaced = [j for j in world.every() if j not in mine and any(replaces(world, d, j) for d in wave)]
    waiting = [
        j.parent
        for j in replaced
        if j.parent
        and j.parent.status == "pending"
        and j.parent.run_at == NEVER
        and any(d.job.parent is j.parent for d in wave)
    ]
    world.conclude(
        [cancelled(j, "replaced by a newer job with the same unique_key", "REPLACED") for j in replaced]
    )
    for parent in waiting:
        parent.run_at = NEVER if parent.status == "pending" else parent.run_at


def complete(world: World, made: list[Draft]) -> None:
    """Reserve credits, look at the limits of owners, and wake parents who got no child."""
    holds = [d.job.hold for d in sorted(made, key=lambda d: d.job.place) if d.job.hold]
    world.ledger.expire({hold.owner for hold in holds}, world.now)
    for hold in holds:
        if hold.amount > world.ledger.available(hold.owner):
            raise Refused("PT402")
        world.ledger.reserve(hold)
    for d in made:
        most = world.queues[d.job.queue].max_pending_per_owner
        waiting = [j for j in world.waiting(d.job.queue) if j.owner_id == d.job.owner_id]
        if d.job.owner_id and most is not None and len(waiting) > most:
            raise Refused("JQ014")
    for d in made:
        if d.children and not d.job.children_open:
            d.job.run_at = d.job.created_at


def try_to_write(world: World, job: Job) -> bool:
    """Add a job unless a unique index knows one like it."""
    if same_job(world, job) or holder_of_key(world, job):
        return False
    world.new.append(job)
    return True


def same_job(world: World, job: Job) -> Job | None:
    """Return the job that this one repeats."""
    for other in world.every():
        if job.retry_of:
            if other.retry_of == job.retry_of:
                return other
        elif job.idempotency_key and is_keyed(other, job.owner_id, job.idempotency_key):
            return other
    return None


def is_keyed(job: Job, owner: UUID | None, key: str) -> bool:
    return (job.owner_id, job.idempotency_key) == (owner, key)


def holder_of_key(world: World, job: Job) -> Job | None:
    """Return the open job that has this one's unique_key."""
    key = (job.owner_id, job.kind, job.unique_key)
    for other in world.every():
        if job.unique_key and not other.ended and (other.owner_id, other.kind, other.unique_key) == key:
            return other
    return None


def replaces(world: World, draft: Draft, job: Job) -> bool:
    new = draft.job
    repeated = new.idempotency_key and any(
        is_keyed(j, new.owner_id, new.idempotency_key) for j in world.every()
    )
    return (
        draft.on_conflict == "replace"
        and new.unique_key is not None
        and job.status == "pending"
        and (job.owner_id, job.kind, job.unique_key) == (new.owner_id, new.kind, new.unique_key)
        and not repeated
    )


def stands_for(world: World, draft: Draft) -> Job:
    """Return the job that keeps a draft from being written, if it may stand for it."""
    existing = same_job(world, draft.job)
    if existing:
        other = existing.input != draft.job.input or existing.parent_id != draft.job.parent_id
        if not existing.retry_of and (other or existing.parent is not draft.job.parent):
            raise Refused("JQ007")
        return existing
    existing = holder_of_key(world, draft.job)
    if not existing or draft.on_conflict != "return":
        raise Refused("JQ012")
    return existing


def cancel_job(world: World, *, by: Caller, job_id: UUID) -> Job:
    job = world.find(job_id, by)
    if not job:
        raise Refused("JQ008")
    if job.status == "pending":
        world.conclude([cancelled(job, "cancelled before it started")])
    elif job.status == "processing":
        world.request_cancel([job])
    return job


def retry_job(world: World, *, by: Caller, job_id: UUID) -> Made:
    old = world.find(job_id, by)
    if not old:
        raise Refused("JQ008")
    with world.all_or_nothing():
        return add_jobs(world, by, [repetition(world, old)])[0]


def repetition(world: World, old: Job) -> Row:
    """Return what is to be created to repeat a job that ended: its open items, and its children likewise."""
    if old.status not in {"partial", "failed", "cancelled"}:
        raise Refused("JQ009")
    items = [{"key": i.key, "payload": i.payload} for i in old.items.values() if i.status != "completed"]
    retried = {j.retry_of for j in world.every()}
    children = [
        repetition(world, c) | {"owner_id": None}
        for c in sorted(world.children_of(old), key=lambda c: c.id)
        if c.status in {"partial", "failed", "cancelled"}
        and (not c.items or c.items_done < c.items_total or c.children_failed)
        and c.id not in retried
    ]
    if old.items and not items and not children:
        raise Refused("JQ009")
    return {
        "kind": old.kind,
        "queue": old.queue,
        "owner_id": old.owner_id,
        "priority": old.priority,
        "payload": old.payload,
        "items": items,
        "max_attempts": old.max_attempts,
        "timeout_seconds": old.timeout and old.timeout.total_seconds(),
        "tags": old.tags,
        "unique_key": old.unique_key,
        "retry_of": old.id,
        "children": children,
        "on_child_failure": old.on_child_failure,
    }
