"""A daemon with the least rights: a token of role job_processor, and the publishable key beside it."""

from __future__ import annotations

import time

import jwt


async def test_a_daemon_with_a_job_processor_token_is_woken_by_realtime_and_does_the_work(shop, new_user):
    token = jwt.encode(
        {"role": "job_processor", "exp": int(time.time()) + 600}, shop.stack.jwt_secret, algorithm="HS256"
    )
    daemon = await shop.daemon(SUPABASE_SERVICE_ROLE_KEY=token, SUPABASE_ANON_KEY=shop.stack.anon_key)
    user = await new_user(credits=10)

    job = await shop.create("pack", by=user, items=["a", "b"])

    assert (await daemon.event("job.started", job_id=job["id"]))["wake"] == "realtime"
    finished = await daemon.event("job.finished", job_id=job["id"])
    assert finished["status"] == "completed"
