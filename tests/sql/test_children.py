"""Parents and children: fan-out, waiting, fan-in, and what becomes of a family when one of it fails."""

from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from tests.sql.harness import ALICE, BOB, NOON, Worker, done, failed, fence, fixture
from tests.sql.test_locks import FAMILY_TREE


@fixture
async def worker(project) -> Worker:
    await project.kind("merge", credits_per_job=5)
    await project.kind("part", credits_per_item=10)
    await project.kind("echo")
    await project.queue("default", retry_delays=[timedelta(0)], jitter=0)
    await project.grant(ALICE, 1000)
    await project.grant(BOB, 1000)
    return await project.worker(lease_seconds=3600)


@fixture(autouse=True)
async def _the_books_are_right(project):
    yield
    assert await project.faults() == []
    assert await project.rows(FAMILY_TREE) == []


def part(*keys, **columns):
    return {"kind": "part", "items": list(keys or ("a",))} | columns


async def family(project, *children, by=ALICE, **columns):
    """Create a parent with children; return it and them in order."""
    parent = await project.create("merge", by=by, children=list(children or (part(), part())), **columns)
    return parent, await children_of(project, parent)


async def children_of(project, parent):
    rows = await project.rows(
        "select to_jsonb(j) as job from public.jobs j where parent_id = $1 order by id", parent["id"]
    )
    return [row["job"] for row in rows]


async def work(worker, job, outcome="done", **report):
    items = [] if outcome != "done" else [done(item["key"]) for item in job["items"]]
    return await worker.finish(job, outcome, **({"items": items} if items else {}), **report)


async def claim_parts(worker, number):
    jobs = await worker.claim(number)
    assert [job["kind"] for job in jobs] == ["part"] * number
    return jobs


def ids(jobs):
    return [job["id"] for job in jobs]


async def spawn(worker, job, *jobs, **arguments):
    return await worker._call("spawn_jobs", parent=fence(job), jobs=list(jobs), **arguments)


async def parent_running(project, worker, **columns):
    await project.create("merge", by=ALICE, **columns)
    [job] = await worker.claim()
    return job


# waiting


async def test_a_parent_waits_for_its_children_and_the_last_one_wakes_it(project, worker):
    parent, children = await family(project)
    assert [child["parent_id"] for child in children] == [parent["id"]] * 2
    assert {child["owner_id"] for child in children} == {str(ALICE)}
    assert (parent["status"], parent["children_total"], parent["children_open"]) == ("pending", 2, 2)
    assert parent["run_at"].startswith("9999-12-31")
    assert await project.balance(ALICE) == (975, 25, 0)

    jobs = await worker.claim(10)
    assert ids(jobs) == ids(children)
    assert (await worker.heartbeat(*jobs))["next_due_at"] is None
    assert await project.rows("select * from processor.stuck_jobs") == []
    await work(worker, jobs[0], result="one")
    assert await worker.claim(10) == []
    await work(worker, jobs[1], result="two")
    assert datetime.fromisoformat((await worker.heartbeat())["next_due_at"]) <= NOON
    [job] = await worker.claim(10)
    assert job["id"] == parent["id"]
    assert job["children"] == [
        {
            "id": child["id"],
            "kind": "part",
            "status": "completed",
            "result": result,
            "error_code": None,
            "error_message": None,
        }
        for child, result in zip(children, ("one", "two"), strict=True)
    ]
    assert (await worker.finish(job))["status"] == "completed"
    assert await project.balance(ALICE) == (975, 0, 25)


async def test_a_parent_far_in_the_future_is_not_stuck_even_after_days(project, worker):
    await project.create("echo", children=[{"kind": "echo", "delay_seconds": 7 * 86400}])
    await project.later(days=6)
    await worker.heartbeat()
    assert await project.rows("select * from processor.stuck_jobs") == []
    assert datetime.fromisoformat((await worker.heartbeat())["next_due_at"]) == NOON + timedelta(days=7)


async def test_the_results_that_a_claim_brings_have_a_limit(project, worker):
    await family(project, *[part()] * 6)
    for job in await claim_parts(worker, 6):
        await work(worker, job, result="x" * 1_040_000)
    [job] = await worker.claim()
    assert [child["result"] is not None for child in job["children"]] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("columns", [{"run_at": NOON}, {"delay_seconds": 5}])
