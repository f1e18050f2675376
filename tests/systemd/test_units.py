"""The units as files: what they may, and that those of the daemon are one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.systemd.machine import TREE

UNITS = sorted((TREE / "systemd").glob("*.service"))
MOST = 1.5


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_service_is_exposed_as_little_as_promised(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("systemd-analyze is not there")
        pytest.skip("systemd-analyze is not there")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={MOST * 10:.0f}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-500:] + judged.stderr
    level = judged.stdout.split("Overall exposure level for")[1].split(":")[1].split()[0]
    assert float(level) <= MOST


@pytest.mark.parametrize("name", ["processor.service", "processor@.service"])
def test_a_daemon_may_take_so_much_and_is_started_so_often(name: str) -> None:
    unit = dict(
        line.split("=", 1)
        for line in (TREE / "systemd" / name).read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    # what dies at once again and again must reach the limit before its time is over
    assert int(unit["RestartSec"]) * int(unit["StartLimitBurst"]) < int(unit["StartLimitIntervalSec"])
    assert unit["Restart"] == "always"
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(unit["MemoryHigh"].rstrip("%")) < int(unit["MemoryMax"].rstrip("%")) < 100
    assert int(unit["TasksMax"]) <= int(unit["LimitNOFILE"])
    assert int(unit["LimitCORE"]) == 0, "a core would have the key in it"


def test_an_instance_is_the_service_but_for_its_name() -> None:
    one, many = (
        [line for line in (TREE / "systemd" / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("processor.service", "processor@.service")
    )
    assert sorted(set(one) - set(many)) == [
        "Description=Supabase job processor",
        "StateDirectory=supabase-job-processor/main",
    ]
    assert sorted(set(many) - set(one)) == [
        "Description=Supabase job processor %i",
        "Environment=PROCESSOR_NAME=%H-%i",
        "EnvironmentFile=-/etc/processor/%i.env",
        "StateDirectory=supabase-job-processor/instance-%i",
    ]
