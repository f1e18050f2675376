"""Grants, and the check that the books are right."""

import re

import pytest

from tests.sql.harness import ALICE, BOB, done, fixture


async def test_a_grant_is_available_and_in_the_journal(project):
    account = await project.grant(ALICE, 100, reason="welcome")
    assert (account["issued"], account["available"]) == (100, 100)
    rows = await project.rows("select owner_id, kind, amount, reason from public.credit_entries")
    assert rows == [{"owner_id": ALICE, "kind": "grant", "amount": 100, "reason": "welcome"}]
    assert await project.faults() == []


async def test_the_service_grants_through_the_api(project):
    account = await project.call("grant_credits", by="service_role", owner_id=ALICE, amount=5)
    assert account["available"] == 5


async def test_the_same_grant_again_happens_once(project):
    for _ in range(3):
        account = await project.grant(ALICE, 100, idempotency_key="order-1")
    assert account["available"] == 100


async def test_the_same_key_with_another_amount_is_a_conflict(project):
    await project.grant(ALICE, 100, idempotency_key="order-1")
    async with project.refused("JQ007", "order-1", "100"):
        await project.grant(ALICE, 101, idempotency_key="order-1")
    await project.grant(BOB, 101, idempotency_key="order-1")
    assert await project.balance(ALICE) == (100, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"owner_id": None}, "owner_id"),
        ({"amount": None}, "amount"),
        ({"amount": 0}, "0"),
        ({"amount": -5}, "-5"),
        ({"amount": 10**12 + 1}, "1000000000001"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "k" * 201}, "idempotency_key"),
    ],
)
async def test_an_absurd_grant_is_refused(project, arguments, word):
    async with project.refused("JQ006", word):
        await project.call("processor.grant_credits", **({"owner_id": ALICE, "amount": 10} | arguments))


async def test_nobody_is_given_more_than_javascript_can_count(project):
    await project.sql(
        "insert into public.credit_accounts (owner_id, issued, available) values ($1, $2, $2)",
        ALICE,
        2**53 - 10,
    )
    await project.grant(ALICE, 9)
    async with project.refused("JQ006", str(2**53)):
        await project.grant(ALICE, 1)


