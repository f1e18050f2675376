"""Every recipe of the operators' cook-book does what it says."""

# ruff: noqa: RUF001 - the angle quotes mark the placeholders of the cook-book

import json
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import pytest

from tests.sql.harness import ALICE, BOB, Project, done, failed, fixture
from tests.texts import ROOT, blocks

BOOK = "sql/README.md"
RECIPES = {
    title: [[statement.strip() for statement in block.split(";\n") if statement.strip()] for block in written]
    for title, written in blocks(BOOK, "sql").items()
}
"""The statements of each block of each recipe, by the recipe's title."""
CHECKS: dict[str, Callable[["Kitchen", Project], Awaitable[None]]] = {}


def recipe(title):
    """Mark the check of a recipe."""

    def mark(check):
        CHECKS[title] = check
        return check

    return mark


class Kitchen:
    """A project in which much has happened, and the recipe that is tried in it."""

    def __init__(self, project, title) -> None:
        self.project = project
        self.blocks = RECIPES[title]
        self.names = {
            "queue": "default",
            "other queue": "slow",
            "kind": "translate",
            "worker": "web-1",
            "schedule": "nightly",
            "webhook": "crm",
            "url": "https://crm.example/hook",
        }

    async def cook(self, block: int = 0, **names):
        """Run a block with its placeholders filled in; return the rows of its last statement."""
        names = self.names | {name.replace("_", " "): str(value) for name, value in names.items()}
        for statement in self.blocks[block]:
            rows = await self.project.rows(re.sub("‹(.*?)›", lambda m: names[m.group(1)], statement))
        return rows


@fixture
async def kitchen(project):
    """Give a project with two ended jobs, one that runs and one that waits; recipes need the real time."""
    await project.sql("select set_config('processor.now', '', false)")
    await project.kind("translate", credits_per_item=10)
    for owner in (ALICE, BOB):
        await project.grant(owner, 100, reason="welcome")
    project.web = await project.worker(name="web-1")
    for outcome, result in (("fail", failed("de")), ("done", done("de"))):
        await project.create("translate", owner_id=ALICE, items=["de"])
        [job] = await project.web.claim()
        await project.web.log(job, "hello")
        await project.web.finish(job, outcome, items=[result], error_code="BROKEN", error_message="it broke")
    project.running = await project.create("translate", owner_id=BOB, items=["de"])
    await project.web.claim()
    project.waiting = await project.create("translate", owner_id=BOB, items=["de"])
    return project


def test_every_recipe_has_a_check_and_every_check_a_recipe():
    titles = re.findall(r"^### (.+)$", (ROOT / BOOK).read_text(encoding="utf-8"), re.MULTILINE)
    assert list(CHECKS) == list(RECIPES) == titles


def test_every_block_is_a_recipes_block():
    text = (ROOT / BOOK).read_text(encoding="utf-8")
    assert text.count("```sql") == sum(map(len, RECIPES.values())) > 25


@pytest.mark.parametrize("title", RECIPES)
async def test_the_recipe(kitchen, title):
    await CHECKS[title](Kitchen(kitchen, title), kitchen)
    assert await kitchen.faults() == []


@recipe("Is anything wrong?")
async def _(k, project):
    assert await k.cook() == []
    await project.call("drain_worker", worker="web-1")
    [row] = await k.cook()
    assert (row["alert"], row["severity"]) == ("ProcessorNoLiveWorker", "critical")
    assert await k.cook(1) == []
    [told] = (await project.call("take_alerts", request_id=ALICE))["tell"]
    [row] = await k.cook(1)
    assert (row["alert"], row["told_at"]) == (told["alert"], None)
    await project.call("settle_alerts", request_id=ALICE, told=True)
    [row] = await k.cook(1)
    assert row["told_at"] is not None


@recipe("How are the queues?")
async def _(k, project):
    [row] = await k.cook()
    assert (row["queue"], row["due"], row["processing"]) == ("default", 1, 1)
    assert (row["done_last_hour"], row["failed_last_hour"], row["live_workers"]) == (1, 1, 1)


