"""finish_jobs and finish_items: what the end of an attempt, or of an item, means."""

from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from tests.sql.harness import ALICE, NOON, Row, Worker, done, failed, fence, fixture


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.kind("report", credits_per_job=7)
    await project.queue("default", retry_delays=[timedelta(seconds=s) for s in (60, 300)], jitter=0)
    await project.grant(ALICE, 100)
    return await project.worker()


@fixture
async def claim(project, worker):
    """Create a job of Alice's and claim it."""

    async def claim(kind: str = "translate", *, items: tuple = ("de", "fr"), **arguments) -> Row:
        await project.create(kind, owner_id=ALICE, items=list(items) or None, **arguments)
        [job] = await worker.claim()
        return job

    return claim


@fixture(autouse=True)
async def _credits_are_conserved(project):
    yield
    assert await project.faults() == []


def due(job: Row) -> datetime:
    return datetime.fromisoformat(job["run_at"])


async def again(project, worker) -> Row:
    """Let enough time pass and claim the job again."""
    await project.later(days=1)
    await worker.heartbeat()
    [job] = await worker.claim()
    return job


# done


async def test_a_job_without_items_completes_with_its_result(project, worker, claim):
    job = await claim("echo", items=())
    await worker.progress(job, 0.3)
    answer = await worker.finish(job, "done", result={"text": "ok"})
    assert (answer["status"], answer["stale"], answer["error"]) == ("completed", False, None)
    row = await project.job(job)
    assert (row["status"], row["result"], row["progress"]) == ("completed", {"text": "ok"}, 1)
    assert (datetime.fromisoformat(row["finished_at"]), row["error_code"]) == (NOON, None)


@pytest.mark.parametrize("report", [{}, {"result": None}], ids=["left out", "null"])
async def test_no_result_is_null(project, worker, claim, report):
    job = await claim("echo", items=("a",))
    await worker.finish(job, "done", **report, items=[{"key": "a", "status": "completed"} | report])
    assert await project.sql("select result is null from public.jobs where id = $1", job["id"])
    assert await project.sql("select result is null from public.job_items where job_id = $1", job["id"])


async def test_a_job_priced_per_job_is_paid_when_it_completes(project, worker, claim):
    job = await claim("report", items=())
    await worker.finish(job)
    assert await project.balance(ALICE) == (93, 0, 7)
    assert (await project.job(job))["credits_captured"] == 7


async def test_a_job_priced_per_job_is_free_when_it_fails(project, worker, claim):
    job = await claim("report", items=("a", "b"))
    await worker.finish_items(job, done("a"))
    answer = await worker.finish(job, "fail", error_code="REJECTED")
    assert answer["status"] == "partial"
    assert await project.balance(ALICE) == (100, 0, 0)
    assert (await project.job(job))["credits_refunded"] == 7


async def test_items_are_paid_one_by_one_as_they_complete(project, worker, claim):
    job = await claim(items=("de", "fr", "it"))
    await worker.finish_items(job, done("de", {"text": "hallo"}))
    row = await project.job(job)
    assert (row["credits_held"], row["credits_captured"], row["items_done"]) == (20, 10, 1)
    assert row["progress"] == pytest.approx(1 / 3)
    item = (await project.items(job))["de"]
    assert (item["status"], item["result"], item["credits"], item["progress"]) == (
        "completed",
        {"text": "hallo"},
        10,
        1,
    )
    await worker.finish_items(job, done("fr"), done("it"))
    assert (await worker.finish(job))["status"] == "completed"
    assert await project.balance(ALICE) == (70, 0, 30)


async def test_items_may_end_with_their_job_in_one_report(project, worker, claim):
    job = await claim()
    answer = await worker.finish(job, "done", items=[done("de"), done("fr")])
    assert answer["status"] == "completed"
    assert await project.balance(ALICE) == (80, 0, 20)


async def test_a_job_with_items_that_failed_for_good_is_partial_and_pays_for_the_rest(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, done("de"), failed("fr"))
    assert (await worker.finish(job))["status"] == "partial"
    row = await project.job(job)
    assert (row["error_code"], row["items_done"], row["items_failed"]) == ("ITEMS_FAILED", 1, 1)
    assert (row["credits_captured"], row["credits_refunded"], row["credits_held"]) == (10, 10, 0)
    assert await project.balance(ALICE) == (90, 0, 10)


