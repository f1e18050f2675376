"""What ``processor schema status`` says of a database that somebody changed, and that its advice mends it."""

import pytest

from processor.schema import catalog, sql_files
from processor.schema.drift import APPLY, problems
from processor.schema.files import Step
from processor.schema.install import upgrade
from tests.sql.harness import TABLES

TOO_MANY = "a right too many"
MISSING = "a right is missing"

SERIOUS = {
    "row level security off": (
        "alter table public.jobs disable row level security",
        "row level security of public.jobs is off",
    ),
    "row level security forced": (
        "alter table public.jobs force row level security",
        "row level security of public.jobs is forced on its owner",
    ),
    "a table unlogged": (
        "alter table public.credit_captures set unlogged",
        "public.credit_captures is unlogged",
    ),
    "a table dropped": ("drop table public.job_logs", "table public.job_logs is missing"),
    "a policy dropped": (
        "drop policy jobs_are_read_by_their_owner on public.jobs",
        "policy jobs_are_read_by_their_owner of public.jobs is missing",
    ),
    "a policy widened": (
        "alter policy jobs_are_read_by_their_owner on public.jobs using (true)",
        "using of policy jobs_are_read_by_their_owner of public.jobs is true instead of (owner_id = ",
    ),
    "a policy for everybody": (
        "alter policy jobs_are_read_by_their_owner on public.jobs to public",
        "roles of policy jobs_are_read_by_their_owner of public.jobs is public instead of authenticated",
    ),
    "a policy added": (
        "create policy all_see_all on public.jobs for select to authenticated using (true)",
        "policy all_see_all of public.jobs is not part of the schema",
    ),
    "the workers' topics opened": (
        "drop policy processor_topics_are_for_workers_alone on realtime.messages",
        "policy processor_topics_are_for_workers_alone of realtime.messages is missing",
    ),
    "all topics opened to workers": (
        "alter policy processor_topics_are_heard_by_workers on realtime.messages using (true)",
        "using of policy processor_topics_are_heard_by_workers of realtime.messages is true instead of ((",
    ),
    "every private topic opened": (
        "alter table realtime.messages disable row level security",
        "row level security of realtime.messages is off: everyone hears the workers' private topics",
    ),
    "a table opened to all": (
        "grant select on public.credit_entries to public",
        f"{TOO_MANY}: select on table public.credit_entries to public",
    ),
    "a table opened to strangers": (
        "grant insert on public.jobs to anon",
        f"{TOO_MANY}: insert on table public.jobs to anon",
    ),
    "a column opened to users": (
        "grant update (priority) on public.jobs to authenticated",
        f"{TOO_MANY}: update (priority) on table public.jobs to authenticated",
    ),
    "a right that can be passed on": (
        "grant delete on public.job_queues to service_role with grant option",
        f"{TOO_MANY}: grant option for delete on table public.job_queues to service_role",
    ),
    "a worker's function opened to users": (
        "grant execute on function public.finish_jobs(uuid, jsonb) to authenticated",
        f"{TOO_MANY}: execute on function public.finish_jobs(uuid, jsonb) to authenticated",
    ),
    "a private function opened to all": (
        "grant execute on function processor.undo_grant(bigint, text) to public",
        f"{TOO_MANY}: execute on function processor.undo_grant(bigint, text) to public",
    ),
    "the private schema opened": (
        "grant usage on schema processor to authenticated",
        f"{TOO_MANY}: usage on schema processor to authenticated",
    ),
    "a view opened": (
        "grant select on processor.credit_summary to anon",
        f"{TOO_MANY}: select on table processor.credit_summary to anon",
    ),
    "a sequence opened": (
        "grant usage on sequence public.credit_entries_id_seq to authenticated",
        f"{TOO_MANY}: usage on sequence public.credit_entries_id_seq to authenticated",
    ),
    "a view that reads as its owner": (
        "alter view processor.credit_summary set (security_invoker = off)",
        "options of view processor.credit_summary is security_invoker=off instead of security_invoker=on",
    ),
    "a definer that follows its caller's search_path": (
        "alter function public.cancel_job(uuid) reset search_path",
        "settings of function public.cancel_job(uuid) is ",
    ),
    "a private function made definer": (
        "alter function processor.undo_grant(bigint, text) security definer",
        "security definer of function processor.undo_grant(bigint, text) is on instead of off",
    ),
    "the body of a definer changed": (
        """create or replace function public.deregister_worker(worker_id uuid) returns jsonb
           language plpgsql security definer set search_path = '', pg_temp as 'begin return null; end'""",
        "the body of function public.deregister_worker(uuid) is not the one of this version",
    ),
    "an overload": (
        """create function public.claim_jobs(worker_id uuid) returns int language sql as 'select 1';
           revoke execute on function public.claim_jobs(uuid) from public""",
        "function public.claim_jobs(uuid) is not part of the schema, but has the name of one that is",
    ),
    "a table of another owner": (
        "create role somebody; alter table public.jobs owner to somebody",
        "public.jobs belongs to somebody",
    ),
    "a function of another owner": (
        "create role somebody; alter function public.cancel_job(uuid) owner to somebody",
        "public.cancel_job(uuid) belongs to somebody",
    ),
    "the workers' role made strong": (
        "alter role job_processor login bypassrls",
        "bypass rls of role job_processor is on instead of off; login of role job_processor is on",
    ),
    "the workers' role made a member": (
        "grant service_role to job_processor",
        "job_processor has the rights of service_role",
    ),
}
MILD = {
    "a private function's body changed": (
        """create or replace function processor.uuid7() returns uuid language sql volatile
           set search_path = '', pg_temp as 'select gen_random_uuid()'""",
        "the body of function processor.uuid7() is not the one of this version",
    ),
    "a function's volatility changed": (
        "alter function processor.now() stable",
        "volatility of function processor.now() is s instead of v",
    ),
    "a function's result changed": (
        """drop function processor.rescue_jobs(int);
           create function processor.rescue_jobs(max_jobs int default 100) returns text language sql
           set search_path = '', pg_temp as 'select 1::text';
           revoke execute on function processor.rescue_jobs(int) from public""",
        "returns of function processor.rescue_jobs(integer) is text instead of",
    ),
    "a function dropped": (
        "drop function processor.cancel_queue(text, int)",
        "function processor.cancel_queue(text, integer) is missing",
    ),
    "a function of nobody's": (
        """create function processor.mine() returns int language sql set search_path = '', pg_temp
           as 'select 1';
           revoke execute on function processor.mine() from public""",
        "function processor.mine() is not part of the schema: drop it, or move it",
    ),
    "a view dropped": ("drop view processor.throughput", "view processor.throughput is missing"),
    "a view changed": (
        """do $$ begin execute 'create or replace view processor.credit_summary with (security_invoker) as '
             'select * from (' || rtrim(pg_get_viewdef('processor.credit_summary'::regclass), ';') || ') x';
           end $$""",
        "the body of view processor.credit_summary is not the one of this version",
    ),
    "a view with other columns": (
        """drop view processor.throughput; create view processor.throughput with (security_invoker = on) as
           select 1 as one""",
        "columns of view processor.throughput is one integer instead of",
    ),
    "a column dropped": (
        "alter table public.jobs drop column claim_id",
        "column public.jobs.claim_id is missing",
    ),
    "a column of an identity dropped": (
        "alter table public.credit_entries alter column id drop identity",
        "identity of column public.credit_entries.id is nothing instead of a",
    ),
    "a column's type, default and not-null changed": (
        """alter table public.job_items alter column attempts drop default, alter column attempts type text,
           alter column attempts drop not null""",
        "not null of column public.job_items.attempts is off instead of on; type of column",
    ),
    "a constraint dropped": (
        "alter table public.jobs drop constraint jobs_terminal_holds_nothing",
        "constraint jobs_terminal_holds_nothing of public.jobs is missing",
    ),
    "a constraint softened": (
        """alter table public.jobs drop constraint jobs_progress_is_a_share,
           add constraint jobs_progress_is_a_share check (progress >= 0)""",
        "definition of constraint jobs_progress_is_a_share of public.jobs is CHECK",
    ),
    "a constraint never checked": (
        """alter table public.jobs drop constraint jobs_progress_is_a_share,
           add constraint jobs_progress_is_a_share check (progress between 0 and 1) not valid""",
        "constraint jobs_progress_is_a_share of public.jobs",
    ),
    "a trigger dropped": (
        "drop trigger job_schedules_guard on public.job_schedules",
        "trigger job_schedules_guard of public.job_schedules is missing",
    ),
    "a trigger disabled": (
        "alter table public.job_schedules disable trigger job_schedules_guard",
        "trigger job_schedules_guard of public.job_schedules is not enabled",
    ),
    "a trigger changed": (
        """create or replace trigger job_schedules_guard before insert on public.job_schedules
           for each row execute function public.guard_schedule()""",
        "definition of trigger job_schedules_guard of public.job_schedules is CREATE TRIGGER",
    ),
    "a type changed": (
        "alter type processor.verdict add attribute extra int cascade",
        "columns of type processor.verdict is job_id uuid, ",
    ),
    "a private table opened": (
        "grant select on processor.queue_tokens to service_role",
        f"{TOO_MANY}: select on table processor.queue_tokens to service_role",
    ),
    "an index dropped": ("drop index public.jobs_pending_idx", "index public.jobs_pending_idx is missing"),
    "an index changed": (
        "drop index public.jobs_parent_idx; create index jobs_parent_idx on public.jobs (queue)",
        "definition of index public.jobs_parent_idx is CREATE INDEX",
    ),
    "an index whose building was interrupted": (
        "update pg_index set indisvalid = false where indexrelid = 'public.jobs_pending_idx'::regclass",
        "index public.jobs_pending_idx is invalid",
    ),
    "a right revoked from users": (
        "revoke select on public.jobs from authenticated",
        f"{MISSING}: select on table public.jobs to authenticated",
    ),
    "a right revoked from the service": (
        "revoke execute on function public.claim_jobs(uuid, uuid, text[], int) from service_role",
        f"{MISSING}: execute on function public.claim_jobs(uuid, uuid, text[], integer) to service_role",
    ),
    "a right of a column revoked": (
        "revoke update (draining) on public.job_workers from service_role",
        f"{MISSING}: update (draining) on table public.job_workers to service_role",
    ),
    "schema public closed": (
        "revoke usage on schema public from public, job_processor",
        f"{MISSING}: usage on schema public to job_processor",
    ),
    "a right of the service's too many": (
        "grant update on public.jobs to service_role",
        f"{TOO_MANY}: update on table public.jobs to service_role",
    ),
    "a table taken out of the publication": (
        "alter publication supabase_realtime drop table public.jobs",
        "public.jobs is not in the publication supabase_realtime",
    ),
    "a table put into the publication": (
        "alter publication supabase_realtime add table public.credit_holds",
        "public.credit_holds is in the publication supabase_realtime",
    ),
    "a table published in part": (
        """alter publication supabase_realtime drop table public.jobs;
           alter publication supabase_realtime add table public.jobs where (priority > 0)""",
        "the publication supabase_realtime tells of public.jobs in part only",
    ),
    "the workers' role not granted": (
        "revoke job_processor from authenticator",
        "a role is not granted: job_processor to authenticator",
    ),
    "a replica identity that tells all": (
        "alter table public.jobs replica identity full",
        "the replica identity of public.jobs is not the default",
    ),
}
OPERATORS_OWN = {
    "rows": """insert into public.job_queues (name, paused, max_processing) values ('mine', true, 3);
               update public.job_queues set retain_last = 3""",
    "an index": "create index mine on public.jobs (kind)",
    "a trigger": """
        create function public.tell() returns trigger language plpgsql as 'begin return null; end';
        create trigger mine after update on public.jobs for each row execute function public.tell()""",
    "a column": "alter table public.jobs add column note text",
    "tables, functions and policies of the application": """
        create table public.cards (id int); create view public.open as select 1 as one;
        create policy mine on public.cards using (true); grant all on public.cards to anon;
        create function public.mine() returns int language sql as 'select 1'""",
    "storage parameters": "alter table public.jobs set (autovacuum_vacuum_scale_factor = 0.01)",
    "comments": "comment on table public.jobs is 'ours'",
    "the application's tables in the publication": """
        create table public.cards (id int primary key);
        alter publication supabase_realtime add table public.cards""",
    "a publication of everything": """
        drop publication supabase_realtime; create publication supabase_realtime for all tables""",
}


