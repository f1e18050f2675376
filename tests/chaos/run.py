"""A run: jobs all the time, faults by chance or by name, and the judgement when all is calm."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.catalogue import CATALOGUE, Blow, draw
from tests.chaos.creator import Creator
from tests.chaos.judge import Evidence, Verdict, collect, judge
from tests.chaos.levels import Level
from tests.chaos.world import DAEMONS, PATIENCE, Member, World, until

OPEN = "select count(*) from public.jobs where finished_at is null"
TOGETHER = 0.35
"""How often two faults come at the same time."""

Tell = Callable[[str], None]


class Run:
    """One world, its creator, and all that has befallen them."""

    def __init__(self, world: World, creator: Creator, *, tell: Tell) -> None:
        self.world = world
        self.creator = creator
        self.blows: list[Blow] = []
        self.before: Level
        """What a daemon held at rest, before the first fault."""
        self._tell = tell
        self._began = time.monotonic()

    def tell(self, line: str) -> None:
        """Say what happens, and when."""
        self._tell(f"{time.monotonic() - self._began:7.1f} s  {line}")

    async def warm_up(self) -> None:
        """Have every daemon do some of everything, and look what it holds at rest."""
        await self.creator.some_of_each()
        await self.rest()
        levels = [await self.world.level(member) for member in self.world.fleet]
        self.before = levels[0].most(levels[-1])

    async def under(self, blows: AsyncIterator[tuple[Blow, ...]]) -> None:
        """Create jobs while the blows fall, then let the world come to rest."""
        stop = asyncio.Event()
        creating = asyncio.create_task(self.creator.run(stop), name="creator")
        try:
            async for together in blows:
                for blow in together:
                    self.tell(str(blow))
                self.blows += together
                await asyncio.gather(*(CATALOGUE[blow.name].strike(self.world, blow) for blow in together))
        finally:
            stop.set()
            await creating
        self.tell("calm")
        await self.rest()

    async def rest(self) -> None:
        """Wait until every job has ended and every daemon is well and idle."""
        deadline = time.monotonic() + PATIENCE
        async with self.world.database() as database:
            while await database.fetchval(OPEN) and time.monotonic() < deadline:  # noqa: ASYNC110  a query is asked
                await asyncio.sleep(0.1)
        if time.monotonic() < deadline:
            self.tell("every job has ended")
            await self.world.ready()
            await until(lambda: not self.world.witness.going_on, self.world.describe)
            self.tell("at rest")

    async def evidence(self) -> Evidence:
        """Gather what there is to judge."""
        evidence = Evidence(
            orders=self.creator.orders,
            doubled_keys=self.creator.doubled,
            attempts=self.world.witness.attempts,
            freezes=self.world.mishaps.freezes,
            leaks=[
                line
                for member in self.world.fleet
                if self.world.is_running(member)
                for line in await self._leaks(member)
            ],
        )
        async with self.world.database() as database:
            await collect(database, evidence)
        return evidence

    async def verdict(self) -> Verdict:
        """Judge."""
        return judge(await self.evidence())

    async def farewell(self) -> list[str]:
        """End the daemons by SIGTERM; return what was wrong with that."""
        await self.world.stop_daemons()
        return [f"a daemon ended with {code}" for code in self.world.mishaps.exit_codes if code != 0]

    async def _leaks(self, member: Member) -> list[str]:
        """Say what a daemon holds too much of; what only takes a moment to go is waited for."""
        deadline = time.monotonic() + 5
        while more := (await self.world.level(member)).above(self.before):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        return [f"{member.name}: {line}" for line in more]


def mix(
    seed: int, *, daemons: int = DAEMONS, without: frozenset[str] = frozenset()
) -> Iterator[tuple[tuple[Blow, ...], float]]:
    """Yield blows, and the pause after them, for ever: the same ones for the same seed."""
    chance = random.Random(f"{seed} blows")
    names = [name for name in CATALOGUE if name not in without]
    while True:
        for name in chance.sample(names, len(names)):  # each comes once before one comes twice
            together = [draw(chance, name, members=daemons, longest=6.0)]
            if chance.random() < TOGETHER:
                others = [n for n in names if CATALOGUE[n].room != CATALOGUE[name].room]
                together.append(draw(chance, chance.choice(others), members=daemons, longest=6.0))
            yield tuple(together), chance.uniform(0.2, 3.0)


async def for_seconds(
    blows: Iterator[tuple[tuple[Blow, ...], float]], seconds: float
) -> AsyncIterator[tuple[Blow, ...]]:
    """Give blows, with their pauses, until the time is over."""
    end = time.monotonic() + seconds
    for together, pause in blows:
        if time.monotonic() >= end:
            return
        yield together
        await asyncio.sleep(pause)


@asynccontextmanager
async def running(
    directory: Path, *, seed: int, daemons: int = DAEMONS, tell: Tell = print
) -> AsyncIterator[Run]:
    """Give a world that is warm and at rest."""
    async with World(directory, daemons=daemons) as world, Creator(world.stack, f"{seed} creator") as creator:
        run = Run(world, creator, tell=tell)
        await run.warm_up()
        run.tell(f"{len(run.creator.orders)} jobs done, {daemons} daemons at rest")
        yield run
