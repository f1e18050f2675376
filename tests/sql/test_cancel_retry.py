"""cancel_job and retry_job: what an owner does with a job."""

import pytest

from tests.sql.harness import ALICE, BOB, OPERATOR, Worker, done, failed, fixture


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    return await project.worker()


@fixture(autouse=True)
async def _credits_are_conserved(project):
    yield
    assert await project.faults() == []


async def translate(project, **arguments):
    return await project.create("translate", by=ALICE, items=["de", "fr", "it"], **arguments)


async def ended(project, worker, *, completed: tuple = ("de",), outcome: str = "fail"):
    """Let a job end with some items completed and the others not."""
    job = await translate(project)
    [claimed] = await worker.claim()
    await worker.finish(claimed, outcome, items=[done(key) for key in completed])
    return await project.job(job)


# cancel


async def test_a_pending_job_is_cancelled_at_once_and_refunded(project, worker):
    job = await translate(project)
    cancelled = await project.cancel(job, by=ALICE)
    assert (cancelled["status"], cancelled["error_code"]) == ("cancelled", "CANCELLED")
    assert (cancelled["credits_held"], cancelled["credits_refunded"]) == (0, 30)
    assert cancelled["finished_at"] is not None
    assert {item["status"] for item in (await project.items(job)).values()} == {"cancelled"}
    assert await project.balance(ALICE) == (100, 0, 0)
    assert await worker.claim() == []


async def test_a_running_job_is_asked_to_stop_and_its_worker_is_told(project, worker):
    job = await translate(project)
    [claimed] = await worker.claim()
    before = (await worker.row())["inbox"]
    assert (await project.cancel(job, by=ALICE))["status"] == "processing"
    row = await project.job(job)
    assert row["cancel_requested_at"] is not None
    assert (await worker.row())["inbox"] == before + 1
    assert (await worker.heartbeat(claimed))["cancel"] == [job["id"]]
    assert await project.balance(ALICE) == (70, 30, 0)


async def test_asking_twice_tells_the_worker_once(project, worker):
    job = await translate(project)
    await worker.claim()
    first = await project.cancel(job, by=ALICE)
    inbox = (await worker.row())["inbox"]
    await project.later(seconds=1)
    assert await project.cancel(job, by=ALICE) == first
    assert (await worker.row())["inbox"] == inbox


async def test_a_job_cancelled_while_it_ran_pays_for_what_is_done(project, worker):
    job = await translate(project)
    [claimed] = await worker.claim()
    await worker.finish_items(claimed, done("de"))
    await project.cancel(job, by=ALICE)
    await worker.finish(claimed, "cancelled")
    assert await project.balance(ALICE) == (90, 0, 10)
    statuses = {key: item["status"] for key, item in (await project.items(job)).items()}
    assert statuses == {"de": "completed", "fr": "cancelled", "it": "cancelled"}


async def test_a_job_whose_cancel_was_requested_is_cancelled_when_released(project, worker):
    job = await translate(project)
    [claimed] = await worker.claim()
    await project.cancel(job, by=ALICE)
    await worker.release(claimed)
    assert (await project.job(job))["status"] == "cancelled"
    assert await project.balance(ALICE) == (100, 0, 0)


@pytest.mark.parametrize("outcome", ["done", "fail"])
async def test_an_ended_job_is_returned_as_it_is(project, worker, outcome):
    await ended(project, worker, completed=("de", "fr", "it"), outcome=outcome)
    [job] = await project.rows("select id::text from public.jobs")
    before = await project.job(job)
    assert await project.cancel(job, by=ALICE) == before


async def test_a_stranger_cannot_cancel_and_learns_nothing(project, worker):
    job = await translate(project)
    async with project.refused("JQ008", job["id"]):
        await project.cancel(job, by=BOB)
    assert (await project.job(job))["status"] == "pending"


async def test_the_service_and_operators_may_cancel_any_job(project, worker):
    for by in ("service_role", OPERATOR, None):
        job = await translate(project)
        assert (await project.cancel(job, by=by))["status"] == "cancelled"
    assert await project.balance(ALICE) == (100, 0, 0)


# release


async def test_a_released_job_is_pending_at_once_and_cost_no_attempt(project, worker):
    job = await translate(project, max_attempts=1)
    [claimed] = await worker.claim()
    await worker.finish_items(claimed, done("de"), failed("fr", retryable=True))
    [answer] = await worker.release(claimed)
    assert answer == {"id": job["id"], "stale": False}
    row = await project.job(job)
    assert (row["status"], row["failures"], row["attempt"], row["items_failed"]) == ("pending", 0, 1, 0)
    [again] = await worker.claim()
    assert [item["key"] for item in again["items"]] == ["fr", "it"]
    assert await project.balance(ALICE) == (70, 30, 0)  # an account is touched when a job ends


