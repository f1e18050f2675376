"""max_processing_per_owner: owners take turns, and nobody's 10,000 jobs keep another's one waiting."""

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.sql.harness import ALICE, BOB, NOON, Worker, fixture

MANY = """
    insert into public.jobs (queue, kind, owner_id, max_attempts, created_at, run_at, priority)
    select 'default', 'echo', o, 4, processor.now(), $3, $4
    from unnest($1::uuid[]) o, generate_series(1, $2)
"""


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.queue("default", max_processing_per_owner=2)
    return await project.worker(slots=1000, lease_seconds=3600)


async def many(project, count, *owners, run_at=NOON, priority=0):
    await project.sql(MANY, list(owners), count, run_at, priority)


def owners(jobs) -> Counter:
    return Counter(job["owner_id"] and UUID(job["owner_id"]) for job in jobs)


def due(answer) -> datetime | None:
    return answer["next_due_at"] and datetime.fromisoformat(answer["next_due_at"])


async def test_no_more_of_an_owner_run_than_allowed(project, worker):
    await many(project, 10, ALICE, BOB)
    jobs = await worker.claim(100)
    assert owners(jobs) == {ALICE: 2, BOB: 2}
    assert await worker.claim(100) == []
    await worker.finish(jobs[0])
    [job] = await worker.claim(100)
    assert job["owner_id"] == jobs[0]["owner_id"]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_ten_thousand_jobs_of_one_do_not_keep_anothers_one_waiting(project, worker, limit):
    await project.queue("default", max_processing_per_owner=limit)
    await many(project, 10_000, ALICE)
    await project.later(minutes=1)
    late = await project.create("echo", owner_id=BOB)
    for number in range(3):  # noqa: B007 - asked for below
        [job] = await worker.claim(1)
        if job["id"] == late["id"]:
            break
        await worker.finish(job)
    assert job["id"] == late["id"], "one slot, and its owner had to wait"
    assert number <= 1


