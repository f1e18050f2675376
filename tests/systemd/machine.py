"""A machine to install on: a real systemd in a container, over a view of this machine that keeps changes."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 60.0
TREE = Path(__file__).parents[2]
BROUGHT = "/brought"


class Machine:
    """Boots in :meth:`boot`, runs commands as root with :meth:`run`, ends with :meth:`halt`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.console = directory / "console"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    @staticmethod
    def lacks() -> str | None:
        """Say what is missing here to have such a machine; None: nothing."""
        if os.geteuid() != 0:
            return "it takes root to boot a systemd"
        for tool in ("systemd-nspawn", "nsenter", "journalctl", "setpriv"):
            if shutil.which(tool) is None:
                return f"there is no {tool}: Debian's package systemd-container has it"
        if not Path("/usr/lib/systemd/systemd").exists():
            return "there is no systemd here to boot"
        if "overlay" not in Path("/proc/filesystems").read_text():
            return "the kernel has no overlayfs"
        return None

    def boot(self) -> None:
        """Boot it, with nothing of what is enabled on the machine underneath."""
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir()
        layers = f"lowerdir=/,upperdir={self.directory}/upper,workdir={self.directory}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        units = self.root / "etc/systemd/system"
        for entry in units.iterdir():  # what others run is no business of this machine
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.root / "etc/machine-id").write_text("")
        (self.root / "etc/hostname").write_text("machine\n")
        brought = self.root / BROUGHT.removeprefix("/")
        brought.mkdir()
        for name in ("scripts", "systemd"):
            shutil.copytree(TREE / name, brought / name)
        shutil.copy(TREE / "constraints.txt", brought)
        with self.console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=TERM"),  # it ends with whoever runs the tests
                    *("systemd-nspawn", "--quiet", "--directory", self.root, "--register=no", "--keep-unit"),
                    *("--hostname=machine", "--console=pipe", "--boot", "--", "systemd.unit=basic.target"),
                ],
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._booted():
            assert self._nspawn.poll() is None, f"it did not boot:\n{self.console.read_text()}"
            assert time.monotonic() < deadline, f"it did not boot in time:\n{self.console.read_text()}"
            time.sleep(0.1)

    def _booted(self) -> bool:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        self._leader = int(children[-1]) if children else 0
        return bool(children) and self.run("systemctl", "is-active", "basic.target", check=False)[0] == 0

    def halt(self) -> None:
        """Switch it off, whatever runs on it."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.terminate()  # asks it to power off
            try:
                self._nspawn.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        if self.root.is_mount():
            subprocess.run(["umount", "--lazy", self.root], check=True)

    # -- as root on the machine -------------------------------------------------------------------

    def run(
        self, *command: str, check: bool = True, within: float = 240.0, **variables: str
    ) -> tuple[int, str]:
        """Run a command; return its exit code and what it said, both streams."""
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--", *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "HOME": "/root",
                **pip,
                **variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within,
            check=False,
        )
        said = done.stdout.strip()
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.returncode}\n{said}"
        return done.returncode, said

    def said(self, *command: str) -> str:
        """Run a command that succeeds; return what it said."""
        return self.run(*command)[1]

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, with the directories it needs."""
        file = self.root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.chmod(mode)
        file.write_text(text)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return what systemd knows of a unit."""
        said = self.said("systemctl", "show", f"--property={','.join(properties)}", unit)
        return dict(line.split("=", 1) for line in said.splitlines())

    def pid(self, unit: str) -> int:
        """Return a unit's main process, as the machine numbers it."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """Return what a unit has logged, with our events as ``event``."""
        said = self.said("journalctl", "--unit", unit, "--output=json", "--no-pager", "--all")
        entries = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        for entry in entries:
            message = entry.get("MESSAGE") or ""
            entry["event"] = json.loads(message) if message.startswith("{") else {}
        return entries

    async def until(self, look: Any, *, within: float = PATIENCE) -> Any:
        """Call ``look`` until it returns something true, and return that."""
        deadline = time.monotonic() + within
        while not (value := await asyncio.to_thread(look)):
            assert time.monotonic() < deadline, f"not within {within} s: {value!r}\n{self.trouble()}"
            await asyncio.sleep(0.1)
        return value

    def trouble(self) -> str:
        """Return what helps to see what went wrong."""
        return self.run("journalctl", "--no-pager", "--lines=60", "--output=cat", check=False)[1]
