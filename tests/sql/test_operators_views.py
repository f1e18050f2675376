"""What operators see: queues, stuck jobs, workers, errors, throughput, credits."""

from datetime import timedelta

import pytest

from tests.sql.harness import ALICE, BOB, NOON, done, failed, fixture

VIEWS = (
    "credit_summary",
    "error_summary",
    "job_lines",
    "queue_health",
    "schedule_health",
    "stuck_jobs",
    "throughput",
    "webhook_health",
    "worker_health",
)


@fixture
async def echo(project):
    """Give a project with a kind and nobody to run it."""
    await project.kind("echo")
    await project.queue("default", retry_delays=[timedelta(minutes=1)], jitter=0)
    return project


async def view(project, name, **where):
    rows = await project.rows(f"select * from processor.{name}")
    return [row for row in rows if all(row[column] == value for column, value in where.items())]


async def reasons(project):
    return {(str(row["job_id"]), row["reason"]) for row in await view(project, "stuck_jobs")}


async def test_views_read_with_the_rights_of_their_reader_and_belong_to_operators_alone(project):
    rows = await project.rows("""
        select relname, reloptions, relacl from pg_class
        where relnamespace = 'processor'::regnamespace and relkind = 'v' order by 1
    """)
    assert [row["relname"] for row in rows] == list(VIEWS)
    for row in rows:
        assert row["reloptions"] == ["security_invoker=on"]
    for role in ("anon", "authenticated", "service_role", "job_processor"):
        for name in VIEWS:
            assert not await project.sql(
                "select has_table_privilege($1, $2, 'select')", role, f"processor.{name}"
            )


async def test_a_queue_shows_what_waits_runs_and_ended(echo):
    worker = await echo.worker()
    for outcome in ("done", "done", "fail"):
        await echo.create()
        [job] = await worker.claim()
        await echo.later(seconds=10)
        await worker.finish(job, outcome)
    await echo.create()
    await worker.claim()
    due = await echo.create()
    await echo.create(run_at=NOON + timedelta(hours=5))
    await echo.later(minutes=3)
    [health] = await view(echo, "queue_health")
    assert health == {
        "queue": "default", "paused": False, "max_processing": None, "live_workers": 0, "due": 1,
        "scheduled": 1, "processing": 1, "oldest_due_age": await echo.now() - NOON - timedelta(seconds=30),
        "done_last_hour": 2, "failed_last_hour": 1, "run_seconds_p50": 10, "run_seconds_p95": 10,
        "waiting": 0,
    }  # fmt: skip
    await worker.heartbeat()
    await echo.cancel(due)
    await echo.later(hours=1)
    await worker.heartbeat()
    [health] = await view(echo, "queue_health")
    assert (health["live_workers"], health["due"], health["oldest_due_age"]) == (1, 0, None)
    assert (health["done_last_hour"], health["run_seconds_p50"]) == (0, None)


async def test_a_queue_whose_row_is_gone_is_still_shown(echo):
    await echo.create()
    await echo.sql("update public.jobs set queue = 'gone'")
    rows = await view(echo, "queue_health", queue="gone")
    assert [(row["paused"], row["due"]) for row in rows] == [(None, 1)]


async def test_a_job_that_waits_a_moment_is_not_stuck(echo):
    await echo.worker()
    await echo.create()
    await echo.create(run_at=NOON + timedelta(days=1), kind="echo")
    assert await reasons(echo) == set()


async def test_a_job_that_waits_long_is_stuck(echo):
    worker = await echo.worker(lease_seconds=3600)
    job = await echo.create()
    await echo.later(minutes=5, seconds=1)
    assert await reasons(echo) == {(job["id"], "waiting_long")}
    await worker.claim()
    assert await reasons(echo) == set()


@pytest.mark.parametrize("registered", [False, True])
async def test_a_kind_that_no_live_worker_handles_is_stuck(echo, registered):
    if registered:
        await echo.worker()
    job = await echo.create()
    await echo.later(minutes=2)  # a lease of 90 seconds is over
    assert await reasons(echo) == {(job["id"], "no_worker")}
    [row] = await view(echo, "stuck_jobs")
    assert "echo" in row["why"]
    assert row["age"] == timedelta(minutes=2)


async def test_a_kind_that_is_handled_in_another_queue_only_is_stuck(echo):
    await echo.queue("other")
    await echo.worker(queues=["other"])
    job = await echo.create()
    assert await reasons(echo) == {(job["id"], "no_worker")}


