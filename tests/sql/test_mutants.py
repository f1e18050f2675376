"""The tests can fail: the model notices each of these changes to a function.

A mutant is a list of changes: a function, words of its body, what stands there instead. A change that finds
nothing to change fails the test, so that no mutant survives by being none.
"""

from typing import NamedTuple

import asyncpg
import pytest
from hypothesis.errors import Flaky

from tests.sql.harness import Project
from tests.sql.model.machine import arena, run_programs
from tests.sql.model.rules import Everything

LOOK_FOR = range(1, 13)


class Change(NamedTuple):
    function: str
    before: str
    after: str


class Mutant(NamedTuple):
    changes: list[Change]
    inclined: tuple[str, ...] = ()
    """To which acts the programs are inclined that look for it: those that seldom happen by themselves."""


def mutant(function: str, before: str, after: str, *inclined: str) -> Mutant:
    return Mutant([Change(function, before, after)], inclined)


SETTLE = "processor.settle_holds"
OPEN = "processor.open_holds"
HELD = "processor.lock_held_jobs"
BATCH = "processor.finish_batch"
DECIDE = "processor.decide"
CONCLUDE = "processor.conclude"
TELL = "processor.tell_parents"
PICK = "processor.pick_in_order"
TURNS = "processor.next_in_turn"
DRAFT = "processor.draft_jobs"
RESCUE = "processor.rescue_jobs"

