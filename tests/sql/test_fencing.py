"""The fence: a late or repeated write of a worker is stale and changes neither rows nor money."""

import asyncio

import pytest

from tests.sql.harness import ALICE, Worker, done, fence, fixture, until_waiting


@fixture
async def worker(project) -> Worker:
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    return await project.worker()


async def lose_to(project, worker, other: Worker):
    """Let the worker claim, lose its lease, and the other one claim what is rescued."""
    [old] = await worker.claim()
    await project.later(seconds=60)
    await other.heartbeat()
    await project.later(seconds=60)
    await other.heartbeat()
    if other is worker:
        await worker.release(old)
    [new] = await other.claim()
    assert (new["id"], new["attempt"]) == (old["id"], old["attempt"] + 1)
    return old, new


async def everything(project) -> list:
    tables = (
        "jobs",
        "job_items",
        "job_logs",
        "credit_accounts",
        "credit_entries",
        "credit_holds",
        "credit_captures",
    )
    return [await project.rows(f"select * from public.{table} order by 1, 2") for table in tables]


@pytest.mark.parametrize("taker", ["same worker", "other worker"])
async def test_every_late_write_is_stale_and_changes_nothing(project, worker, taker):
    other = worker if taker == "same worker" else await project.worker()
    old, new = await lose_to(project, worker, other)
    before = await everything(project)

    for outcome in ("done", "fail", "retry", "snooze", "cancelled"):
        answer = await worker.finish(old, outcome, delay_seconds=1, items=[done("de"), done("fr")])
        assert (answer["stale"], answer["status"], answer["error"]) == (True, "processing", None)
    assert (await worker.finish_items(old, done("de")))["stale"]
    assert (await worker.progress(old, 0.5, message="late"))["stale"] == [old["id"]]
    assert [answer["stale"] for answer in await worker.release(old)] == [True]
    assert await worker.log(old, "late") == 0

    assert await everything(project) == before
    assert not (await other.finish(new, "done", items=[done("de"), done("fr")]))["stale"]
    assert await project.balance(ALICE) == (80, 0, 20)
    assert await project.faults() == []


@pytest.mark.parametrize("fate", ["its lease is over", "its row is gone"])
async def test_a_dead_worker_is_believed_until_somebody_rescues_its_job(project, worker, fate):
    """What it left on disk is handed in under its name, before anybody rescues."""
    [job] = await worker.claim()
    await project.later(seconds=3600)
    if fate == "its row is gone":
        await project.sql("delete from public.job_workers where id = $1", worker.id)
    assert not (await worker.finish_items(job, done("de")))["stale"]
    answer = await worker.finish(job, "done", items=[done("fr")])
    assert (answer["stale"], answer["status"]) == (False, "completed")
    assert await project.balance(ALICE) == (80, 0, 20)
    assert await project.faults() == []


async def test_the_right_attempt_of_another_worker_is_stale(project, worker):
    [job] = await worker.claim()
    stranger = await project.worker()
    before = await everything(project)
    assert (await stranger.finish(job))["stale"]
    assert (await stranger.finish_items(job, done("de")))["stale"]
    assert (await stranger.release(job))[0]["stale"]
    assert (await stranger.progress(job, 1))["stale"] == [job["id"]]
    assert await stranger.log(job, "hello") == 0
    assert await everything(project) == before


async def test_an_attempt_of_the_future_is_stale(worker):
    [job] = await worker.claim()
    assert (await worker.finish(job | {"attempt": 2}))["stale"]


async def test_a_report_without_an_attempt_is_stale(worker):
    [job] = await worker.claim()
    [answer] = await worker.finish_all([{"id": job["id"], "outcome": "done"}])
    assert answer["stale"]


@pytest.mark.parametrize("outcome", ["done", "fail", "retry", "snooze", "cancelled"])
async def test_a_repeated_finish_is_stale_says_the_status_and_changes_nothing(project, worker, outcome):
    [job] = await worker.claim()
    report = {"delay_seconds": 3, "items": [done("de"), done("fr")]}
    first = await worker.finish(job, outcome, **report)
    before = await everything(project)
    await project.later(seconds=1)
    again = await worker.finish(job, outcome, **report)
    assert again == first | {"stale": True}
    assert await everything(project) == before


async def test_writes_to_an_ended_job_are_stale(project, worker):
    [job] = await worker.claim()
    await worker.finish(job, "fail")
    before = await everything(project)
    assert (await worker.finish_items(job, done("de")))["stale"]
    assert (await worker.progress(job, 1))["stale"] == [job["id"]]
    assert (await worker.release(job))[0]["stale"]
    assert await worker.log(job, "late") == 0
    assert await everything(project) == before
    assert await project.balance(ALICE) == (100, 0, 0)


