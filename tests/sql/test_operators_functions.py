"""What operators do: pause, drain, retry, cancel, move, undo a grant."""

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.sql.harness import ALICE, BOB, NOON, done, failed, fixture


@fixture
async def shop(project):
    """Give a project with a priced kind, a free one, and credits for two owners."""
    await project.kind("translate", credits_per_item=10)
    await project.kind("report", credits_per_job=7)
    await project.kind("echo")
    for owner in (ALICE, BOB):
        await project.grant(owner, 100)
    return project


async def one(project, query, *arguments):
    [row] = await project.rows(f"select * from {query}", *arguments)
    return row


async def fail(project, kind="echo", **arguments):
    """Create a job and let it fail for good."""
    job = await project.create(kind, **arguments)
    worker = await project.worker(lease_seconds=3600)
    [claimed] = await worker.claim()
    assert claimed["id"] == job["id"]
    await worker.finish(claimed, "fail", error_code="BROKEN")
    return job


async def retry_failed(project, since=NOON, **arguments):
    return await project.call("processor.retry_failed", queue="default", since=since, **arguments)


async def statuses(project):
    rows = await project.rows("select status, count(*) from public.jobs group by 1")
    return {row["status"]: row["count"] for row in rows}


# pause and resume


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(shop):
    worker = await shop.worker()
    await shop.create()
    for _ in range(2):
        assert (await one(shop, "processor.pause_queue('default')"))["paused"]
    assert await worker.claim() == []
    for _ in range(2):
        assert not (await one(shop, "processor.resume_queue('default')"))["paused"]
    assert len(await worker.claim()) == 1


async def test_pausing_what_is_paused_writes_nothing(shop):
    await shop.sql("select processor.pause_queue('default')")
    before = await shop.sql("select ctid::text from public.job_queues")
    await shop.sql("select processor.pause_queue('default')")
    assert await shop.sql("select ctid::text from public.job_queues") == before


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("pause_queue('defualt')", "JQ002"),
        ("resume_queue('defualt')", "JQ002"),
        ("pause_queue(null)", "JQ002"),
        ("retry_failed('defualt', processor.now())", "JQ002"),
        ("retry_failed('default', processor.now(), 'ehco')", "JQ001"),
        ("retry_failed('default', null)", "JQ006"),
        ("retry_failed('default', processor.now(), max_jobs => 0)", "JQ006"),
        ("cancel_queue('defualt')", "JQ002"),
        ("cancel_queue('default', 10001)", "JQ006"),
        ("drain_worker('nobody')", "JQ011"),
        ("move_jobs('defualt', 'default')", "JQ002"),
        ("move_jobs('default', 'defualt')", "JQ002"),
        ("move_jobs('default', 'default')", "JQ006"),
        ("undo_grant(0, 'a mistake')", "JQ006"),
        ("undo_grant(null, 'a mistake')", "JQ006"),
        ("prune_jobs(0)", "JQ006"),
    ],
)
async def test_what_does_not_exist_or_makes_no_sense_is_refused(shop, call, code):
    async with shop.refused(code):
        await shop.rows(f"select * from processor.{call}")


# drain


async def test_a_drained_worker_claims_no_more_and_is_told_at_once(shop):
    worker = await shop.worker(name="web-1")
    other = await shop.worker(name="web-2")
    await shop.create()
    for _ in range(2):
        row = await one(shop, "processor.drain_worker('web-1')")
        assert (row["id"], row["draining"], row["inbox"]) == (worker.id, True, 1)
    assert await worker.claim() == []
    assert (await worker.heartbeat())["draining"]
    assert len(await other.claim()) == 1


async def test_a_worker_is_drained_by_its_id_and_all_of_a_name_together(shop):
    workers = [await shop.worker(name="web") for _ in range(2)]
    row = await one(shop, "processor.drain_worker($1)", str(workers[0].id).upper())
    assert row["id"] == workers[0].id
    rows = await shop.rows("select * from processor.drain_worker('web')")
    assert [(row["id"], row["inbox"]) for row in rows] == sorted((w.id, 1) for w in workers)


# retry_failed


async def test_what_failed_since_a_time_is_retried_once(shop):
    await fail(shop)
    await shop.later(minutes=10)
    since = await shop.now()
    recent = await fail(shop)
    cancelled = await shop.create()
    await shop.cancel(cancelled)
    assert await retry_failed(shop, since) == {
        "retried": 1, "skipped": 0, "next_since": None, "problems": [],
    }  # fmt: skip
    assert await shop.sql("select retry_of::text from public.jobs where status = 'pending'") == recent["id"]
    assert (await retry_failed(shop, since))["retried"] == 0
    assert (await retry_failed(shop))["retried"] == 1


