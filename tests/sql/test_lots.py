"""Lots: in which order they burn, what comes back to them, and what happens when their time is over."""

import random
from datetime import timedelta

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, NOON, TABLES, done, failed, fixture

SOON, LATER = NOON + timedelta(hours=1), NOON + timedelta(days=1)


@fixture
async def shop(project):
    """Give a project with a kind priced per item, one priced per job, and a worker for both."""
    await project.kind("translate", credits_per_item=10)
    await project.kind("report", credits_per_job=7)
    project.web = await project.worker()
    return project


async def left(project, owner=ALICE) -> dict[str, int]:
    """Return what remains of each lot, by the reason it was granted for."""
    rows = await project.rows(
        "select e.reason, l.remaining from public.credit_lots l "
        "join public.credit_entries e on e.id = l.granted_by where l.owner_id = $1 order by l.id",
        owner,
    )
    return {row["reason"]: row["remaining"] for row in rows}


async def entries(project, kind, owner=ALICE) -> list[tuple[str, int]]:
    """Return the entries of a kind in their order, each as the reason of its lot and the amount."""
    rows = await project.rows(
        "select g.reason, e.amount from public.credit_entries e "
        "join public.credit_lots l on l.id = e.lot_id join public.credit_entries g on g.id = l.granted_by "
        "where e.kind = $1 and e.owner_id = $2 order by e.id",
        kind,
        owner,
    )
    return [(row["reason"], row["amount"]) for row in rows]


async def expired(project, owner=ALICE) -> int:
    return await project.sql("select expired from public.credit_accounts where owner_id = $1", owner)


# grants


async def test_a_grant_makes_a_lot(project):
    await project.grant(ALICE, 100, reason="welcome", priority=5, expires_at=LATER)
    [lot] = await project.rows("select * from public.credit_lots")
    [entry] = await project.rows("select id, lot_id from public.credit_entries")
    assert lot == {
        "id": entry["lot_id"], "owner_id": ALICE, "amount": 100, "remaining": 100, "priority": 5,
        "expires_at": LATER, "exhausted": False, "granted_by": entry["id"], "created_at": NOON,
    }  # fmt: skip
    assert await project.faults() == []


async def test_a_grant_says_nothing_of_priority_and_never_expires_unless_told(project):
    await project.call("grant_credits", by="service_role", owner_id=ALICE, amount=5, priority=None)
    [lot] = await project.rows("select priority, expires_at from public.credit_lots")
    assert lot == {"priority": 0, "expires_at": None}


@pytest.mark.parametrize(
    "other", [{"amount": 2}, {"priority": 1}, {"expires_at": LATER}, {"expires_at": None}]
)
async def test_the_same_key_for_another_grant_is_a_conflict(project, other):
    first = {"amount": 1, "priority": 0, "expires_at": SOON, "idempotency_key": "order-1"}
    await project.grant(ALICE, **first)
    async with project.refused("JQ007", "order-1", "grant of 1"):
        await project.grant(ALICE, **first | other)
    await project.later(days=2)
    account = await project.grant(ALICE, **first)
    assert account["issued"] == 1, "told again after its time it is still the same grant"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"priority": 1001}, "priority"),
        ({"priority": -1001}, "priority"),
        ({"expires_at": NOON}, "expires_at"),
        ({"expires_at": NOON + timedelta(days=40_000)}, "100 years"),
    ],
)
async def test_an_absurd_lot_is_refused(project, arguments, word):
    async with project.refused("JQ006", word):
        await project.grant(ALICE, 10, **arguments)


# burning


async def test_lots_burn_by_priority_then_by_expiry_then_by_age(shop):
    await shop.grant(ALICE, 10, reason="old")
    await shop.grant(ALICE, 10, reason="young")
    await shop.grant(ALICE, 10, reason="later", expires_at=LATER)
    await shop.grant(ALICE, 10, reason="soon", expires_at=SOON)
    await shop.grant(ALICE, 10, reason="last", priority=-1, expires_at=SOON)
    await shop.grant(ALICE, 10, reason="first", priority=1)
    order = []
    for _ in range(6):
        await shop.create("translate", owner_id=ALICE, items=["de"])
        order += [reason for reason, rest in (await left(shop)).items() if rest == 0 and reason not in order]
    assert order == ["first", "soon", "later", "old", "young", "last"]
    assert await shop.faults() == []


async def test_a_job_burns_as_many_lots_as_it_needs_and_the_journal_says_which(shop):
    await shop.grant(ALICE, 100, reason="bought")
    await shop.grant(ALICE, 15, reason="trial", expires_at=LATER)
    await shop.grant(ALICE, 3, reason="gift", priority=1)
    await shop.create("translate", owner_id=ALICE, items=["de", "fr"])
    assert await entries(shop, "reserve") == [("gift", 3), ("trial", 15), ("bought", 2)]
    assert await left(shop) == {"bought": 98, "trial": 0, "gift": 0}
    assert await shop.faults() == []


