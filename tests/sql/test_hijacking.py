"""Names in our functions mean what they meant when they were written, whatever else has the same name.

A session may put a schema before ``pg_catalog``, and has a temporary one that PostgreSQL looks into by
itself. A function that resolved a name there would run a stranger's code with the rights of its owner.
"""

import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from processor import schema
from processor.rpc import SCHEMA_VERSION
from tests.sql.harness import ALICE, BOOTSTRAP, Project, connect, done, fixture

SIMPLE_TYPES = ("text", "uuid", "jsonb", "json", "timestamptz", "bytea", "name", "regclass", "date", "record")
TABLES = "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"

# a function and an operator like each of PostgreSQL's own, but hostile: whoever calls one fails
SHADOW_FUNCTIONS = """
    select format('create function %I.%I(%s) returns %s language plpgsql as $$begin raise ''seized''; end$$',
      $1::text, proname, oidvectortypes(proargtypes), format_type(prorettype, null))
    from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and not proretset and provariadic = 0
      and not exists (
        select from pg_type where typtype = 'p' and oid = any (proargtypes::oid[] || prorettype)
          and typname not in ('anyelement', 'anyarray')
      )
      and (prorettype not in ('anyelement'::regtype, 'anyarray'::regtype)
        or 'anyelement'::regtype = any (proargtypes::oid[]) or 'anyarray'::regtype = any (proargtypes::oid[]))
"""
SHADOW_OPERATORS = """
    select format('create operator %I.%s (leftarg = %s, rightarg = %s, function = %I.%I)',
      $1::text, oprname, format_type(oprleft, null), format_type(oprright, null), $1::text, proname)
    from pg_operator o join pg_proc p on p.oid = oprcode
    where oprnamespace = 'pg_catalog'::regnamespace and oprkind = 'b'
      and to_regprocedure(format('%I.%I(%s)', $1::text, proname, oidvectortypes(proargtypes))) is not null
"""


@fixture
async def one(database) -> Project:
    project = await database.project()
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    return project


async def shadow_types(connection: asyncpg.Connection, place: str) -> None:
    await connection.execute(f"""
        create function {place}.seize(anyelement) returns boolean language plpgsql
          as $$ begin raise exception 'seized'; end $$
    """)
    for name in SIMPLE_TYPES:
        base = "text" if name == "record" else name
        await connection.execute(
            f"create domain {place}.{name} as pg_catalog.{base} check ({place}.seize(value))"
        )


async def whole_job(connection: asyncpg.Connection, *, role: str | None = None) -> None:
    """Run jobs through every client's and worker's function; name nothing that could be mistaken."""

    async def call(function: str, *arguments: object) -> Any:
        # literals, which take the type of the parameter: a name of a type in the query would be a stranger's
        literals = [a if isinstance(a, str) else json.dumps(a) for a in arguments]
        told = await connection.fetchval(f"select {function.format(*(f'$x${x}$x$' for x in literals))}")
        return json.loads(told) if isinstance(told, str) else told  # json, which has no codec

    if role is not None:
        await connection.execute(f"set role {role}")
    worker = str(uuid4())
    create = "(public.create_job('translate', {}, {}, owner_id => {})).id"
    job, other = [str(await call(create, {"n": n}, ["de", "fr"], str(ALICE))) for n in (1, 2)]
    declared = {
        "id": worker,
        "slots": 5,
        "lease_seconds": 90,
        "schema_version": SCHEMA_VERSION,
    }
    declared |= {"queues": ["default"], "kinds": [{"kind": "translate", "queue": "default"}]}
    await call("public.register_worker({})", declared)
    claimed = await call("public.claim_jobs({}, {}, null, 1)", worker, str(uuid4()))
    fence = {"id": claimed["jobs"][0]["id"], "attempt": 1}
    assert fence["id"] == job
    await call("public.report_progress({}, {})", worker, [fence | {"progress": 0.5, "message": "half"}])
    await call("public.append_job_logs({}, {})", worker, [fence | {"message": "hello", "fields": {"a": 1}}])
    await call("public.save_checkpoints({}, {})", worker, [fence | {"name": "step", "result": 1}])
    await call("public.read_checkpoint({}, {}, 'step')", worker, fence)
    await call("public.finish_items({}, {})", worker, [fence | {"items": [done("de")]}])
    await call("public.heartbeat_worker({}, {})", worker, f"{{{job}}}")
    [answer] = await call("public.finish_jobs({}, {})", worker, [fence | {"outcome": "fail"}])
    assert answer["error"] is None
    assert answer["status"] == "partial"
    await call("(public.retry_job({})).id", job)
    await call("(public.cancel_job({})).id", other)
    [again] = (await call("public.claim_jobs({}, {}, null, 1)", worker, str(uuid4())))["jobs"]
    await call("public.release_jobs({}, {})", worker, [{"id": again["id"], "attempt": 1}])
    await call("public.deregister_worker({})", worker)
    await call("public.prune_jobs({})", 10)
    if role is not None:
        await connection.execute("reset role")