async def test_a_parent_with_a_time_of_its_own_is_refused(project, worker, columns):
    async with project.refused("JQ006", "when they have ended"):
        await family(project, **columns)


async def test_no_children_are_no_reason_to_wait(project, worker):
    await project.create("merge", by=ALICE, children=[])
    [job] = await worker.claim()
    assert job["children"] == []


async def test_the_credits_of_a_family_are_reserved_together(project, worker):
    await project.kind("part", credits_per_item=500)
    async with project.refused("PT402"):
        await family(project)


async def test_a_child_may_be_added_to_a_waiting_parent(project, worker):
    parent, _ = await family(project, part())
    child = await project.create("part", by=ALICE, items=["b"], parent_id=parent["id"])
    assert child["parent_id"] == parent["id"]
    for job in await claim_parts(worker, 2):
        await work(worker, job)
    assert ids(await worker.claim()) == [parent["id"]]


async def test_one_names_only_own_parents_that_have_not_ended(project, worker):
    parent, _ = await family(project)
    async with project.refused("JQ008", parent["id"]):
        await project.create("echo", by=BOB, parent_id=parent["id"])
    async with project.refused("JQ008"):
        await project.create("echo", by=ALICE, parent_id=uuid4())
    async with project.refused("JQ010", "owner of its parent"):
        await project.create("echo", owner_id=BOB, parent_id=parent["id"])
    async with project.refused("JQ010", "owner of its parent"):
        await project.create("merge", owner_id=ALICE, children=[part(owner_id=str(BOB))])
    async with project.refused("JQ006", "parent_id"):
        await project.create("merge", owner_id=ALICE, children=[part(parent_id=parent["id"])])
    await project.cancel(parent)
    async with project.refused("JQ009", "cancelled"):
        await project.create("echo", by=ALICE, parent_id=parent["id"])


async def test_a_key_that_a_stranger_to_the_family_has_is_a_conflict(project, worker):
    await project.create("echo", by=ALICE, idempotency_key="k")
    async with project.refused("JQ007", "k"):
        await family(project, {"kind": "echo", "idempotency_key": "k"})


async def test_a_parent_all_of_whose_children_are_others_does_not_wait_for_ever(project, worker):
    other = await project.create("echo", by=ALICE, unique_key="u")
    parent, children = await family(project, {"kind": "echo", "unique_key": "u", "on_conflict": "return"})
    assert (children, parent["children_total"]) == ([], 0)
    assert ids(await worker.claim(5)) == [other["id"], parent["id"]]


async def test_a_family_created_again_by_its_key_is_the_same(project, worker):
    parent, children = await family(project, idempotency_key="k")
    again, same = await family(project, idempotency_key="k")
    assert (again, same) == (parent, children)
    assert await project.balance(ALICE) == (975, 25, 0)


async def test_families_have_at_most_twenty_levels(project, worker):
    tree = {"kind": "echo"}
    for _ in range(20):
        tree = {"kind": "echo", "children": [tree]}
    top = await project.create(**tree)
    async with project.refused("JQ006", "20 levels"):
        await project.create("echo", children=[tree])
    lowest = await project.sql("select max(id::text) from public.jobs")
    async with project.refused("JQ006", "20 levels"):
        await project.create("echo", parent_id=lowest)
    for _ in range(21):
        [job] = await worker.claim(5)
        await worker.finish(job)
    assert (await project.job(top))["status"] == "completed"


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_the_end_of_the_oldest_or_the_youngest_reaches_all_levels(project, worker, end):
    tree = {"kind": "merge", "on_child_failure": "fail"}
    for _ in range(20):
        tree = {"kind": "merge", "children": [tree], "on_child_failure": "fail"}
    top = await project.create(**tree, by=ALICE)
    if end == "cancel":
        await project.cancel(top)
    else:
        [job] = await worker.claim(5)
        await worker.finish(job, "fail", error_code="X")
    statuses = await project.rows("select distinct status from public.jobs")
    assert [row["status"] for row in statuses] == ["cancelled" if end == "cancel" else "failed"]
    assert await project.balance(ALICE) == (1000, 0, 0)