async def test_what_is_captured_burns_first_and_the_rest_goes_back_where_it_came_from(shop):
    await shop.grant(ALICE, 100, reason="bought")
    await shop.grant(ALICE, 15, reason="trial", expires_at=LATER)
    await shop.create("translate", owner_id=ALICE, items=["de", "fr", "it"])
    [job] = await shop.web.claim()
    await shop.web.finish(job, "fail", items=[done("de"), done("fr")])
    assert await entries(shop, "capture") == [("trial", 15), ("bought", 5)]
    assert await entries(shop, "release") == [("bought", 10)]
    assert await left(shop) == {"bought": 95, "trial": 0}
    assert await shop.faults() == []


async def test_a_lot_is_exhausted_until_a_job_gives_something_back(shop):
    await shop.grant(ALICE, 10)
    exhausted = "select exhausted from public.credit_lots"
    job = await shop.create("translate", owner_id=ALICE, items=["de"])
    assert await shop.sql(exhausted) is True
    await shop.cancel(job)
    assert await shop.sql(exhausted) is False
    assert await shop.balance(ALICE) == (10, 0, 0)
    assert await shop.faults() == []


async def test_jobs_that_end_together_settle_each_with_its_own_lots(shop):
    for owner in (ALICE, BOB):
        await shop.grant(owner, 10, reason="small")
        await shop.grant(owner, 100, reason="large")
    for owner in (ALICE, BOB, ALICE, BOB):
        await shop.create("report", owner_id=owner)
    jobs = await shop.web.claim(4)
    answers = await shop.web.finish_all([
        {"id": job["id"], "attempt": 1, "outcome": outcome}
        for job, outcome in zip(jobs, ("done", "done", "done", "fail"), strict=True)
    ])  # fmt: skip
    assert [answer["status"] for answer in answers] == ["completed", "completed", "completed", "failed"]
    assert (await left(shop), await left(shop, BOB)) == (
        {"small": 0, "large": 96},
        {"small": 3, "large": 100},
    )
    assert await entries(shop, "capture") == [("small", 7), ("small", 3), ("large", 4)]
    assert await entries(shop, "release", BOB) == [("small", 3), ("large", 4)]
    assert (await shop.balance(ALICE), await shop.balance(BOB)) == ((96, 0, 14), (103, 0, 7))
    assert await shop.faults() == []


@pytest.mark.parametrize("seed", range(4))
async def test_many_jobs_of_many_owners_burn_lots_as_if_one_after_the_other(shop, seed):
    chance = random.Random(seed)
    owners = [ALICE, BOB]
    lots: dict = {owner: [] for owner in owners}
    for number in range(12):
        owner, amount, priority = chance.choice(owners), chance.randint(1, 40), chance.randint(-1, 1)
        expires = chance.choice([None, SOON, LATER])
        await shop.grant(owner, amount, reason=str(number), priority=priority, expires_at=expires)
        lots[owner].append([-priority, expires is None, expires, number, amount])
    for owner in owners:
        await shop.grant(owner, 1000, reason=f"rest of {owner}", priority=-10)
        lots[owner] = [[str(lot[3]), lot[4]] for lot in sorted(lots[owner])] + [[f"rest of {owner}", 1000]]

    jobs = [(chance.choice(owners), chance.randint(1, 3)) for _ in range(15)]
    expected: dict = {owner: [] for owner in owners}
    for owner, items in jobs:
        needed = items * 10
        for lot in lots[owner]:
            burned = min(needed, lot[1])
            if burned:
                expected[owner].append((lot[0], burned))
                lot[1] -= burned
                needed -= burned
    await shop.call("create_jobs", jobs=[
        {"kind": "translate", "owner_id": str(owner), "items": [str(n) for n in range(items)]}
        for owner, items in jobs
    ])  # fmt: skip
    for owner in owners:
        assert await entries(shop, "reserve", owner) == expected[owner]
        assert sorted((await left(shop, owner)).items()) == sorted(
            (reason, rest) for reason, rest in lots[owner]
        )
    assert await shop.faults() == []


