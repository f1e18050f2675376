"""The README's "Use it with your Supabase project", command by command, against a project that is not ours.

Local mode without the schema stands in for the project: all that is known of it are its URLs and keys.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import pytest

from processor.rpc import SCHEMA_VERSION
from tests.acceptance.terminal import Said, Terminal
from tests.daemons import Daemon
from tests.texts import ROOT, blocks

README = "README.md"
PROJECT = "Use it with your Supabase project"


def command(line: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the README as a newcomer does: the script of the environment this test runs in."""
    scripts = Path(sys.executable).parent
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=directory,
        env={
            **os.environ,
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """Give a directory with the README's handler in app.py, which lacks only the translator it speaks of."""
    (handler,) = blocks(README, "python")["A handler"]
    translator = (
        "\nasync def my_translator(text: str, language: str) -> str:\n    return f'{text} in {language}'\n"
    )
    (tmp_path / "app.py").write_text(handler + translator)
    return tmp_path


async def sign_up(url: str, anon_key: str) -> str:
    async with httpx.AsyncClient(base_url=url, headers={"apikey": anon_key}, trust_env=False) as http:
        answer = await http.post(
            "/auth/v1/signup", json={"email": "ann@example.com", "password": "a-long-password"}
        )
        return answer.raise_for_status().json()["user"]["id"]


@pytest.mark.parametrize("way", ["database url", "sql editor"])
async def test_the_readme_leads_from_a_blank_project_to_a_finished_job(
    dev_process, newcomer, eventually, monkeypatch, way
):
    project = dev_process("--no-schema", "--data-dir", str(newcomer / "project")).ready()
    schema, keys = blocks(README, "console")[PROJECT]
    apply, status = (
        re.sub(r"'(postgresql:|…)[^']*'", f"'{project.db_url}'", line) for line in schema.splitlines()
    )
    url_line, key_line, run_line = keys.splitlines()

    # not yet: the daemon says which command to run
    early = command(
        run_line, newcomer, SUPABASE_URL=project.url, SUPABASE_SERVICE_ROLE_KEY=project.service_role_key
    )
    assert early.returncode == 1
    assert "processor schema apply --database-url" in early.stderr
    assert "Traceback" not in early.stderr

    # 1. the schema, either way
    assert command(status, newcomer).returncode == 1
    if way == "database url":
        applied = command(apply, newcomer)
        assert applied.returncode == 0, applied.stderr
        assert command(apply, newcomer).returncode == 0, "safe to repeat"
    else:
        printed = command("processor schema print", newcomer).stdout
        editor = await asyncpg.connect(project.db_url)
        for _ in range(2):
            await editor.execute(printed)
        await editor.close()
    looked = command(status, newcomer)
    assert (looked.returncode, looked.stdout.strip()) == (0, f"✓ schema version {SCHEMA_VERSION}")

    # 2. the daemon, with the two variables that the README exports
    assert url_line.startswith("export SUPABASE_URL=")
    assert key_line.startswith("export SUPABASE_SERVICE_ROLE_KEY=")
    assert run_line == "processor run app:app"
    monkeypatch.chdir(newcomer)
    daemon = await Daemon.start(
        "app:app", {"SUPABASE_URL": project.url, "SUPABASE_SERVICE_ROLE_KEY": project.service_role_key}
    )
    try:
        await daemon.ready()

        # 3. the SQL editor, statement by statement
        user = await sign_up(project.url, project.anon_key)
        (sql,) = blocks(README, "sql")[PROJECT]
        grant, create, read, check = [
            statement
            for statement in re.sub(r"--.*", "", sql).replace("<user id>", user).split(";")
            if statement.strip()
        ]
        editor = await asyncpg.connect(project.db_url)
        assert (await editor.fetchrow(grant))["available"] == 100
        await editor.fetchrow(create)

        async def finished():
            row = await editor.fetchrow(read)
            return row if row["status"] == "completed" else None

        row = await eventually(finished, within=15)
        assert (row["progress"], row["items_done"], row["credits_captured"], row["credits_refunded"]) == (
            1,
            2,
            4,
            0,
        )
        assert await editor.fetch(check) == []
        await editor.close()
    finally:
        await daemon.close()


async def test_the_commands_of_the_readme_can_be_typed(stack, service, newcomer, new_user, monkeypatch):
    lines = blocks(README, "console")["In the terminal"][0].splitlines()
    user = (await new_user()).id
    monkeypatch.chdir(newcomer)
    daemon = await Daemon.start(
        "app:app", {"SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
    )
    terminal = Terminal(stack.url, stack.service_role_key)
    terminal.environment["PYTHONPATH"] = str(ROOT)

    async def typed(lines: list[str], job_id: str = "") -> list[Said]:
        commands = [
            shlex.split(line.replace("<user id>", user).replace("<job id>", job_id)) for line in lines
        ]
        assert {command[0] for command in commands} == {"processor"}
        said = await terminal.session(*(command[1:] for command in commands))
        assert [(answer.code, answer.err) for answer in said] == [(0, "")] * len(lines), said
        return said

    try:
        await daemon.ready()
        until = next(number for number, line in enumerate(lines) if "<job id>" in line)
        made = await typed(lines[:until])
        assert "completed in " in "".join(said.out for said in made)
        (job,) = (await service.table("jobs").select("id").eq("owner_id", user).execute()).data
        told = await typed(lines[until:], job["id"])
        assert "grant" in told[-1].out
        assert job["id"] in told[-1].out
    finally:
        await typed(["processor queues limits translation --max-processing none"])
        await daemon.close()


async def test_the_knobs_of_the_readme_can_be_turned(stack, admin):
    (sql,) = blocks(README, "sql")["Turn the knobs"]
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute("insert into job_queues (name) values ('translation') on conflict do nothing")
    await admin.execute(
        "insert into job_kinds (kind, queue) values ('translate_card', 'translation') on conflict do nothing"
    )
    for statement in filter(str.strip, re.sub(r"--.*", "", sql).split(";")):
        assert await admin.execute(statement) == "UPDATE 1", statement
    await transaction.rollback()


def test_the_files_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / README).read_text()):
        assert (ROOT / target).exists(), target
