"""The tests can fail: each of these changes to a function is noticed by the model of the credits."""

from datetime import timedelta

import asyncpg
import pytest

from tests.sql.harness import NOON, Project, fixture
from tests.sql.test_credits_model import PRICES, STEPS, Model, Worker

SEEDS = 12

MUTANTS = {
    "a fence without the attempt": (
        "processor.lock_held_jobs",
        "and j.attempt = (r.value ->> 'attempt')::int",
        "",
    ),
    "a fence without the worker": (
        "processor.lock_held_jobs",
        "and j.worker_id = lock_held_jobs.worker_id",
        "",
    ),
    "a settlement of holds that are closed": ("processor.settle_holds", "and o.closed_at is null", ""),
    "a refund that is skipped": (
        "processor.settle_holds",
        "available = a.available + s.released",
        "issued = a.issued - s.released",
    ),
    "an input that is not compared": (
        "processor.insert_job",
        "existing.input_digest <> job.input_digest",
        "false",
    ),
    "a reservation of what is not there": ("processor.open_hold", "coalesce(there, 0) < needed", "false"),
    "a ticket that is taken twice": (
        "processor.capture_units",
        "count(*) * price",
        "cardinality(units) * price * 2",
    ),
    "a second report that is taken": ("public.finish_jobs", "and j.status = 'processing'", ""),
    "a retry of items that are done": ("public.retry_job", "and i.status <> 'completed'", ""),
    "items that never run again": ("processor.requeue_job", "and i.error_retryable", "and false"),
    "a cancel that does not settle": (
        "public.cancel_job",
        "perform processor.settle_holds(array[job.id]);",
        "",
    ),
    "a rescue that does not count": (
        "processor.rescue_jobs",
        "set crashes = j.crashes + 1",
        "set crashes = j.crashes",
    ),
}


async def agrees(project: Project, workers: list[Worker], seed: int) -> bool:
    """Whether the database does what the model says."""
    transaction = project.connection.transaction()
    await transaction.start()
    try:
        model = Model(project, workers, seed)
        for _ in range(STEPS):
            await model.step()
            await model.compare()
    except (AssertionError, asyncpg.PostgresError):
        return False
    else:
        return True
    finally:
        await transaction.rollback()


@pytest.fixture(autouse=True)
def _on_one_server(request):
    # what a mutant does wrong does not depend on the version, and finding it takes seconds
    if "wheel" not in request.node.name:
        pytest.skip("one server is enough")


@fixture
async def workers(project) -> list[Worker]:
    await project.queue("default", retry_delays=[timedelta(0)], jitter=0)
    for kind, (per_job, per_item) in PRICES.items():
        await project.kind(kind, credits_per_job=per_job, credits_per_item=per_item)
    await project.at(NOON)
    return [await project.worker() for _ in range(3)]


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_the_model_notices(project, workers, mutant):
    function, before, after = MUTANTS[mutant]
    text = await project.sql("select pg_get_functiondef(to_regproc($1))", function)
    assert before in text, "the mutation has nothing to change: adapt it"
    await project.connection.execute(text.replace(before, after))
    for seed in range(SEEDS):
        if not await agrees(project, workers, seed):
            return
    pytest.fail("nobody noticed")
