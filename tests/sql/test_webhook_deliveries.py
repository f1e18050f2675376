"""Deliveries: who may try and when, what a try leaves behind, and how one is repeated."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.sql.harness import ALICE, NOON, OPERATOR, Worker, fence, fixture, until_waiting

HOOK = "https://crm.example/hook"


class Deliverer:
    """A worker that delivers: claims, asks, reports and settles, as the handler does."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.project = worker.project

    async def claim(self, limit=1):
        return await self.worker.claim(limit, queues=["webhooks"])

    async def begin(self, job, *, by=None, attempt=None):
        return await self.project.call(
            "begin_delivery",
            by=by,
            worker_id=self.worker.id,
            job_id=job["id"],
            attempt=attempt or job["attempt"],
        )

    async def end(self, job, *, succeeded=True, status=200, error=None):
        await self.project.call(
            "end_delivery",
            worker_id=self.worker.id,
            job_id=job["id"],
            attempt=job["attempt"],
            succeeded=succeeded,
            status=status,
            error=error,
            seconds=0.25,
        )

    async def deliver(self, *, status=200):
        """Do a due delivery as a handler would; return what came of it."""
        [job] = await self.claim()
        answer = await self.begin(job)
        if answer["go"]:
            await self.end(job, succeeded=status == 200, status=status, error=f"answered {status}")
            outcome = {"outcome": "done" if status == 200 else "retry", "error_code": "UPSTREAM_UNAVAILABLE"}
        elif answer.get("gone"):
            outcome = {"outcome": "fail", "error_code": "WEBHOOK_GONE"}
        else:
            outcome = {"outcome": "snooze", "delay_seconds": answer["wait_seconds"]}
        [settled] = await self.worker.finish_all([fence(job) | outcome])
        return answer | {"status": settled["status"]}

    async def later(self, **duration):
        """Let time pass while this worker lives."""
        await self.project.later(**duration)
        await self.worker.heartbeat()


async def add_crm(project, url=HOOK):
    """Give a project an endpoint whose deliveries wait for exactly as long as is said."""
    await project.kind("echo")
    endpoint = await project.call("add_webhook", name="crm", url=url)
    await project.queue("webhooks", jitter=0)
    return endpoint


@fixture
async def crm(project):
    return await add_crm(project)


@fixture
async def deliverer(project, crm) -> Deliverer:
    return Deliverer(await project.worker(lease_seconds=3600))


async def event(project, how_many=1):
    """Let jobs end, of which the endpoints are told."""
    jobs = [await project.create("echo") for _ in range(how_many)]
    for job in jobs:
        await project.cancel(job)
    return jobs


async def state(project):
    return await project.sql("select to_jsonb(h) from processor.webhook_health h where name = 'crm'")


# the fence


async def test_who_holds_a_delivery_is_told_where_to_and_with_which_secret(project, crm, deliverer):
    await event(project)
    [job] = await deliverer.claim()
    answer = await deliverer.begin(job)
    assert 4.5 <= answer.pop("retry_seconds") <= 5.5  # with jitter, what the queue would wait
    assert answer == {
        "go": True, "url": HOOK, "secrets": [crm["secret"]], "timeout_seconds": 15, "allow_http": False,
    }  # fmt: skip


async def test_who_does_not_hold_it_is_told_nothing_and_changes_nothing(project, deliverer):
    await event(project)
    [job] = await deliverer.claim()
    stale = {"go": False, "stale": True}
    stranger = Deliverer(await project.worker())
    assert await stranger.begin(job) == stale
    assert await deliverer.begin(job, attempt=2) == stale
    await deliverer.begin(job)
    await stranger.end(job, succeeded=False, status=500)
    await deliverer.end(job | {"attempt": 2}, succeeded=False, status=500)
    assert (await state(project))["consecutive_failures"] == 0
    await deliverer.worker.finish(job)
    assert await deliverer.begin(job) == stale
    await deliverer.end(job, succeeded=False, status=500)
    assert (await state(project))["consecutive_failures"] == 0


async def test_a_job_of_another_kind_is_no_delivery(project, deliverer):
    await project.create("echo", payload={"endpoint_id": str(uuid4())})
    [job] = await deliverer.worker.claim()
    assert await deliverer.begin(job) == {"go": False, "stale": True}


@pytest.mark.parametrize("by", ["anon", ALICE, OPERATOR])
async def test_only_workers_ask(project, deliverer, by):
    await event(project)
    [job] = await deliverer.claim()
    async with project.refused("42501"):
        await deliverer.begin(job, by=by)


