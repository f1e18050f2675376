"""unique_key and on_conflict: what happens to the job that has the key, and to the one that wants it."""

import asyncio

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, fixture, until_waiting
from tests.sql.test_locks import no_deadlocks


@fixture(autouse=True)
async def _kinds(project):
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    await project.grant(BOB, 100)
    yield
    assert await project.faults() == []


async def translate(project, on_conflict="error", *, by=ALICE, **columns):
    columns = {"items": ["de"], "unique_key": "card"} | columns
    return await project.create("translate", by=by, on_conflict=on_conflict, **columns)


async def active(project):
    return await project.sql(
        "select count(*) from public.jobs where unique_key = 'card' and status in ('pending', 'processing')"
    )


@pytest.mark.parametrize("on_conflict", ["error", "replace", "return"])
async def test_a_key_that_nobody_has_is_taken(project, on_conflict):
    job = await translate(project, on_conflict)
    assert (job["status"], job["unique_key"]) == ("pending", "card")


@pytest.mark.parametrize("on_conflict", ["error", "replace", "return"])
async def test_a_key_whose_job_has_ended_is_free(project, on_conflict):
    first = await translate(project)
    await project.cancel(first)
    ended = await project.job(first)
    second = await translate(project, on_conflict)
    assert second["id"] != first["id"]
    assert await project.job(first) == ended


async def test_an_error_names_the_job_that_has_the_key(project):
    first = await translate(project)
    with pytest.raises(asyncpg.PostgresError, match="already pending") as caught:
        async with project.connection.transaction():
            await translate(project)
    assert (caught.value.sqlstate, caught.value.detail) == ("JQ012", f"taken by job {first['id']}")
    assert "on_conflict => 'replace'" in caught.value.hint


async def test_a_pending_job_is_replaced_and_refunded(project):
    first = await translate(project, items=["de", "fr"])
    second = await translate(project, "replace", items=["it"])
    row = await project.job(first)
    assert (row["status"], row["error_code"], row["credits_refunded"]) == ("cancelled", "REPLACED", 20)
    assert {item["status"] for item in (await project.items(first)).values()} == {"cancelled"}
    assert (second["status"], second["unique_key"]) == ("pending", "card")
    assert await project.balance(ALICE) == (90, 10, 0)


async def test_the_refund_of_the_replaced_job_pays_for_the_new_one(project):
    await translate(project, items=[str(n) for n in range(10)])
    assert await project.balance(ALICE) == (0, 100, 0)
    await translate(project, "replace", items=[str(n) for n in range(9)])
    assert await project.balance(ALICE) == (10, 90, 0)


async def test_a_replacement_that_cannot_be_paid_leaves_the_old_job(project):
    first = await translate(project)
    async with project.refused("PT402"):
        await translate(project, "replace", items=[str(n) for n in range(11)])
    assert (await project.job(first))["status"] == "pending"


async def test_a_running_job_is_not_replaced(project):
    first = await translate(project)
    await (await project.worker()).claim()
    async with project.refused("JQ012", "already processing"):
        await translate(project, "replace")
    assert (await project.job(first))["status"] == "processing"


@pytest.mark.parametrize("status", ["pending", "processing"])
async def test_return_gives_the_job_that_has_the_key_and_costs_nothing(project, status):
    first = await translate(project, payload={"n": 1})
    if status == "processing":
        await (await project.worker()).claim()
    again = await translate(project, "return", payload={"n": 2}, items=["x", "y"])
    assert again == await project.job(first)
    assert again["status"] == status
    assert await project.balance(ALICE) == (90, 10, 0)


@pytest.mark.parametrize("on_conflict", ["replace", "return"])
async def test_keys_of_others_and_of_other_kinds_are_left_alone(project, on_conflict):
    others = [
        await translate(project, by=BOB),
        await project.create("echo", by=ALICE, unique_key="card"),
        await project.create("translate", items=["de"], unique_key="card"),
    ]
    mine = await translate(project, on_conflict)
    assert mine["id"] not in {job["id"] for job in others}
    assert [(await project.job(job))["status"] for job in others] == ["pending"] * 3


@pytest.mark.parametrize("on_conflict", ["replace", "return"])
async def test_jobs_of_nobody_have_keys_too(project, on_conflict):
    first = await project.create("echo", unique_key="card")
    second = await project.create("echo", unique_key="card", on_conflict=on_conflict)
    assert (second["id"] == first["id"]) == (on_conflict == "return")
    assert await active(project) == 1


async def test_a_call_repeated_by_its_idempotency_key_replaces_nothing(project):
    await translate(project)
    second = await translate(project, "replace", idempotency_key="k")
    again = await translate(project, "replace", idempotency_key="k")
    assert again == second
    await translate(project, "replace", idempotency_key="k2")
    late = await translate(project, "replace", idempotency_key="k")
    assert (late["id"], late["error_code"]) == (second["id"], "REPLACED")
    assert await active(project) == 1
    assert await project.balance(ALICE) == (90, 10, 0)


