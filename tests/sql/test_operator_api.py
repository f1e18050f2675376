"""The operator's page and the job panel over the API: who may, and what it tells and does."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.sql.harness import ALICE, BOB, NOON, OPERATOR, Worker, done, failed, fixture
from tests.sql.test_claim_plan import explained, nodes
from tests.sql.test_security import OPERATED, OPERATOR_FUNCTIONS

SUB = str(ALICE)
LIST_COLUMNS = {
    "id", "queue", "kind", "owner_id", "status", "priority", "progress", "progress_message", "items_total",
    "items_done", "items_failed", "attempt", "max_attempts", "run_at", "created_at", "started_at",
    "finished_at", "updated_at", "cancel_requested_at", "error_code", "error_message",
    "credits_held", "credits_captured",
    "credits_refunded", "retry_of", "parent_id", "tags",
}  # fmt: skip


@fixture
async def worker(project) -> Worker:
    await project.kind("echo")
    await project.kind("translate", credits_per_item=10)
    await project.queue("default", retry_delays=[timedelta(minutes=1)], jitter=0)
    await project.grant(ALICE, 1000)
    return await project.worker(name="web-1", transport="polling")


# who is an operator


@pytest.mark.parametrize(
    ("role", "claims", "operator"),
    [
        ("authenticated", {"sub": SUB, "app_metadata": {"is_operator": True}}, True),
        ("authenticated", {"sub": SUB, "is_operator": True}, True),
        ("service_role", {}, True),
        (None, {}, True),
        ("authenticated", {"sub": SUB}, False),
        ("authenticated", {"sub": SUB, "user_metadata": {"is_operator": True}}, False),
        ("authenticated", {"sub": SUB, "app_metadata": {"is_operator": "true"}}, False),
        ("authenticated", {"sub": SUB, "app_metadata": {"is_operator": False}}, False),
        ("authenticated", {"sub": SUB, "app_metadata": "is_operator"}, False),
        ("authenticated", {"sub": SUB, "app_metadata": [{"is_operator": True}]}, False),
        ("authenticated", {"sub": SUB, "is_operator": 1}, False),
        ("anon", {"is_operator": True}, False),
        ("job_processor", {"is_operator": True}, False),
        ("custom_role", {"is_operator": True}, False),
    ],
)
async def test_who_is_an_operator(project, role, claims, operator):
    await project.connection.execute("""
        create role custom_role nologin;
        create function public.probe() returns boolean language sql security definer set search_path = ''
          as 'select processor.is_operator()';
        grant execute on function public.probe() to public;
    """)
    async with project.acting(role, api=role not in (None, "custom_role")):
        if role:
            await project.sql("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
        assert await project.sql("select public.probe()") is operator


@pytest.mark.parametrize(
    ("memberships", "operator"), [("authenticated", False), ("authenticated, service_role", True)]
)
async def test_a_person_who_logs_in_with_the_rights_of_users_is_none(project, memberships, operator):
    await project.connection.execute(f"""
        create role person login; grant {memberships} to person;
        create function public.probe() returns boolean language sql security definer set search_path = ''
          as 'select processor.is_operator()';
        grant execute on function public.probe() to public;
    """)
    async with project.connection.transaction():
        await project.connection.execute("set local session authorization person")
        await project.sql("select set_config('request.jwt.claims', '{\"is_operator\": true}', true)")
        assert await project.sql("select public.probe()") is operator
        await project.connection.execute("reset session authorization")


DELIVERY = UUID("de11e000-0000-4000-8000-000000000001")
CALLS = {
    "read_queues": {},
    "read_workers": {},
    "read_schedules": {},
    "read_errors": {"hours": 1},
    "read_error_rates": {"hours": 1},
    "read_throughput": {"hours": 1},
    "read_credit_days": {"days": 1},
    "pause_queue": {"name": "default"},
    "resume_queue": {"name": "default"},
    "set_queue_limits": {"name": "default", "limits": {"max_processing": 1}},
    "drain_worker": {"worker": "web-1"},
    "pause_schedule": {"name": "nightly"},
    "resume_schedule": {"name": "nightly"},
    "run_schedule": {"name": "nightly"},
    "add_webhook": {"name": "shop", "url": "https://shop.example/hook"},
    "remove_webhook": {"endpoint": "crm"},
    "enable_webhook": {"endpoint": "crm"},
    "disable_webhook": {"endpoint": "crm"},
    "rotate_webhook": {"endpoint": "crm"},
    "redeliver_webhook": {"job_id": DELIVERY},
    "test_webhook": {"endpoint": "crm"},
    "read_webhooks": {},
    "read_webhook_deliveries": {},
}


def test_every_function_of_operators_is_called_here():
    assert set(CALLS) == OPERATOR_FUNCTIONS


@pytest.mark.parametrize("function", CALLS)
async def test_who_is_no_operator_is_refused_and_changes_nothing(project, worker, function):
    await nightly(project)
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    await project.sql(
        "insert into public.jobs (id, queue, kind, max_attempts, payload) select $1, 'webhooks', "
        "'webhook.deliver', 8, jsonb_build_object('endpoint_id', id) from public.webhook_endpoints",
        DELIVERY,
    )
    tables = ("job_queues", "job_workers", "job_schedules", "webhook_endpoints")
    before = [await project.rows(f"select * from public.{table}") for table in tables]
    for by in (ALICE, "authenticated"):
        async with project.refused("JQ015", "only operators"):
            await project.read(function, by=by, **CALLS[function])
    for by in ("anon", "job_processor"):
        async with project.refused("42501"):
            await project.read(function, by=by, **CALLS[function])
    assert [await project.rows(f"select * from public.{table}") for table in tables] == before
    for by in (OPERATOR, "service_role", None):
        transaction = project.connection.transaction()
        await transaction.start()
        await project.read(function, by=by, **CALLS[function])
        await transaction.rollback()


# what is going on


async def test_queues_are_told_with_their_limits_and_their_health(project, worker):
    await project.queue("default", max_processing=7, rate_limit=60, max_pending_per_owner=9)
    await project.create("echo")
    await worker.claim()
    await project.create("echo")
    await project.create("echo", delay_seconds=60)
    await project.later(seconds=5)
    [row] = await project.read("read_queues", by=OPERATOR)
    assert row == {
        "queue": "default", "paused": False, "max_processing": 7, "rate_limit": 60, "rate_seconds": 60,
        "max_processing_per_owner": None, "max_pending_per_owner": 9, "max_attempts": 4,
        "timeout_seconds": 600, "live_workers": 1, "due": 1, "waiting": 0, "scheduled": 1, "processing": 1,
        "oldest_due_seconds": 5, "done_last_hour": 0, "failed_last_hour": 0, "run_seconds_p50": None,
        "run_seconds_p95": None,
    }  # fmt: skip


async def test_a_queue_without_a_row_is_told_if_it_has_jobs(project, worker):
    await project.create("echo")
    await project.sql("delete from public.job_kinds")
    await project.sql("delete from public.job_queues")
    [row] = await project.read("read_queues", by=OPERATOR)
    assert (row["queue"], row["paused"], row["max_attempts"], row["due"]) == ("default", None, None, 1)


async def test_workers_are_told_with_what_is_left_of_their_lease(project, worker):
    await project.later(seconds=30)
    [row] = await project.read("read_workers", by=OPERATOR)
    assert UUID(row.pop("id")) == worker.id
    assert row == {
        "name": "web-1", "host": "", "pid": None, "version": "", "alive": True, "draining": False,
        "feed": "polling", "transport": "polling", "slots": 100, "running": 0, "lease_left_seconds": 60,
        "heartbeat_age_seconds": 30,
        "started_at": NOON.isoformat(), "queues": ["default"], "kinds": ["echo", "translate"],
    }  # fmt: skip


async def fail(project, worker, code="BROKEN", message="it broke", outcome="fail", **columns):
    job = await project.create("echo", **columns)
    await worker.heartbeat()
    [claimed] = await worker.claim()
    await worker.finish(claimed, outcome, error_code=code, error_message=message)
    return job


async def test_errors_are_counted_by_kind_and_code_within_the_hours_asked_for(project, worker):
    await fail(project, worker, "OLD")
    await project.later(hours=5)
    first = await fail(project, worker, message="first")
    await project.later(minutes=1)
    last = await fail(project, worker, message="last")
    again = await fail(project, worker, "BUSY", outcome="retry")
    [broken, busy] = await project.read("read_errors", by=OPERATOR, hours=2)
    assert (broken["kind"], broken["code"]) == ("echo", "BROKEN")
    assert (broken["failures"], broken["jobs"], broken["ended"]) == (2, 2, 2)
    assert (broken["sample_message"], broken["sample_job_id"]) == ("last", last["id"])
    assert datetime.fromisoformat(broken["last_at"]) == await project.now()
    assert (busy["code"], busy["failures"], busy["ended"], busy["sample_job_id"]) == (
        "BUSY",
        1,
        0,
        again["id"],
    )
    assert {row["code"] for row in await project.read("read_errors", by=OPERATOR)} == {
        "BROKEN",
        "BUSY",
        "OLD",
    }
    assert first["id"] != last["id"]


async def test_error_rates_are_counted_in_five_minutes_or_in_hours(project, worker):
    await fail(project, worker)
    await project.later(minutes=4)
    await fail(project, worker)
    await project.later(minutes=2)
    await fail(project, worker, "OTHER")

    async def rates(hours):
        rows = await project.read("read_error_rates", by=OPERATOR, hours=hours)
        return [(row["starts_at"][11:16], row["code"], row["failures"]) for row in rows]

    assert await rates(3) == [("12:00", "BROKEN", 2), ("12:05", "OTHER", 1)]
    assert await rates(4) == [("12:00", "BROKEN", 2), ("12:00", "OTHER", 1)]
    await project.later(hours=3)
    assert await rates(2) == []


async def test_throughput_tells_what_ended_and_how_long_it_waited_and_ran(project, worker):
    async def job(outcome, *, wait, run, **report):
        await project.create(
            "translate" if "items" in report else "echo",
            **({"items": ["a", "b"]} if "items" in report else {}),
        )
        await project.later(seconds=wait)
        [claimed] = await worker.claim()
        await project.later(seconds=run)
        await worker.finish(claimed, outcome, **report)

    await job("done", wait=1, run=10)
    await job("done", wait=3, run=20)
    await job("fail", wait=2, run=12)
    await job("done", wait=2, run=12, items=[done("a"), failed("b")])
    # what is cancelled while it waits did not run, whatever it did before
    await fail(project, worker, outcome="retry")
    [waiting] = await project.rows("select id::text from public.jobs where status = 'pending'")
    await project.cancel(waiting)
    for hours in (3, 24):
        rows = await project.read("read_throughput", by=OPERATOR, hours=hours)
        assert [row.pop("starts_at") for row in rows] == (
            ["2026-11-22T12:00:00+00:00", "2026-11-22T12:01:00+00:00"]
            if hours == 3
            else ["2026-11-22T12:00:00+00:00"]
        )
        assert sum(row["completed"] for row in rows) == 2
        assert {name: sum(row[name] for row in rows) for name in ("partial", "failed", "cancelled")} == {
            "partial": 1, "failed": 1, "cancelled": 1,
        }  # fmt: skip
    [hour] = rows
    assert (hour["queue"], hour["pickup_seconds_p50"], hour["run_seconds_p50"]) == ("default", 2, 12)
    assert hour["pickup_seconds_p95"] == pytest.approx(2.85)
    assert hour["run_seconds_p95"] == pytest.approx(18.8)


async def test_of_very_many_jobs_the_times_are_those_of_some_and_the_counts_exact(project):
    await project.kind("echo")
    many = 33_000
    await project.sql(
        """
        insert into public.jobs
          (queue, kind, status, max_attempts, run_at, created_at, started_at, finished_at)
        select 'default', 'echo', case when n % 1000 = 0 then 'failed' else 'completed' end, 1, t, t,
          t + interval '1 s' * (n % 11), t + interval '1 s' * (n % 11 + n % 101)
        from generate_series(1, $2::int) n
        cross join lateral (select $1::timestamptz - interval '1 s' * (n % 3000 + 200) as t) x
        """,
        *(NOON, many),
    )
    async with explained(project) as plans:
        rows = await project.read("read_throughput", by=OPERATOR)
    assert sum(row["completed"] for row in rows) == many - many // 1000
    assert sum(row["failed"] for row in rows) == many // 1000
    assert [row["pickup_seconds_p50"] for row in rows] == [5] * len(rows)
    assert all(46 <= row["run_seconds_p50"] <= 54 for row in rows)
    sampled = [
        node["Actual Rows"]
        for plan in plans
        for node in nodes(plan["Plan"])
        if node.get("CTE Name") == "chosen"
    ]
    assert sampled
    assert all(29_000 < number < 31_000 for number in sampled)


@pytest.mark.parametrize("function", ["read_errors", "read_error_rates", "read_throughput"])
@pytest.mark.parametrize("hours", [0, 169, None])
async def test_hours_out_of_range_are_refused(project, function, hours):
    async with project.refused("JQ006", "hours"):
        await project.read(function, by=OPERATOR, hours=hours)


async def test_what_fails_is_found_without_reading_what_did_not(project, worker):
    await project.sql("""
        insert into public.jobs (queue, kind, status, max_attempts, created_at, started_at, finished_at)
        select 'default', 'echo', 'completed', 1, t, t, t
        from (select processor.now() - n * interval '1 s' as t from generate_series(1, 5000) n) x
    """)
    await fail(project, worker)
    async with explained(project) as plans:
        await project.read("read_errors", by=OPERATOR)
        await project.read("read_error_rates", by=OPERATOR)
    for node in (node for plan in plans for node in nodes(plan["Plan"])):
        if node.get("Relation Name") == "jobs" and node["Actual Rows"] and "errors" in json.dumps(node):
            assert node["Actual Rows"] * node["Actual Loops"] < 10, node
            assert node.get("Rows Removed by Filter", 0) < 10, node


async def test_credits_are_added_up_by_day(project, worker):
    await project.later(days=-1)
    day = (await project.now()).date()
    await project.grant(BOB, 100, expires_at=NOON - timedelta(hours=1))
    wrong = await project.grant(BOB, 7, reason="wrong", idempotency_key="wrong")
    assert wrong["available"] == 107
    await project.sql(
        "select processor.undo_grant(id, 'x') from public.credit_entries where idempotency_key = 'wrong'"
    )
    await project.create("translate", owner_id=BOB, items=["a", "b"])
    [claimed] = await worker.claim()
    await worker.finish(claimed, "fail", items=[done("a")])
    await project.sql("select processor.refund_credits($1, 3, 'sorry')", UUID(claimed["id"]))
    await project.at(NOON)
    await project.sql("select processor.expire_credits()")
    rows = await project.read("read_credit_days", by=OPERATOR, days=3)
    nothing = dict.fromkeys(("granted", "reserved", "captured", "refunded", "expired"), 0)
    assert rows == [
        nothing | {"day": str(day - timedelta(days=1))},
        nothing | {"day": str(day), "granted": 100, "reserved": 20, "captured": 10, "refunded": 13},
        nothing | {"day": str(NOON.date()), "granted": 1000, "expired": 90},
    ]
    assert len(await project.read("read_credit_days", by=OPERATOR)) == 30
    async with project.refused("JQ006", "days"):
        await project.read("read_credit_days", by=OPERATOR, days=367)


@pytest.mark.parametrize("entries", [0, 1, 100])
async def test_the_journal_is_read_from_the_first_entry_of_a_time_on(project, entries):
    await project.sql(
        """
        insert into public.credit_entries (owner_id, kind, amount, created_at)
        select $1, 'grant', 1, $2::timestamptz + n * interval '1 minute' from generate_series(1, $3::int) n
        where n % 7 <> 3
        """,
        *(ALICE, NOON, entries),
    )
    since = "select count(*) from public.credit_entries where id >= processor.first_entry_since($1)"
    for minutes in (-1, 0, 1, 3, 50, 98, 99.5, 100, 101):
        moment = NOON + timedelta(minutes=minutes)
        true = await project.sql("select count(*) from public.credit_entries where created_at >= $1", moment)
        assert await project.sql(since, moment) == true


async def nightly(project, **columns):
    columns = {"name": "nightly", "cron": "0 3 * * *", "kind": "echo"} | columns
    names = ", ".join(columns)
    values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    await project.sql(f"insert into public.job_schedules ({names}) values ({values})", *columns.values())


async def test_schedules_are_told_as_the_view_tells_them(project, worker):
    await nightly(project, next_run_at=NOON + timedelta(hours=15))
    [row] = await project.read("read_schedules", by=OPERATOR)
    assert row == {
        "schedule": "nightly", "state": "ok", "why": None, "kind": "echo", "queue": None, "cron": "0 3 * * *",
        "timezone": "UTC", "paused": False, "next_run_at": "2026-11-23T03:00:00+00:00",
        "next_in_seconds": 54000, "last_run_at": None, "last_job_id": None, "last_status": None,
        "catch_up": "last", "declared": False,
    }  # fmt: skip


# what operators do


async def test_an_operator_pauses_and_resumes_a_queue(project, worker):
    assert (await project.call("pause_queue", by=OPERATOR, name="default"))["paused"] is True
    await project.create("echo")
    assert await worker.claim() == []
    assert (await project.call("resume_queue", by=OPERATOR, name="default"))["paused"] is False
    assert len(await worker.claim()) == 1
    async with project.refused("JQ002", "nowhere"):
        await project.call("pause_queue", by=OPERATOR, name="nowhere")


async def test_only_the_limits_that_are_given_change(project, worker):
    await project.queue("default", max_processing=7, rate_limit=60, max_attempts=9)
    [before] = await project.rows("select * from public.job_queues")
    limits = {
        "rate_limit": 5, "rate_seconds": 10, "max_processing": None, "max_processing_per_owner": 2,
        "timeout_seconds": 90,
    }  # fmt: skip
    told = await project.call("set_queue_limits", by=OPERATOR, name="default", limits=limits)
    [after] = await project.rows("select * from public.job_queues")
    assert after == before | {
        "rate_limit": 5,
        "rate_period": timedelta(seconds=10),
        "max_processing": None,
        "max_processing_per_owner": 2,
        "timeout": timedelta(seconds=90),
    }
    assert told == await project.sql("select to_jsonb(q) from public.job_queues q")
    await project.call(
        "set_queue_limits",
        by=OPERATOR,
        name="default",
        limits={"max_attempts": 3, "max_pending_per_owner": 4},
    )
    [row] = await project.read("read_queues", by=OPERATOR)
    assert (row["max_attempts"], row["max_pending_per_owner"], row["rate_limit"]) == (3, 4, 5)


async def test_limits_that_are_so_already_wake_nobody(project, worker):
    await project.queue("default", max_processing=7)
    version = "select xmin::text from public.job_queues"
    before = await project.sql(version)
    async with project.connection.transaction():
        for limits in ({}, {"max_processing": 7, "timeout_seconds": 600}):
            await project.call("set_queue_limits", by=OPERATOR, name="default", limits=limits)
        assert await project.sql("select pg_stat_get_xact_tuples_updated('public.job_queues'::regclass)") >= 0
        assert await project.sql(version) == before


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (None, "limits must be an object"),
        ([], "limits must be an object"),
        ({"max_procesing": 5}, "max_procesing"),
        ({"name": "other"}, "unknown key"),
        ({"paused": True}, "unknown key"),
        ({"max_processing": 0}, "between 1 and"),
        ({"max_processing": -1}, "between 1 and"),
        ({"max_processing": 2**31}, "between 1 and"),
        ({"max_processing": 1e300}, "between 1 and"),
        ({"max_processing": "5"}, "whole number"),
        ({"max_processing": 1.5}, "whole number"),
        ({"max_processing": True}, "whole number"),
        ({"max_processing": {"a": "x" * 5000}}, "whole number"),
        ({"max_attempts": None}, "cannot be null"),
        ({"timeout_seconds": None}, "cannot be null"),
        ({"rate_seconds": None}, "cannot be null"),
        ({"max_attempts": 101}, "between 1 and 100"),
        ({"timeout_seconds": 604801}, "between 1 and 604800"),
        ({"rate_seconds": 86401}, "between 1 and 86400"),
        ({"rate_limit": 10**9 + 1}, "between 1 and"),
        ({"max_processing": 3, "rate_limit": "x"}, "rate_limit"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_wrong_limits_are_refused_and_change_nothing(project, worker, limits, words):
    before = await project.rows("select * from public.job_queues")
    async with project.refused("JQ006", words):
        await project.call("set_queue_limits", by=OPERATOR, name="default", limits=limits)
    assert await project.rows("select * from public.job_queues") == before


async def test_limits_of_no_queue_are_refused(project, worker):
    for name in ("nowhere", None):
        async with project.refused("JQ002", "unknown queue"):
            await project.call("set_queue_limits", by=OPERATOR, name=name, limits={"max_processing": 1})


async def test_an_operator_drains_a_worker(project, worker):
    [row] = await project.read("drain_worker", by=OPERATOR, worker="web-1")
    assert (row["id"], row["draining"]) == (str(worker.id), True)
    async with project.refused("JQ011", "web-2"):
        await project.read("drain_worker", by=OPERATOR, worker="web-2")


async def test_an_operator_pauses_resumes_and_runs_a_schedule_of_anybody(project, worker):
    await project.kind("internal", public=False)
    await nightly(project, kind="internal", owner_id=BOB, next_run_at=NOON + timedelta(hours=15))
    assert (await project.call("pause_schedule", by=OPERATOR, name="nightly"))["paused"] is True
    [row] = await project.read("read_schedules", by=OPERATOR)
    assert (row["state"], row["paused"]) == ("paused", True)
    assert (await project.call("resume_schedule", by=OPERATOR, name="nightly"))["paused"] is False
    job = await project.call("run_schedule", by=OPERATOR, name="nightly")
    assert (job["kind"], job["owner_id"], job["status"]) == ("internal", str(BOB), "pending")
    for function in ("pause_schedule", "resume_schedule", "run_schedule"):
        async with project.refused("JQ006", "unknown schedule"):
            await project.call(function, by=OPERATOR, name="daily")


# what operators see by Realtime


async def test_an_operator_reads_the_rows_of_his_page_and_a_user_none(project, worker):
    await nightly(project)
    await project.call("add_webhook", name="crm", url="https://crm.example/hook")
    for by, sees in ((OPERATOR, True), (ALICE, False), ("authenticated", False)):
        for table in OPERATED:
            async with project.acting(by, api=True):
                assert bool(await project.rows(f"select * from public.{table}")) is sees, table


async def test_to_be_an_operator_shows_no_jobs_of_others_in_the_table(project, worker):
    """They come with read_jobs(): a policy for operators would take the index from every user's list."""
    await project.create("echo", owner_id=ALICE)
    async with project.acting(OPERATOR, api=True):
        assert await project.rows("select * from public.jobs") == []


