"""Realtime cut in three ways: jobs are done by polling, the mode returns, nothing is lost or done twice."""

from __future__ import annotations

import time

import pytest

from tests.faults import FaultProxy

SETTINGS = {"PROCESSOR_HEALTH_SECONDS": "2"}


def cut(proxy: FaultProxy) -> None:
    proxy.refuse("websocket")
    assert proxy.cut("websocket") == 1


def freeze(proxy: FaultProxy) -> None:
    proxy.freeze("websocket")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", [cut, freeze])
async def test_without_realtime_jobs_are_polled_and_when_it_returns_nothing_was_lost_or_done_twice(
    shop, fault, eventually
):
    async with FaultProxy(shop.stack.url) as proxy:
        daemon = await shop.daemon(url=proxy.url, **SETTINGS)
        before = [await shop.create("pack", items=["x"]) for _ in range(3)]
        fault(proxy)
        during = [await shop.create("pack", items=["x"])]
        await daemon.event("feed.mode", mode="polling", within=40)
        # an event that came while every slot was taken stands in the next claim's reasons, whenever that is
        for job in [*before, *during]:
            await daemon.event("job.finished", job_id=job["id"], within=20)
        calm = await shop.create("pack", items=["x"])
        await daemon.event("job.finished", job_id=calm["id"], within=20)
        during.append(calm)

        asked = time.monotonic()
        during += [await shop.create("pack", items=["x"]) for _ in range(3)]
        for job in during[2:]:
            started = await daemon.event("job.started", job_id=job["id"], within=7)
            assert started["wake"] != "realtime"
        assert time.monotonic() - asked < 6, "polling takes 5 s at most"

        await proxy.heal()
        await eventually(lambda: len(daemon.all("feed.mode", mode="realtime")) == 2, within=40)
        # a heartbeat or the claim after the last job may be quicker than the event, but not every time
        after = []
        while not daemon.all("job.started", job_id=after[-1]["id"] if after else "", wake="realtime"):
            assert len(after) < 10, "Realtime is back, and wakes nobody"
            after.append(await shop.create("pack", items=["x"]))
            await daemon.event("job.finished", job_id=after[-1]["id"])

        everything = [*before, *during, *after]
        for job in everything:
            await daemon.event("job.finished", job_id=job["id"], within=20)
        assert sorted(words[1] for words in shop.traced("jobs") if words[0] == "start") == sorted(
            job["id"] for job in everything
        )
        assert {row["status"] for row in await shop.jobs()} == {"completed"}
        assert len(daemon.all("feed.mode", mode="polling")) == 1, "a change of mode is announced once"


async def test_a_daemon_whose_realtime_is_refused_from_the_start_works_by_polling(shop):
    async with FaultProxy(shop.stack.url) as proxy:
        proxy.refuse("websocket")
        daemon = await shop.daemon(url=proxy.url, realtime=False, PROCESSOR_POLL_SECONDS="1")
        jobs = 0
        while not daemon.all("job.started", wake="polling"):
            assert jobs < 10, "every job was found otherwise: nothing polls"
            jobs += 1
            job = await shop.create("greet", {"seconds": 0.1})
            await daemon.event("job.finished", job_id=job["id"], within=6)
        assert daemon.all("feed.mode", mode="realtime") == []
        await proxy.heal()
        await daemon.event("feed.mode", mode="realtime", within=40)
