"""Who may do what: every role, every table, every function."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOB, NOON, TABLES, done, fixture

LIVE = ("credit_accounts", "job_items", "job_logs", "job_queues", "job_workers", "jobs")
CLIENT_FUNCTIONS = {"create_job", "create_jobs", "cancel_job", "retry_job", "read_jobs", "read_job"}
OPERATED = {"job_queues", "job_schedules", "job_workers", "webhook_endpoints"}
"""Tables of which a user sees rows if he is an operator."""
OPERATOR_FUNCTIONS = {
    "read_queues",
    "read_workers",
    "read_schedules",
    "read_errors",
    "read_error_rates",
    "read_throughput",
    "read_credit_days",
    "pause_queue",
    "resume_queue",
    "set_queue_limits",
    "drain_worker",
    "pause_schedule",
    "resume_schedule",
    "run_schedule",
    "check_credits",
    "add_webhook",
    "remove_webhook",
    "enable_webhook",
    "disable_webhook",
    "rotate_webhook",
    "redeliver_webhook",
    "test_webhook",
    "read_webhooks",
    "read_webhook_deliveries",
}
"""Signed-in users may call them too, and are refused unless they are operators."""
WORKER_FUNCTIONS = {
    "register_worker",
    "heartbeat_worker",
    "claim_jobs",
    "report_progress",
    "append_job_logs",
    "save_checkpoints",
    "read_checkpoint",
    "finish_items",
    "finish_jobs",
    "release_jobs",
    "spawn_jobs",
    "deregister_worker",
    "prune_jobs",
    "rescue_jobs",
    "run_due_schedules",
    "expire_credits",
    "check_installation",
    "read_alerts",
    "take_alerts",
    "settle_alerts",
    "read_metrics",
    "begin_delivery",
    "end_delivery",
    "read_ended_jobs",
}
OURS = "('public', 'processor')"
OWNED = (
    "jobs",
    "job_items",
    "job_logs",
    "credit_accounts",
    "credit_lots",
    "credit_entries",
    "credit_statement",
    "credit_holds",
    "credit_captures",
)


@fixture
async def busy(project):
    """Give a project in which Alice and Bob each have a job that ran, with items, logs and credits."""
    await project.kind("translate", credits_per_item=10)
    await project.kind("internal", public=False)
    worker = await project.worker()
    for owner in (ALICE, BOB):
        await project.grant(owner, 100)
        await project.create("translate", owner_id=owner, items=["de", "fr"])
        [job] = await worker.claim()
        await worker.log(job, "hello")
        await worker.finish(job, "fail", items=[done("de")])
    return project


async def functions_of(project, role: str) -> set[str]:
    rows = await project.rows(
        f"""
        select p.proname, n.nspname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname in {OURS} and has_function_privilege($1, p.oid, 'execute')
          and has_schema_privilege($1, n.oid, 'usage')
        """,
        role,
    )
    return {row["proname"] for row in rows}


async def rights_of(project, role: str, *privileges: str) -> dict[str, set[str]]:
    rows = await project.rows(
        """
        select c.relname, privilege from pg_class c cross join unnest($2::text[]) privilege
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'm', 'p')
          and (has_table_privilege($1, c.oid, privilege)
            or (privilege in ('select', 'insert', 'update', 'references')
              and has_any_column_privilege($1, c.oid, privilege)))
        """,
        role,
        list(privileges),
    )
    return {
        privilege: {r["relname"] for r in rows if r["privilege"] == privilege} for privilege in privileges
    }


WRITES = ("insert", "update", "delete", "truncate", "references", "trigger")


async def test_anon_can_do_nothing(project):
    assert await functions_of(project, "anon") == set()
    assert await rights_of(project, "anon", "select", *WRITES) == {p: set() for p in ("select", *WRITES)}


@pytest.mark.parametrize("table", TABLES)
async def test_anon_reads_no_table(busy, table):
    async with busy.refused("42501", "permission denied"), busy.acting("anon", api=True):
        await busy.rows(f"select * from public.{table}")


async def test_a_user_executes_the_functions_of_clients_and_operators_and_nothing_else(project):
    assert await functions_of(project, "authenticated") == CLIENT_FUNCTIONS | OPERATOR_FUNCTIONS


async def test_a_user_writes_no_table(project):
    assert await rights_of(project, "authenticated", *WRITES) == {p: set() for p in WRITES}


async def test_a_user_reads_the_tables_meant_for_users(project):
    rights = await rights_of(project, "authenticated", "select")
    assert rights["select"] == {*OWNED, *OPERATED, "job_kinds"}


@pytest.mark.parametrize("table", OWNED)
async def test_a_user_sees_own_rows_only(busy, table):
    key = "owner_id" if table.startswith(("jobs", "credit_")) and table != "credit_captures" else "job_id"
    everything = await busy.rows(f"select {key} as key from public.{table}")
    seen = {}
    for owner in (ALICE, BOB):
        async with busy.acting(owner, api=True):
            seen[owner] = await busy.rows(f"select {key} as key from public.{table}")
        assert seen[owner], "the owner sees something"
        if key == "owner_id":
            assert {row["key"] for row in seen[owner]} == {owner}
        else:
            owners = [
                await busy.sql("select owner_id from public.jobs where id = $1", r["key"])
                for r in seen[owner]
            ]
            assert set(owners) == {owner}
    assert len(seen[ALICE]) + len(seen[BOB]) == len(everything)


async def test_a_token_without_a_user_sees_nothing(busy):
    async with busy.acting("authenticated", api=True):
        for table in OWNED:
            assert await busy.rows(f"select * from public.{table}") == []


async def test_a_user_sees_public_kinds_only(busy):
    async with busy.acting(ALICE, api=True):
        assert [r["kind"] for r in await busy.rows("select kind from public.job_kinds")] == ["translate"]


async def test_a_job_of_nobody_is_seen_by_no_user(busy):
    job = await busy.create("internal")
    async with busy.acting(ALICE, api=True):
        assert await busy.rows("select * from public.jobs where id = $1", job["id"]) == []


async def test_a_worker_role_executes_the_worker_functions_and_nothing_else(project):
    assert await functions_of(project, "job_processor") == WORKER_FUNCTIONS


async def test_a_worker_role_reads_what_it_subscribes_to_and_writes_nothing(project):
    rights = await rights_of(project, "job_processor", "select", *WRITES)
    assert rights == {"select": {"jobs", "job_queues", "job_schedules", "job_workers"}} | {
        p: set() for p in WRITES
    }


async def test_a_worker_role_sees_the_jobs_of_all(busy):
    async with busy.acting("job_processor", api=True):
        assert len(await busy.rows("select * from public.jobs")) == 2
        assert len(await busy.rows("select * from public.job_workers")) == 1
        assert len(await busy.rows("select * from public.job_queues")) == 1


async def test_a_worker_role_does_a_whole_job(project):
    await project.sql("select set_config('processor.now', '', false)")  # an API session has the real time
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    await project.create("translate", owner_id=ALICE, items=["de"])
    worker = await project.worker()

    async def call(function: str, **arguments):
        async with project.acting("job_processor", api=True):
            names = ", ".join(f'"{name}" => ${n}' for n, name in enumerate(arguments, 2))
            return await project.sql(
                f"select to_jsonb(public.{function}(worker_id => $1, {names}))",
                worker.id,
                *arguments.values(),
            )

    await call("heartbeat_worker", running=[])
    [job] = (await call("claim_jobs", request_id=worker.id))["jobs"]
    fence = {"id": job["id"], "attempt": 1}
    await call("report_progress", reports=[fence | {"progress": 0.5}])
    await call("append_job_logs", logs=[fence | {"message": "m"}])
    await call("save_checkpoints", checkpoints=[fence | {"name": "step", "result": 1}])
    assert await call("read_checkpoint", job=fence, name="step") == {"stale": False, "result": 1}
    await call("finish_items", results=[fence | {"items": [done("de")]}])
    [answer] = await call("finish_jobs", results=[fence | {"outcome": "done"}])
    assert answer["status"] == "completed"
    assert await project.balance(ALICE) == (90, 0, 10)


async def test_the_service_executes_all_public_functions_and_no_private_ones(project):
    functions = CLIENT_FUNCTIONS | OPERATOR_FUNCTIONS | WORKER_FUNCTIONS
    assert await functions_of(project, "service_role") == functions | {"grant_credits", "refund_credits"}


async def test_the_service_reads_all_and_writes_the_knobs_only(project):
    rights = await rights_of(project, "service_role", "select", *WRITES)
    knobs = {"job_queues", "job_kinds", "job_schedules", "webhook_endpoints"}
    assert rights == {
        "select": {*TABLES, "credit_statement"},
        "insert": knobs, "update": {*knobs, "job_workers"}, "delete": knobs,
        "truncate": set(), "references": set(), "trigger": set(),
    }  # fmt: skip


async def test_the_service_drains_a_worker_but_cannot_forge_a_lease(busy):
    async with busy.acting("service_role", api=True):
        await busy.sql("update public.job_workers set draining = true")
    async with busy.refused("42501"), busy.acting("service_role", api=True):
        await busy.sql("update public.job_workers set lease_expires_at = 'infinity'")


@pytest.mark.parametrize("by", ["anon", ALICE, "job_processor"])
async def test_only_the_service_grants_credits(busy, by):
    async with busy.refused("42501"):
        await busy.call("grant_credits", by=by, owner_id=ALICE, amount=1)
    async with busy.refused("42501"):
        await busy.call("processor.grant_credits", by=by, owner_id=ALICE, amount=1)


@pytest.mark.parametrize("by", ["anon", ALICE, "job_processor"])
async def test_only_the_service_refunds(busy, by):
    job = await busy.sql("select id from public.jobs where owner_id = $1", ALICE)
    for schema in ("public", "processor"):
        async with busy.refused("42501"):
            await busy.call(f"{schema}.refund_credits", by=by, job_id=job, reason="x")


@pytest.mark.parametrize("by", ["anon", ALICE])
async def test_clients_do_not_expire_credits(busy, by):
    async with busy.refused("42501"):
        await busy.call("expire_credits", by=by)


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role", "job_processor"])
async def test_no_api_role_reaches_the_private_schema(project, role):
    assert not await project.sql("select has_schema_privilege($1, 'processor', 'usage')", role)
    assert not await project.sql("select has_schema_privilege($1, 'processor', 'create')", role)


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role", "job_processor"])
async def test_no_api_role_touches_a_sequence(project, role):
    rows = await project.rows(
        """
        select relname from pg_class
        where case when relkind = 'S' and relnamespace = 'public'::regnamespace
          then has_sequence_privilege($1, oid, 'usage, select, update') end
        """,
        role,
    )
    assert rows == []


async def test_row_level_security_is_on_for_every_table(project):
    rows = await project.rows("""
        select relname, relrowsecurity, relnamespace = 'public'::regnamespace as exposed from pg_class
        where relnamespace in ('public'::regnamespace, 'processor'::regnamespace) and relkind in ('r', 'p')
    """)
    assert {row["relname"] for row in rows if row["exposed"]} == set(TABLES)
    assert [row["relname"] for row in rows if not row["relrowsecurity"]] == []


async def test_every_view_reads_with_the_rights_of_its_reader(project):
    rows = await project.rows("""
        select relname, relkind::text, reloptions from pg_class
        where relnamespace in ('public'::regnamespace, 'processor'::regnamespace) and relkind in ('v', 'm')
    """)
    assert rows
    for row in rows:
        assert row["relkind"] == "v", "a materialized view has no row level security"
        assert "security_invoker=on" in (row["reloptions"] or []), row["relname"]


async def test_no_function_is_left_to_everybody(project):
    """A new function may be executed by PUBLIC unless somebody takes that right back."""
    rows = await project.rows(f"""
        select p.oid::regprocedure::text as name
        from pg_proc p
        cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        where p.pronamespace::regnamespace::text in {OURS} and a.grantee = 0
    """)
    assert rows == []


async def test_a_definer_function_for_users_asks_who_is_calling(project):
    rows = await project.rows(f"""
        select p.proname, p.prosrc from pg_proc p
        where p.pronamespace::regnamespace::text in {OURS} and p.prosecdef
          and has_function_privilege('authenticated', p.oid, 'execute')
    """)
    assert {row["proname"] for row in rows} == CLIENT_FUNCTIONS | OPERATOR_FUNCTIONS
    for row in rows:
        asks = (
            "check_operator"
            if row["proname"] in OPERATOR_FUNCTIONS
            else "(is_client|add_jobs|draft_jobs|is_operator)"
        )
        assert re.search(rf"processor\.{asks}\(", row["prosrc"]), row["proname"]
    [drafts] = await project.rows("select prosrc from pg_proc where proname = 'draft_jobs'")
    assert "processor.is_client()" in drafts["prosrc"], "add_jobs leaves it to draft_jobs"


async def test_the_worker_role_is_a_plain_one(project):
    [row] = await project.rows("""
        select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolinherit,
          (select count(*) from pg_auth_members m where m.member = r.oid) as memberships
        from pg_roles r where rolname = 'job_processor'
    """)
    assert {name: value for name, value in row.items() if value} == {}


ODD_INPUT = [
    {"kind": None},
    {"kind": "translate", "items": [{"key": None}]},
    {"kind": "translate", "items": ["a" * 10_000]},
    {"kind": "translate", "items": ["de"], "priority": 2**31 - 1},
    {"kind": "translate", "items": ["de"], "max_attempts": 0},
    {"kind": "translate", "items": ["de"], "timeout_seconds": Decimal("NaN")},
    {"kind": "translate", "items": ["de"], "timeout_seconds": Decimal("Infinity")},
    {"kind": "translate", "items": ["de"], "timeout_seconds": Decimal("1e300")},
    {"kind": "translate", "items": ["de"], "tags": ["x" * 5000]},
    {"kind": "translate", "items": ["de"], "tags": [None]},
    {"kind": "translate", "items": ["de"], "unique_key": "x" * 5000},
    {"kind": "translate", "items": ["de"], "idempotency_key": ""},
    {"kind": "translate", "items": ["de"], "queue": "No Such Queue"},
    {"kind": "translate", "items": ["de"], "payload": []},
    {"kind": "translate", "items": ["de"], "payload": None},
    {"kind": "translate", "items": {"de": 1}},
    {"kind": "translate", "items": ["de"] * 2},
    {"kind": "translate", "items": ["de"], "owner_id": BOB},
    {"kind": "translate", "items": ["de"], "run_at": datetime.max.replace(tzinfo=UTC)},
]


@pytest.mark.parametrize("odd", ODD_INPUT, ids=str)
async def test_odd_input_of_a_user_meets_our_own_error_and_no_constraint(busy, odd):
    """A constraint's error holds the whole row in its detail, and the API passes that on."""
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with busy.connection.transaction():
            await busy.create(**odd, by=ALICE)
    assert caught.value.sqlstate.startswith("JQ"), f"{caught.value.sqlstate}: {caught.value}"
    assert len(f"{caught.value}{caught.value.detail}{caught.value.hint}") < 1000


