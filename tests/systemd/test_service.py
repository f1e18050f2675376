"""The service on a machine, as its operator meets it: installed from the wheel, under a real systemd."""

import asyncio
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import processor
from tests.conftest import RunningStack
from tests.faults import FaultProxy
from tests.systemd.conftest import KEY, QUEUE, ROOT, install, settings
from tests.systemd.deployment import OLDER, broken, deploy, of_version
from tests.systemd.machine import BROUGHT, Machine

pytestmark = pytest.mark.timeout(400)  # the first one waits for pip, too
UNIT = "processor.service"
INSTANCES = ["processor@a.service", "processor@b.service"]


@pytest.fixture(autouse=True)
def running(machine: Machine) -> None:
    """Begin each test with one daemon, and nothing else."""
    machine.run("systemctl", "stop", "processor-maintenance.timer", "processor@*.service")
    machine.run("systemctl", "disable", *INSTANCES)
    machine.run("systemctl", "reset-failed", "processor*", check=False)
    machine.run("systemctl", "enable", "--now", UNIT)


class Jobs:
    """What a test asks of the project."""

    def __init__(self, service: Any, machine: Machine) -> None:
        self._service = service
        self._machine = machine

    async def create(self, kind: str, payload: dict[str, Any] | None = None) -> str:
        wanted = {"kind": f"{QUEUE}.{kind}", "queue": QUEUE, "payload": payload or {}}
        return (await self._service.rpc("create_job", wanted).execute()).data["id"]

    async def cancel(self, job_id: str) -> None:
        await self._service.rpc("cancel_job", {"job_id": job_id}).execute()

    async def row(self, job_id: str) -> dict[str, Any]:
        return (await self._service.table("jobs").select("*").eq("id", job_id).execute()).data[0]

    async def becomes(self, job_id: str, status: str, within: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while (row := await self.row(job_id))["status"] != status:
            assert time.monotonic() < deadline, f"{row}\n{self._machine.trouble()}"
            await asyncio.sleep(0.05)
        return row

    async def workers(self) -> list[str]:
        """Return the names of the living."""
        rows = (await self._service.rpc("read_workers", {}).execute()).data
        return sorted(row["name"] for row in rows if row["alive"])


@pytest.fixture
def jobs(service: Any, machine: Machine) -> Jobs:
    return Jobs(service, machine)


def command_line(machine: Machine, unit: str) -> str:
    return machine.said("sh", "-c", f"tr '\\0' ' ' < /proc/{machine.pid(unit)}/cmdline")


def status(machine: Machine) -> str:
    return machine.show(UNIT, "StatusText")["StatusText"]


async def test_it_is_up_when_it_is_able_to_work_and_says_what_it_does(machine: Machine, jobs: Jobs) -> None:
    machine.run("systemctl", "restart", UNIT)  # returns when it is ready
    seen = machine.show(UNIT, "ActiveState", "SubState", "Type", "WatchdogUSec")
    assert seen == {"ActiveState": "active", "SubState": "running", "Type": "notify", "WatchdogUSec": "3s"}
    await machine.until(lambda: status(machine).startswith("realtime, 0 of 3 running"))
    await jobs.becomes(await jobs.create("greet", {"name": "x"}), "completed")
    await machine.until(lambda: status(machine) == "realtime, 0 of 3 running, 1 done/min")


async def test_it_is_not_up_while_the_project_is_away_and_comes_up_with_it(
    machine: Machine, jobs: Jobs, stack: RunningStack
) -> None:
    machine.run("systemctl", "stop", UNIT)
    try:
        async with FaultProxy(stack.url) as project:
            project.refuse()
            machine.write("/etc/processor/processor.toml", settings(project.url))
            machine.run("systemctl", "start", "--no-block", UNIT)
            await machine.until(
                lambda: "registered: the API has not accepted this worker yet" in status(machine)
            )
            assert machine.show(UNIT, "ActiveState")["ActiveState"] == "activating"
            await project.heal()
            await machine.until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "active")
            await jobs.becomes(await jobs.create("greet", {"name": "x"}), "completed")
            await asyncio.to_thread(machine.run, "systemctl", "stop", UNIT)
    finally:
        machine.write("/etc/processor/processor.toml", settings(stack.url))