# jobs


async def some_jobs(project, number, owner=ALICE, **columns):
    values = {
        "queue": "default",
        "kind": "echo",
        "status": "completed",
        "max_attempts": 1,
        "owner_id": owner,
    } | columns
    names = ", ".join(values)
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    await project.sql(
        f"""
        insert into public.jobs (started_at, finished_at, {names})
        select processor.now(), processor.now(), {places} from generate_series(1, {number})
        """,
        *values.values(),
    )


async def listed(project, by, **filters):
    return [row["id"] for row in await project.read("read_jobs", by=by, **filters)]


async def test_a_user_lists_own_jobs_and_an_operator_everybodys(project, worker):
    mine = await project.create("echo", owner_id=ALICE)
    theirs = await project.create("echo", owner_id=BOB)
    nobodys = await project.create("echo")
    assert await listed(project, ALICE) == [mine["id"]]
    assert await listed(project, BOB) == [theirs["id"]]
    assert await listed(project, "authenticated") == []
    for by in (OPERATOR, "service_role", None):
        assert await listed(project, by) == [nobodys["id"], theirs["id"], mine["id"]]
    for by in ("anon", "job_processor"):
        async with project.refused("42501"):
            await listed(project, by)
    [row] = await project.read("read_jobs", by=ALICE)
    assert set(row) == LIST_COLUMNS
    assert row == {name: value for name, value in mine.items() if name in LIST_COLUMNS}


