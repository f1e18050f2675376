"""What ``read_alerts`` tells: what is wrong now, in words, and nothing when nothing is."""

from datetime import timedelta

import pytest

from tests.sql.harness import ALICE, NOON, done, failed, fixture


@fixture
async def worker(project):
    """Give a worker that is alive and woken by Realtime."""
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.queue("default", retry_delays=[timedelta(minutes=1)], jitter=0)
    await project.grant(ALICE, 10_000)
    return await project.worker(name="web-1", host="vm-1", feed="realtime")


async def alerts(project, **arguments):
    return {row["alert"]: row for row in await project.read("read_alerts", **arguments)}


async def run(worker, outcome="done", *, seconds=1, **arguments):
    job = await worker.project.create(**arguments)
    await worker.claim()
    await worker.project.later(seconds=seconds)
    await worker.heartbeat(job, feed="realtime")
    await worker.finish({"id": job["id"], "attempt": 1}, outcome)


async def test_where_nothing_is_wrong_nothing_is_told(project, worker):
    await run(worker)
    await project.create()
    await project.create(run_at=NOON + timedelta(days=1))
    assert await alerts(project) == {}


async def test_what_is_critical_comes_first(project, worker):
    await project.create()
    await project.later(minutes=6)
    rows = await project.read("read_alerts")
    assert [(row["severity"], row["alert"]) for row in rows] == [
        ("critical", "ProcessorNoLiveWorker"),
        ("warning", "ProcessorJobsWaitLong"),
    ]


# workers


async def test_nobody_alive_is_told_since_the_last_lease_ended(project, worker):
    await project.later(minutes=10)
    told = (await alerts(project))["ProcessorNoLiveWorker"]
    assert told["since"] == (NOON + timedelta(seconds=90)).isoformat()
    assert "Start a daemon" in told["summary"]
    await worker.heartbeat(feed="realtime")
    assert await alerts(project) == {}


async def test_nobody_ever_is_told_too(project):
    assert (await alerts(project))["ProcessorNoLiveWorker"]["since"] is None


async def test_a_fleet_that_drains_takes_no_jobs(project, worker):
    await project.call("drain_worker", worker="web-1")
    assert "start another" in (await alerts(project))["ProcessorNoLiveWorker"]["summary"]


async def test_a_worker_that_has_fallen_back_to_polling_is_named(project, worker):
    await worker.heartbeat(feed="polling")
    assert await alerts(project) == {}, "it has just started"
    await project.later(minutes=6)
    await worker.heartbeat(feed="polling")
    told = (await alerts(project))["ProcessorRealtimeDown"]
    assert "1 of 1" in told["summary"]
    assert "web-1@vm-1" in told["summary"]
    await worker.heartbeat(feed="realtime")
    assert await alerts(project) == {}


async def test_a_worker_that_is_meant_to_poll_is_no_matter(project, worker):
    poller = await project.worker(name="poller", transport="polling")
    await project.later(minutes=6)
    await worker.heartbeat(feed="realtime")
    await poller.heartbeat(feed="polling")
    assert await alerts(project) == {}


async def test_a_lease_is_told_of_before_it_ends(project, worker):
    await project.later(seconds=60)
    assert await alerts(project) == {}
    await project.later(seconds=15)
    told = (await alerts(project))["ProcessorLeaseNearEnd"]
    assert told["since"] == NOON.isoformat()
    assert "web-1@vm-1" in told["summary"]
    await worker.heartbeat(feed="realtime")
    assert await alerts(project) == {}


async def test_jobs_in_the_hands_of_the_dead_are_told_of_until_somebody_takes_them(project, worker):
    await project.create()
    await worker.claim()
    await project.later(minutes=3)
    assert "web-1@vm-1 is gone, and 1 jobs" in (await alerts(project))["ProcessorWorkerLost"]["summary"]
    other = await project.worker(name="web-2", feed="realtime")
    await other.heartbeat(feed="realtime")
    assert "ProcessorWorkerLost" not in await alerts(project)


async def test_a_job_that_does_not_stop_is_told_of(project, worker):
    job = await project.create(timeout_seconds=60)
    await worker.claim()
    for minutes, expected in ((1.5, set()), (1, {"ProcessorJobsStuck"})):
        await project.later(minutes=minutes)
        await worker.heartbeat(job, feed="realtime")
        assert set(await alerts(project)) == expected
    told = (await alerts(project))["ProcessorJobsStuck"]
    assert job["id"] in told["summary"]
    assert told["since"] == (NOON + timedelta(minutes=1)).isoformat()
    await worker.finish({"id": job["id"], "attempt": 1})
    assert await alerts(project) == {}


# the backlog


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("select processor.pause_queue('default')", "processor.resume_queue('default')"),
        ("with k as (delete from public.job_kinds) delete from public.job_queues", "no row in job_queues"),
        ("update public.job_workers set draining = true", "start one"),
        ("update public.job_queues set max_processing = 1", "where queue = 'default'"),
    ],
)
async def test_a_job_that_waits_long_is_told_of_with_what_to_do(project, worker, trouble, words):
    await project.create(priority=5, run_at=NOON + timedelta(minutes=4))
    await project.create()
    await project.sql(trouble)
    for minutes, expected in ((4, False), (2, True)):
        await project.later(minutes=minutes)
        await worker.heartbeat(feed="realtime")
        assert ("ProcessorJobsWaitLong" in await alerts(project)) is expected
    told = (await alerts(project))["ProcessorJobsWaitLong"]
    assert words in told["summary"]
    assert "oldest of 2 due jobs of queue default waits for 00:06:00" in told["summary"]
    assert told["since"][:19] == NOON.isoformat()[:19], "priority does not make a job older"