async def test_a_partial_job_is_retried_with_its_open_items(shop):
    await shop.create("translate", owner_id=ALICE, items=["de", "fr"])
    worker = await shop.worker()
    [job] = await worker.claim()
    await worker.finish(job, items=[done("de"), failed("fr")])
    assert (await retry_failed(shop))["retried"] == 1
    again = await shop.sql("select to_jsonb(j) from public.jobs j where status = 'pending'")
    assert set(await shop.items(again)) == {"fr"}
    assert await shop.balance(ALICE) == (80, 10, 10)


async def test_only_jobs_of_the_kind_and_queue_are_retried(shop):
    await shop.queue("other")
    await fail(shop)
    await fail(shop, "report", owner_id=ALICE)
    await fail(shop, queue="other")
    assert (await retry_failed(shop, kind="report"))["retried"] == 1
    assert await shop.sql("select kind from public.jobs where status = 'pending'") == "report"


async def test_an_owner_without_credits_is_skipped_and_reported_the_others_are_retried(shop):
    poor = await fail(shop, "report", owner_id=ALICE)
    await fail(shop, "report", owner_id=BOB)
    await shop.create("translate", owner_id=ALICE, items=[str(n) for n in range(10)])
    answer = await retry_failed(shop)
    assert (answer["retried"], answer["skipped"]) == (1, 1)
    [problem] = answer["problems"]
    assert (problem["job_id"], problem["owner_id"], problem["code"]) == (poor["id"], str(ALICE), "PT402")
    assert "7 needed, 0 available" in problem["message"]
    assert await shop.faults() == []
    await shop.grant(ALICE, 7)
    assert (await retry_failed(shop))["retried"] == 1


async def test_a_job_whose_unique_key_is_taken_is_skipped_and_reported(shop):
    await fail(shop, unique_key="nightly")
    await shop.create(unique_key="nightly")
    answer = await retry_failed(shop)
    assert (answer["retried"], answer["problems"][0]["code"]) == (0, "JQ012")


async def test_a_batch_says_where_the_next_one_begins(shop):
    for _ in range(3):
        await fail(shop)
        await shop.later(minutes=1)
    first = await retry_failed(shop, max_jobs=2)
    assert (first["retried"], first["next_since"]) == (2, (NOON + timedelta(minutes=1)).isoformat())
    second = await retry_failed(shop, NOON + timedelta(minutes=1), max_jobs=2)
    assert (second["retried"], second["next_since"]) == (1, None)


async def test_trouble_other_than_a_refusal_is_not_swallowed(shop):
    await fail(shop)
    await shop.sql("alter table public.jobs add constraint broken check (retry_of is null)")
    async with shop.refused("23514"):
        await retry_failed(shop)


# cancel_queue


async def test_cancelling_a_queue_ends_what_waits_and_asks_what_runs(shop):
    worker = await shop.worker()
    running = await shop.create("report", owner_id=ALICE)
    await worker.claim()
    await shop.create("translate", owner_id=ALICE, items=["de"])
    await shop.create("report", owner_id=BOB)
    await shop.queue("other")
    await shop.create(queue="other")
    row = await one(shop, "processor.cancel_queue('default')")
    assert row == {"cancelled": 2, "asked": 1, "remaining": 0}
    assert await statuses(shop) == {"processing": 1, "cancelled": 2, "pending": 1}
    assert (await shop.balance(ALICE), await shop.balance(BOB)) == ((93, 7, 0), (100, 0, 0))
    assert (await worker.heartbeat())["cancel"] == [running["id"]]
    assert (await worker.row())["inbox"] == 1
    assert await shop.faults() == []


async def test_a_cancelled_queue_is_cancelled_again_without_effect(shop):
    worker = await shop.worker()
    await shop.create()
    await worker.claim()
    await shop.sql("select processor.cancel_queue('default')")
    row = await one(shop, "processor.cancel_queue('default')")
    assert row == {"cancelled": 0, "asked": 0, "remaining": 0}
    assert (await worker.row())["inbox"] == 1


async def test_a_large_queue_is_cancelled_batch_by_batch(shop):
    for _ in range(5):
        await shop.create("report", owner_id=ALICE)
    remaining = [(await one(shop, "processor.cancel_queue('default', 2)"))["remaining"] for _ in range(3)]
    assert remaining == [3, 1, 0]
    assert await shop.balance(ALICE) == (100, 0, 0)
    assert await shop.faults() == []


# move_jobs


async def test_pending_jobs_move_and_running_ones_stay(shop):
    worker = await shop.worker()
    running = await shop.create()
    await worker.claim()
    moving = await shop.create("report", owner_id=ALICE)
    await shop.queue("slow")
    assert await one(shop, "processor.move_jobs('default', 'slow')") == {"moved": 1, "remaining": 0}
    assert (await shop.job(running))["queue"] == "default"
    assert (await shop.job(moving))["queue"] == "slow"
    other = await shop.worker()
    assert [job["id"] for job in await other.claim(queues=["slow"])] == [moving["id"]]
    assert await one(shop, "processor.move_jobs('default', 'slow')") == {"moved": 0, "remaining": 0}
    assert await shop.faults() == []


