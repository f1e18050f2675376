"""Checkpoints: a step that is completed is known to every later attempt, and to a job that repeats it."""

import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from processor.jsonb import as_stored, to_jsonb
from tests.sql.harness import ALICE, NOON, Project, Row, Worker, done, fence, fixture

MIB = 1024 * 1024


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    return await project.worker()


async def save(worker: Worker, job: Row, **results: Any) -> list[Row]:
    """Store checkpoints by name; return the answers."""
    wanted = [fence(job) | {"name": name, "result": result} for name, result in results.items()]
    answer = await worker.project.call("save_checkpoints", worker_id=worker.id, checkpoints=wanted)
    return answer["results"]


async def read(worker: Worker, job: Row, name: str) -> Row:
    return await worker.project.call("read_checkpoint", worker_id=worker.id, job=fence(job), name=name)


async def again(worker: Worker, job: Row) -> Row:
    """Give the job back and claim it once more."""
    await worker.release(job)
    [claimed] = await worker.claim()
    assert claimed["id"] == job["id"]
    return claimed


async def stored(project: Project, job: Row) -> dict[str, Any]:
    rows = await project.rows(
        "select name, result from public.job_checkpoints where job_id = $1 order by created_at, name",
        job["id"],
    )
    return {row["name"]: row["result"] for row in rows}


async def test_a_first_claim_carries_none_and_the_next_one_all_in_the_order_of_saving(project, worker):
    await project.create()
    [job] = await worker.claim()
    assert job["checkpoints"] == []
    assert await save(worker, job, zebra={"n": 1}) == [{"id": job["id"], "stale": False, "error": None}]
    await project.later(seconds=1)
    await save(worker, job, ant=None, bee=[1.5, "x"])
    assert (await again(worker, job))["checkpoints"] == [
        {"name": "zebra", "result": {"n": 1}, "left_out": False},
        {"name": "ant", "result": None, "left_out": False},
        {"name": "bee", "result": [1.5, "x"], "left_out": False},
    ]


@pytest.mark.parametrize("outcome", ["retry", "snooze"])
async def test_checkpoints_outlive_a_retry_and_a_snooze(project, worker, outcome):
    await project.create()
    [job] = await worker.claim()
    await save(worker, job, fetched="page")
    await worker.finish(job, outcome, delay_seconds=0)
    [later] = await worker.claim()
    assert [step["name"] for step in later["checkpoints"]] == ["fetched"]


async def test_saving_again_changes_nothing_and_another_result_is_an_error(project, worker):
    await project.create()
    [job] = await worker.claim()
    await save(worker, job, fetched={"a": 1})
    [same] = await save(worker, job, fetched={"a": 1})
    assert same["error"] is None
    [other] = await save(worker, job, fetched={"a": 2})
    assert other["error"] == "JQ006: checkpoint fetched is there already, with another result"
    assert await stored(project, job) == {"fetched": {"a": 1}}


async def test_a_stale_worker_saves_nothing_and_reads_nothing(project, worker):
    await project.create()
    [old] = await worker.claim()
    await save(worker, old, first=1)
    new = await again(worker, old)
    stranger = await project.worker()
    for who, job in ((worker, old), (stranger, new), (worker, new | {"attempt": 3})):
        [answer] = await save(who, job, second=2)
        assert answer == {"id": old["id"], "stale": True, "error": None}
        assert await read(who, job, "first") == {"stale": True}
    assert await stored(project, old) == {"first": 1}
    await worker.finish(new)
    [late] = await save(worker, new, third=3)
    assert late["stale"]


async def test_bad_elements_are_answered_with_their_errors_and_spoil_no_other(project, worker):
    await project.create()
    [job] = await worker.claim()
    deep: Any = 1
    for _ in range(101):
        deep = [deep]
    bad = [
        fence(job) | {"name": "", "result": 1},
        fence(job) | {"result": 1},
        fence(job) | {"name": "x" * 201, "result": 1},
        fence(job) | {"name": "nothing"},
        fence(job) | {"name": "deep", "result": deep},
        fence(job) | {"name": "big", "result": "x" * MIB},
        fence(job) | {"name": "good", "result": "x" * (MIB - 2)},
    ]
    answer = await project.call("save_checkpoints", worker_id=worker.id, checkpoints=bad)
    errors = [element["error"] for element in answer["results"]]
    assert [error and error[:5] for error in errors] == [*["JQ006"] * 4, "JQ003", "JQ004", None]
    assert "the result of checkpoint big is too large" in errors[5]
    assert list(await stored(project, job)) == ["good"]


async def test_saving_tells_of_jobs_to_cancel(project, worker):
    job = await project.create()
    [claimed] = await worker.claim()
    await project.cancel(job)
    wanted = [fence(claimed) | {"name": "one", "result": 1}]
    answer = await project.call("save_checkpoints", worker_id=worker.id, checkpoints=wanted)
    assert answer["cancel"] == [job["id"]]
    assert await stored(project, job) == {"one": 1}


async def test_a_job_has_at_most_a_thousand(project, worker):
    await project.create()
    [job] = await worker.claim()
    await save(worker, job, **{f"step {n}": n for n in range(1000)})
    [answer] = await save(worker, job, more=1)
    assert "checkpoint more is one too many" in answer["error"]
    [known] = await save(worker, job, **{"step 999": 999})
    assert known["error"] is None
    assert len(await stored(project, job)) == 1000


