"""One booted machine for all tests here, with the service installed from the built wheel."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningStack
from tests.fleet.machines import free_port, key, need_sshd
from tests.systemd.machine import BROUGHT, TREE, Machine

QUEUE = "served"
KEY = "/etc/processor/credentials/SUPABASE_SERVICE_ROLE_KEY"
ROOT = "/opt/supabase-job-processor"
FIRST = f"{BROUGHT}/first"
QUICK = f"{BROUGHT}/quick"
PYTHON = f"""#!/bin/sh
# python3, but a virtual environment is the first one again, without the package: the rest takes pip long
[ "$1 $2" = '-m venv' ] || exec /usr/bin/python3 "$@"
cp -al {FIRST} "$3"
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out), "-t", "wheel"]
    subprocess.run(build, cwd=TREE, check=True, stdout=subprocess.DEVNULL, timeout=120)
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, stack: RunningStack, wheel: Path) -> Iterator[Machine]:
    """Boot a machine, and install on it as a newcomer does; what the first test waits for is mostly pip."""
    if (lacks := Machine.lacks()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(lacks)
        pytest.skip(lacks)
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        machine.boot()
        shutil.copy(wheel, machine.root / BROUGHT.removeprefix("/"))
        machine.write(
            "/etc/systemd/system/processor.service.d/quick.conf", "[Service]\nWatchdogSec=3\nRestartSec=0.2\n"
        )
        told = machine.said(f"{BROUGHT}/scripts/install-service", "--wheel", f"{BROUGHT}/{wheel.name}")
        machine.write(f"{ROOT}/app/app.py", (TREE / "tests/apps/behaviours.py").read_text())
        machine.write("/etc/processor/processor.toml", settings(stack.url))
        machine.write("/etc/processor/processor.env", f"TEST_PREFIX={QUEUE}\n")
        # what is left to do is told, to be copied
        assert machine.run("systemctl", "is-enabled", "processor.service", check=False)[1] == "disabled"
        rest = told.splitlines()[-1].removeprefix("install-service: ")
        machine.run("sh", "-c", f"printf %s '{stack.service_role_key}' | {{ {rest}; }}")
        for unit in ("processor.service", "processor-maintenance.timer"):
            assert machine.said("systemctl", "is-enabled", unit) == "enabled"
            assert machine.said("systemctl", "is-active", unit) == "active"
        machine.run("cp", "-a", f"{ROOT}/current/.", FIRST)
        own = ["systemd", "bin/processor", "lib/python3*/site-packages/*processor*"]
        machine.run("sh", "-c", f"cd {FIRST} && rm -r {' '.join(own)}")
        machine.write(f"{QUICK}/python3", PYTHON, 0o755)
        yield machine
    finally:
        machine.halt()


def install(wheel: Path) -> list[str]:
    """Return the command that upgrades."""
    python = ["--python", f"{QUICK}/python3"]
    return [f"{BROUGHT}/scripts/install-service", "--wheel", f"{BROUGHT}/{wheel.name}", *python]


def settings(url: str, slots: int = 3) -> str:
    """Return a file of settings, with times so short that no test waits long for what is rare in life."""
    return f'url = "{url}"\nlease_seconds = 5\nslots = {slots}\n'


@pytest.fixture
def inventory(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """Let an sshd run on the machine, and name it and its two instances in an inventory."""
    need_sshd()
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
        SetEnv HOME=/var/empty PATH={QUICK}:/usr/sbin:/usr/bin:/sbin:/bin {pip}
        """,
    )
    machine.run("mkdir", "-p", "/run/sshd")
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/deploy-test/sshd_config"]
    machine.run("systemd-run", "--collect", "--unit=deploy-sshd", *sshd)
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host_key.pub').read_text()}")
    path = tmp_path / "inventory.toml"
    path.write_text(
        f"""
        known_hosts = "known_hosts"
        canary_seconds = 1
        settle_seconds = 0
        [hosts.machine]
        address = "127.0.0.1"
        port = {port}
        user = "root"
        identity_file = "{tmp_path}/user_key"
        instances = ["a", "b"]
        """
    )
    yield path
    machine.run("systemctl", "stop", "deploy-sshd")
