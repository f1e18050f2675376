"""Signals to a real daemon: settings read again, a dump of what hangs, a terminal that goes away, a drain."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import jwt
import pytest

from tests.daemons import Daemon
from tests.integration.test_daemon_lifecycle import TARGET, Place


@pytest.fixture
def place(stack, service, eventually) -> Place:
    return Place(stack, service, eventually)


def settings_file(directory: Path, **settings: object) -> Path:
    path = directory / "processor.toml"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return path


async def reloaded(daemon: Daemon, number: int = 1) -> dict:
    """Send SIGHUP and return what the daemon says of the ``number``th time."""
    daemon.signal(signal.SIGHUP)
    said = await daemon.event("config.reloaded", where=lambda _: len(daemon.all("config.reloaded")) >= number)
    return daemon.all("config.reloaded")[number - 1] if number > 1 else said


async def test_sighup_gives_more_slots_and_fewer_without_losing_a_job(
    place: Place,
    admin: asyncpg.Connection,
    tmp_path: Path,
) -> None:
    file = settings_file(tmp_path, slots=1)
    async with place.daemon(PROCESSOR_CONFIG=str(file)) as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        first, second, third = [await place.create("wait", {"seconds": 30}) for _ in range(3)]
        await daemon.event("job.started", job_id=first)
        settings_file(tmp_path, slots=2)
        assert (await reloaded(daemon))["changed"] == {"slots": 2}
        await daemon.event("job.started", job_id=second)
        told = await admin.fetchval("select slots from public.job_workers where id = $1::uuid", worker_id)
        assert told == 2
        settings_file(tmp_path, slots=1)
        await reloaded(daemon, 2)
        await place.rest.rpc("cancel_job", {"job_id": first}).execute()
        await place.becomes(first, "cancelled")
        assert (await place.row(second))["status"] == "processing"  # it was not stopped
        assert (await place.row(third))["status"] == "pending"  # the second fills the one slot there is
        await place.rest.rpc("cancel_job", {"job_id": second}).execute()
        await daemon.event("job.started", job_id=third)


async def test_sighup_changes_the_log_level_and_the_grace(place: Place, tmp_path: Path) -> None:
    file = settings_file(tmp_path, grace_seconds=60)
    async with place.daemon(PROCESSOR_CONFIG=str(file)) as daemon:
        await daemon.ready()
        settings_file(tmp_path, grace_seconds=0.1, log_level="debug")
        assert (await reloaded(daemon))["changed"] == {"grace_seconds": 0.1, "log_level": "debug"}
        await place.create("items", items=["a"])
        await daemon.event("item.finished", level="debug")
        job_id = await place.create("wait", {"seconds": 30})
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0  # it does not wait for a minute
        assert daemon.all("daemon.releasing")
    assert (await place.row(job_id))["failures"] == 0


async def test_sighup_takes_a_new_key_from_its_file(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "key"

    def issue(life: int) -> str:
        claims = {"role": "job_processor", "exp": int(time.time()) + life}
        file.write_text(jwt.encode(claims, place.stack.jwt_secret, algorithm="HS256"))
        return file.read_text()

    issue(3600)
    environment = {
        "SUPABASE_SERVICE_ROLE_KEY": "",
        "SUPABASE_SERVICE_ROLE_KEY_FILE": str(file),
        "SUPABASE_ANON_KEY": place.stack.anon_key,
    }
    async with place.daemon(**environment) as daemon:
        await daemon.ready()
        new = issue(7200)
        assert (await reloaded(daemon))["changed"] == {"key": "changed"}
        assert daemon.all("credential.renewed")
        await place.becomes(await place.create("end", {"how": "table"}), "completed")
        assert new not in daemon.log()
        file.write_text("sb_publishable_of_the_project")
        daemon.signal(signal.SIGHUP)
        await daemon.event("config.refused", where=lambda event: "public key" in event["error"])
        await place.becomes(await place.create("greet", {"name": "x"}), "completed")


async def test_what_needs_a_restart_is_named_and_nothing_changes_at_an_error(
    place: Place,
    tmp_path: Path,
) -> None:
    file = settings_file(tmp_path, slots=1)
    async with place.daemon(PROCESSOR_CONFIG=str(file)) as daemon:
        await daemon.ready()
        settings_file(tmp_path, slot=5)
        daemon.signal(signal.SIGHUP)
        assert "Did you mean 'slots'?" in (await daemon.event("config.refused", level="error"))["error"]
        file.unlink()
        daemon.signal(signal.SIGHUP)
        await daemon.event("config.refused", where=lambda event: "cannot read" in event["error"])
        settings_file(tmp_path, slots=1, lease_seconds=33, grace_seconds=7)
        assert (await reloaded(daemon))["changed"] == {"grace_seconds": 7}
        [needed] = daemon.all("config.restart_needed")
        assert needed["settings"] == ["PROCESSOR_LEASE_SECONDS"]
        done = await place.create("greet", {"name": "x"})
        await place.becomes(done, "completed")


async def test_what_the_command_line_says_stays_when_the_file_is_read_again(
    place: Place, tmp_path: Path
) -> None:
    file = settings_file(tmp_path, slots=1)
    daemon = await Daemon.start(TARGET, place_of(place), "--slots", "4", "--config", str(file))
    try:
        assert (await daemon.event("daemon.ready"))["slots"] == 4
        settings_file(tmp_path, slots=2, grace_seconds=5)
        assert (await reloaded(daemon))["changed"] == {"grace_seconds": 5}
    finally:
        await daemon.close()


def place_of(place: Place) -> dict[str, str]:
    return {
        "SUPABASE_URL": place.stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": place.stack.service_role_key,
        "TEST_PREFIX": place.queue,
    }


async def test_sigusr1_shows_what_runs_and_what_it_waits_for_and_no_secret(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        job_id = await place.create("wait", {"seconds": 30, "card": "hunter2"})
        await daemon.event("job.started", job_id=job_id)
        # another job from begin to end: the first has come as far as it can
        await place.becomes(await place.create("greet", {"name": "x"}), "completed")
        daemon.signal(signal.SIGUSR1)
        dump = await daemon.event("daemon.dump")
        assert daemon.process.poll() is None
    [job] = [job for job in dump["jobs"] if job["id"] == job_id]
    assert (job["id"], job["name"]) == (job_id, f"{place.queue}.wait")
    assert job["for_s"] >= 0
    tasks = {task["name"]: task["stack"] for task in dump["tasks"]}
    assert {"settler", "heartbeats", "claims", "reload"} <= set(tasks)
    assert any("behaviours.py" in place for place in tasks[f"handler:{place.queue}.wait:{job_id}"])
    assert any("Worker.run (" in place for place in tasks["claims"])
    assert "MainThread" in {thread["name"] for thread in dump["threads"]}
    assert dump["feed"]["mode"] == "realtime"
    assert set(dump["waiting"]) == {"checkpoints", "items", "jobs", "released", "log_lines"}
    assert "hunter2" not in str(dump)
    assert place.stack.service_role_key not in str(dump)


async def test_sigusr1_shows_where_a_handler_blocks_the_loop(place: Place) -> None:
    async with place.daemon() as daemon:
        await daemon.ready()
        job_id = await place.create("block_the_loop", {"seconds": 3})
        await daemon.event("job.log", job_id=job_id)
        daemon.signal(signal.SIGUSR1)
        dump = await daemon.event("daemon.dump", within=30)
        [main] = [thread for thread in dump["threads"] if thread["name"] == "MainThread"]
        assert any("block_the_loop" in call for call in main["stack"])
        assert not daemon.all("job.finished")  # it was asked while the loop stood still


async def test_an_operators_drain_ends_what_runs_claims_no_more_and_says_what_then(
    place: Place,
    admin: asyncpg.Connection,
) -> None:
    async with place.daemon() as daemon:
        worker_id = (await (await daemon.ready()).event("daemon.ready"))["worker_id"]
        job_id = await place.create("wait", {"seconds": 1})
        await daemon.event("job.started", job_id=job_id)
        await admin.execute("select processor.drain_worker($1)", worker_id)
        await daemon.event("lease.draining", running=1)
        late = await place.create("greet", {"name": "x"})
        drained = await daemon.event("lease.drained")
        assert (await place.row(job_id))["status"] == "completed"
        assert (await place.row(late))["status"] == "pending"
        go_on = drained["hint"].partition("let it go on: ")[2]
        assert worker_id in go_on
        await admin.execute(go_on)
        await place.becomes(late, "completed")
        await daemon.event("lease.drained_no_more")


@pytest.mark.parametrize("how", ["ctrl-c", "hang up"])
async def test_on_a_terminal_ctrl_c_drains_and_says_how_to_hurry_and_a_hang_up_drains_too(
    place: Place,
    how: str,
) -> None:
    terminal = Terminal(place_of(place) | {"PROCESSOR_GRACE_SECONDS": "60"})
    try:
        await terminal.says("feed.mode")
        job_id = await place.create("wait", {"seconds": 30 if how == "ctrl-c" else 1})
        await terminal.says("job.started")
        if how == "hang up":
            terminal.hang_up()
            assert await asyncio.to_thread(terminal.process.wait, 15) == 0
            assert (await place.row(job_id))["status"] == "completed"
            return
        terminal.type("\x03")
        await terminal.says("press Ctrl-C again to hurry")
        terminal.type("\x03")
        await terminal.says("daemon.stopped")
        assert await asyncio.to_thread(terminal.process.wait, 15) == 0
        assert (await place.row(job_id))["status"] == "pending"
    finally:
        terminal.close()


class Terminal:
    """A daemon on a terminal of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._ours, self._theirs = pty.openpty()
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("SUPABASE", "PROCESSOR"))}
        self.process = subprocess.Popen(
            # setsid(1) gives a session, whose leader takes the first terminal it opens for its own
            [sys.executable, "-c", _ON_TERMINAL, os.ttyname(self._theirs), TARGET],
            env={**clean, "TERM": "dumb", "COLUMNS": "200", **environment},
            start_new_session=True,
        )
        self.text = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        try:
            self.text += os.read(self._ours, 65536).decode(errors="replace")
            self._more.set()
        except OSError:  # nobody has the other end open any more
            asyncio.get_running_loop().remove_reader(self._ours)

    async def says(self, words: str) -> None:
        while words not in self.text:
            self._more.clear()
            try:
                async with asyncio.timeout(15):
                    await self._more.wait()
            except TimeoutError:
                raise AssertionError(f"it did not say {words!r}:\n{self.text}") from None

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def hang_up(self) -> None:
        if self._ours >= 0:
            asyncio.get_running_loop().remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()
        os.close(self._theirs)


_ON_TERMINAL = """
import os, sys
for number in range(3):
    os.close(number)
terminal = os.open(sys.argv[1], os.O_RDWR)  # which becomes this session's
os.set_inheritable(terminal, True)
os.dup2(terminal, 1)
os.dup2(terminal, 2)
os.execv(sys.executable, [sys.executable, "-m", "processor", "run", sys.argv[2]])
"""