async def test_a_job_whose_items_all_failed_for_good_failed(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, failed("de"), failed("fr"))
    assert (await worker.finish(job))["status"] == "failed"
    assert await project.balance(ALICE) == (100, 0, 0)


async def test_retryable_items_run_again_and_permanent_ones_do_not(project, worker, claim):
    job = await claim(items=("de", "fr", "it"))
    await worker.finish_items(job, done("de"), failed("fr", retryable=True), failed("it"))
    answer = await worker.finish(job)
    assert answer["status"] == "pending"
    assert due(answer) == NOON + timedelta(seconds=60)
    row = await project.job(job)
    assert (row["items_done"], row["items_failed"], row["failures"]) == (1, 1, 1)

    second = await again(project, worker)
    assert [item["key"] for item in second["items"]] == ["fr"]
    assert second["items"][0]["attempts"] == 1
    await worker.finish_items(second, done("fr"))
    assert (await worker.finish(second))["status"] == "partial"
    assert await project.balance(ALICE) == (80, 0, 20)


async def test_done_with_items_never_reported_is_tried_again(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, done("de"))
    assert (await worker.finish(job))["status"] == "pending"
    assert [item["key"] for item in (await again(project, worker))["items"]] == ["fr"]


async def test_an_item_that_failed_may_complete_in_the_same_attempt(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, failed("de"))
    await worker.finish_items(job, done("de"), done("fr"))
    row = await project.job(job)
    assert (row["items_done"], row["items_failed"]) == (2, 0)
    assert (await project.items(job))["de"]["error_code"] is None
    assert (await worker.finish(job))["status"] == "completed"


async def test_a_completed_item_stays_completed(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, done("de", "first"))
    await worker.finish_items(job, failed("de"), done("fr"))
    item = (await project.items(job))["de"]
    assert (item["status"], item["result"], item["attempts"]) == ("completed", "first", 1)


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_a_repeated_report_of_items_changes_nothing(project, worker, claim, outcome):
    job = await claim()
    report = (
        [done("de"), done("fr")] if outcome == "completed" else [failed("de"), failed("fr", retryable=True)]
    )
    first = await worker.finish_items(job, *report)
    before = (await project.job(job), await project.items(job), await project.balance(ALICE))
    await project.later(seconds=1)
    assert await worker.finish_items(job, *report) == first
    assert (await project.job(job), await project.items(job), await project.balance(ALICE)) == before


async def test_a_job_that_failed_before_completes_without_an_error(project, worker, claim):
    job = await claim("echo", items=())
    await worker.finish(job, "retry", error_code="UPSTREAM_TIMEOUT", error_message="slow")
    second = await again(project, worker)
    await worker.finish(second)
    row = await project.job(second)
    assert (row["status"], row["error_code"], row["error_message"]) == ("completed", None, None)
    assert [error["code"] for error in row["errors"]] == ["UPSTREAM_TIMEOUT"]


# retry and fail


async def test_delays_follow_the_queue_by_failure_number_and_the_last_repeats(project, worker, claim):
    job = await claim("echo", items=(), max_attempts=5)
    waits = []
    for _ in range(4):
        answer = await worker.finish(job, "retry", error_code="UPSTREAM_TIMEOUT")
        waits.append((due(answer) - await project.now()).total_seconds())
        job = await again(project, worker)
    assert waits == [60, 300, 300, 300]
    assert (job["attempt"], job["failures"]) == (5, 4)


async def test_jitter_moves_a_delay_both_ways_within_its_share(project, worker):
    await project.queue("default", jitter=0.1)
    for _ in range(60):
        await project.create("echo")
    jobs = await worker.claim(60)
    answers = await worker.finish_all([fence(job) | {"outcome": "retry"} for job in jobs])
    waits = [(due(answer) - NOON).total_seconds() for answer in answers]
    assert 54 <= min(waits) < 59
    assert 61 < max(waits) <= 66


