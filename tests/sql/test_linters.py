"""Supabase's linters, which a project runs before it deploys, have nothing to say about the schema.

They come from npm (``linters/package.json``). ``db lint`` needs the extension plpgsql_check in the server,
which Debian packages for its PostgreSQL; ``db advisors`` asks what the dashboard's advisors ask, of any.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.compat.javascript import install
from tests.sql.conftest import SERVERS, Server
from tests.sql.harness import connect, fixture

FOLDER = Path(__file__).with_name("linters")
SECONDS = 60
PACKAGED = [name for name in SERVERS if name != "wheel"]

Linter = Callable[..., Awaitable[list[dict[str, Any]]]]


@fixture
async def linted(server: Server) -> AsyncIterator[str]:
    """Give the name of a database with the schema, exposed over the API as a hosted project's is."""
    name = f"linted_{uuid4().hex}"
    admin = await connect(server.dsn("postgres"))
    try:
        await admin.execute(f"create database {name} template jobs_template")
        # the advisors look at what is exposed; without the setting they would take it that nothing is
        await admin.execute(f"alter database {name} set pgrst.db_schemas = 'public, graphql_public'")
        yield name
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@fixture
async def supabase(server: Server, linted: str, tmp_path: Path) -> Linter:
    """Run a command of the Supabase CLI against the database; return what it found."""
    await asyncio.to_thread(install, FOLDER)
    quiet = {"SUPABASE_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1", "SUPABASE_NO_UPDATE_NOTIFIER": "1"}
    environment = os.environ | quiet | {"HOME": str(tmp_path), "SUPABASE_HOME": str(tmp_path)}

    async def run(*command: str) -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            FOLDER / "node_modules" / ".bin" / "supabase",
            *command,
            f"--remote={server.postgres.tcp_dsn(linted)}",
            *("--fail-on", "none", "--output-format", "json", "--agent", "no"),
            cwd=tmp_path,
            env=environment | {"PGSSLMODE": "disable"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode() + output.decode()
        return json.loads(output)["results"]

    return run


async def needs_plpgsql_check(server: Server) -> None:
    available = "select count(*) from pg_available_extensions where name = 'plpgsql_check'"
    if not await server.connection.fetchval(available):
        missing = "needs plpgsql_check; on Debian: apt-get install postgresql-15-plpgsql-check"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


async def execute(server: Server, database: str, statements: str) -> None:
    connection: asyncpg.Connection = await connect(server.dsn(database))
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


def names(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["name"] for finding in findings}


async def advise(supabase: Linter) -> list[dict[str, Any]]:
    return await supabase("db", "advisors", "--type", "all", "--level", "warn")


async def lint(supabase: Linter) -> dict[str, set[str]]:
    found = await supabase("db", "lint", "--schema", "public,processor", "--level", "warning")
    return {row["function"]: {issue["message"] for issue in row["issues"]} for row in found}


async def test_the_advisors_have_nothing_to_warn_of(supabase):
    assert await advise(supabase) == []


async def test_the_advisors_do_look(server, linted, supabase):
    await execute(
        server,
        linted,
        """
        alter table public.jobs disable row level security;
        alter function public.create_job reset search_path;
        alter view processor.queue_health set schema public;
        alter view public.queue_health reset (security_invoker);
        grant select on public.queue_health to anon;
        create index jobs_worker_again_idx on public.jobs (worker_id) where status = 'processing';
        """,
    )
    assert names(await advise(supabase)) == {
        "rls_disabled_in_public",
        "policy_exists_rls_disabled",
        "function_search_path_mutable",
        "security_definer_view",
        "duplicate_index",
    }


@pytest.mark.parametrize("server", PACKAGED, indirect=True)
async def test_the_linter_of_functions_has_nothing_to_warn_of(server, supabase):
    await needs_plpgsql_check(server)
    assert await lint(supabase) == {}


@pytest.mark.parametrize("server", PACKAGED, indirect=True)
async def test_the_linter_of_functions_does_look(server, linted, supabase):
    await needs_plpgsql_check(server)
    await execute(
        server,
        linted,
        """
        create function processor.wrong() returns int language plpgsql set search_path = '' as $$
          declare n jsonb := '[]'; begin return (select no_such_column from public.jobs limit 1); end $$;
        """,
    )
    assert (await lint(supabase))["processor.wrong"] == {
        "target type is different type than source type",
        'column "no_such_column" does not exist',
    }


@pytest.mark.parametrize("server", PACKAGED, indirect=True)
async def test_no_statement_is_put_together_from_its_input(server, linted):
    await needs_plpgsql_check(server)
    connection = await connect(server.dsn(linted))
    try:
        await connection.execute("create extension plpgsql_check schema extensions")
        rows = await connection.fetch("""
            select p.oid::regprocedure::text as function, c.message
            from pg_proc p
            join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
            left join lateral (
              select t.tgrelid, t.tgoldtable, t.tgnewtable from pg_trigger t where t.tgfoid = p.oid limit 1
            ) t on true
            cross join lateral extensions.plpgsql_check_function_tb(p.oid,
              relid => coalesce(t.tgrelid, 0), oldtable => t.tgoldtable, newtable => t.tgnewtable,
              other_warnings => false, extra_warnings => false,
              performance_warnings => false, security_warnings => true) c
            where p.pronamespace in ('public'::regnamespace, 'processor'::regnamespace)
        """)
        assert [dict(row) for row in rows] == []
    finally:
        await connection.close()
