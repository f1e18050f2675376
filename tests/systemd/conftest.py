"""One booted machine for all tests here, with the service installed from the built wheel."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningStack
from tests.systemd.machine import BROUGHT, TREE, Machine

QUEUE = "served"
KEY = "/etc/processor/credentials/SUPABASE_SERVICE_ROLE_KEY"


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
    """Boot a machine, and install on it; what the first test waits for is mostly pip."""
    if (lacks := Machine.lacks()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(lacks)
        pytest.skip(lacks)
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        machine.boot()
        machine.write(f"{BROUGHT}/{wheel.name}", "")
        (machine.root / BROUGHT.removeprefix("/") / wheel.name).write_bytes(wheel.read_bytes())
        machine.write(
            "/opt/supabase-job-processor/app/app.py", (TREE / "tests/apps/behaviours.py").read_text()
        )
        machine.write("/etc/processor/processor.toml", settings(stack.url))
        machine.write("/etc/processor/processor.env", f"TEST_PREFIX={QUEUE}\n")
        machine.write(KEY, stack.service_role_key, 0o600)
        machine.write(
            "/etc/systemd/system/processor.service.d/quick.conf", "[Service]\nWatchdogSec=3\nRestartSec=0.2\n"
        )
        machine.run(*install(wheel))
        yield machine
    finally:
        machine.halt()


def install(wheel: Path) -> list[str]:
    """Return the command that installs, or upgrades."""
    return [f"{BROUGHT}/scripts/install-service", "--wheel", f"{BROUGHT}/{wheel.name}"]


def settings(url: str, slots: int = 3) -> str:
    """Return a file of settings, with times so short that no test waits long for what is rare in life."""
    return f'url = "{url}"\nlease_seconds = 5\nslots = {slots}\n'