# failing


async def test_a_parent_that_goes_on_sees_what_failed(project, worker):
    parent, _ = await family(project)
    one, two = await claim_parts(worker, 2)
    await work(worker, one, "fail", error_code="REJECTED", error_message="no")
    assert await worker.claim() == []
    await work(worker, two)
    [job] = await worker.claim()
    assert [(c["status"], c["error_code"]) for c in job["children"]] == [
        ("failed", "REJECTED"),
        ("completed", None),
    ]
    assert (await project.job(parent))["children_failed"] == 1


async def test_a_parent_that_fails_with_its_child_is_refunded_and_its_other_children_are_cancelled(
    project, worker
):
    parent, children = await family(project, *[part()] * 3, on_child_failure="fail")
    one, two = await claim_parts(worker, 2)
    await work(worker, one, "fail", error_code="REJECTED")
    row = await project.job(parent)
    assert (row["status"], row["error_code"], row["credits_refunded"]) == ("failed", "CHILD_FAILED", 5)
    assert row["error_message"] == "1 of 3 children did not complete"
    assert (await project.job(children[2]))["status"] == "cancelled"
    assert (await project.job(children[1]))["cancel_requested_at"] is not None
    assert (await worker.heartbeat(two))["cancel"] == [two["id"]]
    await work(worker, two, "cancelled")
    assert await project.balance(ALICE) == (1000, 0, 0)
    assert (await project.job(parent))["children_failed"] == 3


async def test_a_parent_that_fails_with_its_child_is_partial_if_some_of_its_items_are_done(project, worker):
    parent = await project.create("part", by=ALICE, items=["x", "y"])
    [job] = await worker.claim()
    await spawn(worker, job, part(), on_child_failure="fail")
    await worker.finish_items(job, done("x"))
    await worker.finish(job, "wait")
    [child] = await worker.claim()
    await work(worker, child, "fail")
    row = await project.job(parent)
    assert (row["status"], row["error_code"]) == ("partial", "CHILD_FAILED")
    assert (row["credits_captured"], row["credits_refunded"]) == (10, 10)


async def test_a_running_parent_fails_when_it_waits_for_a_child_that_has_failed(project, worker):
    job = await parent_running(project, worker)
    await spawn(worker, job, part(), part(), on_child_failure="fail")
    one, _ = await claim_parts(worker, 2)
    await work(worker, one, "fail")
    assert (await project.job(job))["status"] == "processing"
    assert (await worker.finish(job, "wait"))["status"] == "failed"
    assert (await project.job(job))["error_code"] == "CHILD_FAILED"
    assert [child["status"] for child in await children_of(project, job)] == ["failed", "processing"]


async def test_a_running_parent_that_goes_on_waits_for_the_others(project, worker):
    job = await parent_running(project, worker)
    await spawn(worker, job, part(), part())
    one, two = await claim_parts(worker, 2)
    await work(worker, one, "fail")
    assert (await worker.finish(job, "wait"))["status"] == "pending"
    assert await worker.claim() == []
    await work(worker, two)
    assert ids(await worker.claim()) == [job["id"]]


# spawning


async def test_a_handler_spawns_children_and_waits(project, worker):
    job = await parent_running(project, worker)
    answer = await spawn(worker, job, part("a"), part("b"))
    assert (answer["stale"], [child["created"] for child in answer["jobs"]]) == (False, [True, True])
    assert ids(answer["jobs"]) == ids(await children_of(project, job))
    waiting = await worker.finish(job, "wait", message="waiting for two")
    assert (waiting["status"], waiting["run_at"][:4]) == ("pending", "9999")
    row = await project.job(job)
    assert (row["failures"], row["progress_message"], row["credits_held"]) == (0, "waiting for two", 5)
    for child in await claim_parts(worker, 2):
        await work(worker, child)
    [again] = await worker.claim()
    assert (again["id"], again["attempt"], len(again["children"])) == (job["id"], 2, 2)
    assert (await worker.finish(again))["status"] == "completed"


async def test_waiting_for_children_who_have_ended_runs_at_once(project, worker):
    job = await parent_running(project, worker)
    await spawn(worker, job, part())
    [child] = await claim_parts(worker, 1)
    await work(worker, child)
    assert datetime.fromisoformat((await worker.finish(job, "wait"))["run_at"]) == NOON
    assert ids(await worker.claim()) == [job["id"]]


