"""A minute of everybody against everybody, with kills and a crash; and a judge who would see what is lost."""

import json
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from uuid import uuid4

import pytest

from bench.stress.journal import Journal
from bench.stress.judge import judge
from bench.stress.world import SET_UP
from tests.sql.harness import ALICE, ROOT, done, fixture

SECONDS = 60


@pytest.mark.timeout(180)
async def test_a_minute_of_opposing_clients_kills_and_a_crash_loses_nothing_acknowledged():
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "bench.stress", "--seconds", str(SECONDS), "--seed", "7"),
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert output, errors.decode()
    report = json.loads(output.decode().splitlines()[-1])
    assert report["violations"] == []
    assert process.returncode == 0, errors.decode()
    assert report["deadlocks"] == 0
    # it was as rough as it should be
    assert report["connections"] >= 12
    assert report["crashes"] == 1
    assert report["kills"] > 20
    assert report["lost_answers"] > 20
    assert report["stale_reports"] > 20
    assert report["by_function"]["jobs rescued"] > 20
    assert report["pruned"] > 20


@fixture
async def told(database):
    """Give a project in which a job has ended and been paid, and a journal of what was told of it."""
    project = await database.project()
    await project.connection.execute(SET_UP)
    await project.kind("translate", credits_per_item=3)
    await project.grant(ALICE, 100, idempotency_key="grant")
    job = await project.create("translate", owner_id=ALICE, items=["de", "fr"])
    worker = await project.worker()
    [claimed] = await worker.claim()
    await worker.finish(claimed, items=[done("de"), done("fr")])
    journal = Journal()
    journal.job_seen(job)
    journal.job_claimed(claimed, str(worker.id))
    journal.captured[job["id"]] |= {"de", "fr"}
    journal.job_ended(job["id"], "completed")
    journal.grants["grant"] = (str(ALICE), 100)
    return project, journal, job


async def test_the_judge_is_content_when_all_that_was_told_is_so(told):
    project, journal, _ = told
    assert await judge(project.connection, journal) == []
    assert journal.violations == []


async def test_a_job_that_was_pruned_is_not_lost(told):
    project, journal, job = told
    await project.sql("delete from public.jobs where id = $1", job["id"])
    assert await judge(project.connection, journal) == []


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("drop trigger note on public.jobs; delete from public.jobs", "jobs that were created are gone (1)"),
        ("update public.jobs set status = 'failed'", "jobs did not end as was told (1)"),
        (
            "update public.jobs set status = 'pending', worker_id = null, finished_at = null",
            "jobs did not end (1)",
        ),
        (
            "update public.job_items set status = 'failed' where key = 'de'",
            "items that were told to be completed are not (1): de",
        ),
        (
            "update public.credit_entries set amount = 3 where kind = 'capture'",
            "items that were told to be completed are not paid (1)",
        ),
        (
            "update public.credit_entries set amount = 99 where kind = 'grant'",
            "grants that were told are not",
        ),
        ("update public.jobs set credits_captured = 5", "check_credits() ("),
    ],
)
async def test_the_judge_sees_what_is_not_as_was_told(told, fault, verdict):
    project, journal, _ = told
    await project.connection.execute(fault)
    found = await judge(project.connection, journal)
    assert any(line.startswith(verdict) for line in found), found


def test_the_journal_sees_what_must_not_be_told_together():
    journal = Journal()
    job = {"id": str(uuid4()), "attempt": 1, "status": "processing"}
    journal.job_claimed(job, "one")
    journal.job_claimed(job, "one")
    assert journal.violations == []
    journal.job_claimed(job, "another")
    journal.job_ended(job["id"], "completed")
    journal.job_ended(job["id"], "failed")
    journal.job_claimed(job | {"attempt": 2}, "one")
    journal.job_retried(job["id"], job | {"id": "a"})
    journal.job_retried(job["id"], job | {"id": "b"})
    assert len(journal.violations) == 4