async def test_a_frozen_daemon_is_started_anew(machine: Machine, jobs: Jobs) -> None:
    before, restarts = machine.pid(UNIT), int(machine.show(UNIT, "NRestarts")["NRestarts"])
    machine.run("kill", "-STOP", str(before))
    await machine.until(lambda: machine.pid(UNIT) not in {0, before})
    await machine.until(lambda: machine.show(UNIT, "SubState")["SubState"] == "running")
    assert int(machine.show(UNIT, "NRestarts")["NRestarts"]) == restarts + 1
    said = machine.said("journalctl", "--no-pager", "--unit", UNIT, "--output=cat")
    assert "Watchdog timeout" in said
    await jobs.becomes(await jobs.create("greet", {"name": "x"}), "completed")


async def test_a_killed_daemon_comes_back_and_its_job_is_done(machine: Machine, jobs: Jobs) -> None:
    job_id = await jobs.create("wait", {"seconds": 2})
    first = await jobs.becomes(job_id, "processing")
    machine.run("kill", "-KILL", str(machine.pid(UNIT)))
    row = await jobs.becomes(job_id, "completed")
    assert row["attempt"] == first["attempt"] + 1
    assert row["failures"] == 0


async def test_a_stop_waits_for_what_runs(machine: Machine, jobs: Jobs) -> None:
    job_id = await jobs.create("wait", {"seconds": 3})
    await jobs.becomes(job_id, "processing")
    await asyncio.to_thread(machine.run, "systemctl", "stop", UNIT)
    row = await jobs.row(job_id)
    assert (row["status"], row["attempt"]) == ("completed", 1)
    seen = machine.show(UNIT, "ActiveState", "Result", "ExecMainStatus")
    assert seen == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}


async def test_a_reload_takes_over_settings_without_a_restart(
    machine: Machine, jobs: Jobs, stack: RunningStack
) -> None:
    before = machine.pid(UNIT)
    machine.write("/etc/processor/processor.toml", settings(stack.url, slots=7))
    try:
        machine.run("systemctl", "reload", UNIT)
        await machine.until(lambda: "0 of 7 running" in status(machine))
        assert machine.pid(UNIT) == before
    finally:
        machine.write("/etc/processor/processor.toml", settings(stack.url))


def test_the_key_is_in_no_environment_on_no_command_line_and_in_no_log(
    machine: Machine, stack: RunningStack
) -> None:
    pid = machine.pid(UNIT)
    seen = machine.said(
        "sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ; tr '\\0' ' ' < /proc/{pid}/cmdline"
    )
    assert "CREDENTIALS_DIRECTORY=" in seen  # the right process was looked at
    assert "processor run app:app" in seen
    everything = [
        machine.said("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'"),
        machine.said("systemctl", "show", UNIT),
        machine.said("journalctl", "--no-pager", "--all", "--output=export"),
    ]
    assert [stack.service_role_key in text for text in [seen, *everything]] == [False] * 4
    assert oct((machine.root / KEY.removeprefix("/")).stat().st_mode & 0o777) == "0o600"


def test_it_is_exposed_as_little_as_promised(machine: Machine) -> None:
    judged = machine.said("systemd-analyze", "security", "--no-pager", "--threshold=15", UNIT)
    assert "Overall exposure level" in judged


async def test_what_it_logs_has_priorities_and_fields_in_the_journal(machine: Machine, jobs: Jobs) -> None:
    job_id = await jobs.create("greet", {"name": "x"})
    await jobs.becomes(job_id, "completed")
    stopped = await jobs.create("wait", {"seconds": 60})
    await jobs.becomes(stopped, "processing")
    await jobs.cancel(stopped)
    await jobs.becomes(stopped, "cancelled")

    def entries(job: str) -> list[dict[str, Any]]:
        found = [entry for entry in machine.journal(UNIT) if entry["event"].get("job_id") == job]
        return found if any(entry["event"]["event"] == "job.finished" for entry in found) else []

    well = await machine.until(lambda: entries(job_id))
    badly = await machine.until(lambda: entries(stopped))
    assert {entry["PRIORITY"] for entry in well} == {"6"}
    assert [e["PRIORITY"] for e in badly if e["event"].get("message") == "stopped"] == ["4"]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in well + badly} == {"processor"}
    assert not any("timestamp" in entry["event"] for entry in well + badly)