@recipe("What is stuck, and why?")
async def _(k, project):
    assert await k.cook() == []
    await project.queue("default", paused=True)
    [row] = await k.cook()
    assert (row["reason"], row["count"]) == ("queue_paused", 1)
    assert "resume_queue" in row["for_example"]


@recipe("Why is this one job stuck?")
async def _(k, project):
    await project.queue("default", paused=True)
    [row] = await k.cook(job_id=project.waiting["id"])
    assert row["reason"] == "queue_paused"
    assert await k.cook(job_id=project.running["id"]) == []


@recipe("Who is working?")
async def _(k, project):
    [row] = await k.cook()
    assert (row["name"], row["alive"], row["held"]) == ("web-1", True, 1)


@recipe("What fails?")
async def _(k, project):
    [row] = await k.cook()
    assert (row["kind"], row["code"], row["sample_message"]) == ("translate", "BROKEN", "it broke")


@recipe("When did it begin?")
async def _(k, project):
    rows = await k.cook()
    assert sum(row["completed"] for row in rows) == sum(row["failed"] for row in rows) == 1


@recipe("What happened to this job?")
async def _(k, project):
    job = await project.sql("select id from public.jobs where status = 'failed'")
    [line] = await k.cook(job_id=job)
    assert line["message"] == "hello"


@recipe("Pause a queue")
async def _(k, project):
    await k.cook()
    assert await project.web.claim() == []


@recipe("Resume it")
async def _(k, project):
    await project.queue("default", paused=True)
    await k.cook()
    assert len(await project.web.claim()) == 1


@recipe("Pause and drain everything before a migration")
async def _(k, project):
    await project.queue("slow")
    assert await k.cook(0) == [{"name": "default", "paused": True}, {"name": "slow", "paused": True}]
    assert await project.web.claim() == []
    assert await k.cook(1) == [{"still_running": 1}]
    await project.web.release(await project.job(project.running))
    assert await k.cook(1) == [{"still_running": 0}]
    assert await k.cook(2) == [{"name": "default", "paused": False}, {"name": "slow", "paused": False}]
    assert len(await project.web.claim(2)) == 2


@recipe("Take a worker out of service")
async def _(k, project):
    assert await k.cook() == [{"name": "web-1", "held": 1}]
    assert await project.web.claim() == []
    assert await k.cook(worker=project.web.id) == [{"name": "web-1", "held": 1}]


@recipe("Run at most so many at once")
async def _(k, project):
    await k.cook()
    await project.kind("free")
    for _ in range(10):
        await project.create("free")
    worker = await project.worker()
    assert len(await worker.claim(20)) == 4


@recipe("At most so many per minute")
async def _(k, project):
    await k.cook()
    await project.kind("free")
    await project.call("create_jobs", jobs=[{"kind": "free"}] * 100)
    worker = await project.worker()
    assert len(await worker.claim(100)) == 60
    [row] = await Kitchen(project, "What is stuck, and why?").cook()
    assert (row["reason"], row["count"]) == ("rate_limited", 41)


@recipe("Change several limits at once")
async def _(k, project):
    await project.queue("default", rate_limit=9, max_attempts=7)
    [row] = await k.cook()
    assert (row["max_processing"], row["rate_limit"], row["timeout"]) == (5, None, timedelta(minutes=2))
    assert row["max_attempts"] == 7


@recipe("Give every owner a fair share")
async def _(k, project):
    await k.cook(0)
    await project.kind("free")
    for owner in (ALICE, BOB):
        await project.call("create_jobs", jobs=[{"kind": "free", "owner_id": str(owner)}] * 900)
    async with project.refused("JQ014", "1001 with these, at most 1000"):
        await project.call("create_jobs", jobs=[{"kind": "free"}] * 101, by=ALICE)
    worker = await project.worker()
    assert len(await worker.claim(100)) == 3
    first, second = await k.cook(1)
    assert (first["running"], second["running"], first["waiting"] + second["waiting"]) == (2, 2, 1799 - 1)