async def test_waiting_without_children_is_an_error(project, worker):
    job = await parent_running(project, worker)
    answer = await worker.finish(job, "wait")
    assert (answer["status"], answer["error"][:5]) == ("processing", "JQ006")


async def test_spawning_again_returns_the_same_children(project, worker):
    job = await parent_running(project, worker)
    first = await spawn(worker, job, part("a", key="x"), part("b"))
    again = await spawn(worker, job, part("a", key="x"), part("b"))
    assert again["jobs"] == [child | {"created": False} for child in first["jobs"]]
    await worker.release(job)
    [later] = [j for j in await worker.claim(9) if j["id"] == job["id"]]
    third = await spawn(worker, later, part("a", key="x"), part("b"), part("c"))
    assert [child["created"] for child in third["jobs"]] == [False, False, True]
    async with project.refused("JQ007"):
        await spawn(worker, later, part("other", key="x"))


async def test_spawning_keeps_or_changes_what_a_failure_means(project, worker):
    job = await parent_running(project, worker)
    for given, kept in ((None, "continue"), ("fail", "fail"), (None, "fail"), ("continue", "continue")):
        await spawn(worker, job, part(), on_child_failure=given)
        assert (await project.job(job))["on_child_failure"] == kept
    async with project.refused("JQ006", "continue, fail"):
        await spawn(worker, job, part(), on_child_failure="perhaps")


@pytest.mark.parametrize("late", ["attempt", "worker", "ended", "gone"])
async def test_a_late_spawn_is_stale_and_makes_nothing(project, worker, late):
    job = await parent_running(project, worker)
    before = await project.counts()
    caller = worker
    if late == "attempt":
        job = job | {"attempt": 2}
    elif late == "worker":
        caller = await project.worker()
        before = await project.counts()
    elif late == "ended":
        await worker.finish(job)
        before = await project.counts()
    else:
        job = {"id": str(uuid4()), "attempt": 1}
    assert await spawn(caller, job, part()) == {"stale": True, "jobs": []}
    assert await project.counts() == before


async def test_nothing_spawned_is_nothing(project, worker):
    job = await parent_running(project, worker)
    assert await spawn(worker, job) == {"stale": False, "jobs": []}
    for bad in ("part", 5, None):
        async with project.refused("JQ006", "object"):
            await spawn(worker, job, bad)


# cancelling, retrying, rescuing


async def test_cancelling_a_parent_cancels_its_descendants(project, worker):
    parent, _ = await family(project, part(), {"kind": "merge", "children": [part(), part()]})
    [running, _] = await claim_parts(worker, 2)
    await project.cancel(parent, by=ALICE)
    rows = await project.rows("select status, count(*) from public.jobs group by 1 order by 1")
    assert [tuple(row.values()) for row in rows] == [("cancelled", 3), ("processing", 2)]
    asked = await project.rows("select id::text from public.jobs where status = 'processing'")
    assert set((await worker.heartbeat(running))["cancel"]) == {row["id"] for row in asked}
    for job_id in (await worker.heartbeat())["cancel"]:
        await worker.finish({"id": job_id, "attempt": 1}, "cancelled")
    assert await project.balance(ALICE) == (1000, 0, 0)


async def test_cancelling_a_running_parent_cancels_its_children_when_it_has_stopped(project, worker):
    job = await parent_running(project, worker)
    await spawn(worker, job, part(), part())
    await project.cancel(job, by=ALICE)
    assert (await worker.finish(job, "wait"))["status"] == "cancelled"
    assert {child["status"] for child in await children_of(project, job)} == {"cancelled"}
    assert await project.balance(ALICE) == (1000, 0, 0)


