"""What is done on one machine: look, bring, install, judge, go back."""

from __future__ import annotations

import asyncio
import io
import shlex
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.fleet.inventory import Host, Inventory
from deploy.fleet.ssh import Remote, StepError

_LOOK_SECONDS = 30
_BRING_SECONDS = 300
_PAUSE_SECONDS = 1.0
"""Between two looks at a machine that is not healthy yet."""
_BROUGHT = ("scripts/install-service", "constraints.txt")
"""What is brought beside the wheel and the units: files of this tree."""
_NEEDED = ("bash", "tar", "systemctl", "python3")
_VERSION = "readlink /opt/supabase-job-processor/current || true"
_CHECK = """
for tool in "$@"; do
  command -v "$tool" >/dev/null || { echo "there is no $tool" >&2; exit 1; }
done
"""
_UNPACK = """
set -eu
umask 077
place=$(mktemp -d /tmp/processor-deploy.XXXXXXXX)
tar -xf - -C "$place"
echo "$place"
"""
_NO_ANSWER = "no answer"
_ASK = """
import sys, urllib.error, urllib.request
straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for url in sys.argv[1:]:
    try:
        with straight.open(url, timeout=5) as answer:
            said = str(answer.status)
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.read(300).decode(errors='replace')}"
    except OSError as error:
        said = f"no answer: {error}"
    print("ready", url, said.replace(chr(10), " "))
"""
"""Runs there: what the addresses answer, a line for each."""


