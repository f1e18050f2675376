"""create_jobs: many jobs in one call, all or none."""

import asyncio
import time
from uuid import uuid4

import pytest

from tests.sql.harness import ALICE, BOB, fixture
from tests.sql.test_locks import no_deadlocks


@fixture(autouse=True)
async def kinds(project):
    await project.kind("echo")
    await project.kind("internal", public=False)
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    await project.grant(BOB, 100)
    yield
    assert await project.faults() == []


async def create(project, *jobs, by=None):
    return await project.call("create_jobs", by=by, jobs=list(jobs))


def echo(**columns):
    return {"kind": "echo"} | columns


def translate(*languages, **columns):
    return {"kind": "translate", "items": list(languages)} | columns


async def test_ten_thousand_jobs_are_made_in_one_call_and_claimed_in_the_order_given(
    project, record_property
):
    jobs = [echo(payload={"n": n}) for n in range(10_000)]
    started = time.perf_counter()
    made = await create(project, *jobs)
    record_property("seconds", round(time.perf_counter() - started, 3))
    ids = [job["id"] for job in made]
    assert len(ids) == 10_000
    assert ids == sorted(set(ids))
    assert all(job["created"] for job in made)
    claimed = await (await project.worker(slots=1000)).claim(1000)
    assert [job["payload"]["n"] for job in claimed] == list(range(1000))
    assert [job["id"] for job in claimed] == ids[:1000]


async def test_no_jobs_are_no_jobs(project):
    assert await create(project) == []


async def test_more_than_ten_thousand_are_refused(project):
    async with project.refused("JQ006", "10001"):
        await create(project, *[echo()] * 10_001)


async def test_each_job_has_all_that_create_job_gives_it(project):
    wanted = echo(
        payload={"x": 1}, items=["a", {"key": "b", "payload": {"y": 2}}], priority=3, max_attempts=2,
        timeout_seconds=1.5, tags=["t"], unique_key="u", delay_seconds=60, owner_id=str(BOB),
    )  # fmt: skip
    one = await project.create(**(wanted | {"unique_key": "v"}))
    [made] = await create(project, wanted)
    other = await project.job(made)
    differ = {"id", "unique_key", "input_digest"}
    assert {k: v for k, v in one.items() if k not in differ} == {
        k: v for k, v in other.items() if k not in differ
    }
    assert await project.items(other) == {
        key: item | {"job_id": other["id"]} for key, item in (await project.items(one)).items()
    }


@pytest.mark.parametrize("jobs", [{"kind": "echo"}, "echo", 5, None])
async def test_what_is_no_list_is_refused(project, jobs):
    async with project.refused("JQ006", "array of objects"):
        await project.call("create_jobs", jobs=jobs)


BAD = {
    "no object": ("echo", "JQ006", "job 17 must be an object"),
    "null": (None, "JQ006", "job 17 must be an object"),
    "an unknown key": (echo(colour="red"), "JQ006", "job 17 has an unknown key: colour"),
    "a key for insiders": (echo(retry_of=str(uuid4())), "JQ006", "job 17 has an unknown key: retry_of"),
    "no kind": ({"payload": {}}, "JQ006", "kind is missing"),
    "an unknown kind": (echo(kind="nonsense"), "JQ001", "nonsense"),
    "an unknown queue": (echo(queue="nowhere"), "JQ002", "nowhere"),
    "a payload that is a list": (echo(payload=[]), "JQ003", "array"),
    "a payload that is null": (echo(payload=None), "JQ003", "null"),
    "a large payload": (echo(payload={"x": "x" * 262_200}), "JQ004", "payload"),
    "bad items": (echo(items="de"), "JQ005", "items"),
    "items twice": (echo(items=["de", "de"]), "JQ005", "duplicate item key: de"),
    "a priority in words": (echo(priority="abc"), "JQ006", 'priority of job 17 cannot be "abc"'),
    "a priority with a fraction": (echo(priority=1.5), "JQ006", "priority of job 17 cannot be 1.5"),
    "an endless priority": (echo(priority=10**20), "JQ006", "priority of job 17 cannot be 1000"),
    "a time in words": (echo(run_at="soon"), "JQ006", 'run_at of job 17 cannot be "soon"'),
    "an owner in words": (echo(owner_id="me"), "JQ006", 'owner_id of job 17 cannot be "me"'),
    "tags in a word": (echo(tags="t"), "JQ006", 'tags of job 17 cannot be "t"'),
    "tags in an object": (echo(tags={"t": 1}), "JQ006", "tags of job 17 cannot be"),
    "a huge bad value": (echo(max_attempts="x" * 100_000), "JQ006", "max_attempts of job 17 cannot be"),
    "an absurd priority": (echo(priority=1001), "JQ006", "1001"),
    "a negative delay": (echo(delay_seconds=-1), "JQ006", "delay_seconds"),
    "a choice that is none": (echo(on_conflict="maybe"), "JQ006", "error, replace, return"),
    "children that are no list": (echo(children={"kind": "echo"}), "JQ006", "children must be an array"),
    "an unknown parent": (echo(parent_id=str(uuid4())), "JQ008", "job not found"),
}


