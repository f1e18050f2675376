"""A worker's life: register, heartbeat, rescue, deregister."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from processor.rpc import SCHEMA_VERSION
from tests.sql.harness import ALICE, NOON, Worker, connect, done, fixture


def declared(**changes) -> dict:
    return {"kind": "translate", "queue": "default", "public": True, "credits_per_item": 10} | changes


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    return await project.worker()


async def kind_row(project) -> dict:
    [row] = await project.rows("select * from public.job_kinds where kind = 'translate'")
    return row


async def lapse(project, *living: Worker) -> None:
    """Let the leases of all but the living run out."""
    for _ in range(2):
        await project.later(seconds=60)
        for worker in living:
            await worker.project.call("heartbeat_worker", worker_id=worker.id, running=[])


# register


async def test_a_worker_makes_its_queues_and_kinds(project):
    worker = await project.worker(
        queues=["b", "a"], kinds=[declared(queue="c", max_items=5, description="d")]
    )
    assert [r["name"] for r in await project.rows("select name from public.job_queues order by 1")] == [
        "a",
        "b",
        "c",
    ]
    row = await kind_row(project)
    assert (row["queue"], row["public"], row["credits_per_item"], row["max_items"], row["description"]) == (
        "c", True, 10, 5, "d",
    )  # fmt: skip
    row = await worker.row()
    assert (row["queues"], row["kinds"], row["feed"], row["slots"]) == (
        ["b", "a"],
        ["translate"],
        "polling",
        100,
    )
    assert datetime.fromisoformat(row["lease_expires_at"]) == NOON + timedelta(seconds=90)


async def test_a_kind_is_internal_and_free_unless_it_says_otherwise(project):
    await project.worker(kinds=[{"kind": "translate", "queue": "default"}])
    row = await kind_row(project)
    assert (row["public"], row["credits_per_job"], row["credits_per_item"], row["max_items"]) == (
        False,
        0,
        0,
        10000,
    )


async def test_registering_twice_changes_nothing_but_the_lease(project):
    worker_id = str(uuid4())
    worker = await project.worker(id=worker_id, queues=["default"], kinds=[declared()])
    before = (await worker.row(), await kind_row(project))
    await project.later(seconds=10)
    await project.worker(id=worker_id, queues=["default"], kinds=[declared()])
    after = (await worker.row(), await kind_row(project))
    renewed = {"heartbeat_at", "lease_expires_at"}
    assert {k: v for k, v in after[0].items() if k not in renewed} == {
        k: v for k, v in before[0].items() if k not in renewed
    }
    assert after[1] == before[1]


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, None])
async def test_another_schema_version_is_refused(project, version):
    async with project.refused(
        "JQ013", f"schema version {SCHEMA_VERSION}", "none" if version is None else str(version)
    ):
        await project.worker(schema_version=version, kinds=[declared()])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"id": None}, "id"),
        ({"slots": 0}, "slots"),
        ({"slots": None}, "slots"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 4000}, "lease_seconds"),
        ({"lease_seconds": None}, "lease_seconds"),
        ({"feed": "pigeons"}, "pigeons"),
        ({"queues": ["Not A Name"]}, "Not A Name"),
        ({"kinds": [declared(queue="Not A Name")]}, "Not A Name"),
        ({"kinds": [declared(queue=None)]}, "queue"),
        ({"kinds": [declared(kind="not a kind")]}, "not a kind"),
        ({"kinds": [declared(kind=None)]}, "kind"),
        ({"kinds": [declared(credits_per_item=-1)]}, "credits_per_item"),
        ({"kinds": [declared(credits_per_job=5)]}, "translate"),
        ({"kinds": [declared(max_items=10_001)]}, "max_items"),
    ],
)
async def test_a_registration_that_makes_no_sense_is_refused_and_says_why(project, change, word):
    async with project.refused("JQ006", word):
        await project.worker(**({"kinds": [declared()]} | change))


async def test_a_new_declaration_is_followed(project):
    await project.worker(kinds=[declared()])
    await project.worker(
        kinds=[declared(credits_per_item=12, public=False, queue="other", max_items=3, description="x")]
    )
    row = await kind_row(project)
    assert (row["credits_per_item"], row["public"], row["queue"], row["max_items"], row["description"]) == (
        12, False, "other", 3, "x",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "mine", "redeployed"),
    [("credits_per_item", 99, 12), ("public", False, True), ("queue", "mine", "other"), ("max_items", 7, 3)],
)
async def test_what_an_operator_has_changed_wins_over_a_redeploy(project, column, mine, redeployed):
    await project.queue("mine")
    await project.worker(kinds=[declared()])
    await project.sql(f"update public.job_kinds set {column} = $1 where kind = 'translate'", mine)
    await project.worker(kinds=[declared()])
    assert (await kind_row(project))[column] == mine
    await project.worker(kinds=[declared(**{column: redeployed}, description="new")])
    row = await kind_row(project)
    assert (row[column], row["description"]) == (mine, "new")


async def test_an_operator_may_change_the_sort_of_price(project):
    await project.worker(kinds=[declared()])
    await project.sql("update public.job_kinds set credits_per_item = 0, credits_per_job = 50")
    await project.worker(kinds=[declared(credits_per_item=11)])
    row = await kind_row(project)
    assert (row["credits_per_job"], row["credits_per_item"]) == (50, 0)


async def test_workers_that_start_together_in_opposite_orders_do_not_deadlock(database):
    projects = [await database.project() for _ in range(4)]
    names = [f"q{n}" for n in range(8)]
    kinds = [{"kind": f"k{n}", "queue": name} for n, name in enumerate(names)]
    await asyncio.gather(
        *(
            project.worker(queues=names[n:] + names[:n], kinds=(kinds if n % 2 else kinds[::-1]))
            for n, project in enumerate(projects)
        )
    )
    assert await projects[0].sql("select count(*) from public.job_workers") == 4
    assert (
        await projects[0].sql("select deadlocks from pg_stat_database where datname = current_database()")
        == 0
    )


# heartbeat


async def test_a_heartbeat_renews_the_lease_and_shows_the_worker_at_work(project, worker):
    await project.create("echo")
    [job] = await worker.claim()
    await project.later(seconds=30)
    answer = await worker.heartbeat(job, feed="realtime")
    assert datetime.fromisoformat(answer["lease_expires_at"]) == NOON + timedelta(seconds=120)
    row = await worker.row()
    assert (row["running"], row["feed"]) == (1, "realtime")
    assert datetime.fromisoformat(row["heartbeat_at"]) == datetime.fromisoformat(answer["now"])
    assert (answer["lost"], answer["unknown"], answer["cancel"], answer["rescued"]) == ([], [], [], 0)


async def test_a_heartbeat_writes_no_job(project, worker):
    for _ in range(5):
        await project.create("echo")
    jobs = await worker.claim(5)
    writes = "select n_tup_upd from pg_stat_xact_user_tables where relname = 'jobs'"
    before = await project.sql(writes)
    await worker.heartbeat(*jobs)
    assert await project.sql(writes) == before


async def test_an_unknown_worker_is_told_to_register_again(project, worker):
    async with project.refused("JQ011", "unknown worker"):
        await Worker(project, UUID(int=1)).heartbeat()


async def test_a_heartbeat_without_a_list_of_jobs_runs_none(project, worker):
    answer = await project.call("heartbeat_worker", worker_id=worker.id, running=None)
    assert answer["lost"] == []
    assert (await worker.row())["running"] == 0


async def test_a_heartbeat_over_an_unheard_of_feed_is_refused(project, worker):
    async with project.refused("JQ006", "pigeons"):
        await worker.heartbeat(feed="pigeons")


async def test_jobs_that_are_no_longer_the_workers_are_lost(project, worker):
    for _ in range(3):
        await project.create("echo")
    ended, released, running = await worker.claim(3)
    await worker.finish(ended)
    await worker.release(released)
    never = {"id": str(uuid4())}
    answer = await worker.heartbeat(ended, released, running, never)
    assert set(answer["lost"]) == {ended["id"], released["id"], never["id"]}


async def test_jobs_the_worker_does_not_know_of_are_named_after_a_while(project, worker):
    await project.create("echo")
    [job] = await worker.claim()
    assert (await worker.heartbeat())["unknown"] == []
    await project.later(seconds=11)
    assert (await worker.heartbeat())["unknown"] == [{"id": job["id"], "attempt": 1}]
    assert (await worker.heartbeat(job))["unknown"] == []


# rescue


async def test_jobs_of_a_lost_worker_are_rescued_and_only_their_open_items_run_again(project, worker):
    await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    [job] = await worker.claim()
    await worker.finish_items(job, done("de"))
    other = await project.worker()
    await lapse(project, other)

    row = await project.job(job)
    assert (row["status"], row["failures"], row["crashes"], row["worker_id"]) == ("pending", 0, 1, None)
    assert row["errors"][0]["code"] == "LEASE_LOST"
    [again] = await other.claim()
    assert (again["id"], again["attempt"], [item["key"] for item in again["items"]]) == (job["id"], 2, ["fr"])
    await other.finish(again, "done", items=[done("fr")])
    assert await project.balance(ALICE) == (80, 0, 20)
    assert await project.faults() == []


async def test_a_heartbeat_says_how_many_it_rescued(project, worker):
    for _ in range(3):
        await project.create("echo")
    await worker.claim(3)
    other = await project.worker()
    await project.later(seconds=80)
    assert (await other.heartbeat())["rescued"] == 0
    await project.later(seconds=20)
    assert (await other.heartbeat())["rescued"] == 3


async def test_a_worker_whose_own_lease_had_lapsed_only_renews(project, worker):
    await project.create("echo")
    [job] = await worker.claim()
    other = await project.worker()
    await project.later(seconds=100)
    assert (await other.heartbeat())["rescued"] == 0
    assert (await worker.heartbeat(job))["lost"] == []
    assert (await other.heartbeat())["rescued"] == 0
    assert (await worker.finish(job))["status"] == "completed"


async def test_a_heartbeat_says_when_the_next_worker_with_jobs_would_be_lost(project, worker):
    other = await project.worker(lease_seconds=30)
    idle = await project.worker(lease_seconds=10)
    assert (await worker.heartbeat())["next_rescue_at"] is None  # nobody has a job
    await project.create("echo")
    [job] = await other.claim()
    assert datetime.fromisoformat((await worker.heartbeat())["next_rescue_at"]) == NOON + timedelta(
        seconds=30
    )
    assert (await other.heartbeat(job))["next_rescue_at"] is None  # the own lease is nobody's to wait for
    await project.later(seconds=20)
    await other.heartbeat(job)
    assert datetime.fromisoformat((await worker.heartbeat())["next_rescue_at"]) == NOON + timedelta(
        seconds=50
    )
    await project.later(seconds=31)
    await idle.heartbeat()
    answer = await worker.heartbeat()  # it is lost, and its job rescued: there is nothing to come back for
    assert (answer["rescued"], answer["next_rescue_at"]) == (1, None)


async def test_a_worker_that_lapsed_without_being_rescued_may_still_finish(project, worker):
    await project.create("echo")
    [job] = await worker.claim()
    await project.later(seconds=500)
    assert (await worker.finish(job))["status"] == "completed"


@pytest.mark.parametrize(("completed", "status"), [((), "failed"), (("de",), "partial")])
async def test_a_job_whose_worker_is_lost_twice_ends_and_is_refunded(project, worker, completed, status):
    await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    [job] = await worker.claim()
    await worker.finish_items(job, *(done(key) for key in completed))
    second, third = await project.worker(), await project.worker()
    await lapse(project, second, third)
    [job] = await second.claim()
    await lapse(project, third)
    row = await project.job(job)
    assert (row["status"], row["error_code"]) == (status, "WORKER_CRASHED")
    spent = 10 * len(completed)
    assert await project.balance(ALICE) == (100 - spent, 0, spent)
    assert await project.faults() == []


async def test_a_lost_job_whose_cancel_was_requested_is_cancelled(project, worker):
    await project.create("translate", owner_id=ALICE, items=["de"])
    [job] = await worker.claim()
    await project.cancel(job)
    await lapse(project, await project.worker())
    assert (await project.job(job))["status"] == "cancelled"
    assert await project.balance(ALICE) == (100, 0, 0)
    assert await project.faults() == []


async def test_one_heartbeat_rescues_a_bounded_number(project, worker):
    await project.sql(
        "insert into public.jobs (queue, kind, max_attempts) "
        "select 'default', 'echo', 4 from generate_series(1, 150)"
    )
    assert len(await worker.claim(150)) == 150
    other = await project.worker()
    await project.later(seconds=60)
    await other.heartbeat()
    await project.later(seconds=60)
    assert [(await other.heartbeat())["rescued"] for _ in range(3)] == [100, 50, 0]


async def test_jobs_of_a_worker_whose_row_was_deleted_are_rescued(project, worker):
    await project.create("echo")
    [job] = await worker.claim()
    await project.sql("delete from public.job_workers where id = $1", worker.id)
    other = await project.worker()
    assert (await other.heartbeat())["rescued"] == 1
    assert (await other.claim())[0]["id"] == job["id"]


async def test_a_rescue_that_fails_costs_nobody_the_lease(project, worker):
    await project.create("translate", owner_id=ALICE, items=["de"])
    [job] = await worker.claim()
    await project.cancel(job)
    other = await project.worker()
    await project.later(seconds=60)
    await other.heartbeat()
    # somebody meddled with the ledger: settling would make held negative
    await project.sql(
        "update public.credit_accounts set held = 0, available = issued where owner_id = $1", ALICE
    )
    await project.later(seconds=60)
    answer = await other.heartbeat()
    assert answer["rescued"] == 0
    assert datetime.fromisoformat(answer["lease_expires_at"]) == await project.now() + timedelta(seconds=90)
    assert (await project.job(job))["status"] == "processing"


async def test_a_rescue_passes_over_jobs_that_somebody_has_in_hand(database):
    one, two = await database.project(), await database.project()
    for project in (one, two):
        await project.at(NOON)
    await one.kind("echo")
    for _ in range(2):
        await one.create("echo")
    dead, living = await one.worker(), await two.worker()
    jobs = await dead.claim(2)
    await two.at(NOON + timedelta(seconds=60))
    await living.heartbeat()
    await two.at(NOON + timedelta(seconds=120))
    async with one.connection.transaction():
        await dead.progress(jobs[0], 0.5)
        async with asyncio.timeout(5):
            assert (await living.heartbeat())["rescued"] == 1
    assert (await living.heartbeat())["rescued"] == 1


async def test_workers_gone_for_a_day_are_forgotten(project, worker):
    other = await project.worker()
    await project.later(hours=23)
    await other.heartbeat()
    await other.heartbeat()
    assert await project.sql("select count(*) from public.job_workers") == 2
    await project.later(hours=2)
    await project.worker()
    await other.heartbeat()
    await other.heartbeat()
    assert await project.sql("select count(*) from public.job_workers where id = $1", worker.id) == 0
    assert await project.sql("select count(*) from public.job_workers where id = $1", other.id) == 1


# deregister


async def test_a_worker_that_leaves_releases_what_it_holds(project, worker):
    for _ in range(2):
        await project.create("translate", owner_id=ALICE, items=["de"])
    jobs = await worker.claim(2)
    assert await worker.deregister() == 2
    assert {(await project.job(job))["status"] for job in jobs} == {"pending"}
    assert await project.sql("select count(*) from public.job_workers") == 0
    assert len(await (await project.worker()).claim(5)) == 2
    assert await project.balance(ALICE) == (80, 20, 0)


async def test_leaving_twice_is_harmless(worker):
    assert await worker.deregister() == 0
    assert await worker.deregister() == 0


async def test_time_cannot_be_set_by_an_api_session(database):
    api = await connect(database.api_dsn)
    try:
        await api.execute("set processor.now = '2000-01-01'; set role service_role")
        worker = {
            "id": str(uuid4()),
            "schema_version": SCHEMA_VERSION,
            "slots": 1,
            "lease_seconds": 90,
            "queues": [],
            "kinds": [],
        }
        answer = await api.fetchval("select public.register_worker($1)", worker)
        assert datetime.fromisoformat(answer["now"]).year > 2000
    finally:
        await api.close()


# rescue from outside


async def test_a_timer_rescues_when_no_worker_is_alive_and_only_then(project, worker):
    await project.worker(lease_seconds=600)
    job = await project.create()
    await worker.claim()
    assert await project.call("rescue_jobs", by="job_processor") == {"alive": 2, "rescued": 0}
    await project.later(seconds=300)  # its lease is over, but somebody lives whose next heartbeat sees it
    assert await project.call("rescue_jobs", by="job_processor") == {"alive": 1, "rescued": 0}
    assert (await project.job(job))["status"] == "processing"
    await project.later(seconds=600)
    assert await project.call("rescue_jobs", by="job_processor", batch=10) == {"alive": 0, "rescued": 1}
    assert (await project.job(job))["status"] == "pending"
    assert await project.call("rescue_jobs", by="service_role") == {"alive": 0, "rescued": 0}


@pytest.mark.parametrize("by", ["anon", ALICE])
async def test_clients_do_not_rescue(project, by):
    async with project.refused("42501"):
        await project.call("rescue_jobs", by=by)


@pytest.mark.parametrize("batch", [0, 1001])
async def test_a_rescue_is_of_a_sensible_size(project, batch):
    async with project.refused("JQ006", "batch"):
        await project.call("rescue_jobs", by="job_processor", batch=batch)