def pack(root: Path, wheel: Path | None) -> bytes:
    """Return an archive of what a machine needs: the installer, the units, and a wheel if one is given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in _BROUGHT:
            archive.add(root / name, arcname=name)
        archive.add(root / "systemd", arcname="systemd")
        if wheel is not None:
            archive.add(wheel, arcname=wheel.name)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Look:
    """How the daemons of a machine are."""

    problem: str | None
    """Why they are not healthy; None: they are."""
    final: bool
    """Whether waiting cannot help."""
    processes: tuple[str, ...]
    """Which processes they are: others later mean that they were restarted."""
    stopped: frozenset[str] = frozenset()
    """Units that an operator has stopped: enabled, as the installer leaves them, and not running."""
    silent: frozenset[str] = frozenset()
    """Addresses that nobody listens on."""


class Machine:
    """One machine of the inventory, and what was brought there."""

    def __init__(self, host: Host, inventory: Inventory, sockets: Path) -> None:
        self.host = host
        self._inventory = inventory
        self._remote = Remote(host, inventory, sockets)
        self._place: str | None = None
        self._excused: frozenset[str] = frozenset()
        """Units and addresses that need not be up: an operator has stopped them."""

    async def check(self) -> str:
        """Show that it can be deployed to, changing nothing; return how its daemons are.

        Raises:
            StepError: it cannot be reached, or lacks what the installation needs.

        """
        await self._remote.run("check", ["sh", "-c", _CHECK, "sh", *_NEEDED], seconds=_LOOK_SECONDS)
        await self._remote.run("check", ["true"], seconds=_LOOK_SECONDS, root=True)
        look = await self._look()
        if look.stopped:  # which of the addresses are theirs nobody has said, but they are silent
            self._excused = look.stopped | look.silent
        return look.problem or "healthy"

    async def bring(self, archive: bytes) -> None:
        """Put the wheel and the installer into a directory of their own there.

        Raises:
            StepError: it could not be written.

        """
        said = await self._remote.run("copy", ["sh", "-c", _UNPACK], seconds=_BRING_SECONDS, stdin=archive)
        self._place = said.strip()

    async def install(self, wheel: str) -> str:
        """Install or upgrade the daemons, each of which drains first; return the installer's last line.

        Raises:
            StepError: the installer said no, or did not end in time.

        """
        return await self._installer("install", ["--wheel", f"{self._place}/{wheel}"])

    async def go_back(self) -> str:
        """Start the version that was there before; return the installer's last line.

        Raises:
            StepError: there is none, or it could not be started.

        """
        return await self._installer("rollback", ["--rollback"])

    async def version(self) -> str:
        """Return where the version is that is installed: another place for each installation; empty: none.

        Raises:
            StepError: it cannot be reached.

        """
        return (await self._remote.run("look", ["sh", "-c", _VERSION], seconds=_LOOK_SECONDS)).strip()

    async def judge(self, seconds: float) -> None:
        """Wait until the daemons are healthy, and see that they stay so for ``seconds``.

        Raises:
            StepError: they are not, in the time the inventory gives them.

        """
        deadline = time.monotonic() + self._inventory.health_seconds
        look = await self._look()
        while look.problem is not None:
            if look.final or time.monotonic() > deadline:
                raise StepError(f"health: {look.problem}")
            await asyncio.sleep(_PAUSE_SECONDS)
            look = await self._look()
        await asyncio.sleep(seconds)
        later = await self._look()
        if later.problem is not None:
            raise StepError(f"health: healthy at first, then {later.problem}")
        if later.processes != look.processes:
            raise StepError("health: healthy at first, then restarted: journalctl there says why")

    async def clean(self) -> None:
        """Take away what was brought.

        Raises:
            StepError: it cannot be reached.

        """
        if self._place is not None:
            await self._remote.run(
                "clean", ["rm", "-rf", "--", self._place], seconds=_LOOK_SECONDS, root=True
            )
            self._place = None

    async def close(self) -> None:
        """Let its connection go."""
        await self._remote.close()

    async def _installer(self, what: str, arguments: list[str]) -> str:
        named = [part for name in self.host.instances for part in ("--instance", name)]
        said = await self._remote.run(
            what,
            [
                "sh",
                "-c",
                'exec bash "$0" "$@" 2>&1',
                f"{self._place}/scripts/install-service",
                *arguments,
                *named,
            ],
            seconds=self._inventory.install_seconds,
            root=True,
        )
        return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")

    async def _look(self) -> Look:
        show = [
            "systemctl",
            "show",
            "--property=Id,LoadState,UnitFileState,ActiveState,SubState,MainPID,NRestarts",
        ]
        ask = ["python3", "-c", _ASK, *self.host.ready]
        script = f"{shlex.join([*show, '--', *self.host.units])} && {shlex.join(ask)}"
        said = await self._remote.run("look", ["sh", "-c", script], seconds=_LOOK_SECONDS)
        return read(said, self.host, self._excused)


def read(said: str, host: Host, excused: frozenset[str]) -> Look:
    """Make of what systemd and the addresses said how the daemons are, but for those that need not be up."""
    units: dict[str, dict[str, str]] = {}
    unit: dict[str, str] = {}
    answers: dict[str, str] = {}
    for line in said.splitlines():
        if line.startswith("ready "):
            _, url, answer = line.split(" ", 2)
            answers[url] = answer
        elif "=" in line:
            key, _, value = line.partition("=")
            unit[key] = value
        if not line:
            unit = {}
        elif "Id" in unit:
            units[unit["Id"]] = unit
    problems: list[str] = []
    stopped: set[str] = set()
    final = False
    for name in host.units:
        state = units.get(name, {})
        if state.get("UnitFileState") == "enabled" and state.get("ActiveState") == "inactive":
            stopped.add(name)
            if name in excused:
                continue
        if state.get("LoadState") == "not-found":
            problems.append(f"{name} is not installed")
        elif (active := state.get("ActiveState", "unknown")) != "active":
            problems.append(f"{name} is {active} ({state.get('SubState', '?')})")
            final = final or active == "failed"
    silent = frozenset(url for url, answer in answers.items() if answer.startswith(_NO_ANSWER))
    problems += [
        f"{url}: {answers.get(url, 'not asked')}"
        for url in host.ready
        if answers.get(url) != "200" and not (url in excused and url in silent)
    ]
    processes = tuple(
        f"{name} {units.get(name, {}).get('MainPID')} {units.get(name, {}).get('NRestarts')}"
        for name in host.units
    )
    return Look("; ".join(problems) or None, final, processes, frozenset(stopped), silent)