async def test_a_claim_carries_four_mebibytes_and_says_what_it_leaves_out(project, worker):
    await project.create()
    [job] = await worker.claim()
    for n in range(6):
        await save(worker, job, **{f"step {n}": str(n) * (MIB - 2)})
        await project.later(seconds=1)
    job = await again(worker, job)
    assert [(step["name"], step["left_out"]) for step in job["checkpoints"]] == [
        (f"step {n}", n >= 4) for n in range(6)
    ]
    assert [step["result"] is None for step in job["checkpoints"]] == [n >= 4 for n in range(6)]
    assert await read(worker, job, "step 5") == {"stale": False, "result": "5" * (MIB - 2)}
    async with project.refused("JQ006", "the job has no checkpoint step 9"):
        await read(worker, job, "step 9")


async def test_a_retried_job_inherits_what_the_old_one_did_and_keeps_it_when_that_is_pruned(project, worker):
    await project.queue(retain_for=timedelta(days=1), retain_last=0)
    old = await project.create()
    [job] = await worker.claim()
    await save(worker, job, fetched="page", parsed=None)
    await worker.finish(job, "fail")
    new = await project.retry(old)
    assert (await project.retry(old))["id"] == new["id"]
    await project.later(days=2)
    assert await project.sql("select processor.prune_jobs()") == 1
    assert await stored(project, old) == {}
    worker = await project.worker()
    [claimed] = await worker.claim()
    assert claimed["id"] == new["id"]
    assert [step["name"] for step in claimed["checkpoints"]] == ["fetched", "parsed"]
    origin = "select attempt, created_at from public.job_checkpoints"
    assert await project.rows(origin) == [{"attempt": 0, "created_at": NOON}] * 2
    # a repetition of the repetition has them as well, and what came to them
    await save(worker, claimed, sent=True)
    await worker.finish(claimed, "fail")
    last = await project.retry(new)
    assert await stored(project, last) == {"fetched": "page", "parsed": None, "sent": True}


async def test_repeated_children_inherit_their_own(project, worker):
    await project.create(children=[{"kind": "echo", "payload": {"n": n}} for n in (1, 2)])
    for child in await worker.claim(2):
        await save(worker, child, fetched=child["payload"]["n"])
        await worker.finish(child, "fail")
    [parent] = await worker.claim()
    await save(worker, parent, mine="parent's")
    await worker.finish(parent, "fail")
    new = await project.retry(parent)
    assert await stored(project, new) == {"mine": "parent's"}
    for child in await worker.claim(2):
        assert child["parent_id"] == new["id"]
        assert [step["result"] for step in child["checkpoints"]] == [child["payload"]["n"]]


async def test_a_job_that_repeats_nothing_inherits_nothing(project, worker):
    first = await project.create(idempotency_key="k", items=["a", "b"])
    [job] = await worker.claim()
    await save(worker, job, fetched=1)
    await worker.finish(job, "fail", items=[done("a")])
    second = await project.create(items=["a", "b"])
    assert await stored(project, second) == {}
    assert (await project.create(idempotency_key="k", items=["a", "b"]))["id"] == first["id"]
    assert await stored(project, first) == {"fetched": 1}


async def test_deleting_a_job_deletes_its_checkpoints(project, worker):
    await project.create()
    [job] = await worker.claim()
    await save(worker, job, fetched=1)
    await project.sql("delete from public.jobs where id = $1", job["id"])
    assert await stored(project, job) == {}


async def test_owners_and_workers_do_not_see_them_and_the_service_does(project, worker):
    await project.create(owner_id=ALICE)
    [job] = await worker.claim()
    await save(worker, job, fetched="internal")
    query = "select name from public.job_checkpoints"
    for by in (ALICE, "anon", "job_processor"):
        async with project.refused("42501"), project.acting(by, api=True):
            await project.rows(query)
    async with project.acting("service_role", api=True):
        assert await project.rows(query) == [{"name": "fetched"}]


async def test_everything_again_begins_without_checkpoints(project):
    await project.kind("echo")
    worker = await project.worker()
    old = await project.create()
    [job] = await worker.claim()
    await save(worker, job, fetched=1)
    await worker.finish(job, "fail")
    again = await project.retry(old, all_items=True)
    await project.retry(old)
    jobs = {job["id"]: job["checkpoints"] for job in await worker.claim(2)}
    assert jobs.pop(again["id"]) == []
    assert [[step["name"] for step in steps] for steps in jobs.values()] == [["fetched"]]


async def test_two_reports_of_one_checkpoint_at_once_do_not_meet_at_the_index(database):
    """The second waits for the job, which the first one holds, and finds its checkpoint there."""
    first, second = await database.project(), await database.project()
    await first.kind("echo")
    worker = await first.worker()
    await first.create()
    [job] = await worker.claim()
    async with first.connection.transaction():
        await save(worker, job, fetched=1)
        await second.connection.execute("set lock_timeout = '100ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await save(worker.through(second), job, fetched=1)
    [answer] = await save(worker.through(second), job, fetched=1)
    assert answer["error"] is None


@pytest.mark.parametrize(
    "value",
    [
        {"long": 1, "b": 2, "a": {"é": 1, "zz": 2}},
        [1e23, 1e-7, 1.5e300, -1e16, 1e15, 123456789012345678.0, 2.0, 0.1, 10**40, 5e-324],
        [True, False, None, "1e+23", "\\u0000", ["x", {}], -1],
    ],
)
async def test_what_a_handler_gets_at_once_is_what_jsonb_gives_back(project, value):
    """Types and the order of keys included."""
    text = await project.sql("select $1::jsonb::text", to_jsonb(value))
    assert json.dumps(as_stored(to_jsonb(value))) == json.dumps(json.loads(text))
