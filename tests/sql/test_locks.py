"""Several connections at once: who waits for whom, and that nobody waits in a circle."""

# ruff: noqa: PT017 - the opponents expect refusals, but not every time

import asyncio
import random
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.sql.harness import (
    ALICE,
    BOB,
    Database,
    Project,
    Worker,
    done,
    failed,
    fence,
    fixture,
    until_waiting,
)

DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"
REFUSALS = {"PT402", "JQ009", "JQ011"}
ROUNDS = 60


@fixture
async def one(database: Database) -> Project:
    project = await database.project()
    await project.kind("translate", credits_per_item=10)
    await project.kind("report", credits_per_job=7)
    for owner in (ALICE, BOB):
        await project.grant(owner, 10_000)
    return project


async def no_deadlocks(project: Project) -> bool:
    await project.sql("select pg_stat_force_next_flush()")
    return await project.sql(DEADLOCKS) == 0


async def test_a_cancel_waits_for_a_finish_and_finds_the_job_ended(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await one.worker()
    [claimed] = await worker.claim()
    transaction = one.connection.transaction()
    await transaction.start()
    await worker.finish(claimed, "done", items=[done("de")])
    cancel = asyncio.create_task(two.cancel(job, by=ALICE))
    await until_waiting(observer, two)
    await transaction.commit()
    assert (await cancel)["status"] == "completed"
    assert await observer.balance(ALICE) == (9990, 0, 10)
    assert await observer.faults() == []


async def test_a_cancel_waits_for_the_pruning_of_the_job_and_finds_none(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("report", owner_id=ALICE)
    await one.cancel(job)
    await one.queue("default", retain_for=timedelta(0), retain_last=0)
    transaction = one.connection.transaction()
    await transaction.start()
    assert await one.sql("select processor.prune_jobs()") == 1
    cancel = asyncio.create_task(two.cancel(job, by=ALICE))
    await until_waiting(observer, two)
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError, match="job not found") as caught:
        await cancel
    assert caught.value.sqlstate == "JQ008"


async def test_a_finish_waits_for_a_cancel_and_obeys_it(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await two.worker()
    [claimed] = await worker.claim()
    transaction = one.connection.transaction()
    await transaction.start()
    await one.cancel(job, by=ALICE)
    finish = asyncio.create_task(worker.finish(claimed, "retry"))
    await until_waiting(observer, two)
    await transaction.commit()
    assert (await finish)["status"] == "cancelled"
    assert await observer.balance(ALICE) == (10_000, 0, 0)
    assert await observer.faults() == []


async def test_a_cancel_waits_for_a_claim_and_asks_its_worker(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await one.worker()
    transaction = one.connection.transaction()
    await transaction.start()
    await worker.claim()
    cancel = asyncio.create_task(two.cancel(job, by=ALICE))
    await until_waiting(observer, two)
    await transaction.commit()
    assert (await cancel)["status"] == "processing"
    assert (await worker.row())["inbox"] == 1


async def test_a_retry_asked_for_twice_at_once_is_one_job(database, one):
    two, observer = await database.project(), await database.project()
    job = await one.create("translate", owner_id=ALICE, items=["de"])
    await one.cancel(job)
    transaction = one.connection.transaction()
    await transaction.start()
    first = await one.retry(job, by=ALICE)
    second = asyncio.create_task(two.retry(job, by=ALICE))
    await until_waiting(observer, two)
    await transaction.commit()
    assert (await second)["id"] == first["id"]
    assert await observer.balance(ALICE) == (9990, 10, 0)


async def test_two_reservations_of_the_last_credits_take_turns(database, one):
    two, observer = await database.project(), await database.project()
    transaction = one.connection.transaction()
    await transaction.start()
    items = [str(n) for n in range(1000)]
    await one.create("translate", by=ALICE, items=items)
    second = asyncio.create_task(two.create("translate", by=ALICE, items=["de"]))
    await until_waiting(observer, two)
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError, match="10 needed, 0 available"):
        await second
    assert await observer.balance(ALICE) == (0, 10_000, 0)


async def test_many_repeated_finishes_at_once_have_one_effect(database, one):
    projects = [await database.project() for _ in range(6)]
    jobs = [await one.create("report", owner_id=owner) for owner in (ALICE, BOB) for _ in range(5)]
    worker = await one.worker()
    claimed = await worker.claim(10)

    async def finish(number: int, project: Project) -> int:
        # overlapping batches in different orders
        batch = random.Random(number).sample(claimed, len(claimed))
        answers = await worker.through(project).finish_all(
            [fence(job) | {"outcome": "done"} for job in batch]
        )
        return sum(not answer["stale"] for answer in answers)

    assert sum(await asyncio.gather(*(finish(n, p) for n, p in enumerate(projects)))) == len(jobs)
    for owner in (ALICE, BOB):
        assert await one.balance(owner) == (9965, 0, 35)
    assert await one.faults() == []
    assert await no_deadlocks(one)


async def test_trouble_of_the_server_is_not_taken_for_a_bad_report(database, one):
    two = await database.project()
    await one.create("translate", owner_id=ALICE, items=["de"])
    worker = await two.worker()
    [job] = await worker.claim()
    await two.connection.execute("set lock_timeout = '50ms'")
    async with one.connection.transaction():
        await one.sql("select 1 from public.credit_holds for update")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await worker.finish_items(job, done("de"))
    assert await worker.finish_items(job, done("de")) == {"id": job["id"], "stale": False, "error": None}


class Opponent:
    """One connection that does everything at random to the jobs of all."""

    def __init__(self, project: Project, worker: Worker, number: int) -> None:
        self.project = project
        self.worker = worker
        self.random = random.Random(number)
        self.held: list[dict] = []

    async def run(self) -> None:
        often = [self.create, self.claim, self.finish] * 2
        seldom = [self.create_many, self.finish_items, self.cancel, self.retry, self.rescue, self.release]
        acts = [*often, *seldom, self.heartbeat]
        for _ in range(ROUNDS):
            try:
                await self.random.choice(acts)()
            except asyncpg.PostgresError as error:
                assert error.sqlstate in REFUSALS, f"{error.sqlstate}: {error}"
                if error.sqlstate == "JQ011":
                    await self.heartbeat()

    async def create(self) -> None:
        owner = self.random.choice([ALICE, BOB])
        kind = self.random.choice(["translate", "report"])
        await self.project.create(kind, owner_id=owner, items=["de", "fr", "it"])

    async def create_many(self) -> None:
        """Create for both owners in one transaction, accounts in the order of the lock order."""
        async with self.project.connection.transaction():
            for owner in (ALICE, BOB):
                await self.project.create("translate", owner_id=owner, items=["de"])

    async def claim(self) -> None:
        self.held += await self.worker.claim(self.random.randint(1, 6))

    def some(self) -> list[dict]:
        return self.random.sample(self.held, min(len(self.held), 4))

    def ends(self, job: dict) -> list[dict]:
        return [
            self.random.choice([done(i["key"]), failed(i["key"], retryable=True)])
            for i in job["items"]
            if self.random.random() < 0.7
        ]

    async def finish_items(self) -> None:
        answer = await self.worker.finish_items_answer(
            [fence(job) | {"items": self.ends(job)} for job in self.some()]
        )
        assert not [result for result in answer["results"] if result["error"]]

    async def finish(self) -> None:
        outcomes = ["done", "fail", "retry", "cancelled", "snooze"]
        answers = await self.worker.finish_all(
            [
                fence(job)
                | {"outcome": self.random.choice(outcomes), "items": self.ends(job), "delay_seconds": 0}
                for job in self.some()
            ]
        )
        assert not [answer for answer in answers if answer["error"]]

    async def release(self) -> None:
        await self.worker.release(*self.some())

    async def any_job(self, *statuses: str) -> dict:
        job_id = await self.project.sql(
            "select id from public.jobs where status = any ($1) order by random() limit 1", list(statuses)
        )
        return {"id": job_id or uuid4()}

    async def cancel(self) -> None:
        job = await self.any_job("pending", "processing")
        try:
            await self.project.cancel(job)
        except asyncpg.PostgresError as error:
            assert error.sqlstate == "JQ008"

    async def retry(self) -> None:
        job = await self.any_job("partial", "failed", "cancelled")
        try:
            await self.project.retry(job)
        except asyncpg.PostgresError as error:
            assert error.sqlstate in REFUSALS | {"JQ008", "JQ012", "JQ014"}

    async def rescue(self) -> None:
        """Declare somebody dead who is not, and take what they have."""
        await self.project.sql("""
            update public.job_workers set lease_expires_at = processor.now() - interval '1 second'
            where id = (select id from public.job_workers order by random() limit 1)
        """)
        await self.project.sql("select processor.rescue_jobs()")

    async def heartbeat(self) -> None:
        await self.worker.heartbeat(*self.held)


async def test_opposing_operations_neither_deadlock_nor_lose_a_credit(database, one):
    await one.queue("default", max_processing=40)
    projects = [await database.project() for _ in range(6)]
    opponents = [Opponent(project, await project.worker(), number) for number, project in enumerate(projects)]
    await asyncio.gather(*(opponent.run() for opponent in opponents))
    assert await one.faults() == []
    assert await no_deadlocks(one)
    assert await one.sql("select count(*) from public.credit_entries where kind = 'capture'") > 0
    assert await one.sql("select count(*) from public.jobs where crashes > 0") > 0


class Relative(Opponent):
    """One connection that makes, spawns, ends, cancels, replaces and retries families."""

    async def run(self) -> None:
        often = [self.found, self.claim, self.finish, self.end] * 3
        seldom = [
            self.spawn,
            self.replace,
            self.create_bulk,
            self.cancel,
            self.retry,
            self.rescue,
            self.adopt,
        ]
        for _ in range(ROUNDS):
            try:
                await self.random.choice([*often, *seldom, *seldom, self.heartbeat])()
            except asyncpg.PostgresError as error:
                assert error.sqlstate in REFUSALS | {"JQ012", "JQ014"}, f"{error.sqlstate}: {error}"
                if error.sqlstate == "JQ011":
                    await self.heartbeat()

    def someone(self):
        return str(self.random.choice([ALICE, BOB]))

    def kin(self, depth: int = 0) -> dict:
        kin = {"kind": self.random.choice(["report", "echo"])}
        kin["on_child_failure"] = self.random.choice(["continue", "fail"])
        if depth < 2 and self.random.random() < 0.7:
            kin["children"] = [self.kin(depth + 1) for _ in range(self.random.randint(1, 3))]
        if self.random.random() < 0.3:
            kin |= {
                "unique_key": f"u{self.random.randint(1, 9)}",
                "on_conflict": self.random.choice(["replace", "error"]),
            }
        return kin

    async def found(self) -> None:
        await self.project.create(**self.kin(), owner_id=self.someone())

    async def create_bulk(self) -> None:
        jobs = [self.kin() | {"owner_id": self.someone(), "idempotency_key": f"k{n}"} for n in range(6)]
        for job in jobs:
            job.pop("unique_key", None)
        self.random.shuffle(jobs)
        try:
            await self.project.call("create_jobs", jobs=jobs)
        except asyncpg.PostgresError as error:
            assert error.sqlstate in REFUSALS | {"JQ007", "JQ012", "JQ014"}, f"{error.sqlstate}: {error}"

    async def replace(self) -> None:
        await self.project.create(
            "report",
            owner_id=self.someone(),
            unique_key=f"u{self.random.randint(1, 9)}",
            on_conflict="replace",
        )

    async def adopt(self) -> None:
        parent = await self.any_job("pending", "processing")
        try:
            await self.project.create("report", parent_id=parent["id"])
        except asyncpg.PostgresError as error:
            assert error.sqlstate in REFUSALS | {"JQ008", "JQ014"}, f"{error.sqlstate}: {error}"

    async def spawn(self) -> None:
        for job in self.some()[:1]:
            jobs = [self.kin(2) for _ in range(2)]
            for child in jobs:
                child.pop("unique_key", None)
            try:
                await self.project.call("spawn_jobs", worker_id=self.worker.id, parent=fence(job), jobs=jobs)
            except asyncpg.PostgresError as error:
                assert error.sqlstate in REFUSALS | {"JQ007", "JQ014"}, f"{error.sqlstate}: {error}"

    async def end(self) -> None:
        """End several at once: parents, children and strangers, some of them waiting."""
        outcomes = ["done", "done", "fail", "retry", "wait", "cancelled"]
        reports = [
            fence(job) | {"outcome": self.random.choice(outcomes), "delay_seconds": 0} for job in self.some()
        ]
        answers = await self.worker.finish_all(reports)
        for answer in answers:
            assert not answer["error"] or "no children to wait for" in answer["error"], answer
        self.held = self.held[-20:]


FAMILY_TREE = """
    select p.id, p.status, p.children_total, p.children_open, p.children_failed, c.*
    from public.jobs p
    cross join lateral (
      select count(*) as total, count(*) filter (where c.finished_at is null) as open,
        count(*) filter (where c.status in ('partial', 'failed', 'cancelled')) as failed
      from public.jobs c where c.parent_id = p.id
    ) c
    where (p.children_total, p.children_open, p.children_failed) is distinct from (c.total, c.open, c.failed)
      or (p.status = 'pending' and p.run_at = processor.never() and c.open = 0)
"""


async def test_families_that_end_from_all_sides_neither_deadlock_nor_miscount(database, one):
    await one.kind("echo")
    await one.queue("default", max_processing_per_owner=30, max_pending_per_owner=300)
    projects = [await database.project() for _ in range(6)]
    relatives = [Relative(project, await project.worker(), number) for number, project in enumerate(projects)]
    await asyncio.gather(*(relative.run() for relative in relatives))
    assert await one.rows(FAMILY_TREE) == []
    assert await one.faults() == []
    assert await no_deadlocks(one)
    codes = {row["error_code"] for row in await one.rows("select distinct error_code from public.jobs")}
    assert {"CHILD_FAILED", "REPLACED", "CANCELLED"} <= codes