BULK = {"kind": "translate", "items": ["de"]}


@pytest.mark.parametrize(
    "odd",
    [
        {"retry_of": str(BOB)},
        {"id": str(BOB)},
        {"status": "completed"},
        {"credits_held": 0},
        {"owner_id": str(BOB)},
        {"parent_id": str(BOB)},
        {"queue": "nowhere"},
        {"payload": None},
        {"children": [BULK | {"owner_id": str(BOB)}]},
        {"children": [{"kind": "internal"}]},
        {"children": [BULK | {"retry_of": str(BOB)}]},
    ],
    ids=str,
)
async def test_a_user_writes_nothing_with_create_jobs_but_own_jobs(busy, odd):
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with busy.connection.transaction():
            await busy.call("create_jobs", by=ALICE, jobs=[BULK, BULK | odd])
    assert caught.value.sqlstate.startswith("JQ"), f"{caught.value.sqlstate}: {caught.value}"


async def test_a_user_gives_no_children_to_a_job_of_another(busy):
    theirs = await busy.create("translate", owner_id=BOB, items=["de"])
    async with busy.refused("JQ008", "job not found"):
        await busy.create("translate", by=ALICE, items=["de"], parent_id=theirs["id"])


@pytest.mark.parametrize("function", ["cancel_job", "retry_job"])
async def test_a_user_reaches_no_job_of_another(busy, function):
    job = await busy.sql("select id from public.jobs where owner_id = $1", ALICE)
    before = await busy.rows("select * from public.jobs order by id")
    for by in (BOB, "authenticated"):
        async with busy.refused("JQ008", "job not found"):
            await busy.call(function, by=by, job_id=job)
    assert await busy.rows("select * from public.jobs order by id") == before