async def test_a_child_that_was_in_other_hands_is_asked_to_stop_by_the_next_heartbeat(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    parent = await one.create("echo", children=[{"kind": "echo"}])
    worker = await two.worker()
    async with two.connection.transaction():
        [child] = await worker.claim()
        await one.cancel(parent)
    assert (await one.job(child))["cancel_requested_at"] is None
    assert (await worker.heartbeat(child))["cancel"] == [child["id"]]


async def test_a_cancelled_child_counts_as_failed(project, worker):
    parent, children = await family(project, part(), part(), on_child_failure="fail")
    await project.cancel(children[0], by=ALICE)
    assert (await project.job(parent))["error_code"] == "CHILD_FAILED"
    assert await project.balance(ALICE) == (1000, 0, 0)


async def test_retrying_a_parent_repeats_what_is_unfinished_and_waits_for_it(project, worker):
    parent, children = await family(project, part("a"), part("b", "c"), part("d"), on_child_failure="fail")
    one, two = await claim_parts(worker, 2)
    await work(worker, one, result="one")
    await worker.finish(two, "fail", items=[done("b"), failed("c")])
    assert (await project.job(parent))["status"] == "failed"

    new = await project.retry(parent, by=ALICE)
    repeated = await children_of(project, new)
    assert (new["retry_of"], new["children_open"], new["run_at"][:4]) == (parent["id"], 2, "9999")
    assert [child["retry_of"] for child in repeated] == ids(children[1:])
    assert [list(await project.items(child)) for child in repeated] == [["c"], ["d"]]
    assert (await project.retry(parent, by=ALICE))["id"] == new["id"]
    assert await project.balance(ALICE) == (1000 - 20 - 25, 25, 20)
    for job in await claim_parts(worker, 2):
        await work(worker, job, result="late")
    [job] = await worker.claim()
    assert job["id"] == new["id"]
    assert [(c["id"], c["result"]) for c in job["children"]] == [
        (children[0]["id"], "one"), (repeated[0]["id"], "late"), (repeated[1]["id"], "late"),
    ]  # fmt: skip


async def test_retrying_a_parent_that_failed_by_itself_brings_its_childrens_results(project, worker):
    parent, _ = await family(project, part())
    [child] = await claim_parts(worker, 1)
    await work(worker, child, result="one")
    [job] = await worker.claim()
    await worker.finish(job, "fail", error_code="BROKEN")
    new = await project.retry(parent, by=ALICE)
    [again] = await worker.claim()
    assert (again["id"], [c["result"] for c in again["children"]]) == (new["id"], ["one"])


async def test_a_child_with_nothing_left_does_not_keep_its_parent_from_being_retried(project, worker):
    parent, _ = await family(project, part("a"), part("b"), on_child_failure="fail")
    one, _two = await claim_parts(worker, 2)
    assert (await worker.finish(one, "fail", items=[done("a")]))["status"] == "partial"
    new = await project.retry(parent, by=ALICE)
    assert (new["status"], new["children_total"]) == ("pending", 0)


async def test_everything_again_repeats_every_child_but_those_that_the_handler_spawns(project, worker):
    parent, _ = await family(project, part("a"), part("b", "c"))
    for job in await claim_parts(worker, 2):
        await work(worker, job, result="old")
    [running] = await worker.claim()
    assert [child["result"] for child in running["children"]] == ["old", "old"]
    await spawn(worker, running, part("d") | {"key": "spawned"})
    await worker.finish(running, "wait")
    [spawned] = await claim_parts(worker, 1)
    await work(worker, spawned)
    [running] = await worker.claim()
    await worker.finish(running)

    new = await project.retry(parent, by=ALICE, all_items=True)
    repeated = await children_of(project, new)
    assert [list(await project.items(child)) for child in repeated] == [["a"], ["b", "c"]]
    assert (new["children_open"], new["run_at"][:4]) == (2, "9999")
    assert await project.retry(parent, by=ALICE, all_items=True) == new
    for job in await claim_parts(worker, 2):
        await work(worker, job, result="new")
    [running] = await worker.claim()
    # what the first ones came to is not taken over
    assert [(c["id"], c["result"]) for c in running["children"]] == [(i, "new") for i in ids(repeated)]
    [again] = (await spawn(worker, running, part("d") | {"key": "spawned"}))["jobs"]
    assert again["created"]


async def test_a_family_in_which_a_child_was_repeated_before_is_repeated_whole(project, worker):
    parent, children = await family(project, part("a"), part("b"))
    for job in await claim_parts(worker, 2):
        await work(worker, job)
    [running] = await worker.claim()
    await worker.finish(running)
    alone = await project.retry(children[0], by=ALICE, all_items=True)
    new = await project.retry(parent, by=ALICE, all_items=True)
    repeated = await children_of(project, new)
    assert [child["retry_of"] for child in repeated] == ids(children)
    assert alone["id"] not in ids(repeated)


async def test_a_child_is_retried_by_itself(project, worker):
    parent, children = await family(project, part("a"), part("b"))
    one, two = await claim_parts(worker, 2)
    await work(worker, one, "fail")
    new = await project.retry(children[0], by=ALICE)
    assert (new["retry_of"], new["parent_id"]) == (children[0]["id"], None)
    await work(worker, two)
    assert parent["id"] in ids(await worker.claim(5))


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ({"unique_key": "u", "on_conflict": "return"}, "on_conflict must be error or replace"),
        ({"key": "#1"}, "the key #1 of a child begins with #"),
    ],
)
async def test_a_child_that_could_be_mistaken_for_another_is_refused(project, worker, child, words):
    job = await parent_running(project, worker)
    async with project.refused("JQ006", words):
        await spawn(worker, job, part(**child))


