"""Queues, credits, workers and schedules at a terminal; what was typed wrong; what the shell completes."""

from __future__ import annotations

import asyncio
import json
import sys
from uuid import uuid4

import pytest

from tests.acceptance.terminal import Terminal

NOBODY = str(uuid4())


@pytest.fixture
def terminal(stack) -> Terminal:
    return Terminal(stack.url, stack.service_role_key)


async def test_a_queue_is_listed_limited_paused_and_resumed(shop, terminal):
    await shop.daemon()
    limits = ("queues", "limits", shop.queue)
    listed, changed, lifted, paused, table, resumed, bad, unknown = await terminal.session(
        ("queues", "list", "--json"),
        (*limits, "--max-processing", "5", "--rate-limit", "60", "--json"),
        (*limits, "--max-processing", "none", "--json"),
        ("queues", "pause", shop.queue),
        ("queues", "list"),
        ("queues", "resume", shop.queue, "--json"),
        (*limits, "--max-processing", "many"),
        ("queues", "pause", "no-such-queue"),
    )
    (queue,) = [row for row in listed.json if row["queue"] == shop.queue]
    assert (queue["paused"], queue["live_workers"], queue["max_processing"]) == (False, 1, None)
    assert (changed.json["max_processing"], changed.json["rate_limit"]) == (5, 60)
    assert (lifted.json["max_processing"], lifted.json["rate_limit"]) == (None, 60)
    assert paused.out == f"{shop.queue} is paused: what runs goes on, new jobs wait\n"
    assert [line.split()[1] for line in table.out.splitlines() if line.startswith(shop.queue)] == ["paused"]
    assert resumed.json["paused"] is False
    assert (bad.code, unknown.code) == (2, 2)
    assert "must be a number, or none" in bad.err
    assert "processor queues list" in unknown.err


async def test_credits_are_granted_once_per_key_shown_and_told_line_by_line(shop, new_user, terminal):
    await shop.daemon()
    owner = (await new_user()).id
    grant = (
        "credits",
        "grant",
        owner,
        "7",
        "--reason",
        "order 1",
        "--key",
        "order-1",
        "--expires",
        "2030-01-01",
    )
    first, second, poor, done, shown, history, table, nobody = await terminal.session(
        (*grant, "--json"),
        (*grant, "--json"),
        ("jobs", "create", f"{shop.queue}.pack", "--owner", owner, "--items", "a\nb\nc\nd"),
        ("jobs", "create", f"{shop.queue}.greet", "--owner", owner, "--watch"),
        ("credits", "show", owner, "--json"),
        ("credits", "history", owner, "--json"),
        ("credits", "history", owner, "--limit", "1"),
        ("credits", "show", NOBODY, "--json"),
    )
    assert first.json["available"] == second.json["available"] == 7
    assert (poor.code, poor.out) == (1, "")
    assert poor.err == (
        "error: insufficient credits: 8 needed, 7 available (PT402). "
        "Give some with: processor credits grant OWNER AMOUNT\n"
    )
    assert done.code == 0, done.err
    assert {name: shown.json[name] for name in ("available", "held", "spent", "issued")} == {
        "available": 2,
        "held": 0,
        "spent": 5,
        "issued": 7,
    }
    assert [lot["remaining"] for lot in shown.json["lots"]] == [2]
    assert [line["kind"] for line in history.json] == ["capture", "reserve", "grant"]
    assert f"older ones: --before {history.json[0]['id']}" in table.out
    assert nobody.json["issued"] == 0


async def test_status_says_what_is_wrong_and_its_exit_code_too(shop, terminal, admin):
    daemon = await shop.daemon(PROCESSOR_NAME=shop.queue)
    well, table = await terminal.session(("status", "--json"), ("status",))
    told = json.loads(well.out)
    assert shop.queue not in {alert["about"] for alert in told["alerts"]}
    assert (well.code == 0) == told["ok"] == (told["alerts"] == [])
    (worker,) = [row for row in told["workers"] if row["name"] == shop.queue]
    assert (worker["alive"], worker["feed"]) == (True, "realtime")
    assert [line.split()[1] for line in table.out.splitlines() if line.startswith(shop.queue)] == [
        "alive",
        "ok",
    ]

    daemon.process.terminate()
    assert await daemon.ended() == 0
    job = await shop.create("greet", {"name": "Ann"})
    await admin.execute(
        "update public.jobs set run_at = run_at - interval '6 minutes' where id = $1::uuid", job["id"]
    )
    bad, table = await terminal.session(("status", "--json"), ("status",))
    assert (bad.code, table.code) == (1, 1)
    (alert,) = [alert for alert in json.loads(bad.out)["alerts"] if alert["about"] == shop.queue]
    assert (alert["alert"], alert["severity"]) == ("ProcessorJobsWaitLong", "warning")
    assert "No live worker serves it: start one." in alert["summary"]
    assert f"warning ProcessorJobsWaitLong: {alert['summary'][:40]}" in table.out
    await shop.service.rpc("cancel_job", {"job_id": job["id"]}).execute()
    told = json.loads((await terminal.run("status", "--json")).out)
    assert shop.queue not in {alert["about"] for alert in told["alerts"]}


