"""What a claim reads: little more than it takes, whatever is in the table and the planner believes."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.sql.harness import NOON, Project, Worker, fixture

LIMIT = 20
MANY = 20_000
PRIORITIES = 20
# a job is picked, found again to be updated, and read and sorted for the answer; a node whose rows come from
# another one's reading of an index counts them again
READS_PER_JOB = 10
# the due ones of a priority begin at one place of the index; looking ahead needs another look or two
READS_PER_PRIORITY = 5
PLANS = ("force_generic_plan", "force_custom_plan")


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("other")
    return await project.worker()


async def add(
    project: Project,
    rows: int,
    *,
    status: str = "pending",
    kind: str = "echo",
    priority: str = "0",
    age: str = "n * interval '1 second'",
) -> None:
    """Write jobs n = 1, 2, … straight into the table; priority and age are expressions of n."""
    await project.sql(
        f"""
        insert into public.jobs (queue, kind, max_attempts, status, priority, run_at, started_at, finished_at)
        select 'default', $4, 4, $1, {priority}, $2::timestamptz - {age},
          case $1 when 'completed' then $2::timestamptz end, case $1 when 'completed' then $2::timestamptz end
        from generate_series(1, $3::int) n
        """,
        *(status, NOON, rows, kind),
    )


async def statistics_of_every_age(project: Project, add_pending: Any) -> AsyncIterator[str]:
    """Put jobs there, then let the planner have stale statistics, none, and fresh ones."""
    await add(project, MANY, status="completed")
    await project.connection.execute("analyze public.jobs")
    await add_pending(project)
    yield "stale"
    await project.sql("delete from pg_statistic where starelid = 'public.jobs'::regclass")
    yield "none"
    await project.connection.execute("analyze public.jobs")
    yield "fresh"


@asynccontextmanager
async def explained(project: Project) -> AsyncIterator[list[Any]]:
    """Collect the plans, with what they really did, of all statements that run inside functions."""
    plans: list[Any] = []

    def listen(_: object, message: Any) -> None:
        _, found, plan = message.message.partition("plan:\n")
        if found:
            plans.append(json.loads(plan))

    connection = project.connection
    await connection.execute("""
        load 'auto_explain';
        set local auto_explain.log_nested_statements = on; set local auto_explain.log_analyze = on;
        set local auto_explain.log_timing = off; set local auto_explain.log_format = json;
        set local client_min_messages = log; set local auto_explain.log_min_duration = 0;
    """)
    connection.add_log_listener(listen)
    try:
        yield plans
    finally:
        connection.remove_log_listener(listen)
        await connection.execute("set local auto_explain.log_min_duration = -1")


def nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def what(node: Any) -> str:
    return " ".join(node[name] for name in ("Node Type", "Relation Name", "Index Name") if name in node)


def rows_read(node: Any) -> float:
    """Count what a scan looked at, in the heap or in an index alone, over all its repetitions."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return node["Actual Loops"] * (node["Actual Rows"] + sum(node.get(name, 0) for name in removed))


async def claim_and_look(project: Project, worker: Worker, plan: str) -> tuple[list[Any], list[Any]]:
    """Claim under a savepoint that is rolled back; return the jobs, and all scans and sorts of jobs."""
    transaction = project.connection.transaction()
    await transaction.start()
    await project.sql("select set_config('plan_cache_mode', $1, true)", plan)
    async with explained(project) as plans:
        jobs = await worker.claim(LIMIT)
        await worker.heartbeat()  # which looks for the next due job, too
    await transaction.rollback()
    return jobs, [
        node
        for found in plans
        for node in nodes(found["Plan"])
        if node.get("Relation Name") == "jobs"
        or node.get("Index Name", "").startswith("jobs_")
        or "Sort" in node["Node Type"]
    ]


async def behind_them(project: Project) -> None:
    await add(project, MANY)


async def delayed_ahead(project: Project) -> None:
    await add(project, MANY, priority="5", age="n * interval '-1 second'")
    await add(project, LIMIT)


async def delayed_behind(project: Project) -> None:
    await add(project, MANY, age="n * interval '-1 second'")
    await add(project, LIMIT)


async def of_many_priorities(project: Project) -> None:
    await add(project, MANY, priority=f"n % {PRIORITIES}")


async def delayed_of_many_priorities(project: Project) -> None:
    await add(project, MANY, priority=f"1 + n % {PRIORITIES}", age="n * interval '-1 second'")
    await add(project, LIMIT)


async def of_a_kind_it_has_no_handler_for(project: Project) -> None:
    await add(project, MANY, kind="foreign", priority="1 + n % 2", age="n * interval '1 minute'")
    await add(project, MANY // 2, kind="foreign", age="n * interval '1 minute'")
    await add(project, LIMIT // 2)
    await add(project, LIMIT // 2, kind="other")


@pytest.mark.parametrize(
    "many",
    [
        behind_them,
        delayed_ahead,
        delayed_behind,
        of_many_priorities,
        delayed_of_many_priorities,
        of_a_kind_it_has_no_handler_for,
    ],
)
async def test_a_claim_reads_little_more_than_it_takes_with_20000_others(project, worker, many):
    async for statistics in statistics_of_every_age(project, many):
        for plan in PLANS:
            jobs, read = await claim_and_look(project, worker, plan)

            assert len(jobs) == LIMIT
            assert sum(map(rows_read, read)) <= READS_PER_JOB * LIMIT + READS_PER_PRIORITY * PRIORITIES, (
                f"{statistics} statistics, {plan}:",
                [(what(node), rows_read(node)) for node in read if rows_read(node) > LIMIT],
            )


async def test_only_a_job_that_was_claimed_before_is_asked_for_its_checkpoints(project, worker):
    def looks(plans: list[Any]) -> float:
        scans = [n for p in plans for n in nodes(p["Plan"]) if n.get("Relation Name") == "job_checkpoints"]
        assert "Seq Scan" not in {node["Node Type"] for node in scans}
        return sum(node["Actual Loops"] for node in scans)

    await add(project, LIMIT)
    async with explained(project) as first:
        jobs = await worker.claim(LIMIT)
    assert (len(jobs), looks(first)) == (LIMIT, 0)
    await worker.release(*jobs)
    async with explained(project) as second:
        assert len(await worker.claim(LIMIT)) == LIMIT
    assert looks(second) == LIMIT
