"""The main job, from outside: a row inserted, woken by Realtime, run, settled, paid."""

from __future__ import annotations

import asyncio
import signal
import statistics
from datetime import UTC, datetime, timedelta

import pytest
from postgrest.exceptions import APIError

from tests.faults import FaultProxy


async def credit_faults(admin):
    return [dict(row) for row in await admin.fetch("select * from processor.check_credits()")]


async def stopped(daemon):
    daemon.signal(signal.SIGTERM)
    return await daemon.ended()


async def account(user):
    return (await user.rest.table("credit_accounts").select("*").execute()).data[0]


async def test_a_row_inserted_by_a_user_is_woken_by_realtime_run_settled_and_seen(shop, new_user, admin):
    daemon = await shop.daemon()
    user = await new_user(credits=10)

    job = await shop.create("pack", by=user, items=["a", "b"])
    assert (job["status"], job["credits_held"]) == ("pending", 4)

    started = await daemon.event("job.started", job_id=job["id"])
    assert started["wake"] == "realtime"
    await daemon.event("job.finished", job_id=job["id"])
    # what a frontend reads: the own row, as the user
    seen = (await user.rest.table("jobs").select("*, job_items(*)").eq("id", job["id"]).execute()).data[0]
    assert (seen["status"], seen["progress"], seen["items_done"]) == ("completed", 1, 2)
    assert seen["result"] == {"a": {"packed": "a"}, "b": {"packed": "b"}}
    assert {item["credits"] for item in seen["job_items"]} == {2}
    assert (seen["credits_held"], seen["credits_captured"], seen["credits_refunded"]) == (0, 4, 0)
    assert (await account(user))["spent"] == 4
    assert await credit_faults(admin) == []


async def test_partial_success_pays_only_for_what_succeeded(shop, new_user, admin):
    daemon = await shop.daemon()
    user = await new_user(credits=10)

    job = await shop.create("pack", {"fail": ["b"]}, by=user, items=["a", "b", "c"])

    await daemon.event("job.finished", job_id=job["id"])
    row = await shop.job(job["id"])
    assert (row["status"], row["items_done"], row["items_failed"]) == ("partial", 2, 1)
    assert (row["credits_captured"], row["credits_refunded"], row["credits_held"]) == (4, 2, 0)
    items = await shop.items(job["id"])
    assert (items["b"]["status"], items["b"]["credits"], items["b"]["error_code"]) == (
        "failed",
        0,
        "DISCARDED",
    )
    assert "out of stock" in items["b"]["error_message"]
    books = await account(user)
    assert {name: books[name] for name in ("issued", "available", "held", "spent", "expired")} == {
        "issued": 10, "available": 6, "held": 0, "spent": 4, "expired": 0,
    }  # fmt: skip
    assert await credit_faults(admin) == []


async def test_a_retry_by_the_user_runs_and_reserves_only_what_was_not_done(shop, new_user):
    daemon = await shop.daemon()
    user = await new_user(credits=10)
    job = await shop.create("pack", {"fail": ["b"]}, by=user, items=["a", "b"])
    await daemon.event("job.finished", job_id=job["id"])

    again = (await user.rest.rpc("retry_job", {"job_id": job["id"]}).execute()).data

    assert (again["retry_of"], again["items_total"], again["credits_held"]) == (job["id"], 1, 2)
    await daemon.event("job.finished", job_id=again["id"])
    assert list(await shop.items(again["id"])) == ["b"]


async def test_cancelling_a_pending_job_refunds_it_and_it_never_starts(shop, new_user, admin):
    daemon = await shop.daemon()
    user = await new_user(credits=10)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    job = await shop.create("pack", by=user, items=["a", "b"], run_at=later)

    cancelled = (await user.rest.rpc("cancel_job", {"job_id": job["id"]}).execute()).data

    assert (cancelled["status"], cancelled["credits_refunded"]) == ("cancelled", 4)
    assert (await account(user))["available"] == 10
    assert {item["status"] for item in (await shop.items(job["id"])).values()} == {"cancelled"}
    assert await credit_faults(admin) == []
    assert daemon.all("job.started", job_id=job["id"]) == []


async def test_cancelling_a_running_job_stops_its_handler_within_a_second_and_refunds_what_is_not_done(
    shop, new_user, admin, eventually
):
    daemon = await shop.daemon()
    user = await new_user(credits=100)
    # three at a time: the first three are done at once, the others take an hour
    job = await shop.create("pack", {"seconds": 3600}, by=user, items=["a", "b", "c", "d"])
    await eventually(lambda: len(shop.traced("items")) == 3)

    asked = datetime.now(UTC)
    await user.rest.rpc("cancel_job", {"job_id": job["id"]}).execute()

    finished = await daemon.event("job.finished", job_id=job["id"], within=5)
    assert finished["status"] == "cancelled"
    row = await shop.job(job["id"])
    assert datetime.fromisoformat(row["finished_at"]) - asked < timedelta(seconds=1)
    assert (row["status"], row["credits_captured"], row["credits_refunded"]) == ("cancelled", 0, 8)
    assert len([words for words in shop.traced("items") if words[0] == "stop"]) == 3
    assert await credit_faults(admin) == []