async def test_a_key_given_twice_in_one_call(project):
    two = [{"kind": "echo", "unique_key": "card", "payload": {"n": n}} for n in (1, 2)]
    for on_conflict, hint in (("error", "Wait"), ("replace", "this very call")):
        with pytest.raises(asyncpg.PostgresError, match="already pending") as caught:
            async with project.connection.transaction():
                await project.call("create_jobs", jobs=[job | {"on_conflict": on_conflict} for job in two])
        assert hint in caught.value.hint
        assert caught.value.detail.startswith("job 2 of the call: taken by job ")
    first, second = await project.call("create_jobs", jobs=[job | {"on_conflict": "return"} for job in two])
    assert (first["created"], second["created"], first["id"]) == (True, False, second["id"])


async def test_a_child_does_not_replace_its_own_parent(project):
    async with project.refused("JQ012", "already pending"):
        await project.create(
            "echo", unique_key="card",
            children=[{"kind": "echo", "unique_key": "card", "on_conflict": "replace"}],
        )  # fmt: skip


async def test_many_are_replaced_in_one_call(project):
    old = [await translate(project, unique_key=f"u{n}") for n in range(3)]
    jobs = [
        {"kind": "translate", "items": ["fr"], "unique_key": f"u{n}", "on_conflict": "replace"}
        for n in range(5)
    ]
    made = await project.call("create_jobs", by=ALICE, jobs=jobs)
    assert all(job["created"] for job in made)
    assert {(await project.job(job))["error_code"] for job in old} == {"REPLACED"}
    assert await project.balance(ALICE) == (50, 50, 0)


async def test_a_child_that_is_replaced_by_its_sibling_does_not_wake_its_parent(project):
    parent = await project.create(children=[{"kind": "echo", "unique_key": "card"}])
    sibling = await project.create(unique_key="card", on_conflict="replace", parent_id=parent["id"])
    row = await project.job(parent)
    assert (row["children_total"], row["children_open"], row["children_failed"]) == (2, 1, 1)
    assert row["run_at"].startswith("9999")
    worker = await project.worker()
    [job] = await worker.claim(5)
    assert job["id"] == sibling["id"]
    await worker.finish(job)
    assert [job["id"] for job in await worker.claim(5)] == [parent["id"]]


async def test_a_key_is_found_by_its_index_among_many_jobs(project):
    await project.sql("""
        insert into public.jobs
          (queue, kind, owner_id, max_attempts, unique_key, idempotency_key, input_digest)
        select 'default', 'echo', gen_random_uuid(), 4, 'u' || n, 'k' || n, '' from generate_series(1, 5000) n
    """)
    await project.sql("analyze public.jobs")
    blocks = """
        select max(pg_stat_get_xact_blocks_fetched(oid))::int from pg_class
        where relname in ('jobs_unique_key_idx', 'jobs_idempotency_key_idx')
    """
    for owner in (ALICE, None):
        before = await project.sql(blocks)
        for n in range(3):
            await project.create(
                "echo", owner_id=owner, unique_key="card", on_conflict="replace", idempotency_key=f"new {n}"
            )
        assert await project.sql(blocks) - before < 60, "an index was read as a whole"


@pytest.mark.parametrize(
    ("on_conflict", "outcome"), [("error", "JQ012"), ("replace", "new"), ("return", "same")]
)
async def test_two_who_want_one_key_at_once_take_turns(database, on_conflict, outcome):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("translate", credits_per_item=10)
    await one.grant(ALICE, 100)
    old = await translate(one) if on_conflict == "replace" else None
    transaction = one.connection.transaction()
    await transaction.start()
    first = await translate(one, on_conflict)
    second = asyncio.create_task(translate(two, on_conflict))
    await until_waiting(observer, two)
    await transaction.commit()
    if outcome == "JQ012":
        with pytest.raises(asyncpg.PostgresError) as caught:
            await second
        assert caught.value.sqlstate == "JQ012"
    else:
        assert ((await second)["id"] == first["id"]) == (outcome == "same")
    if old:
        assert (await observer.job(old))["error_code"] == "REPLACED"
        assert (await observer.job(first))["error_code"] == "REPLACED"
    assert await active(observer) == 1
    assert await observer.balance(ALICE) == (90, 10, 0)
    assert await observer.faults() == []


async def test_many_who_replace_claim_and_cancel_at_once_leave_one_at_most(database):
    projects = [await database.project() for _ in range(5)]
    await projects[0].kind("translate", credits_per_item=10)
    await projects[0].grant(ALICE, 1000)
    worker = await projects[0].worker()
    codes = set()

    async def replace(project):
        for _ in range(40):
            try:
                await translate(project, "replace")
            except asyncpg.PostgresError as error:
                codes.add(error.sqlstate)

    async def work():
        for _ in range(40):
            for job in await worker.claim(2):
                await worker.finish(job, "fail", error_code="X")

    await asyncio.gather(work(), *(replace(project) for project in projects[1:]))
    assert codes <= {"JQ012"}
    assert await active(projects[0]) <= 1
    assert await projects[0].faults() == []
    assert await no_deadlocks(projects[0])
