"""Refunds of what was spent, and the statement that tells owners all of it."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, NOON, Database, Project, done, failed, fixture, until_waiting


@fixture
async def shop(project):
    """Give a project in which a job of Alice's has ended: two of three items were paid, 20 of 100 credits."""
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100, reason="welcome", expires_at=NOON + timedelta(days=30))
    await project.grant(BOB, 100)
    project.web = await project.worker()
    await project.create("translate", owner_id=ALICE, items=["de", "fr", "it"])
    [job] = await project.web.claim()
    await project.web.finish(job, "fail", items=[done("de"), done("fr"), failed("it")])
    project.done = await project.job(job)
    assert await project.balance(ALICE) == (80, 0, 20)
    return project


async def refund(project, job, *, by=None, reason="bad quality", **arguments):
    function = "refund_credits" if by else "processor.refund_credits"
    return await project.call(function, by=by, job_id=job["id"], reason=reason, **arguments)


async def test_a_refund_makes_what_was_spent_available_again(shop):
    await shop.later(minutes=5)
    entry = await refund(shop, shop.done)
    assert (entry["kind"], entry["amount"], entry["reason"]) == ("refund", 20, "bad quality")
    assert (entry["job_id"], entry["owner_id"]) == (shop.done["id"], str(ALICE))
    assert await shop.balance(ALICE) == (100, 0, 0)
    row = await shop.job(shop.done)
    assert (row["credits_held"], row["credits_captured"], row["credits_refunded"]) == (0, 0, 30)
    assert row["updated_at"] > shop.done["updated_at"]
    assert await shop.faults() == []


async def test_a_refund_is_a_lot_of_its_own_that_never_expires(shop):
    entry = await refund(shop, shop.done, by="service_role")
    lot = await shop.sql("select to_jsonb(l) from public.credit_lots l where id = $1", entry["lot_id"])
    assert (lot["amount"], lot["remaining"], lot["priority"], lot["expires_at"]) == (20, 20, 0, None)
    assert lot["granted_by"] == entry["id"]


async def test_a_refund_in_parts_is_never_more_than_was_spent(shop):
    await refund(shop, shop.done, amount=15)
    assert await shop.balance(ALICE) == (95, 0, 5)
    async with shop.refused("JQ006", "between 1 and 5"):
        await refund(shop, shop.done, amount=6)
    assert (await refund(shop, shop.done))["amount"] == 5
    async with shop.refused("JQ009", "nothing is left to refund", "20"):
        await refund(shop, shop.done)
    row = await shop.job(shop.done)
    assert (row["credits_captured"], row["credits_refunded"]) == (0, 30)
    assert await shop.faults() == []


@pytest.mark.parametrize("amount", [None, 7, 20])
async def test_the_same_refund_again_happens_once(shop, amount):
    first = await refund(shop, shop.done, amount=amount, idempotency_key="ticket-1")
    for _ in range(2):
        assert await refund(shop, shop.done, amount=amount, idempotency_key="ticket-1") == first
    assert await shop.balance(ALICE) == (80 + (amount or 20), 0, 20 - (amount or 20))
    assert await shop.faults() == []


async def test_all_that_is_left_means_the_same_when_it_is_told_again(shop):
    await refund(shop, shop.done, amount=5)
    first = await refund(shop, shop.done, idempotency_key="ticket-1")
    assert first["amount"] == 15
    assert await refund(shop, shop.done, idempotency_key="ticket-1") == first


async def test_the_same_key_for_another_refund_is_a_conflict(shop):
    await refund(shop, shop.done, amount=5, idempotency_key="ticket-1")
    await shop.grant(ALICE, 5, idempotency_key="order-1")
    for key, amount in (("ticket-1", 6), ("ticket-1", None), ("order-1", 5)):
        async with shop.refused("JQ007", key, "of 5"):
            await refund(shop, shop.done, amount=amount, idempotency_key=key)
    async with shop.refused("JQ007", "ticket-1", "refund of 5"):
        await shop.grant(ALICE, 5, idempotency_key="ticket-1")


async def test_the_same_key_for_another_job_is_a_conflict(shop):
    await refund(shop, shop.done, amount=5, idempotency_key="ticket-1")
    await shop.create("translate", owner_id=ALICE, items=["de"])
    [job] = await shop.web.claim()
    await shop.web.finish(job, "done", items=[done("de")])
    async with shop.refused("JQ007", "ticket-1"):
        await refund(shop, job, amount=5, idempotency_key="ticket-1")


async def test_a_job_that_has_not_ended_cannot_be_refunded(shop):
    job = await shop.create("translate", owner_id=ALICE, items=["de", "fr"])
    async with shop.refused("JQ009", "has not ended"):
        await refund(shop, job)
    [job] = await shop.web.claim()
    await shop.web.finish_items(job, done("de"))
    async with shop.refused("JQ009", "has not ended"):
        await refund(shop, job)


