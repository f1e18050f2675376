"""Pruning: what goes, what stays."""

from datetime import timedelta

import pytest

from tests.sql.harness import ALICE, NOON, TABLES, done, fixture


@fixture
async def old(project):
    """Give a project whose queue keeps the last 2 jobs, and any for a day."""
    await project.kind("translate", credits_per_item=10)
    await project.kind("echo")
    await project.queue("default", retain_last=2, retain_for=timedelta(days=1))
    await project.grant(ALICE, 100)
    return project


async def ended(project, days: float, **arguments):
    """Make a job that ended so many days before noon."""
    job = await project.create(**arguments)
    await project.cancel(job)
    await project.sql(
        "update public.jobs set finished_at = $2 where id = $1", job["id"], NOON - timedelta(days=days)
    )
    return job["id"]


async def prune(project, batch=1000):
    return await project.sql("select processor.prune_jobs($1)", batch)


async def left(project):
    return {str(row["id"]) for row in await project.rows("select id from public.jobs")}


async def test_a_job_goes_when_it_is_old_and_not_among_the_last(old):
    [oldest, older, second, last] = [await ended(old, days) for days in (5, 4, 3, 2)]
    assert await left(old) == {oldest, older, second, last}
    assert await prune(old) == 2
    assert await left(old) == {second, last}
    assert await prune(old) == 0


async def test_a_job_that_is_young_stays_however_many_came_after_it(old):
    [gone, *kept] = [await ended(old, days) for days in (1.01, 0.9, 0.5, 0.2, 0.1)]
    assert await prune(old) == 1
    assert await left(old) == set(kept)
    assert gone not in await left(old)


async def test_a_queue_that_keeps_no_last_keeps_by_age_alone(old):
    await old.queue("default", retain_last=0)
    await ended(old, 2)
    young = await ended(old, 0.5)
    assert await prune(old) == 1
    assert await left(old) == {young}


async def test_each_queue_has_its_own_rule_and_one_whose_row_is_gone_the_default(old):
    await old.queue("short", retain_last=1, retain_for=timedelta(hours=1))
    kept = {await ended(old, 2, queue="short")}
    await ended(old, 3, queue="short")
    kept |= {await ended(old, days) for days in (9, 8)}
    await old.queue("gone")
    kept |= {await ended(old, 30 + n / 100, queue="gone") for n in range(100)}
    await ended(old, 40, queue="gone")
    await old.sql("delete from public.job_queues where name = 'gone'")
    assert await prune(old) == 2
    assert await left(old) == kept


async def test_the_oldest_go_first_and_at_most_a_batch(old):
    jobs = [await ended(old, days) for days in (9, 8, 7, 6, 5)]
    assert [await prune(old, 2), await prune(old, 2)] == [2, 1]
    assert await left(old) == set(jobs[3:])


async def test_a_batch_goes_over_all_queues_together(old):
    await old.queue("another", retain_last=0)
    for queue in ("another", "default"):
        await old.queue(queue, retain_last=0)
        for days in (9, 8):
            await ended(old, days, queue=queue)
    assert await prune(old, 3) == 3
    assert len(await left(old)) == 1


async def test_what_has_not_ended_stays(old):
    await old.queue("default", retain_last=0)
    worker = await old.worker()
    running = await old.create("echo")
    await worker.claim()
    waiting = await old.create("echo")
    await old.later(days=100)
    assert await prune(old) == 0
    assert await left(old) == {running["id"], waiting["id"]}


async def test_a_job_with_an_open_hold_stays_even_if_it_claims_to_have_ended(old):
    await old.queue("default", retain_last=0)
    job = await old.create("translate", owner_id=ALICE, items=["de"])
    await old.sql("""
        update public.jobs
        set status = 'failed', finished_at = '2026-01-01', credits_held = 0, credits_refunded = 10
    """)
    assert await prune(old) == 0
    assert await left(old) == {job["id"]}