@recipe("Split a job into parts and put the results together")
async def _(k, project):
    await project.kind("free")
    [made] = await k.cook(0, kind="free", owner_id=ALICE)
    worker = await project.worker(queues=["default"])
    await project.cancel(project.waiting)
    parts = await worker.claim(5)
    assert [job["payload"] for job in parts] == [{"part": 1}, {"part": 2}]
    await worker.finish(parts[0])
    assert [row["status"] for row in await k.cook(1, job_id=made["id"])] == ["completed", "processing"]
    await worker.finish(parts[1])
    [job] = await worker.claim(5)
    assert (job["id"], len(job["children"])) == (str(made["id"]), 2)


@recipe("Retry what failed since …")
async def _(k, project):
    [first], [second] = await k.cook(0), await k.cook(1)
    assert (first["retried"], first["next_since"], first["problems"]) == (1, None, [])
    assert second["retried"] == 0
    assert await project.sql("select status from public.jobs where retry_of is not null") == "pending"


@recipe("Do all of a job again")
async def _(k, project):
    await project.grant(ALICE, 100)
    completed = await project.sql("select id::text from public.jobs where status = 'completed'")
    [row] = await k.cook(job_id=completed)
    assert (row["status"], row["items_total"], row["credits_held"]) == ("pending", 1, 10)
    assert (await k.cook(job_id=completed))[0]["id"] == row["id"]


@recipe("Cancel all of a queue")
async def _(k, project):
    assert await k.cook() == [{"cancelled": 1, "asked": 1, "remaining": 0}]
    assert (await project.job(project.waiting))["status"] == "cancelled"
    assert (await project.web.heartbeat(project.running))["cancel"] == [project.running["id"]]


@recipe("Cancel one job")
async def _(k, project):
    [row] = await k.cook(job_id=project.waiting["id"])
    assert row["status"] == "cancelled"
    assert await project.balance(BOB) == (90, 10, 0)


@recipe("Move jobs to another queue")
async def _(k, project):
    [row] = await k.cook()
    assert (row["reason"], row["count"]) == ("no_worker", 1)
    assert (await project.job(project.waiting))["queue"] == "slow"
    assert (await project.job(project.running))["queue"] == "default"


@recipe("Take jobs from dead workers")
async def _(k, project):
    await project.sql(
        "update public.job_workers set lease_expires_at = processor.now() - interval '1 second'"
    )
    assert await k.cook() == [{"rescue_jobs": 1}]
    assert (await project.job(project.running))["status"] == "pending"


async def scheduled(project):
    """Make a schedule that comes every night, of a kind that is free."""
    await project.kind("report")
    await project.sql(
        "insert into public.job_schedules (name, cron, kind) values ('nightly', '0 3 * * *', 'report')"
    )
    tick = {"name": "nightly", "tick": None, "next": "2099-01-01T03:00:00Z"}
    await project.call("run_due_schedules", worker_id=project.web.id, ticks=[tick])


@recipe("What runs when, and what does not?")
async def _(k, project):
    await scheduled(project)
    [row] = await k.cook()
    assert (row["schedule"], row["state"], row["next_run_at"].year) == ("nightly", "ok", 2099)


@recipe("Make a schedule")
async def _(k, project):
    await k.cook(kind="report")
    answer = await project.call("run_due_schedules", worker_id=project.web.id)
    assert [due["timezone"] for due in answer["due"]] == ["Europe/Berlin"]


@recipe("Change a schedule")
async def _(k, project):
    await scheduled(project)
    await k.cook()
    answer = await project.call("run_due_schedules", worker_id=project.web.id)
    assert [(due["cron"], due["tick"]) for due in answer["due"]] == [("0 7 * * *", None)]


@recipe("Pause a schedule, and let it go on")
async def _(k, project):
    await scheduled(project)
    assert await k.cook(0) == [{"name": "nightly", "paused": True}]
    assert await project.sql("select processor.next_schedule_at()") is None
    assert await k.cook(1) == [{"name": "nightly", "paused": False}]
    assert await project.sql("select processor.next_schedule_at()") is not None