async def test_a_batch_that_one_owner_cannot_pay_is_refused_as_a_whole(shop):
    await shop.grant(ALICE, 100)
    await shop.grant(BOB, 19)
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with shop.connection.transaction():
            await shop.call("create_jobs", jobs=[
                {"kind": "translate", "owner_id": str(owner), "items": ["de"]} for owner in (ALICE, BOB, BOB)
            ])  # fmt: skip
    assert caught.value.sqlstate == "PT402"
    assert caught.value.args[0] == "insufficient credits: 20 needed, 19 available"
    assert caught.value.detail == '{"needed" : 20, "available" : 19}'
    assert (await shop.balance(ALICE), await shop.balance(BOB)) == ((100, 0, 0), (19, 0, 0))
    assert await shop.faults() == []


# expiry


async def test_what_has_expired_is_not_reserved(shop):
    await shop.grant(ALICE, 15, expires_at=SOON)
    await shop.grant(ALICE, 8)
    await shop.later(hours=1)
    async with shop.refused("PT402", "10 needed, 8 available"):
        await shop.create("translate", owner_id=ALICE, items=["de"])
    await shop.create("report", owner_id=ALICE)
    assert await shop.balance(ALICE) == (1, 7, 0)
    assert await expired(shop) == 15
    assert await shop.faults() == []


async def test_the_sweeper_takes_out_what_has_expired(shop):
    await shop.grant(ALICE, 10, reason="soon", expires_at=SOON)
    await shop.grant(ALICE, 20, reason="later", expires_at=LATER)
    await shop.grant(BOB, 5, reason="soon", expires_at=SOON)
    expire = "select processor.expire_credits()"
    assert await shop.sql(expire) == 0
    await shop.later(hours=1)
    assert await shop.sql(expire) == 2
    assert await shop.sql(expire) == 0
    assert (await left(shop), await left(shop, BOB)) == ({"soon": 0, "later": 20}, {"soon": 0})
    assert (await shop.balance(ALICE), await shop.balance(BOB)) == ((20, 0, 0), (0, 0, 0))
    assert await entries(shop, "expire") == [("soon", 10)]
    assert await shop.faults() == []


async def test_the_sweeper_works_in_batches_the_longest_expired_first(shop):
    for number in range(3):
        await shop.grant(ALICE, 1, reason=str(number), expires_at=LATER - timedelta(hours=number))
    await shop.later(days=2)
    assert [await shop.sql("select processor.expire_credits(2)") for _ in range(3)] == [2, 1, 0]
    assert await entries(shop, "expire") == [("1", 1), ("2", 1), ("0", 1)]
    assert await shop.faults() == []


@pytest.mark.parametrize("by", ["service_role", "job_processor"])
async def test_workers_expire_through_the_api(shop, by):
    await shop.grant(ALICE, 1, expires_at=SOON)
    await shop.later(hours=2)
    assert await shop.call("expire_credits", by=by, batch=10) == 1


async def test_a_sweep_of_nothing_makes_no_sense(shop):
    async with shop.refused("JQ006", "batch"):
        await shop.sql("select processor.expire_credits(0)")


async def test_what_a_job_holds_does_not_expire_under_it(shop):
    await shop.grant(ALICE, 10, expires_at=SOON)
    await shop.create("translate", owner_id=ALICE, items=["de"])
    [job] = await shop.web.claim()
    await shop.later(hours=2)
    assert await shop.sql("select processor.expire_credits()") == 0
    assert (await shop.web.finish(job, "done", items=[done("de")]))["status"] == "completed"
    assert await shop.balance(ALICE) == (0, 0, 10)
    assert await expired(shop) == 0
    assert await shop.faults() == []


async def test_what_is_given_back_to_a_lot_that_has_died_is_lost(shop):
    await shop.grant(ALICE, 100, reason="bought")
    await shop.grant(ALICE, 15, reason="trial", expires_at=SOON)
    await shop.create("translate", owner_id=ALICE, items=["de", "fr"])
    [job] = await shop.web.claim()
    await shop.later(hours=1)
    await shop.web.finish(job, "fail", items=[done("de"), failed("fr")])
    assert await entries(shop, "capture") == [("trial", 10)]
    assert await entries(shop, "release") == [("trial", 5), ("bought", 5)]
    assert await entries(shop, "expire") == [("trial", 5)]
    assert await shop.balance(ALICE) == (100, 0, 10)
    assert await expired(shop) == 5
    row = await shop.job(job)
    assert (row["credits_captured"], row["credits_refunded"]) == (10, 10)
    assert await shop.faults() == []


async def test_a_lot_that_has_died_but_was_not_swept_gets_nothing_back_either(shop):
    await shop.grant(ALICE, 30, reason="trial", expires_at=SOON)
    job = await shop.create("translate", owner_id=ALICE, items=["de"])
    await shop.later(hours=1)
    await shop.cancel(job)
    assert await shop.balance(ALICE) == (20, 0, 0)
    assert await shop.sql("select processor.expire_credits()") == 1
    assert await shop.balance(ALICE) == (0, 0, 0)
    assert await expired(shop) == 30
    assert await shop.faults() == []