async def test_a_list_is_read_page_by_page_the_newest_first(project, worker):
    await some_jobs(project, 7)
    await some_jobs(project, 3, BOB)
    for by, total in ((ALICE, 7), (OPERATOR, 10)):
        seen, before = [], None
        while page := await listed(project, by, before=before, limit=3):
            seen += page
            before = UUID(page[-1])
            await some_jobs(project, 1)  # what comes meanwhile moves no page
        assert len(seen) >= total
        assert seen == sorted(seen, reverse=True)
        assert len(set(seen)) == len(seen)


async def test_a_list_is_filtered_by_status_and_queue(project, worker):
    await project.queue("slow")
    ended = await fail(project, worker, owner_id=ALICE)
    slow = await project.create("echo", owner_id=ALICE, queue="slow")
    other = await project.create("echo", owner_id=BOB, queue="slow")
    assert await listed(project, ALICE, statuses=["failed", "partial"]) == [ended["id"]]
    assert await listed(project, ALICE, queue="slow") == [slow["id"]]
    assert await listed(project, OPERATOR, queue="slow", statuses=["pending"]) == [other["id"], slow["id"]]
    assert await listed(project, ALICE, queue="slow", statuses=["failed"]) == []
    assert await listed(project, ALICE, statuses=[]) == []
    async with project.refused("JQ006", "finished", "pending, processing"):
        await listed(project, ALICE, statuses=["finished"])