async def test_policies_ask_for_the_user_once_per_query(project):
    rows = await project.rows(
        "select policyname, qual, cmd, with_check from pg_policies where schemaname = 'public'"
    )
    assert rows
    for row in rows:
        assert row["cmd"] == "SELECT"
        assert row["with_check"] is None
        for function, name in (("auth.uid()", "uid"), ("processor.is_operator()", "is_operator")):
            asked = row["qual"].count(function)
            assert asked == row["qual"].count(f"( SELECT {function} AS {name})"), row


async def test_realtime_publishes_exactly_the_intended_tables(project):
    rows = await project.rows(
        "select tablename from pg_publication_tables where pubname = 'supabase_realtime' order by 1"
    )
    assert [row["tablename"] for row in rows] == list(LIVE)


async def test_deletes_tell_realtime_no_more_than_the_key(project):
    rows = await project.rows(
        "select relname, relreplident::text from pg_class where relname = any ($1)", list(LIVE)
    )
    assert {row["relname"]: row["relreplident"] for row in rows} == dict.fromkeys(LIVE, "d")


@pytest.mark.parametrize(
    ("role", "client"),
    [
        ("anon", True),
        ("authenticated", True),
        ("custom_role", True),
        ("service_role", False),
        ("job_processor", False),
        ("postgres", False),
        (None, False),
    ],
)
async def test_a_definer_function_knows_who_called_it(project, role, client):
    await project.connection.execute("""
        create role custom_role nologin;
        create function public.probe() returns boolean language sql security definer set search_path = ''
          as 'select processor.is_client()';
        grant execute on function public.probe() to public;
    """)
    async with project.acting(role, api=role not in (None, "postgres", "custom_role")):
        assert await project.sql("select public.probe()") is client


