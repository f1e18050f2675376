"""The processes that are measured: local mode and one daemon, started as a user would start them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console

START_SECONDS = 90.0
ANSWER_SECONDS = 30.0

err = Console(highlight=False, stderr=True)


class BenchError(Exception):
    """The measurement could not be made; the message says why."""


class Measured:
    """A process of ours: what it prints or logs is read, or else its pipe would fill and stop it."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._process = process
        self._lines = _json_lines(process)

    async def first(self, wanted: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Read on to the first line that is wanted, and return it.

        Raises:
            BenchError: it did not come within ``seconds``, or the process has ended.

        """
        try:
            async with asyncio.timeout(seconds):
                async for line in self._lines:
                    if wanted(line):
                        return line
        except TimeoutError:
            raise BenchError(f"nothing of what was awaited was seen for {seconds:g} s") from None
        raise BenchError("the process that was measured has ended; its own words stand above")

    async def read_on(self) -> None:
        """Read what it says and make nothing of it, as cheaply as that goes, until cancelled or its end."""
        if self._process.stdout is not None:
            while await self._process.stdout.read(1 << 20):
                pass


@dataclass(frozen=True, slots=True)
class Scene:
    """What runs while something is measured, and a client of its REST API with the service's key."""

    stack: Measured
    daemon: Measured
    api: httpx.AsyncClient


@asynccontextmanager
async def running(target: str, **environment: str) -> AsyncIterator[Scene]:
    """Run local mode and the daemon of ``target`` until it is idle and woken by Realtime.

    Args:
        target: ``module:app`` of the daemon.
        environment: more settings of the daemon; it has its defaults otherwise.

    """
    with tempfile.TemporaryDirectory(prefix="processor-bench-") as directory:
        async with _process(["dev", "--json", "--port", "0", "--data-dir", directory]) as stack:
            project = await stack.first(lambda line: "service_role_key" in line, START_SECONDS)
            key = project["service_role_key"]
            environment |= {
                "SUPABASE_URL": project["url"],
                "SUPABASE_SERVICE_ROLE_KEY": key,
                "PROCESSOR_LOG_FORMAT": "json",
                "PROCESSOR_LOG_LEVEL": "info",
            }
            async with (
                _process(["run", target], **environment) as daemon,
                httpx.AsyncClient(
                    base_url=f"{project['url']}/rest/v1",
                    headers={"apikey": key, "Authorization": f"Bearer {key}"},
                    timeout=ANSWER_SECONDS,
                ) as api,
            ):
                await daemon.first(
                    lambda line: line.get("event") == "feed.mode" and line.get("mode") == "realtime",
                    START_SECONDS,
                )
                yield Scene(stack, daemon, api)


async def call(api: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    """Ask the REST API; return its JSON, if any.

    Raises:
        BenchError: it refused.

    """
    answer = await api.request(method, path, json=body)
    if answer.is_error:
        raise BenchError(f"{method} {path} answered {answer.status_code}: {answer.text}")
    return answer.json() if answer.content else None


@asynccontextmanager
async def _process(arguments: list[str], **environment: str) -> AsyncIterator[Measured]:
    """Run ``processor …``; it is stopped on the way out."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "processor",
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, **environment},
    )
    try:
        yield Measured(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()  # to the end of its words: it may say more than a pipe holds


async def _json_lines(process: Process) -> AsyncIterator[dict[str, Any]]:
    if process.stdout is None:
        raise BenchError("no output to read")
    async for raw in process.stdout:
        try:
            line = json.loads(raw)
        except ValueError:
            err.print(raw.decode(errors="replace").rstrip(), markup=False)  # words for people: pass them on
            continue
        if isinstance(line, dict):
            yield line