@pytest.mark.parametrize(
    ("column", "value", "search"),
    [
        ("kind", "Mail.send", "mail"),
        ("tags", ["a", "Customer:42"], "customer:4"),
        ("error_code", "UPSTREAM_TIMEOUT", "m_time"),
        ("error_message", "100 % Überlast", "100 % über"),
        ("progress_message", r"C:\temp", r"c:\t"),
    ],
)
async def test_a_search_finds_words_whatever_their_case(project, worker, column, value, search):
    await some_jobs(project, 2)
    await some_jobs(project, 1, **{column: value})
    await some_jobs(project, 1, BOB, **{column: value})
    [found] = await project.read("read_jobs", by=ALICE, search=search)
    assert (found[column], found["owner_id"]) == (value, str(ALICE))
    assert len(await listed(project, OPERATOR, search=search)) == 2
    assert await listed(project, ALICE, search=search, queue="nowhere") == []
    assert await listed(project, ALICE, search=search, before=UUID(found["id"])) == []


@pytest.mark.parametrize("search", ["%", "_", "\\", "e%o", "e__o", "%%"])
async def test_a_search_has_no_wildcards(project, worker, search):
    await some_jobs(project, 2)
    assert await listed(project, ALICE, search=search) == []


async def test_a_search_finds_a_job_by_how_its_id_begins(project, worker):
    mine = await project.create("echo", owner_id=ALICE)
    theirs = await project.create("echo", owner_id=BOB)
    for length in (36, 30, 13):
        found = await listed(project, ALICE, search=mine["id"][:length].upper())
        assert found == [mine["id"]]
    assert await listed(project, ALICE, search=mine["id"].replace("-", "")) == [mine["id"]]
    assert await listed(project, ALICE, search=theirs["id"]) == []
    assert await listed(project, OPERATOR, search=theirs["id"]) == [theirs["id"]]
    assert await listed(project, ALICE, search=mine["id"], statuses=["failed"]) == []
    assert await listed(project, ALICE, search="--------") == []
    assert len(await listed(project, OPERATOR, search=mine["id"][:8])) == 2


