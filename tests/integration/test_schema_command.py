"""``processor schema`` against real databases: what it does, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import traceback
from uuid import uuid4

import asyncpg
import pytest

from processor import schema
from processor.rpc import SCHEMA_VERSION


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "processor", "schema", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def pretend_version(connection: asyncpg.Connection, version: int) -> None:
    await connection.execute(
        "create or replace function processor.schema_version() returns int "
        f"language sql as 'select {version}'"
    )


@pytest.fixture
async def project(stack, admin):
    """Give the URL of a database of its own that is a copy of no project: blank."""
    name = f"schema_{uuid4().hex[:8]}"
    await admin.execute(f"create database {name}")
    yield stack.db_url.rsplit("/", 1)[0] + f"/{name}"
    await admin.execute(f"drop database {name} with (force)")


def test_a_database_that_cannot_be_reached_is_named_and_its_password_is_not():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = command("apply", "--database-url", f"postgresql://postgres:s3cret@127.0.0.1:{port}/postgres")
    assert said.returncode == 1
    assert f"cannot connect to the database at 127.0.0.1:{port}" in said.stderr
    assert "s3cret" not in said.stdout + said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("password", ["s3cret/x", "s3cret?x", "s3cret#x", "1234/s3cret", "s3c[ret"])
async def test_a_password_that_tears_the_url_apart_is_not_told_but_how_to_write_it(password):
    with pytest.raises(schema.SchemaError, match="must be written as codes: / as %2F") as caught:
        await schema.status(f"postgresql://postgres:{password}@127.0.0.1:1/postgres")
    told = "".join(traceback.format_exception(caught.value, chain=True)).partition("SchemaError:")[2]
    assert not re.search("s3c|ret|1234", told)


def test_something_that_is_no_database_url_is_refused_with_an_example():
    said = command("status", "--database-url", "https://abcdefgh.supabase.co")
    assert said.returncode == 1
    assert "postgresql://user:password@host:5432/postgres" in said.stderr


async def test_a_database_that_is_no_supabase_project_is_refused_and_left_as_it_was(project):
    said = command("apply", "--database-url", project)
    assert said.returncode == 1
    assert "not a Supabase project" in said.stderr
    connection = await asyncpg.connect(project)
    assert await connection.fetchval("select count(*) from pg_namespace where nspname = 'processor'") == 0
    await connection.close()


def test_status_of_a_complete_project_is_good(stack):
    said = command("status", "--database-url", stack.db_url)
    assert (said.returncode, said.stdout) == (0, f"✓ schema version {SCHEMA_VERSION}\n")


async def test_status_says_what_is_wrong_and_apply_mends_it(dev_process, tmp_path):
    stack = dev_process("--data-dir", str(tmp_path / "data")).ready()
    connection = await asyncpg.connect(stack.db_url)
    await connection.execute("""
        alter publication supabase_realtime drop table public.jobs;
        alter table public.job_items disable row level security;
        alter table public.jobs drop column error_retryable;
    """)

    said = command("status", "--database-url", stack.db_url)
    assert said.returncode == 1
    assert said.stdout.splitlines() == [
        f"✗ schema version {SCHEMA_VERSION}, but not as it should be",
        "✗ serious: row level security of public.job_items is off: everyone with a grant sees every row",
        "    to mend it: processor schema apply",
        "✗ column public.jobs.error_retryable is missing",
        "    to mend it: alter table public.jobs add column error_retryable boolean",
        "✗ public.jobs is not in the publication supabase_realtime: nobody is told of its changes",
        "    to mend it: processor schema apply",
    ]
    said = command("status", "--database-url", stack.db_url, "--json")
    assert said.returncode == 1
    told = json.loads(said.stdout)
    assert (told["ok"], told["installed"], told["wanted"]) == (False, SCHEMA_VERSION, SCHEMA_VERSION)
    assert [(problem["kind"], problem["serious"], problem["apply"]) for problem in told["problems"]] == [
        ("table", True, True),
        ("column", False, False),
        ("publication", False, True),
    ]

    said = command("apply", "--database-url", stack.db_url)
    assert said.returncode == 1
    assert 'column "error_retryable" of relation "public.jobs" does not exist' in said.stderr
    assert "processor schema status says what to do first" in said.stderr
    await connection.execute(told["problems"][1]["sql"])
    await connection.execute("create policy everybody on public.jobs using (true)")
    # what apply cannot mend, it tells
    said = command("apply", "--database-url", stack.db_url)
    assert said.returncode == 0
    assert said.stdout.splitlines()[0] == f"✓ schema version {SCHEMA_VERSION} is in place"
    assert "serious: policy everybody of public.jobs is not part of the schema" in said.stdout
    await connection.execute("drop policy everybody on public.jobs")
    assert command("status", "--database-url", stack.db_url).returncode == 0

    # another version: both numbers are told, and what to do
    for version, advice in ((99, "pip install --upgrade"), (0, "processor schema apply")):
        await pretend_version(connection, version)
        said = command("status", "--database-url", stack.db_url)
        assert said.returncode == 1
        assert f"schema version {version}, this package needs {SCHEMA_VERSION}. Run: {advice}" in said.stdout

    # a newer one is left alone
    await pretend_version(connection, 99)
    said = command("apply", "--database-url", stack.db_url)
    assert said.returncode == 1
    assert f"version 99 of the schema, newer than version {SCHEMA_VERSION}" in said.stderr
    assert "pip install --upgrade supabase-job-processor" in said.stderr
    assert await connection.fetchval("select processor.schema_version()") == 99
    await connection.close()


def test_print_gives_every_file_in_load_order():
    printed = command("print").stdout
    places = [printed.index(f"-- ===== {file.name} =====") for file in schema.sql_files()]
    assert places == sorted(places)


def test_export_writes_migrations_for_the_supabase_cli_once(tmp_path):
    said = command("export", str(tmp_path))
    assert said.returncode == 0
    [file] = (tmp_path / "supabase" / "migrations").iterdir()
    assert said.stdout == f"✓ {file}\nrun: supabase db push\n"
    assert command("export", str(tmp_path)).stdout == "nothing is new\n"


def test_export_to_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "supabase").write_text("a file")
    said = command("export", str(tmp_path))
    assert said.returncode == 1
    assert "cannot write to" in said.stderr
    assert "Traceback" not in said.stderr
