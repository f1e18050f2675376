"""One user cannot see or touch what is another's, by REST or by Realtime; anon can do nothing."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from postgrest.exceptions import APIError
from realtime import AsyncRealtimeClient, RealtimeSubscribeStates

TABLES = (
    "jobs", "job_items", "job_logs", "job_queues", "job_workers",
    "credit_accounts", "credit_entries", "credit_holds", "credit_captures",
)  # fmt: skip
WORKER_CALLS = {
    "register_worker": {"worker": {}},
    "heartbeat_worker": {"worker_id": "00000000-0000-7000-8000-000000000000"},
    "claim_jobs": {
        "worker_id": "00000000-0000-7000-8000-000000000000",
        "request_id": "00000000-0000-7000-8000-000000000000",
    },
    "report_progress": {"worker_id": "00000000-0000-7000-8000-000000000000", "reports": []},
    "append_job_logs": {"worker_id": "00000000-0000-7000-8000-000000000000", "logs": []},
    "finish_items": {"worker_id": "00000000-0000-7000-8000-000000000000", "results": []},
    "finish_jobs": {"worker_id": "00000000-0000-7000-8000-000000000000", "results": []},
    "release_jobs": {"worker_id": "00000000-0000-7000-8000-000000000000", "jobs": []},
    "deregister_worker": {"worker_id": "00000000-0000-7000-8000-000000000000"},
    "grant_credits": {"owner_id": "00000000-0000-7000-8000-000000000000", "amount": 5},
}


async def refusal(call):
    with pytest.raises(APIError) as refused:
        await call.execute()
    return refused.value.code


async def test_another_user_sees_and_touches_nothing_by_rest(shop, new_user):
    daemon = await shop.daemon()
    alice, mallory = await new_user(credits=20), await new_user(credits=20)
    job = await shop.create("pack", {"fail": ["b"]}, by=alice, items=["a", "b"])
    await daemon.event("job.finished", job_id=job["id"])

    for table in (
        "jobs",
        "job_items",
        "job_logs",
        "credit_accounts",
        "credit_entries",
        "credit_holds",
        "credit_captures",
    ):
        mine = (await alice.rest.table(table).select("*").execute()).data
        theirs = (await mallory.rest.table(table).select("*").execute()).data
        assert mine, f"alice does not see her own {table}: this shows nothing"
        assert job["id"] not in str(theirs), table
        assert alice.id not in str(theirs), table
    for function in ("cancel_job", "retry_job"):
        assert await refusal(mallory.rest.rpc(function, {"job_id": job["id"]})) == "JQ008"
    forged = {"kind": f"{shop.queue}.pack", "items": ["a"], "owner_id": alice.id}
    assert await refusal(mallory.rest.rpc("create_job", forged)) == "JQ010"
    assert len(await shop.jobs()) == 1


@pytest.mark.parametrize("table", TABLES)
async def test_a_signed_in_user_writes_no_table(shop, new_user, table):
    user = await new_user(credits=5)
    assert await refusal(user.rest.table(table).delete().neq("updated_at", "2000-01-01")) in {
        "42501",
        "42703",
    }
    assert await refusal(user.rest.table(table).insert({})) == "42501"


async def test_a_signed_in_user_calls_no_function_of_workers_or_of_the_ledger(shop, new_user):
    user = await new_user(credits=5)
    for function, arguments in WORKER_CALLS.items():
        assert await refusal(user.rest.rpc(function, arguments)) == "42501", function


async def test_anonymous_callers_can_do_nothing(shop):
    calls = WORKER_CALLS | {
        "create_job": {"kind": f"{shop.queue}.pack"},
        "cancel_job": {"job_id": "00000000-0000-7000-8000-000000000000"},
        "retry_job": {"job_id": "00000000-0000-7000-8000-000000000000"},
    }
    async with httpx.AsyncClient(
        base_url=f"{shop.stack.url}/rest/v1", headers=shop.stack.headers(), trust_env=False
    ) as http:
        for table in (*TABLES, "job_kinds"):
            answer = await http.get(f"/{table}")
            assert (answer.status_code, answer.json()["code"]) == (401, "42501"), table
        for function, arguments in calls.items():
            answer = await http.post(f"/rpc/{function}", json=arguments)
            assert (answer.status_code, answer.json()["code"]) == (401, "42501"), function


async def test_by_realtime_a_user_hears_of_own_rows_only_and_an_anonymous_one_of_none(shop, new_user):
    daemon = await shop.daemon()
    alice, mallory = await new_user(credits=20), await new_user(credits=20)
    heard: dict[str, list[dict]] = {"alice": [], "mallory": [], "anon": []}
    own = asyncio.Event()

    async def listen(name: str, token: str) -> AsyncRealtimeClient:
        client = AsyncRealtimeClient(
            f"{shop.stack.url}/realtime/v1", shop.stack.anon_key, auto_reconnect=False
        )
        await client.connect()
        await client.set_auth(token)
        channel = client.channel(f"watch-{name}")
        streaming = asyncio.Event()

        def change(payload) -> None:
            heard[name].append(payload["data"])
            if (
                name == "mallory"
                and payload["data"]["table"] == "jobs"
                and payload["data"]["record"].get("status") == "completed"
            ):
                own.set()

        for table in ("jobs", "job_items", "job_logs", "job_workers", "job_queues", "credit_accounts"):
            channel.on_postgres_changes("*", change, schema="public", table=table)
        channel.on_system(lambda _: streaming.set())
        joined = asyncio.Event()
        await channel.subscribe(
            lambda state, _error: joined.set() if state == RealtimeSubscribeStates.SUBSCRIBED else None
        )
        async with asyncio.timeout(10):
            await joined.wait()
            await streaming.wait()
        return client

    clients = [
        await listen("alice", alice.access_token),
        await listen("mallory", mallory.access_token),
        await listen("anon", shop.stack.anon_key),
    ]
    try:
        job = await shop.create("pack", by=alice, items=["a"])
        await daemon.event("job.finished", job_id=job["id"])
        # changes come in order of commit: when mallory has heard of this one, the earlier ones are through
        last = await shop.create("greet", by=mallory)
        async with asyncio.timeout(10):
            await own.wait()
    finally:
        for client in clients:
            await client.close()

    assert {data["table"] for data in heard["alice"]} >= {"jobs", "job_items", "credit_accounts"}
    assert job["id"] in str(heard["alice"])
    assert last["id"] in str(heard["mallory"])
    assert job["id"] not in str(heard["mallory"])
    assert alice.id not in str(heard["mallory"])
    assert not [data for data in heard["anon"] if data.get("record")]
    assert not [
        data
        for data in heard["mallory"]
        if data["table"] in {"job_workers", "job_queues"} and data.get("record")
    ]


async def test_a_user_becomes_an_operator_with_the_next_token_and_sees_to_the_jobs_of_all(shop, new_user):
    daemon = await shop.daemon()
    alice, olga = await new_user(credits=20), await new_user()
    job = await shop.create("pack", {"fail": ["b"]}, by=alice, items=["a", "b"])
    await daemon.event("job.finished", job_id=job["id"])
    async with httpx.AsyncClient(base_url=shop.stack.url, trust_env=False) as http:

        async def call(function, token, **arguments):
            headers = shop.stack.headers(token)
            return (await http.post(f"/rest/v1/rpc/{function}", json=arguments, headers=headers)).json()

        assert (await call("read_queues", olga.access_token))["code"] == "JQ015"
        assert await call("read_jobs", olga.access_token) == []
        # what users say of themselves counts for nothing
        await http.put(
            "/auth/v1/user",
            json={"data": {"is_operator": True}, "app_metadata": {"is_operator": True}},
            headers=shop.stack.headers(olga.access_token),
        )
        answer = await http.put(
            f"/auth/v1/admin/users/{olga.id}",
            json={"app_metadata": {"is_operator": True}},
            headers=shop.stack.headers(shop.stack.service_role_key),
        )
        assert answer.status_code == 200, answer.text
        assert (await call("read_queues", olga.access_token))["code"] == "JQ015"
        answer = await http.post(
            "/auth/v1/token?grant_type=refresh_token",
            json={"refresh_token": olga.refresh_token},
            headers=shop.stack.headers(),
        )
        token = answer.json()["access_token"]

        queues = await call("read_queues", token)
        assert shop.queue in [row["queue"] for row in queues]
        [row] = await call("read_jobs", token, queue=shop.queue, statuses=["partial"], limit=5)
        assert (row["id"], row["owner_id"]) == (job["id"], alice.id)
        assert "payload" not in row
        told = await call("read_job", token, job_id=job["id"])
        assert [item["status"] for item in told["items"]] == ["completed", "failed"]
        again = await call("retry_job", token, job_id=job["id"], all_items=True)
        assert (again["owner_id"], again["items_total"]) == (alice.id, 2)
        limits = {"name": shop.queue, "limits": {"max_processing": 2}}
        assert (await call("set_queue_limits", token, **limits))["max_processing"] == 2
