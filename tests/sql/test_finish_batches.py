"""finish_jobs with many reports: each is decided on its own, whatever the others are."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, Worker, done, fence, fixture

CAROL = "ca401000-0000-4000-8000-000000000003"


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("report", credits_per_job=7)
    for owner in (ALICE, BOB, CAROL):
        await project.grant(owner, 1000)
    return await project.worker(slots=1000)


async def claimed(project, worker, *owners, kind="report"):
    jobs = [{"kind": kind, "owner_id": str(owner) if owner else None} for owner in owners]
    await project.call("create_jobs", jobs=jobs)
    return await worker.claim(1000)


def finished(jobs, outcome="done", **report):
    return [fence(job) | {"outcome": outcome} | report for job in jobs]


async def test_a_thousand_jobs_of_many_owners_end_in_one_call(project, worker):
    owners = [ALICE, BOB, None, uuid4()] * 250
    for owner in set(owners) - {None, ALICE, BOB}:
        await project.grant(owner, 1750)
    for owner in (ALICE, BOB):
        await project.grant(owner, 750)
    jobs = await claimed(project, worker, *owners)
    answers = await worker.finish_all(finished(jobs))
    assert [answer["id"] for answer in answers] == [job["id"] for job in jobs]
    assert {(a["status"], a["stale"], a["error"]) for a in answers} == {("completed", False, None)}
    assert await project.balance(ALICE) == (0, 0, 1750)
    assert await project.faults() == []


async def test_answers_come_in_the_order_of_the_reports_not_of_the_ids(project, worker):
    jobs = await claimed(project, worker, *[ALICE] * 6)
    order = [jobs[n] for n in (3, 0, 5, 1, 4, 2)]
    answers = await worker.finish_all(finished(order))
    assert [answer["id"] for answer in answers] == [job["id"] for job in order]
    again = await worker.finish_all(finished(order[::-1]))
    assert [answer["id"] for answer in again] == [job["id"] for job in order[::-1]]
    assert {answer["stale"] for answer in again} == {True}


STRANGE = {
    "an id that is no uuid": {"id": "abc", "attempt": 1, "outcome": "done"},
    "an endless id": {"id": "x" * 100_000, "attempt": 1, "outcome": "done"},
    "a number as id": {"id": 7, "attempt": 1, "outcome": "done"},
    "no id": {"attempt": 1, "outcome": "done"},
    "an object as id": {"id": {"x": 1}, "attempt": 1, "outcome": "done"},
    "a number": 5,
    "a text": "done",
    "null": None,
    "a list": [1],
}


@pytest.mark.parametrize("case", STRANGE)
async def test_a_report_about_nothing_spoils_no_other(project, worker, case):
    jobs = await claimed(project, worker, ALICE, BOB)
    strange = STRANGE[case]
    first, bad, last = await worker.finish_all([*finished(jobs[:1]), strange, *finished(jobs[1:])])
    assert [first["status"], last["status"]] == ["completed", "completed"]
    assert (bad["status"], bool(bad["error"]) or bad["stale"]) == (None, True)
    assert len(str(bad)) < 1000
    assert await project.faults() == []


@pytest.mark.parametrize("attempt", ["one", 1.5, 10**12, {}, None])
async def test_an_attempt_that_is_no_number_spoils_no_other(project, worker, attempt):
    one, two = await claimed(project, worker, ALICE, BOB)
    bad, good = await worker.finish_all(finished([one | {"attempt": attempt}, two]))
    assert (bad["status"], bool(bad["error"]) or bad["stale"]) == ("processing", True)
    assert good["status"] == "completed"


async def test_a_corrupt_account_spoils_no_other(project, worker):
    alice, bob, free = await claimed(project, worker, ALICE, BOB, None)
    await project.sql(
        "update public.credit_accounts set held = 0, available = available + held where owner_id = $1", ALICE
    )
    answers = await worker.finish_all(finished([alice, bob, free]))
    assert [answer["status"] for answer in answers] == ["processing", "completed", "completed"]
    assert answers[0]["error"]
    assert await project.balance(BOB) == (993, 0, 7)


async def test_a_corrupt_hold_spoils_no_other(project, worker):
    jobs = await claimed(project, worker, ALICE, ALICE, BOB)
    await project.sql(
        "alter table public.credit_holds add constraint broken check (job_id <> '"
        + jobs[0]["id"]
        + "' or closed_at is null)"
    )
    answers = await worker.finish_all(finished(jobs))
    assert [answer["status"] for answer in answers] == ["processing", "completed", "completed"]
    assert answers[0]["error"].startswith("23514: ")
    assert await project.balance(ALICE) == (986, 7, 7)
    await project.sql("alter table public.credit_holds drop constraint broken")
    assert (await worker.finish(jobs[0]))["status"] == "completed"
    assert await project.faults() == []


async def test_good_and_bad_and_late_and_repeated_ones_in_one_batch(project, worker):
    jobs = await claimed(project, worker, *[ALICE] * 7)
    await worker.finish(jobs[0])
    reports = [
        *finished(jobs[:1]),
        *finished(jobs[1:2], "perhaps"),
        *finished(jobs[2:3], "retry", error_code="X"),
        *finished(jobs[3:4], "done", result="x" * 1_048_577),
        *finished(jobs[4:5], "done", items=[done("nothing")]),
        *finished(jobs[5:6], "fail", error_code="X"),
        *finished(jobs[5:6], "done"),
        *finished(jobs[6:7], "snooze", delay_seconds=5),
    ]
    answers = await worker.finish_all(reports)
    assert [(a["status"], a["stale"], (a["error"] or "")[:5]) for a in answers] == [
        ("completed", True, ""), ("processing", False, "JQ006"), ("pending", False, ""),
        ("processing", False, "JQ004"), ("processing", False, "JQ005"), ("failed", False, ""),
        ("failed", True, ""), ("pending", False, ""),
    ]  # fmt: skip
    assert await project.balance(ALICE) == (1000 - 5 * 7 - 7, 35, 7)
    assert await project.faults() == []


async def test_a_batch_that_meets_trouble_of_the_server_is_repeated_as_a_whole(database):
    one, two = await database.project(), await database.project()
    await one.kind("report", credits_per_job=7)
    await one.grant(ALICE, 100)
    worker = await two.worker()
    for _ in range(3):
        await one.create("report", owner_id=ALICE)
    jobs = await worker.claim(3)
    await two.connection.execute("set lock_timeout = '50ms'")
    reports = [*finished(jobs[:2]), *finished(jobs[2:], "perhaps")]
    async with one.connection.transaction():
        await one.sql("select 1 from public.credit_holds where job_id = $1 for update", jobs[1]["id"])
        with pytest.raises(asyncpg.LockNotAvailableError):
            await worker.finish_all(reports)
        assert await two.sql("select count(*) from public.jobs where status = 'processing'") == 3
    answers = await worker.finish_all(reports)
    assert [answer["status"] for answer in answers] == ["completed", "completed", "processing"]
    assert await one.faults() == []


async def test_batches_that_overlap_have_each_effect_once(database):
    projects = [await database.project() for _ in range(4)]
    await projects[0].kind("report", credits_per_job=7)
    await projects[0].grant(ALICE, 1000)
    worker = await projects[0].worker()
    await projects[0].call("create_jobs", jobs=[{"kind": "report", "owner_id": str(ALICE)}] * 60)
    jobs = await worker.claim(60)

    async def finish(number, project):
        mine = jobs[10 * number : 10 * number + 30]
        reports = [
            *finished(mine[:: -1 if number % 2 else 1]),
            {"id": "no uuid", "attempt": 1, "outcome": "done"},
        ]
        answers = await worker.through(project).finish_all(reports)
        return sum(not answer["stale"] and not answer["error"] for answer in answers)

    assert sum(await asyncio.gather(*(finish(n, p) for n, p in enumerate(projects)))) == 60
    assert await projects[0].balance(ALICE) == (580, 0, 420)
    assert await projects[0].faults() == []