async def test_those_that_would_run_first_move_first(shop):
    await shop.create(priority=1)
    first = await shop.create(priority=5)
    await shop.queue("fast")
    assert await one(shop, "processor.move_jobs('default', 'fast', 1)") == {"moved": 1, "remaining": 1}
    assert (await shop.job(first))["queue"] == "fast"


async def test_jobs_of_a_queue_whose_row_is_gone_can_be_moved(shop):
    job = await shop.create()
    await shop.sql("update public.jobs set queue = 'gone'")
    assert await one(shop, "processor.move_jobs('gone', 'default')") == {"moved": 1, "remaining": 0}
    assert (await shop.job(job))["queue"] == "default"


# undo_grant


async def undo(project, entry, reason="a mistake"):
    return await one(project, "processor.undo_grant($1, $2)", entry, reason)


@fixture
async def grant(shop):
    return await shop.sql("select id from public.credit_entries where owner_id = $1", ALICE)


async def test_an_undone_grant_is_as_if_it_had_not_been(shop, grant):
    answer = await undo(shop, grant)
    assert answer == {
        "owner_id": ALICE, "granted": 100, "taken": 100, "taken_in_all": 100, "missing": 0, "available": 0,
    }  # fmt: skip
    assert await shop.balance(ALICE) == (0, 0, 0)
    assert await shop.sql("select issued from public.credit_accounts where owner_id = $1", ALICE) == 0
    assert await shop.faults() == []
    entry = await one(shop, "public.credit_entries order by id desc limit 1")
    assert (entry["kind"], entry["amount"], entry["undoes"]) == ("clawback", 100, grant)
    assert entry["reason"] == "a mistake"


async def test_a_grant_is_undone_once(shop, grant):
    await undo(shop, grant)
    await shop.grant(ALICE, 50)
    assert (await undo(shop, grant))["taken"] == 0
    assert await shop.balance(ALICE) == (50, 0, 0)


async def test_what_is_held_or_spent_is_not_taken_until_it_is_available_again(shop, grant):
    job = await shop.create("translate", owner_id=ALICE, items=["de", "fr", "it"])
    answer = await undo(shop, grant)
    assert (answer["taken"], answer["missing"], answer["available"]) == (70, 30, 0)
    assert await shop.balance(ALICE) == (0, 30, 0)
    assert (await undo(shop, grant))["taken"] == 0
    await shop.cancel(job)
    assert (await undo(shop, grant))["taken"] == 30
    assert await shop.balance(ALICE) == (0, 0, 0)
    assert await shop.faults() == []


async def test_only_a_grant_can_be_undone_and_only_with_a_reason(shop, grant):
    await shop.create("report", owner_id=ALICE)
    reserve = await shop.sql("select id from public.credit_entries where kind = 'reserve'")
    async with shop.refused("JQ006", "reserve"):
        await undo(shop, reserve)
    for reason in (None, "", "r" * 501):
        async with shop.refused("JQ006", "reason"):
            await undo(shop, grant, reason)
    await undo(shop, grant)
    clawback = await shop.sql("select id from public.credit_entries where kind = 'clawback'")
    async with shop.refused("JQ006", "clawback"):
        await undo(shop, clawback)


async def test_the_check_finds_more_taken_back_than_granted(shop, grant):
    await undo(shop, grant)
    await shop.grant(ALICE, 5)
    await shop.connection.execute(f"""
        insert into public.credit_entries (owner_id, kind, amount, undoes, lot_id)
        select owner_id, 'clawback', 5, {grant}, id from public.credit_lots
        where owner_id = '{ALICE}' and not exhausted;
        update public.credit_lots set remaining = 0 where owner_id = '{ALICE}';
        update public.credit_accounts set issued = issued - 5, available = available - 5
        where owner_id = '{ALICE}'
    """)
    assert [fault["problem"] for fault in await shop.faults()] == ["more was taken back than granted"]


async def test_the_check_finds_a_clawback_that_the_account_does_not_know(shop, grant):
    await shop.sql(
        "insert into public.credit_entries (owner_id, kind, amount, undoes) values ($1, 'clawback', 5, $2)",
        ALICE,
        grant,
    )
    problems = {fault["problem"].split()[0] for fault in await shop.faults()}
    assert problems == {"account.issued", "account.available"}


async def test_a_clawback_names_its_grant_and_nothing_else_does(shop):
    for kind, undoes in (("clawback", None), ("grant", 1)):
        async with shop.refused("23514"):
            await shop.sql(
                "insert into public.credit_entries (owner_id, kind, amount, undoes) values ($1, $2, 1, $3)",
                uuid4(),
                kind,
                undoes,
            )