async def test_with_a_job_goes_all_that_is_its_own_but_not_the_journal(old):
    await old.queue("default", retain_last=0)
    await old.create("translate", owner_id=ALICE, items=["de", "fr"])
    worker = await old.worker()
    [job] = await worker.claim()
    await worker.log(job, "hello")
    await worker.finish(job, "fail", items=[done("de")])
    await old.later(days=1, seconds=1)
    assert await prune(old) == 1
    counts = await old.counts()
    assert {table for table in TABLES if counts[table]} == {
        "job_queues", "job_kinds", "job_workers", "credit_accounts", "credit_lots", "credit_entries",
    }  # fmt: skip
    kinds = await old.rows("select kind from public.credit_entries order by id")
    assert [row["kind"] for row in kinds] == ["grant", "reserve", "capture", "release"]
    assert await old.balance(ALICE) == (90, 0, 10)
    assert await old.faults() == []


@pytest.mark.parametrize("by", ["service_role", "job_processor"])
async def test_workers_prune_through_the_api(old, by):
    await old.queue("default", retain_last=0)
    await ended(old, 20000)
    assert await old.call("prune_jobs", by=by, batch=10) == 1


@pytest.mark.parametrize("by", ["anon", ALICE])
async def test_clients_do_not_prune(old, by):
    async with old.refused("42501"):
        await old.call("prune_jobs", by=by)


async def test_a_rule_that_makes_no_sense_is_refused(old):
    for column in ("retain_last = -1", "retain_last = 1000001", "retain_for = interval '-1 day'"):
        async with old.refused("23514"):
            await old.sql(f"update public.job_queues set {column}")


async def test_a_job_in_somebodys_hands_is_left_to_the_next_call(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    await one.queue("default", retain_last=0, retain_for=timedelta(0))
    jobs = [await one.create() for _ in range(2)]
    for job in jobs:
        await one.cancel(job)
    async with two.connection.transaction():
        await two.sql("select 1 from public.jobs where id = $1 for no key update", jobs[0]["id"])
        assert await prune(one) == 1
        assert await left(one) == {jobs[0]["id"]}
    assert await prune(one) == 1


async def test_pruning_reads_the_index_however_many_stay(project):
    await project.kind("echo")
    await project.sql("""
        insert into public.jobs (queue, kind, status, max_attempts, created_at, started_at, finished_at)
        select 'default', 'echo', 'completed', 1, t, t, t
        from (select processor.now() - n * interval '1 second' as t from generate_series(1, 20000) n) x
    """)
    await project.connection.execute("analyze public.jobs")
    before = await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'")
    assert await prune(project) == 0
    assert await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'") == before


@pytest.mark.parametrize("statistics", ["fresh", "none"])
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_pruning_a_batch_reads_a_batch_of_the_table(project, statistics, plan):
    await project.kind("echo")
    await project.sql("""
        insert into public.jobs (queue, kind, status, max_attempts, created_at, started_at, finished_at)
        select 'default', 'echo', 'completed', 1, t, t, t
        from (select processor.now() - n * interval '1 hour' as t from generate_series(1, 20000) n) x
    """)
    if statistics == "fresh":
        await project.connection.execute("analyze public.jobs")
    await project.sql("select set_config('plan_cache_mode', $1, true)", plan)
    reads = "select seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where relname = 'jobs'"
    before = await project.connection.fetchrow(reads)

    assert await prune(project, 50) == 50

    after = await project.connection.fetchrow(reads)
    assert after["seq_scan"] == before["seq_scan"]
    # each is found, deleted, and looked for where others might refer to it; the last 100 are passed by
    assert after["idx_tup_fetch"] - before["idx_tup_fetch"] <= 5 * 50 + 2 * 100


async def test_a_table_of_100_million_jobs_is_vacuumed_with_its_indexes_every_75000_jobs(project):
    options = await project.sql("select reloptions from pg_class where oid = 'public.jobs'::regclass")
    settings = dict(option.split("=") for option in options)
    assert settings["vacuum_index_cleanup"] == "on"
    threshold = int(settings["autovacuum_vacuum_threshold"])
    share = float(settings["autovacuum_vacuum_scale_factor"])
    # a claim and a finish leave a dead version each
    assert threshold + share * 100_000_000 <= 2 * 75_000