async def operators_day(connection: asyncpg.Connection) -> None:
    """Call what operators call."""
    for call in (
        f"(processor.grant_credits('{ALICE}', 5, 'more', 'key')).available",
        "(processor.pause_queue('default')).paused",
        "(processor.resume_queue('default')).paused",
        "processor.retry_failed('default', '2020-01-01')",
        "processor.cancel_queue('default')",
        "processor.prune_jobs(10)",
        "processor.rescue_jobs(10)",
        "processor.check_credits()",
        "processor.check_schema()",
    ):
        await connection.execute(f"select {call}")


async def test_no_function_or_operator_of_the_callers_search_path_is_called(database, one):
    stranger = (await database.project()).connection
    await stranger.execute("create schema evil")
    for shadows in (SHADOW_FUNCTIONS, SHADOW_OPERATORS):
        made = [row[0] for row in await stranger.fetch(shadows, "evil")]
        assert len(made) > 500
        await stranger.execute("; ".join(made))
    await shadow_types(stranger, "evil")
    await stranger.execute("set search_path = evil, pg_catalog")
    with pytest.raises(asyncpg.RaiseError, match="seized"):
        await stranger.execute("select now()")
    with pytest.raises(asyncpg.RaiseError, match="seized"):
        await stranger.execute("select 1 + 1")
    await whole_job(stranger)
    await operators_day(stranger)


@pytest.mark.parametrize("role", [None, "service_role"])
async def test_no_type_of_the_callers_temporary_schema_is_used(database, one, role):
    stranger = (await database.project()).connection
    await stranger.execute("create temp table any_table (n int)")
    await shadow_types(stranger, "pg_temp")
    with pytest.raises(asyncpg.RaiseError, match="seized"):
        await stranger.execute("select 'a'::text")
    await whole_job(stranger, role=role)
    if role is None:
        await operators_day(stranger)


async def test_no_table_of_the_callers_temporary_schema_is_used(database, one):
    stranger = (await database.project()).connection
    for row in await stranger.fetch(TABLES):
        await stranger.execute(f"create temp table {row['relname']} (like public.{row['relname']})")
    await stranger.execute("""
        create temp view pg_class as select * from pg_catalog.pg_class where false;
        create temp view pg_roles as select * from pg_catalog.pg_roles where false;
    """)
    await whole_job(stranger)
    await operators_day(stranger)
    assert await one.sql("select count(*) from public.jobs") == 3
    assert await one.faults() == []


async def test_the_schema_is_installed_without_a_look_at_what_lies_in_public(server):
    """A function that fits better than a polymorphic one would be bound into checks and views."""
    admin = await connect(server.dsn("postgres"))
    name = f"littered_{uuid4().hex}"
    await admin.execute(f"create database {name} template template0")
    try:
        connection = await connect(server.dsn(name))
        try:
            await connection.execute(BOOTSTRAP.read_text())
            await connection.execute("""
                create function public.seize() returns int language plpgsql
                  as $$ begin raise exception 'seized'; end $$;
                create function public.format(text, text) returns text language sql as 'select seize()::text';
                create function public.format(text, name) returns text language sql as 'select seize()::text';
                create function public.cardinality(interval[]) returns int language sql as 'select seize()';
                create function public.cardinality(text[]) returns int language sql as 'select seize()';
            """)
            await schema.apply(server.dsn(name))
            project = Project(connection)
            await project.kind("translate", credits_per_item=10)
            await project.grant(ALICE, 100)
            await whole_job(connection)
            assert await connection.fetch("""
                select distinct d.classid::regclass, d.objid from pg_depend d
                join pg_proc p on d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid
                where p.pronamespace = 'public'::regnamespace and p.proname in ('format', 'cardinality')
            """) == []  # fmt: skip
        finally:
            await connection.close()
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
