"""A new version over two machines while jobs come in: real sshds, real daemons, one after the other."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from tests.fleet.conftest import fleet  # noqa: F401  a fixture
from tests.fleet.machines import ROOT, Fleet, Machine, free_port

RESTART = """#!/usr/bin/env bash
# what systemd would do: end the daemon by SIGTERM, wait for it, start another
set -euo pipefail
log="$PWD/daemon.log" process="$PWD/process"
if [ -e "$process" ]; then
  pid="$(cat "$process")"
  kill -TERM "$pid"
  while [ -e "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status"; do sleep 0.05; done
fi
cd {root}
setsid env -i {environment} {python} -m processor run tests.acceptance.shop:app </dev/null >>"$log" 2>&1 &
echo $! > "$process"
"""
POLL_SECONDS = 5.0


def inhabit(machine: Machine, port: int, settings: dict[str, str]) -> None:
    """Let a machine run a real daemon, which listens there."""
    environment = {**settings, "PROCESSOR_NAME": machine.name, "PROCESSOR_HTTP_PORT": str(port)}
    text = RESTART.format(
        root=shlex.quote(str(ROOT)),
        environment=" ".join(shlex.quote(f"{name}={value}") for name, value in environment.items()),
        python=shlex.quote(sys.executable),
    )
    path = machine.place / "restart"
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def pair(fleet: Fleet, shop) -> Iterator[Fleet]:  # noqa: F811  the fixture
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(fleet.directory),
        "SUPABASE_URL": shop.stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": shop.stack.service_role_key,
        "SHOP_QUEUE": shop.queue,
        "SHOP_TRACES": str(shop.traces),
        "PROCESSOR_SLOTS": "20",
        "PROCESSOR_POLL_SECONDS": str(POLL_SECONDS),
        "PROCESSOR_SPOOL_DIR": "none",
        "PROCESSOR_LOG_FORMAT": "json",
    }
    fleet.settings.update(parallel=1, canary_seconds=1, health_seconds=60)
    for name in ("one", "two"):
        port = free_port()
        inhabit(fleet.add(name, version=None, ready=[f"http://127.0.0.1:{port}/readyz"]), port, settings)
    yield fleet
    for machine in fleet.machines.values():
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((machine.place / "process").read_text()), signal.SIGKILL)


def processes(fleet: Fleet) -> set[str]:  # noqa: F811  an argument
    return {(machine.place / "process").read_text().strip() for machine in fleet.machines.values()}


def said(place: Path) -> str:
    return (place / "daemon.log").read_text()[-4000:]


@pytest.mark.timeout(240)
async def test_an_upgrade_of_two_machines_under_load_loses_no_job_and_runs_none_twice(
    pair: Fleet, shop, eventually
) -> None:
    first = await asyncio.to_thread(pair.deploy, "--wheel", pair.wheel("1"))
    assert first.code == 0, first.err + said(pair.machines["one"].place)
    before = processes(pair)

    created: list[str] = []
    over = asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            created.append((await shop.create("greet", {"seconds": 0.2}))["id"])
            await asyncio.sleep(0.05)

    loading = asyncio.create_task(load(), name="load")
    await eventually(lambda: len(created) >= 10, within=30)
    second = await asyncio.to_thread(pair.deploy, "--wheel", pair.wheel("2"))
    over.set()
    await loading
    assert second.code == 0, second.err + said(pair.machines["one"].place)
    assert second.states() == {"one": "upgraded", "two": "upgraded"}
    after = processes(pair)
    assert not before & after

    async def all_done() -> bool:
        return all(row["finished_at"] is not None for row in await shop.jobs())

    await eventually(all_done, within=60, every=0.2)
    rows = await shop.jobs()
    assert {row["id"] for row in rows} == set(created)
    assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
    for what in ("start", "done"):
        times = Counter(words[1] for words in shop.traced("greetings") if words[0] == what)
        assert times == dict.fromkeys(created, 1)
    served = {words[-1] for words in shop.traced("greetings")}
    assert served >= after, "both new daemons had work"
    assert served & before, "there was work before the upgrade was through"
    waited = max(
        (datetime.fromisoformat(row["started_at"]) - datetime.fromisoformat(row["run_at"])).total_seconds()
        for row in rows
    )
    assert waited <= POLL_SECONDS
