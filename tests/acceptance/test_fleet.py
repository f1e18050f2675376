"""Three daemons on one queue."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest


@pytest.mark.timeout(180)
async def test_three_daemons_do_every_item_of_300_jobs_exactly_once_within_their_limits(
    shop, eventually, admin
):
    fleet = await asyncio.gather(*(shop.daemon(PROCESSOR_NAME=f"fleet-{n}") for n in range(3)))
    keys = ["a", "b", "c"]

    created = [await shop.create("pack", {"seconds": 0.01}, items=keys) for _ in range(300)]

    async def all_done():
        open_jobs = await admin.fetchval(
            "select count(*) from jobs where queue = $1 and finished_at is null", shop.queue
        )
        return open_jobs == 0

    await eventually(all_done, within=120, every=0.2)
    rows = await shop.jobs()
    assert len(rows) == 300
    assert {(row["status"], row["attempt"], row["items_done"]) for row in rows} == {("completed", 1, 3)}
    packed = Counter((words[0], words[1]) for words in shop.traced("packed"))
    assert packed == {(job["id"], key): 1 for job in created for key in keys}
    starts = Counter(words[1] for words in shop.traced("jobs") if words[0] == "start")
    assert starts == {job["id"]: 1 for job in created}
    # every daemon had its share, and never more than 3 jobs and 3 items of each at once
    for daemon in fleet:
        assert most_at_once(shop.traced("jobs"), daemon.process.pid) in {1, 2, 3}
        assert most_at_once(shop.traced("items"), daemon.process.pid) <= 9
    for job in created:
        per_job = [words for words in shop.traced("items") if words[1] == job["id"]]
        assert most_at_once(per_job, None) <= 3


def most_at_once(lines: list[list[str]], pid: int | None) -> int:
    """Return how many things were going on at most, from the starts and stops in the order written."""
    going = most = 0
    for words in lines:
        if pid is not None and words[-1] != str(pid):
            continue
        going += 1 if words[0] == "start" else -1
        most = max(most, going)
    return most


@pytest.mark.timeout(120)
async def test_a_queues_limit_holds_over_all_daemons(shop, eventually, admin):
    await asyncio.gather(*(shop.daemon() for _ in range(2)))
    await shop.service.table("job_queues").update({"max_processing": 2}).eq("name", shop.queue).execute()

    for _ in range(20):
        await shop.create("greet", {"seconds": 0.05})

    async def all_done():
        open_jobs = await admin.fetchval(
            "select count(*) from jobs where queue = $1 and finished_at is null", shop.queue
        )
        return open_jobs == 0

    await eventually(all_done, within=60, every=0.1)
    lines = [["start" if words[0] == "start" else "stop", *words[1:]] for words in shop.traced("greetings")]
    assert most_at_once(lines, None) == 2
