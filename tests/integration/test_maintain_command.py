"""``processor maintain``: what a timer does when every daemon is dead."""

import asyncio
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx

from tests.daemons import Daemon


class Webhook:
    """An address that hears of alerts; answers with the codes given, the last of them from then on."""

    def __init__(self, *codes: int) -> None:
        heard = self.heard = []
        answers = list(codes)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.secret = "T0123456789"
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/{self.secret}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


async def run_maintain(environment: dict[str, str]) -> tuple[int, list[dict[str, Any]]]:
    """Run one round; return its exit code and what it logged."""
    clean = {n: value for n, value in os.environ.items() if not n.startswith(("SUPABASE", "PROCESSOR"))}
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "processor", "maintain"),
        env={**clean, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(command.communicate(), 60)
    assert command.returncode is not None
    return command.returncode, [json.loads(x) for x in said.decode().splitlines() if x.startswith("{")]


async def test_a_round_says_who_is_alive_and_rescues_when_nobody_is(dev_process, tmp_path: Path) -> None:
    stack = dev_process(
        "--data-dir", str(tmp_path / "data")
    ).ready()  # a project of its own: it is about all its workers
    environment = {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
        "TEST_PREFIX": "dead",
        "PROCESSOR_LEASE_SECONDS": "3",
    }
    daemon = await Daemon.start("tests.apps.behaviours:app", environment)
    admin = await asyncpg.connect(stack.db_url)
    try:
        await daemon.ready()
        async with httpx.AsyncClient(
            base_url=stack.url, headers=stack.service_headers, trust_env=False
        ) as http:
            wanted = {"kind": "dead.wait", "queue": "dead", "payload": {"seconds": 60}}
            job_id = (await http.post("/rest/v1/rpc/create_job", json=wanted)).raise_for_status().json()["id"]
        await daemon.event("job.started", job_id=job_id)

        code, events = await run_maintain(environment)
        assert (code, events[-1]["event"], events[-1]["workers_alive"]) == (0, "maintenance.round", 1)

        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        over = "update public.job_workers set lease_expires_at = clock_timestamp() - interval '1 second'"
        await admin.execute(over)
        with Webhook(500, 200) as webhook:  # it fails once
            code, events = await run_maintain(environment | {"PROCESSOR_ALERT_WEBHOOK": webhook.url})
        assert code == 1
        [done] = [event for event in events if event["event"] == "maintenance.round"]
        assert done["workers_alive"] == 0
        first, told = webhook.heard
        assert first == told
        assert [alert["alert"] for alert in told["alerts"]] == ["ProcessorNoLiveWorker"]
        assert told["text"].startswith("critical: ProcessorNoLiveWorker: No worker renews its lease")
        assert {"maintenance.alert", "maintenance.done"} <= {event["event"] for event in events}
        assert await admin.fetchval("select status from public.jobs where id = $1::uuid", job_id) == "pending"
    finally:
        await admin.close()
        await daemon.close()


async def test_a_round_that_cannot_reach_the_project_says_so() -> None:
    nowhere = {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_0123456789"}
    with Webhook(403) as webhook:
        code, events = await run_maintain(nowhere | {"PROCESSOR_ALERT_WEBHOOK": webhook.url})
    assert code == 4
    assert [event["event"] for event in events if event["level"] == "error"] == [
        "maintenance.alert",
        "maintenance.not_told",
    ]
    assert [alert["alert"] for alert in webhook.heard[0]["alerts"]] == ["ProcessorApiUnreachable"]
    assert webhook.secret not in json.dumps(events)
    assert len(webhook.heard) == 1  # a refusal is not repeated