# retry


async def test_a_retry_is_a_new_job_with_the_unfinished_items_only(project, worker):
    old = await ended(project, worker)
    new = await project.retry(old, by=ALICE)
    assert (new["retry_of"], new["status"], new["items_total"]) == (old["id"], "pending", 2)
    assert (new["kind"], new["payload"], new["owner_id"]) == (old["kind"], old["payload"], old["owner_id"])
    assert list(await project.items(new)) == ["fr", "it"]
    assert await project.balance(ALICE) == (70, 20, 10)
    assert await project.job(old) == old

    [claimed] = await worker.claim()
    assert (await worker.finish(claimed, "done", items=[done("fr"), done("it")]))["status"] == "completed"
    assert await project.balance(ALICE) == (70, 0, 30)


async def test_a_retry_keeps_what_the_job_was_created_with(project, worker):
    await project.queue("slow")
    old = await project.create(
        "translate", owner_id=ALICE, queue="slow", payload={"n": 1}, priority=7, max_attempts=2,
        timeout_seconds=9, tags=["t"], items=[{"key": "de", "payload": {"formal": True}}],
    )  # fmt: skip
    await project.cancel(old)
    new = await project.retry(old, by=ALICE)
    for column in ("queue", "payload", "priority", "max_attempts", "timeout", "tags"):
        assert new[column] == old[column]
    assert (await project.items(new))["de"]["payload"] == {"formal": True}


async def test_a_retry_asked_for_again_is_the_same_job(project, worker):
    old = await ended(project, worker)
    new = await project.retry(old, by=ALICE)
    assert (await project.retry(old, by=ALICE))["id"] == new["id"]
    await project.cancel(new)
    assert (await project.retry(old, by=ALICE))["status"] == "cancelled"
    assert await project.balance(ALICE) == (90, 0, 10)


async def test_a_retry_can_be_retried(project, worker):
    old = await ended(project, worker, completed=())
    second = await project.retry(old, by=ALICE)
    await project.cancel(second)
    third = await project.retry(second, by=ALICE)
    assert (third["retry_of"], third["items_total"]) == (second["id"], 3)


async def test_a_retry_pays_the_price_of_now(project, worker):
    old = await ended(project, worker)
    await project.kind("translate", credits_per_item=25)
    new = await project.retry(old, by=ALICE)
    assert new["credits_held"] == 50


async def test_a_retry_without_enough_credits_creates_nothing(project, worker):
    old = await ended(project, worker)
    await project.kind("translate", credits_per_item=50)
    async with project.refused("PT402", "100 needed", "90 available"):
        await project.retry(old, by=ALICE)


@pytest.mark.parametrize("state", ["pending", "processing", "completed"])
async def test_a_job_that_has_not_failed_cannot_be_retried(project, worker, state):
    job = await project.create("echo", by=ALICE)
    if state != "pending":
        [claimed] = await worker.claim()
    if state == "completed":
        await worker.finish(claimed)
    async with project.refused("JQ009", state):
        await project.retry(job, by=ALICE)


async def test_a_stranger_cannot_retry_and_learns_nothing(project, worker):
    old = await ended(project, worker)
    async with project.refused("JQ008", old["id"]):
        await project.retry(old, by=BOB)


async def test_a_job_without_items_is_retried_whole(project, worker):
    job = await project.create("echo", by=ALICE, payload={"x": 1})
    [claimed] = await worker.claim()
    await worker.finish(claimed, "fail")
    new = await project.retry(job, by=ALICE)
    assert (new["items_total"], new["payload"]) == (0, {"x": 1})


async def test_a_job_all_of_whose_items_are_completed_has_nothing_to_retry(project, worker):
    old = await ended(project, worker, completed=("de", "fr", "it"))
    assert old["status"] == "partial"
    async with project.refused("JQ009", "every item"):
        await project.retry(old, by=ALICE)


async def test_a_retry_takes_the_unique_key_again(project, worker):
    job = await translate(project, unique_key="u")
    await project.cancel(job)
    new = await project.retry(job, by=ALICE)
    assert new["unique_key"] == "u"
    await project.cancel(new)
    await translate(project, unique_key="u")
    async with project.refused("JQ012", "u"):
        await project.retry(new, by=ALICE)