async def test_a_job_that_a_search_finds_twice_is_listed_once(project, worker):
    mine = await project.create("echo", owner_id=ALICE, tags=["x"])
    await project.sql("update public.jobs set tags = array[id::text]")
    assert await listed(project, ALICE, search=mine["id"]) == [mine["id"]]


@pytest.mark.parametrize("limit", [0, 501, None])
async def test_a_page_out_of_bounds_is_refused(project, worker, limit):
    async with project.refused("JQ006", "limit"):
        await listed(project, ALICE, limit=limit)
    async with project.refused("JQ006", "search"):
        await listed(project, ALICE, search="x" * 201)


async def test_a_page_costs_what_it_shows(project, worker):
    await some_jobs(project, 5000)
    await some_jobs(project, 2000, BOB)
    await project.connection.execute("analyze public.jobs")
    deep = await project.sql(
        "select id from public.jobs where owner_id = $1 order by id desc offset 1000 limit 1", ALICE
    )
    for filters in ({}, {"queue": "default"}, {"statuses": ["completed"]}, {"search": "ECH"}):
        async with explained(project) as plans:
            for by in (ALICE, OPERATOR):
                assert len(await listed(project, by, before=deep, **filters)) == 50
        read = [node for plan in plans for node in nodes(plan["Plan"]) if node.get("Relation Name") == "jobs"]
        assert len(read) >= 2
        for node in read:
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 60, (filters, node)