async def test_the_least_privilege_worker_may_ask(project, deliverer):
    await event(project)
    [job] = await deliverer.claim()
    assert (await deliverer.begin(job, by="job_processor"))["go"]


@pytest.mark.parametrize(("how", "reason"), [("remove_webhook", "removed"), ("disable_webhook", "disabled")])
async def test_what_waits_for_an_endpoint_that_is_gone_is_given_up(project, deliverer, how, reason):
    await event(project)
    await project.call(how, endpoint="crm")
    answer = await deliverer.deliver()
    assert answer == {"go": False, "gone": True, "reason": reason, "status": "failed"}


async def test_asking_and_reporting_twice_is_asking_and_reporting_once(project, deliverer):
    await project.sql("update public.webhook_endpoints set rate_limit = 2")
    await event(project)
    [job] = await deliverer.claim()
    first = await deliverer.begin(job)
    assert await deliverer.begin(job) == first
    assert await project.sql("select tokens from processor.webhook_tokens") == 1
    for _ in range(2):
        await deliverer.end(job, succeeded=False, status=500, error="answered 500")
    health = await state(project)
    assert (health["consecutive_failures"], health["last_error"]) == (1, "answered 500")


async def test_an_endless_error_is_cut(project, deliverer):
    await event(project)
    [job] = await deliverer.claim()
    await deliverer.begin(job)
    await deliverer.end(job, succeeded=False, status=None, error="x" * 10_000)
    assert len((await state(project))["last_error"]) == 500


# the circuit


async def test_five_failures_in_a_row_open_the_circuit_and_one_success_closes_it(project, deliverer):
    await event(project, 6)
    for n in range(1, 6):
        assert (await state(project))["state"] == ("new" if n == 1 else "failing")
        assert (await deliverer.deliver(status=503))["go"]
    assert (await state(project))["state"] == "circuit_open"
    waits = await deliverer.deliver()
    assert (waits["reason"], waits["status"]) == ("circuit_open", "pending")
    assert 60 <= waits["wait_seconds"] <= 66.1
    assert await project.sql("select max(failures) from public.jobs where queue = 'webhooks'") == 1
    await deliverer.later(seconds=61)
    assert (await deliverer.deliver())["status"] == "completed"
    health = await state(project)
    assert (health["state"], health["consecutive_failures"], health["opened_until"]) == ("ok", 0, None)


async def test_a_success_between_failures_keeps_it_closed(project, deliverer):
    await project.queue("webhooks", retry_delays=[timedelta(days=1)])
    await event(project, 9)
    for status in (500, 500, 500, 500, 200, 500, 500, 500, 500):
        assert (await deliverer.deliver(status=status))["go"]
    assert (await state(project))["state"] == "failing"


async def test_each_probe_that_fails_doubles_the_wait_up_to_an_hour(project, deliverer):
    await project.queue("webhooks", retry_delays=[timedelta(0)], max_attempts=100)
    await event(project)
    for _ in range(5):
        await deliverer.deliver(status=500)
    waits = []
    for _ in range(8):
        until = datetime.fromisoformat((await state(project))["opened_until"])
        waits.append((until - await project.now()).total_seconds() / 60)
        await project.at(until)
        await deliverer.worker.heartbeat()
        assert (await deliverer.deliver(status=500))["go"]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_only_one_try_probes_an_open_circuit(project, deliverer):
    await project.queue("webhooks", retry_delays=[timedelta(0)])
    await event(project, 5)
    for _ in range(5):
        await deliverer.deliver(status=500)
    await deliverer.later(seconds=60)
    one, two = await deliverer.claim(2)
    assert (await deliverer.begin(one))["go"]
    assert (await deliverer.begin(two))["reason"] == "circuit_open"
    # the worker may be lost with it: then another one probes
    await deliverer.later(seconds=46)
    assert (await deliverer.begin(two))["go"]


async def test_tries_that_began_before_the_circuit_opened_do_not_double_the_wait(project, deliverer):
    await event(project, 20)
    jobs = await deliverer.claim(20)
    for job in jobs:
        assert (await deliverer.begin(job))["go"]
    for job in jobs:
        await deliverer.end(job, succeeded=False, status=500)
    health = await state(project)
    assert health["consecutive_failures"] == 20
    assert datetime.fromisoformat(health["opened_until"]) == NOON + timedelta(minutes=1)