async def test_where_nothing_was_spent_nothing_is_refunded(shop):
    await shop.kind("free")
    free = await shop.create("free", owner_id=ALICE)
    async with shop.refused("JQ009", "is free"):
        await refund(shop, free)
    cancelled = await shop.create("translate", owner_id=ALICE, items=["de"])
    await shop.cancel(cancelled)
    async with shop.refused("JQ009", "has spent 0"):
        await refund(shop, cancelled)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ({"job_id": uuid4()}, "JQ008", "not found"),
        ({"job_id": None}, "JQ006", "job_id"),
        ({"reason": None}, "JQ006", "reason"),
        ({"reason": ""}, "JQ006", "reason"),
        ({"reason": "x" * 501}, "JQ006", "reason"),
        ({"amount": 0}, "JQ006", "amount"),
        ({"amount": -1}, "JQ006", "amount"),
        ({"idempotency_key": ""}, "JQ006", "idempotency_key"),
    ],
)
async def test_a_refund_that_makes_no_sense_is_refused(shop, arguments, code, word):
    async with shop.refused(code, word):
        await shop.call(
            "processor.refund_credits", **({"job_id": shop.done["id"], "reason": "bad quality"} | arguments)
        )


async def test_a_pruned_job_can_be_refunded_from_the_journal(shop):
    await shop.queue("default", retain_for=timedelta(0), retain_last=0)
    await shop.later(seconds=1)
    assert await shop.sql("select processor.prune_jobs()") == 1
    assert (await refund(shop, shop.done, amount=5))["amount"] == 5
    assert (await refund(shop, shop.done))["amount"] == 15
    async with shop.refused("JQ009", "nothing is left"):
        await refund(shop, shop.done)
    assert await shop.balance(ALICE) == (100, 0, 0)
    assert await shop.faults() == []


async def test_a_refunded_job_that_is_retried_pays_for_its_open_items_only(shop):
    await refund(shop, shop.done)
    again = await shop.retry(shop.done)
    assert again["credits_held"] == 10
    assert await shop.balance(ALICE) == (90, 10, 0)
    assert await shop.faults() == []


# statement


async def lines(project, owner) -> list[dict]:
    async with project.acting(owner, api=True):
        return await project.rows("select * from public.credit_statement order by id")


async def test_the_statement_tells_every_change_and_what_was_available_after_it(shop):
    await refund(shop, shop.done, amount=5)
    await shop.later(days=31)
    await shop.sql("select processor.expire_credits()")
    told = await lines(shop, ALICE)
    assert [(line["kind"], line["change"], line["balance"]) for line in told] == [
        ("grant", 100, 100),
        ("reserve", -30, 70),
        ("capture", 0, 70),
        ("release", 10, 80),
        ("refund", 5, 85),
        ("expire", -80, 5),
    ]
    assert {line["owner_id"] for line in told} == {ALICE}
    assert (told[0]["reason"], told[4]["reason"], told[0]["created_at"]) == ("welcome", "bad quality", NOON)
    assert {line["job_id"] for line in told[1:5]} == {UUID(shop.done["id"])}
    assert all(line["lot_id"] for line in told)
    assert await shop.sql("select available from public.credit_accounts where owner_id = $1", ALICE) == 5


async def test_the_statement_tells_of_clawbacks_and_of_what_was_lost_with_its_lot(shop):
    await shop.create("translate", owner_id=BOB, items=["de"])
    entry = await shop.sql("select id from public.credit_entries where kind = 'grant' and owner_id = $1", BOB)
    await shop.sql("select processor.undo_grant($1, 'a mistake')", entry)
    told = await lines(shop, BOB)
    assert [(line["kind"], line["change"], line["balance"]) for line in told] == [
        ("grant", 100, 100), ("reserve", -10, 90), ("clawback", -90, 0),
    ]  # fmt: skip
    await shop.create("translate", owner_id=ALICE, items=["de"])
    [job] = await shop.rows("select id from public.jobs where owner_id = $1 and status = 'pending'", ALICE)
    await shop.later(days=31)
    await shop.cancel(job)
    told = [(line["kind"], line["change"], line["balance"]) for line in await lines(shop, ALICE)]
    assert told[-2:] == [("release", 10, 80), ("expire", -10, 70)]


async def test_the_service_reads_the_statements_of_all(shop):
    async with shop.acting("service_role", api=True):
        rows = await shop.rows("select distinct owner_id from public.credit_statement")
    assert {row["owner_id"] for row in rows} == {ALICE, BOB}


@pytest.mark.parametrize("by", ["anon", "job_processor"])
async def test_nobody_else_reads_statements(shop, by):
    async with shop.refused("42501"), shop.acting(by, api=True):
        await shop.rows("select * from public.credit_statement")


