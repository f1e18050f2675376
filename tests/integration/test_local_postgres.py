"""The supervised PostgreSQL: as root, with any of the supported versions, through kills and restarts."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import uvloop

from processor.local.postgres import Postgres, PostgresError, wheel_bin_dir

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
needs_15 = pytest.mark.skipif(not DEBIAN_15.exists(), reason="PostgreSQL 15 of Debian is not installed")

# starts a server in the directory, says its process id and waits to be killed
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from processor.local.postgres import Postgres

async def main():
    postgres = Postgres(Path(sys.argv[1]))
    await postgres.start()
    print((Path(sys.argv[1]) / "cluster/postmaster.pid").read_text().split()[0], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def start(tmp_path):
    """Start servers, and stop them at the end."""
    started = []

    async def start(directory: Path | None = None, **options) -> Postgres:
        options = {"durable": False} | options
        started.append(Postgres(directory or tmp_path / "data", **options))
        await started[-1].start()
        return started[-1]

    yield start
    for postgres in reversed(started):
        await postgres.stop()


async def ask(dsn: str, query: str):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def server_pid(postgres: Postgres) -> int:
    return int((postgres.directory / "cluster/postmaster.pid").read_text().split()[0])


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def exists(path: Path | str) -> bool:
    return Path(path).exists()


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture
def supervisor(tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """Supervise a server in ``data`` from another process."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    "bin_dir", [pytest.param(None, id="wheel"), pytest.param(DEBIAN_15, id="15", marks=needs_15)]
)
async def test_it_listens_on_a_socket_and_on_loopback_and_asks_for_the_password(start, bin_dir):
    postgres = await start(bin_dir=bin_dir)
    for dsn in (postgres.dsn(), postgres.tcp_dsn()):
        assert await ask(dsn, "show wal_level") == "logical"
        assert await ask(dsn, "select upper('ä') || current_user") == "Äpostgres"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await ask(dsn.replace(postgres.password, "wrong"), "select 1")
    assert await ask(postgres.dsn(), "show listen_addresses") == "127.0.0.1"


async def test_stop_leaves_no_process_and_no_socket_directory(start):
    postgres = await start()
    pid = server_pid(postgres)
    sockets = await ask(postgres.dsn(), "show unix_socket_directories")
    assert runs(pid)
    assert exists(sockets)
    await postgres.stop()
    await postgres.stop()
    assert not runs(pid)
    assert not exists(sockets)
    assert not exists(postgres.directory / "cluster/postmaster.pid")


async def test_stop_does_not_wait_for_open_connections(start):
    postgres = await start()
    connection = await asyncpg.connect(postgres.dsn())
    async with asyncio.timeout(5):
        await postgres.stop()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("select 1")
    connection.terminate()


async def test_data_and_password_outlive_a_restart(start):
    first = await start(durable=True)
    await ask(first.dsn(), "create table kept as select 7 as value")
    await first.stop()
    second = await start(durable=True)
    assert second.password == first.password
    assert await ask(second.dsn(), "select value from kept") == 7


async def test_a_server_that_was_killed_recovers(start):
    first = await start(durable=True)
    await ask(first.dsn(), "create table kept as select 7 as value")
    os.kill(server_pid(first), signal.SIGKILL)
    async with asyncio.timeout(10):
        await first.wait()
    await first.stop()
    second = await start(durable=True)
    assert await ask(second.dsn(), "select value from kept") == 7


async def test_when_its_supervisor_is_killed_the_server_stops_and_the_next_one_takes_over(start, supervisor):
    pid = int(await asyncio.to_thread(supervisor.stdout.readline))
    assert runs(pid)
    supervisor.kill()
    await asyncio.to_thread(supervisor.wait)
    # at once: the orphan may still be stopping
    postgres = await start()
    assert await ask(postgres.dsn(), "select 1") == 1
    assert not runs(pid)


async def test_a_directory_has_one_supervisor(start):
    postgres = await start()
    with pytest.raises(PostgresError, match=r"in use by another local stack.*--data-dir"):
        await start(postgres.directory)
    assert await ask(postgres.dsn(), "select 1") == 1


async def test_a_cluster_of_another_version_is_named(start):
    postgres = await start()
    await postgres.stop()
    (postgres.directory / "cluster/PG_VERSION").write_text("14\n")
    with pytest.raises(PostgresError, match=r"made by PostgreSQL 14.*remove the directory"):
        await start()


async def test_a_deep_directory_is_no_obstacle(start, tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    assert await ask((await start(deep)).dsn(), "select 1") == 1


async def test_a_wanted_port_is_taken_if_it_is_free(start, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert (await start(tmp_path / "one", port=port)).port == port
    assert (await start(tmp_path / "two", port=port)).port != port


async def test_a_start_that_is_cancelled_leaves_a_directory_that_starts(start, tmp_path, eventually):
    interrupted = asyncio.create_task(start())
    await eventually((tmp_path / "data/cluster.new").exists, every=0.005)
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert not exists(tmp_path / "data/cluster")
    assert await ask((await start()).dsn(), "select 1") == 1


def test_a_start_that_is_cancelled_when_a_tool_has_just_ended_is_cancelled_and_nothing_else(
    tmp_path, eventually
):
    tools, ended = tmp_path / "tools", tmp_path / "ended"
    tools.mkdir()
    version = tools / "postgres"
    # it ends, and what it has left behind keeps its output open
    version.write_text(f"#!/bin/sh\nsleep 60 &\necho $$ $! > {ended}.new\nmv {ended}.new {ended}\n")
    version.chmod(0o755)

    async def cancel() -> None:
        starting = asyncio.create_task(Postgres(tmp_path / "data", bin_dir=tools).start())
        await eventually(ended.exists, within=30)
        tool, left = map(int, ended.read_text().split())
        try:
            await eventually(lambda: not exists(f"/proc/{tool}"), within=30)
            await asyncio.sleep(0)  # it has been waited for; the loop knows after this
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        finally:
            os.kill(left, signal.SIGKILL)
            await eventually(lambda: not runs(left), within=30)
            for _ in range(5):
                await asyncio.sleep(0)  # the loop hears that the output is closed before it is closed itself

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `processor dev` has it
        runner.run(cancel())


async def test_what_the_server_said_is_in_the_error(start, tmp_path):
    postgres = await start()
    await postgres.stop()
    (postgres.directory / "cluster/postgresql.auto.conf").write_text("shared_buffers = nonsense\n")
    with pytest.raises(PostgresError, match="shared_buffers"):
        await start()


async def test_missing_binaries_are_named(tmp_path, start):
    with pytest.raises((PostgresError, FileNotFoundError), match="nowhere"):
        await start(bin_dir=tmp_path / "nowhere")


@needs_15
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_root_without_user_namespaces_runs_it_as_nobody(start, reachable, only_setpriv, monkeypatch):
    monkeypatch.setenv("PATH", str(only_setpriv))
    postgres = await start(reachable / "data", bin_dir=DEBIAN_15)
    assert owner(server_pid(postgres)) == 65534
    assert await ask(postgres.dsn(), "select 1") == 1


@pytest.fixture
def only_setpriv(tmp_path) -> Path:
    """Make a directory of programs that lacks unshare, as a container without user namespaces does."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "setpriv").symlink_to("/usr/bin/setpriv")
    return tools


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Make a directory that other users may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_the_wheel_has_the_binaries():
    assert (wheel_bin_dir() / "postgres").exists()