async def apply(project):
    """Do what `apply` does, within the test's transaction."""
    await upgrade(project.connection, [Step(tuple(sql_files()))])
    await project.connection.execute("reset client_min_messages")


async def test_a_new_database_has_no_problem(project):
    assert await problems(project.connection) == []


async def test_the_manifest_is_that_of_the_newest_schema_on_every_postgresql(project):
    objects = await catalog.found(project.connection, everything=True)
    assert catalog.manifest(objects) == catalog.MANIFEST.read_text(encoding="utf-8"), "run ./scripts/manifest"
    assert {key.kind for key in objects} >= {
        *("schema", "table", "column", "constraint", "sequence", "index", "view", "function", "policy"),
        *("publication", "role", "membership", "right", "trigger", "type"),
    }
    tables = {key.name for key in objects if key.kind == "table" and key.name.startswith("public.")}
    assert tables == {f"public.{table}" for table in TABLES}


@pytest.mark.parametrize("drift", [*SERIOUS, *MILD])
async def test_a_drift_is_told_once_and_its_advice_mends_it(project, drift):
    change, says = (SERIOUS | MILD)[drift]
    await project.connection.execute(change)

    [problem] = await problems(project.connection)

    assert says in problem.says
    assert problem.serious == (drift in SERIOUS)
    assert problem.mend
    if problem.sql:
        await project.connection.execute(problem.sql)
    if problem.apply:
        assert APPLY in problem.mend
        await apply(project)
    assert await problems(project.connection) == []


