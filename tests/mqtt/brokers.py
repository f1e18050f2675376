"""A real mosquitto for tests, with passwords, access control and TLS, and somebody who listens."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiomqtt
import trustme
from aiomqtt import ProtocolVersion

PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
PREFIX = "here"
TERMINAL = {"completed", "partial", "failed", "cancelled"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Certificates:
    """An authority, a broker's certificate for `localhost`, and one for clients, as files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        server, client = authority.issue_cert("localhost"), authority.issue_cert("daemon@example.com")
        self.cert, self.key = directory / "server.pem", directory / "server.key"
        server.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(self.key)
        self.client_cert, self.client_key = directory / "client.pem", directory / "client.key"
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)


class Mosquitto:
    """A broker that keeps its port, and what it knows, when it is started again."""

    def __init__(
        self,
        directory: Path,
        *,
        users: dict[str, str] | None = None,
        acl: str | None = None,
        certificates: Certificates | None = None,
        client_certificates: bool = False,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.certificates = certificates
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            "user root",
            "persistence true",
            f"persistence_location {directory}/",
            "max_queued_messages 0",
            "max_inflight_messages 20",
            f"log_dest file {directory}/log",
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if users else 'true'}",
        ]
        if users:
            passwords = directory / "passwords"
            passwords.touch(mode=0o600)
            for name, password in users.items():
                subprocess.run(["mosquitto_passwd", "-b", passwords, name, password], check=True)
            lines.append(f"password_file {passwords}")
        if acl is not None:
            (directory / "acl").write_text(acl)
            (directory / "acl").chmod(0o600)
            lines.append(f"acl_file {directory}/acl")
        if certificates is not None:
            lines += [
                f"cafile {certificates.ca}",
                f"certfile {certificates.cert}",
                f"keyfile {certificates.key}",
                f"require_certificate {'true' if client_certificates else 'false'}",
            ]
        (directory / "conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}" if self.certificates else f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> "Mosquitto":
        self._process = subprocess.Popen(
            [PROGRAM, "-c", self._directory / "conf"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                log = self._directory / "log"
                assert self._process.poll() is None, log.read_text() if log.exists() else "it ended"
                assert time.monotonic() < deadline, "the broker does not listen"
                time.sleep(0.02)
            else:
                return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
            self._process = None


class Witness:
    """Hears everything under a filter, in order, however often the broker goes away."""

    def __init__(self, port: int, topic: str = f"{PREFIX}/#", **options: Any) -> None:
        self.heard: list[aiomqtt.Message] = []
        self._port = port
        self._topic = topic
        self._options = options
        self._listening = asyncio.Event()
        self.queue: str | None = None
        """Whose jobs count; None: all."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name="witness")
        await asyncio.wait_for(self._listening.wait(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    "127.0.0.1",
                    self._port,
                    identifier="witness",
                    clean_session=False,
                    protocol=ProtocolVersion.V311,
                    **self._options,
                ) as client:
                    await client.subscribe(self._topic, qos=1)
                    self._listening.set()
                    async for message in client.messages:
                        self.heard.append(message)
            await asyncio.sleep(0.05)

    def of(self, *words: str) -> list[dict[str, Any]]:
        """Return the payloads so far of topics with all these words in them."""
        return [
            json.loads(m.payload)
            for m in self.heard
            if m.payload and all(word in m.topic.value.split("/") for word in words)
        ]

    def states(self, worker: str) -> list[str]:
        """Return what a worker has been, in order."""
        return [told["state"] for told in self.of(worker)]

    def jobs(self) -> dict[str, list[dict[str, Any]]]:
        """Return the distinct statuses that were told of each job, in the order of the first telling."""
        jobs: dict[str, list[dict[str, Any]]] = {}
        for told in self.of("jobs", "status"):
            if self.queue not in {None, told["queue"]}:
                continue
            known = jobs.setdefault(told["job_id"], [])
            if all(other["id"] != told["id"] for other in known):
                known.append(told)
        return jobs

    def ended(self) -> dict[str, str]:
        """Return how the jobs ended, of which that has been told."""
        return {
            job: told[-1]["status"] for job, told in self.jobs().items() if told[-1]["status"] in TERMINAL
        }

    def disorder(self) -> list[str]:
        """Say what was told too late: anything after a job's end, or of an earlier attempt."""
        found = []
        for job, told in self.jobs().items():
            ends = [number for number, one in enumerate(told) if one["status"] in TERMINAL]
            if ends and ends[0] != len(told) - 1:
                found.append(f"{job}: {[(t['event'], t['attempt']) for t in told]}")
            if [t["attempt"] for t in told] != sorted(t["attempt"] for t in told):
                found.append(f"{job}: {[(t['event'], t['attempt']) for t in told]}")
        return found


@contextlib.asynccontextmanager
async def client(port: int, **options: Any) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client("127.0.0.1", port, **options) as connected:
        yield connected


async def kept(port: int, topic: str, within: float = 5.0, **options: Any) -> aiomqtt.Message | None:
    """Return the message that the broker keeps for a topic; None: none."""
    async with client(port, **options) as monitor:
        await monitor.subscribe(topic, qos=1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                async for message in monitor.messages:
                    return message if message.payload else None
    return None


async def retained(port: int, topic: str, within: float = 5.0, **options: Any) -> dict[str, Any] | None:
    """Return what a monitor that connects now is told of a topic; None: nothing."""
    message = await kept(port, topic, within, **options)
    return None if message is None else json.loads(message.payload)