@pytest.mark.parametrize(
    ("memberships", "client"),
    [("authenticated", True), ("authenticated, service_role", False), ("", False)],
)
async def test_a_person_who_logs_in_with_the_rights_of_users_is_one(project, memberships, client):
    """Nobody set a role in such a session; a trigger of Auth's, whose role is no user's, is trusted."""
    await project.connection.execute("""
        create role person login;
        create function public.probe() returns boolean language sql security definer set search_path = ''
          as 'select processor.is_client()';
        grant execute on function public.probe() to public;
    """)
    if memberships:
        await project.connection.execute(f"grant {memberships} to person")
    async with project.connection.transaction():
        await project.connection.execute("set local session authorization person")
        assert await project.sql("select public.probe()") is client
        await project.connection.execute("reset session authorization")


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role", "job_processor"])
async def test_an_api_session_cannot_set_the_clock(project, role):
    await project.connection.execute("""
        create function public.probe() returns timestamptz language sql security definer set search_path = ''
          as 'select processor.now()';
        grant execute on function public.probe() to public;
    """)
    assert await project.sql("select public.probe()") == NOON
    async with project.acting(role, api=True):
        await project.connection.execute("set local processor.now = '2000-01-01'")
        told = await project.sql("select public.probe()")
        assert abs((told - await project.sql("select clock_timestamp()")).total_seconds()) < 5