@recipe("Run a schedule now")
async def _(k, project):
    await scheduled(project)
    [row] = await k.cook()
    job = await project.job({"id": str(row["id"])})
    assert (job["kind"], job["status"], job["tags"]) == ("report", "pending", ["schedule:nightly"])


@recipe("Run it once at another time")
async def _(k, project):
    await scheduled(project)
    await k.cook()
    left = await project.sql("select processor.next_schedule_at() - processor.now()")
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)


@recipe("Remove a schedule")
async def _(k, project):
    await scheduled(project)
    await k.cook()
    assert await project.sql("select processor.next_schedule_at()") is None


@recipe("Tell somebody of what becomes of jobs")
async def _(k, project):
    [row] = await k.cook()
    assert row["status"] == "pending"
    endpoint = await project.sql("select to_jsonb(e) from public.webhook_endpoints e")
    assert (endpoint["name"], endpoint["events"]) == ("crm", ["job.completed", "job.failed"])


async def told(project):
    """Have an endpoint that was told of a job, by a delivery that was given up."""
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    await project.cancel(project.waiting)
    worker = await project.worker()
    [delivery] = await worker.claim(queues=["webhooks"])
    await worker.finish(delivery, "fail", error_code="UPSTREAM_UNAVAILABLE", error_message="answered 500")
    return delivery


@recipe("Do webhooks arrive?")
async def _(k, project):
    await told(project)
    [row] = await k.cook()
    assert (row["name"], row["state"], row["waiting"], row["given_up_last_day"]) == ("crm", "new", 0, 1)


@recipe("What was delivered, what was given up?")
async def _(k, project):
    delivery = await told(project)
    [row] = await k.cook()
    assert (str(row["job_id"]), row["event"]) == (delivery["id"], "job.cancelled")
    assert str(row["subject_id"]) == project.waiting["id"]


@recipe("Deliver once more")
async def _(k, project):
    delivery = await told(project)
    [row] = await k.cook(delivery_id=delivery["id"])
    assert (row["status"], str(row["retry_of"])) == ("pending", delivery["id"])
    [row] = await k.cook(1)
    assert (row["retried"], row["problems"]) == (0, []), "it is on its way"


@recipe("Change a webhook")
async def _(k, project):
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    await k.cook()
    await project.cancel(project.waiting)
    assert await project.sql("select count(*) from public.jobs where queue = 'webhooks'") == 0


@recipe("Rotate the secret of a webhook")
async def _(k, project):
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    [row] = await k.cook()
    assert row["rotate_webhook"]["secret"].startswith("whsec_")
    assert await project.sql("select secrets from processor.webhook_health") == 2


@recipe("Remove a webhook")
async def _(k, project):
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    assert await k.cook() == [{"name": "crm"}]
    assert await project.sql("select count(*) from public.webhook_endpoints") == 0


@recipe("Give credits")
async def _(k, project):
    for _ in range(2):
        assert await k.cook(owner_id=BOB) == [{"available": 180}]


@recipe("Give credits for a time")
async def _(k, project):
    assert await k.cook(owner_id=BOB) == [{"available": 130}]
    [lot] = await project.rows(
        "select amount, priority, expires_at from public.credit_lots where priority > 0"
    )
    assert (lot["amount"], lot["priority"]) == (50, 10)
    assert timedelta(days=29) < lot["expires_at"] - await project.now() < timedelta(days=31)


@recipe("Who has and spends what?")
async def _(k, project):
    first, second = await k.cook(0)
    assert (first["owner_id"], first["spent"], second["owner_id"], second["held"]) == (ALICE, 10, BOB, 20)
    assert await k.cook(1) == [{"owner_id": ALICE, "spent": 10, "jobs": 1}]


@recipe("What happened to this owner's credits?")
async def _(k, project):
    rows = await k.cook(owner_id=ALICE)
    assert [(row["kind"], row["balance"]) for row in rows] == [
        ("capture", 90), ("reserve", 90), ("release", 100), ("reserve", 90), ("grant", 100),
    ]  # fmt: skip