async def test_a_retry_may_name_its_own_delay(project, worker, claim):
    job = await claim("echo", items=())
    answer = await worker.finish(job, "retry", error_code="RATE_LIMITED", delay_seconds=7.5)
    assert due(answer) == NOON + timedelta(seconds=7.5)


async def test_a_retry_keeps_its_error_and_its_hold(project, worker, claim):
    job = await claim()
    await worker.finish(job, "retry", error_code="RATE_LIMITED", error_message="slow down")
    row = await project.job(job)
    assert (row["status"], row["error_code"], row["error_message"], row["error_retryable"]) == (
        "pending", "RATE_LIMITED", "slow down", True,
    )  # fmt: skip
    assert row["errors"] == [
        {"attempt": 1, "code": "RATE_LIMITED", "message": "slow down", "at": row["updated_at"]}
    ]
    assert await project.balance(ALICE) == (80, 20, 0)


async def test_when_the_attempts_are_used_up_the_job_fails_and_is_refunded(project, worker, claim):
    job = await claim(max_attempts=2)
    assert (await worker.finish(job, "retry", error_code="X"))["status"] == "pending"
    job = await again(project, worker)
    assert (await worker.finish(job, "retry", error_code="X", error_message="no"))["status"] == "failed"
    row = await project.job(job)
    assert (row["failures"], row["error_code"], row["error_retryable"], len(row["errors"])) == (
        2,
        "X",
        False,
        2,
    )
    assert {item["status"] for item in (await project.items(job)).values()} == {"failed"}
    assert await project.balance(ALICE) == (100, 0, 0)


async def test_when_the_attempts_are_used_up_done_items_are_kept_and_paid(project, worker, claim):
    job = await claim(max_attempts=1)
    await worker.finish_items(job, done("de"), failed("fr", retryable=True))
    assert (await worker.finish(job))["status"] == "partial"
    assert await project.balance(ALICE) == (90, 0, 10)


async def test_a_retry_that_is_not_retryable_fails(worker, claim):
    job = await claim("echo", items=())
    assert (await worker.finish(job, "retry", error_code="AUTH_FAILED", error_retryable=False))[
        "status"
    ] == "failed"


async def test_fail_never_retries(project, worker, claim):
    job = await claim()
    answer = await worker.finish(job, "fail", error_code="INVALID_PAYLOAD", error_message="no title")
    assert answer["status"] == "failed"
    row = await project.job(job)
    assert (row["error_code"], row["error_message"], row["failures"]) == ("INVALID_PAYLOAD", "no title", 1)
    assert await project.balance(ALICE) == (100, 0, 0)


async def test_open_items_of_a_failed_job_failed_with_its_error(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, failed("de"))
    await worker.finish(job, "fail", error_code="AUTH_FAILED", error_message="bad key")
    items = await project.items(job)
    assert (items["de"]["error_code"], items["fr"]["error_code"]) == ("REJECTED", "AUTH_FAILED")
    assert (await project.job(job))["items_failed"] == 2


async def test_only_the_last_twenty_errors_are_kept(project, worker, claim):
    job = await claim("echo", items=(), max_attempts=30)
    for number in range(1, 26):
        await worker.finish(job, "retry", error_code=f"E{number}")
        job = await again(project, worker)
    errors = (await project.job(job))["errors"]
    assert [error["code"] for error in errors] == [f"E{number}" for number in range(6, 26)]


async def test_endless_error_messages_are_cut(project, worker, claim):
    job = await claim("echo", items=("a",))
    await worker.finish_items(job, failed("a", retryable=True) | {"error_message": "x" * 100_000})
    await worker.finish(job, "retry", error_code="X", error_message="y" * 100_000)
    row = await project.job(job)
    assert len(row["error_message"]) == len(row["errors"][0]["message"]) == 2000
    assert len((await project.items(job))["a"]["error_message"]) == 2000


async def test_a_queue_that_is_gone_does_not_keep_a_job_from_being_retried(project, worker):
    await project.queue("short-lived")
    await project.create("echo", queue="short-lived")
    [job] = await worker.claim(queues=["short-lived"])
    await project.sql("delete from public.job_queues where name = 'short-lived'")
    answer = await worker.finish(job, "retry", error_code="X")
    assert (answer["status"], answer["error"]) == ("pending", None)


# snooze and cancelled