async def test_children_without_a_key_are_told_apart_by_their_number(project, worker):
    job = await parent_running(project, worker)
    [first] = (await spawn(worker, job, part(number=1)))["jobs"]
    [second] = (await spawn(worker, job, part(number=2)))["jobs"]
    again = (await spawn(worker, job, part(), part()))["jobs"]
    assert again == [{"id": one["id"], "created": False} for one in (first, second)]


async def test_children_and_parents_of_dead_workers_are_rescued(project, worker):
    job = await parent_running(project, worker)
    await spawn(worker, job, part(), part(), on_child_failure="fail")
    one, two = await claim_parts(worker, 2)
    for crashes in (1, 2, 3):
        other = await project.worker(lease_seconds=3600)
        await project.sql(
            "update public.job_workers set lease_expires_at = $1 where id = $2",
            NOON - timedelta(seconds=1),
            worker.id,
        )
        await other.heartbeat()
        rows = await project.rows("select status, crashes, error_code from public.jobs order by id")
        if crashes < 3:
            assert [(row["status"], row["crashes"]) for row in rows] == [("pending", crashes)] * 3
            claimed = await other.claim(3)
            # any of them may have been the cause twice: from then on they run one at a time
            assert ids(claimed) == ids([job, one, two] if crashes == 1 else [job])
        worker = other
    assert [row["status"] for row in rows] == ["failed", "cancelled", "cancelled"]
    assert rows[0]["error_code"] == "WORKER_CRASHED"
    assert await project.balance(ALICE) == (1000, 0, 0)


@pytest.mark.parametrize("order", ["parent first", "child first"])
@pytest.mark.parametrize(
    ("parents", "childs", "status"),
    [
        ("wait", "done", "pending"),
        ("wait", "fail", "failed"),
        ("done", "done", "completed"),
        ("fail", "done", "failed"),
    ],
)
async def test_a_parent_and_its_child_end_in_one_batch(project, worker, order, parents, childs, status):
    job = await parent_running(project, worker)
    await spawn(worker, job, part(), part(), on_child_failure="fail")
    one, two = await claim_parts(worker, 2)
    items = [done("a")] if childs == "done" else []
    reports = [
        fence(job) | {"outcome": parents},
        *(fence(child) | {"outcome": childs, "items": items} for child in (one, two)),
    ]
    answers = await worker.finish_all(reports if order == "parent first" else reports[::-1])
    assert not [answer["error"] for answer in answers if answer["error"]]
    row = await project.job(job)
    assert row["status"] == status
    if status == "pending":
        assert ids(await worker.claim()) == [job["id"]]


async def test_the_children_of_a_parent_that_has_not_ended_are_not_pruned(project, worker):
    await project.queue("default", retain_for=timedelta(0), retain_last=0)
    parent, _ = await family(project)
    for job in await claim_parts(worker, 2):
        await work(worker, job)
    await project.later(days=30)
    assert await project.sql("select processor.prune_jobs()") == 0
    await project.cancel(parent)
    await project.later(days=1)
    assert await project.sql("select processor.prune_jobs()") == 3