CREDITS = {
    "a lot that is given nothing back": mutant(SETTLE, "l.remaining + s.amount", "l.remaining"),
    "a dead lot that comes back to life": mutant(
        SETTLE, "l.expires_at <= moment", "false", "expire", "cancel"
    ),
    "lots that burn by age": mutant(OPEN, "order by x.priority desc, x.expires_at, x.id", "order by x.id"),
    "credits that are spent after their time": mutant(OPEN, "perform processor.expire_lots(owners);", ""),
    "a reservation of what is not there": mutant(OPEN, "d.needed > coalesce(a.available, 0)", "false"),
    "a ticket that costs twice": mutant(
        "processor.capture_units", "count(*) * price", "2 * count(*) * price"
    ),
    "an input that is not compared": mutant(
        "processor.find_conflict", "existing.input_digest <> draft.input_digest", "false"
    ),
    "a key that is not looked for": mutant(
        "processor.grant_credits", "e.idempotency_key = grant_credits.idempotency_key", "false", "grant"
    ),
    "a clawback of more than the grant": mutant(
        "processor.undo_grant",
        "least(granted - taken_in_all, available)",
        "least(granted, available)",
        "undo_a_grant",
    ),
    "a refund of more than was spent": mutant(
        "processor.refund_credits",
        "perform processor.check_range('amount', refund_credits.amount, 1, spent - refunded);",
        "",
        "refund",
        "finish",
    ),
}
FENCE = {
    "items of an earlier attempt": mutant(
        HELD, "and j.attempt = (r.value ->> 'attempt')::int", "", "release", "claim", "finish_items"
    ),
    "items of another worker": mutant(
        HELD, "and j.worker_id = lock_held_jobs.worker_id", "", "finish_items", "claim"
    ),
    "an end of an earlier attempt": mutant(
        BATCH, "and j.attempt = (r.value ->> 'attempt')::int", "", "release", "claim", "finish"
    ),
    "an end of another worker": mutant(
        BATCH, "and j.worker_id = finish_batch.worker_id", "", "finish", "claim"
    ),
    "an end of what has ended": mutant(BATCH, "where j.status = 'processing' and", "where"),
    "two ends at once": mutant(BATCH, "distinct on (j.id)", "", "finish", "claim"),
}
CLAIM = {
    "a claim of what is not due": mutant(PICK, "and j.run_at <= pick_in_order.moment", ""),
    "a claim in the order of creation": mutant(
        PICK, "order by j.run_at, j.id", "order by j.id", "create", "claim"
    ),
    "a claim of the least important": mutant(PICK, "max(x.priority)", "min(x.priority)", "claim", "create"),
    "a claim of kinds without a handler": mutant(
        PICK, "pick_in_order.kinds", "array(select x.kind from public.job_kinds x)", "claim"
    ),
    "a claim without regard to what runs": mutant(
        "processor.room", "where j.queue = q.name and j.status = 'processing'", "where false", "claim"
    ),
    "a claim without tokens": mutant(
        "processor.room", "floor(processor.tokens(q, room.moment) + 1e-12)", "room.wanted", "claim"
    ),
    "tokens that are not taken": mutant("processor.take_tokens", "- take_tokens.how_many", "", "claim"),
    "a bucket that overflows": mutant("processor.refill", "least(refill.rate_limit,", "greatest(0,", "claim"),
    "an owner with more than the queue allows": mutant(
        TURNS, "q.max_processing_per_owner - theirs", "q.max_processing_per_owner", "claim"
    ),
    "an owner who always goes first": mutant(
        TURNS, "order by f.turn, f.place", "order by f.place", "claim", "create", "turn_a_knob"
    ),
    "turns that are forgotten": mutant(TURNS, "where t.queue = q.name", "where false", "claim", "create"),
    "a claim from a paused queue": mutant(
        "public.claim_jobs", "not x.paused", "true", "claim", "turn_a_knob"
    ),
    "a claim after the lease": mutant("public.claim_jobs", "or w.lease_expires_at < moment", ""),
    "a lost answer that orphans its jobs": mutant(
        "public.claim_jobs", "j.claim_id = claim_jobs.request_id", "false"
    ),
}
TRANSITIONS = {
    "items that never run again": mutant(
        CONCLUDE, "and i.status = 'failed' and i.error_retryable", "and false"
    ),
    "failures that are not counted": mutant(CONCLUDE, "j.failures + v.failed::int", "j.failures"),
    "crashes that are not counted": mutant(CONCLUDE, "j.crashes + 1", "j.crashes"),
    "a neighbour of the cause that is blamed": mutant(
        RESCUE, "and o.crashes > 0 and o.id <> j.id", "and false", "lose_a_worker", "claim"
    ),
    "suspicion that stays": mutant(
        CONCLUDE, "and not v.crashed then 0", "and false then 0", "lose_a_worker", "finish"
    ),
    "children that are not cancelled": mutant(CONCLUDE, "if parents is not null then", "if false then"),
    "an end that does not settle": mutant(CONCLUDE, "if settling is not null then", "if false then"),
    "a parent that sleeps for ever": mutant(
        TELL, "and p.children_open = t.ended then", "and false then", "finish", "spawn"
    ),
    "a parent that wakes too early": mutant(
        TELL, "and p.children_open = t.ended then", "then", "finish", "spawn"
    ),
    "a parent that fails against its will": mutant(TELL, "and p.on_child_failure = 'fail'", ""),
    "a retry of items that are done": mutant(
        "processor.repetition", "and i.status <> 'completed'", "", "retry", "finish"
    ),
    "a retry that is made twice": mutant("processor.repetition", "'retry_of', job.id,", "", "retry"),
    "a cancel that a failure forgets": mutant(
        DECIDE, "if retryable and j.cancelled then", "if false then", "cancel", "finish"
    ),
    "one attempt too many": mutant(
        DECIDE, "j.failures + 1 < j.max_attempts", "j.failures < j.max_attempts", "finish", "claim"
    ),
    "a wait without children": mutant(
        DECIDE, "outcome = 'wait' and j.children_total = 0", "false", "spawn", "finish", "claim"
    ),
    "a snooze that costs an attempt": mutant(
        "processor.requeueing", "false, null)::processor.verdict", "true, null)::processor.verdict"
    ),
    "delays that do not grow": mutant(
        "processor.retry_delay",
        "least(retry_delay.failures, cardinality(q.retry_delays))",
        "1",
        *("finish", "finish", "claim", "claim", "wait_with_all", "wait_alone"),
    ),
    "a rescue by whoever had lapsed": mutant(
        "public.heartbeat_worker", "w.lease_expires_at >= processor.now()", "true"
    ),
    "a rescue from the living": Mutant(
        [
            Change(RESCUE, "or w.lease_expires_at < moment)\n    limit", "or true)\n    limit"),
            Change(RESCUE, "or w.lease_expires_at < moment)\n    and", "or true)\n    and"),
        ]
    ),
    "a failure told again that counts again": mutant(
        "processor.finish_held_items", "is distinct from", "is not distinct from"
    ),
}
CREATION = {
    "more waiting than the queue allows": mutant(
        "processor.check_pending", "if o.there > o.most then", "if false then"
    ),
    "a delay that is not kept": mutant(
        DRAFT, "d.run_at := moment + make_interval(secs => e.delay_seconds::double precision);", ""
    ),
    "a parent that does not wait": mutant(DRAFT, "d.run_at := processor.never();", ""),
    "a job that replaces none": mutant(
        "processor.make_way", "if replaced is not null then", "if false then", "create"
    ),
}
OPERATORS = {
    "a move of what runs": Mutant(
        [
            Change(
                "processor.move_jobs",
                "and j.status = 'pending'\n    order by j.pri",
                "and j.finished_at is null\n    order by j.pri",
            ),
            Change(
                "processor.move_jobs", "and j.status = 'pending'\n    order by j.id", "\n    order by j.id"
            ),
        ],
        ("change_many", "claim"),
    ),
    "a prune of the last": mutant(
        "processor.prune_jobs",
        "offset q.retain_last limit 1",
        "offset greatest(q.retain_last - 1, 0) limit 1",
        "prune",
        "finish",
    ),
}
MUTANTS = CREDITS | FENCE | CLAIM | TRANSITIONS | CREATION | OPERATORS


@pytest.fixture(autouse=True)
def _on_one_server(request):
    # what a mutant does wrong does not depend on the version, and finding it takes seconds
    if "wheel" not in request.node.name:
        pytest.skip("one server is enough")


async def mutate(project: Project, changes: list[Change]) -> None:
    for function, before, after in changes:
        text = await project.sql("select pg_get_functiondef(to_regproc($1))", function)
        assert before in text, f"the mutation of {function} has nothing to change: adapt it"
        await project.connection.execute(text.replace(before, after))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_model_notices(server, name):
    with arena(server.dsn("jobs_shared")) as opened:
        opened.wait(mutate(opened.project, MUTANTS[name].changes))
        for number in LOOK_FOR:
            try:
                run_programs(Everything, opened, number, inclined=MUTANTS[name].inclined)
            except (AssertionError, asyncpg.PostgresError, ExceptionGroup, Flaky):
                return
    pytest.fail("nobody noticed")