async def test_two_tries_at_the_same_moment_probe_once(database):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("echo")
    await one.call("add_webhook", name="crm", url=HOOK)
    first = Deliverer(await one.worker())
    await event(one, 2)
    await one.sql(
        "update public.webhook_endpoints set consecutive_failures = 5, times_opened = 1, "
        "opened_until = processor.now() - interval '1 second'"
    )
    jobs = await first.claim(2)
    second = Deliverer(first.worker.through(two))
    async with one.connection.transaction():
        assert (await first.begin(jobs[0]))["go"]
        other = asyncio.create_task(second.begin(jobs[1]))
        await until_waiting(observer, two)
    assert (await other)["reason"] == "circuit_open"
    assert await observer.sql("select count(*) from processor.webhook_deliveries where probe") == 1


async def test_two_tries_at_the_same_moment_take_two_tokens(database):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("echo")
    await one.call("add_webhook", name="crm", url=HOOK, rate_limit=1, rate_seconds=86400)
    first = Deliverer(await one.worker())
    await event(one, 2)
    jobs = await first.claim(2)
    second = Deliverer(first.worker.through(two))
    async with one.connection.transaction():
        assert (await first.begin(jobs[0]))["go"]
        other = asyncio.create_task(second.begin(jobs[1]))
        await until_waiting(observer, two)
    assert (await other)["reason"] == "rate_limited"


async def test_two_failures_at_the_same_moment_are_two(database):
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("echo")
    await one.call("add_webhook", name="crm", url=HOOK)
    first = Deliverer(await one.worker())
    await event(one, 2)
    jobs = await first.claim(2)
    for job in jobs:
        await first.begin(job)
    second = Deliverer(first.worker.through(two))
    async with one.connection.transaction():
        await first.end(jobs[0], succeeded=False, status=500)
        other = asyncio.create_task(second.end(jobs[1], succeeded=False, status=500))
        await until_waiting(observer, two)
    await other
    assert (await state(observer))["consecutive_failures"] == 2


async def test_enabling_an_endpoint_closes_its_circuit(project, deliverer):
    await project.sql(
        "update public.webhook_endpoints set consecutive_failures = 5, opened_until = processor.never()"
    )
    await project.call("enable_webhook", endpoint="crm")
    assert (await state(project))["state"] == "new"


async def test_another_url_is_another_receiver(project, deliverer):
    await project.sql(
        "update public.webhook_endpoints set consecutive_failures = 5, opened_until = processor.never()"
    )
    await project.sql("update public.webhook_endpoints set url = 'https://new.example/hook'")
    await event(project)
    assert (await deliverer.deliver())["url"] == "https://new.example/hook"


async def test_an_answer_of_410_disables_the_endpoint(project, deliverer):
    await event(project, 2)
    await deliverer.deliver(status=410)
    assert (await state(project))["state"] == "disabled"
    assert (await deliverer.deliver())["reason"] == "disabled"


# dead


async def test_a_delivery_that_never_succeeds_is_dead_after_a_day_of_retries(project, deliverer):
    await event(project)
    tries = []
    for _ in range(100):
        due = await project.sql(
            "select run_at from public.jobs where queue = 'webhooks' and status = 'pending'"
        )
        if due is None:
            break
        await project.at(max(due, await project.now()))
        await deliverer.worker.heartbeat()
        if (await deliverer.deliver(status=500))["go"]:
            tries.append(await project.now() - NOON)
    assert len(tries) == 8
    assert tries[:3] == [timedelta(0), timedelta(seconds=5), timedelta(minutes=5, seconds=5)]
    assert timedelta(hours=23) < tries[-1] < timedelta(hours=28)
    [row] = await project.read("read_webhook_deliveries", statuses=["failed"])
    assert (row["webhook"], row["failures"], row["http_status"]) == ("crm", 8, 500)
    assert (await state(project))["given_up_last_day"] == 1


async def test_a_circuit_that_stays_open_does_not_keep_deliveries_for_ever(project, deliverer):
    await project.sql(
        "update public.webhook_endpoints set consecutive_failures = 5, opened_until = processor.never()"
    )
    await event(project)
    await deliverer.later(hours=23)
    assert (await deliverer.deliver())["reason"] == "circuit_open"
    await deliverer.later(hours=2)
    assert await deliverer.deliver() == {"go": False, "gone": True, "reason": "expired", "status": "failed"}


# the rate


