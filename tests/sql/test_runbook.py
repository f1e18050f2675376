"""Every statement of the run-book does what the step says, in a database where it has happened."""

# ruff: noqa: RUF001 - the angle quotes mark the placeholders of the run-book

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from processor.rpc import SCHEMA_VERSION
from tests.sql.harness import ALICE, BOB, Project, done, failed, fixture
from tests.texts import ROOT, blocks

BOOK = "ops/RUNBOOK.md"
SYMPTOMS = blocks(BOOK, "sql")
CHECKS: dict[str, Callable[["Book", Project], Awaitable[None]]] = {}


def symptom(title):
    """Mark the check of a section."""

    def mark(check):
        CHECKS[title] = check
        return check

    return mark


class Book:
    """The blocks of a section, done in their order."""

    def __init__(self, project, title) -> None:
        self.project = project
        self.blocks = list(SYMPTOMS[title])
        self.names = {"queue": "default"}

    async def step(self, **names):
        """Do the next block with its placeholders filled in; return the rows of its statements."""
        names = self.names | {name.replace("_", " "): str(value) for name, value in names.items()}
        text = re.sub("‹(.*?)›", lambda found: names[found.group(1)], self.blocks.pop(0))
        return [await self.project.rows(part) for part in text.split(";\n") if part.strip()]


@fixture
async def place(project):
    """Give a project with a job that failed, one that completed, one that runs and one that waits."""
    await project.sql("select set_config('processor.now', '', false)")
    await project.kind("translate", credits_per_item=10)
    for owner in (ALICE, BOB):
        await project.grant(owner, 100, reason="welcome")
    project.web = await project.worker(name="web-1")
    for outcome, result in (("fail", failed("de")), ("done", done("de"))):
        await project.create("translate", owner_id=ALICE, items=["de"])
        [job] = await project.web.claim()
        await project.web.finish(job, outcome, items=[result], error_code="BROKEN", error_message="it broke")
    project.running = await project.create("translate", owner_id=BOB, items=["de"])
    await project.web.claim()
    project.waiting = await project.create("translate", owner_id=BOB, items=["de"])
    return project


async def lease_over(project):
    await project.sql(
        "update public.job_workers set lease_expires_at = processor.now() - interval '1 second'"
    )


def test_every_section_with_statements_has_a_check():
    assert set(CHECKS) == set(SYMPTOMS)
    assert (ROOT / BOOK).read_text(encoding="utf-8").count("```sql") == sum(map(len, SYMPTOMS.values())) > 15


@pytest.mark.parametrize("title", SYMPTOMS)
async def test_the_steps_for(place, title):
    book = Book(place, title)
    await CHECKS[title](book, place)
    assert book.blocks == [], "steps that the check left out"
    assert await place.faults() == []


@symptom("Jobs pending")
async def _(book, project):
    await project.queue("default", paused=True)
    [[row]] = await book.step()
    assert (row["reason"], row["count"], "resume_queue" in row["for_example"]) == ("queue_paused", 1, True)
    [[worker]] = await book.step()
    assert (worker["name"], worker["alive"], worker["kinds"]) == ("web-1", True, ["translate"])


@symptom("Stuck in processing")
async def _(book, project):
    await lease_over(project)
    [[row]] = await book.step()
    assert (str(row["job_id"]), row["reason"]) == (project.running["id"], "worker_lost")
    assert await book.step() == [[{"rescue_jobs": 1}]]
    job = await project.job(project.running)
    assert (job["status"], job["failures"]) == ("pending", 0)


@symptom("Jobs fail")
async def _(book, project):
    [[row]] = await book.step()
    assert (row["kind"], row["code"], row["sample_message"]) == ("translate", "BROKEN", "it broke")
    [hours] = await book.step()
    assert (sum(hour["completed"] for hour in hours), sum(hour["failed"] for hour in hours)) == (1, 1)
    [[row]] = await book.step()
    assert (row["retried"], row["problems"]) == (1, [])