async def test_a_job_that_waits_for_its_time_does_not_wait_long(project, worker):
    await project.create(run_at=NOON + timedelta(minutes=20))
    await project.later(minutes=19)
    await worker.heartbeat(feed="realtime")
    assert await alerts(project) == {}


async def test_a_queue_is_deep_beyond_what_the_asker_says(project, worker):
    await project.kind("other")
    for number in range(21):
        await project.create("other" if number % 2 else "echo", priority=number % 3)
    assert (
        "21 jobs of queue default are due, more than 20"
        in (await alerts(project))["ProcessorQueueDeep"]["summary"]
    )
    assert await alerts(project, max_depth=21) == {}


@pytest.mark.parametrize("depth", [0, 10_000, None])
async def test_a_depth_that_makes_no_sense_is_refused(project, worker, depth):
    async with project.refused("JQ006", "max_depth"):
        await alerts(project, max_depth=depth)


MANY = """
    insert into public.jobs (queue, kind, max_attempts, priority, run_at)
    select 'default', (array['a', 'b'])[1 + n % 2], 3, n % 3, $1::timestamptz + n * interval '1 millisecond'
    from generate_series(1, $2::int) n
"""


async def test_a_large_backlog_is_not_counted_to_its_end(project, worker):
    await project.sql(MANY, NOON - timedelta(minutes=9), 30_000)
    told = await alerts(project)
    assert "10000 or more jobs of queue default" in told["ProcessorQueueDeep"]["summary"]
    assert "10000 or more due jobs" in told["ProcessorJobsWaitLong"]["summary"]


# what ended


async def test_more_than_a_tenth_of_failures_is_told_of_for_a_quarter_of_an_hour(project, worker):
    for outcome in ("done",) * 9 + ("fail",):
        await run(worker, outcome)
    assert await alerts(project) == {}, "a tenth is not more"
    await run(worker, "fail")
    told = (await alerts(project))["ProcessorJobsFail"]
    assert "2 of the 11 jobs of queue default" in told["summary"]
    assert told["since"] == (NOON + timedelta(seconds=10)).isoformat()
    await project.later(minutes=16)
    await worker.heartbeat(feed="realtime")
    assert await alerts(project) == {}


async def test_a_few_failures_are_no_rate_and_a_cancelled_job_is_no_failure(project, worker):
    for _ in range(9):
        await run(worker, "fail")
    for _ in range(5):
        await project.cancel(await project.create())
    assert await alerts(project) == {}


@pytest.mark.parametrize(("seconds", "expected"), [(240, set()), (246, {"ProcessorItemsSlow"})])
async def test_items_that_take_more_than_two_minutes_are_told_of(project, worker, seconds, expected):
    job = await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    await worker.claim()
    await project.later(seconds=seconds)
    await worker.heartbeat(job, feed="realtime")
    await worker.finish({"id": job["id"], "attempt": 1}, "fail", items=[done("de"), failed("fr")])
    assert set(await alerts(project)) == expected


# the books


async def test_books_that_do_not_add_up_are_told_of(project, worker):
    await project.sql(
        "update public.credit_accounts set spent = spent + 1, available = available - 1 where owner_id = $1",
        ALICE,
    )
    told = (await alerts(project))["ProcessorCreditsWrong"]
    assert told["severity"] == "critical"
    assert str(ALICE) in told["summary"]
    assert "account.available is not the sum of its lots" in told["summary"]


async def test_of_long_books_is_told_what_an_operators_check_has_found(project, worker):
    await project.sql(
        "update public.credit_accounts set spent = spent + 1, available = available - 1 where owner_id = $1",
        ALICE,
    )
    await project.sql("select setval(pg_get_serial_sequence('public.credit_entries', 'id'), 200000)")
    await project.grant(ALICE, 1)
    assert await alerts(project) == {}
    faults = len(await project.read("check_credits"))
    told = (await alerts(project))["ProcessorCreditsWrong"]
    assert f"{faults} faults when they were last checked" in told["summary"]
    assert told["since"] == NOON.isoformat()
    await project.sql("update public.credit_accounts set spent = spent - 1, available = available + 1")
    assert await project.read("check_credits") == []
    assert await alerts(project) == {}


# schedules


async def test_a_schedule_that_makes_no_job_is_told_of_until_it_does(project, worker):
    await project.sql(
        "insert into public.job_schedules (name, cron, kind, next_run_at) "
        "values ('nightly', '0 3 * * *', 'echo', $1)",
        NOON + timedelta(minutes=1),
    )
    assert await alerts(project) == {}
    await project.later(minutes=3)
    await worker.heartbeat(feed="realtime")
    told = (await alerts(project))["ProcessorScheduleStuck"]
    assert (told["about"], told["since"]) == ("nightly", (NOON + timedelta(minutes=1)).isoformat())
    assert "no worker has run it" in told["summary"]
    await project.sql("update public.job_schedules set paused = true")
    assert await alerts(project) == {}


# who asks


@pytest.mark.parametrize("role", ["job_processor", "service_role"])
async def test_a_workers_key_is_enough(project, worker, role):
    await project.sql("select set_config('processor.now', '', false)")  # an API session has the real time
    async with project.acting(role, api=True):
        rows = await project.rows("select alert from public.read_alerts()")
    assert isinstance(rows, list)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_users_do_not_ask(project, worker, role):
    async with project.refused("42501"):
        await alerts(project, by=role)