async def test_a_job_all_of_whose_workers_drain_is_stuck(echo):
    await echo.worker(name="one")
    job = await echo.create()
    await echo.sql("select processor.drain_worker('one')")
    assert await reasons(echo) == {(job["id"], "workers_draining")}
    await echo.worker(name="two")
    assert await reasons(echo) == set()


async def test_a_job_in_a_paused_queue_is_stuck(echo):
    await echo.worker()
    job = await echo.create()
    await echo.queue("default", paused=True)
    assert await reasons(echo) == {(job["id"], "queue_paused")}


async def test_a_job_whose_queue_is_gone_is_stuck(echo):
    await echo.worker()
    job = await echo.create()
    await echo.sql("update public.jobs set queue = 'gone'")
    assert await reasons(echo) == {(job["id"], "queue_missing")}


async def test_a_job_in_a_queue_at_its_limit_is_stuck(echo):
    await echo.queue("default", max_processing=1)
    worker = await echo.worker()
    await echo.create()
    waiting = await echo.create()
    [running] = await worker.claim(2)
    assert await reasons(echo) == {(waiting["id"], "queue_at_limit")}
    await worker.finish(running)
    assert await reasons(echo) == set()


async def test_a_job_in_a_queue_that_has_started_enough_is_stuck_until_the_next_may_start(echo):
    await echo.queue("default", rate_limit=1, rate_period=timedelta(seconds=30))
    worker = await echo.worker()
    await echo.create()
    waiting = await echo.create()
    assert await reasons(echo) == set()
    await worker.claim(2)
    assert await reasons(echo) == {(waiting["id"], "rate_limited")}
    [row] = await view(echo, "stuck_jobs")
    assert "1 in 00:00:30" in row["why"]
    await echo.later(seconds=30)
    assert await reasons(echo) == set()


async def test_a_job_whose_owner_runs_enough_is_stuck(echo):
    await echo.queue("default", max_processing_per_owner=1)
    worker = await echo.worker()
    for owner in (ALICE, BOB, None):
        await echo.create(owner_id=owner)
    waiting = await echo.create(owner_id=ALICE)
    assert await reasons(echo) == set()
    jobs = await worker.claim(10)
    assert len(jobs) == 3
    await echo.create(owner_id=None)
    assert await reasons(echo) == {(waiting["id"], "owner_at_limit")}
    [row] = await view(echo, "stuck_jobs")
    assert "max_processing_per_owner of 1" in row["why"]
    for job in jobs:
        await worker.finish(job)
    assert await reasons(echo) == set()


async def test_jobs_that_wait_for_their_children_are_counted_and_not_stuck(echo):
    await echo.worker(lease_seconds=3600)
    await echo.create(children=[{"kind": "echo", "delay_seconds": 3600}])
    await echo.later(minutes=30)
    [health] = await view(echo, "queue_health")
    assert (health["waiting"], health["scheduled"], health["due"]) == (1, 1, 0)
    assert await reasons(echo) == set()


async def test_a_job_whose_worker_has_lapsed_or_is_forgotten_is_stuck(echo):
    worker = await echo.worker()
    job = await echo.create()
    await worker.claim()
    assert await reasons(echo) == set()
    await echo.later(seconds=91)
    assert await reasons(echo) == {(job["id"], "worker_lost")}
    await echo.sql("delete from public.job_workers")
    assert await reasons(echo) == {(job["id"], "worker_lost")}


@pytest.mark.parametrize("own", [None, 60])
async def test_a_job_that_runs_longer_than_its_timeout_is_stuck(echo, own):
    await echo.queue("default", timeout=timedelta(seconds=120))
    worker = await echo.worker(lease_seconds=3600)
    job = await echo.create(timeout_seconds=own)
    await worker.claim()
    await echo.later(seconds=own or 120)
    assert await reasons(echo) == set()
    await echo.later(seconds=1)
    assert await reasons(echo) == {(job["id"], "over_timeout")}


async def test_a_worker_shows_whether_it_lives_and_how_full_it_is(echo):
    worker = await echo.worker(name="web-1", slots=3)
    await echo.create()
    [job] = await worker.claim()
    await worker.heartbeat(job, feed="realtime")
    await echo.later(seconds=30)
    [row] = await view(echo, "worker_health")
    assert (row["name"], row["alive"], row["draining"], row["feed"]) == ("web-1", True, False, "realtime")
    assert (row["lease_left"], row["heartbeat_age"]) == (timedelta(seconds=60), timedelta(seconds=30))
    assert (row["running"], row["held"], row["slots"]) == (1, 1, 3)
    await echo.later(seconds=61)
    [row] = await view(echo, "worker_health")
    assert (row["alive"], row["lease_left"]) == (False, timedelta(seconds=-1))