# clawback


async def grant_of(project, reason) -> int:
    return await project.sql(
        "select id from public.credit_entries where kind = 'grant' and reason = $1", reason
    )


async def undo(project, entry) -> dict:
    [row] = await project.rows("select * from processor.undo_grant($1, 'a mistake')", entry)
    return row


async def test_an_undone_grant_is_taken_from_its_own_lot_then_as_lots_burn(shop):
    await shop.grant(ALICE, 10, reason="bought")
    await shop.grant(ALICE, 20, reason="wrong", priority=9)
    await shop.grant(ALICE, 5, reason="trial", expires_at=LATER)
    await shop.grant(ALICE, 50, reason="other", priority=-1)
    await shop.create("translate", owner_id=ALICE, items=["de", "fr"])
    await shop.cancel(await shop.create("report", owner_id=ALICE))
    answer = await undo(shop, await grant_of(shop, "wrong"))
    assert (answer["taken"], answer["missing"], answer["available"]) == (20, 0, 45)
    assert await entries(shop, "clawback") == [("trial", 5), ("bought", 10), ("other", 5)]
    assert await left(shop) == {"bought": 0, "wrong": 0, "trial": 0, "other": 45}
    assert await shop.faults() == []


async def test_an_undone_grant_whose_lot_is_untouched_touches_no_other(shop):
    await shop.grant(ALICE, 10, reason="first", priority=9)
    await shop.grant(ALICE, 20, reason="wrong")
    await undo(shop, await grant_of(shop, "wrong"))
    assert await entries(shop, "clawback") == [("wrong", 20)]
    assert await left(shop) == {"first": 10, "wrong": 0}


async def test_what_has_expired_is_not_taken_back(shop):
    await shop.grant(ALICE, 10, reason="wrong", expires_at=SOON)
    await shop.grant(ALICE, 4, reason="bought")
    await shop.later(hours=1)
    answer = await undo(shop, await grant_of(shop, "wrong"))
    assert (answer["taken"], answer["missing"], answer["available"]) == (4, 6, 0)
    assert await expired(shop) == 10
    assert await shop.faults() == []


async def test_a_refund_cannot_be_undone_as_a_grant(shop):
    await shop.grant(ALICE, 10)
    await shop.create("translate", owner_id=ALICE, items=["de"])
    [job] = await shop.web.claim()
    await shop.web.finish(job, "done", items=[done("de")])
    refund = await shop.call("processor.refund_credits", job_id=job["id"], reason="bad")
    async with shop.refused("JQ006", "is a refund"):
        await undo(shop, refund["id"])


# cost


async def test_reserving_and_giving_back_a_part_of_a_lot_touches_no_index(shop):
    await shop.grant(ALICE, 1000, expires_at=LATER)
    counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'credit_lots'"
    [before] = await shop.rows(counts)
    for _ in range(5):
        await shop.cancel(await shop.create("report", owner_id=ALICE))
    [after] = await shop.rows(counts)
    assert after["n_tup_upd"] - before["n_tup_upd"] == 10
    assert after["n_tup_hot_upd"] - before["n_tup_hot_upd"] == 10


async def test_a_plan_made_for_empty_tables_serves_full_ones(database):
    """A session that began with nothing keeps its plans: they must not read what grows."""
    shop = await database.project()
    await shop.kind("report", credits_per_job=1)
    for table in TABLES:
        await shop.connection.execute(f"vacuum analyze public.{table}")
    for owner in (ALICE, BOB):
        await shop.grant(owner, 1_000_000)
    # statistics of the little there was, however much there will be
    await shop.connection.execute("alter table public.credit_entries set (autovacuum_enabled = off)")

    async def cycle(count) -> int:
        jobs = await shop.call("create_jobs", jobs=[
            {"kind": "report", "owner_id": str(owner)} for owner in (ALICE, BOB) for _ in range(count)
        ])  # fmt: skip
        ids = [job["id"] for job in jobs]
        read = (
            "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int from pg_stat_xact_user_tables "
            "where relname like 'credit%'"
        )
        async with shop.connection.transaction():
            await shop.sql(
                "update public.jobs set status = 'cancelled', finished_at = processor.now(), "
                "credits_held = 0, credits_refunded = 1 where id = any ($1::uuid[])",
                ids,
            )
            before = await shop.sql(read)
            await shop.sql("select processor.settle_holds($1::uuid[])", ids)
            return await shop.sql(read) - before

    for _ in range(8):
        await cycle(1)
    for _ in range(3):
        assert await cycle(500) < 1000 * 5
    assert await shop.faults() == []
