"""Whether people hear of webhooks that do not arrive, and that they do again; also as figures."""

from datetime import datetime, timedelta

import pytest

from tests.sql.harness import NOON, fixture
from tests.sql.test_webhook_deliveries import Deliverer, add_crm, event

HOOK = "https://crm.example:8443/hooks/T0KEN?key=K3Y"
FAILING, GIVEN_UP = "ProcessorWebhookFailing", "ProcessorWebhooksGivenUp"


@fixture
async def crm(project):
    return await add_crm(project, HOOK)


@fixture
async def deliverer(project, crm) -> Deliverer:
    return Deliverer(await project.worker(lease_seconds=3600, feed="realtime"))


async def alerts(project, name=FAILING):
    """Return what is told under a name, by endpoint."""
    rows = [row for row in await project.read("read_alerts") if row["alert"] == name]
    assert {row["severity"] for row in rows} <= {"warning"}
    return {row["about"]: row for row in rows}


async def figures(deliverer):
    answer = await deliverer.project.call("read_metrics", by="job_processor", worker_id=deliverer.worker.id)
    return answer["figures"]["webhooks"]


async def until(deliverer, moment):
    """Let the time come, while the worker lives."""
    await deliverer.project.at(moment)
    await deliverer.worker.heartbeat()


async def next_try(deliverer, status):
    """Go to the next try of a delivery, past the times at which it has to wait; return when it was."""
    project = deliverer.project
    while True:
        due = await project.sql(
            "select min(run_at) from public.jobs where queue = 'webhooks' and status = 'pending'"
        )
        await until(deliverer, max(due, await project.now()))
        if (await deliverer.deliver(status=status))["go"]:
            return await project.now()


async def give_up(deliverer, *, at=None):
    """Have a delivery that was given up."""
    await event(deliverer.project)
    if at is not None:
        await until(deliverer, at)
    [job] = await deliverer.claim()
    await deliverer.begin(job)
    await deliverer.end(job, succeeded=False, status=500)
    await deliverer.worker.finish(job, "fail")
    return job


async def fail_for_long(deliverer):
    await event(deliverer.project)
    await deliverer.deliver(status=503)
    await deliverer.later(minutes=11)


# failing


async def test_a_receiver_that_takes_nothing_for_ten_minutes_is_told_of_until_it_takes_something(
    project, crm, deliverer
):
    await event(project, 6)
    for _ in range(5):
        await deliverer.deliver(status=503)
    for _ in range(3):  # a minute later, two after that, four after that
        assert await alerts(project) == {}
        await next_try(deliverer, 503)
    assert NOON + timedelta(minutes=7) < await project.now() < NOON + timedelta(minutes=8)
    assert await alerts(project) == {}, "that was seven minutes"
    await until(deliverer, NOON + timedelta(minutes=11))
    told = (await alerts(project))["crm"]
    assert "crm (crm.example:8443) takes nothing" in told["summary"]
    assert "8 tries in a row have failed, the last was answered 503" in told["summary"]
    assert "processor webhooks show crm" in told["summary"]
    for secret in ("T0KEN", "K3Y", crm["secret"]):
        assert secret not in told["summary"]
    assert await figures(deliverer) == {"failing": 1, "given_up": 0}
    await next_try(deliverer, 200)
    assert await alerts(project) == {}
    assert await figures(deliverer) == {"failing": 0, "given_up": 0}


async def test_how_long_it_has_failed_is_known_however_often_the_circuit_has_opened(project, deliverer):
    await event(project, 5)
    for _ in range(5):
        await deliverer.deliver(status=500)
    for _ in range(12):
        lasted = await next_try(deliverer, 500) - NOON
        since = await project.sql("select processor.webhook_failing_since(e) from public.webhook_endpoints e")
        # the waits themselves are known, by how much each was exceeded is not
        assert timedelta(0) <= since - NOON < lasted * 0.15
    assert lasted > timedelta(hours=6)


async def test_a_receiver_of_little_is_told_of_before_its_circuit_opens(project, deliverer):
    await event(project)
    tries = [await next_try(deliverer, None) for _ in range(3)]
    assert tries[-1] == NOON + timedelta(minutes=5, seconds=5)
    await deliverer.later(minutes=10)
    assert await alerts(project) == {}
    await deliverer.later(seconds=1)
    told = (await alerts(project))["crm"]
    assert "3 tries in a row have failed, the last was not answered" in told["summary"]
    assert datetime.fromisoformat(told["since"]) == tries[-1]
    await next_try(deliverer, 200)
    assert await alerts(project) == {}