async def test_an_endpoint_is_not_tried_more_often_than_it_says(project, deliverer):
    await project.sql(
        "update public.webhook_endpoints set rate_limit = 2, rate_period = interval '10 seconds'"
    )
    await event(project, 5)
    jobs = await deliverer.claim(5)
    answers = [await deliverer.begin(job) for job in jobs]
    assert [answer["go"] for answer in answers] == [True, True, False, False, False]
    assert {answer["reason"] for answer in answers[2:]} == {"rate_limited"}
    assert [answer["wait_seconds"] for answer in answers[2:]] == pytest.approx([5, 10, 15], abs=0.1)
    # each has its own turn: the second one asked first does not take the first one's
    await deliverer.later(seconds=5.1)
    assert (await deliverer.begin(jobs[3]))["wait_seconds"] == pytest.approx(4.9, abs=0.1)
    assert (await deliverer.begin(jobs[2]))["go"]
    await deliverer.later(seconds=10)
    assert [(await deliverer.begin(job))["go"] for job in jobs[3:]] == [True, True]


async def test_a_bucket_is_never_fuller_than_the_limit(project, deliverer):
    await project.sql("update public.webhook_endpoints set rate_limit = 2, rate_period = interval '1 second'")
    await event(project, 4)
    await deliverer.deliver()
    await deliverer.later(minutes=10)
    jobs = await deliverer.claim(3)
    assert [(await deliverer.begin(job))["go"] for job in jobs] == [True, True, False]


async def test_a_long_wait_looks_back_now_and_then_as_a_limit_may_be_lifted(project, deliverer):
    await project.sql("update public.webhook_endpoints set rate_limit = 1, rate_period = interval '1 day'")
    await event(project, 2)
    assert (await deliverer.deliver())["go"]
    assert (await deliverer.deliver())["wait_seconds"] == pytest.approx(900, abs=1)
    await project.sql("update public.webhook_endpoints set rate_limit = null")
    await deliverer.later(seconds=901)
    assert (await deliverer.deliver())["status"] == "completed"


async def test_a_wait_costs_no_attempt(project, deliverer):
    await project.sql("update public.webhook_endpoints set rate_limit = 1")
    await event(project, 2)
    await deliverer.deliver()
    await deliverer.deliver()
    [waiting, _] = await project.read("read_webhook_deliveries")
    assert (waiting["status"], waiting["failures"], waiting["attempt"]) == ("pending", 0, 1)


# secrets


async def test_while_a_secret_is_rotated_both_sign_the_new_one_first(project, crm, deliverer):
    rotated = await project.call("rotate_webhook", by=OPERATOR, endpoint="crm")
    assert datetime.fromisoformat(rotated["previous_valid_until"]) == NOON + timedelta(days=1)
    assert (await state(project))["secrets"] == 2
    await event(project, 2)
    assert (await deliverer.deliver())["secrets"] == [rotated["secret"], crm["secret"]]
    await deliverer.later(days=1)
    assert (await deliverer.deliver())["secrets"] == [rotated["secret"]]


async def test_a_secret_that_leaked_signs_no_longer_at_once(project, crm, deliverer):
    await project.call("rotate_webhook", endpoint="crm")
    rotated = await project.call("rotate_webhook", endpoint="crm", overlap_seconds=0)
    await event(project)
    assert (await deliverer.deliver())["secrets"] == [rotated["secret"]]
    await project.call("rotate_webhook", endpoint="crm")
    kept = await project.rows("select secret from processor.webhook_secrets")
    assert crm["secret"] not in {row["secret"] for row in kept}


# once more


async def test_a_redelivery_is_a_new_job_with_the_same_message(project, deliverer):
    await event(project)
    [job] = await deliverer.claim()
    await deliverer.worker.finish(job, "fail")
    again = await project.call("redeliver_webhook", by=OPERATOR, job_id=job["id"])
    assert again["id"] != job["id"]
    assert (again["retry_of"], again["payload"]) == (job["id"], job["payload"])
    assert again["failures"] == 0
    [row, old] = await project.read("read_webhook_deliveries", endpoint="crm")
    assert (row["message_id"], row["status"]) == (old["message_id"], "pending")
    # asked again while it is on its way, it is the same one; after that, another
    assert (await project.call("redeliver_webhook", job_id=job["id"]))["id"] == again["id"]
    assert (await deliverer.deliver())["status"] == "completed"
    third = await project.call("redeliver_webhook", job_id=job["id"])
    assert (third["retry_of"], third["payload"]) == (again["id"], job["payload"])
    assert (await deliverer.deliver())["status"] == "completed"
    assert (await project.call("redeliver_webhook", job_id=job["id"]))["retry_of"] == third["id"]


