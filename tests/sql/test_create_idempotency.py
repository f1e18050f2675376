"""idempotency_key and unique_key: what a repeated create_job does."""

import asyncio

import pytest

from tests.sql.harness import ALICE, BOB, Database, Project, fixture, until_waiting


@fixture
async def priced(project):
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    await project.grant(BOB, 100)
    return project


async def test_the_same_key_and_input_return_the_same_job(priced):
    first = await priced.create(
        "translate", by=ALICE, payload={"a": 1, "b": 2}, items=["de"], idempotency_key="k"
    )
    again = await priced.create(
        "translate", by=ALICE, payload={"b": 2, "a": 1}, items=["de"], idempotency_key="k"
    )
    assert again == first
    assert await priced.balance(ALICE) == (90, 10, 0)
    assert len(await priced.items(first)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"payload": {"a": 2}},
        {"items": ["fr"]},
        {"items": [{"key": "de", "payload": {"x": 1}}]},
        {"kind": "echo"},
    ],
    ids=["payload", "item key", "item payload", "kind"],
)
async def test_the_same_key_with_other_input_is_a_conflict(priced, change):
    await priced.kind("echo")
    arguments = {"kind": "translate", "payload": {"a": 1}, "items": ["de"], "idempotency_key": "once"}
    first = await priced.create(**arguments, by=ALICE)
    async with priced.refused("JQ007", "once"):
        await priced.create(**(arguments | change), by=ALICE)
    assert await priced.job(first) == first


async def test_a_repeated_key_returns_the_job_as_it_is_now_even_when_it_has_ended(priced):
    job = await priced.create("translate", by=ALICE, items=["de"], idempotency_key="k")
    await priced.cancel(job, by=ALICE)
    again = await priced.create("translate", by=ALICE, items=["de"], idempotency_key="k")
    assert (again["id"], again["status"]) == (job["id"], "cancelled")
    assert await priced.balance(ALICE) == (100, 0, 0)


async def test_a_repeated_key_needs_no_credits(priced):
    job = await priced.create("translate", by=ALICE, items=[str(n) for n in range(10)], idempotency_key="k")
    assert await priced.balance(ALICE) == (0, 100, 0)
    again = await priced.create("translate", by=ALICE, items=[str(n) for n in range(10)], idempotency_key="k")
    assert again["id"] == job["id"]


async def test_a_key_is_not_burned_by_insufficient_credits(priced):
    items = [str(n) for n in range(11)]
    async with priced.refused("PT402", "110 needed"):
        await priced.create("translate", by=ALICE, items=items, idempotency_key="k")
    await priced.grant(ALICE, 10)
    job = await priced.create("translate", by=ALICE, items=items, idempotency_key="k")
    assert job["status"] == "pending"


async def test_keys_of_different_owners_have_nothing_to_do_with_each_other(priced):
    owners = [ALICE, BOB, None]
    jobs = [
        await priced.create("translate", owner_id=owner, payload={"n": n}, items=["de"], idempotency_key="k")
        for n, owner in enumerate(owners)
    ]
    assert len({job["id"] for job in jobs}) == 3


async def test_a_key_of_a_job_of_nobody_is_unique_too(priced):
    first = await priced.create("translate", items=["de"], idempotency_key="k")
    assert (await priced.create("translate", items=["de"], idempotency_key="k"))["id"] == first["id"]
    async with priced.refused("JQ007"):
        await priced.create("translate", items=["fr"], idempotency_key="k")


async def test_without_keys_every_call_makes_a_job(priced):
    jobs = [await priced.create("translate", by=ALICE, items=["de"]) for _ in range(3)]
    assert len({job["id"] for job in jobs}) == 3


async def test_only_one_job_of_a_unique_key_is_on_its_way(priced):
    await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")
    async with priced.refused("JQ012", "card-1"):
        await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")
    assert await priced.balance(ALICE) == (90, 10, 0)


async def test_a_unique_key_is_free_again_when_its_job_has_ended(priced):
    first = await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")
    await priced.cancel(first)
    second = await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")
    assert second["id"] != first["id"]


async def test_a_unique_key_is_taken_while_its_job_runs(priced):
    await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")
    await (await priced.worker()).claim()
    async with priced.refused("JQ012", "card-1"):
        await priced.create("translate", by=ALICE, items=["de"], unique_key="card-1")


async def test_unique_keys_belong_to_an_owner_and_a_kind(priced):
    await priced.kind("echo")
    await priced.create("translate", by=ALICE, items=["de"], unique_key="u")
    await priced.create("translate", by=BOB, items=["de"], unique_key="u")
    await priced.create("echo", by=ALICE, unique_key="u")
    await priced.create("echo", unique_key="u")
    async with priced.refused("JQ012"):
        await priced.create("echo", unique_key="u")


async def test_the_idempotency_key_is_looked_at_before_the_unique_key(priced):
    first = await priced.create("translate", by=ALICE, items=["de"], idempotency_key="i", unique_key="u")
    again = await priced.create("translate", by=ALICE, items=["de"], idempotency_key="i", unique_key="u")
    assert again["id"] == first["id"]
    async with priced.refused("JQ012"):
        await priced.create("translate", by=ALICE, items=["de"], idempotency_key="i2", unique_key="u")


async def race(database: Database, price: int) -> tuple[Project, list]:
    """Two create one key at once; the second must wait for the first."""
    first, second, observer = [await database.project() for _ in range(3)]
    await observer.kind("translate", credits_per_item=price)
    await observer.grant(ALICE, 100)
    transaction = first.connection.transaction()
    await transaction.start()
    job = await first.create("translate", by=ALICE, items=["de"], idempotency_key="k")
    waiting = asyncio.create_task(second.create("translate", by=ALICE, items=["de"], idempotency_key="k"))
    await until_waiting(observer, second)
    await transaction.commit()
    return observer, [job, await waiting]


@pytest.mark.parametrize("price", [0, 10])
async def test_two_concurrent_creates_of_one_key_make_one_job_and_one_reservation(database, price):
    observer, jobs = await race(database, price)
    assert jobs[0]["id"] == jobs[1]["id"]
    assert await observer.sql("select count(*) from public.jobs") == 1
    assert await observer.balance(ALICE) == (100 - price, price, 0)
    assert await observer.faults() == []


async def test_many_concurrent_creates_of_one_key_make_one_job(database):
    projects = [await database.project() for _ in range(6)]
    await projects[0].kind("translate", credits_per_item=10)
    await projects[0].grant(ALICE, 100)
    jobs = await asyncio.gather(
        *(
            p.create("translate", by=ALICE, items=["de"], idempotency_key=f"k{n}")
            for n in range(5)
            for p in projects[n : n + 1]
        ),
        *(p.create("translate", by=ALICE, items=["de"], idempotency_key="k0") for p in projects[5:]),
    )
    assert len({job["id"] for job in jobs}) == 5
    assert await projects[0].balance(ALICE) == (50, 50, 0)


async def test_a_key_is_found_by_its_index_among_many_jobs(project):
    await project.kind("echo")
    await project.sql("""
        insert into public.jobs (queue, kind, owner_id, max_attempts, idempotency_key, input_digest)
        select 'default', 'echo', gen_random_uuid(), 4, 'k' || n, '' from generate_series(1, 5000) n
    """)
    for owner in (ALICE, None):
        first = await project.create("echo", owner_id=owner, idempotency_key="k")
        before = await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'")
        assert (await project.create("echo", owner_id=owner, idempotency_key="k"))["id"] == first["id"]
        after = await project.sql("select seq_scan from pg_stat_xact_user_tables where relname = 'jobs'")
        assert after == before, "the whole table was read"