@pytest.mark.parametrize(
    "cure",
    [
        "select public.disable_webhook('crm')",
        "select public.remove_webhook('crm')",
        "select public.enable_webhook('crm')",
        "update public.webhook_endpoints set url = 'https://new.example/hook'",
    ],
)
async def test_what_an_operator_does_about_it_ends_it(project, deliverer, cure):
    await fail_for_long(deliverer)
    assert set(await alerts(project)) == {"crm"}
    await project.sql(cure)
    assert await alerts(project) == {}


async def test_a_receiver_that_takes_what_it_is_sent_or_is_sent_nothing_is_not_told_of(project, deliverer):
    await project.call("add_webhook", name="quiet", url=HOOK, events=["job.failed"])
    await event(project, 2)
    await deliverer.deliver(status=500)
    await deliverer.deliver(status=200)
    await deliverer.later(days=3)
    assert await alerts(project) == {}


# given up


async def test_messages_that_were_given_up_are_told_of_for_a_day(project, crm, deliverer):
    await project.call("add_webhook", name="shop", url=HOOK, events=["job.failed"])
    await give_up(deliverer)
    await give_up(deliverer, at=NOON + timedelta(hours=1))
    told = await alerts(project, GIVEN_UP)
    assert set(told) == {"crm"}
    assert "2 messages for webhook crm (crm.example:8443) were given up" in told["crm"]["summary"]
    assert "processor webhooks deliveries crm --status failed" in told["crm"]["summary"]
    assert "T0KEN" not in told["crm"]["summary"]
    assert datetime.fromisoformat(told["crm"]["since"]) == NOON
    assert (await figures(deliverer))["given_up"] == 1
    await until(deliverer, NOON + timedelta(hours=24, minutes=1))
    assert "1 messages" in (await alerts(project, GIVEN_UP))["crm"]["summary"]
    await until(deliverer, NOON + timedelta(hours=25, minutes=1))
    assert await alerts(project, GIVEN_UP) == {}
    assert (await figures(deliverer))["given_up"] == 0


async def test_a_message_that_is_sent_again_is_given_up_no_more_unless_that_fails_too(project, deliverer):
    first = await give_up(deliverer)
    await project.call("redeliver_webhook", job_id=first["id"])
    assert await alerts(project, GIVEN_UP) == {}
    [again] = await deliverer.claim()
    await deliverer.begin(again)
    await deliverer.worker.finish(again, "fail")
    told = (await alerts(project, GIVEN_UP))["crm"]["summary"]
    assert told.startswith("1 messages")
    await project.rows(told.partition("or all: ")[2].removesuffix("."))
    assert (await deliverer.deliver())["status"] == "completed"
    assert await alerts(project, GIVEN_UP) == {}


@pytest.mark.parametrize("how", ["disable_webhook", "remove_webhook"])
async def test_what_was_to_be_told_to_nobody_any_more_is_not_missed(project, deliverer, how):
    await give_up(deliverer)
    await event(project)
    await project.call(how, endpoint="crm")
    assert (await deliverer.deliver())["gone"]
    assert await alerts(project, GIVEN_UP) == {}


async def test_a_delivery_that_somebody_has_cancelled_was_not_given_up(project, deliverer):
    await event(project)
    await project.rows("select * from processor.cancel_queue('webhooks')")
    assert await alerts(project, GIVEN_UP) == {}


MANY = """
    with made as (
      insert into public.jobs (queue, kind, max_attempts, status, finished_at)
      select 'webhooks', 'webhook.deliver', 8, case when n > 2000 then 'failed' else 'completed' end,
        $1::timestamptz - n * interval '1 second'
      from generate_series(1, 12500) n
      returning id, status
    )
    insert into processor.webhook_deliveries (job_id, endpoint_id, message_id, event)
    select m.id, e.id, 'msg', 'job.completed' from made m cross join public.webhook_endpoints e
"""


async def test_of_a_day_of_deliveries_no_more_are_read_than_dead_ones_are_counted(project, crm):
    await project.sql(MANY, NOON)
    counting = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'jobs'"
    for _ in ("without statistics", "with them"):
        before = await project.sql(counting)
        rows = await project.rows("select * from processor.webhook_alerts()")
        assert [row["summary"][:35] for row in rows] == ["10000 or more messages for webhook "]
        assert await project.sql(counting) - before == 10_000
        await project.sql("analyze public.jobs")
