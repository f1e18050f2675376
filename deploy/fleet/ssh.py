"""One machine over ssh: commands that are run there by the OpenSSH client, with its host key checked."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.fleet.inventory import Host, Inventory

_CONNECTION_LOST = 255
"""What ssh ends with when it is the connection that failed."""
_OUT_OF_TIME = 124
"""What timeout ends with when it had to end the command."""
_TOLD = 300
"""Characters of what a command said that a reason repeats."""


class StepError(Exception):
    """A step on a machine did not succeed; the message is for the report."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A machine to run commands on, which share a connection: ssh keeps it for a while."""

    host: Host
    inventory: Inventory
    sockets: Path
    """A directory of our own, where ssh finds the connections that are open."""

    async def run(
        self, what: str, command: Sequence[str], *, seconds: float, root: bool = False, stdin: bytes = b""
    ) -> str:
        """Run a command there, at most so many seconds, and return its standard output.

        Args:
            what: the step's name, for the message when it fails.
            command: the program and its arguments, as they are; for a shell's syntax ``sh -c``.
            seconds: after these it is ended: there by ``timeout``, a little later here too.
            root: whether it needs the rights to install.
            stdin: what it reads.

        Raises:
            StepError: no connection, another host key, an exit code, or no end in time.

        """
        limited = ["timeout", "--kill-after=10", str(int(seconds)), *command]
        if root and self.host.sudo:  # outside of timeout, which may not end what runs as root otherwise
            limited = ["sudo", "-n", "--", *limited]
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            shlex.join(limited),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: what runs there ends in order
        )
        try:
            async with asyncio.timeout(seconds + self.inventory.connect_seconds + 15):
                out, err = await process.communicate(stdin)
        except TimeoutError:
            raise StepError(f"{what}: no end within {seconds:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise StepError(f"{what}: {_reason(process.returncode, err or out)}")
        return out.decode(errors="replace")

    async def close(self) -> None:
        """End the connection, if there is one."""
        command = self._command()
        process = await asyncio.create_subprocess_exec(
            *command[:-2],
            *("-O", "exit"),
            *command[-2:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await process.wait()

    def _command(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.inventory.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "ConnectTimeout": str(self.inventory.connect_seconds),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ForwardAgent": "no",
            "ControlMaster": "auto",
            "ControlPath": f"{self.sockets}/%C",
            "ControlPersist": "60",
            "LogLevel": "ERROR",
        }
        command = ["ssh", "-T", *(part for pair in options.items() for part in ("-o", "=".join(pair)))]
        if self.host.user is not None:
            command += ["-l", self.host.user]
        if self.host.port is not None:
            command += ["-p", str(self.host.port)]
        if self.host.identity_file is not None:
            command += ["-o", "IdentitiesOnly=yes", "-i", str(self.host.identity_file)]
        return [*command, "--", self.host.address]


def _reason(code: int, said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    text = " | ".join(lines[-3:])[-_TOLD:] or "it said nothing"
    if code == _CONNECTION_LOST:
        return f"ssh: {text}"
    if code == _OUT_OF_TIME:
        return f"it was ended because it took too long: {text}"
    return f"exit code {code}: {text}"