async def test_a_late_capture_of_a_cancelled_job_is_not_charged(project, worker):
    job = await project.create("translate", owner_id=ALICE, items=["it"])
    [first, second] = await worker.claim(2)
    await project.cancel(job)
    await worker.finish({"id": job["id"], "attempt": 1}, "cancelled")
    assert (await worker.finish_items({"id": job["id"], "attempt": 1}, done("it")))["stale"]
    assert {first["id"], second["id"]} >= {job["id"]}
    assert await project.balance(ALICE) == (80, 20, 0)


async def test_progress_and_logs_of_the_holder_are_written(project, worker):
    [job] = await worker.claim()
    answer = await worker.progress(job, 0.25, message="half of it", items=[{"key": "de", "progress": 0.5}])
    assert answer == {"stale": [], "cancel": []}
    row = await project.job(job)
    assert (row["progress"], row["progress_message"]) == (0.25, "half of it")
    assert (await project.items(job))["de"]["progress"] == 0.5
    assert await worker.log(job, "one", "two", fields={"n": 1}) == 2
    logs = await project.rows("select attempt, level, message, fields from public.job_logs order by id")
    assert logs == [{"attempt": 1, "level": "info", "message": m, "fields": {"n": 1}} for m in ("one", "two")]


@pytest.mark.parametrize(("given", "kept"), [(-1, 0), (7, 1), (0.5, 0.5), (None, 0)])
async def test_progress_is_brought_into_its_range(project, worker, given, kept):
    [job] = await worker.claim()
    await worker.progress(job, given, items=[{"key": "de", "progress": given}])
    assert (await project.job(job))["progress"] == kept
    assert (await project.items(job))["de"]["progress"] == kept


async def test_progress_without_items_or_message_keeps_what_is_there(project, worker):
    [job] = await worker.claim()
    await worker.progress(job, 0.5, message="half")
    await worker.progress(job, 0.6, message=None, items=None)
    row = await project.job(job)
    assert (row["progress"], row["progress_message"]) == (0.6, "half")


async def test_progress_is_told_of_a_cancel(project, worker):
    [job] = await worker.claim()
    await project.cancel(job, by=ALICE)
    assert (await worker.progress(job, 0.5))["cancel"] == [job["id"]]
    assert (await worker.finish_items_answer([fence(job) | {"items": []}]))["cancel"] == [job["id"]]


async def test_a_job_keeps_a_thousand_log_lines(project, worker):
    [job] = await worker.claim()
    assert await worker.log(job, *(str(n) for n in range(999))) == 999
    assert await worker.log(job, "too much", "far too much") == 1
    assert await worker.log(job, "still too much") == 0
    lines = await project.rows("select level, message from public.job_logs order by id")
    assert len(lines) == 1000
    assert lines[-2]["message"] == "998"
    said = "no more lines are kept of this job: 1,000 are the limit"
    assert lines[-1] == {"level": "warning", "message": said}


async def test_two_that_log_at_once_keep_no_more_than_a_thousand_lines(database):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("echo")
    await one.create("echo")
    worker = await one.worker()
    [job] = await worker.claim()
    await worker.log(job, *("x" * 900))
    transaction = one.connection.transaction()
    await transaction.start()
    assert await worker.log(job, *("y" * 90)) == 90
    late = asyncio.create_task(worker.through(two).log(job, *("z" * 90)))
    await until_waiting(observer, two)
    await transaction.commit()
    assert await late == 10
    assert await one.sql("select count(*) from public.job_logs") == 1000


async def test_strange_log_lines_are_kept_as_far_as_they_make_sense(project, worker):
    [job] = await worker.claim()
    line = fence(job) | {"level": "shout", "message": "x" * 5000, "fields": {"x": "y" * 5000}}
    await project.call("append_job_logs", worker_id=worker.id, logs=[line, fence(job)])
    rows = await project.rows(
        "select level, length(message) as length, fields from public.job_logs order by id"
    )
    assert rows == [
        {"level": "info", "length": 2000, "fields": {"cut": "the fields had more than 4 KiB"}},
        {"level": "info", "length": 0, "fields": {}},
    ]


async def test_progress_stays_off_the_indexes(project, worker):
    [job] = await worker.claim()
    hot = "select n_tup_upd - n_tup_hot_upd from pg_stat_xact_user_tables where relname = $1"
    before = [await project.sql(hot, table) for table in ("jobs", "job_items", "job_workers")]
    for n in range(5):
        await worker.progress(job, n / 10, items=[{"key": "de", "progress": n / 10}])
        await worker.heartbeat(job)
    assert [await project.sql(hot, table) for table in ("jobs", "job_items", "job_workers")] == before