async def test_a_users_own_list_keeps_its_index(project, worker):
    await some_jobs(project, 2000, BOB)
    # the planner is not told who asks: how many jobs an owner has on average decides
    await project.sql("update public.jobs set owner_id = md5((random() * 300)::int::text)::uuid")
    await some_jobs(project, 100)
    await some_jobs(project, 100, OPERATOR)
    await project.connection.execute("analyze public.jobs")
    for by in (ALICE, OPERATOR):
        async with project.acting(by, api=True):
            rows = await project.rows("explain select * from public.jobs order by id desc limit 50")
        plan = "\n".join(row["QUERY PLAN"] for row in rows)
        assert "jobs_owner_idx" in plan, plan
        assert "is_operator" not in plan


async def test_a_job_is_told_with_all_that_belongs_to_it(project, worker):
    job = await project.create("translate", owner_id=ALICE, items=["de", "fr"], payload={"x": 1})
    [claimed] = await worker.claim()
    for number in range(205):
        await worker.log(claimed, f"line {number}")
    await worker.finish(claimed, "done", items=[done("de", {"text": "Hallo"}), failed("fr")], result={"r": 2})
    for by in (ALICE, OPERATOR, "service_role", None):
        told = await project.call("read_job", by=by, job_id=job["id"])
    row = await project.job(job)
    assert told["job"] == {name: row[name] for name in row if name not in {"claim_id", "input_digest"}}
    assert (told["job"]["payload"], told["job"]["result"]) == ({"x": 1}, {"r": 2})
    de, fr = told["items"]
    assert (de["key"], de["status"], de["result"], de["left_out"]) == (
        "de",
        "completed",
        {"text": "Hallo"},
        False,
    )
    assert (fr["key"], fr["error_code"], fr["payload"]) == ("fr", "REJECTED", {})
    assert set(de) == {
        "key", "position", "status", "payload", "result", "progress", "attempts", "credits", "error_code",
        "error_message", "error_retryable", "updated_at", "left_out",
    }  # fmt: skip
    assert [line["message"] for line in told["logs"]] == [f"line {number}" for number in range(5, 205)]
    assert [(e["kind"], e["amount"]) for e in told["entries"]] == [
        ("reserve", 20),
        ("capture", 10),
        ("release", 10),
    ]
    assert told["price"] == {"units": 2, "unit_price": 10, "per_item": True}


