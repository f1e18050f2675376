"""Jobs at a terminal: created, watched to the end that the exit code tells, read, cancelled and repeated."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from uuid import uuid4

import pytest

from tests.acceptance.terminal import Terminal
from tests.faults import FaultProxy

STEERS = "\x1b[2J\x9b31m\u202e[bold]<img onerror=alert(1)>"
"""What would clear the screen, colour it, turn the writing round, and be markup elsewhere."""


@pytest.fixture
def terminal(stack) -> Terminal:
    return Terminal(stack.url, stack.service_role_key)


async def test_a_job_is_created_watched_shown_and_only_what_failed_is_repeated(shop, new_user, terminal):
    await shop.daemon()
    user = await new_user(credits=10)
    kind = f"{shop.queue}.pack"
    keys = ("--item", "de", "--items", '["fr", {"key": "xx"}]')
    payload = json.dumps({"fail": ["xx"], "seconds": 0.3})

    made = await terminal.run(
        *("jobs", "create", kind, "--payload", payload, *keys, "--owner", user.id),
        *("--tag", "spring", "--watch", "--json"),
    )

    assert made.code == 3, made.err
    assert made.lines[0]["status"] in {"pending", "processing"}
    last = made.lines[-1]
    assert (last["status"], last["items_done"], last["credits_captured"]) == ("partial", 2, 4)
    assert {item["key"]: item["status"] for item in last["items"]} == {
        "de": "completed",
        "fr": "completed",
        "xx": "failed",
    }
    job_id = last["id"]
    row = await shop.job(job_id)
    assert (row["owner_id"], row["tags"], row["payload"]) == (user.id, ["spring"], json.loads(payload))

    shown, text, again, logs, lines, listed, found = await terminal.session(
        ("jobs", "show", job_id, "--json"),
        ("jobs", "show", job_id),
        ("jobs", "watch", job_id),
        ("jobs", "logs", job_id, "--json"),
        ("jobs", "logs", job_id),
        ("jobs", "list", "--queue", shop.queue, "--status", "partial", "--json"),
        ("jobs", "list", "--queue", shop.queue, "--search", "spring", "--limit", "1"),
    )
    assert (shown.json["job"]["id"], len(shown.json["items"])) == (job_id, 3)
    for words in (
        "partial",
        "4 paid, 2 refunded",
        "2 of 3 done, 1 failed",
        "xx is out of stock",
        "packing items=3",
    ):
        assert words in text.out, text.out
    assert again.code == 3
    assert "partial in " in again.out
    assert [line["message"] for line in logs.json] == ["packing", "xx is out of stock"]
    assert [line.split(maxsplit=2)[2] for line in lines.out.splitlines()] == [
        "info    packing items=3",
        "warning xx is out of stock code=DISCARDED item=xx",
    ]
    assert [row["id"] for row in listed.json] == [job_id]
    assert f"older ones: --before {job_id}" in found.out

    repeated = await terminal.run("jobs", "retry", job_id, "--watch", "--json")
    assert repeated.code == 1
    assert (repeated.lines[-1]["status"], repeated.lines[-1]["items_total"]) == ("failed", 1)
    whole = (await terminal.run("jobs", "retry", repeated.lines[-1]["id"], "--all-items", "--json")).json
    assert whole[0]["retry_of"] == repeated.lines[-1]["id"]


async def test_the_exit_code_of_watching_several_jobs_tells_the_worst_end(shop, terminal):
    await shop.daemon()
    well = [(await shop.create("greet"))["id"] for _ in range(2)]
    badly = (await shop.create("greet", {"seconds": -1}))["id"]

    good, mixed, unknown, done = await terminal.session(
        ("jobs", "watch", *well),
        ("jobs", "watch", *well, badly),
        ("jobs", "watch", str(uuid4())),
        ("jobs", "retry", well[0]),
    )

    assert (good.code, good.out.count("completed in ")) == (0, 2)
    assert mixed.code == 1
    assert f"{badly} failed in " in mixed.out
    assert "INVALID_PAYLOAD" in mixed.out
    assert (unknown.code, unknown.out) == (2, "")
    assert "job not found" in unknown.err
    assert (done.code, f"processor jobs retry {well[0]} --all-items" in done.err) == (1, True)


async def test_cancelling_ends_a_job_that_waits_and_stops_one_that_runs(shop, terminal):
    daemon = await shop.daemon()
    running = (await shop.create("greet", {"seconds": 60}))["id"]
    waiting = (await shop.create("greet", delay_seconds=3600))["id"]
    await daemon.event("job.started", job_id=running)

    async with terminal.running("jobs", "watch", running) as watching:
        await watching.says("processing")
        said = await terminal.run("jobs", "cancel", waiting, running, str(uuid4()))
        assert await watching.ends() == 1

    assert "cancelled in " in watching.output
    assert said.code == 2, "one of them does not exist"
    assert f"{waiting} is cancelled" in said.out
    assert f"{running} is asked to stop" in said.out
    assert said.err.count("\n") == 1
    over = await terminal.run("jobs", "cancel", waiting, "--json")
    assert [row["status"] for row in over.json] == ["cancelled"]


async def test_following_logs_misses_and_doubles_nothing_and_ends_with_the_job(shop, terminal, admin):
    await shop.daemon()
    job_id = (await shop.create("greet", {"seconds": 60}))["id"]

    async with terminal.running("jobs", "logs", job_id, "--follow", "--json") as following:
        for number in range(5):
            await _log(admin, job_id, f"line {number}")
            await following.says(f"line {number}")
        await shop.service.rpc("cancel_job", {"job_id": job_id}).execute()
        assert await following.ends() == 0

    said = [json.loads(line)["message"] for line in following.output.splitlines()]
    assert said == [f"line {number}" for number in range(5)]


async def _log(admin, job_id: str, message: str) -> None:
    await admin.execute(
        "insert into job_logs (job_id, attempt, logged_at, level, message, fields)"
        " values ($1, 1, now(), 'info', $2, jsonb_build_object('with', $2::text))",
        job_id,
        message,
    )


async def test_ctrl_c_ends_the_watching_and_not_the_job(shop, terminal):
    await shop.daemon()
    job_id = (await shop.create("greet", {"seconds": 60}))["id"]

    async with terminal.running("jobs", "watch", job_id, columns=80) as watching:
        await watching.says("processing")
        watching.process.send_signal(signal.SIGINT)
        assert await watching.ends() == 130

    assert "Traceback" not in watching.output
    assert watching.output.rstrip().endswith("\x1b[?25h"), "the cursor is back"
    assert (await shop.job(job_id))["status"] == "processing"


async def test_watching_survives_an_outage_and_says_so(shop, terminal):
    daemon = await shop.daemon()
    job_id = (await shop.create("greet", {"seconds": 60}))["id"]
    await daemon.event("job.started", job_id=job_id)
    async with FaultProxy(shop.stack.url) as proxy:
        terminal.environment["SUPABASE_URL"] = proxy.url
        async with terminal.running("jobs", "watch", job_id) as watching:
            await watching.says("processing")
            proxy.refuse()
            proxy.cut()
            await watching.says("asking again")
            await shop.service.rpc("cancel_job", {"job_id": job_id}).execute()
            await proxy.heal()
            assert await watching.ends() == 1
    assert "cancelled in " in watching.output
    assert watching.output.count("asking again") == 1


async def test_a_lost_answer_makes_no_second_job(shop, terminal):
    await shop.daemon()
    async with FaultProxy(shop.stack.url) as proxy:
        proxy.truncate()
        terminal.environment["SUPABASE_URL"] = proxy.url
        creating = asyncio.create_task(terminal.run("jobs", "create", f"{shop.queue}.greet", "--json"))
        await proxy.arrived("http", 1)
        await proxy.heal()
        made = await creating
    assert proxy.requests["POST /rest/v1/rpc/create_job"] > 1, "the first answer was lost"
    assert [job["id"] for job in await shop.jobs()] == [made.json["id"]]


async def test_a_paused_queue_is_told_to_whoever_watches_a_job_in_it(shop, terminal):
    await shop.daemon()
    assert (await terminal.run("queues", "pause", shop.queue)).code == 0
    job_id = (await shop.create("greet"))["id"]

    async with terminal.running("jobs", "watch", job_id) as watching:
        await watching.says(f"its queue is paused: processor queues resume {shop.queue}")
        assert (await terminal.run("queues", "resume", shop.queue)).code == 0
        assert await watching.ends() == 0


async def test_a_terminal_shows_bars_and_items_and_no_line_too_long(shop, terminal):
    await shop.daemon()
    keys = [word for n in range(4) for word in ("--item", f"k{n}")]
    slow = json.dumps({"seconds": 0.7, "fail": ["k3"]})
    shown = await terminal.shows(
        *("jobs", "create", f"{shop.queue}.pack", "--payload", slow, *keys, "--watch"), columns=80
    )
    assert "━" in shown
    assert "\x1b[34m" in shown, "a colour"
    frames = shown.split("\x1b[2K")
    last = _plain(frames[-1])
    assert [line for line in last.splitlines() if line.startswith("  ")][:4] == [
        "  ✓ k0",
        "  ✓ k1",
        "  ✓ k2",
        "  ✗ k3 DISCARDED k3 is out of stock",
    ]
    assert "partial in " in last
    assert max(len(_plain(line)) for frame in frames for line in frame.splitlines()) <= 80

    (job,) = await shop.jobs()
    for columns in (80, 120):
        table = _plain(await terminal.shows("jobs", "list", "--queue", shop.queue, columns=columns))
        assert max(map(len, table.splitlines())) <= columns
        assert job["id"] in table
        assert ("ITEMS_FAILED" in table) == (columns == 120)


async def test_no_color_and_a_pipe_mean_plain_text(shop, terminal):
    await shop.daemon()
    job_id = (await shop.create("greet"))["id"]
    await terminal.run("jobs", "watch", job_id)
    shown, piped = await asyncio.gather(
        terminal.shows("jobs", "show", job_id, columns=80, NO_COLOR="1"), terminal.run("jobs", "show", job_id)
    )
    assert "\x1b" not in shown + piped.out
    assert "completed" in shown


async def test_stored_text_cannot_steer_the_terminal(shop, terminal, admin):
    await shop.daemon()
    job = await shop.create("greet", {"name": STEERS, "seconds": 60}, tags=[STEERS])
    await _log(admin, job["id"], STEERS)
    await admin.execute(
        "update jobs set progress_message = $2, error_code = 'X', error_message = $2 where id = $1",
        job["id"],
        STEERS,
    )
    commands = [
        ("jobs", "show", job["id"]),
        ("jobs", "list", "--queue", shop.queue),
        ("jobs", "logs", job["id"]),
        ("jobs", "show", job["id"], "--json"),
    ]
    for said in await asyncio.gather(
        *(terminal.shows(*command, columns=160, NO_COLOR="1") for command in commands)
    ):
        assert not {"\x1b", "\x9b"} & set(said), ascii(said)
        assert "[bold]" in said
    assert "\u202e" not in said or said.startswith("{"), "JSON keeps what is text"


def _plain(text: str) -> str:
    """Return text without the sequences that colour it and move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)