@pytest.mark.parametrize("case", BAD)
async def test_one_bad_job_spoils_all_and_is_named_by_its_number(project, case):
    bad, code, words = BAD[case]
    jobs = [translate("de", owner_id=str(ALICE))] + [echo(payload={"n": n}) for n in range(15)]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - refused() checks which
        async with project.connection.transaction():
            await create(project, *jobs, bad, echo())
    assert "17" in str(caught.value) + (caught.value.detail or "")
    async with project.refused(code, words):
        await create(project, *jobs, bad, echo())


async def test_the_error_of_a_child_names_the_job_it_belongs_to(project):
    with pytest.raises(Exception, match="unknown kind") as caught:
        await create(project, echo(), echo(children=[echo(), echo(children=[echo(kind="nonsense")])]))
    assert caught.value.detail == "job 2 of the call, among its children"


async def test_a_value_of_the_wrong_type_is_named_among_children_too(project):
    async with project.refused("JQ006", 'priority of child 2 cannot be "abc"'):
        await create(project, echo(), echo(children=[echo(), echo(priority="abc")]))


async def test_an_error_of_create_job_speaks_of_no_number(project):
    with pytest.raises(Exception, match="unknown kind") as caught:
        await project.create("nonsense")
    assert not caught.value.detail


async def test_the_credits_of_all_are_reserved_or_none(project):
    jobs = [translate("de", "fr", owner_id=str(owner)) for owner in (ALICE, BOB) * 5]
    made = await create(project, *jobs)
    assert await project.balance(ALICE) == await project.balance(BOB) == (0, 100, 0)
    assert {(await project.job(job))["credits_held"] for job in made} == {20}
    async with project.refused("PT402", "needed"):
        await create(project, echo(), translate("de", owner_id=str(ALICE)))


async def test_the_sum_decides_whether_there_are_enough_credits(project):
    jobs = [translate("de", owner_id=str(ALICE)) for _ in range(11)]
    async with project.refused("PT402", "110 needed, 100 available"):
        await create(project, *jobs)
    assert len(await create(project, *jobs[:10])) == 10


async def test_a_user_makes_own_jobs_of_public_kinds_only(project):
    made = await create(project, echo(), translate("de"), by=ALICE)
    assert {(await project.job(job))["owner_id"] for job in made} == {str(ALICE)}
    for bad, code in ((echo(owner_id=str(BOB)), "JQ010"), (echo(kind="internal"), "JQ001")):
        async with project.refused(code):
            await create(project, echo(), bad, by=ALICE)


async def test_a_token_without_a_user_creates_nothing(project):
    async with project.refused("JQ010", "signed-in"):
        await create(project, echo(), by="authenticated")


async def test_the_service_mixes_owners(project):
    owners = [str(ALICE), str(BOB), None]
    made = await create(project, *[echo(owner_id=owner) for owner in owners], by="service_role")
    assert [(await project.job(job))["owner_id"] for job in made] == owners