@pytest.mark.parametrize("together", [1, 2])
async def test_owners_take_turns_though_nothing_else_runs(project, worker, together):
    three = [uuid4() for _ in range(3)]
    await many(project, 100, *three)
    await many(project, 100, None)
    served = Counter()
    for _ in range(24 // together):
        jobs = await worker.claim(together)
        served += owners(jobs)
        for job in jobs:
            await worker.finish(job)
    assert served == dict.fromkeys([*three, None], 6)


async def test_who_has_least_running_is_first(project, worker):
    await project.queue("default", max_processing_per_owner=5)
    await many(project, 10, ALICE)
    await worker.claim(3)
    await many(project, 10, BOB)
    assert owners(await worker.claim(2)) == {BOB: 2}
    await worker.claim(4)
    running = await project.rows(
        "select owner_id, count(*) from public.jobs where status = 'processing' group by 1"
    )
    assert sorted(row["count"] for row in running) == [4, 5]


async def test_a_claim_returns_as_much_as_there_is_room_for(project, worker):
    five = [uuid4() for _ in range(5)]
    await project.queue("default", max_processing_per_owner=50)
    await many(project, 200, *five)
    assert owners(await worker.claim(100)) == dict.fromkeys(five, 20)
    assert owners(await worker.claim(100)) == dict.fromkeys(five, 20)
    await many(project, 3, ALICE)
    assert len(await worker.claim(100)) == 53


async def test_what_one_has_too_little_of_others_get(project, worker):
    await project.queue("default", max_processing_per_owner=50)
    await many(project, 3, ALICE)
    await many(project, 200, BOB)
    assert owners(await worker.claim(40)) == {ALICE: 3, BOB: 37}


async def test_priority_orders_the_jobs_of_each_owner(project, worker):
    await many(project, 3, ALICE, BOB, priority=0)
    await many(project, 1, ALICE, priority=5)
    await many(project, 1, BOB, priority=-5)
    jobs = await worker.claim(2)
    assert {(UUID(job["owner_id"]), job["priority"]) for job in jobs} == {(ALICE, 5), (BOB, 0)}
    assert [job["priority"] for job in jobs] == [5, 0], "the answer is in order of priority"


async def test_jobs_of_nobody_have_no_limit_but_take_turns(project, worker):
    await many(project, 10, None, ALICE)
    assert owners(await worker.claim(2)) == {None: 1, ALICE: 1}
    assert owners(await worker.claim(100)) == {None: 9, ALICE: 1}


async def test_an_owner_at_the_limit_does_not_make_the_next_claim_urgent(project, worker):
    await many(project, 5, ALICE)
    jobs = await worker.claim(2)
    answer = await worker.claim_answer(10)
    assert (answer["jobs"], due(answer)) == ([], None)
    assert due(await worker.heartbeat()) is None
    await project.create("echo", owner_id=BOB, delay_seconds=60)
    assert due(await worker.heartbeat()) == NOON + timedelta(seconds=60)
    await worker.finish(jobs[0])
    assert due(await worker.heartbeat()) <= NOON
    assert owners(await worker.claim(10)) == {ALICE: 1}


async def test_the_job_of_another_owner_is_urgent(project, worker):
    await many(project, 5, ALICE)
    await worker.claim(2)
    await project.create("echo", owner_id=BOB)
    assert due(await worker.heartbeat()) <= NOON


async def test_asking_when_does_not_take_a_turn_or_a_job(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    await one.queue("default", max_processing_per_owner=1)
    job = await one.create("echo", owner_id=ALICE)
    first, second = await one.worker(), await two.worker()
    async with one.connection.transaction():
        assert due(await first.heartbeat()) is not None
        [claimed] = await second.claim()
    assert claimed["id"] == job["id"]


async def test_jobs_that_are_not_due_or_of_other_kinds_take_no_turn(project, worker):
    await project.kind("new")
    await many(project, 50, ALICE, run_at=NOON + timedelta(hours=1))
    await project.sql(MANY.replace("'echo'", "'new'"), [BOB], 50, NOON, 9)
    last = UUID(int=2**128 - 1)
    await many(project, 1, last)
    assert owners(await worker.claim(5)) == {last: 1}


async def test_every_one_of_many_owners_gets_a_turn(project, worker):
    three_hundred = [uuid4() for _ in range(300)]
    await many(project, 5, *three_hundred)
    served = Counter()
    for _ in range(6):
        jobs = await worker.claim(50)
        served += owners(jobs)
        await worker.finish_all([{"id": j["id"], "attempt": 1, "outcome": "done"} for j in jobs])
    assert served == dict.fromkeys(three_hundred, 1)


async def test_a_due_job_is_found_among_thousands_of_owners_who_have_nothing_due(project, worker):
    await many(project, 1, *[uuid4() for _ in range(3000)], run_at=NOON + timedelta(hours=1))
    await project.sql("analyze public.jobs")
    for owner in (UUID(int=0), UUID(int=2**127), UUID(int=2**128 - 1), None):
        job = await project.create("echo", owner_id=owner)
        assert due(await worker.heartbeat()) <= NOON
        assert [claimed["id"] for claimed in await worker.claim(10)] == [job["id"]]
    assert due(await worker.heartbeat()) == NOON + timedelta(hours=1)


async def test_thousands_of_owners_are_claimed_from_within_the_limits(project, worker):
    await many(project, 3, *[uuid4() for _ in range(2000)])
    jobs = [job for _ in range(5) for job in await worker.claim(1000)]
    assert len(jobs) == 4000
    assert set(owners(jobs).values()) == {2}
    answer = await worker.claim_answer(1000)
    assert (answer["jobs"], due(answer)) == ([], None)


async def test_a_limit_per_owner_holds_together_with_the_others(project, worker):
    await project.queue("default", max_processing_per_owner=3, max_processing=8, rate_limit=7)
    await many(project, 20, *[uuid4() for _ in range(10)])
    assert len(await worker.claim(100)) == 7
    await project.queue("default", rate_limit=None)
    assert len(await worker.claim(100)) == 1


async def test_many_who_claim_at_once_never_exceed_an_owners_limit(database):
    projects = [await database.project() for _ in range(5)]
    await projects[0].kind("echo")
    await projects[0].queue("default", max_processing_per_owner=2)
    await many(projects[0], 30, ALICE, BOB)
    await many(projects[0], 30, None)
    for project in projects:
        await project.at(NOON)
    workers = [await project.worker() for project in projects]
    most = 0

    async def work(worker):
        nonlocal most
        for _ in range(200):
            jobs = await worker.claim(3)
            rows = await worker.project.rows(
                "select count(*) from public.jobs "
                "where status = 'processing' and owner_id is not null group by owner_id"
            )
            most = max([most, *(row["count"] for row in rows)])
            await worker.finish_all(
                [{"id": j["id"], "attempt": j["attempt"], "outcome": "done"} for j in jobs]
            )
            if await worker.project.sql("select count(*) = 90 from public.jobs where status = 'completed'"):
                return

    await asyncio.gather(*map(work, workers))
    assert most == 2
    assert (
        await projects[0].sql("select count(*) from public.jobs where status = 'completed' and attempt = 1")
        == 90
    )


@pytest.mark.parametrize("statistics", ["fresh", "none"])
async def test_a_claim_reads_no_more_than_it_must(database, statistics):
    project = await database.project()
    await project.at(NOON)
    await project.kind("echo")
    await project.queue("default", max_processing_per_owner=2)
    worker = await project.worker()
    await many(project, 20_000, ALICE)
    await many(project, 8, BOB)
    if statistics == "fresh":
        await project.sql("analyze public.jobs")
    read = "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables where relname = 'jobs'"
    for _ in range(8):  # also when the plans have become generic ones
        async with project.connection.transaction():
            assert len(await worker.claim(2)) == 2
            await worker.heartbeat()
            assert await project.sql(read) < 500
            await project.sql(
                "update public.jobs set status = 'completed', finished_at = $1 where status = 'processing'",
                NOON,
            )