async def test_errors_are_counted_by_kind_and_code_whether_tried_again_or_not(echo):
    worker = await echo.worker(lease_seconds=3600)
    await echo.create(max_attempts=2)
    await echo.create(max_attempts=9)
    for number in (1, 2):
        for job in await worker.claim(2):
            await worker.finish(job, "retry", error_code="UPSTREAM_TIMEOUT", error_message=f"round {number}")
        await echo.later(minutes=2)
    [row] = await view(echo, "error_summary")
    assert (row["kind"], row["code"]) == ("echo", "UPSTREAM_TIMEOUT")
    assert (row["failures"], row["jobs"], row["ended"]) == (4, 2, 1)
    assert row["sample_message"] == "round 2"
    assert row["last_at"] == NOON + timedelta(minutes=2)
    await echo.later(days=1)
    assert await view(echo, "error_summary") == []


async def test_throughput_counts_what_ended_by_the_minute_and_by_the_hour(echo):
    worker = await echo.worker(lease_seconds=3600)
    for outcome in ("done", "fail", "done"):
        await echo.create()
        [job] = await worker.claim()
        await echo.later(seconds=20)
        await worker.finish(job, outcome)
    await echo.cancel(await echo.create())
    minutes = await view(echo, "throughput", per="minute")
    assert {(r["starts_at"] - NOON, r["completed"], r["failed"], r["cancelled"]) for r in minutes} == {
        (timedelta(0), 1, 1, 0),
        (timedelta(minutes=1), 1, 0, 1),
    }
    [hour] = await view(echo, "throughput", per="hour")
    assert (hour["starts_at"], hour["jobs"], hour["run_seconds_avg"]) == (NOON, 4, 20)
    await echo.later(days=1, minutes=1)
    assert await view(echo, "throughput") == []


async def test_credits_are_summed_up_by_owner(project):
    await project.kind("translate", credits_per_item=10)
    for owner in (ALICE, BOB):
        await project.grant(owner, 100 if owner == BOB else 60)
    await project.grant(ALICE, 40, expires_at=NOON + timedelta(days=1))
    await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    worker = await project.worker()
    [job] = await worker.claim()
    await project.later(minutes=1)
    await worker.finish(job, "fail", items=[done("de"), failed("fr")])
    await project.create("translate", owner_id=ALICE, items=["it"])
    assert {r["owner_id"]: r for r in await view(project, "credit_summary")} == {
        ALICE: {
            "owner_id": ALICE, "issued": 100, "available": 80, "held": 10, "spent": 10, "expired": 0,
            "jobs": 2, "open_jobs": 1, "last_activity_at": NOON + timedelta(minutes=1),
            "lots": 2, "next_expiry_at": NOON + timedelta(days=1),
        },
        BOB: {
            "owner_id": BOB, "issued": 100, "available": 100, "held": 0, "spent": 0, "expired": 0,
            "jobs": 0, "open_jobs": 0, "last_activity_at": NOON, "lots": 1, "next_expiry_at": None,
        },
    }  # fmt: skip


async def test_all_queues_are_known_whether_by_row_or_by_jobs(echo):
    worker = await echo.worker(lease_seconds=3600)
    for queue in ("b-pending", "c-running", "a-ended", "a-ended", "d-ended"):
        await echo.queue(queue)
        job = await echo.create(queue=queue)
        if queue.endswith("ended"):
            await echo.cancel(job)
        elif queue.endswith("running"):
            await echo.sql(
                "update public.jobs set status = 'processing', worker_id = $2, started_at = $3 where id = $1",
                job["id"],
                worker.id,
                NOON,
            )
    await echo.sql("delete from public.job_queues where name <> 'default'")
    rows = await echo.rows("select n from processor.queue_names() n")
    assert [row["n"] for row in rows] == ["a-ended", "b-pending", "c-running", "d-ended", "default"]


async def test_what_ended_is_read_through_its_index(project):
    await project.kind("echo")
    await project.sql("""
        insert into public.jobs (queue, kind, status, max_attempts, created_at, started_at, finished_at)
        select 'default', 'echo', 'completed', 1, t, t, t
        from (select processor.now() - n * interval '1 hour' as t from generate_series(1, 5000) n) x
    """)
    await project.connection.execute("analyze public.jobs")
    for name in ("queue_health", "throughput"):
        plan = "\n".join(
            row["QUERY PLAN"] for row in await project.rows(f"explain select * from processor.{name}")
        )
        assert "jobs_finished_idx" in plan, plan
        assert "Seq Scan on jobs" not in plan, plan
