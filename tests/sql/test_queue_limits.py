"""What a queue allows: so many at once, so many in a time, so many waiting for each owner."""

import asyncio
from datetime import datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, NOON, Worker, fixture, until_waiting

MANY = """
    insert into public.jobs (queue, kind, owner_id, max_attempts, created_at, run_at)
    select 'default', 'echo', $2, 4, processor.now(), processor.now() from generate_series(1, $1)
"""


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    return await project.worker(slots=1000, lease_seconds=3600)


async def many(project, count, owner=None):
    await project.sql(MANY, count, owner)


def due(answer) -> datetime | None:
    return answer["next_due_at"] and datetime.fromisoformat(answer["next_due_at"])


# so many in a time


async def test_a_rested_queue_starts_as_many_as_its_rate_and_then_one_by_one(project, worker):
    await project.queue("default", rate_limit=6, rate_period=timedelta(minutes=1))
    await many(project, 100)
    assert len(await worker.claim(100)) == 6
    assert await worker.claim(100) == []
    await project.later(seconds=9.999999)
    assert await worker.claim(100) == []
    await project.later(seconds=0.000001)
    assert len(await worker.claim(100)) == 1
    await project.later(seconds=25)
    assert len(await worker.claim(100)) == 2
    await project.later(seconds=5)
    assert len(await worker.claim(100)) == 1, "half a token was lost"


async def test_a_long_rest_saves_no_more_than_one_period(project, worker):
    await project.queue("default", rate_limit=5, rate_period=timedelta(seconds=10))
    await many(project, 50)
    await worker.claim(3)
    await project.later(minutes=50)
    assert len(await worker.claim(100)) == 5


@pytest.mark.parametrize("limit", [1, 3, 7, 11, 60, 997, 44_100])
@pytest.mark.parametrize(
    "period", [timedelta(seconds=1), timedelta(seconds=7.3), timedelta(minutes=1), timedelta(days=1)]
)
async def test_the_time_told_is_the_time_when_the_next_one_starts(project, worker, limit, period):
    await project.queue("default", rate_limit=limit, rate_period=period)
    await many(project, 30)
    await project.sql("insert into processor.queue_tokens values ('default', 0, $1)", NOON)
    await project.sql("update public.job_workers set lease_expires_at = lease_expires_at + interval '1 year'")
    answer = await worker.claim_answer(100)
    assert answer["jobs"] == []
    for n in range(1, 12):
        exact = NOON + n * period / limit
        moment = due(answer)
        assert abs(moment - exact) <= timedelta(microseconds=n + 1)
        await project.at(moment - timedelta(microseconds=2))
        assert await worker.claim(100) == []
        await project.at(moment)
        assert await project.sql("select processor.next_due_at(w) from public.job_workers w") <= moment
        answer = await worker.claim_answer(100)
        assert len(answer["jobs"]) == 1, f"nothing could start at the time that was told ({n})"
        assert due(answer) > moment


async def test_without_jobs_no_time_is_told_and_a_later_job_is_told_later(project, worker):
    await project.queue("default", rate_limit=1, rate_period=timedelta(seconds=10))
    await project.create("echo")
    assert due(await worker.claim_answer(5)) is None
    await project.create("echo", delay_seconds=3)
    assert due(await worker.claim_answer(5)) == NOON + timedelta(seconds=10)
    await project.later(seconds=1)
    await project.sql("delete from public.jobs where status = 'pending'")
    await project.create("echo", delay_seconds=60)
    assert due(await worker.claim_answer(5)) == NOON + timedelta(seconds=61)


async def test_a_change_of_the_rate_counts_from_the_next_claim_on(project, worker):
    await many(project, 500)
    await project.queue("default", rate_limit=100)
    assert len(await worker.claim(3)) == 3
    await project.queue("default", rate_limit=4)
    assert len(await worker.claim(100)) == 4
    await project.queue("default", rate_limit=None)
    assert len(await worker.claim(100)) == 100
    await project.queue("default", rate_limit=10, rate_period=timedelta(seconds=1))
    await project.later(seconds=0.2)
    assert len(await worker.claim(100)) == 2


async def test_a_repeated_claim_takes_no_token_twice(project, worker):
    await project.queue("default", rate_limit=5)
    await many(project, 10)
    request = uuid4()
    first = await worker.claim(3, request=request)
    assert await worker.claim(3, request=request) == first
    assert len(await worker.claim(10)) == 2


async def test_tokens_are_taken_for_what_is_claimed_only(project, worker):
    await project.queue("default", rate_limit=5)
    await many(project, 2)
    assert len(await worker.claim(10)) == 2
    await many(project, 10)
    assert len(await worker.claim(10)) == 3


async def test_a_rate_and_a_number_at_once_both_hold(project, worker):
    await project.queue("default", rate_limit=5, rate_period=timedelta(seconds=10), max_processing=3)
    await many(project, 20)
    jobs = await worker.claim(10)
    assert len(jobs) == 3
    answer = await worker.claim_answer(10)
    assert (answer["jobs"], due(answer)) == ([], None)
    for job in jobs:
        await worker.finish(job)
    answer = await worker.claim_answer(10)
    assert len(answer["jobs"]) == 2
    assert due(answer) == NOON + timedelta(seconds=2)


async def test_a_clock_that_was_set_back_does_not_stop_a_queue(project, worker):
    await project.queue("default", rate_limit=10, rate_period=timedelta(seconds=10))
    await many(project, 50)
    await project.sql(
        "insert into processor.queue_tokens values ('default', 4, $1)", NOON + timedelta(days=1)
    )
    assert len(await worker.claim(10)) == 4
    assert due(await worker.heartbeat()) == NOON + timedelta(seconds=1)


