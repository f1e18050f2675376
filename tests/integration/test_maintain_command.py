"""``processor maintain``: what a timer does when every daemon is dead."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from processor.alerts import Memory
from tests.collector import Collector
from tests.daemons import Daemon


class Webhook(Collector):
    """An address that hears of alerts."""

    secret = "T0123456789"

    @property
    def url(self) -> str:
        return f"http://{self.address}/hooks/{self.secret}"

    @property
    def heard(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.posted]


async def run(environment: dict[str, str], *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Run a command; return its exit code, what it printed and what it logged."""
    clean = {n: value for n, value in os.environ.items() if not n.startswith(("SUPABASE", "PROCESSOR"))}
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "processor", *arguments),
        env={**clean, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await asyncio.wait_for(command.communicate(), 90)
    assert command.returncode is not None
    logged = [json.loads(x) for x in said.decode().splitlines() if x.startswith("{")]
    return command.returncode, out.decode(), logged


async def run_maintain(environment: dict[str, str]) -> tuple[int, list[dict[str, Any]]]:
    """Run one round; return its exit code and what it logged."""
    code, _, events = await run(environment, "maintain")
    return code, events


def heard(webhook: Webhook) -> list[list[tuple[str, str]]]:
    """Return name and state of what was told, message by message."""
    return [[(alert["alert"], alert["state"]) for alert in told["alerts"]] for told in webhook.heard]


@pytest.fixture
async def alone(dev_process, tmp_path: Path) -> AsyncIterator[tuple[dict[str, str], asyncpg.Connection]]:
    """Give a project of the test's own, because it is about all workers: settings, and its database."""
    stack = dev_process("--data-dir", str(tmp_path / "data")).ready()
    environment = {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TEST_PREFIX": "dead",
        "PROCESSOR_LEASE_SECONDS": "6",
        "PROCESSOR_SPOOL_DIR": str(tmp_path / "spool"),
    }
    admin = await asyncpg.connect(stack.db_url)
    yield environment, admin
    await admin.close()


async def test_a_round_says_who_is_alive_and_rescues_when_nobody_is_and_a_fleet_tells_it_once(alone) -> None:
    environment, admin = alone
    daemon = await Daemon.start("tests.apps.behaviours:app", environment)
    try:
        await daemon.ready()
        wanted = "select (public.create_job('dead.wait', '{\"seconds\": 60}', queue => 'dead')).id::text"
        job_id = await admin.fetchval(wanted)
        await daemon.event("job.started", job_id=job_id)

        code, events = await run_maintain(environment)
        assert (code, events[-1]["event"], events[-1]["workers_alive"]) == (0, "maintenance.round", 1)

        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        over = "update public.job_workers set lease_expires_at = clock_timestamp() - interval '1 second'"
        await admin.execute(over)
        with Webhook(500, 200) as webhook:  # it fails once
            told = environment | {"PROCESSOR_ALERT_WEBHOOK": webhook.url}
            rounds = await asyncio.gather(*[run_maintain(told) for _ in range(3)])
            first, message = webhook.heard
            assert first == message
            assert [alert["alert"] for alert in message["alerts"]] == ["ProcessorNoLiveWorker"]
            assert message["text"].startswith(
                "critical: ProcessorNoLiveWorker: No worker is alive that takes"
            )
            assert [code for code, _ in rounds] == [1, 1, 1], "each machine shows it"
            for _, events in rounds:
                [done] = [event for event in events if event["event"] == "maintenance.round"]
                assert (done["workers_alive"], done["alerts"]) == (0, 1)
                assert "maintenance.alert" in {event["event"] for event in events}
            every = [event["event"] for _, events in rounds for event in events]
            assert every.count("maintenance.told") == 1
            assert "maintenance.done" in every
            status = await admin.fetchval("select status from public.jobs where id = $1::uuid", job_id)
            assert status == "pending"

            await admin.execute("select public.cancel_job($1::uuid)", job_id)
            await daemon.close()
            daemon = await Daemon.start("tests.apps.behaviours:app", environment)
            await daemon.ready()
            rounds = await asyncio.gather(*[run_maintain(told) for _ in range(3)])
            assert [code for code, _ in rounds] == [0, 0, 0]
            assert heard(webhook)[2:] == [[("ProcessorNoLiveWorker", "resolved")]]
            assert webhook.heard[2]["text"].startswith("resolved: ProcessorNoLiveWorker")
    finally:
        await daemon.close()


async def test_books_that_are_not_right_are_told_by_everything_that_looks(alone) -> None:
    environment, admin = alone
    daemon = await Daemon.start(
        "tests.apps.behaviours:app",
        environment | {"PROCESSOR_HTTP_PORT": "0", "PROCESSOR_LEASE_SECONDS": "90"},
    )
    wrong = "update public.credit_accounts set spent = spent + 1, available = available - 1"
    right = "update public.credit_accounts set spent = spent - 1, available = available + 1"
    try:
        await daemon.ready()
        url = (await daemon.event("daemon.listening"))["url"]
        await admin.execute("select processor.grant_credits(gen_random_uuid(), 100)")
        assert await run(environment, "credits", "check") == (0, "ok: the books are right\n", [])

        await admin.execute(wrong)
        code, out, _ = await run(environment, "credits", "check", "--json")
        assert code == 1
        assert {fault["problem"] for fault in json.loads(out)["faults"]} >= {
            "account.available is not the sum of its lots"
        }
        code, out, _ = await run(environment, "status", "--json")
        assert (code, json.loads(out)["ok"]) == (1, False)
        assert [alert["alert"] for alert in json.loads(out)["alerts"]] == ["ProcessorCreditsWrong"]
        code, out, _ = await run(environment, "status")
        assert (code, "critical ProcessorCreditsWrong: The books do not add up" in out) == (1, True)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            metrics = (await http.get(f"{url}/metrics")).text
        [faults] = re.findall(r"^processor_database_credit_faults ([0-9.]+)$", metrics, re.MULTILINE)
        assert float(faults) > 0, "what the alert of Prometheus' rules goes by"
        with Webhook(200) as webhook:
            told = environment | {"PROCESSOR_ALERT_WEBHOOK": webhook.url}
            assert (await run_maintain(told))[0] == 1
            await admin.execute(right)
            assert (await run_maintain(told))[0] == 0
        assert heard(webhook) == [
            [("ProcessorCreditsWrong", "firing")],
            [("ProcessorCreditsWrong", "resolved")],
        ]
    finally:
        await daemon.close()


async def test_a_round_that_cannot_ask_the_project_says_so_once(tmp_path: Path) -> None:
    with Webhook(401) as project, Webhook(403, 200) as webhook:
        environment = {
            "SUPABASE_URL": project.url.partition("/hooks")[0],
            "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_0123456789",
            "PROCESSOR_SPOOL_DIR": str(tmp_path / "state"),
            "PROCESSOR_ALERT_WEBHOOK": webhook.url,
        }
        code, events = await run_maintain(environment)
        assert code == 4
        assert [event["event"] for event in events if event["level"] == "error"] == [
            "maintenance.alert",
            "maintenance.not_told",
        ]
        assert webhook.secret not in json.dumps(events)
        assert len(webhook.heard) == 1, "a refusal is not repeated"
        # what nobody heard is told again, what somebody heard is not
        rounds = await asyncio.gather(*[run_maintain(environment) for _ in range(2)])
        assert [code for code, _ in rounds] == [4, 4]
    assert heard(webhook) == [[("ProcessorApiUnreachable", "firing")]] * 2
    [alert] = webhook.heard[1]["alerts"]
    assert alert["about"] == webhook.heard[1]["host"]


async def test_that_the_project_can_be_asked_again_is_told(stack, tmp_path: Path) -> None:
    memory = Memory(tmp_path / "state", stack.url, 3600)
    assert memory.take()
    with Webhook(200) as webhook:
        environment = {
            "SUPABASE_URL": stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
            "PROCESSOR_SPOOL_DIR": str(tmp_path / "state"),
            "PROCESSOR_ALERT_WEBHOOK": webhook.url,
        }
        await run_maintain(environment)
    told = [alert for message in heard(webhook) for alert in message if alert[0] == "ProcessorApiUnreachable"]
    assert told == [("ProcessorApiUnreachable", "resolved")]
    assert memory.take(), "it is news again"


def test_the_memory_of_a_machine_gives_each_thing_to_one(tmp_path: Path) -> None:
    memory, other = (Memory(tmp_path / "new", url, 60) for url in ("https://a.example", "https://b.example"))
    assert [memory.take(), memory.take(), other.take()] == [True, False, True]
    for path in (tmp_path / "new").iterdir():
        os.utime(path, (0, 0))
    assert [memory.take(), memory.take(), other.take()] == [True, False, True]
    assert [memory.forget(), memory.forget()] == [True, False]
    nowhere = Memory(None, "https://a.example", 60)
    assert [nowhere.take(), nowhere.take(), nowhere.forget()] == [True, True, False]