async def test_a_snooze_waits_and_costs_no_attempt(project, worker, claim):
    job = await claim(max_attempts=1)
    answer = await worker.finish(job, "snooze", delay_seconds=30, message="waiting for the file")
    assert (answer["status"], due(answer)) == ("pending", NOON + timedelta(seconds=30))
    row = await project.job(job)
    assert (row["failures"], row["progress_message"], row["errors"]) == (0, "waiting for the file", [])
    assert await project.balance(ALICE) == (80, 20, 0)


async def test_a_handler_may_cancel_its_own_job(project, worker, claim):
    job = await claim()
    await worker.finish_items(job, done("de"))
    assert (await worker.finish(job, "cancelled", error_message="not needed"))["status"] == "cancelled"
    assert (await project.job(job))["error_message"] == "not needed"
    assert (await project.items(job))["fr"]["status"] == "cancelled"
    assert await project.balance(ALICE) == (90, 0, 10)


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({"outcome": "done"}, "cancelled"),
        ({"outcome": "done", "items": [done("de"), done("fr")]}, "completed"),
        ({"outcome": "done", "items": [failed("de"), failed("fr")]}, "failed"),
        ({"outcome": "retry", "error_code": "X"}, "cancelled"),
        ({"outcome": "snooze", "delay_seconds": 5}, "cancelled"),
        ({"outcome": "fail", "error_code": "X"}, "failed"),
        ({"outcome": "cancelled"}, "cancelled"),
    ],
    ids=["open items", "all done", "all failed", "retry", "snooze", "fail", "cancelled"],
)
async def test_a_job_whose_cancel_was_requested_never_runs_again(project, worker, claim, report, status):
    job = await claim()
    await project.cancel(job, by=ALICE)
    [answer] = await worker.finish_all([fence(job) | report])
    assert answer["status"] == status
    assert (await project.balance(ALICE))[1] == 0


# one bad element spoils no other

