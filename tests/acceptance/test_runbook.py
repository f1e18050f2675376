"""Every command of the run-book, run as it is written, where the symptom is."""

# ruff: noqa: RUF001 - the angle quotes mark the placeholders of the run-book

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from processor.local.postgres import wheel_bin_dir
from processor.rpc import SCHEMA_VERSION
from tests.acceptance.conftest import Shop
from tests.conftest import RunningStack
from tests.daemons import Daemon
from tests.texts import ROOT, blocks

SECTIONS = blocks("ops/RUNBOOK.md", "console")
WELL_OR_NOT = (0, 1)
"""Exit codes of `processor status` in a project where other tests have left queues without a worker."""


class Steps:
    """The commands of a section, run in their order; all of them must be."""

    def __init__(self, title: str, stack: RunningStack, **names: object) -> None:
        self._blocks = list(SECTIONS[title])
        self.names = {name.replace("_", " "): str(value) for name, value in names.items()}
        strangers = ("SUPABASE", "PROCESSOR", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        self.environment = {
            **clean,
            "PATH": f"{Path(sys.executable).parent}:{wheel_bin_dir()}:{os.environ['PATH']}",
            "SUPABASE_URL": stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
            "DATABASE_URL": stack.db_url,
            "PYTHONPATH": str(ROOT),
            "no_proxy": "*",
        }

    async def do(self, *codes: int | tuple[int, ...]) -> list[str]:
        """Run the next block; its commands must end with these codes (0). Return what they print."""
        lines = self._blocks.pop(0).splitlines()
        said = []
        for line, code in zip(lines, codes or [0] * len(lines), strict=True):
            command = re.sub("‹(.*?)›", lambda found: self.names[found.group(1)], line)
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                command,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(process.communicate(), 90)
            allowed = code if isinstance(code, tuple) else (code,)
            problem = f"{command}: {process.returncode}\n{out.decode()}{err.decode()}"
            assert process.returncode in allowed, problem
            assert b"Traceback" not in err
            said.append(out.decode() + err.decode())
        return said

    def done(self) -> None:
        assert self._blocks == [], "commands that the test left out"


async def serving(shop: Shop, *, name: str | None = None, **settings: str) -> tuple[Daemon, str]:
    """Start a daemon that listens; return it and its port."""
    daemon = await shop.daemon(PROCESSOR_HTTP_PORT="0", PROCESSOR_NAME=name or shop.queue, **settings)
    return daemon, (await daemon.event("daemon.listening"))["url"].rsplit(":", 1)[1]


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


async def test_the_first_look_and_what_to_do_when_realtime_or_the_disk_is_the_matter(
    shop: Shop, stack: RunningStack, tmp_path: Path
) -> None:
    _, port = await serving(shop)
    steps = Steps("Run-book", stack, port=port)
    [said] = await steps.do(WELL_OR_NOT)
    assert re.search(rf"^{shop.queue} +alive", said, re.MULTILINE)
    status, ready = map(json.loads, await steps.do())
    assert (status["ready"], ready["status"]) == (True, "ok")
    steps.done()

    steps = Steps("Feed keeps reconnecting", stack, port=port)
    [status] = map(json.loads, await steps.do())
    assert status["feed"]["mode"] == "realtime"
    assert "last_ending" in status["feed"]
    [said] = await steps.do()
    assert "realtime" in said.lower()
    steps.done()

    steps = Steps("Disk full", stack, port=port, spool_directory=tmp_path)
    told, disk = await steps.do()
    assert json.loads(told)["spool"]["records"] == 0
    assert "%" in disk
    steps.done()


async def test_jobs_that_wait_or_hang_or_fail(shop: Shop, stack: RunningStack, service, new_user) -> None:
    daemon, _ = await serving(shop)
    steps = Steps("Jobs pending", stack, queue=shop.queue)
    assert "goes on" in (await steps.do())[0]
    assert "max-processing" in (await steps.do())[0]
    await steps.do()
    steps.done()

    owner = await new_user(credits=50)
    job = await shop.create("pack", {"seconds": 60}, items=["a"], owner_id=owner.id)
    await daemon.event("job.started", job_id=job["id"])
    steps = Steps("Stuck in processing", stack, pid=daemon.process.pid, job_id=job["id"])
    await steps.do()
    dump = await daemon.event("daemon.dump")
    assert [it["id"] for it in dump["jobs"]] == [job["id"]]
    logged, _ = await steps.do()
    assert "packing" in logged
    await daemon.event("job.finished", job_id=job["id"], status="cancelled")
    steps.done()

    job = await shop.create("pack", {"fail": ["a"]}, items=["a"], owner_id=owner.id)
    await daemon.event("job.finished", job_id=job["id"], status="failed")
    steps = Steps("Jobs fail", stack, queue=shop.queue, failed_job_id=job["id"])
    listed, shown = await steps.do()
    assert job["id"] in listed
    assert "out of stock" in shown
    assert "is paused" in (await steps.do())[0]
    assert "goes on" in (await steps.do())[0]
    steps.done()

    steps = Steps("Credits look wrong", stack, owner_id=owner.id)
    assert await steps.do() == ["ok: the books are right\n"]
    shown, history = await steps.do()
    assert "50" in shown
    assert "reserve" in history
    steps.done()

    daemon.process.terminate()
    assert await daemon.ended() == 0
    job = await shop.create("pack", items=["a"], owner_id=owner.id)
    steps = Steps("Database restored from backup", stack, job_id=job["id"])
    await steps.do()
    assert (await shop.job(job["id"]))["status"] == "cancelled"
    await steps.do()
    steps.done()


async def test_webhooks_that_do_not_arrive(shop: Shop, stack: RunningStack, service) -> None:
    hook = {"name": shop.queue, "url": "https://crm.example/hook", "queues": [shop.queue]}
    await service.rpc("add_webhook", hook).execute()
    try:
        # nobody delivers it: what is on its way is left there
        delivery = (await service.rpc("test_webhook", {"endpoint": shop.queue}).execute()).data
        steps = Steps("Webhooks do not arrive", stack, webhook=shop.queue, delivery_id=delivery["id"])
        enabled, _, shown = await steps.do()
        assert "is told again" in enabled
        assert "  waiting: 2, the oldest for " in shown
        assert await steps.do() == ["no deliveries\n", f"{delivery['id']} pending\n"]
        steps.done()
    finally:
        await service.table("webhook_endpoints").delete().eq("name", shop.queue).execute()


async def test_a_new_key_and_a_project_that_is_away(shop: Shop, stack: RunningStack, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(stack.service_role_key)
    # an empty variable counts as none
    daemon, port = await serving(shop, SUPABASE_SERVICE_ROLE_KEY="", SUPABASE_SERVICE_ROLE_KEY_FILE=str(key))
    steps = Steps("Key rotated", stack, pid=daemon.process.pid, port=port)
    await steps.do()
    await daemon.event("config.reloaded")
    ready, _ = await steps.do()
    assert json.loads(ready)["checks"]["credential"] == "ok"
    steps.done()

    steps = Steps("Supabase paused", stack, port=port)
    here = steps.environment["SUPABASE_URL"]
    steps.environment["SUPABASE_URL"] = f"http://127.0.0.1:{free_port()}"
    told, _ = await steps.do(4, 1)
    assert "error" in told
    steps.environment["SUPABASE_URL"] = here
    _, status = await steps.do(WELL_OR_NOT, 0)
    assert json.loads(status)["waiting"]["jobs"] == 0
    steps.done()


async def test_a_backup_and_an_upgrade(shop: Shop, stack: RunningStack, tmp_path: Path) -> None:
    steps = Steps("Back up", stack, file=tmp_path / "backup")
    await steps.do()
    assert (tmp_path / "backup").read_bytes().startswith(b"PGDMP")
    steps.done()

    old, port = await serving(shop)
    steps = Steps("Upgrade without downtime", stack, port=port, pid=old.process.pid)
    assert f"schema version {SCHEMA_VERSION}" in (await steps.do())[0]
    await steps.do()
    assert old.process.poll() is None
    new, port = await serving(shop, name=f"{shop.queue}-new")
    steps.names["port"] = port
    assert json.loads((await steps.do())[0])["status"] == "ok"
    assert await old.ended() == 0
    assert new.process.poll() is None
    [said] = await steps.do(WELL_OR_NOT)
    assert re.search(rf"^{shop.queue}-new +alive", said, re.MULTILINE)
    steps.done()


@pytest.mark.parametrize("title", SECTIONS)
def test_every_section_with_commands_is_run_by_a_test(title: str) -> None:
    assert f'Steps("{title}"' in Path(__file__).read_text(encoding="utf-8")