async def test_the_timer_rescues_while_no_daemon_runs(
    machine: Machine, jobs: Jobs, admin: asyncpg.Connection
) -> None:
    job_id = await jobs.create("wait", {"seconds": 60})
    await jobs.becomes(job_id, "processing")
    machine.write(f"/etc/systemd/system/{UNIT}.d/zz-dead.conf", "[Service]\nRestart=no\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("kill", "-KILL", str(machine.pid(UNIT)))
        await machine.until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "failed")
        over = "update public.job_workers set lease_expires_at = clock_timestamp() - interval '1 second'"
        await admin.execute(over)
        machine.write(
            "/etc/systemd/system/processor-maintenance.timer.d/quick.conf",
            "[Timer]\nOnCalendar=\nOnActiveSec=1\nRandomizedDelaySec=0\n",
        )
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "processor-maintenance.timer")
        row = await jobs.becomes(job_id, "pending")
        assert row["failures"] == 0
        result = lambda: machine.show("processor-maintenance.service", "Result")["Result"]  # noqa: E731
        await machine.until(lambda: result() == "exit-code")  # systemctl --failed shows that nobody is alive
        said = [entry["event"].get("event") for entry in machine.journal("processor-maintenance.service")]
        assert "maintenance.alert" in said
    finally:
        for drop_in in (f"{UNIT}.d/zz-dead.conf", "processor-maintenance.timer.d/quick.conf"):
            (machine.root / "etc/systemd/system" / drop_in).unlink(missing_ok=True)
        machine.run("systemctl", "daemon-reload")
        await admin.execute("select public.cancel_job($1::uuid)", job_id)


async def test_three_that_are_started_at_once_are_exactly_three(machine: Machine, jobs: Jobs) -> None:
    machine.run("systemctl", "stop", UNIT)
    units = [f"processor@{name}.service" for name in ("a", "b", "c")]
    machine.run("systemctl", "start", *units)
    names = ["machine-a", "machine-b", "machine-c"]
    assert [name for name in await jobs.workers() if name.startswith("machine")] == names
    assert len({machine.pid(unit) for unit in units}) == 3
    # one of a fourth unit that claims a name of theirs stays away, and is not tried again
    machine.write("/etc/processor/d.env", "PROCESSOR_NAME=machine-a\n")
    assert machine.run("systemctl", "start", "processor@d.service", check=False)[0] != 0
    assert machine.show("processor@d.service", "ActiveState")["ActiveState"] == "failed"
    assert "a daemon called 'machine-a' already works" in machine.said(
        "journalctl", "--no-pager", "--unit", "processor@d.service", "--output=cat"
    )
    assert [name for name in await jobs.workers() if name.startswith("machine")] == names


def test_what_an_operator_has_stopped_stays_so_in_an_upgrade_and_on_the_way_back(
    machine: Machine, wheel: Path
) -> None:
    first = machine.said("readlink", f"{ROOT}/current")
    machine.run("systemctl", "stop", UNIT)
    said = machine.said(*install(wheel))
    assert said.endswith(f": nothing ran; left stopped: processor-maintenance.timer {UNIT}")
    second = machine.said("readlink", f"{ROOT}/current")
    machine.run("systemctl", "start", "processor@a.service")
    rollback = f"{BROUGHT}/scripts/install-service", "--rollback"
    machine.run(*rollback)
    assert machine.said("readlink", f"{ROOT}/current") == first != second
    assert first in command_line(machine, "processor@a.service")
    said = machine.said(*install(wheel), "--upgrade")
    assert said.endswith(": processor@a.service")
    assert machine.said("readlink", f"{ROOT}/current") in command_line(machine, "processor@a.service")
    assert machine.show(UNIT, "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "enabled",
    }
    machine.run(*rollback)
    assert machine.run(*rollback, check=False)[0] == 5  # there is one way back


