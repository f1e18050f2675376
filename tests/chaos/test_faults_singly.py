"""Each fault by itself: jobs before, during and after it, and then the judgement."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.catalogue import CATALOGUE, Blow, draw, missing
from tests.chaos.run import Run, running

SECONDS = {"daemon_freeze": 1.0, "postgres_restart": 0.5, "postgres_kill": 0.5, "gateway_kill": 0.5}
"""How long a fault lasts that is not what it is by lasting."""
USUALLY = 1.8

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Run]:
    """Give one world to all faults, one after the other."""
    async with running(tmp_path_factory.mktemp("chaos"), seed=1) as it:
        yield it


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(CATALOGUE))
async def test_nothing_is_lost_doubled_overlapping_unpaid_or_leaked_after(run: Run, name: str):
    if why := missing(run.world).get(name):
        pytest.skip(why)
    chance = random.Random(name)
    blow = draw(chance, name, members=len(run.world.fleet), longest=1.0)
    blow = Blow(name, blow.members, blow.only, SECONDS.get(name, USUALLY), blow.hours)
    acknowledged = len(run.creator.orders)

    async def once() -> AsyncIterator[tuple[Blow, ...]]:
        yield (blow,)

    await run.under(once())
    assert len(run.creator.orders) > acknowledged
    assert (await run.verdict()).lines() == []


async def test_the_daemons_end_well_after_all_of_it(run: Run):
    assert await run.farewell() == []
