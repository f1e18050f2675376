"""Machines to deploy to: real sshds on loopback with keys of their own, each in front of a directory.

systemd, sudo and the installer are stand-ins with the interface of the real ones (``stand_in/``).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PATIENCE = 30.0


class Machine:
    """One sshd, and the directory that is all there is behind it."""

    def __init__(self, name: str, place: Path, tree: Path, user_key: Path) -> None:
        self.name = name
        self.place = place / name
        self.place.mkdir()
        self._key = self.place / "host_key"
        key(self._key)
        self.port = free_port()
        config = self.place / "sshd_config"
        config.write_text(
            f"""
            ListenAddress 127.0.0.1:{self.port}
            HostKey {self._key}
            AuthorizedKeysFile {user_key}.pub
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin yes
            SetEnv HOME={self.place} MACHINE={self.place} PATH={HERE / "stand_in"}:/usr/bin:/bin
            """
        )
        self._config = config
        self._sshd: subprocess.Popen[bytes] | None = None
        self._web = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._web.serve_forever, name=f"ready {name}", daemon=True).start()
        self.ready_url = f"http://127.0.0.1:{self._web.server_port}/readyz"
        self.start()

    def start(self) -> None:
        with (self.place / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self._config], stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._sshd.poll() is None, (self.place / "sshd.log").read_text()
                assert time.monotonic() < deadline, "sshd does not listen"
                time.sleep(0.02)

    def stop(self) -> None:
        """Take it off the network."""
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    def close(self) -> None:
        self.stop()
        self._web.shutdown()
        self._web.server_close()

    @property
    def known(self) -> str:
        """Its line of a known_hosts file."""
        return f"[127.0.0.1]:{self.port} {self._key.with_suffix('.pub').read_text()}"

    def runs(self, version: str, behaviour: str = "works") -> None:
        """Let it have a version from earlier."""
        (self.place / "current").write_text(f"{version}\n{behaviour}\n")
        (self.place / "process").write_text("100\n")

    @property
    def version(self) -> str | None:
        current = self.place / "current"
        return current.read_text().splitlines()[0] if current.exists() else None

    def times(self, name: str) -> list[float]:
        """When the installer began, or ended, in seconds of the clock."""
        path = self.place / name
        return [float(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        current = self.place / "current"

        class Ready(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                behaviour = current.read_text().splitlines()[-1] if current.exists() else "nothing"
                ready = behaviour in {"works", "restarts"}
                body = b'{"status": "ok"}' if ready else b'{"checks": {"lease": "no heartbeat gets through"}}'
                self.send_response(200 if ready else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        return Ready


@dataclass(frozen=True)
class Deployment:
    """How a run of ``./scripts/deploy`` ended."""

    code: int
    out: str
    err: str

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        """What ``--json`` says, by host."""
        return {host["name"]: host for host in json.loads(self.out)["hosts"]}

    def states(self) -> dict[str, str]:
        return {name: host["state"] for name, host in self.hosts.items()}


class Fleet:
    """Machines, an inventory of them, and a tree to deploy from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "tree"
        shutil.copytree(ROOT / "deploy", self.tree / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
        (self.tree / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "deploy", self.tree / "scripts")
        shutil.copy(HERE / "stand_in" / "install-service", self.tree / "scripts")
        shutil.copy(ROOT / "constraints.txt", self.tree)
        (self.tree / "systemd").mkdir()
        (self.tree / "systemd" / "processor.service").write_text("[Service]\n")
        self.user_key = directory / "user_key"
        key(self.user_key)
        self.machines: dict[str, Machine] = {}
        self.settings: dict[str, Any] = {
            "parallel": 2,
            "settle_seconds": 0,
            "canary_seconds": 0,
            "health_seconds": 1,
            "install_seconds": 60,
        }
        self.tables: dict[str, dict[str, Any]] = {}
        self._begun: list[subprocess.Popen[str]] = []

    def add(self, name: str, version: str | None = "1", **table: Any) -> Machine:
        machine = Machine(name, self.directory, self.tree, self.user_key)
        if version is not None:
            machine.runs(version)
        self.machines[name] = machine
        self.tables[name] = {
            "address": "127.0.0.1",
            "port": machine.port,
            "identity_file": str(self.user_key),
            "ready": [machine.ready_url],
            **table,
        }
        return machine

    def wheel(self, version: str, behaviour: str = "works") -> Path:
        path = self.directory / f"supabase_job_processor-{version}-py3-none-any.whl"
        path.write_text(f"{version}\n{behaviour}\n")
        return path

    def inventory(self) -> Path:
        known = self.directory / "known_hosts"
        if not known.exists():
            known.write_text("".join(machine.known for machine in self.machines.values()))
        lines = [
            'known_hosts = "known_hosts"',
            *(f"{name} = {json.dumps(v)}" for name, v in self.settings.items()),
        ]
        for name, table in self.tables.items():
            lines += [f"[hosts.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        path = self.directory / "inventory.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [self.tree / "scripts" / "deploy", self.inventory(), *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, "HOME": str(self.directory), "PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun.append(process)
        return process

    def deploy(self, *arguments: str | Path) -> Deployment:
        process = self.begin("--json", *arguments)
        out, err = process.communicate(timeout=100)
        return Deployment(process.returncode, out, err)

    def versions(self) -> dict[str, str | None]:
        return {name: machine.version for name, machine in self.machines.items()}

    def close(self) -> None:
        for process in self._begun:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for machine in self.machines.values():
            machine.close()


def need_sshd() -> None:
    """Skip the test that calls it where there is no sshd; in CI let it fail."""
    if not Path(SSHD).exists():
        reason = "there is no sshd here: apt-get install openssh-server"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def key(path: Path) -> None:
    """Make a pair of keys."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL
    )


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]