@pytest.mark.parametrize("change", OPERATORS_OWN.values(), ids=OPERATORS_OWN)
async def test_what_operators_add_or_set_is_no_drift(project, change):
    await project.connection.execute(change)
    assert await problems(project.connection) == []


async def test_all_that_is_wrong_is_told_the_serious_first(project):
    await project.connection.execute("""
        drop index public.jobs_pending_idx;
        alter table public.job_items disable row level security;
        grant select on public.jobs to anon;
        drop function public.retry_job(uuid, boolean);
    """)
    told = await problems(project.connection)
    assert [(problem.serious, problem.says) for problem in told] == [
        (True, "a right too many: select on table public.jobs to anon"),
        (True, "row level security of public.job_items is off: everyone with a grant sees every row"),
        (False, "function public.retry_job(uuid, boolean) is missing"),
        (False, "index public.jobs_pending_idx is missing"),
    ]


async def test_what_a_dropped_type_took_with_it_is_told_and_mended(project):
    await project.connection.execute("drop type processor.verdict cascade")
    told = await problems(project.connection)
    assert "type processor.verdict is missing" in [problem.says for problem in told]
    assert {problem.kind for problem in told} == {"type", "function"}
    assert {problem.mend for problem in told} == {APPLY}
    await apply(project)
    assert await problems(project.connection) == []