async def test_all_that_was_given_up_is_redelivered_as_other_jobs_are_retried(project, deliverer):
    await event(project, 3)
    await project.call("disable_webhook", endpoint="crm")
    for _ in range(3):
        await deliverer.deliver()
    await project.call("enable_webhook", endpoint="crm")
    [answer] = await project.rows("select * from processor.retry_failed('webhooks', $1)", NOON)
    assert answer["retried"] == 3
    for _ in range(3):
        assert (await deliverer.deliver())["status"] == "completed"
    messages = [row["message_id"] for row in await project.read("read_webhook_deliveries")]
    assert (len(messages), len(set(messages))) == (6, 3)


async def test_what_cannot_be_redelivered_is_said_to_be(project, deliverer):
    [job] = await event(project)
    for unknown in (job["id"], uuid4(), None):
        async with project.refused("JQ008", "delivery not found"):
            await project.call("redeliver_webhook", job_id=unknown)
    [delivery] = await deliverer.claim()
    await deliverer.worker.finish(delivery, "fail")
    await project.call("disable_webhook", endpoint="crm")
    async with project.refused("JQ009", "disabled or removed"):
        await project.call("redeliver_webhook", job_id=delivery["id"])


async def test_a_test_reaches_an_endpoint_that_wants_nothing_else(project, deliverer):
    await project.sql("update public.webhook_endpoints set events = '{job.failed}', queues = '{other}'")
    job = await project.call("test_webhook", by=OPERATOR, endpoint="crm")
    assert job["payload"]["event"]["type"] == "webhook.test"
    assert job["payload"]["event"]["data"] == {"endpoint": "crm"}
    assert (await deliverer.deliver())["status"] == "completed"
    [row] = await project.read("read_webhook_deliveries")
    assert (row["event"], row["subject_id"], row["http_status"]) == ("webhook.test", None, 200)
    await project.call("disable_webhook", endpoint="crm")
    async with project.refused("JQ009", "disabled"):
        await project.call("test_webhook", endpoint="crm")


# looking


async def test_deliveries_are_listed_newest_first_page_by_page(project, deliverer):
    await project.call("add_webhook", name="shop", url=HOOK, events=["job.failed"])
    jobs = await event(project, 5)
    rows = await project.read("read_webhook_deliveries", by=OPERATOR, limit=2)
    assert [row["subject_id"] for row in rows] == [jobs[4]["id"], jobs[3]["id"]]
    assert {(row["webhook"], row["event"], row["status"]) for row in rows} == {
        ("crm", "job.cancelled", "pending")
    }
    before = UUID(rows[-1]["job_id"])
    rows = await project.read("read_webhook_deliveries", before=before, endpoint="crm", limit=500)
    assert [row["subject_id"] for row in rows] == [job["id"] for job in jobs[2::-1]]
    await deliverer.deliver()
    [row] = await project.read("read_webhook_deliveries", statuses=["completed"])
    assert (row["subject_id"], row["http_status"], row["seconds"]) == (jobs[0]["id"], 200, 0.25)
    assert await project.read("read_webhook_deliveries", endpoint="shop") == []
    async with project.refused("JQ006", "unknown webhook"):
        await project.read("read_webhook_deliveries", endpoint="nobody")


async def test_deliveries_to_an_endpoint_that_was_removed_are_found_by_its_id(project, crm, deliverer):
    await event(project)
    await project.call("remove_webhook", endpoint="crm")
    [row] = await project.read("read_webhook_deliveries", endpoint=crm["id"])
    assert row["webhook"] == crm["id"]


async def test_the_health_of_endpoints_is_told(project, crm, deliverer):
    await event(project, 3)
    await deliverer.deliver()
    await deliverer.later(seconds=3)
    [row] = await project.read("read_webhooks", by=OPERATOR)
    assert row == {
        "id": crm["id"], "name": "crm", "url": HOOK, "events": ["*"], "queues": None, "kinds": None,
        "owner_id": None, "description": "", "state": "ok", "waiting": 2, "oldest_seconds": 3,
        "given_up_last_day": 0, "consecutive_failures": 0, "opened_until": None,
        "last_success_at": row["last_success_at"], "last_failure_at": None, "last_status": 200,
        "last_error": None, "rate_limit": None, "rate_seconds": 60, "secrets": 1,
    }  # fmt: skip
    assert datetime.fromisoformat(row["last_success_at"]) == NOON
