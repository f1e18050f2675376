"""The figures for Prometheus: what they say, who reads them, and what reading costs."""

from datetime import timedelta

import pytest

from tests.sql.harness import ALICE, done, fixture

REASONS = {
    "queue_missing",
    "queue_paused",
    "no_worker",
    "workers_draining",
    "waiting_long",
    "worker_lost",
    "over_timeout",
}


@fixture
async def watched(project):
    """Give a project with a kind for credits, and a plain one."""
    await project.kind("echo")
    await project.kind("translate", queue="paid", credits_per_item=10)
    await project.grant(ALICE, 100)
    return project


async def read(worker, *, by="service_role"):
    return await worker.project.call("read_metrics", by=by, worker_id=worker.id)


async def figures(worker):
    answer = await read(worker)
    assert answer["figures"] is not None
    return answer["figures"]


async def queue_of(worker, name="default"):
    return next(q for q in (await figures(worker))["queues"] if q["queue"] == name)


async def stuck(worker):
    return {reason: n for reason, n in (await figures(worker))["stuck"].items() if n}


@pytest.mark.parametrize("role", ["service_role", "job_processor"])
async def test_a_worker_reads_an_empty_project(project, role):
    await project.queue()
    worker = await project.worker()
    told = (await read(worker, by=role))["figures"]
    assert told["queues"] == [
        {
            "queue": "default",
            "paused": False,
            "due": 0,
            "scheduled": 0,
            "waiting": 0,
            "processing": 0,
            "oldest_seconds": 0,
        }
    ]
    assert told["stuck"] == dict.fromkeys(REASONS, 0)
    assert told["workers"] == {"live": 1, "draining": 0, "lost": 0}
    assert told["webhooks"] == {"failing": 0, "given_up": 0}
    assert (told["polling"], told["created"], told["credits"], told["credit_faults"]) == (1, [], {}, 0)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_nobody_else_reads_them(project, role):
    await project.queue()
    worker = await project.worker()
    async with project.refused("42501"):
        await read(worker, by=role)


async def test_a_worker_that_is_unknown_is_told_to_register(watched):
    worker = await watched.worker()
    await worker.deregister()
    async with watched.refused("JQ011", "unknown worker"):
        await read(worker)


async def test_a_queue_is_counted_by_state_over_all_kinds_and_priorities(watched):
    await watched.kind("other")
    worker = await watched.worker()
    for priority, kind in enumerate(["echo", "other"] * 3):
        await watched.create(kind, priority=priority)
    await watched.create("echo", run_at=await watched.now() + timedelta(hours=1))
    assert len(await worker.claim(2)) == 2
    await watched.queue("paid", paused=True)
    await watched.later(seconds=30)
    told = {q.pop("queue"): q for q in (await figures(worker))["queues"]}
    assert told["default"] == {
        "paused": False,
        "due": 4,
        "scheduled": 1,
        "waiting": 0,
        "processing": 2,
        "oldest_seconds": 30,
    }
    assert told["paid"]["paused"] is True


async def test_the_oldest_is_the_one_that_is_due_for_longest_not_the_first_in_turn(watched):
    worker = await watched.worker()
    await watched.create("echo", priority=-5)
    await watched.later(seconds=60)
    await watched.create("echo", priority=5)
    assert (await queue_of(worker))["oldest_seconds"] == 60


async def test_what_waits_for_children_is_neither_due_nor_scheduled(watched):
    worker = await watched.worker()
    await watched.create("echo", children=[{"kind": "echo", "payload": {}}])
    told = await queue_of(worker)
    assert (told["due"], told["scheduled"], told["waiting"]) == (1, 0, 1)


async def test_what_stands_still_is_counted_by_the_reason_that_the_view_gives(watched):
    worker = await watched.worker()
    for _ in range(2):
        await watched.create("echo")
    assert await stuck(worker) == {}
    await watched.queue(paused=True)
    assert await stuck(worker) == {"queue_paused": 2}
    await watched.queue(paused=False)
    await watched.sql("update public.job_workers set draining = true")
    assert await stuck(worker) == {"workers_draining": 2}
    await watched.sql("update public.job_workers set draining = false, kinds = '{}'")
    assert await stuck(worker) == {"no_worker": 2}
    view = await watched.rows("select reason, count(*) as n from processor.stuck_jobs group by 1")
    assert view == [{"reason": "no_worker", "n": 2}]
    await watched.sql("delete from public.job_kinds where queue = 'default'")
    await watched.sql("delete from public.job_queues where name = 'default'")
    assert await stuck(worker) == {"queue_missing": 2}


async def test_jobs_that_are_due_for_five_minutes_have_waited_long(watched):
    worker = await watched.worker(lease_seconds=3600)
    await watched.create("echo")
    await watched.later(minutes=4)
    await watched.create("echo")
    await watched.later(minutes=2)
    assert await stuck(worker) == {"waiting_long": 1}


async def test_what_a_dead_worker_holds_and_what_runs_for_too_long_is_counted(watched):
    living = await watched.worker(lease_seconds=3600)
    await watched.queue(timeout=timedelta(minutes=10))
    await watched.create("echo")
    await watched.create("echo")
    dead = await watched.worker(lease_seconds=60)
    assert len(await dead.claim(1)) == len(await living.claim(1)) == 1
    await watched.later(minutes=2)
    assert await stuck(living) == {"worker_lost": 1}
    await watched.later(minutes=9)
    told = await figures(living)
    assert (told["stuck"]["worker_lost"], told["stuck"]["over_timeout"]) == (1, 1)
    assert told["workers"] == {"live": 1, "draining": 0, "lost": 1}


