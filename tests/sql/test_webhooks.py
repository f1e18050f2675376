"""Webhooks: each end of a job, and each failed attempt, makes one delivery for each endpoint that wants."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.sql.harness import ALICE, BOB, NOON, OPERATOR, Worker, done, failed, fixture

HOOK = "https://crm.example/hook"


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("report", queue="reports", credits_per_job=7)
    await project.queue("default", retry_delays=[timedelta(minutes=1)], jitter=0)
    for owner in (ALICE, BOB):
        await project.grant(owner, 100)
    return await project.worker(queues=["default", "reports"])


async def add(project, name="crm", **arguments):
    return await project.call("add_webhook", name=name, url=HOOK, **arguments)


async def deliveries(project):
    """Return what was made, in the order in which it was made, each with the name of its endpoint."""
    return [
        row["row"]
        for row in await project.rows("""
            select to_jsonb(j) || jsonb_build_object('webhook', e.name) as row
            from public.jobs j
            left join public.webhook_endpoints e on e.id::text = j.payload ->> 'endpoint_id'
            where j.kind = 'webhook.deliver' order by j.id
        """)
    ]


async def told(project):
    """Return what endpoints are told of which job: (name, event, id of the job)."""
    return [
        (job["webhook"], job["payload"]["event"]["type"], job["payload"]["event"]["data"]["id"])
        for job in await deliveries(project)
    ]


# each way in which a job ends


async def complete(project, worker):
    job = await project.create("echo")
    [claimed] = await worker.claim()
    await worker.finish(claimed, result={"n": 1})
    return job


async def fail(project, worker):
    job = await project.create("echo")
    [claimed] = await worker.claim()
    await worker.finish(claimed, "fail", error_code="REJECTED", error_message="no")
    return job


async def do_a_part(project, worker):
    job = await project.create("echo", items=["de", "fr"])
    [claimed] = await worker.claim()
    await worker.finish(claimed, items=[done("de"), failed("fr")])
    return job


async def cancel_while_it_waits(project, worker):
    job = await project.create("echo")
    await project.cancel(job)
    return job


async def cancel_while_it_runs(project, worker):
    job = await project.create("echo")
    [claimed] = await worker.claim()
    await project.cancel(job)
    await worker.finish(claimed, "cancelled")
    return job


async def cancel_with_its_queue(project, worker):
    job = await project.create("echo")
    await project.rows("select * from processor.cancel_queue('default')")
    return job


async def be_replaced(project, worker):
    job = await project.create("echo", unique_key="one")
    await project.create("echo", unique_key="one", on_conflict="replace")
    return job


async def lose_two_workers(project, worker):
    job = await project.create("echo")
    for _ in range(2):
        await worker.claim()
        await project.later(seconds=91)
        await project.sql("select processor.rescue_jobs()")
        await worker.heartbeat()
    return job


async def give_back_what_was_cancelled(project, worker):
    job = await project.create("echo")
    [claimed] = await worker.claim()
    await project.cancel(job)
    await worker.release(claimed)
    return job


ENDS = {
    complete: "job.completed",
    fail: "job.failed",
    do_a_part: "job.partial",
    cancel_while_it_waits: "job.cancelled",
    cancel_while_it_runs: "job.cancelled",
    cancel_with_its_queue: "job.cancelled",
    be_replaced: "job.cancelled",
    lose_two_workers: "job.failed",
    give_back_what_was_cancelled: "job.cancelled",
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_every_end_is_told_once_to_each_endpoint(project, worker, end):
    for name in ("crm", "shop"):
        await add(project, name)
    job = await end(project, worker)
    assert sorted(await told(project)) == [("crm", ENDS[end], job["id"]), ("shop", ENDS[end], job["id"])]
    if end is lose_two_workers:
        assert (await deliveries(project))[0]["payload"]["event"]["data"]["error_code"] == "WORKER_CRASHED"


async def test_a_failed_child_its_parent_and_its_siblings_are_told_of(project, worker):
    await add(project)
    parent = await project.create("echo", children=[{"kind": "echo"}] * 2, on_child_failure="fail")
    [child] = await worker.claim()
    await worker.finish(child, "fail")
    events = [(event, job == parent["id"]) for _, event, job in await told(project)]
    assert sorted(events) == [("job.cancelled", False), ("job.failed", False), ("job.failed", True)]


async def test_every_failed_attempt_is_told_once(project, worker):
    await add(project)
    job = await project.create("echo", max_attempts=3)
    for _ in range(3):
        [claimed] = await worker.claim()
        await worker.finish(claimed, "retry", error_code="UPSTREAM_TIMEOUT", error_message="slow")
        await project.later(minutes=2)
        await worker.heartbeat()
    assert await told(project) == [
        ("crm", "job.retrying", job["id"]),
        ("crm", "job.retrying", job["id"]),
        ("crm", "job.failed", job["id"]),
    ]
    first = (await deliveries(project))[0]["payload"]["event"]["data"]
    assert (first["status"], first["error_code"], first["attempt"]) == ("pending", "UPSTREAM_TIMEOUT", 1)
    assert datetime.fromisoformat(first["run_at"]) == NOON + timedelta(minutes=1)
    ids = {job["payload"]["message_id"] for job in await deliveries(project)}
    assert len(ids) == 3


@pytest.mark.parametrize("outcome", ["snooze", "release", "rescue"])
async def test_what_is_neither_an_end_nor_a_failure_is_told_to_nobody(project, worker, outcome):
    await add(project)
    await project.create("echo")
    [claimed] = await worker.claim()
    if outcome == "snooze":
        await worker.finish(claimed, "snooze", delay_seconds=5)
    elif outcome == "release":
        await worker.release(claimed)
    else:
        await project.later(seconds=91)
        assert await project.sql("select processor.rescue_jobs()") == 1
    assert await told(project) == []


async def test_a_stale_or_repeated_report_is_told_to_nobody(project, worker):
    await add(project)
    await project.create("echo")
    [claimed] = await worker.claim()
    for _ in range(2):
        await worker.finish(claimed)
    assert len(await told(project)) == 1


async def test_what_is_rolled_back_is_told_to_nobody(database):
    project, observer = await database.project(), await database.project()
    await project.kind("echo")
    await add(project)
    job = await project.create("echo")
    transaction = project.connection.transaction()
    await transaction.start()
    await project.cancel(job)
    assert len(await told(project)) == 1
    assert await told(observer) == []
    await transaction.rollback()
    assert await told(project) == []
    await project.cancel(job)
    assert await told(observer) == [("crm", "job.cancelled", job["id"])]


async def test_a_batch_of_which_one_report_cannot_be_taken_tells_of_each_of_the_others_once(project, worker):
    await add(project)
    for _ in range(3):
        await project.create("echo")
    jobs = await worker.claim(3)
    reports = [{"id": job["id"], "attempt": 1, "outcome": "done"} for job in jobs]
    reports[1]["outcome"] = "nonsense"
    await worker.finish_all(reports)
    assert [job for _, _, job in await told(project)] == [jobs[0]["id"], jobs[2]["id"]]


async def test_a_thousand_ends_in_one_call_are_told_of(project, worker):
    for name in ("crm", "shop"):
        await add(project, name)
    await project.call("create_jobs", jobs=[{"kind": "echo"}] * 1000)
    jobs = await worker.claim(1000)
    await worker.finish_all([{"id": job["id"], "attempt": 1, "outcome": "done"} for job in jobs])
    expected = {(name, "job.completed", job["id"]) for job in jobs for name in ("crm", "shop")}
    found = await told(project)
    assert len(found) == 2000
    assert set(found) == expected


# what a delivery says


async def test_a_delivery_is_a_free_job_of_nobody_with_the_event_as_payload(project, worker):
    endpoint = await add(project)
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    secret = {"secret": "of the payload"}
    await project.create("report", owner_id=ALICE, tags=["q3"], payload=secret, trace_context=trace)
    [claimed] = await worker.claim()
    await project.later(seconds=2)
    await worker.finish(claimed, result={"pages": 3})
    [delivery] = await deliveries(project)
    expected = {
        "trace_context": trace,
        "queue": "webhooks",
        "owner_id": None,
        "status": "pending",
        "credits_held": 0,
        "max_attempts": 8,
    }
    assert {name: delivery[name] for name in expected} == expected
    payload = delivery["payload"]
    assert payload["endpoint_id"] == endpoint["id"]
    assert payload["message_id"] == "msg_" + claimed["id"].replace("-", "")
    assert payload["event"]["type"] == "job.completed"
    at = NOON + timedelta(seconds=2)
    assert datetime.fromisoformat(payload["event"]["timestamp"]) == at
    data = payload["event"]["data"]
    times = {name: data.pop(name) for name in ("created_at", "started_at", "finished_at")}
    assert [datetime.fromisoformat(time) for time in times.values()] == [NOON, NOON, at]
    assert data.pop("trace_context") == trace
    assert data == {
        "id": claimed["id"], "queue": "reports", "kind": "report", "owner_id": str(ALICE),
        "status": "completed", "attempt": 1, "tags": ["q3"], "result": {"pages": 3},
        "error_code": None, "error_message": None,
        "items_total": 0, "items_done": 0, "items_failed": 0,
        "credits_held": 0, "credits_captured": 7, "credits_refunded": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("length", "omitted"), [(65_534, False), (65_535, True)])
async def test_a_large_result_is_left_out_and_said_to_be(project, worker, length, omitted):
    await add(project)
    await project.create("echo")
    [claimed] = await worker.claim()
    await worker.finish(claimed, result="x" * length)
    [delivery] = await deliveries(project)
    data = delivery["payload"]["event"]["data"]
    assert data.get("result_omitted", False) == omitted
    assert ("result" in data) != omitted


# who is told


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, {"job.completed", "job.failed"}),
        ({"events": ["job.completed"]}, {"job.completed"}),
        ({"events": ["job.cancelled", "job.failed"]}, {"job.failed"}),
        ({"events": ["job.partial"]}, set()),
        ({"queues": ["default"]}, {"job.completed", "job.failed"}),
        ({"queues": ["reports"]}, set()),
        ({"kinds": ["other", "echo"]}, {"job.completed", "job.failed"}),
        ({"kinds": ["report"]}, set()),
        ({"events": ["job.failed"], "queues": ["default"], "kinds": ["echo"]}, {"job.failed"}),
    ],
)
async def test_an_endpoint_is_told_what_it_wants_only(project, worker, filters, wanted):
    await add(project, **filters)
    await complete(project, worker)
    await fail(project, worker)
    assert {event for _, event, _ in await told(project)} == wanted


async def test_the_endpoint_of_an_owner_is_told_of_the_owners_jobs_only(project, worker):
    await add(project, "all")
    await add(project, "alice", owner_id=ALICE)
    await add(project, "bob", owner_id=BOB)
    jobs = {}
    for owner in (ALICE, BOB, None):
        job = await project.create("echo", owner_id=owner)
        jobs[owner] = job["id"]
        await project.cancel(job)
    assert sorted((name, job) for name, _, job in await told(project)) == sorted(
        [*(("all", job) for job in jobs.values()), ("alice", jobs[ALICE]), ("bob", jobs[BOB])]
    )


async def test_a_disabled_endpoint_is_told_nothing(project, worker):
    await add(project)
    await project.call("disable_webhook", endpoint="crm")
    await complete(project, worker)
    assert await told(project) == []
    await project.call("enable_webhook", endpoint="crm")
    await complete(project, worker)
    assert len(await told(project)) == 1


async def test_deliveries_are_told_to_nobody(project, worker):
    await add(project)
    await complete(project, worker)
    deliverer = await project.worker()
    for outcome in ("retry", "fail"):
        [delivery] = await deliverer.claim(queues=["webhooks"])
        await deliverer.finish(delivery, outcome)
        await project.later(minutes=1)
    await project.call("test_webhook", endpoint="crm")
    assert len(await deliveries(project)) == 2
    # nor when somebody has moved them
    await project.rows("select * from processor.move_jobs('webhooks', 'default')")
    await project.rows("select * from processor.cancel_queue('default')")
    assert len(await deliveries(project)) == 2


async def test_without_an_endpoint_nothing_is_made(project, worker):
    await complete(project, worker)
    assert await project.sql("select count(*) from public.jobs where queue = 'webhooks'") == 0
    assert await project.sql("select count(*) from public.job_queues where name = 'webhooks'") == 0


# nothing of it harms a job


async def test_a_job_ends_even_if_a_delivery_cannot_be_made(project, worker):
    await add(project)
    await project.connection.execute("""
        create function pg_temp.refuse() returns trigger language plpgsql as $$
        begin
          raise exception 'not this one';
        end $$;
        create trigger refuse before insert on public.jobs for each row
        when (new.kind = 'webhook.deliver') execute function pg_temp.refuse();
    """)
    warnings = []
    project.connection.add_log_listener(lambda _, message: warnings.append(message.message))
    job = await complete(project, worker)
    assert (await project.job(job))["status"] == "completed"
    assert await told(project) == []
    async with asyncio.timeout(10):
        while not warnings:  # noqa: ASYNC110 - the listener is called soon, and there is no event for it
            await asyncio.sleep(0.01)
    assert "webhooks are not told of 1 job(s): not this one" in warnings[0]


async def test_a_job_ends_even_if_the_queue_of_deliveries_is_gone(project, worker):
    await add(project)
    await project.sql("delete from public.job_kinds where kind = 'webhook.deliver'")
    await project.sql("delete from public.job_queues where name = 'webhooks'")
    await complete(project, worker)
    [delivery] = await deliveries(project)
    assert delivery["max_attempts"] == 8


async def test_an_end_waits_for_nobody_who_changes_an_endpoint(database):
    one, two = await database.project(), await database.project()
    await one.kind("echo")
    await add(one)
    transaction = one.connection.transaction()
    await transaction.start()
    await one.sql("update public.webhook_endpoints set description = 'changing', enabled = false")
    async with asyncio.timeout(10):
        await two.cancel(await two.create("echo"))
    await transaction.rollback()
    assert len(await told(one)) == 1


# endpoints


WRONG = {
    "no URL": {"url": "crm.example"},
    "ftp": {"url": "ftp://crm.example/hook"},
    "http": {"url": "http://crm.example/hook"},
    "javascript": {"url": "javascript:alert(1)"},
    "no host": {"url": "https:///hook"},
    "user and password": {"url": "https://user:password@crm.example/hook"},
    "a user": {"url": "https://user@crm.example/hook"},
    "another host behind a backslash": {"url": "https://crm.example\\@evil.example/hook"},
    "a fragment": {"url": "https://crm.example/hook#part"},
    "a blank": {"url": "https://crm.example/ho ok"},
    "a line": {"url": "https://crm.example/hook\nHost: evil"},
    "a line at the end": {"url": "https://crm.example/hook\n"},
    "a control character": {"url": "https://crm.example/\x01"},
    "nothing": {"url": ""},
    "null": {"url": None},
    "an endless URL": {"url": "https://crm.example/" + "x" * 2000},
    "an unknown event": {"events": ["job.done"]},
    "no events": {"events": []},
    "events with null": {"events": ["job.failed", None]},
    "no queues": {"queues": []},
    "kinds with null": {"kinds": [None]},
    "no name": {"name": None},
    "a strange name": {"name": "CRM & co"},
    "no tries": {"rate_limit": 0},
    "a strange period": {"rate_limit": 1, "rate_seconds": 0},
    "an endless timeout": {"timeout_seconds": 31},
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_no_endpoint_can_be_is_refused(project, wrong):
    async with project.refused("JQ006"):
        await project.call("add_webhook", **{"name": "crm", "url": HOOK} | WRONG[wrong])


@pytest.mark.parametrize(
    "url",
    [
        "https://crm.example",
        "HTTPS://CRM.example:8443/a/b?c=d@e",
        "https://[2606:4700::1111]/hook",
        "https://bücher.example/@me",
        "https://crm.example?token=1",
    ],
)
async def test_what_an_endpoint_may_be(project, url):
    assert (await project.call("add_webhook", name="crm", url=url))["url"] == url


async def test_http_has_to_be_allowed(project):
    url = "http://127.0.0.1:9000/hook"
    added = await project.call("add_webhook", name="dev", url=url, allow_http=True)
    assert added["allow_http"]
    async with project.refused("JQ006", "http"):
        await project.sql("update public.webhook_endpoints set allow_http = false")


async def test_a_name_is_taken_once(project):
    await add(project)
    async with project.refused("JQ006", "there is a webhook crm already"):
        await add(project)


async def test_a_row_that_is_inserted_is_an_endpoint_with_a_secret(project, worker):
    async with project.acting("service_role", api=True):
        await project.sql("insert into public.webhook_endpoints (name, url) values ('crm', $1)", HOOK)
    await complete(project, worker)
    assert len(await told(project)) == 1
    assert await project.sql("select count(*) from processor.webhook_secrets") == 1
    async with project.refused("JQ006", "not the URL"), project.acting("service_role", api=True):
        await project.sql("update public.webhook_endpoints set url = 'nonsense'")


async def test_adding_an_endpoint_makes_the_queue_whose_retries_last_a_day(project):
    await add(project)
    queue = await project.sql("select to_jsonb(q) from public.job_queues q where name = 'webhooks'")
    assert queue["max_attempts"] == 8
    whole = await project.sql(
        "select sum(r) from public.job_queues q, unnest(q.retry_delays) r where q.name = 'webhooks'"
    )
    assert timedelta(hours=23) < whole < timedelta(hours=25)
    kind = await project.sql("select to_jsonb(k) from public.job_kinds k where kind = 'webhook.deliver'")
    assert (kind["queue"], kind["public"], kind["credits_per_job"]) == ("webhooks", False, 0)


async def test_so_does_a_worker_that_delivers_and_what_operators_changed_stays(project):
    kinds = [{"kind": "webhook.deliver", "queue": "webhooks"}, {"kind": "echo", "queue": "default"}]
    await project.worker(queues=["webhooks", "default"], kinds=kinds)
    attempts = dict(await project.connection.fetch("select name, max_attempts from public.job_queues"))
    assert attempts == {"webhooks": 8, "default": 4}
    await project.queue("webhooks", max_attempts=3)
    await add(project)
    await project.worker(queues=["webhooks", "default"], kinds=kinds)
    assert await project.sql("select max_attempts from public.job_queues where name = 'webhooks'") == 3


# secrets


async def test_a_secret_is_standard_and_of_each_endpoint_its_own(project):
    secrets = [(await add(project, f"crm-{n}"))["secret"] for n in range(20)]
    assert len(set(secrets)) == 20
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


async def test_a_secret_is_in_no_row_that_the_api_shows(project):
    secret = (await add(project, owner_id=ALICE))["secret"].removeprefix("whsec_")
    for by in (ALICE, OPERATOR, "service_role"):
        async with project.acting(by):
            [row] = await project.rows("select to_jsonb(e)::text as row from public.webhook_endpoints e")
            assert secret not in row["row"]
    for function in ("read_webhooks", "read_webhook_deliveries"):
        assert secret not in str(await project.read(function, by=OPERATOR))
    for call in ("disable_webhook", "enable_webhook", "remove_webhook"):
        assert secret not in str(await project.call(call, by=OPERATOR, endpoint="crm"))


async def test_owners_see_their_endpoints_and_operators_all(project):
    await add(project, "alice", owner_id=ALICE)
    await add(project, "everybody")
    seen = {}
    for by in (ALICE, BOB, OPERATOR, "service_role"):
        async with project.acting(by, api=True):
            rows = await project.rows("select name from public.webhook_endpoints order by name")
        seen[by] = [row["name"] for row in rows]
    assert seen == {
        ALICE: ["alice"], BOB: [], OPERATOR: ["alice", "everybody"], "service_role": ["alice", "everybody"],
    }  # fmt: skip


async def test_who_is_told_may_be_asked_by_id_too(project):
    endpoint = await add(project)
    assert (await project.call("disable_webhook", endpoint=endpoint["id"].upper()))["enabled"] is False
    for unknown in ("crn", str(uuid4()), "", None):
        async with project.refused("JQ006", "unknown webhook"):
            await project.call("disable_webhook", endpoint=unknown)


async def test_an_endpoint_that_goes_takes_its_secrets_along(project, worker):
    await add(project)
    await complete(project, worker)
    await project.call("remove_webhook", endpoint="crm")
    assert await project.sql("select count(*) from processor.webhook_secrets") == 0
    [row] = await project.read("read_webhook_deliveries")
    assert UUID(row["webhook"])  # what waits is known by the endpoint's id


async def test_what_is_pruned_is_forgotten(project, worker):
    await add(project)
    await complete(project, worker)
    await project.rows("select * from processor.cancel_queue('webhooks')")
    await project.queue("webhooks", retain_for=timedelta(0), retain_last=0)
    await project.later(seconds=1)
    assert await project.sql("select processor.prune_jobs()") == 1
    assert await project.sql("select count(*) from processor.webhook_deliveries") == 0


async def test_times_are_told_with_their_zone_whatever_the_session_has(project, worker):
    await add(project)
    await project.sql("select set_config('TimeZone', 'Asia/Kolkata', true)")
    await complete(project, worker)
    [delivery] = await deliveries(project)
    told_at = datetime.fromisoformat(delivery["payload"]["event"]["timestamp"])
    assert told_at.astimezone(UTC) == NOON