@symptom("Webhooks do not arrive")
async def _(book, project):
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    await project.cancel(project.waiting)
    deliverer = await project.worker(name="web-2", queues=["webhooks"])
    [delivery] = await deliverer.claim()
    about = {"worker_id": deliverer.id, "job_id": delivery["id"], "attempt": delivery["attempt"]}
    await project.call("begin_delivery", **about)
    await project.call("end_delivery", **about, succeeded=False, status=500, error="answered 500")
    await deliverer.finish(delivery, "fail")
    [[row]] = await book.step()
    assert (row["name"], row["state"], row["given_up_last_day"]) == ("crm", "failing", 1)
    assert (row["last_status"], row["last_error"]) == (500, "answered 500")
    assert await book.step() == [[{"name": "web-2", "alive": True, "draining": False}]]
    assert await book.step() == [[{"retried": 1, "next_since": None, "problems": []}]]
    [again] = await deliverer.claim()
    assert (await project.job(again))["retry_of"] == delivery["id"]
    assert await book.step(webhook="crm") == [[{"name": "crm", "enabled": False}]]


@symptom("Feed keeps reconnecting")
async def _(book, project):
    [rows] = await book.step()
    assert [row for row in rows if row.get("severity") == "error"] == []
    [[worker]] = await book.step()
    assert (worker["name"], worker["feed"]) == ("web-1", "polling")


@symptom("Credits look wrong")
async def _(book, project):
    assert await book.step() == [[]]
    job = await project.sql("select id from public.jobs where status = 'completed'")
    [entries] = await book.step(job_id=job)
    assert [row["kind"] for row in entries] == ["reserve", "capture"]
    assert await book.step(job_id=job) == [[{"amount": 10, "reason": "bad quality"}]]
    assert await project.balance(ALICE) == (100, 0, 0)


@symptom("Disk full")
async def _(book, project):
    [tables] = await book.step()
    assert "jobs" in {table["relname"] for table in tables}
    await project.sql(
        "update public.jobs set created_at = created_at - interval '9 days', "
        "run_at = run_at - interval '9 days', started_at = started_at - interval '9 days', "
        "finished_at = finished_at - interval '9 days' "
        "where status = 'completed'"
    )
    block = book.blocks[0]
    book.blocks[0] = block.replace("retain_last = 10", "retain_last = 0")
    assert book.blocks[0] != block
    assert await book.step() == [[], [{"prune_jobs": 1}]]


@symptom("Database restored from backup")
async def _(book, project):
    await project.kind("report")
    await project.sql(
        "insert into public.job_schedules (name, cron, kind, next_run_at) "
        "values ('nightly', '0 3 * * *', 'report', now() - interval '3 days')"
    )
    await project.sql("update public.jobs set crashes = 1 where id = $1::uuid", project.running["id"])
    await lease_over(project)
    schema, books = await book.step()
    assert (schema, books) == ([], [])
    assert await book.step() == [[{"name": "default", "paused": True}]]
    assert await book.step() == [[{"name": "web-1", "released": "1"}]]
    job = await project.job(project.running)
    # a rescue would have called it the cause of two losses in a row, and ended it
    assert (job["status"], job["failures"], job["crashes"]) == ("pending", 0, 1)
    [[row]] = await book.step()
    assert (row["queue"], row["kind"], row["jobs"]) == ("default", "translate", 2)
    await book.step()
    worker = await project.worker(name="web-2")
    [due] = (await project.call("run_due_schedules", worker_id=worker.id))["due"]
    assert (due["name"], due["tick"]) == ("nightly", None)
    ticks = [{"name": "nightly", "tick": None, "next": (await project.now() + timedelta(days=1)).isoformat()}]
    assert (await project.call("run_due_schedules", worker_id=worker.id, ticks=ticks))["created"] == []
    await book.step(owner_id=BOB)
    assert await worker.claim(5) == []
    await book.step()
    assert len(await worker.claim(5)) == 2


@symptom("Upgrade without downtime")
async def _(book, project):
    assert await book.step() == [[{"schema": SCHEMA_VERSION, "oldest_daemons": SCHEMA_VERSION - 1}]]
    [[worker]] = await book.step()
    assert (worker["name"], worker["alive"], worker["draining"]) == ("web-1", True, False)