@pytest.mark.parametrize("all_items", [False, True])
async def test_an_operator_retries_any_job_and_its_owner_pays(project, worker, all_items):
    old = await ended(project, worker)
    new = await project.retry(old, by=OPERATOR, all_items=all_items)
    assert (new["owner_id"], new["items_total"]) == (str(ALICE), 3 if all_items else 2)
    assert await project.balance(ALICE) == (90 - new["credits_held"], new["credits_held"], 10)
    assert await project.balance(OPERATOR) == (0, 0, 0)


async def test_an_operator_retries_what_no_user_may_create(project, worker):
    await project.kind("internal", public=False)
    job = await project.create("internal", queue="default")
    await project.cancel(job)
    new = await project.retry(job, by=OPERATOR)
    assert (new["retry_of"], new["owner_id"]) == (job["id"], None)


async def test_an_operator_creates_jobs_as_himself_only(project, worker):
    await project.kind("internal", public=False)
    assert (await project.create("echo", by=OPERATOR))["owner_id"] == str(OPERATOR)
    async with project.refused("JQ001"):
        await project.create("internal", by=OPERATOR)
    async with project.refused("JQ010"):
        await project.create("echo", by=OPERATOR, owner_id=ALICE)


# retry with everything


@pytest.mark.parametrize("completed", [("de",), ("de", "fr", "it")])
async def test_everything_again_is_a_new_job_with_all_items(project, worker, completed):
    old = await ended(project, worker, completed=completed, outcome="done" if completed[1:] else "fail")
    assert old["status"] == ("completed" if completed[1:] else "partial")
    paid = 10 * len(completed)
    new = await project.retry(old, by=ALICE, all_items=True)
    assert (new["retry_of"], new["status"], new["credits_held"]) == (old["id"], "pending", 30)
    assert {key: item["status"] for key, item in (await project.items(new)).items()} == dict.fromkeys(
        ("de", "fr", "it"), "pending"
    )
    assert await project.balance(ALICE) == (100 - paid - 30, 30, paid)
    [claimed] = await worker.claim()
    assert (claimed["id"], claimed["done"]) == (new["id"], [])
    assert await project.job(old) == old


async def test_everything_again_asked_for_again_is_the_same_job(project, worker):
    old = await ended(project, worker)
    new = await project.retry(old, by=ALICE, all_items=True)
    assert await project.retry(old, by=ALICE, all_items=True) == new
    assert await project.retry(old, by=OPERATOR, all_items=True) == new
    third = await project.retry(await project.cancel(new), by=ALICE, all_items=True)
    assert (third["retry_of"], third["items_total"]) == (new["id"], 3)


@pytest.mark.parametrize("first", [False, True])
async def test_what_is_open_and_everything_are_two_repetitions(project, worker, first):
    old = await ended(project, worker)
    made = [await project.retry(old, by=ALICE, all_items=each) for each in (first, not first)]
    assert sorted(job["items_total"] for job in made) == [2, 3]
    assert [await project.retry(old, all_items=each) for each in (first, not first)] == made


async def test_everything_again_of_a_job_without_items(project, worker):
    job = await project.create("echo", by=ALICE, payload={"x": 1}, tags=["t"])
    [claimed] = await worker.claim()
    await worker.finish(claimed, result={"y": 2})
    new = await project.retry(job, by=ALICE, all_items=True)
    assert (new["payload"], new["tags"], new["result"], new["retry_of"]) == ({"x": 1}, ["t"], None, job["id"])


@pytest.mark.parametrize("state", ["pending", "processing"])
async def test_a_job_that_has_not_ended_is_not_repeated(project, worker, state):
    job = await project.create("echo", by=ALICE)
    if state == "processing":
        await worker.claim()
    async with project.refused("JQ009", state, "has ended"):
        await project.retry(job, by=ALICE, all_items=True)


async def test_everything_again_without_enough_credits_creates_nothing(project, worker):
    old = await ended(project, worker, completed=("de", "fr", "it"), outcome="done")
    await project.kind("translate", credits_per_item=25)
    async with project.refused("PT402", "75 needed", "70 available"):
        await project.retry(old, by=ALICE, all_items=True)


async def test_a_key_of_ones_own_is_no_repetition(project, worker):
    old = await ended(project, worker)
    await project.create("echo", by=ALICE, idempotency_key=f"all of/{old['id']}")
    async with project.refused("JQ007"):
        await project.retry(old, by=ALICE, all_items=True)


async def test_a_stranger_repeats_nothing(project, worker):
    old = await ended(project, worker)
    async with project.refused("JQ008", old["id"]):
        await project.retry(old, by=BOB, all_items=True)
