"""``processor dev`` as people and tests run it: a process, its output, its end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import jwt
import pytest

from processor.web.panel import STATIC

APP = """
from typing import Any
from processor import JobContext, Processor

app = Processor()


@app.job("greet", public=True, credits_per_job=1)
async def greet(job: JobContext[dict[str, Any]]) -> dict[str, Any]:
    return {"greeting": "hello " + job.payload["name"]}
"""
WITHOUT_EXTRA = "import sys; sys.modules['psycopg'] = None; from processor.cli import main; main()"


async def ready(dev):
    """Wait for the process to be ready; its address and keys."""
    return await asyncio.to_thread(dev.ready)


async def stop(dev, number: int = signal.SIGTERM) -> int:
    return await asyncio.to_thread(dev.stop, number)


def descendants(pid: int) -> set[int]:
    """Find all processes that ``pid`` has started, and those have."""
    children: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, set()).add(int(stat.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        new = children.get(todo.pop(), set()) - found
        found |= new
        todo.extend(new)
    return found


def gone(pids: set[int]) -> bool:
    """Whether none of them runs (a zombie that nobody waits for does not)."""
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True


def run_dev(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "processor", "dev", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_one_line_and_ends_well_when_asked_to(dev_process, tmp_path, number):
    dev = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    stack = await ready(dev)
    assert stack.pid == dev.process.pid
    headers = {"apikey": stack.anon_key}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, trust_env=False) as client:
        assert (await client.get("/auth/v1/health")).status_code == 200
    pids = descendants(stack.pid)
    assert pids
    rest = dev.process.stdout
    assert await stop(dev, number) == 0
    assert rest.closed
    assert gone(pids)
    assert dev.stderr() == ""


async def test_a_signal_while_it_starts_ends_it_well_too(dev_process, tmp_path, eventually):
    dev = dev_process("--data-dir", str(tmp_path / "data"))
    await eventually((tmp_path / "data/cluster.new").exists, within=30)
    pids = descendants(dev.process.pid)
    assert await stop(dev) == 0, dev.stderr()
    await eventually(lambda: gone(pids))
    # and what it left starts
    again = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    await ready(again)


async def test_when_it_is_killed_nothing_stays_behind(dev_process, tmp_path, eventually):
    dev = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    pids = descendants((await ready(dev)).pid)
    await stop(dev, signal.SIGKILL)
    await eventually(lambda: gone(pids), within=20)
    again = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    await ready(again)


async def test_an_open_websocket_does_not_hold_it_up(dev_process, tmp_path):
    dev = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    stack = await ready(dev)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    writer.write(
        f"GET /realtime/v1/websocket?apikey={stack.anon_key}&vsn=1.0.0 HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readline()
    async with asyncio.timeout(8):
        assert await stop(dev) == 0
    writer.close()


async def test_no_schema_leaves_the_project_blank(dev_process, tmp_path):
    stack = await ready(dev_process("--data-dir", str(tmp_path / "data"), "--no-schema"))
    connection = await asyncpg.connect(stack.db_url)
    try:
        assert await connection.fetchval("select to_regclass('public.jobs')") is None
    finally:
        await connection.close()


async def test_it_uses_a_server_it_is_given(dev_process, tmp_path, stack):
    other = await ready(dev_process("--data-dir", str(tmp_path / "unused"), "--database-url", stack.db_url))
    assert other.db_url == stack.db_url
    assert other.url != stack.url
    headers = {"apikey": other.service_role_key, "Authorization": f"Bearer {other.service_role_key}"}
    async with httpx.AsyncClient(base_url=other.url, headers=headers, trust_env=False) as client:
        assert (await client.get("/rest/v1/jobs", params={"limit": 1})).status_code == 200
    assert not os.path.exists(tmp_path / "unused")  # noqa: ASYNC240, PTH110 - one stat in a test


async def test_people_get_lines_to_copy_from(tmp_path):
    built = (STATIC / "index.html").exists()
    command = [sys.executable, "-m", "processor", "dev", "--port", "0", "--no-schema"]
    dev = await asyncio.create_subprocess_exec(
        *command,
        "--data-dir",
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"COLUMNS": "40"},
    )
    lines = {}
    async with asyncio.timeout(30):
        while not (line := (await dev.stdout.readline()).decode()).startswith("Ctrl-C"):
            name, _, value = line.partition(": ")
            lines[name.strip()] = value.strip()
        dev.send_signal(signal.SIGINT)
        await dev.communicate()
    assert dev.returncode == 0
    assert lines["API URL"].startswith("http://127.0.0.1:")
    assert lines["DB URL"].startswith("postgresql://postgres:")
    assert lines["anon key"].count(".") == 2
    assert lines["service_role key"].count(".") == 2
    assert "JWT secret" in lines
    assert lines["panel"].startswith(f"{lines['API URL']}/panel/")
    assert built or "./scripts/panel" in lines["panel"]


async def test_the_end_of_postgresql_ends_it_with_an_error(dev_process, tmp_path):
    dev = dev_process("--data-dir", str(tmp_path / "data"), "--no-schema")
    await ready(dev)
    pid = (tmp_path / "data/cluster/postmaster.pid").read_text().split()[0]
    os.kill(int(pid), signal.SIGINT)
    assert await asyncio.to_thread(dev.process.wait, 20) == 1
    assert "PostgreSQL ended by itself" in dev.stderr()


def test_a_second_one_in_the_same_directory_is_told(stack, tmp_path):
    taken = stack.url.rpartition(":")[2]
    result = run_dev("--port", taken, "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert f"port {taken}" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_it_says_what_to_install():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, "dev"], capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == 1
    assert "pip install 'supabase-job-processor[local]'" in result.stderr


async def test_with_an_application_it_runs_the_daemon_and_has_a_demo_user(
    dev_process, tmp_path, monkeypatch, eventually
):
    (tmp_path / "greeter.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for _ in range(2):  # the second start finds the user of the first
        dev = dev_process("greeter:app", "--data-dir", str(tmp_path / "data"))
        stack = await ready(dev)
        pids = descendants(stack.pid)
        user = stack.demo_user
        headers = {"apikey": stack.anon_key}
        async with httpx.AsyncClient(base_url=stack.url, headers=headers, trust_env=False) as client:
            credentials = {"email": user["email"], "password": user["password"]}
            session = await client.post("/auth/v1/token?grant_type=password", json=credentials)
            client.headers["Authorization"] = f"Bearer {session.json()['access_token']}"
            account = (await client.get("/rest/v1/credit_accounts", params={"select": "issued"})).json()
            assert account == [{"issued": user["credits"]}]

            async def created(client=client, dev=dev) -> dict | None:
                body = {"kind": "greet", "payload": {"name": "Ada"}}
                assert dev.process.poll() is None, dev.stderr()
                answer = await client.post("/rest/v1/rpc/create_job", json=body)
                return answer.json() if answer.status_code == 200 else None

            job = await eventually(created, within=20)

            async def result(client=client, job=job) -> dict | None:
                rows = await client.get("/rest/v1/jobs", params={"id": f"eq.{job['id']}", "select": "result"})
                return rows.json()[0]["result"]

            assert await eventually(result, within=20) == {"greeting": "hello Ada"}
            offered = (await client.get(f"{stack.panel_url}config.json", headers={"apikey": ""})).json()
            assert (offered["url"], offered["key"]) == (stack.url, stack.anon_key)
            assert offered["demo"][0] == credentials
            session = await client.post("/auth/v1/token?grant_type=password", json=offered["demo"][1])
            claims = jwt.decode(session.json()["access_token"], options={"verify_signature": False})
            assert claims["sub"] == stack.operator_user["id"]
            assert claims["app_metadata"]["is_operator"] is True
        assert await stop(dev) == 0, dev.stderr()
        await eventually(lambda pids=pids: gone(pids))


async def test_the_end_of_the_daemon_ends_it_with_an_error(dev_process, tmp_path):
    dev = dev_process("no_such_module:app", "--data-dir", str(tmp_path / "data"))
    await ready(dev)
    assert await asyncio.to_thread(dev.process.wait, 30) == 1
    assert "the daemon ended by itself: exit code" in dev.stderr()
