"""Locks are needed: two calls that overlap end well, and badly as soon as the lock between them is gone."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg
import pytest

from tests.sql.harness import ALICE, Database, Project, Worker, done, fixture
from tests.sql.test_mutants import Change, mutate

LOCK = "for no key update"


@dataclass
class Stage:
    """Two connections that act, each with a worker, and one that looks."""

    one: Project
    two: Project
    observer: Project
    first: Worker
    second: Worker

    async def overlap(self, before: Coroutine[Any, Any, Any], after: Coroutine[Any, Any, Any]) -> Any:
        """Do the first on one; begin the other on two before that commits; say how the other ended."""
        async with self.one.connection.transaction():
            await before
            task = asyncio.create_task(after)
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
            pid = self.two.connection.get_server_pid()
            async with asyncio.timeout(10):
                while not task.done() and not await self.observer.sql(waits, pid):  # noqa: ASYNC110 - no event for it
                    await asyncio.sleep(0.01)
        try:
            return await task
        except asyncpg.PostgresError as error:
            return error.sqlstate

    async def job(self, columns: str) -> tuple[Any, ...]:
        return tuple(await self.observer.connection.fetchrow(f"select {columns} from public.jobs"))


@fixture
async def stage(database: Database) -> Stage:
    one, two, observer = [await database.project() for _ in range(3)]
    await one.kind("translate", credits_per_item=10)
    await one.kind("echo")
    return Stage(one, two, observer, await one.worker(), (await one.worker()).through(two))


async def two_creates_of_the_last_credits(stage: Stage) -> Any:
    await stage.one.grant(ALICE, 10)
    create = {"kind": "translate", "owner_id": ALICE, "items": ["de"]}
    return await stage.overlap(stage.one.create(**create), stage.two.create(**create))


async def a_settlement_during_a_capture(stage: Stage) -> Any:
    await stage.one.grant(ALICE, 10)
    job = await stage.one.create("translate", owner_id=ALICE, items=["de"])
    await stage.overlap(
        stage.one.call("processor.capture_units", job_id=job["id"], units=[1], per_item=True),
        stage.two.call("processor.settle_holds", job_ids=[job["id"]]),
    )
    return await stage.observer.balance(ALICE)


async def two_settlements(stage: Stage) -> Any:
    await stage.one.grant(ALICE, 20)
    job = await stage.one.create("translate", owner_id=ALICE, items=["de", "fr"])
    [claimed] = await stage.first.claim()
    second = await stage.overlap(
        stage.first.finish(claimed, "fail", items=[done("de")]),
        stage.two.call("processor.settle_holds", job_ids=[job["id"]]),
    )
    return second, await stage.observer.balance(ALICE)


async def two_claims_of_one_job(stage: Stage) -> Any:
    await stage.one.create()
    second = await stage.overlap(stage.first.claim(), stage.second.claim())
    return len(second), *await stage.job("attempt")


async def two_claims_where_one_may_run(stage: Stage) -> Any:
    await stage.one.queue("default", max_processing=1)
    for _ in range(2):
        await stage.one.create()
    return len(await stage.overlap(stage.first.claim(), stage.second.claim()))


async def two_claims_of_the_last_token(stage: Stage) -> Any:
    await stage.one.queue("default", rate_limit=1)
    for _ in range(2):
        await stage.one.create()
    return len(await stage.overlap(stage.first.claim(), stage.second.claim()))


async def a_cancel_during_a_claim(stage: Stage) -> Any:
    job = await stage.one.create()
    await stage.overlap(stage.first.claim(), stage.two.cancel(job))
    return await stage.job("status, cancel_requested_at is not null")


async def two_rescues(stage: Stage) -> Any:
    await stage.one.create()
    await (await stage.one.worker(lease_seconds=1)).claim()
    await stage.one.sql("update public.job_workers set lease_expires_at = now() - lease where lease = '1 s'")
    await stage.overlap(stage.first.heartbeat(), stage.second.heartbeat())
    return await stage.job("status, crashes")


async def two_creates_that_replace_each_other(stage: Stage) -> Any:
    create = {"unique_key": "u", "on_conflict": "replace"}
    second = await stage.overlap(stage.one.create(**create), stage.two.create(**create))
    return second if isinstance(second, str) else second["status"]


class Race(NamedTuple):
    run: Callable[[Stage], Awaitable[Any]]
    ends: Any
    """How it ends well."""
    changes: list[Change]
    """What takes the lock away."""


RACES = [
    Race(
        two_creates_of_the_last_credits,
        "PT402",
        [
            Change("processor.lock_jobs", f"order by a.owner_id {LOCK}", ""),
            Change("processor.open_holds", f"order by a.owner_id {LOCK}", ""),
        ],
    ),
    Race(
        a_settlement_during_a_capture,
        (0, 0, 10),
        [Change("processor.capture_units", "for share", "")],
    ),
    Race(
        two_settlements,
        ("", (10, 0, 10)),
        [Change("processor.lock_holds", "and h.closed_at is null", "")],
    ),
    Race(
        two_claims_of_one_job,
        (0, 1),
        [Change("processor.pick_in_order", f"{LOCK} skip locked", "")],
    ),
    Race(
        two_claims_where_one_may_run,
        0,
        [Change("public.claim_jobs", f"order by x.name {LOCK}", "")],
    ),
    Race(
        two_claims_of_the_last_token,
        0,
        [Change("public.claim_jobs", f"order by x.name {LOCK}", "")],
    ),
    Race(
        a_cancel_during_a_claim,
        ("processing", True),
        [Change("processor.lock_jobs", f"order by j.id {LOCK}", "")],
    ),
    Race(
        two_rescues,
        ("pending", 1),
        [Change("processor.rescue_jobs", f"order by j.id {LOCK} skip locked", "")],
    ),
    Race(
        two_creates_that_replace_each_other,
        "pending",
        [Change("processor.lock_drafts", "perform processor.take_turns(turns);", "")],
    ),
]
each_race = pytest.mark.parametrize("race", RACES, ids=lambda race: race.run.__name__)


@each_race
async def test_an_overlap_ends_well(stage, race):
    assert await race.run(stage) == race.ends


@each_race
async def test_an_overlap_ends_badly_without_the_lock(stage, race):
    await mutate(stage.one, race.changes)
    assert await race.run(stage) != race.ends