@recipe("What is left of what was granted, and until when?")
async def _(k, project):
    await project.grant(BOB, 5, reason="trial", expires_at=await project.now() + timedelta(days=1))
    rows = await k.cook(owner_id=BOB)
    assert [(row["reason"], row["remaining"]) for row in rows] == [("trial", 5), ("welcome", 80)]


@recipe("Refund a job")
async def _(k, project):
    job = await project.sql("select id from public.jobs where status = 'completed'")
    for _ in range(2):
        assert await k.cook(job_id=job) == [{"amount": 10, "reason": "bad quality"}]
    assert await project.balance(ALICE) == (100, 0, 0)


@recipe("Take out what has expired")
async def _(k, project):
    await project.grant(BOB, 5, expires_at=await project.now() + timedelta(days=1))
    assert await k.cook() == [{"expire_credits": 0}]
    await project.later(days=2)
    assert await k.cook() == [{"expire_credits": 1}]
    assert await project.balance(BOB) == (80, 20, 0)


@recipe("Undo a wrong grant")
async def _(k, project):
    entry = await project.sql(
        "select id from public.credit_entries where owner_id = $1 and kind = 'grant'", BOB
    )
    [row] = await k.cook(entry_id=entry)
    assert (row["taken"], row["missing"]) == (80, 20)
    assert await project.balance(BOB) == (0, 20, 0)
    await project.cancel(project.waiting)
    [row] = await k.cook(entry_id=entry)
    assert (row["taken"], row["missing"]) == (10, 10)


@recipe("Check the books")
async def _(k, project):
    assert await k.cook() == []
    async with project.connection.transaction():
        await project.sql("update public.credit_accounts set held = held + 1, available = available - 1")
        assert await k.cook()
        await project.sql("update public.credit_accounts set held = held - 1, available = available + 1")


async def signed_up(project):
    await project.sql("insert into auth.users (id, email) values ($1, 'alice@example.com')", ALICE)
    await project.sql("insert into auth.sessions (user_id) values ($1)", ALICE)


async def is_operator(project):
    """Tell what a token that Auth issues now would make of Alice."""
    metadata = await project.sql("select raw_app_meta_data from auth.users where id = $1", ALICE)
    async with project.acting(ALICE, api=True):
        claims = {"role": "authenticated", "sub": str(ALICE), "app_metadata": metadata}
        await project.sql("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
        return len(await project.rows("select * from public.job_queues")) > 0


@recipe("Make somebody an operator")
async def _(k, project):
    await signed_up(project)
    assert not await is_operator(project)
    assert await k.cook(email="alice@example.com") == [{"id": ALICE, "email": "alice@example.com"}]
    assert await is_operator(project)


@recipe("Make somebody an operator no more")
async def _(k, project):
    await signed_up(project)
    await project.sql("""update auth.users set raw_app_meta_data = '{"is_operator": true, "x": 1}'""")
    await k.cook(email="alice@example.com")
    assert not await is_operator(project)
    assert await project.sql("select raw_app_meta_data from auth.users") == {"x": 1}
    assert await project.rows("select * from auth.sessions") == []


@recipe("Who is one?")
async def _(k, project):
    await signed_up(project)
    assert await k.cook() == []
    await project.sql("""update auth.users set raw_app_meta_data = '{"is_operator": true}'""")
    assert [row["id"] for row in await k.cook()] == [ALICE]


@recipe("How long are finished jobs kept?")
async def _(k, project):
    await k.cook()
    [row] = await project.rows("select retain_for, retain_last from public.job_queues")
    assert row == {"retain_for": timedelta(days=30), "retain_last": 1000}


@recipe("Prune")
async def _(k, project):
    assert await k.cook() == [{"prune_jobs": 0}]
    await project.queue("default", retain_last=0, retain_for=timedelta(0))
    assert await k.cook() == [{"prune_jobs": 2}]
    assert {row["id"] for row in await project.rows("select id from public.jobs")} == {
        UUID(project.running["id"]),
        UUID(project.waiting["id"]),
    }


@recipe("Is the installation in order?")
async def _(k, project):
    assert await k.cook() == []
    await project.sql("alter table public.jobs disable row level security")
    assert len(await k.cook()) == 1
