"""claim_jobs: who gets which job."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.sql.harness import ALICE, NOON, Worker, done, failed, fixture


@fixture
async def worker(project) -> Worker:
    await project.queue("other")
    await project.kind("echo")
    return await project.worker()


def ids(jobs) -> list[str]:
    return [job["id"] for job in jobs]


def when(answer) -> datetime | None:
    return answer["next_due_at"] and datetime.fromisoformat(answer["next_due_at"])


async def test_a_claimed_job_comes_with_all_a_handler_needs(project, worker):
    job = await project.create(
        "echo",
        owner_id=ALICE,
        payload={"x": 1},
        items=["a", {"key": "b", "payload": {"y": 2}}],
        priority=3,
        max_attempts=2,
        timeout_seconds=30,
        tags=["t"],
    )
    [claimed] = await worker.claim()
    assert {name: claimed[name] for name in ("created_at", "run_at")} == {
        "created_at": job["created_at"],
        "run_at": job["run_at"],
    }
    del claimed["created_at"], claimed["run_at"]
    assert claimed == {
        "id": job["id"], "queue": "default", "kind": "echo", "owner_id": str(ALICE), "priority": 3,
        "payload": {"x": 1}, "attempt": 1, "failures": 0, "max_attempts": 2, "timeout_seconds": 30,
        "trace_context": None,
        "tags": ["t"], "done": [], "parent_id": None, "children": [], "checkpoints": [],
        "cancel_requested": False, "items_total": 2, "items_done": 0,
        "items": [
            {"key": "a", "position": 1, "payload": {}, "attempts": 0},
            {"key": "b", "position": 2, "payload": {"y": 2}, "attempts": 0},
        ],
    }  # fmt: skip
    row = await project.job(job)
    assert (row["status"], row["worker_id"], row["attempt"]) == ("processing", str(worker.id), 1)
    assert datetime.fromisoformat(row["started_at"]) == NOON


async def test_the_queues_timeout_holds_where_the_job_has_none(project, worker):
    await project.queue("default", timeout=timedelta(minutes=3))
    await project.create("echo")
    [claimed] = await worker.claim()
    assert claimed["timeout_seconds"] == 180


async def test_the_highest_priority_is_first_then_the_longest_due_then_the_oldest(project, worker):
    late = await project.create("echo", run_at=NOON - timedelta(seconds=1))
    early = await project.create("echo", run_at=NOON - timedelta(seconds=5))
    urgent = await project.create("echo", priority=5)
    low = await project.create("echo", priority=-5, run_at=NOON - timedelta(days=1))
    twin = await project.create("echo", run_at=NOON - timedelta(seconds=1))
    order = [urgent, early, late, twin, low]
    assert ids(await worker.claim(10)) == ids(order)


async def test_the_order_holds_over_single_claims_too(project, worker):
    jobs = [await project.create("echo", priority=p) for p in (1, 3, 2)]
    got = [(await worker.claim())[0]["id"] for _ in jobs]
    assert got == [jobs[1]["id"], jobs[2]["id"], jobs[0]["id"]]


async def test_no_more_than_the_limit_is_taken(project, worker):
    for _ in range(5):
        await project.create("echo")
    assert len(await worker.claim(3)) == 3
    assert len(await worker.claim(3)) == 2
    assert await worker.claim(3) == []


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_an_absurd_limit_is_refused(project, worker, limit):
    async with project.refused("JQ006", str(limit)):
        await worker.claim(limit)


async def test_the_limit_holds_over_several_queues(project, worker):
    for queue in ("default", "other", "default", "other"):
        await project.create("echo", queue=queue)
    assert len(await worker.claim(3)) == 3


async def test_a_job_is_not_claimed_before_its_time(project, worker):
    job = await project.create("echo", run_at=NOON + timedelta(seconds=10))
    assert await worker.claim() == []
    await project.later(seconds=9.9)
    assert await worker.claim() == []
    await project.later(seconds=0.1)
    assert ids(await worker.claim()) == [job["id"]]


async def test_the_same_request_gets_the_same_jobs(project, worker):
    for _ in range(3):
        await project.create("echo", items=["a"])
    request = uuid4()
    first = await worker.claim(2, request=request)
    assert await worker.claim(2, request=request) == first
    assert {job["attempt"] for job in first} == {1}
    assert len(await worker.claim(2, request=uuid4())) == 1


async def test_a_request_of_another_worker_gets_other_jobs(project, worker):
    for _ in range(2):
        await project.create("echo")
    request = uuid4()
    mine = await worker.claim(request=request)
    theirs = await (await project.worker()).claim(request=request)
    assert set(ids(mine)).isdisjoint(ids(theirs))


async def test_a_repeated_request_whose_jobs_have_ended_claims_anew(project, worker):
    await project.create("echo")
    request = uuid4()
    [job] = await worker.claim(request=request)
    await worker.finish(job)
    second = await project.create("echo")
    assert ids(await worker.claim(request=request)) == [second["id"]]


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(project, worker):
    await project.create("echo")
    await project.queue("default", paused=True)
    assert await worker.claim() == []
    await project.queue("default", paused=False)
    assert len(await worker.claim()) == 1


async def test_a_paused_queue_does_not_stop_another(project, worker):
    await project.create("echo")
    job = await project.create("echo", queue="other")
    await project.queue("default", paused=True)
    assert ids(await worker.claim(10)) == [job["id"]]


async def test_a_request_is_repeated_even_when_the_queue_was_paused_meanwhile(project, worker):
    await project.create("echo")
    request = uuid4()
    first = await worker.claim(request=request)
    await project.queue("default", paused=True)
    assert await worker.claim(request=request) == first


async def test_only_kinds_with_a_handler_are_claimed(project, worker):
    await project.kind("new")
    await project.create("new", priority=10)
    job = await project.create("echo")
    assert ids(await worker.claim(10)) == [job["id"]]


async def test_only_the_named_queues_are_claimed(project, worker):
    await project.create("echo")
    job = await project.create("echo", queue="other")
    assert ids(await worker.claim(10, queues=["other", "nowhere"])) == [job["id"]]


async def test_only_the_workers_queues_are_claimed_by_default(project, worker):
    await project.create("echo", queue="other")
    job = await project.create("echo")
    narrow = await project.worker(queues=["default"])
    assert ids(await narrow.claim(10)) == [job["id"]]


async def test_no_more_run_than_the_queue_allows(project, worker):
    await project.queue("default", max_processing=2)
    for _ in range(5):
        await project.create("echo")
    first = await worker.claim(10)
    assert len(first) == 2
    assert await worker.claim(10) == []
    await worker.finish(first[0])
    assert len(await worker.claim(10)) == 1


async def test_a_draining_worker_gets_nothing_and_is_told_of_nothing(project, worker):
    await project.create("echo")
    await project.sql("update public.job_workers set draining = true where id = $1", worker.id)
    answer = await worker.claim_answer()
    assert (answer["jobs"], answer["next_due_at"]) == ([], None)
    heartbeat = await worker.heartbeat()
    assert (heartbeat["draining"], heartbeat["next_due_at"]) == (True, None)


async def test_an_unknown_worker_claims_nothing(project, worker):
    await project.create("echo")
    async with project.refused("JQ011", "unknown"):
        await Worker(project, UUID(int=1)).claim()


async def test_a_worker_whose_lease_is_over_claims_nothing_until_its_heartbeat(project, worker):
    await project.create("echo")
    await project.later(seconds=91)
    async with project.refused("JQ011", "lease is over"):
        await worker.claim()
    await worker.heartbeat()
    assert len(await worker.claim()) == 1


async def test_only_unfinished_items_are_handed_out(project, worker):
    await project.create("echo", items=["a", "b", "c"])
    [job] = await worker.claim()
    await worker.finish_items(job, done("a", "text of a"), failed("b"))
    await worker.release(job)
    [again] = await worker.claim()
    assert [item["key"] for item in again["items"]] == ["c"]
    assert again["done"] == [{"key": "a", "position": 1, "result": "text of a"}]
    assert (again["items_total"], again["items_done"], again["attempt"]) == (3, 1, 2)


# when the next claim makes sense


async def test_nothing_pending_means_no_next_time(project, worker):
    assert when(await worker.claim_answer()) is None


async def test_a_job_of_the_future_says_when(project, worker):
    for hours in (2, 1, 3):
        await project.create("echo", run_at=NOON + timedelta(hours=hours))
    assert when(await worker.claim_answer()) == NOON + timedelta(hours=1)
    assert when(await worker.heartbeat()) == NOON + timedelta(hours=1)


async def test_what_is_left_over_is_due_now(project, worker):
    for _ in range(2):
        await project.create("echo")
    assert when(await worker.claim_answer()) <= NOON


async def test_neither_paused_nor_full_queues_nor_other_kinds_have_a_next_time(project, worker):
    await project.kind("new")
    await project.create("new")
    await project.queue("default", max_processing=1)
    for _ in range(2):
        await project.create("echo")
    assert when(await worker.claim_answer()) is None
    await project.create("echo", queue="other")
    assert when(await worker.heartbeat()) <= NOON
    await project.queue("other", paused=True)
    assert when(await worker.heartbeat()) is None


async def test_the_next_time_is_of_the_queues_asked_for(project, worker):
    await project.create("echo", run_at=NOON + timedelta(hours=1))
    answer = await worker.claim_answer(queues=["other"])
    assert when(answer) is None


# several connections


async def test_what_another_has_in_hand_is_skipped(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    jobs = [await one.create("echo") for _ in range(2)]
    first, second = await one.worker(), await two.worker()
    async with one.connection.transaction():
        assert ids(await first.claim()) == [jobs[0]["id"]]
        async with asyncio.timeout(5):
            assert ids(await second.claim(10)) == [jobs[1]["id"]]


async def test_a_repeated_request_waits_for_the_first_and_gets_the_same_jobs(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    for _ in range(4):
        await one.create("echo")
    worker, request = await one.worker(), uuid4()
    transaction = one.connection.transaction()
    await transaction.start()
    first = await worker.claim(2, request=request)
    again = asyncio.create_task(worker.through(two).claim(2, request=request))
    await asyncio.wait([again], timeout=0.2)
    await transaction.commit()
    assert await again == first
    assert await one.sql("select count(*) from public.jobs where status = 'processing'") == 2


async def test_concurrent_claims_never_exceed_the_queues_limit(database):
    projects = [await database.project() for _ in range(5)]
    await projects[0].kind("echo")
    await projects[0].queue("default", max_processing=3)
    for _ in range(40):
        await projects[0].create("echo")
    workers = [await project.worker() for project in projects]
    most, finished = 0, []

    async def work(worker: Worker) -> None:
        nonlocal most
        for _ in range(30):
            jobs = await worker.claim(2)
            running = await worker.project.sql("select count(*) from public.jobs where status = 'processing'")
            most = max(most, running)
            for job in jobs:
                assert (await worker.finish(job))["status"] == "completed"
                finished.append(job["id"])

    await asyncio.gather(*(work(worker) for worker in workers))
    assert most <= 3
    assert len(finished) == len(set(finished)) == 40


async def test_no_job_is_claimed_twice_by_many_workers(database):
    projects = [await database.project() for _ in range(5)]
    await projects[0].kind("echo")
    await projects[0].sql("""
        insert into public.jobs (queue, kind, max_attempts)
        select 'default', 'echo', 4 from generate_series(1, 300)
    """)
    workers = [await project.worker() for project in projects]

    async def drain(worker: Worker) -> list[str]:
        mine: list[str] = []
        while jobs := await worker.claim(7):
            mine += ids(jobs)
        return mine

    claimed = [job for jobs in await asyncio.gather(*map(drain, workers)) for job in jobs]
    assert len(claimed) == len(set(claimed)) == 300
    assert await projects[0].sql("select count(*) from public.jobs where attempt = 1") == 300


async def test_a_worker_that_leaves_during_its_claim_orphans_nothing(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    job = await one.create("echo")
    leaving, other = await one.worker(), await two.worker()
    transaction = one.connection.transaction()
    await transaction.start()
    [claimed] = await leaving.claim()
    deregistered = asyncio.create_task(leaving.through(two).deregister())
    await asyncio.wait([deregistered], timeout=0.2)
    await transaction.commit()
    await deregistered

    await other.heartbeat()
    [again] = await other.claim()
    assert (again["id"], again["attempt"]) == (job["id"], claimed["attempt"] + 1)


async def test_a_claim_brings_what_earlier_attempts_did_up_to_4_mib(project, worker):
    keys = ["a", "b", "c", "d", "e"]
    await project.create("echo", items=[*keys, "f"])
    [job] = await worker.claim()
    assert job["done"] == []
    mebibyte = "x" * 1_040_000
    for key in keys:
        await worker.finish_items(job, {"key": key, "status": "completed", "result": mebibyte})
    await worker.release(job)

    [again] = await worker.claim()

    assert [item["key"] for item in again["items"]] == ["f"]
    assert [(item["key"], item["position"]) for item in again["done"]] == list(
        zip(keys, range(1, 6), strict=True)
    )
    assert [item["result"] == mebibyte for item in again["done"]] == [True, True, True, True, False]
    assert again["done"][-1]["result"] is None


# plans


@pytest.mark.parametrize("statistics", ["fresh", "none"])
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_a_claim_reads_the_claim_index_only(project, worker, statistics, plan):
    await project.sql("""
        insert into public.jobs (queue, kind, max_attempts, status, started_at, finished_at, run_at, priority)
        select 'default', 'echo', 4, case when n % 4 = 0 then 'pending' else 'completed' end,
          processor.now(), case when n % 4 = 0 then null else processor.now() end,
          processor.now() - n * interval '1 second', n % 3
        from generate_series(1, 20000) n
    """)
    if statistics == "fresh":
        await project.sql("analyze public.jobs")
    said: list[str] = []

    def listen(_: object, message: object) -> None:
        said.append(str(message))

    project.connection.add_log_listener(listen)
    await project.connection.execute(f"""
        load 'auto_explain'; set local auto_explain.log_min_duration = 0;
        set local auto_explain.log_analyze = on; set local auto_explain.log_nested_statements = on;
        set local client_min_messages = log;
        set local plan_cache_mode = {plan};
    """)
    claimed = await worker.claim(5)
    project.connection.remove_log_listener(listen)

    assert len(claimed) == 5
    claims = [text for text in said if "order by j.run_at, j.id" in text and "skip locked" in text]
    assert claims
    for text in claims:
        assert "using jobs_pending_idx on jobs j" in text, text
    assert not [text for text in said if "Seq Scan on jobs" in text], "the whole table was read"
