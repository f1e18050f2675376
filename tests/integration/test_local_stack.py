"""The stack in this process: blank projects, restarts, two projects on one server, the gateway's door."""

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from processor.local.postgres import Postgres
from processor.local.stack import Stack, StackError

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
VERSIONS = [
    pytest.param(None, id="wheel"),
    pytest.param(
        DEBIAN_15,
        id="15",
        marks=pytest.mark.skipif(not DEBIAN_15.exists(), reason="PostgreSQL 15 of Debian is not installed"),
    ),
]


@asynccontextmanager
async def superuser(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def answer(stack: Stack, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(stack.url + path, headers=headers)


async def tables(dsn: str) -> set[str]:
    async with superuser(dsn) as connection:
        rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    return {row["tablename"] for row in rows}


@pytest.mark.parametrize("bin_dir", VERSIONS)
async def test_a_blank_project_is_like_supabases_and_starts_again_unchanged(tmp_path, bin_dir):
    for _ in range(2):
        async with (
            Stack(tmp_path, apply_schema=False, bin_dir=bin_dir) as stack,
            superuser(stack.db_url) as db,
        ):
            roles = await db.fetch(
                "select rolname, rolcanlogin, rolinherit, rolbypassrls, rolsuper from pg_roles "
                "where rolname in ('anon', 'authenticated', 'service_role', 'authenticator') order by rolname"
            )
            assert [tuple(row) for row in roles] == [
                ("anon", False, False, False, False),
                ("authenticated", False, False, False, False),
                ("authenticator", True, False, False, False),
                ("service_role", False, False, True, False),
            ]
            publications = await db.fetch("select pubname, puballtables from pg_publication order by 1")
            assert [tuple(row) for row in publications] == [
                ("supabase_realtime", False),
                ("supabase_realtime_messages_publication", False),
            ]
            assert await tables(stack.db_url) == set()
            await db.execute("create table if not exists public.mine ()")
            for role in ("anon", "authenticated", "service_role"):
                assert await db.fetchval("select has_schema_privilege($1, 'public', 'usage')", role)
                assert not await db.fetchval("select has_schema_privilege($1, 'public', 'create')", role)
                assert not await db.fetchval("select has_table_privilege($1, 'public.mine', 'select')", role)
            await db.execute("drop table public.mine")


@pytest.mark.parametrize("bin_dir", VERSIONS)
async def test_the_jobs_schema_is_applied(tmp_path, bin_dir):
    async with Stack(tmp_path, bin_dir=bin_dir) as stack:
        assert {"jobs", "job_items", "credit_accounts"} <= await tables(stack.db_url)


async def test_auth_functions_read_the_claims_of_the_request():
    async with Stack(apply_schema=False) as stack, superuser(stack.db_url) as db, db.transaction():
        assert await db.fetchval("select auth.uid() is null and auth.role() is null and auth.jwt() is null")
        claims = '{"sub": "00000000-0000-0000-0000-000000000001", "role": "authenticated", "email": "a@b.c"}'
        await db.execute("select set_config('request.jwt.claims', $1, true)", claims)
        await db.execute("set local role anon")
        row = await db.fetchrow("select auth.uid()::text, auth.role(), auth.email(), auth.jwt() ->> 'role'")
        assert tuple(row) == (
            "00000000-0000-0000-0000-000000000001",
            "authenticated",
            "a@b.c",
            "authenticated",
        )


async def test_the_keys_are_those_that_every_local_project_has():
    stack = Stack()
    assert stack.anon_key.endswith(".CRXP1A7WOeoJeXxjNni43kdQwgnWNReilDMblYTn_I0")
    assert stack.service_role_key.endswith(".EGIM96RAZx35lJzdJsyH-qQwv8Hdp7fsn3W0YpN81IU")


async def test_the_second_start_is_quick_and_finds_the_data(tmp_path):
    async with Stack(tmp_path, apply_schema=False) as first, superuser(first.db_url) as db:
        await db.execute("create table public.kept (); insert into public.kept default values")
    begin = time.monotonic()
    async with Stack(tmp_path, apply_schema=False) as second:
        assert time.monotonic() - begin < 2
        async with superuser(second.db_url) as db:
            assert await db.fetchval("select count(*) from public.kept") == 1


async def test_without_a_directory_nothing_is_left():
    async with Stack(apply_schema=False) as stack, superuser(stack.db_url) as db:
        directory = await db.fetchval("show data_directory")
        assert exists(directory)
    assert not exists(Path(directory).parent)


async def test_projects_on_one_server_are_separate_and_run_together():
    async with Stack(apply_schema=False) as one:
        async with (
            Stack(database_url=one.db_url, database="other", apply_schema=False) as two,
            superuser(one.db_url) as first,
            superuser(two.db_url) as second,
        ):
            assert await first.fetchval("select current_database()") == "postgres"
            assert await second.fetchval("select current_database()") == "other"
            await first.execute("create table public.mine (id int); grant select on public.mine to anon")
            assert await tables(two.db_url) == set()
            found = [await answer(stack, "/rest/v1/mine", apikey=stack.anon_key) for stack in (one, two)]
            assert [response.status_code for response in found] == [200, 404]
        # the second has ended, and with it nothing of the first
        assert (await answer(one, "/rest/v1/mine", apikey=one.anon_key)).status_code == 200


async def test_the_gateway_wants_a_key_of_the_project():
    async with Stack(apply_schema=False) as stack:
        for path, status in (("/rest/v1/nothing", 404), ("/auth/v1/health", 200)):
            missing = await answer(stack, path)
            assert (missing.status_code, missing.json()["message"]) == (401, "No API key found in request")
            wrong = await answer(stack, path, apikey="wrong")
            assert (wrong.status_code, wrong.json()["message"]) == (401, "Invalid API key")
            assert (await answer(stack, path, apikey=stack.anon_key)).status_code == status


async def test_browsers_of_any_origin_are_served():
    asked = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "apikey,authorization,content-type,prefer,x-client-info,"
        "accept-profile,content-profile,x-supabase-api-version,range,range-unit",
    }
    async with Stack(apply_schema=False) as stack, httpx.AsyncClient(trust_env=False) as client:
        preflight = await client.options(f"{stack.url}/rest/v1/rpc/create_job", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "*"
        allowed = {
            name.strip().lower() for name in preflight.headers["access-control-allow-headers"].split(",")
        }
        assert set(asked["Access-Control-Request-Headers"].split(",")) <= allowed
        assert "POST" in preflight.headers["access-control-allow-methods"]
        headers = {"Origin": "http://localhost:3000"}
        refused = await client.get(f"{stack.url}/rest/v1/", headers=headers)
        # also a refusal must be readable for the page that asked
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "*"
        assert "Content-Range" in refused.headers["access-control-expose-headers"]


async def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} .*--port"):
            async with Stack(port=port):
                pass


async def test_a_server_that_is_not_there_is_named():
    with pytest.raises(StackError, match="cannot connect to the database server"):
        async with Stack(database_url="postgresql://postgres:x@127.0.0.1:1/postgres"):
            pass


async def test_a_server_whose_log_realtime_cannot_read_is_named(tmp_path):
    class Replica(Postgres):
        def _settings(self) -> dict[str, object]:
            return super()._settings() | {"wal_level": "replica"}

    postgres = Replica(tmp_path, durable=False)
    await postgres.start()
    try:
        with pytest.raises(StackError, match="wal_level = logical"):
            async with Stack(database_url=postgres.tcp_dsn()):
                pass
    finally:
        await postgres.stop()


async def test_the_end_of_postgresql_is_loud(tmp_path):
    async with Stack(tmp_path, apply_schema=False) as stack:
        async with superuser(stack.db_url) as db:
            directory = await db.fetchval("show data_directory")
        os.kill(server_pid(directory), signal.SIGINT)
        with pytest.raises(StackError, match=r"PostgreSQL ended by itself(?s:.*)is shut down"):
            await stack.wait()


def exists(path: Path | str) -> bool:
    return Path(path).exists()


def server_pid(directory: str) -> int:
    return int((Path(directory) / "postmaster.pid").read_text().split()[0])
