"""What operators change in rows takes effect at once, without a restart."""

from __future__ import annotations

from uuid import uuid4


async def test_a_paused_queue_starts_nothing_and_a_resumed_one_at_once(shop, admin):
    daemon = await shop.daemon()
    await admin.execute("update job_queues set paused = true where name = $1", shop.queue)
    job = await shop.create("greet")

    await admin.execute("update job_queues set paused = false where name = $1", shop.queue)

    started = await daemon.event("job.started", job_id=job["id"])
    assert started["wake"] == "realtime"
    resumed = await admin.fetchval(
        "select claim_id is not null and attempt = 1 from jobs where id = $1", job["id"]
    )
    assert resumed


async def test_a_worker_that_is_drained_from_the_sql_editor_claims_no_more_and_says_so(
    shop, admin, eventually
):
    daemon = await shop.daemon()
    await admin.execute("update job_workers set draining = true where $1 = any(queues)", shop.queue)
    await daemon.event("lease.draining", within=5)
    job = await shop.create("greet")
    other = await shop.daemon()
    await other.event("job.finished", job_id=job["id"])
    assert daemon.all("job.started") == []

    await admin.execute("update job_workers set draining = false where pid = $1", daemon.process.pid)
    await daemon.event("lease.drained_no_more", within=5)


async def test_a_server_with_the_service_key_makes_a_queue_and_changes_it(service):
    name = f"made-{uuid4().hex[:8]}"
    await service.table("job_queues").insert({"name": name, "max_processing": 2}).execute()
    changed = (await service.table("job_queues").update({"paused": True}).eq("name", name).execute()).data
    assert (changed[0]["paused"], changed[0]["max_processing"]) == (True, 2)
    await service.table("job_queues").delete().eq("name", name).execute()