async def test_another_queue_has_a_rate_of_its_own(project, worker):
    await project.queue("other")
    worker = await project.worker(slots=100)
    await project.queue("default", rate_limit=1)
    await many(project, 3)
    for _ in range(3):
        await project.create("echo", queue="other")
    assert len(await worker.claim(10)) == 4


async def test_many_who_claim_at_once_never_start_more_than_the_rate(database):
    projects = [await database.project() for _ in range(5)]
    for project in projects:
        await project.at(NOON)
    await projects[0].kind("echo")
    await many(projects[0], 300)
    await projects[0].queue("default", rate_limit=50, rate_period=timedelta(days=1))
    workers = [await project.worker() for project in projects]

    async def work(worker) -> int:
        return sum([len(await worker.claim(3)) for _ in range(15)])

    assert sum(await asyncio.gather(*map(work, workers))) == 50


# so many waiting


async def test_an_owner_with_so_many_waiting_gets_no_more(project, worker):
    await project.queue("default", max_pending_per_owner=3)
    for _ in range(3):
        await project.create("echo", by=ALICE)
    async with project.refused("JQ014", "default", "4 with these, at most 3"):
        await project.create("echo", by=ALICE)
    await project.create("echo", by=BOB)
    await worker.claim(1)
    await project.create("echo", by=ALICE)


async def test_a_call_that_would_be_too_much_makes_nothing(project, worker):
    await project.queue("default", max_pending_per_owner=3)
    jobs = [{"kind": "translate", "items": ["de"]}] * 4
    async with project.refused("JQ014", "4 with these"):
        await project.call("create_jobs", by=ALICE, jobs=jobs)
    assert await project.balance(ALICE) == (100, 0, 0)
    await project.call("create_jobs", by=ALICE, jobs=jobs[:3])


async def test_what_exists_already_is_returned_at_the_limit(project, worker):
    await project.queue("default", max_pending_per_owner=2)
    jobs = [
        await project.create("echo", by=ALICE, idempotency_key=f"k{n}", unique_key=f"u{n}") for n in (1, 2)
    ]
    assert await project.create("echo", by=ALICE, idempotency_key="k1") == jobs[0]
    assert await project.create("echo", by=ALICE, unique_key="u2", on_conflict="return") == jobs[1]
    replaced = await project.create("echo", by=ALICE, unique_key="u2", on_conflict="replace")
    assert replaced["id"] != jobs[1]["id"]
    async with project.refused("JQ014"):
        await project.create("echo", by=ALICE)


async def test_jobs_of_nobody_are_not_counted(project, worker):
    await project.queue("default", max_pending_per_owner=1)
    await project.call("create_jobs", jobs=[{"kind": "echo"}] * 5)


async def test_parents_that_wait_and_their_children_count_too(project, worker):
    await project.queue("default", max_pending_per_owner=3)
    family = {"children": [{"kind": "echo"}] * 2}
    await project.create("echo", by=ALICE, **family)
    async with project.refused("JQ014"):
        await project.create("echo", by=ALICE)
    async with project.refused("JQ014", "4 with these"):
        await project.create("echo", by=BOB, children=[{"kind": "echo"}] * 3)


async def test_a_job_that_is_tried_again_is_not_kept_out(project, worker):
    await project.queue("default", max_pending_per_owner=1)
    await project.create("echo", by=ALICE)
    [job] = await worker.claim()
    await project.create("echo", by=ALICE)
    assert (await worker.finish(job, "retry"))["status"] == "pending"


async def test_a_limit_counts_each_queue_by_itself(project, worker):
    await project.queue("other", max_pending_per_owner=1)
    await project.queue("default", max_pending_per_owner=1)
    for queue in ("default", "other"):
        await project.create("echo", owner_id=ALICE, queue=queue)
        async with project.refused("JQ014", queue):
            await project.create("echo", owner_id=ALICE, queue=queue)


async def test_many_who_create_at_once_never_exceed_the_limit(database):
    projects = [await database.project() for _ in range(5)]
    await projects[0].kind("echo")
    await projects[0].queue("default", max_pending_per_owner=20)
    codes = []

    async def create(project):
        for _ in range(10):
            try:
                await project.create("echo", by=ALICE)
            except asyncpg.PostgresError as error:
                codes.append(error.sqlstate)

    await asyncio.gather(*map(create, projects))
    assert await projects[0].sql("select count(*) from public.jobs") == 20
    assert codes == ["JQ014"] * 30


async def test_creators_for_different_owners_do_not_wait_for_each_other(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    await one.queue("default", max_pending_per_owner=20)
    async with one.connection.transaction():
        await one.create("echo", owner_id=ALICE, unique_key="u")
        async with asyncio.timeout(5):
            await two.create("echo", owner_id=BOB, unique_key="u")


async def test_a_child_that_is_spawned_and_a_creator_do_not_deadlock(database):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("translate", credits_per_item=10)
    await one.grant(ALICE, 100)
    await one.queue("default", max_pending_per_owner=20)
    job = {"kind": "translate", "items": ["de"]}
    await one.create(**job, owner_id=ALICE)
    worker = await one.worker()
    [parent] = await worker.claim()
    async with asyncio.timeout(20):
        transaction = two.connection.transaction()
        await transaction.start()
        await two.create(**job, owner_id=ALICE)
        spawning = asyncio.create_task(
            worker._call("spawn_jobs", parent={"id": parent["id"], "attempt": 1}, jobs=[job])
        )
        await until_waiting(observer, one)
        await two.create(**job, owner_id=ALICE)
        await transaction.commit()
        assert not (await spawning)["stale"]
    assert await observer.faults() == []