async def test_two_instances_change_over_ssh_between_two_schemas_under_load_and_no_job_is_lost_or_runs_twice(
    machine: Machine, jobs: Jobs, wheel: Path, inventory: Path, admin: asyncpg.Connection, stack: RunningStack
) -> None:
    """The load lasts from the new package through an older one, which the schema still serves, and back."""
    machine.run("systemctl", "disable", "--now", UNIT)
    machine.write("/etc/processor/processor.toml", settings(stack.url, slots=20))
    machine.run("systemctl", "enable", "--now", *INSTANCES)
    before = machine.said("readlink", f"{ROOT}/current")
    made: list[str] = []

    async def load() -> None:
        while True:
            made.append(await jobs.create("linger", {"seconds": 0.3}))
            await asyncio.sleep(0.05)

    async def until_both_serve(version: str) -> None:
        done = 0
        async with asyncio.timeout(60):
            while done < 2:
                assert not loading.done(), loading.exception()
                done = await admin.fetchval(
                    """
                    select count(distinct j.result ->> 'name') from public.jobs j
                    where j.id = any ($1::uuid[]) and j.result ->> 'version' = $2
                    """,
                    made,
                    version,
                )
                await asyncio.sleep(0.1)

    loading = asyncio.create_task(load(), name="load")
    try:
        await until_both_serve(processor.__version__)
        older = of_version(wheel, inventory.parent, OLDER)
        code, host, log = await asyncio.to_thread(deploy, inventory, "--wheel", older)
        assert (code, host["state"]) == (0, "upgraded"), f"{host}\n{log}\n{machine.trouble()}"
        assert f"installed processor {OLDER}" in host["said"]
        await until_both_serve(OLDER)
        code, host, log = await asyncio.to_thread(deploy, inventory, "--rollback")
        assert (code, host["state"]) == (0, "went back"), f"{host}\n{log}\n{machine.trouble()}"
        assert machine.said("readlink", f"{ROOT}/current") == before
    finally:
        loading.cancel()
        await asyncio.wait({loading})
        machine.write("/etc/processor/processor.toml", settings(stack.url))
    assert loading.cancelled(), loading.exception()
    for job_id in made:
        await jobs.becomes(job_id, "completed")
    rows = await admin.fetch(
        """
        select j.failures, j.crashes, extract(epoch from j.started_at - j.created_at) as waited,
          (select count(*) from public.job_logs l where l.job_id = j.id and l.message = 'lingering') as runs
        from public.jobs j where j.id = any ($1::uuid[])
        """,
        made,
    )
    assert len(rows) == len(made) > 50
    # an attempt more is no second run: what a claim brings just as its daemon is stopped goes back untouched
    assert {(row["failures"], row["crashes"], row["runs"]) for row in rows} == {(0, 0, 1)}
    # never worse than by polling
    assert max(row["waited"] for row in rows) < 5
    # each of the daemons that were replaced had something to finish
    stopped = [
        entry["event"]["running"]
        for unit in INSTANCES
        for entry in machine.journal(unit)
        if entry["event"].get("event") == "daemon.stopping"
    ]
    assert len(stopped) >= 4
    assert any(stopped)


def test_a_version_that_does_not_run_goes_back_over_ssh_and_what_was_stopped_stays_so(
    machine: Machine, wheel: Path, inventory: Path
) -> None:
    machine.run("systemctl", "enable", "--now", *INSTANCES)
    before = machine.said("readlink", f"{ROOT}/current")
    machine.run("systemctl", "stop", INSTANCES[1])
    code, host, log = deploy(inventory, "--wheel", broken(wheel, inventory.parent))
    assert (code, host["state"]) == (1, "failed, went back"), f"{host}\n{log}\n{machine.trouble()}"
    assert machine.said("readlink", f"{ROOT}/current") == before
    assert before in command_line(machine, INSTANCES[0])
    assert [machine.show(unit, "ActiveState")["ActiveState"] for unit in INSTANCES] == ["active", "inactive"]
    assert not list((machine.root / "tmp").glob("processor-deploy.*"))


def test_what_cannot_be_installed_changes_nothing(machine: Machine) -> None:
    before = (
        machine.said("readlink", f"{ROOT}/current"),
        machine.pid(UNIT),
        machine.said("ls", f"{ROOT}/versions"),
    )
    machine.write(f"{BROUGHT}/supabase_job_processor-9-py3-none-any.whl", "no wheel at all")
    broken = f"{BROUGHT}/supabase_job_processor-9-py3-none-any.whl"
    code, said = machine.run(f"{BROUGHT}/scripts/install-service", "--wheel", broken, check=False)
    assert code != 0
    assert "nothing has changed" in said
    after = (
        machine.said("readlink", f"{ROOT}/current"),
        machine.pid(UNIT),
        machine.said("ls", f"{ROOT}/versions"),
    )
    assert after == before


def test_what_is_uninstalled_leaves_its_data_until_they_are_purged(machine: Machine, wheel: Path) -> None:
    there = "test -e {} && echo there || echo gone"

    def look(path: str) -> str:
        return machine.said("sh", "-c", there.format(path))

    state = "/var/lib/private/supabase-job-processor/main"
    places = [KEY, "/etc/processor/processor.toml", state, f"{ROOT}/app/app.py"]
    machine.run(f"{BROUGHT}/scripts/uninstall-service")
    assert machine.run("systemctl", "is-active", UNIT, check=False)[1] == "inactive"
    assert machine.show(UNIT, "LoadState")["LoadState"] == "not-found"
    assert [look(path) for path in places] == ["there"] * 4
    assert look(f"{ROOT}/current") == "gone"
    machine.run(f"{BROUGHT}/scripts/uninstall-service")  # again: nothing to do
    machine.run(f"{BROUGHT}/scripts/uninstall-service", "--purge")
    assert [look(path) for path in places] == ["gone"] * 4
    assert look(ROOT) == "gone"