async def test_a_repeated_call_makes_nothing_and_costs_nothing(project):
    jobs = [translate("de", payload={"n": n}, idempotency_key=f"k{n}") for n in range(10)]
    first = await create(project, *jobs, by=ALICE)
    before = await project.counts()
    again = await create(project, *jobs, by=ALICE)
    assert again == [{"id": job["id"], "created": False} for job in first]
    assert await project.counts() == before
    assert await project.balance(ALICE) == (0, 100, 0)


async def test_what_of_a_call_is_new_is_made_and_the_rest_returned_in_the_order_given(project):
    await create(project, *[echo(idempotency_key=f"k{n}", payload={"n": n}) for n in (3, 1)])
    made = await create(project, *[echo(idempotency_key=f"k{n}", payload={"n": n}) for n in range(5)])
    assert [job["created"] for job in made] == [True, False, True, False, True]
    assert [(await project.job(job))["payload"]["n"] for job in made] == [0, 1, 2, 3, 4]


async def test_a_key_given_twice_in_a_call_is_one_job_if_the_input_is_the_same(project):
    first, second = await create(project, *[translate("de", idempotency_key="k")] * 2, by=ALICE)
    assert first | {"created": False} == second
    assert await project.balance(ALICE) == (90, 10, 0)
    with pytest.raises(Exception, match="used with other input") as caught:
        async with project.connection.transaction():
            await create(
                project, echo(), echo(idempotency_key="x"), echo(idempotency_key="x", payload={"n": 1})
            )
    assert caught.value.detail.startswith("job 3 of the call: taken by job ")
    assert caught.value.sqlstate == "JQ007"


async def test_nested_children_are_made_in_the_order_given_after_their_parents(project):
    tree = [echo(payload={"n": n}, children=[
        echo(payload={"n": 10 * n + m}, children=[echo(payload={"n": 100 * n + 10 * m})]) for m in (1, 2)
    ]) for n in (1, 2)]  # fmt: skip
    made = await create(project, *tree)
    assert [job["created"] for job in made] == [True, True]
    rows = await project.rows(
        "select (payload ->> 'n')::int as n, id, parent_id from public.jobs order by id"
    )
    assert [row["n"] for row in rows] == [1, 2, 11, 12, 21, 22, 110, 120, 210, 220]
    by_n = {row["n"]: row for row in rows}
    for n in (11, 12, 21, 22, 110, 120, 210, 220):
        assert by_n[n]["parent_id"] == by_n[n // 10]["id"]


async def test_ten_thousand_unique_keys_need_no_more_locks_than_the_server_has(project):
    made = await create(project, *[echo(unique_key=f"u{n}") for n in range(10_000)])
    assert len(made) == 10_000
    assert await project.sql("select count(*) from pg_locks where locktype = 'advisory'") <= 101


async def test_calls_with_the_same_keys_in_opposite_orders_do_not_deadlock(database):
    projects = [await database.project() for _ in range(4)]
    await projects[0].kind("echo")
    await projects[0].kind("report", credits_per_job=1)
    await projects[0].queue("default", max_pending_per_owner=100_000)
    for owner in (ALICE, BOB):
        await projects[0].grant(owner, 100_000)
    rounds = range(15)

    async def run(number, project):
        for turn in rounds:
            jobs = [
                {"kind": kind, "owner_id": owner, "idempotency_key": f"{turn}-{n}-{kind}"}
                | ({} if turn % 2 else {"unique_key": f"{turn}-{n}", "on_conflict": "return"})
                for n in range(10)
                for kind, owner in (("echo", None), ("report", str(ALICE)), ("echo", str(BOB)))
            ]
            await create(project, *jobs[:: -1 if number % 2 else 1])

    await asyncio.gather(*(run(number, project) for number, project in enumerate(projects)))
    assert await projects[0].sql("select count(*) from public.jobs") == 30 * len(rounds)
    assert await no_deadlocks(projects[0])
    assert await projects[0].faults() == []