async def test_a_worker_is_listed_and_drained(shop, terminal):
    daemon = await shop.daemon(PROCESSOR_NAME=shop.queue)
    (worker,) = [
        row for row in (await terminal.run("workers", "list", "--json")).json if row["name"] == shop.queue
    ]
    assert (worker["alive"], worker["draining"], worker["pid"]) == (True, False, daemon.process.pid)

    drained, listed, unknown = await terminal.session(
        ("workers", "drain", shop.queue), ("workers", "list"), ("workers", "drain", "no-such-worker")
    )
    assert (drained.code, f"{shop.queue} {worker['id']} drains" in drained.out) == (0, True), drained.err
    await daemon.event("lease.draining")
    assert [line.split()[1] for line in listed.out.splitlines() if line.startswith(shop.queue)] == [
        "draining"
    ]
    assert (unknown.code, "processor workers list" in unknown.err) == (2, True)


async def test_a_schedule_is_listed_paused_resumed_and_run_now(shop, terminal, service):
    await shop.daemon()
    name = shop.queue
    row = {"name": name, "kind": f"{name}.greet", "cron": "0 3 1 1 *", "payload": {"name": "Ann"}}
    await service.table("job_schedules").insert(row).execute()
    try:
        paused, listed, resumed, made, unknown = await terminal.session(
            ("schedules", "pause", name, "--json"),
            ("schedules", "list", "--json"),
            ("schedules", "resume", name),
            ("schedules", "run", name, "--json"),
            ("schedules", "run", "no-such-schedule"),
        )
        assert paused.json["paused"] is True
        assert [row["state"] for row in listed.json if row["schedule"] == name] == ["paused"]
        assert resumed.out == f"{name} goes on\n"
        assert (unknown.code, "processor schedules list" in unknown.err) == (2, True)
        watched, text = await terminal.session(
            ("jobs", "watch", made.json["id"]), ("schedules", "list"), COLUMNS="200"
        )
        assert watched.code == 0
        assert [line for line in text.out.splitlines() if line.startswith(name) and "completed" in line]
    finally:
        await service.table("job_schedules").delete().eq("name", name).execute()


MISTAKES = {
    "a kind that nobody has": (("jobs", "create", "nope"), "unknown kind: nope"),
    "a payload that is no JSON": (("jobs", "create", "x", "--payload", "{x"), "--payload is no JSON"),
    "a payload that is no object": (("jobs", "create", "x", "--payload", "[1]"), "must be a JSON object"),
    "a file that is not there": (("jobs", "create", "x", "--payload", "@no.json"), "cannot read no.json"),
    "a length of time": (("jobs", "create", "x", "--delay", "soon"), "90s, 10m, 2h or 1d"),
    "a time": (("jobs", "create", "x", "--at", "noon"), "2026-12-24T18:00"),
    "two times": (("jobs", "create", "x", "--at", "2030-01-01", "--delay", "1s"), "give one of them"),
    "a limit that is too high": (("jobs", "create", "x", "--priority", "5000"), "priority"),
    "an id": (("jobs", "show", "42"), "UUID"),
    "an id of nothing": (("jobs", "show", NOBODY), "job not found"),
    "a status": (("jobs", "list", "--status", "done"), "completed"),
}


async def test_what_is_typed_wrong_is_said_in_a_line_with_exit_code_2(shop, terminal):
    await shop.daemon()
    kind = f"{shop.queue}.greet"
    typed = [[kind if word == "x" else word for word in arguments] for arguments, _ in MISTAKES.values()]
    answers = await terminal.session(*typed, COLUMNS="200")
    for (name, (_, words)), said in zip(MISTAKES.items(), answers, strict=True):
        assert (said.code, said.out) == (2, ""), f"{name}: {said}"
        assert words in said.err, f"{name}: {said.err}"
    assert await shop.jobs() == []


async def test_a_project_that_cannot_be_asked_is_exit_code_4(stack):
    away, stranger, worker = await asyncio.gather(
        Terminal("http://127.0.0.1:9", stack.service_role_key).run("queues", "list"),
        Terminal(stack.url, "sb_secret_of_another_project").run("queues", "list"),
        Terminal(stack.url, "").run("queues", "list"),
    )
    assert (away.code, stranger.code, worker.code) == (4, 4, 2)
    assert "No answer from http://127.0.0.1:9" in away.err
    assert "refused the key" in stranger.err
    assert "SUPABASE_SERVICE_ROLE_KEY: is not set" in worker.err


async def test_the_shell_completes_commands_statuses_and_the_names_of_the_project(shop, terminal):
    await shop.daemon()

    async def complete(line: str, **environment: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from processor.cli import app; app(prog_name='processor')"),
            env=terminal.environment
            | {
                "_PROCESSOR_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            }
            | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert err == b"", "nothing spoils the line that is being typed"
        return out.decode().split()

    groups, statuses, kinds, queues, away = await asyncio.gather(
        complete("processor job"),
        complete("processor jobs list --status c"),
        complete(f"processor jobs create {shop.queue}.g"),
        complete(f"processor queues pause {shop.queue[:8]}"),
        complete("processor queues pause ", SUPABASE_URL="http://127.0.0.1:9"),
    )
    assert groups == ["jobs"]
    assert statuses == ["completed", "cancelled"]
    assert kinds == [f"{shop.queue}.greet"]
    assert shop.queue in queues
    assert away == []
