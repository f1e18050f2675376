"""Each fault by itself, in one world: jobs before, during and after it, and then the judgement."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.catalogue import CATALOGUE, Blow, draw, missing
from tests.chaos.judge import judge
from tests.chaos.run import Run, running
from tests.chaos.witness import Attempt
from tests.chaos.world import Member, until

SECONDS = {
    "daemon_freeze": 1.0,
    "frozen": 5.0,  # well beyond what a heartbeat may take, on a busy machine too
    "half_open_down": 4.0,
    "postgres_restart": 0.5,
    "postgres_kill": 0.5,
    "gateway_kill": 0.5,
}
USUALLY = 1.8
TROUBLE = ("rpc.repeated", "feed.mode", "worker.claim_failed", "lease.heartbeat_failed", "lease.fenced")
"""What daemons say of faults that they notice."""
UNNOTICED = {"daemon_kill", "clock_jump", "latency", "trickle", "mute"}
"""Faults that kill whoever might notice, that nobody has to notice, or not so soon."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Run]:
    """Give one world to all faults, one after the other."""
    async with running(tmp_path_factory.mktemp("chaos"), seed=1) as it:
        yield it


@pytest.mark.parametrize("name", list(CATALOGUE))
async def test_nothing_is_lost_doubled_overlapping_unpaid_or_leaked_after(run: Run, name: str):
    if why := missing(run.world).get(name):
        pytest.skip(why)
    blow = draw(random.Random(name), name, members=len(run.world.fleet), longest=1.0)
    blow = Blow(name, blow.members, None, SECONDS.get(name, USUALLY), blow.hours)
    acknowledged, troubles = len(run.creator.orders), trouble(run)

    async def once() -> AsyncIterator[tuple[Blow, ...]]:
        yield (blow,)

    await run.under(once())
    assert len(run.creator.orders) > acknowledged
    assert (await run.verdict()).lines() == []
    assert trouble(run) > troubles or name in UNNOTICED, "nobody noticed: was there a fault at all?"


def trouble(run: Run) -> int:
    """Return how often the daemons have spoken of trouble."""
    return sum(event["event"] in TROUBLE for member in run.world.fleet for event in member.events)


async def begun(run: Run, job: str, attempt: int, within: float) -> Attempt:
    """Wait for the witness to see an attempt's begin."""

    def seen() -> list[Attempt]:
        return [one for one in run.world.witness.attempts if (one.job, one.attempt) == (job, attempt)]

    await until(seen, run.world.describe, within=within, every=0.01)
    return seen()[0]


def whose(run: Run, attempt: Attempt) -> Member:
    return next(member for member in run.world.fleet if member.daemon and member.pid == attempt.pid)


async def test_a_killed_daemons_job_runs_again_within_its_lease_and_5_seconds(run: Run):
    order = await run.creator.one("long", n=1, seconds=0.1, steps=40)
    first = await begun(run, order.id, 1, within=10)
    member = whose(run, first)
    killed_at = time.monotonic()
    run.world.kill_daemon(member)
    second = await begun(run, order.id, 2, within=run.world.lease + 15)
    assert second.began - killed_at <= run.world.lease + 5
    run.world.launch_daemon(member)
    await run.creator.cancel(order)
    await run.rest()
    assert (await run.verdict()).lines() == []


async def test_a_daemon_frozen_beyond_its_lease_does_nothing_more_for_a_job_that_another_has_begun(run: Run):
    order = await run.creator.one("long", n=1, seconds=0.5, steps=40)
    first = await begun(run, order.id, 1, within=10)
    await until(lambda: first.did, run.world.describe)
    async with run.world.frozen(whose(run, first)):
        second = await begun(run, order.id, 2, within=run.world.lease + 15)
    await until(lambda: first.ended is not None, run.world.describe)
    assert [what for when, what in first.did if when > second.began] == []
    assert first.how is None, "it was stopped, and did not come to an end of its own"
    await run.creator.cancel(order)
    await run.rest()
    assert (await run.verdict()).lines() == []


async def test_the_daemons_end_well_after_all_of_it(run: Run):
    assert await run.farewell() == []


async def test_rows_that_were_tampered_with_are_found(run: Run):
    before = judge(await run.evidence()).counts()
    async with run.world.database() as database:
        ended = "(select id from public.jobs where kind = 'chaos.plain' and status = 'completed' limit 1)"
        await database.execute(f"update public.jobs set result = '\"tampered\"' where id = {ended}")
        await database.execute(
            "update public.credit_accounts set spent = spent + 1, available = available - 1"
        )
        job_id, key = await database.fetchrow(
            "select job_id, key from public.job_items where status = 'completed' limit 1"
        )
        for status in ("pending", "completed"):
            again = "update public.job_items set status = $3 where job_id = $1 and key = $2"
            await database.execute(again, job_id, key, status)
        run.world.witness.attempts.append(run.world.witness.attempts[-1])
        counts = judge(await run.evidence()).counts()
    for counter in ("lost", "doubled", "overlaps", "credit_errors"):
        assert counts[counter] > before[counter], counter