async def test_the_last_lines_of_a_long_statement_are_read_from_the_end(shop):
    await shop.sql(
        "insert into public.credit_entries (owner_id, kind, amount) "
        "select $1, 'capture', 1 from generate_series(1, 20000)",
        ALICE,
    )
    read = (
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int from pg_stat_xact_user_tables "
        "where relname = 'credit_entries'"
    )
    await shop.connection.execute("analyze public.credit_entries")
    before = await shop.sql(read)
    async with shop.acting(ALICE, api=True):
        rows = await shop.rows("select * from public.credit_statement order by id desc limit 20")
    assert [row["balance"] for row in rows] == [80] * 20
    assert await shop.sql(read) - before < 100


# several at once


@fixture
async def crowd(database: Database) -> list[Project]:
    """Give six connections to a database in which Alice has spent 30 on a job."""
    projects = [await database.project() for _ in range(6)]
    one = projects[0]
    await one.kind("translate", credits_per_item=10)
    await one.grant(ALICE, 100)
    await one.create("translate", owner_id=ALICE, items=["de", "fr", "it"])
    worker = await one.worker()
    [job] = await worker.claim()
    await worker.finish(job, "done", items=[done("de"), done("fr"), done("it")])
    one.done = job
    return projects


async def outcomes(*calls) -> list[str]:
    """Await calls together; return the sorted SQLSTATE of each, or ok."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, asyncpg.PostgresError):
            raise answer
    return sorted(a.sqlstate if isinstance(a, asyncpg.PostgresError) else "ok" for a in answers)


async def test_many_refunds_at_once_give_back_what_was_spent_once(crowd):
    job = crowd[0].done
    assert await outcomes(*(refund(p, job) for p in crowd)) == ["JQ009"] * 5 + ["ok"]
    assert await crowd[0].balance(ALICE) == (100, 0, 0)
    assert await crowd[0].faults() == []


async def test_many_refunds_of_a_part_at_once_stop_at_what_was_spent(crowd):
    job = crowd[0].done
    assert await outcomes(*(refund(p, job, amount=10) for p in crowd)) == ["JQ009"] * 3 + ["ok"] * 3
    assert await crowd[0].balance(ALICE) == (100, 0, 0)
    assert await crowd[0].faults() == []


async def test_many_refunds_with_one_key_at_once_are_one(crowd):
    job = crowd[0].done
    entries = await asyncio.gather(*(refund(p, job, amount=10, idempotency_key="k") for p in crowd))
    assert all(entry == entries[0] for entry in entries)
    assert await crowd[0].balance(ALICE) == (80, 0, 20)
    assert await crowd[0].faults() == []


async def test_a_refund_waits_for_the_end_of_the_job(crowd):
    one, two, observer = crowd[:3]
    await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await one.worker()
    [job] = await worker.claim()
    transaction = one.connection.transaction()
    await transaction.start()
    await worker.finish(job, "done", items=[done("de")])
    waiting = asyncio.create_task(refund(two, job))
    await until_waiting(observer, two)
    await transaction.commit()
    assert (await waiting)["amount"] == 10
    assert await observer.balance(ALICE) == (70, 0, 30)
    assert await observer.faults() == []


async def test_a_busy_account_is_left_to_the_next_sweep(crowd):
    one, two = crowd[:2]
    now = await one.now()
    for owner in (ALICE, BOB):
        await one.grant(owner, 5, expires_at=now + timedelta(hours=1))
    await two.at(now + timedelta(hours=2))
    async with one.connection.transaction():
        await one.grant(ALICE, 1)
        assert await two.sql("select processor.expire_credits()") == 1
        assert await two.balance(BOB) == (0, 0, 0)
    assert await two.sql("select processor.expire_credits()") == 1
    assert await two.balance(ALICE) == (71, 0, 30)
    assert await two.faults() == []


async def test_batches_of_opposing_owners_take_turns(crowd):
    """Creating, sweeping, refunding and undoing for two owners in either order: nobody waits in a circle."""
    one = crowd[0]
    await one.grant(BOB, 2000)
    await one.grant(ALICE, 2000)
    expiry = await one.now() + timedelta(hours=1)

    async def act(project: Project, number: int) -> None:
        await project.at(expiry + timedelta(hours=number % 2 - 0.5))
        owners = [ALICE, BOB] if number % 2 else [BOB, ALICE]
        for _ in range(15):
            for owner in owners:
                await project.grant(owner, 3, expires_at=expiry + timedelta(hours=3))
            jobs = await project.call("create_jobs", jobs=[
                {"kind": "translate", "owner_id": str(owner), "items": ["de", "fr"]} for owner in owners * 3
            ])  # fmt: skip
            await project.sql("select processor.expire_credits()")
            for job in jobs if number % 3 else reversed(jobs):
                await project.cancel(job)

    await asyncio.gather(*(act(project, number) for number, project in enumerate(crowd)))
    await one.sql("select pg_stat_force_next_flush()")
    assert await one.sql("select deadlocks from pg_stat_database where datname = current_database()") == 0
    assert await one.faults() == []
    assert await one.sql("select sum(held) from public.credit_accounts") == 0
