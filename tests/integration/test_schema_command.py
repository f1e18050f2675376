"""``processor schema`` against real databases: what it does, and what it says when it cannot."""

from __future__ import annotations

import socket
import subprocess
import sys
from uuid import uuid4

import asyncpg
import pytest

from processor import schema


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "processor", "schema", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
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
    assert (said.returncode, said.stdout) == (0, "✓ schema version 1\n")


async def test_status_says_what_is_missing_and_how_to_mend_it(dev_process, tmp_path):
    stack = dev_process("--data-dir", str(tmp_path / "data")).ready()
    connection = await asyncpg.connect(stack.db_url)
    await connection.execute(
        "alter publication supabase_realtime drop table public.jobs;"
        "alter table public.job_items disable row level security"
    )

    said = command("status", "--database-url", stack.db_url)

    assert said.returncode == 1
    assert "public.jobs is not in the publication supabase_realtime" in said.stdout
    assert "row level security of public.job_items is off" in said.stdout
    assert command("apply", "--database-url", stack.db_url).returncode == 0
    assert command("status", "--database-url", stack.db_url).returncode == 0

    # another version: both numbers are told
    await connection.execute(
        "create or replace function processor.schema_version() returns int language sql as 'select 99'"
    )
    said = command("status", "--database-url", stack.db_url)
    assert said.returncode == 1
    assert "schema version 99, this package needs 1" in said.stdout
    await connection.close()


def test_print_gives_every_file_in_load_order():
    printed = command("print").stdout
    names = [name for name, _ in schema.sql_files()]
    assert names == sorted(names)
    assert [printed.index(f"-- ===== {name} =====") for name in names] == sorted(
        printed.index(f"-- ===== {name} =====") for name in names
    )
