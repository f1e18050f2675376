"""Schedules: one job per tick, whoever asks and however often; what is missed, paused, changed, broken."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from processor.answers import SchedulesAnswer
from processor.schedules import plan
from tests.sql.harness import ALICE, NOON, Project, fixture, until_waiting


async def schedule(project: Project, name: str = "nightly", cron: str = "0 3 * * *", **columns):
    """Make or change a schedule, as an operator would."""
    columns = {"name": name, "kind": "echo", "cron": cron} | columns
    await project._upsert("job_schedules", "name", columns)


async def change(project: Project, name: str = "nightly", **columns):
    sets = ", ".join(f"{column} = ${number}" for number, column in enumerate(columns, 2))
    await project.sql(f"update public.job_schedules set {sets} where name = $1", name, *columns.values())


async def ask(worker, *ticks, project=None, by=None):
    """Call once, as the daemon does; the answer is the one it reads."""
    answer = await (project or worker.project).call(
        "run_due_schedules",
        by=by,
        worker_id=worker.id,
        ticks=[tick.model_dump(mode="json") for tick in ticks],
    )
    return SchedulesAnswer.model_validate(answer)


async def run(worker, *, project=None) -> list[str]:
    """Do what the daemon does when it wakes; return the ids of the jobs made."""
    answer = await ask(worker, project=project)
    created = []
    while ticks := plan(answer):
        answer = await ask(worker, *ticks, project=project)
        created += answer.created
        if not answer.moved:
            break
    return [str(job) for job in created]


async def row(project: Project, name: str = "nightly"):
    [found] = await project.rows("select * from public.job_schedules where name = $1", name)
    return found


async def made(project: Project) -> list[str]:
    """Return for which ticks there are jobs."""
    rows = await project.rows("select tags from public.jobs")
    return sorted(tag.removeprefix("tick:") for r in rows for tag in r["tags"] if tag.startswith("tick:"))


async def health(project: Project, name: str = "nightly"):
    [found] = await project.rows("select * from processor.schedule_health where schedule = $1", name)
    return found


@fixture
async def worker(project):
    """Give a worker in a project with a kind: it is noon."""
    await project.kind("echo")
    return await project.worker()


def at(hour: int, minute: int = 0, *, day: int = 22) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


# one job per tick


async def test_a_new_schedule_is_computed_and_makes_a_job_at_its_time_and_no_sooner(project, worker):
    await schedule(project, payload={"a": 1}, priority=7)
    assert await run(worker) == []
    assert (await row(project))["next_run_at"] == at(3, day=23)
    await project.at(at(2, 59, day=23))
    assert await run(worker) == []
    await project.at(at(3, day=23))
    [job_id] = await run(worker)
    job = await project.job({"id": job_id})
    assert (job["kind"], job["payload"], job["priority"], job["queue"]) == ("echo", {"a": 1}, 7, "default")
    assert job["idempotency_key"] == "schedule:nightly:2026-11-23T03:00:00Z"
    assert job["tags"] == ["schedule:nightly", "tick:2026-11-23T03:00:00Z"]
    found = await row(project)
    assert found["next_run_at"] == at(3, day=24)
    assert (str(found["last_job_id"]), found["last_run_at"]) == (job_id, at(3, day=23))
    assert await run(worker) == []


async def test_items_owner_and_queue_are_those_of_the_schedule_and_the_owner_pays(project, worker):
    await project.kind("translate", credits_per_item=10)
    await project.queue("slow")
    await project.grant(ALICE, 100)
    await schedule(project, kind="translate", items=["de", "fr"], owner_id=ALICE, queue="slow")
    await run(worker)
    await project.at(at(3, day=23))
    [job_id] = await run(worker)
    job = await project.job({"id": job_id})
    assert (job["items_total"], job["owner_id"], job["queue"]) == (2, str(ALICE), "slow")
    assert await project.balance(ALICE) == (80, 20, 0)
    assert await project.faults() == []


async def test_the_same_ticks_again_make_nothing(project, worker):
    await schedule(project)
    await run(worker)
    await project.at(at(3, day=23))
    ticks = plan(await ask(worker))
    first, second = await ask(worker, *ticks), await ask(worker, *ticks)
    assert (len(first.created), first.moved) == (1, 1)
    assert (second.created, second.moved, second.due) == ((), 0, ())


async def test_ticks_of_schedules_that_are_gone_or_do_not_fit_are_left_alone(project, worker):
    await schedule(project)
    await run(worker)
    await project.at(at(3, day=23))
    [tick] = plan(await ask(worker))
    for wrong in (
        tick.model_copy(update={"name": "gone"}),
        tick.model_copy(update={"tick": None}),
        tick.model_copy(update={"tick": at(2, day=23)}),
        tick.model_copy(update={"next": at(3, day=23)}),  # no way forward
        tick.model_copy(update={"next": None}),
    ):
        assert (await ask(worker, wrong)).moved == 0
    assert (await row(project))["next_run_at"] == at(3, day=23)
    assert len((await ask(worker, tick)).created) == 1


async def test_a_tick_that_has_not_come_makes_no_job_whoever_asks_for_it(project, worker):
    await schedule(project)
    await run(worker)
    await project.at(at(3, day=23))
    ticks = plan(await ask(worker))
    await project.at(at(2, day=23))
    assert (await ask(worker, *ticks)).moved == 0
    assert await made(project) == []


async def test_a_worker_that_is_unknown_runs_nothing(project, worker):
    await worker.deregister()
    async with project.refused("JQ011", "unknown worker"):
        await ask(worker)


async def test_what_is_no_list_of_ticks_or_too_long_is_refused(project, worker):
    for ticks, words in (({}, "must be an array"), (None, "must be an array"), ([{}] * 1001, "1001")):
        async with project.refused("JQ006", words):
            await project.call("run_due_schedules", worker_id=worker.id, ticks=ticks)
    assert (await project.call("run_due_schedules", worker_id=worker.id))["due"] == []
    assert (await project.call("run_due_schedules", worker_id=worker.id, ticks=[1, {}, None]))["moved"] == 0


async def test_the_answer_and_the_heartbeat_say_when_to_come_back(project, worker):
    assert (await ask(worker)).next_at is None
    assert (await worker.heartbeat())["next_schedule_at"] is None
    await schedule(project)
    await schedule(project, "hourly", "0 * * * *")
    assert datetime.fromisoformat((await worker.heartbeat())["next_schedule_at"]) == NOON
    await run(worker)
    assert (await ask(worker)).next_at == at(13)
    assert datetime.fromisoformat((await worker.heartbeat())["next_schedule_at"]) == at(13)
    await change(project, "hourly", paused=True)
    assert (await ask(worker)).next_at == at(3, day=23)


# what was missed


@pytest.mark.parametrize(
    ("catch_up", "ticks"),
    [
        ("none", []),
        ("last", ["2026-11-22T16:00:00Z"]),
        ("all", [f"2026-11-22T{hour}:00:00Z" for hour in (13, 14, 15, 16)]),
    ],
)
async def test_after_an_outage_catch_up_decides(project, worker, catch_up, ticks):
    await schedule(project, cron="0 * * * *", catch_up=catch_up)
    await run(worker)
    await project.at(at(16, 30))
    await run(worker)
    assert await made(project) == ticks
    assert (await row(project))["next_run_at"] == at(17)
    await project.at(at(17))
    await run(worker)
    assert await made(project) == [*ticks, "2026-11-22T17:00:00Z"]


async def test_without_catching_up_what_is_less_than_a_minute_late_still_runs(project, worker):
    await schedule(project, cron="* * * * *", catch_up="none")
    await run(worker)
    await project.at(at(12, 30) + timedelta(seconds=45))
    await run(worker)
    assert await made(project) == ["2026-11-22T12:30:00Z"]


async def test_a_minute_late_is_not_too_late_and_a_second_more_is(project, worker):
    for late, jobs in ((60, 1), (61, 0)):
        await schedule(project, f"s{late}", "0 13 * * *", catch_up="none")
        await project.at(NOON)
        await run(worker)
        await project.at(at(13) + timedelta(seconds=late))
        assert len(await run(worker)) == jobs


async def test_catching_up_a_week_of_minutes_comes_in_bounded_calls(project, worker):
    await schedule(project, cron="* * * * *", catch_up="all")
    await run(worker)
    await project.at(NOON + timedelta(minutes=250))
    sizes = []
    answer = await ask(worker)
    while ticks := plan(answer):
        answer = await ask(worker, *ticks)
        sizes.append(len(answer.created))
    assert sizes == [100, 100, 50]
    assert len(set(await made(project))) == 250


async def test_the_last_of_more_ticks_than_a_call_carries_runs_once(project, worker):
    await schedule(project, cron="* * * * *")
    await run(worker)
    await project.at(NOON + timedelta(days=1))
    await run(worker)
    assert await made(project) == ["2026-11-23T12:00:00Z"]


async def test_more_jobs_than_a_call_may_make_are_made_by_the_next(project, worker):
    for number in range(120):
        await schedule(project, f"s{number}", "0 13 * * *")
    await run(worker)
    await project.at(at(13))
    assert len(await run(worker)) == 120


# clocks that change, seen through the whole path


@pytest.mark.parametrize(
    ("begin", "ticks"),
    [
        (datetime(2026, 3, 28, 12, tzinfo=UTC), ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        (datetime(2026, 10, 24, 12, tzinfo=UTC), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
    ],
    ids=["spring", "autumn"],
)
async def test_on_the_day_the_clock_changes_a_nightly_job_runs_once(project, worker, begin, ticks):
    await project.at(begin)
    await schedule(project, cron="30 2 * * *", timezone="Europe/Berlin")
    await run(worker)
    for _ in range(48 * 2):
        await project.later(minutes=30)
        await run(worker)
    assert await made(project) == ticks


# changes take effect


async def test_a_changed_cron_or_time_zone_is_computed_again_from_now_on(project, worker):
    await schedule(project)
    await run(worker)
    await change(project, cron="0 18 * * *")
    assert (await row(project))["next_run_at"] is None
    await run(worker)
    assert (await row(project))["next_run_at"] == at(18)
    await change(project, timezone="Asia/Tokyo")
    await run(worker)
    assert (await row(project))["next_run_at"] == at(9, day=23)


async def test_a_job_that_is_due_is_made_by_the_plan_that_is_in_force_then(project, worker):
    await schedule(project)
    await run(worker)
    await project.at(at(3, day=23))
    ticks = plan(await ask(worker))
    await change(project, cron="0 18 * * *")
    assert (await ask(worker, *ticks)).moved == 0
    assert await made(project) == []


async def test_an_operator_may_run_it_once_at_another_time(project, worker):
    await schedule(project)
    await run(worker)
    await change(project, next_run_at=at(15))
    await project.at(at(15))
    await run(worker)
    assert await made(project) == ["2026-11-22T15:00:00Z"]
    assert (await row(project))["next_run_at"] == at(3, day=23)


async def test_a_paused_schedule_makes_no_jobs_and_resumed_goes_on_with_the_next_time(project, worker):
    await schedule(project, cron="0 * * * *", catch_up="all")
    await run(worker)
    assert (await project.call("processor.pause_schedule", name="nightly"))["paused"] is True
    await project.at(at(16, 30))
    assert await run(worker) == []
    assert (await health(project))["state"] == "paused"
    assert (await project.call("processor.resume_schedule", name="nightly"))["next_run_at"] is None
    assert await run(worker) == []
    await project.at(at(17))
    await run(worker)
    assert await made(project) == ["2026-11-22T17:00:00Z"]


async def test_a_pause_that_comes_between_is_obeyed(project, worker):
    await schedule(project)
    await run(worker)
    await project.at(at(3, day=23))
    ticks = plan(await ask(worker))
    await change(project, paused=True)
    answer = await ask(worker, *ticks)
    assert (answer.moved, answer.due, answer.next_at) == (0, (), None)


async def test_resuming_what_is_not_paused_leaves_its_next_time_alone(project, worker):
    await schedule(project)
    await run(worker)
    assert (await project.call("processor.resume_schedule", name="nightly"))["next_run_at"] is not None


async def test_a_schedule_runs_now_beside_its_plan_as_often_as_asked_even_paused(project, worker):
    await schedule(project, paused=True)
    jobs = [await project.call("processor.run_schedule", name="nightly") for _ in range(2)]
    assert jobs[0]["id"] != jobs[1]["id"]
    assert jobs[0]["tags"] == ["schedule:nightly"]
    found = await row(project)
    assert (str(found["last_job_id"]), found["next_run_at"]) == (jobs[1]["id"], None)


@pytest.mark.parametrize("function", ["pause_schedule", "resume_schedule", "run_schedule"])
async def test_a_schedule_that_does_not_exist_is_said_so(project, function):
    for name in ("nihgtly", None):
        async with project.refused("JQ006", "unknown schedule"):
            await project.call(f"processor.{function}", name=name)


# what cannot run


async def test_a_schedule_of_an_unknown_kind_says_so_and_stops_no_other(project, worker):
    await schedule(project, "bad", kind="nothing")
    await schedule(project, "good")
    await schedule(project, "zzz")
    await run(worker)
    await project.at(at(3, day=23))
    answer = await ask(worker, *plan(await ask(worker)))
    assert (len(answer.created), answer.moved) == (2, 3), "all in one call"
    assert list(answer.problems) == ["bad"]
    assert "unknown kind: nothing" in answer.problems["bad"]
    found = await health(project, "bad")
    assert (found["state"], found["next_run_at"]) == ("problem", at(3, day=24))
    assert "registered when a worker" in found["why"]
    # the kind appears: at the next time all is well
    await project.kind("nothing")
    await project.at(at(3, day=24))
    await run(worker)
    assert (await row(project, "bad"))["problem"] is None
    assert (await health(project, "bad"))["state"] == "ok"


async def test_bad_ones_among_good_ones_cost_them_a_few_calls_and_nothing_else(project, worker):
    for name in "abcdefgh":
        kind = "nothing" if name in "dfg" else "echo"
        await schedule(project, name, "0 * * * *", kind=kind, catch_up="all")
    await run(worker)
    await project.at(at(15))
    assert len(await run(worker)) == 5 * 3
    assert {
        str(row["next_run_at"].hour) for row in await project.rows("select * from public.job_schedules")
    } == {"16"}
    # the second time it is known whose fault it is
    await project.at(at(16))
    answer = await ask(worker, *plan(await ask(worker)))
    assert (len(answer.created), answer.moved, len(answer.problems)) == (5, 8, 3)


async def test_two_that_an_owner_cannot_pay_together_are_made_as_far_as_the_credits_go(project, worker):
    await project.kind("dear", credits_per_job=10)
    await project.grant(ALICE, 15)
    for name in "abc":
        await schedule(project, name, kind="dear", owner_id=ALICE)
    await run(worker)
    await project.at(at(3, day=23))
    assert len(await run(worker)) == 1
    rows = await project.rows("select problem from public.job_schedules order by name")
    assert [row["problem"] is None for row in rows] == [True, False, False]
    assert await project.balance(ALICE) == (5, 10, 0)
    assert await project.faults() == []


async def test_an_owner_without_credits_is_the_schedules_problem_and_costs_nobody_anything(project, worker):
    await project.kind("dear", credits_per_job=10)
    await schedule(project, kind="dear", owner_id=ALICE)
    await run(worker)
    await project.at(at(3, day=23))
    assert await run(worker) == []
    assert "insufficient credits" in (await row(project))["problem"]
    assert await project.faults() == []


async def test_a_cron_expression_that_nobody_can_read_is_a_problem_until_it_is_mended(project, worker):
    await schedule(project, cron="61 3 * * *")
    await schedule(project, "good")
    assert list((await ask(worker, *plan(await ask(worker)))).problems) == ["nightly"]
    assert "Bad minute" in (await row(project))["problem"]
    assert (await row(project, "good"))["next_run_at"] == at(3, day=23)
    answer = await ask(worker)
    assert (answer.due, answer.next_at) == ((), at(3, day=23)), "nobody tries again for ever"
    assert (await health(project))["state"] == "problem"
    await change(project, cron="1 3 * * *")
    await run(worker)
    found = await row(project)
    assert (found["problem"], found["next_run_at"]) == (None, at(3, 1, day=23))


async def test_a_worker_that_starts_tries_again_what_the_others_could_not_compute(project, worker):
    await schedule(project, cron="61 3 * * *")
    await run(worker)
    assert (await ask(worker)).due == ()
    await project.worker()
    assert [due.name for due in (await ask(worker)).due] == ["nightly"]


async def test_a_changed_payload_is_given_a_chance(project, worker):
    await project.kind("echo", max_items=1)
    await schedule(project, items=["a", "b"])
    await run(worker)
    await project.at(at(3, day=23))
    assert await run(worker) == []
    assert "too many items" in (await row(project))["problem"]
    await change(project, items=["a"])
    found = await row(project)
    assert (found["problem"], found["next_run_at"]) == (None, at(3, day=24))


@pytest.mark.parametrize(
    ("columns", "code", "word"),
    [
        ({"timezone": "Europe/Berlim"}, "JQ006", "no time zone Europe/Berlim"),
        ({"timezone": "CEST"}, "JQ006", "no time zone"),
        ({"timezone": "+3"}, "JQ006", "no time zone"),
        ({"cron": "0 3 * *"}, "JQ006", "not a cron expression"),
        ({"cron": "@daily"}, "JQ006", "not a cron expression"),
        ({"cron": "0 0 3 * * *"}, "JQ006", "not a cron expression"),
        ({"cron": "9" * 300 + " * * * *"}, "JQ006", "not a cron expression"),
        ({"name": "two words"}, "JQ006", "is not a name"),
        ({"name": "x" * 91}, "JQ006", "is not a name"),
        ({"catch_up": "some"}, "JQ006", "catch_up is some"),
        ({"payload": [1]}, "JQ003", "must be a JSON object"),
    ],
)
async def test_what_makes_no_sense_is_refused_at_once_with_words(project, worker, columns, code, word):
    async with project.refused(code, word), project.acting("service_role", api=True):
        await schedule(project, **columns)
    await schedule(project)
    if "name" not in columns:
        async with project.refused(code, word), project.acting("service_role", api=True):
            await change(project, **columns)


async def test_the_service_writes_schedules_and_a_worker_reads_them(project, worker):
    async with project.acting("service_role", api=True):
        await schedule(project)
        await project.sql("update public.job_schedules set paused = true")
    async with project.acting("job_processor", api=True):
        assert [r["name"] for r in await project.rows("select name from public.job_schedules")] == ["nightly"]
    async with project.acting("service_role", api=True):
        await project.sql("delete from public.job_schedules")


@pytest.mark.parametrize("role", ["job_processor", "service_role"])
async def test_a_worker_runs_schedules_with_either_role_whoever_owns_them(project, worker, role):
    await project.kind("internal", public=False)
    await schedule(project, kind="internal", owner_id=ALICE)
    await ask(worker, *plan(await ask(worker, by=role)), by=role)
    await project.at(at(3, day=23))
    answer = await ask(worker, *plan(await ask(worker, by=role)), by=role)
    assert (len(answer.created), answer.problems) == (1, {})


# what handlers declare


def declared(cron="0 3 * * *", **more):
    return {"name": "nightly", "cron": cron, "kind": "echo", "payload": {}, "items": None} | more


async def test_a_declared_schedule_is_made_and_follows_the_next_declaration(project, worker):
    await project.worker(schedules=[declared(timezone="Europe/Berlin", payload={"a": 1})])
    found = await row(project)
    assert (found["timezone"], found["payload"], found["catch_up"]) == ("Europe/Berlin", {"a": 1}, "last")
    assert (await health(project))["declared"] is True
    await project.worker(schedules=[declared("0 4 * * *", items=["x"], priority=3, catch_up="all")])
    found = await row(project)
    assert (found["cron"], found["timezone"], found["payload"], found["items"]) == (
        "0 4 * * *",
        "UTC",
        {},
        ["x"],
    )
    assert (found["priority"], found["catch_up"]) == (3, "all")


async def test_what_an_operator_changed_wins_over_declarations(project, worker):
    await project.worker(schedules=[declared()])
    await change(project, cron="0 5 * * *", payload={"operator": True}, paused=True)
    await project.worker(schedules=[declared("0 4 * * *", payload={"a": 1}, priority=3)])
    found = await row(project)
    assert (found["cron"], found["payload"], found["paused"]) == ("0 5 * * *", {"operator": True}, True)
    assert found["priority"] == 3
    # back to what is declared: it follows again
    await change(project, cron="0 4 * * *")
    await project.worker(schedules=[declared("0 6 * * *", payload={"a": 1}, priority=3)])
    assert (await row(project))["cron"] == "0 6 * * *"


async def test_the_same_declaration_again_changes_nothing(project, worker):
    await project.worker(schedules=[declared()])
    await run(worker)
    before = await row(project)
    version = await project.sql("select xmin::text || ctid::text from public.job_schedules")
    await project.worker(schedules=[declared()])
    assert await row(project) == before
    assert await project.sql("select xmin::text || ctid::text from public.job_schedules") == version


async def test_a_row_that_an_operator_made_keeps_what_it_says(project, worker):
    await schedule(project, cron="0 5 * * *", kind="other")
    await project.worker(schedules=[declared()])
    assert ((await row(project))["cron"], (await row(project))["kind"]) == ("0 5 * * *", "other")


async def test_nobodys_credits_can_be_declared_away(project, worker):
    await project.worker(schedules=[declared(owner_id=str(ALICE), paused=True)])
    found = await row(project)
    assert (found["owner_id"], found["paused"]) == (None, False)


async def test_a_declaration_with_an_unknown_time_zone_is_refused_with_its_name(project, worker):
    async with project.refused("JQ006", "schedule nightly: there is no time zone Mars/Olympus"):
        await project.worker(schedules=[declared(timezone="Mars/Olympus")])


async def test_a_worker_without_schedules_registers_as_ever(project, worker):
    await project.worker(schedules=[])
    await project.worker(schedules=None)
    assert await project.sql("select count(*) from public.job_schedules") == 0


# the view


async def test_the_view_says_what_is_overdue_and_what_became_of_the_last_job(project, worker):
    await schedule(project, cron="0 * * * *")
    assert (await health(project))["state"] == "new"
    await run(worker)
    assert ((await health(project))["state"], (await health(project))["next_in"]) == (
        "ok",
        timedelta(hours=1),
    )
    await project.at(at(13, 2))
    assert (await health(project))["state"] == "overdue"
    await run(worker)
    found = await health(project)
    assert (found["state"], found["why"], found["last_status"]) == ("ok", None, "pending")


async def test_a_schedule_that_no_worker_ever_looked_at_is_overdue(project, worker):
    await schedule(project)
    await project.later(minutes=6)
    assert (await health(project))["state"] == "overdue"


# several at once


async def test_three_workers_at_the_same_moment_make_one_job_per_tick(database):
    first = await database.project()
    await first.kind("echo")
    worker = await first.worker()
    for number in range(5):
        await schedule(first, f"s{number}", "* * * * *", catch_up="all")
    projects = [first, await database.project(), await database.project()]
    for project in projects:
        await project.at(NOON)
    await run(worker)
    for minutes in range(1, 4):
        for project in projects:
            await project.at(NOON + timedelta(minutes=3 * minutes))
        await asyncio.gather(*(run(worker.through(project)) for project in projects))
    # whoever found rows in another's hands would look again: so does the last
    await run(worker)
    ticks = await made(first)
    assert len(ticks) == 5 * 9
    assert len({(r["idempotency_key"]) for r in await first.rows("select * from public.jobs")}) == 5 * 9


async def test_a_worker_waits_for_no_schedule_that_another_has_in_hand(database):
    first, second = await database.project(), await database.project()
    await first.kind("echo")
    worker = await first.worker()
    for name in ("a", "b"):
        await schedule(first, name, "0 13 * * *")
    for project in (first, second):
        await project.at(NOON)
    await run(worker)
    for project in (first, second):
        await project.at(at(13))
    ticks = plan(await ask(worker))
    async with first.connection.transaction():
        await first.sql("select 1 from public.job_schedules where name = 'a' for no key update")
        answer = await ask(worker, *ticks, project=second)
        assert (len(answer.created), answer.moved) == (1, 1)
        assert [due.name for due in answer.due] == ["a"]
    assert len(await run(worker)) == 1


async def test_accounts_are_locked_in_order_whatever_the_order_of_the_schedules(database):
    first, second = await database.project(), await database.project()
    await first.kind("dear", credits_per_job=1)
    worker = await first.worker()
    owners = sorted([ALICE, type(ALICE)(int=7)])
    for owner, name in zip(owners, ("b", "a"), strict=True):  # the names are in the other order
        await first.grant(owner, 10)
        await schedule(first, name, "0 13 * * *", kind="dear", owner_id=owner)
    for project in (first, second):
        await project.at(NOON)
    await run(worker)
    for project in (first, second):
        await project.at(at(13))
    ticks = plan(await ask(worker))
    async with first.connection.transaction():
        await first.sql(
            "select 1 from public.credit_accounts where owner_id = $1 for no key update", owners[0]
        )
        task = asyncio.create_task(ask(worker, *ticks, project=second))
        watcher = await database.project()
        await until_waiting(watcher, second)
        # if the run held the other account by now, this would be a deadlock
        await first.sql(
            "select 1 from public.credit_accounts where owner_id = $1 for no key update nowait", owners[1]
        )
    assert len((await task).created) == 2


async def test_trouble_that_passes_by_itself_is_no_schedules_problem(database):
    first, second = await database.project(), await database.project()
    await first.kind("dear", credits_per_job=1)
    await first.grant(ALICE, 10)
    worker = await first.worker()
    await schedule(first, cron="0 13 * * *", kind="dear", owner_id=ALICE)
    for project in (first, second):
        await project.at(NOON)
    await run(worker)
    for project in (first, second):
        await project.at(at(13))
    ticks = plan(await ask(worker))
    async with first.connection.transaction():
        await first.sql("lock table public.jobs in exclusive mode")
        await second.sql("set lock_timeout = '50ms'")
        with pytest.raises(Exception, match="lock timeout"):
            await ask(worker, *ticks, project=second)
    assert (await row(first))["problem"] is None
    assert len((await ask(worker, *ticks)).created) == 1


# housekeeping


async def test_one_worker_prunes_at_a_time_and_the_others_are_told_zero(database):
    first, second = await database.project(), await database.project()
    await first.kind("echo")
    await first.queue("default", retain_last=0, retain_for=timedelta(0))
    job = await first.create("echo")
    await first.cancel(job)
    async with first.connection.transaction():
        assert await first.sql("select public.prune_jobs()") == 1
        assert await second.sql("select public.prune_jobs()") == 0
    assert await first.sql("select count(*) from public.jobs") == 0