async def test_looking_changes_nothing_and_needs_no_setting(project):
    await project.connection.execute("""
        set local search_path = public; set local intervalstyle = iso_8601; set local datestyle = german;
        set local timezone = 'Asia/Tokyo'; set local quote_all_identifiers = on;
        set local transaction_read_only = on
    """)
    assert await problems(project.connection) == []


async def test_the_small_check_for_the_sql_editor_knows_every_table(project):
    assert await project.rows("select * from processor.check_schema()") == []
    for table in TABLES:
        await project.connection.execute(f"alter table public.{table} disable row level security")
    said = [row["problem"] for row in await project.rows("select problem from processor.check_schema()")]
    assert {problem.split()[4] for problem in said} == {f"public.{table}" for table in TABLES}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("grant select on public.credit_entries to anon", "public.credit_entries is open to the world"),
        ("grant insert on public.jobs to public", "public.jobs is open to the world"),
        ("grant execute on function processor.uuid7() to public", "processor.uuid7() is open to the world"),
        (
            "grant execute on function public.claim_jobs(uuid, uuid, text[], int) to anon",
            "claim_jobs(uuid,uuid,text[],integer) is open to the world",
        ),
    ],
)
async def test_the_small_check_sees_what_is_open_to_the_world(project, change, says):
    await project.connection.execute(change)
    [problem] = await project.rows("select problem from processor.check_schema()")
    assert says in problem["problem"]
