"""``processor doctor``: each thing that can be wrong is made wrong once, and must be seen."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import pytest

from processor.config import load
from processor.doctor import Finding, Mark, examine, host, project, realtime
from processor.rpc import SCHEMA_VERSION
from tests.faults import FaultProxy
from tests.integration.scripted_api import scripted_api

OTHERS_SECRET = "of-another-project-and-long-enough-for-hs256"


def command(stack: Any, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE", "PROCESSOR"))
    }
    return subprocess.run(
        [sys.executable, "-m", "processor", "doctor", *arguments],
        env={**clean, "COLUMNS": "100", **project_of(stack), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def project_of(stack: Any) -> dict[str, str]:
    return {"SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}


async def found(environment: dict[str, str], database_url: str | None = None) -> list[Finding]:
    """Return what the doctor says that is not all right."""
    findings = [finding async for finding in examine(load(environment=environment), database_url)]
    assert findings
    return [finding for finding in findings if finding.mark is not Mark.OK]


def token(secret: str = OTHERS_SECRET, **claims: Any) -> str:
    return jwt.encode({"role": "service_role", **claims}, secret, algorithm="HS256")


def least_token(stack: Any) -> str:
    return token(stack.jwt_secret, role="job_processor", exp=int(time.time()) + 10 * 86400)


async def workers(admin: asyncpg.Connection) -> int:
    return await admin.fetchval("select count(*) from public.job_workers where name like 'processor doctor%'")


async def test_a_healthy_project_is_told_so_and_left_as_it_was(stack, admin) -> None:
    said = command(stack, "--json", "--database-url", stack.db_url)
    assert said.returncode == 0, said.stdout + said.stderr
    told = json.loads(said.stdout)
    assert told["ok"]
    assert {finding["check"] for finding in told["findings"]} == {
        *("settings", "key", "files", "address", "schema", "clock", "worker", "realtime", "database"),
        *(("spool",) if hasattr(load(environment=project_of(stack)), "spool_dir") else ()),
    }
    assert {finding["mark"] for finding in told["findings"]} == {"ok"}
    assert stack.service_role_key not in said.stdout + said.stderr
    assert await workers(admin) == 0


def test_what_is_wrong_with_the_settings_is_all_there_is_to_say(stack) -> None:
    said = command(stack, SUPABASE_SERVICE_ROLE_KEY=stack.anon_key, PROCESSOR_SLOT="3", COLUMNS="400")
    assert said.returncode == 1
    assert "✗ settings SUPABASE_SERVICE_ROLE_KEY: this is the public key" in said.stdout
    assert "Did you mean 'PROCESSOR_SLOTS'?" in said.stdout
    assert "Traceback" not in said.stderr


def test_no_line_is_wider_than_the_terminal(stack) -> None:
    said = command(stack, SUPABASE_SERVICE_ROLE_KEY="no-key-of-anybody", COLUMNS="60")
    assert said.returncode == 1
    assert "to mend it: " in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 60


async def test_an_address_where_nobody_answers(stack, monkeypatch) -> None:
    monkeypatch.setattr("processor.doctor.examination._PATIENCE", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    [finding] = await found(project_of(stack) | {"SUPABASE_URL": url})
    assert (finding.check, finding.mark) == ("address", Mark.FAIL)
    assert f"No answer from {url}" in finding.seen


async def test_an_address_that_is_no_project(stack, monkeypatch) -> None:
    monkeypatch.setattr("processor.doctor.examination._PATIENCE", 0.2)
    async with scripted_api() as api:
        api.answers["check_installation"] = lambda _: (404, {"message": "no such page"})
        [finding] = await found(project_of(stack) | {"SUPABASE_URL": api.url})
    assert (finding.check, finding.mark) == ("address", Mark.FAIL)
    assert "is not the address of a Supabase project" in finding.seen


def test_an_address_without_encryption_is_named_unless_it_is_near() -> None:
    def marks(url: str) -> list[str]:
        settings = load(environment={"SUPABASE_URL": url, "SUPABASE_KEY": "sb_secret_1234567890"})
        return [finding.mark for finding in host.address(settings)]

    assert marks("http://jobs.example.com") == [Mark.WARN]
    assert marks("http://8.8.8.8:8000") == [Mark.WARN]
    for near in ("https://jobs.example.com", "http://127.0.0.1:54321", "http://kong:8000", "http://10.0.0.5"):
        assert marks(near) == []


async def test_a_key_that_the_project_does_not_know(stack) -> None:
    [finding] = await found(project_of(stack) | {"SUPABASE_SERVICE_ROLE_KEY": token()})
    assert (finding.check, finding.mark) == ("key", Mark.FAIL)
    assert "refused the key" in finding.seen


async def test_a_key_that_has_expired_is_seen_here_and_there(stack) -> None:
    key = token(stack.jwt_secret, exp=int(time.time()) - 7200)
    [here, there] = await found(project_of(stack) | {"SUPABASE_SERVICE_ROLE_KEY": key})
    assert here.seen == "SUPABASE_SERVICE_ROLE_KEY expired 2 hours ago"
    assert "refused the key" in there.seen
    assert {here.mark, there.mark} == {Mark.FAIL}


@pytest.mark.parametrize(
    ("environment", "mark", "says"),
    [
        ({"SUPABASE_KEY": token(ref="otherproject")}, Mark.FAIL, "belongs to project otherproject"),
        ({"SUPABASE_KEY": token(ref="abcdefgh")}, Mark.OK, "a token of role service_role"),
        ({"SUPABASE_KEY": token(role="postgres")}, Mark.FAIL, "role postgres, not service_role"),
        ({"SUPABASE_KEY": token(role="job_processor")}, Mark.WARN, "without the publishable key"),
        ({"SUPABASE_KEY": token(exp=time.time() + 7000)}, Mark.WARN, "nothing can renew it"),
        ({"SUPABASE_KEY": "sb_secret_1234567890"}, Mark.OK, "sb_secret_"),
        ({"SUPABASE_KEY": "something"}, Mark.WARN, "neither a token nor"),
        (
            {"SUPABASE_KEY": "sb_secret_1234567890", "SUPABASE_ANON_KEY": token(role="authenticated")},
            Mark.FAIL,
            "SUPABASE_ANON_KEY is a token of role authenticated, not anon",
        ),
        (
            {"SUPABASE_KEY": "sb_secret_1234567890", "SUPABASE_ANON_KEY": "sb_unknown_1234567890"},
            Mark.FAIL,
            "SUPABASE_ANON_KEY has the form sb_unknown",
        ),
        (
            {"SUPABASE_KEY": "sb_secret_1234567890", "SUPABASE_ANON_KEY": token(role="anon", ref="other")},
            Mark.FAIL,
            "SUPABASE_ANON_KEY belongs to project other",
        ),
    ],
)
def test_what_a_key_is_can_be_seen_in_it(environment: dict[str, str], mark: Mark, says: str) -> None:
    settings = load(environment={"SUPABASE_URL": "https://abcdefgh.supabase.co"} | environment)
    findings = list(host.keys(settings))
    assert [f for f in findings if f.mark is mark and says in f.seen], findings
    shown = str(findings)
    assert not [key for key in environment.values() if len(key) > 12 and key in shown]


async def test_a_token_of_the_least_role_is_enough(stack) -> None:
    keys = {
        "SUPABASE_SERVICE_ROLE_KEY": least_token(stack),
        "SUPABASE_ANON_KEY": stack.anon_key,
    }
    assert await found({"SUPABASE_URL": stack.url} | keys) == []


async def test_a_project_without_the_schema() -> None:
    async with scripted_api() as api:
        api.answers["check_installation"] = lambda _: (404, {"code": "PGRST202", "message": "no function"})
        environment = {"SUPABASE_URL": api.url, "SUPABASE_KEY": "sb_secret_1234567890"}
        [finding] = await found(environment)
    assert (finding.check, finding.mark) == ("schema", Mark.FAIL)
    assert "processor schema apply" in finding.mend


async def test_an_answer_of_another_kind_is_another_schema() -> None:
    async with scripted_api() as api:
        api.answers["check_installation"] = lambda _: (200, {"version": "x"})
        environment = {"SUPABASE_URL": api.url, "SUPABASE_KEY": "sb_secret_1234567890"}
        [finding] = await found(environment)
    assert (finding.check, finding.mark) == ("schema", Mark.FAIL)


@pytest.mark.parametrize(("version", "mend"), [(1, "schema apply"), (SCHEMA_VERSION + 1, "pip install")])
async def test_a_schema_of_another_version(stack, admin, version: int, mend: str) -> None:
    as_it_was = await admin.fetchval("select pg_get_functiondef('processor.schema_version()'::regprocedure)")
    await admin.execute(
        "create or replace function processor.schema_version() returns int language sql immutable "
        f"set search_path = '', pg_temp as 'select {version}'"
    )
    try:
        by_api, by_database = await found(project_of(stack), stack.db_url)
    finally:
        await admin.execute(as_it_was)
    assert by_api.check, by_database.check == ("schema", "schema")
    assert f"has version {version}, this package needs {SCHEMA_VERSION}" in by_api.seen
    assert mend in by_api.mend
    assert by_database.seen == by_api.seen


async def test_a_table_that_realtime_does_not_publish(stack, admin) -> None:
    await admin.execute("alter publication supabase_realtime drop table public.job_workers")
    try:
        schema, joining, database = await found(project_of(stack), stack.db_url)
    finally:
        await admin.execute("alter publication supabase_realtime add table public.job_workers")
    assert "public.job_workers is not in the publication" in schema.seen
    assert "cannot be joined: channel_error" in joining.seen
    assert (database.check, database.mark) == ("database", Mark.WARN)
    assert await workers(admin) == 0


async def test_a_change_that_does_not_come_back(stack, admin, monkeypatch) -> None:
    monkeypatch.setattr(realtime, "_ECHO_SECONDS", 1.0)
    policy = "job_workers_are_read_by_workers on public.job_workers"
    await admin.execute(f"drop policy {policy}")
    try:
        keys = {"SUPABASE_KEY": least_token(stack), "SUPABASE_ANON_KEY": stack.anon_key}
        [finding] = await found({"SUPABASE_URL": stack.url} | keys)
    finally:
        await admin.execute(f"create policy {policy} for select to job_processor using (true)")
    assert (finding.check, finding.mark) == ("realtime", Mark.FAIL)
    assert "a change did not arrive within 1 s" in finding.seen


async def test_row_level_security_that_is_off(stack, admin) -> None:
    await admin.execute("alter table public.job_kinds disable row level security")
    try:
        by_api, by_database = await found(project_of(stack), stack.db_url)
    finally:
        await admin.execute("alter table public.job_kinds enable row level security")
    assert "row level security of public.job_kinds is off" in by_api.seen
    assert (by_api.mark, by_database.mark) == (Mark.FAIL, Mark.FAIL)


async def test_websockets_that_do_not_pass(stack) -> None:
    async with FaultProxy(stack.url) as proxy:
        proxy.refuse("websocket")
        [finding] = await found(project_of(stack) | {"SUPABASE_URL": proxy.url})
    assert (finding.check, finding.mark) == ("realtime", Mark.FAIL)
    assert "cannot be joined: unreachable" in finding.seen


async def test_polling_needs_no_realtime(stack) -> None:
    async with FaultProxy(stack.url) as proxy:
        proxy.refuse("websocket")
        environment = project_of(stack) | {"SUPABASE_URL": proxy.url, "PROCESSOR_FEED": "polling"}
        assert await found(environment) == []


@pytest.mark.parametrize(("wrong", "says"), [(30.0, "ahead of the database"), (-30.0, "behind the database")])
async def test_a_clock_that_is_wrong(stack, monkeypatch, wrong: float, says: str) -> None:
    right = time.time
    monkeypatch.setattr(project.time, "time", lambda: right() + wrong)
    [finding] = await found(project_of(stack) | {"PROCESSOR_FEED": "polling"})
    assert (finding.check, finding.mark) == ("clock", Mark.WARN)
    assert says in finding.seen


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"wal_level": "replica"}, "wal_level is replica"),
        ({"broadcast": False}, "no realtime.send()"),
    ],
)
def test_a_database_that_lacks_what_realtime_needs(seen: dict[str, Any], says: str) -> None:
    well = {
        "now": "2026-11-22T12:00:00Z",
        "schema_version": SCHEMA_VERSION,
        "role": "service_role",
        "problems": (),
        "wal_level": "logical",
        "broadcast": True,
    }
    base = {"SUPABASE_URL": "http://x", "SUPABASE_KEY": "sb_secret_1234567890"}
    settings = load(environment=base | {"PROCESSOR_FEED": "broadcast"})
    assert not list(project._realtime(settings, project.Installation.model_validate(well)))
    [finding] = project._realtime(settings, project.Installation.model_validate(well | seen))
    assert finding.mark is Mark.FAIL
    assert says in finding.seen


async def test_broadcasts_are_tried_where_they_are_used(stack) -> None:
    assert await found(project_of(stack) | {"PROCESSOR_FEED": "broadcast"}) == []


def test_a_database_url_that_leads_nowhere(stack) -> None:
    said = command(
        stack, "--database-url", "postgresql://postgres:s3cret@127.0.0.1:9/postgres", PROCESSOR_FEED="polling"
    )
    assert said.returncode == 1
    assert "✗ database cannot connect to the database at 127.0.0.1:9" in said.stdout
    assert "s3cret" not in said.stdout + said.stderr


def test_a_spool_that_cannot_be_written_and_one_that_can(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [finding] = host._spool(tmp_path / "file" / "spool")
    assert finding.mark is Mark.FAIL
    assert "cannot be written" in finding.seen
    [finding] = host._spool(tmp_path / "to" / "be" / "made")
    assert finding.mark is Mark.OK


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(host, "_FREE_MB", 10**12)
    [finding] = host._spool(tmp_path)
    assert finding.mark is Mark.WARN


def test_fewer_files_than_the_slots_may_want() -> None:
    base = {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_KEY": "sb_secret_1234567890"}
    many = {"PROCESSOR_SLOTS": "1000", "PROCESSOR_ITEM_CONCURRENCY": "1000"}
    marks = {f.check: f.mark for f in host.host(load(environment=base | many))}
    assert marks["files"] is Mark.WARN


def test_a_key_given_twice_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sb_secret_abcdefghij")
    environment = {"SUPABASE_KEY": "sb_secret_1234567890", "SUPABASE_KEY_FILE": str(tmp_path / "key")}
    _, finding, *_ = host.settings(load(environment={"SUPABASE_URL": "http://x"} | environment))
    assert finding.mark is Mark.WARN
    assert finding.mend == "Remove one of them."
