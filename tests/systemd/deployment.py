"""``./scripts/deploy`` to the booted machine, and wheels that differ from the one that was built."""

import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from processor import __version__
from processor.rpc import SCHEMA_VERSION
from tests.systemd.machine import TREE

OLDER = "0.0.1"


def deploy(inventory: Path, *arguments: str | Path) -> tuple[int, dict[str, str], str]:
    """Deploy to the one machine of an inventory; return the exit code, the machine's report, and the log."""
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


def of_version(wheel: Path, directory: Path, version: str) -> Path:
    """Return the wheel as an older version, which speaks the schema before this one."""
    schema = f"\nSCHEMA_VERSION = {SCHEMA_VERSION}\n".encode()

    def change(name: str, data: bytes) -> bytes:
        if name == "processor/rpc.py":
            assert schema in data
            return data.replace(schema, f"\nSCHEMA_VERSION = {SCHEMA_VERSION - 1}\n".encode())
        if name.endswith(".dist-info/METADATA"):
            return re.sub(rb"(?m)^Version: .*$", f"Version: {version}".encode(), data, count=1)
        return data

    return _changed(wheel, directory, version, change)


def broken(wheel: Path, directory: Path) -> Path:
    """Return the wheel with a daemon that ends at once."""
    begin = b"async def _start(self) -> None:\n"

    def change(name: str, data: bytes) -> bytes:
        if name == "processor/daemon.py":
            assert begin in data
            return data.replace(begin, begin + b"        raise SystemExit('this version does not run')\n")
        return data

    return _changed(wheel, directory, __version__, change)


def _changed(wheel: Path, directory: Path, version: str, change: Callable[[str, bytes], bytes]) -> Path:
    old, new = (f"supabase_job_processor-{each}" for each in (__version__, version))
    made = directory / wheel.name.replace(old, new)
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for entry in source.infolist():
            data = change(entry.filename, source.read(entry))
            if entry.filename.endswith(".dist-info/RECORD"):
                data = data.replace(f"{old}.dist-info".encode(), f"{new}.dist-info".encode())
            target.writestr(entry.filename.replace(f"{old}.dist-info", f"{new}.dist-info"), data)
    return made
