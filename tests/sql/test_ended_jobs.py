"""Ended jobs that daemons are to tell others of: each once, whoever ended it, whoever died."""

import json
from datetime import datetime

import pytest

from tests.sql.harness import NOON, fixture


@fixture
async def told(database):
    """Give a project that commits, for what has ended is read when its transaction is over."""
    project = await database.project()
    await project.at(NOON)
    await project.kind("echo")
    return project


async def read(worker, **arguments):
    answer = await worker._call("read_ended_jobs", **{"batch": 1000, **arguments})
    await worker.project.later(seconds=1)
    return answer


def cursor(answer):
    if "after_at" not in answer:
        return {}
    return {
        "answer": answer["answer"],
        "after_at": datetime.fromisoformat(answer["after_at"]),
        "after_id": answer["after_id"],
    }


def ids(answer):
    return [job["id"] for job in answer["jobs"]]


async def after(project, worker, answer=None, **arguments):
    """Read again, some time later, so that all of now is beyond doubt."""
    for _ in range(2):
        answer = await read(worker, **(cursor(answer) if answer else {}), **arguments)
        if answer["jobs"]:
            break
    return answer


async def ended(project, worker):
    job = await project.create()
    [claimed] = await worker.claim()
    await project.later(seconds=1)
    await worker.finish(claimed)
    return job["id"]


@pytest.mark.parametrize("role", ["service_role", "job_processor"])
async def test_a_worker_is_told_that_nothing_has_ended(project, role):
    worker = await project.worker()
    answer = await project.call("read_ended_jobs", by=role, worker_id=worker.id, batch=10)
    assert (answer["reader"], answer["jobs"], answer["more"]) == (True, [], False)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_nobody_else_reads_them(project, role):
    worker = await project.worker()
    async with project.refused("42501"):
        await project.call("read_ended_jobs", by=role, worker_id=worker.id, batch=10)


async def test_a_worker_that_is_unknown_is_told_to_register(project):
    worker = await project.worker()
    await worker.deregister()
    async with project.refused("JQ011", "unknown worker"):
        await read(worker)


async def test_a_job_that_is_cancelled_before_any_worker_has_it_is_told_once(told):
    worker = await told.worker()
    answer = await read(worker)
    job = await told.create()
    await told.cancel(job)
    answer = await after(told, worker, answer)
    assert [(j["id"], j["status"], j["worker_id"]) for j in answer["jobs"]] == [
        (job["id"], "cancelled", None)
    ]
    answer = await after(told, worker, answer)
    assert answer["jobs"] == []


async def test_what_nobody_says_to_have_told_comes_again(told):
    worker = await told.worker()
    await read(worker)
    job = await told.create()
    await told.cancel(job)
    first = await after(told, worker)
    again = await read(worker)
    assert ids(first) == ids(again) == [job["id"]]


async def test_what_ended_before_there_was_a_reader_is_history(told):
    await told.cancel(await told.create())
    await told.later(seconds=1)
    worker = await told.worker()
    assert (await after(told, worker))["jobs"] == []


async def test_the_jobs_of_a_worker_that_tells_of_them_are_left_to_it(told):
    reader, other, silent = await told.worker(), await told.worker(), await told.worker()
    answer = await read(reader)
    assert (await read(other))["reader"] is False
    await ended(told, reader)
    await ended(told, other)
    of_silent = await ended(told, silent)
    answer = await after(told, reader, answer)
    assert ids(answer) == [of_silent], "that one has no MQTT"


async def test_what_a_worker_had_not_told_when_it_died_is_told_by_the_reader(told):
    reader, dying = await told.worker(), await told.worker()
    answer = await read(reader)
    await read(dying)
    await ended(told, dying)
    await told.later(seconds=5)
    await read(dying, told_at=await told.now(), batch=0)
    untold = await ended(told, dying)
    answer = await after(told, reader, answer)
    assert answer["jobs"] == []
    await told.later(seconds=100)
    await reader.heartbeat()
    await after(told, reader, answer)  # and this answer is lost
    answer = await after(told, reader, answer)
    assert ids(answer) == [untold]
    answer = await after(told, reader, answer)
    assert answer["jobs"] == []
    assert await told.sql("select count(*) from processor.event_publishers where ended") == 0


async def test_another_worker_reads_when_the_reader_is_dead(told):
    reader, other = await told.worker(), await told.worker()
    await read(reader)
    await read(other)
    job = await told.create()
    await told.cancel(job)
    assert (await after(told, other))["jobs"] == []
    await told.later(seconds=100)
    await other.heartbeat()
    answer = await after(told, other)
    assert answer["reader"]
    assert ids(answer) == [job["id"]]


async def test_a_worker_that_may_have_missed_something_reads_its_own(told):
    reader, worker = await told.worker(), await told.worker()
    await read(reader)
    await read(worker)
    job = await ended(told, worker)
    assert (await read(worker))["jobs"] == []
    answer = await read(worker, own=True)
    assert ids(answer) == [job]
    assert (await read(worker, own=True, **cursor(answer)))["jobs"] == []


async def test_many_of_one_moment_come_in_batches(told):
    worker = await told.worker()
    answer = await read(worker)
    jobs = [await told.create() for _ in range(7)]
    for job in jobs:
        await told.cancel(job)
    seen = []
    for _ in range(6):
        answer = await read(worker, batch=3, **cursor(answer))
        seen += ids(answer)
    assert seen == sorted(job["id"] for job in jobs)


async def test_a_transaction_that_takes_long_loses_nothing(told, database):
    worker = await told.worker()
    answer = await read(worker)
    job = await told.create()
    slow = await database.project()
    await slow.at(await told.later(seconds=1))
    transaction = slow.connection.transaction()
    await transaction.start()
    await slow.cancel(job)
    for _ in range(5):
        answer = await after(told, worker, answer)
        assert answer["jobs"] == []
    await transaction.commit()
    answer = await after(told, worker, answer)
    assert ids(answer) == [job["id"]]


async def test_reading_costs_what_has_ended_since_not_what_there_is(told):
    worker = await told.worker()
    answer = await read(worker)
    await told.sql(
        """
        insert into public.jobs (queue, kind, max_attempts, status, finished_at)
        select 'default', 'echo', 1, 'completed', timestamptz '2026-11-20 12:00Z' + n * interval '1 ms'
        from generate_series(1, 20000) n
        """
    )
    await after(told, worker, answer)
    await told.later(seconds=1)
    [plan] = await told.rows(
        "explain (analyze, buffers, timing off, format json) select public.read_ended_jobs($1, batch => 100)",
        worker.id,
    )
    blocks = json.loads(plan["QUERY PLAN"])[0]["Plan"]["Shared Hit Blocks"]
    assert blocks < 300, "20,000 jobs that ended before are not looked at"
