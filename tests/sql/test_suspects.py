"""Which of the jobs that a lost worker held was the cause: the guilty one ends, its neighbours do not."""

from tests.sql.harness import ALICE, BOB, Worker, fixture
from tests.sql.test_workers import lapse


@fixture
async def worker(project) -> Worker:
    await project.kind("report", credits_per_job=7)
    await project.grant(ALICE, 1000)
    return await project.worker()


async def create(project, number, **columns):
    return [await project.create("report", owner_id=ALICE, **columns) for _ in range(number)]


async def lost_with(project, worker, jobs=10):
    """Let the worker claim, and die; return another one and what died with the first."""
    claimed = await worker.claim(jobs)
    other = await project.worker()
    await lapse(project, other)
    return other, claimed


async def states(project):
    rows = await project.rows("select status, crashes from public.jobs order by id")
    return [(row["status"], row["crashes"]) for row in rows]


async def test_whoever_shared_one_lost_worker_runs_again_as_if_nothing_had_happened(project, worker):
    await create(project, 3)
    other, _ = await lost_with(project, worker)
    assert await states(project) == [("pending", 1)] * 3
    assert len(await other.claim(10)) == 3


async def test_the_only_one_that_lost_its_worker_before_is_the_cause(project, worker):
    await create(project, 1)
    second, _ = await lost_with(project, worker)
    await create(project, 2)
    third, claimed = await lost_with(project, second)
    assert len(claimed) == 3
    assert await states(project) == [("failed", 2), ("pending", 1), ("pending", 1)]
    row = await project.job(claimed[0])
    assert (row["error_code"], row["credits_refunded"]) == ("WORKER_CRASHED", 7)
    assert row["error_message"] == "2 workers in a row were lost while running it"
    assert len(await third.claim(10)) == 2
    assert await project.faults() == []


async def test_those_that_lost_two_workers_together_run_one_at_a_time_until_one_is_the_cause(project, worker):
    poison, *_ = await create(project, 3)
    second, _ = await lost_with(project, worker)
    third, _ = await lost_with(project, second)
    assert await states(project) == [("pending", 2)] * 3

    [suspect] = await third.claim(10)
    assert suspect["id"] == poison["id"]
    assert (await third.claim_answer(10))["jobs"] == []
    assert (await third.heartbeat(suspect))["next_due_at"] is None
    await project.later(seconds=89)
    last, _ = await lost_with(project, third)
    assert await states(project) == [("failed", 3), ("pending", 2), ("pending", 2)]

    for _ in range(2):
        assert (await last.heartbeat())["next_due_at"] is not None
        [innocent] = await last.claim(10)
        assert (await last.finish(innocent))["status"] == "completed"
    assert await project.balance(ALICE) == (986, 0, 14)
    assert await project.faults() == []


async def test_a_suspect_keeps_no_other_job_from_running(project, worker):
    await create(project, 2)
    second, _ = await lost_with(project, worker)
    third, _ = await lost_with(project, second)
    others = await create(project, 3, priority=5)
    claimed = await third.claim(10)
    assert len(claimed) == 4
    assert {job["id"] for job in others} < {job["id"] for job in claimed}
    another = await project.worker()
    assert len(await another.claim(10)) == 1


async def test_suspects_keep_to_the_limits_of_their_queue(project, worker):
    await project.queue("default", max_processing_per_owner=1)
    await project.grant(BOB, 100)
    for owner in (ALICE, BOB):
        await project.create("report", owner_id=owner)
    second, claimed = await lost_with(project, worker)
    assert len(claimed) == 2
    third, _ = await lost_with(project, second)
    await create(project, 1)
    [suspect] = await third.claim(10)
    assert suspect["owner_id"] == str(ALICE)
    fourth = await project.worker()
    assert [job["owner_id"] for job in await fourth.claim(10)] == [str(BOB)]
    assert (await fourth.claim_answer(10))["jobs"] == []
    assert (await fourth.heartbeat())["next_due_at"] is None or await fourth.claim(10) == []
    await project.queue("default", max_processing=2)
    await third.finish(suspect)
    assert [job["owner_id"] for job in await fourth.claim(10)] == [str(ALICE)]


async def test_an_attempt_that_ends_by_itself_clears_a_job_of_suspicion(project, worker):
    for outcome in ({"outcome": "snooze", "delay_seconds": 0}, {"outcome": "retry", "delay_seconds": 0}):
        [job] = await create(project, 1)
        other, _ = await lost_with(project, worker)
        assert (await project.job(job))["crashes"] == 1
        [again] = await other.claim()
        await other.finish(again, **outcome)
        assert (await project.job(job))["crashes"] == 0
        [again] = await other.claim()
        await other.finish(again)
        worker = await project.worker()


async def test_giving_a_job_back_clears_it_of_nothing(project, worker):
    [job] = await create(project, 1)
    other, _ = await lost_with(project, worker)
    [again] = await other.claim()
    await other.release(again)
    assert (await project.job(job))["crashes"] == 1
