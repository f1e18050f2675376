"""Run a script of ``js/`` against a stack."""

import asyncio
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).with_name("js")
OLDEST_NODE = 20
SECONDS = 60


def install(folder: Path = FOLDER) -> None:
    """Install the packages of a folder, once; skip the test where that is not possible."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm: they run the official client and linters")
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"needs node {OLDEST_NODE} or newer: this is {version.strip()}")
    with (folder / "package-lock.json").open() as one_at_a_time:  # other processes run tests too
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if (folder / "node_modules" / ".package-lock.json").exists():
            return
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"


async def run(script: str, stack: Any) -> None:
    """Run one script; its report is what a failure shows."""
    process = await asyncio.create_subprocess_exec(
        "node",
        script,
        cwd=FOLDER,
        env=os.environ
        | {
            "SUPABASE_URL": stack.url,
            "SUPABASE_ANON_KEY": stack.anon_key,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = output.decode()
    assert process.returncode == 0, report
    assert "ok - " in report, report