CORRUPTION = {
    "an account that holds too much": (
        "update public.credit_accounts set held = held + 1, available = available - 1",
        "account.held",
    ),
    "an account that has too much": (
        "update public.credit_accounts set available = available + 1, issued = issued + 1",
        "account.available",
    ),
    "an account that spent too little": (
        "update public.credit_accounts set available = available + 1, spent = spent - 1",
        "account.spent",
    ),
    "an entry that is missing": ("delete from public.credit_entries where kind = 'grant'", "account.issued"),
    "an entry too many": (
        (
            "insert into public.credit_entries (owner_id, kind, amount) "
            "select owner_id, 'reserve', 1 from public.credit_accounts"
        ),
        "account.held",
    ),
    "an account that is missing": ("delete from public.credit_accounts", "no account"),
    "a hold that is missing": ("delete from public.credit_holds where closed_at is null", "account.held"),
    "a job with credits without a hold": (
        "delete from public.credit_holds where closed_at is not null",
        "no hold",
    ),
    "a hold left open": (
        "update public.credit_holds set closed_at = null where closed_at is not null",
        "the job has ended, its hold has not",
    ),
    "a hold closed too early": (
        (
            "update public.credit_holds set closed_at = now(), captured = 10, released = 10 "
            "where closed_at is null"
        ),
        "the job has ended, its hold has not",
    ),
    "a ticket too many": (
        (
            "insert into public.credit_captures (job_id, unit) "
            "select job_id, 2 from public.credit_holds where closed_at is null"
        ),
        "job.credits_captured",
    ),
    "a ticket that is missing": ("delete from public.credit_captures", "job.credits_captured"),
    "an item completed without a ticket": (
        "update public.job_items set status = 'completed' where status = 'pending'",
        "tickets",
    ),
    "a job that holds too much": (
        "update public.jobs set credits_held = credits_held + 1 where finished_at is null",
        "job.credits_held",
    ),
    "a job that was refunded too much": (
        "update public.jobs set credits_refunded = credits_refunded + 1 where finished_at is not null",
        "job.credits_refunded",
    ),
    "a closed hold that captured something else": (
        "update public.credit_holds set captured = 0, released = 20 where closed_at is not null",
        "hold.captured",
    ),
    "a hold of another amount than was reserved": (
        "update public.credit_holds set units = units + 1 where closed_at is null",
        "hold.amount",
    ),
    "a lot that has too much": (
        "update public.credit_lots set remaining = remaining + 1",
        "remaining is not what the journal says",
    ),
    "a lot that has something which the account does not know": (
        "update public.credit_lots set remaining = remaining + 1",
        "account.available is not the sum of its lots",
    ),
    "a lot that is missing": ("delete from public.credit_lots", "which is not there"),
    "a lot of another owner": (
        f"update public.credit_lots set owner_id = '{BOB}'",
        "which is not there",
    ),
    "a lot that is larger than its grant": (
        "update public.credit_lots set amount = amount + 1",
        "is not what its grant gave",
    ),
    "a lot that nobody granted": (
        "update public.credit_lots set granted_by = 0",
        "is not what its grant gave",
    ),
    "an account with more expired than the journal": (
        "update public.credit_accounts set expired = expired + 1, available = available - 1",
        "account.expired",
    ),
    "a release that is missing": (
        "delete from public.credit_entries where kind = 'release'",
        "hold.released",
    ),
    "a lot from which more was reserved than captured and released": (
        "update public.credit_entries set lot_id = null where kind = 'capture'",
        "is still reserved",
    ),
    "a pruned job that has kept something": (
        (
            "delete from public.jobs where finished_at is not null; "
            "delete from public.credit_entries where kind = 'capture'"
        ),
        "is still reserved",
    ),
    "a refund of more than was spent": (
        (
            "insert into public.credit_entries (owner_id, kind, amount, job_id) "
            "select owner_id, 'refund', 11, job_id from public.credit_entries where kind = 'capture'"
        ),
        "more was refunded than spent",
    ),
    "a refund that the job does not know": (
        (
            "insert into public.credit_entries (owner_id, kind, amount, job_id) "
            "select owner_id, 'refund', 1, job_id from public.credit_entries where kind = 'capture'"
        ),
        "job.credits_refunded",
    ),
    "a grant that was taken back twice": (
        (
            "insert into public.credit_entries (owner_id, kind, amount, undoes) "
            "select owner_id, 'clawback', 101, id from public.credit_entries where kind = 'grant'"
        ),
        "more was taken back than granted",
    ),
}


@fixture
async def books(project):
    """Give an account with an ended job and an open one, each with an item done and one not."""
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    worker = await project.worker()
    for _ in range(2):
        await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    ended, running = await worker.claim(2)
    await worker.finish(ended, "fail", items=[done("de")])
    await worker.finish_items(running, done("de"))
    assert await project.faults() == []
    return project


@pytest.mark.parametrize("case", CORRUPTION)
async def test_the_check_finds(books, case):
    statement, word = CORRUPTION[case]
    await books.connection.execute(statement)
    faults = await books.faults()
    assert any(word in fault["problem"] for fault in faults), faults


async def test_everything_that_the_check_can_find_is_provoked_here(project):
    source = await project.sql(
        "select prosrc from pg_proc where oid = 'processor.check_credits()'::regprocedure"
    )
    problems = re.findall(r"select (?:format\()?'([^']{10,}|[a-z]+\.)'", source)
    assert len(problems) == 15
    words = {word for _, word in CORRUPTION.values()}
    for problem in problems:
        parts = [part for part in re.split(r"%s[: ]*", problem) if part]
        assert any(any(word.startswith(part) or word in part for part in parts) for word in words), problem


async def test_the_accounts_own_constraints_refuse_what_is_not_conserved(books):
    for change in ("available = available + 1", "held = held - 1", "available = -1, spent = spent + 81"):
        async with books.refused("23514"):
            await books.sql(f"update public.credit_accounts set {change}")