async def test_a_free_job_without_anything_is_told_too(project, worker):
    job = await project.create("echo", by=ALICE)
    told = await project.call("read_job", by=ALICE, job_id=job["id"])
    assert (told["items"], told["logs"], told["entries"], told["price"]) == ([], [], [], None)


async def test_a_job_of_another_is_not_told(project, worker):
    job = await project.create("echo", by=ALICE)
    for by in (BOB, "authenticated"):
        assert await project.call("read_job", by=by, job_id=job["id"]) is None
    assert await project.call("read_job", by=OPERATOR, job_id=BOB) is None


async def test_large_results_of_items_are_left_out(project, worker):
    job = await project.create("translate", owner_id=ALICE, items=["a", "b", "c"])
    [claimed] = await worker.claim()
    noise = await project.sql("select string_agg(md5(n::text), '') from generate_series(1, 20000) n")
    await worker.finish(claimed, "done", items=[done(key, noise) for key in ("a", "b", "c")])
    told = await project.call("read_job", by=ALICE, job_id=job["id"])
    assert [(item["key"], item["left_out"], "result" in item) for item in told["items"]] == [
        ("a", False, True), ("b", True, False), ("c", True, False),
    ]  # fmt: skip


# what forms need


async def test_a_user_reads_schema_description_and_price_of_public_kinds(project):
    schema = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 10}}}
    declared = {
        "kind": "shout", "queue": "default", "public": True, "credits_per_item": 3, "max_items": 5,
        "payload_schema": schema, "description": "Shouts",
    }  # fmt: skip
    await project.worker(queues=["default"], kinds=[declared, declared | {"kind": "secret", "public": False}])
    columns = "kind, queue, payload_schema, description, credits_per_job, credits_per_item, max_items"
    async with project.acting(ALICE, api=True):
        [row] = await project.rows(f"select {columns} from public.job_kinds")
    assert row == {
        "kind": "shout", "queue": "default", "payload_schema": schema, "description": "Shouts",
        "credits_per_job": 0, "credits_per_item": 3, "max_items": 5,
    }  # fmt: skip


async def test_days_and_hours_are_those_of_utc_wherever_the_session_is(project, worker):
    await fail(project, worker)
    await project.connection.execute("set local time zone 'Asia/Kathmandu'")
    [row] = await project.read("read_throughput", by=OPERATOR)
    assert datetime.fromisoformat(row["starts_at"]).astimezone(UTC) == NOON
    [row] = await project.read("read_credit_days", by=OPERATOR, days=1)
    assert (row["day"], row["granted"]) == ("2026-11-22", 1000)