async def test_jobs_created_are_counted_once_and_go_on_being_counted_when_they_are_gone(watched):
    worker = await watched.worker()
    await figures(worker)
    for _ in range(3):
        await watched.create("echo")
    await watched.sql("update processor.metric_reader set jobs_to = '00000000-0000-0000-0000-000000000000'")
    assert (await figures(worker))["created"] == []  # too young
    old = "update public.jobs set id = overlay(id::text placing '00' from 1)::uuid"  # long ago
    await watched.sql(old)
    for _ in range(2):
        assert (await figures(worker))["created"] == [{"queue": "default", "kind": "echo", "total": 3}]
    await watched.sql("delete from public.jobs")
    assert (await figures(worker))["created"] == [{"queue": "default", "kind": "echo", "total": 3}]


async def test_names_without_end_become_one_series(watched):
    many = [{"queue": "q", "kind": f"k{n:03}", "total": 1} for n in range(150)]
    for _ in range(2):
        await watched.call("processor.add_to_metrics", name="created", counted=many)
    rows = await watched.rows("select kind, total from processor.metric_totals order by kind")
    assert len(rows) == 101
    assert rows[-1] == {"kind": "other", "total": 100}
    assert {row["total"] for row in rows[:-1]} == {2}


async def test_credits_are_counted_from_the_journal_fifteen_seconds_after(watched):
    worker = await watched.worker()
    await watched.create("translate", owner_id=ALICE, items=["de", "fr"])
    assert (await figures(worker))["credits"] == {}
    [job] = await worker.claim()
    await worker.finish(job, "fail", items=[done("de")])
    await watched.later(seconds=16)
    for _ in range(2):
        told = (await figures(worker))["credits"]
        assert told == {"grant": 100, "reserve": 20, "capture": 10, "release": 10}


async def test_a_fault_in_the_books_is_told_within_the_hour(watched):
    worker = await watched.worker(lease_seconds=3600)
    assert (await figures(worker))["credit_faults"] == 0
    await watched.sql("update public.credit_accounts set issued = issued + 1, available = available + 1")
    faults = len(await watched.faults())
    assert faults > 0
    assert (await figures(worker))["credit_faults"] == 0
    await watched.later(minutes=59)
    await worker.heartbeat()
    await watched.later(minutes=2)
    assert (await figures(worker))["credit_faults"] == faults


async def test_of_books_too_long_to_be_read_whole_an_operators_check_counts_for_two_days(watched):
    worker = await watched.worker(lease_seconds=3600)
    await figures(worker)
    await watched.sql("update processor.metric_reader set entries_to = 1000000, checked_at = null")
    assert (await figures(worker))["credit_faults"] is None
    await watched.sql("update processor.metric_reader set entries_to = 0")
    assert (await figures(worker))["credit_faults"] == 0
    await watched.sql("update pg_class set reltuples = 1000000 where oid = 'public.jobs'::regclass")
    await watched.sql("update public.credit_accounts set issued = issued + 1, available = available + 1")
    assert (await figures(worker))["credit_faults"] == 0
    faults = len(await watched.read("check_credits"))
    assert (await figures(worker))["credit_faults"] == faults > 0
    await watched.later(hours=49)
    assert (await figures(worker))["credit_faults"] is None


async def test_one_worker_reads_and_the_others_are_told_when_to_ask_again(watched):
    reader, other = await watched.worker(), await watched.worker()
    await figures(reader)
    assert await read(other) == {"figures": None, "again_in_seconds": 30}
    await watched.later(seconds=60)
    await figures(reader)
    await watched.later(seconds=60)
    await other.heartbeat()
    await reader.heartbeat()
    assert (await read(other))["figures"] is None
    await watched.later(seconds=31)  # the reader has not asked for 91 seconds
    await figures(other)
    assert (await read(reader))["figures"] is None


async def test_a_reader_that_has_left_is_followed_at_once(watched):
    reader, other = await watched.worker(), await watched.worker()
    await figures(reader)
    await reader.deregister()
    await figures(other)


async def test_a_reader_that_is_dead_is_followed_when_its_lease_is_over(watched):
    reader, other = await watched.worker(lease_seconds=10), await watched.worker()
    await figures(reader)
    assert await read(other) == {"figures": None, "again_in_seconds": 10}
    await watched.later(seconds=11)
    await figures(other)


async def test_two_that_ask_at_the_same_time_do_not_wait_for_each_other(database):
    one, two = await database.project(), await database.project()
    await one.queue()
    first, second = await one.worker(), await one.worker()
    async with one.connection.transaction():
        await figures(first)
        assert await read(second.through(two)) == {"figures": None, "again_in_seconds": 10}
    assert (await read(second.through(two)))["figures"] is None


async def test_of_a_backlog_no_more_is_read_than_is_counted(project):
    await project.kind("echo")
    worker = await project.worker()
    await project.sql("""
        insert into public.jobs (queue, kind, max_attempts, run_at)
        select 'default', 'echo', 1, processor.now() - n * interval '1 second'
        from generate_series(1, 25000) n
    """)
    await figures(worker)  # which checks the books, once an hour
    before = await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'")
    told = await queue_of(worker)
    assert (told["due"], told["oldest_seconds"]) == (10000, 25000)
    assert await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'") == before
