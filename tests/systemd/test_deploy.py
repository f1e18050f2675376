"""A version comes over ssh to a machine with a real systemd: real installer, real units, a real way back."""

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.conftest import SSHD
from tests.fleet.machines import free_port, key
from tests.systemd.machine import TREE, Machine

pytestmark = pytest.mark.timeout(400)  # it waits for pip
UNIT = "processor.service"
CURRENT = "opt/supabase-job-processor/current"


@pytest.fixture
def inventory(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """Let an sshd run on the machine, and name it in an inventory."""
    if not Path(SSHD).exists():
        reason = "there is no sshd here: apt-get install openssh-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    port = free_port()
    for name in ("host_key", "user_key"):
        key(tmp_path / name)
    machine.write("/etc/deploy-test/host_key", (tmp_path / "host_key").read_text(), 0o600)
    machine.write("/etc/deploy-test/authorized_keys", (tmp_path / "user_key.pub").read_text(), 0o600)
    pip = " ".join(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("PIP_") and " " not in value
    )
    machine.write(
        "/etc/deploy-test/sshd_config",
        f"""
        ListenAddress 127.0.0.1:{port}
        HostKey /etc/deploy-test/host_key
        AuthorizedKeysFile /etc/deploy-test/authorized_keys
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin yes
        SetEnv HOME=/var/empty PATH=/usr/sbin:/usr/bin:/sbin:/bin {pip}
        """,
    )
    machine.run("mkdir", "-p", "/run/sshd")
    machine.run("systemctl", "start", UNIT)
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/deploy-test/sshd_config"]
    machine.run("systemd-run", "--collect", "--unit=deploy-sshd", *sshd)
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host_key.pub').read_text()}")
    path = tmp_path / "inventory.toml"
    path.write_text(
        f"""
        known_hosts = "known_hosts"
        canary_seconds = 1
        [hosts.machine]
        address = "127.0.0.1"
        port = {port}
        user = "root"
        identity_file = "{tmp_path}/user_key"
        """
    )
    yield path
    machine.run("systemctl", "stop", "deploy-sshd")


def deploy(inventory: Path, *arguments: str | Path) -> tuple[int, dict[str, str], str]:
    done = subprocess.run(
        [TREE / "scripts" / "deploy", inventory, "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout, done.stderr
    [host] = json.loads(done.stdout)["hosts"]
    return done.returncode, host, done.stderr


def broken(wheel: Path, directory: Path) -> Path:
    """Return a wheel like another one, whose daemon ends at once."""
    made = directory / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == "processor/daemon.py":
                begin = b"async def _start(self) -> None:\n"
                assert begin in data
                data = data.replace(begin, begin + b"        raise SystemExit('this version does not run')\n")
            target.writestr(entry, data)
    return made


def test_a_version_comes_over_ssh_and_one_that_does_not_run_goes_back(
    machine: Machine, wheel: Path, inventory: Path, tmp_path: Path
) -> None:
    before = (machine.root / CURRENT).readlink()
    pid = machine.pid(UNIT)
    code, host, log = deploy(inventory, "--wheel", wheel)
    assert (code, host["state"]) == (0, "upgraded"), f"{host}\n{log}\n{machine.trouble()}"
    assert "installed processor" in host["said"]
    good = (machine.root / CURRENT).readlink()
    assert good != before
    assert machine.pid(UNIT) not in {0, pid}

    code, host, log = deploy(inventory, "--wheel", broken(wheel, tmp_path))
    assert (code, host["state"]) == (1, "failed, went back"), f"{host}\n{log}\n{machine.trouble()}"
    assert (machine.root / CURRENT).readlink() == good
    assert machine.show(UNIT, "ActiveState")["ActiveState"] == "active"
    assert not list((machine.root / "tmp").glob("processor-deploy.*"))
