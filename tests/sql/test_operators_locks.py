"""Operators' functions on several connections: who waits for whom, and that nobody waits in a circle."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, Database, Project, Worker, done, fixture, until_waiting
from tests.sql.test_locks import Opponent, no_deadlocks


@fixture
async def one(database: Database) -> Project:
    project = await database.project()
    await project.kind("translate", credits_per_item=10)
    await project.kind("report", credits_per_job=7)
    await project.queue("other")
    for owner in (ALICE, BOB):
        await project.grant(owner, 10_000)
    return project


async def row(project, call):
    [answer] = await project.rows(f"select * from processor.{call}")
    return answer


async def test_cancelling_a_queue_waits_for_a_claim_and_asks_its_worker(database, one):
    two, observer = await database.project(), await database.project()
    await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await one.worker()
    transaction = one.connection.transaction()
    await transaction.start()
    await worker.claim()
    cancel = asyncio.create_task(row(two, "cancel_queue('default')"))
    await until_waiting(observer, two)
    await transaction.commit()
    assert await cancel == {"cancelled": 0, "asked": 1, "remaining": 0}
    assert (await worker.row())["inbox"] == 1
    assert await observer.faults() == []


async def test_cancelling_a_queue_waits_for_a_finish_and_leaves_the_job(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await one.worker()
    [claimed] = await worker.claim()
    transaction = one.connection.transaction()
    await transaction.start()
    await worker.finish(claimed, items=[done("de")])
    cancel = asyncio.create_task(row(two, "cancel_queue('default')"))
    await until_waiting(observer, two)
    await transaction.commit()
    assert await cancel == {"cancelled": 0, "asked": 0, "remaining": 0}
    assert (await observer.job(job))["status"] == "completed"
    assert await observer.balance(ALICE) == (9990, 0, 10)
    assert await observer.faults() == []


async def test_moving_waits_for_a_cancel_and_leaves_the_job(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    async with one.connection.transaction():
        await one.cancel(job)
        move = asyncio.create_task(row(two, "move_jobs('default', 'other')"))
        await until_waiting(observer, two)
    assert await move == {"moved": 0, "remaining": 0}
    assert (await observer.job(job))["queue"] == "default"


async def test_cancelling_a_queue_waits_for_a_move_and_leaves_what_is_gone(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("report", owner_id=ALICE)
    async with one.connection.transaction():
        await row(one, "move_jobs('default', 'other')")
        cancel = asyncio.create_task(row(two, "cancel_queue('default')"))
        await until_waiting(observer, two)
    assert await cancel == {"cancelled": 0, "asked": 0, "remaining": 0}
    assert (await observer.job(job))["status"] == "pending"


async def test_the_queue_that_jobs_move_to_cannot_be_deleted_meanwhile(database, one):
    two, observer = await database.project(), await database.project()
    await one.create("report", owner_id=ALICE)
    async with one.connection.transaction():
        await one.sql("delete from public.job_queues where name = 'other'")
        move = asyncio.create_task(row(two, "move_jobs('default', 'other')"))
        await until_waiting(observer, two)
    with pytest.raises(asyncpg.PostgresError, match="unknown queue: other"):
        await move


async def test_two_operators_who_undo_the_same_grant_take_it_once(database, one):
    two, observer = await database.project(), await database.project()
    entry = await one.sql("select id from public.credit_entries where owner_id = $1", ALICE)
    await one.grant(ALICE, 10_000)
    async with one.connection.transaction():
        first = await row(one, f"undo_grant({entry}, 'a mistake')")
        undo = asyncio.create_task(row(two, f"undo_grant({entry}, 'a mistake')"))
        await until_waiting(observer, two)
    assert (first["taken"], (await undo)["taken"]) == (10_000, 0)
    assert await observer.balance(ALICE) == (10_000, 0, 0)
    assert await observer.faults() == []


async def test_an_undo_waits_for_a_reservation_and_takes_what_is_left(database, one):
    two, observer = await database.project(), await database.project()
    entry = await one.sql("select id from public.credit_entries where owner_id = $1", ALICE)
    async with one.connection.transaction():
        await one.create("translate", owner_id=ALICE, items=["de"])
        undo = asyncio.create_task(row(two, f"undo_grant({entry}, 'a mistake')"))
        await until_waiting(observer, two)
    assert (await undo)["missing"] == 10
    assert await observer.balance(ALICE) == (0, 10, 0)


async def test_two_operators_who_retry_the_same_failures_make_each_job_once(database, one):
    two, observer = await database.project(), await database.project()
    for owner in (BOB, ALICE, BOB):
        await one.create("report", owner_id=owner)
    worker = await one.worker()
    for job in await worker.claim(3):
        await worker.finish(job, "fail")
    call = "retry_failed('default', processor.now() - interval '1 hour')"
    async with one.connection.transaction():
        assert (await row(one, call))["retried"] == 3
        retry = asyncio.create_task(row(two, call))
        await until_waiting(observer, two)
    await retry
    assert await observer.sql("select count(*) from public.jobs where retry_of is not null") == 3
    assert (await observer.balance(ALICE), await observer.balance(BOB)) == ((9993, 7, 0), (9986, 14, 0))
    assert await observer.faults() == []


async def test_cancelling_a_queue_locks_workers_in_the_order_of_their_ids(database, one):
    two, observer = await database.project(), await database.project()
    workers = [await one.worker(name="web", id=str(UUID(int=number))) for number in (2, 1)]
    second, first = workers
    for worker in workers:
        await one.create("report", owner_id=ALICE)
        await worker.claim()
    async with one.connection.transaction():
        lock = "select 1 from public.job_workers where id = $1 for no key update nowait"
        await one.sql(lock, first.id)
        cancel = asyncio.create_task(row(two, "cancel_queue('default')"))
        await until_waiting(observer, two)
        # whoever waits for the first worker has not locked the second
        await one.sql(lock, second.id)
    assert (await cancel)["asked"] == 2
    assert [(await worker.row())["inbox"] for worker in workers] == [1, 1]


GRANT = "select id from public.credit_entries where kind = 'grant' order by random() limit 1"


class Operator(Opponent):
    """An opponent who also does what operators do."""

    def __init__(self, project: Project, worker: Worker, number: int) -> None:
        super().__init__(project, worker, number)
        self.done: set[str] = set()

    async def rescue(self) -> None:
        calls = {
            "cancel": "cancel_queue('default', 3)",
            "retry": "retry_failed('default', processor.now() - interval '1 hour', max_jobs => 5)",
            "move": "move_jobs('default', 'other', 5)",
            "back": "move_jobs('other', 'default', 5)",
            "prune": "prune_jobs(3)",
            "undo": f"undo_grant(({GRANT}), 'x')",
        }
        for name in self.random.sample(list(calls), 3):
            answer = await self.project.rows(f"select * from processor.{calls[name]}")
            if next(value for key, value in answer[0].items() if key not in {"owner_id", "granted"}):
                self.done.add(name)
        for owner in (ALICE, BOB):
            await self.project.grant(owner, 200)
        if self.random.random() < 0.5:
            await super().rescue()


async def test_operators_in_the_thick_of_it_neither_deadlock_nor_lose_a_credit(database, one):
    await one.sql("update public.job_queues set max_processing = 40, retain_last = 5, retain_for = '0'")
    projects = [await database.project() for _ in range(6)]
    operators = [Operator(project, await project.worker(), number) for number, project in enumerate(projects)]
    await asyncio.gather(*(operator.run() for operator in operators))
    assert await one.faults() == []
    assert await no_deadlocks(one)
    assert set.union(*(operator.done for operator in operators)) == {
        "cancel", "retry", "move", "back", "prune", "undo",
    }  # fmt: skip