BAD_JOBS = {
    "an unknown outcome": ({"outcome": "maybe"}, "JQ006"),
    "no outcome": ({}, "JQ006"),
    "an endless outcome": ({"outcome": "x" * 100_000}, "JQ006"),
    "an oversized result": ({"outcome": "done", "result": "x" * 1_048_577}, "JQ004"),
    "a negative delay": ({"outcome": "retry", "delay_seconds": -1}, "JQ006"),
    "a delay that is not a number": ({"outcome": "retry", "delay_seconds": "NaN"}, "JQ006"),
    "an endless delay": ({"outcome": "snooze", "delay_seconds": "Infinity"}, "JQ006"),
    "an absurd delay": ({"outcome": "snooze", "delay_seconds": 1e12}, "JQ006"),
    "a delay in words": ({"outcome": "snooze", "delay_seconds": "soon" * 10_000}, "22P02"),
    "a snooze without a delay": ({"outcome": "snooze"}, "JQ006"),
    "a flag that is none": ({"outcome": "retry", "error_retryable": "perhaps"}, "22P02"),
    "an unknown item": ({"outcome": "done", "items": [done("xx")]}, "JQ005"),
    "an item without a key": ({"outcome": "done", "items": [{"status": "completed"}]}, "JQ005"),
    "an item of unknown status": ({"outcome": "done", "items": [{"key": "de", "status": "ok"}]}, "JQ005"),
    "an item given twice": ({"outcome": "done", "items": [done("de"), done("de")]}, "JQ005"),
    "an item given both ways": ({"outcome": "done", "items": [done("de"), failed("de")]}, "JQ005"),
    "an oversized item": ({"outcome": "done", "items": [done("de", "x" * 1_048_577)]}, "JQ005"),
    "items that are no list": ({"outcome": "done", "items": "de"}, "22023"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
async def test_one_bad_report_spoils_no_other_and_changes_nothing(project, worker, claim, case):
    bad, code = BAD_JOBS[case]
    first, spoiled, last = [await claim() for _ in range(3)]
    unknown = {"id": str(uuid4()), "attempt": 1}
    before = (await project.job(spoiled), await project.items(spoiled))

    good = {"outcome": "done", "items": [done("de"), done("fr")]}
    answers = await worker.finish_all(
        [fence(first) | good, fence(spoiled) | bad, unknown | good, fence(last) | good]
    )

    assert [answer["id"] for answer in answers] == [first["id"], spoiled["id"], unknown["id"], last["id"]]
    assert [answer["status"] for answer in answers] == ["completed", "processing", None, "completed"]
    assert [answer["stale"] for answer in answers] == [False, False, True, False]
    assert [bool(answer["error"]) for answer in answers] == [False, True, False, False]
    assert answers[1]["error"].startswith(f"{code}: ")
    assert len(answers[1]["error"]) < 1000
    assert (await project.job(spoiled), await project.items(spoiled)) == before
    assert await project.balance(ALICE) == (40, 20, 40)


BAD_ITEMS = {
    "an unknown item": done("xx"),
    "no key": {"status": "completed"},
    "an endless key": done("x" * 100_000),
    "an unknown status": {"key": "de", "status": "cancelled"},
    "an oversized result": done("de", "x" * 1_048_577),
    "a flag that is none": failed("de") | {"error_retryable": "perhaps"},
    "a number": 5,
    "null": None,
}


@pytest.mark.parametrize("case", BAD_ITEMS)
async def test_one_bad_item_spoils_its_own_report_only(project, worker, claim, case):
    first, second = await claim(), await claim()
    answer = await worker.finish_items_answer(
        [
            fence(first) | {"items": [done("fr"), BAD_ITEMS[case]]},
            fence(second) | {"items": [done("fr")]},
        ]
    )
    assert [bool(result["error"]) for result in answer["results"]] == [True, False]
    assert len(answer["results"][0]["error"]) < 1000
    assert (await project.items(first))["fr"]["status"] == "pending"
    assert (await project.items(second))["fr"]["status"] == "completed"
    assert await project.balance(ALICE) == (60, 40, 0)


async def test_items_of_null_are_no_items(project, worker, claim):
    job = await claim("echo", items=())
    assert (await worker.finish(job, "done", items=None))["status"] == "completed"
    job = await claim()
    [answer] = (await worker.finish_items_answer([fence(job) | {"items": None}]))["results"]
    assert (answer["stale"], answer["error"]) == (False, None)


@pytest.mark.parametrize("results", [{"id": 1}, "text", 5, None])
async def test_a_batch_that_is_no_list_is_refused(project, worker, results):
    for call in (worker.finish_all, worker.finish_items_answer):
        async with project.refused("JQ006", "array"):
            await call(results)
    async with project.refused("JQ006", "array"):
        await project.call("release_jobs", worker_id=worker.id, jobs=results)


async def test_an_empty_batch_is_answered_with_nothing(worker):
    assert await worker.finish_all([]) == []


async def test_a_job_given_twice_in_one_batch_ends_as_the_first_says(project, worker, claim):
    job = await claim("report", items=())
    answers = await worker.finish_all(
        [fence(job) | {"outcome": outcome} for outcome in ("done", "fail", "retry", "snooze")]
    )
    assert [answer["stale"] for answer in answers] == [False, True, True, True]
    assert [answer["error"] for answer in answers] == [None] * 4
    assert (await project.job(job))["status"] == "completed"
    assert await project.balance(ALICE) == (93, 0, 7)


async def test_a_retried_job_given_twice_in_one_batch_is_retried_once(project, worker, claim):
    job = await claim("report", items=())
    answers = await worker.finish_all([fence(job) | {"outcome": outcome} for outcome in ("retry", "done")])
    assert [answer["stale"] for answer in answers] == [False, True]
    assert (await project.job(job))["status"] == "pending"
    assert await project.balance(ALICE) == (93, 7, 0)


async def test_a_batch_touches_each_account_once(project, worker, claim):
    jobs = [await claim("report", items=()) for _ in range(5)]
    version = "select xmin::text || ctid::text from public.credit_accounts where owner_id = $1"
    writes = "select n_tup_upd from pg_stat_xact_user_tables where relname = 'credit_accounts'"
    before = (await project.sql(writes), await project.sql(version, ALICE))
    await worker.finish_all([fence(job) | {"outcome": "done"} for job in jobs])
    assert await project.sql(writes) == before[0] + 1
    assert await project.balance(ALICE) == (65, 0, 35)
