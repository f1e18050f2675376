"""Commands as somebody at a terminal, or a script, runs them: processes that know a project and no more."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner

from processor.cli import app

SECONDS = 90.0


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document that was printed."""
        assert self.code == 0, f"exit code {self.code}: {self.err}"
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The lines of JSON that were printed."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Running:
    """A command that has not ended, and what it has printed so far."""

    process: asyncio.subprocess.Process
    output: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def says(self, words: str) -> None:
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: words in self.output)

    async def ends(self) -> int:
        return await asyncio.wait_for(self.process.wait(), SECONDS)

    async def hear(self, text: str) -> None:
        async with self._changed:
            self.output += text
            self._changed.notify_all()


@asynccontextmanager
async def running(
    module: str, *arguments: str, environment: dict[str, str], columns: int | None = None
) -> AsyncIterator[Running]:
    """Run a module with its output on a pipe, or on a terminal of so many columns, until it has ended."""
    ours, theirs = os.pipe() if columns is None else pty.openpty()
    if columns is not None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            env={"PYTHONUNBUFFERED": "1"} | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    command = Running(process)
    reading = asyncio.create_task(_read(ours, command), name=f"output of {module}")
    try:
        yield command
        await asyncio.wait_for(reading, SECONDS)
    finally:
        if process.returncode is None:
            process.terminate()  # it may have started others, which it ends
            await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class Terminal:
    """Runs ``processor`` with the settings of a project and nothing else that would steer it."""

    def __init__(self, url: str, key: str) -> None:
        strangers = ("SUPABASE", "PROCESSOR", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        self.environment = {**clean, "SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": key, "TERM": "xterm"}

    async def run(self, *arguments: str, given: str | None = None, **environment: str) -> Said:
        """Run a command to its end, its output on pipes."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", *arguments),
            env=self.environment | environment,
            stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            data = None if given is None else given.encode()
            out, err = await asyncio.wait_for(process.communicate(data), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        said = Said(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in said.err, said.err
        return said

    async def session(self, *commands: Sequence[str], **environment: str) -> list[Said]:
        """Run commands one after the other, whatever becomes of them, in one process: it starts once."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.acceptance.terminal"),
            env=self.environment | environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(json.dumps(commands).encode()), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return [Said(**said) for said in json.loads(out)]

    def running(
        self, *arguments: str, columns: int | None = None, **environment: str
    ) -> AbstractAsyncContextManager[Running]:
        """Run a command with its output on a pipe, or on a terminal of so many columns."""
        return running("processor", *arguments, environment=self.environment | environment, columns=columns)

    async def shows(self, *arguments: str, columns: int, **environment: str) -> str:
        """Return what a command shows on a terminal of so many columns."""
        async with self.running(*arguments, columns=columns, **environment) as command:
            await command.ends()
        return command.output.replace("\r\n", "\n")


async def _read(descriptor: int, command: Running) -> None:
    """Read until every process that could write is gone."""
    os.set_blocking(descriptor, False)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                continue
            except OSError:  # how a terminal says that nobody is there any more
                return
            if not data:
                return
            await command.hear(data.decode(errors="replace"))
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _session() -> None:
    """Run the commands that standard input names, and print what they said."""
    runner, told = CliRunner(), []
    for command in json.load(sys.stdin):
        result = runner.invoke(app, command, prog_name="processor")
        told.append({"code": result.exit_code, "out": result.stdout, "err": result.stderr})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    _session()
