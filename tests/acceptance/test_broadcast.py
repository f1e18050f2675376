"""A daemon that the database tells of jobs: all that Postgres Changes would do for it, on private topics."""

from __future__ import annotations

import time


async def test_a_daemon_that_hears_broadcasts_is_woken_cancelled_and_resumed(shop, eventually, admin):
    daemon = await shop.daemon(PROCESSOR_FEED="broadcast")
    worker_id = (await daemon.event("daemon.ready"))["worker_id"]

    job = await shop.create("greet", {"seconds": 0})
    assert (await daemon.event("job.started", job_id=job["id"]))["wake"] == "realtime"
    await daemon.event("job.finished", job_id=job["id"])

    long = await shop.create("greet", {"seconds": 30})
    await daemon.event("job.started", job_id=long["id"])
    asked = time.monotonic()
    await shop.service.rpc("cancel_job", {"job_id": long["id"]}).execute()
    await eventually(lambda: daemon.all("job.finished", job_id=long["id"], status="cancelled"))
    assert time.monotonic() - asked < 5, "the next heartbeat would have been 30 s away"

    await admin.execute("select processor.pause_queue($1)", shop.queue)
    waiting = await shop.create("greet", {"seconds": 0})
    await admin.execute("select processor.resume_queue($1)", shop.queue)
    await daemon.event("job.finished", job_id=waiting["id"])

    row = await admin.fetchrow(
        "select feed, transport from public.job_workers where id = $1::uuid", worker_id
    )
    assert tuple(row) == ("realtime", "broadcast")