async def test_insufficient_credits_create_nothing_and_say_what_was_needed_and_what_was_there(shop, new_user):
    await shop.daemon()
    user = await new_user(credits=5)

    with pytest.raises(APIError) as refused:
        await shop.create("pack", by=user, items=["a", "b", "c"], idempotency_key="once")

    assert refused.value.code == "PT402"
    assert refused.value.message == "insufficient credits: 6 needed, 5 available"
    assert await shop.jobs() == []
    assert (await account(user))["held"] == 0
    # the key was not burned
    await shop.create("pack", by=user, items=["a"], idempotency_key="once")


async def test_insufficient_credits_are_http_402(shop, new_user):
    import httpx  # noqa: PLC0415 - the official client hides the status

    await shop.daemon()
    user = await new_user()
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"{shop.stack.url}/rest/v1/rpc/create_job",
            headers=shop.stack.headers(user.access_token),
            json={"kind": f"{shop.queue}.greet"},
        )
    assert (answer.status_code, answer.json()["code"]) == (402, "PT402")


async def test_jobs_due_in_the_future_start_within_50_ms_of_their_time_without_polling(shop):
    async with FaultProxy(shop.stack.url) as proxy:
        daemon = await shop.daemon(url=proxy.url)
        begin = datetime.now(UTC) + timedelta(seconds=1.5)
        due = [begin + timedelta(seconds=0.4 * n) for n in range(5)]
        jobs = [await shop.create("greet", run_at=at.isoformat()) for at in due]
        await asyncio.sleep(0.3)  # the wake-ups of their creation are through: from here on only time passes
        proxy.requests.clear()

        started = [await daemon.event("job.started", job_id=job["id"]) for job in jobs]

        late = sorted(line["started_at"] - at.timestamp() for line, at in zip(started, due, strict=True))
        assert late[0] >= 0, "before its time"
        assert statistics.median(late) < 0.05, f"late by {[f'{seconds * 1000:.1f} ms' for seconds in late]}"
        assert {line["wake"] for line in started} == {"due"}
        await daemon.event("job.finished", job_id=jobs[-1]["id"])
        # for each job: claimed when due, finished, and one look for more; no request in between
        assert proxy.requests["POST /rest/v1/rpc/claim_jobs"] <= 2 * len(jobs)


async def test_kill_9_in_the_middle_lets_another_daemon_finish_only_what_was_not_done(shop, eventually):
    first = await shop.daemon(PROCESSOR_LEASE_SECONDS="3", PROCESSOR_ITEM_CONCURRENCY="1")
    job = await shop.create("pack", {"seconds": 0.4}, items=["a", "b", "c", "d", "e", "f"])

    async def two_done():
        return (await shop.job(job["id"]))["items_done"] >= 2

    await eventually(two_done, within=10)
    await first.close()
    done_before = {
        key for key, item in (await shop.items(job["id"])).items() if item["status"] == "completed"
    }
    second = await shop.daemon(PROCESSOR_LEASE_SECONDS="3")

    await second.event("job.finished", job_id=job["id"], within=20)
    row = await shop.job(job["id"])
    assert (row["status"], row["items_done"], row["attempt"], row["crashes"]) == ("completed", 6, 2, 1)
    assert list(row["result"]) == ["a", "b", "c", "d", "e", "f"], "a handler gets what earlier attempts did"
    assert done_before, "nothing was done before the kill: the test shows nothing"
    started_by_second = {
        words[2]
        for words in shop.traced("items")
        if words[0] == "start" and words[-1] == str(second.process.pid)
    }
    assert done_before.isdisjoint(started_by_second), "a finished item ran again"
    assert done_before | {words[1] for words in shop.traced("packed")} >= {"a", "b", "c", "d", "e", "f"}


async def test_a_daemon_that_is_told_to_stop_finishes_what_runs_and_leaves(shop, admin):
    daemon = await shop.daemon()
    job = await shop.create("greet", {"seconds": 1})
    await daemon.event("job.started", job_id=job["id"])

    assert await stopped(daemon) == 0

    assert (await shop.job(job["id"]))["status"] == "completed"
    assert await admin.fetchval("select count(*) from job_workers where $1 = any(queues)", shop.queue) == 0


async def test_an_idle_daemon_sends_at_most_four_requests_a_minute_and_nothing_but_heartbeats(shop):
    async with FaultProxy(shop.stack.url) as proxy:
        await shop.daemon(url=proxy.url)
        await asyncio.sleep(1)  # the sweep and the heartbeat that readiness asks for
        proxy.requests.clear()

        await asyncio.sleep(60)  # a minute is what is measured

        assert sum(proxy.requests.values()) <= 4, proxy.requests
        assert set(proxy.requests) <= {"POST /rest/v1/rpc/heartbeat_worker"}
        assert proxy.requests, "not even a heartbeat was seen: the counter is blind"
