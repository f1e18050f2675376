"""Plain functions as handlers: in threads and in processes they have, and mean, what coroutines do."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.callers import Callers
from tests.daemons import Daemon

SORTS = ("thread", "process")


@pytest.fixture(scope="module")
def daemon_and_callers(stack, eventually, tmp_path_factory) -> Iterator[tuple[Daemon, Callers]]:
    """One daemon for all tests of this file: no handler's behaviour may disturb the next one's."""
    callers = Callers(stack, None, eventually, tmp_path_factory.mktemp("witness"))  # type: ignore[arg-type]
    daemon = Daemon.launch(Callers.target, callers.environment(PROCESSOR_CANCEL_GRACE_SECONDS="2"))
    yield daemon, callers
    daemon.signal(signal.SIGTERM)
    code = daemon.process.wait(15)
    daemon.end()
    assert code == 0, daemon.log()
    assert not daemon.all("daemon.left_running")


@pytest.fixture
async def daemon(daemon_and_callers: tuple[Daemon, Callers]) -> Daemon:
    return await daemon_and_callers[0].ready()


@pytest.fixture
def callers(daemon_and_callers: tuple[Daemon, Callers], daemon: Daemon, service) -> Callers:
    callers = daemon_and_callers[1]
    callers.rest = service
    return callers


@pytest.mark.parametrize("sort", SORTS)
async def test_a_plain_function_has_all_that_a_coroutine_has(
    callers: Callers, daemon: Daemon, sort: str
) -> None:
    row = await callers.do(f"everything_{sort}", {"title": "Hello"}, items=["a", "b", "c"])
    assert row["status"] == "completed", row
    pid = row["result"].pop("pid")
    assert row["result"] == {
        "title": "Hello",
        "attempt": 1,
        "kind": f"{callers.queue}.everything_{sort}",
        "row": True,
        "child": True,
        "items": {"a": "A", "b": "B", "c": "C"},
        "thread": sort == "process",  # its own main thread, as libraries with signal handlers want it
    }
    assert (pid == daemon.process.pid) is (sort == "thread")
    lines = (await callers.rest.table("job_logs").select("*").eq("job_id", row["id"]).execute()).data
    assert [(line["level"], line["message"], line["fields"]) for line in lines] == [
        ("info", "greeting", {"to": "Hello"})
    ]
    logged = await daemon.event("job.log", job_id=row["id"], message="greeting")
    assert (logged["to"], logged["kind"], logged["level"]) == ("Hello", row["kind"], "info")


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(
    ("how", "status", "code", "message"),
    [
        ("return", "completed", None, None),
        ("retry", "completed", None, None),
        ("snooze", "completed", None, None),
        ("discard", "failed", "DISCARDED", "hopeless"),
        ("code", "failed", "CARD_TOO_LONG", "the card is too long"),
        ("fussy", "failed", "FUSSY", "FussyError: fussy"),
        ("crash", "failed", "HANDLER_CRASHED", "RuntimeError: boom"),
        ("exit", "failed", "HANDLER_CRASHED", "SystemExit"),
        ("interrupt", "failed", "HANDLER_CRASHED", "KeyboardInterrupt"),
        ("object", "failed", "INVALID_RESULT", "cannot be stored"),
        ("nan", "failed", "INVALID_RESULT", "cannot be stored"),
        ("nested", "failed", "CHECKPOINT_REFUSED", "calls itself"),
        ("decision", "failed", "INVALID_RESULT", "write `raise Snooze"),
    ],
)
async def test_every_end_of_a_plain_function_means_what_it_means_elsewhere(
    callers: Callers, sort: str, how: str, status: str, code: str | None, message: str | None
) -> None:
    attempts = 2 if status == "completed" else 1
    row = await callers.do(f"end_{sort}", {"how": how}, max_attempts=attempts)
    assert (row["status"], row["error_code"]) == (status, code), row
    assert message is None or message in row["error_message"]
    if status == "completed":
        assert row["result"] == {"attempt": 1 if how == "return" else 2}


@pytest.mark.parametrize("sort", SORTS)
async def test_a_crash_is_logged_with_the_traceback_of_where_it_was(
    callers: Callers, daemon: Daemon, sort: str
) -> None:
    row = await callers.do(f"end_{sort}", {"how": "crash"}, max_attempts=1)
    crash = await daemon.event("job.crashed", job_id=row["id"])
    assert "in end\n" in crash["exception"]
    assert 'raise RuntimeError("boom")' in crash["exception"]


@pytest.mark.parametrize(
    ("how", "says"), [("segfault", "SIGSEGV"), ("_exit", "exit code 7"), ("killed", "SIGKILL; the system")]
)
async def test_the_death_of_a_process_costs_its_own_job_an_attempt(
    callers: Callers, daemon: Daemon, how: str, says: str
) -> None:
    other = await callers.create("items_process", items=[{"key": "a", "payload": {"seconds": 1}}])
    await daemon.event("job.started", job_id=other)
    row = await callers.do("end_process", {"how": how}, max_attempts=1)
    assert (row["status"], row["error_code"]) == ("failed", "HANDLER_CRASHED")
    assert says in row["error_message"]
    assert (await callers.ended(other))["status"] == "completed"
    assert (await callers.do("end_process", {"how": "return"}))["result"] == {"attempt": 1}


@pytest.mark.parametrize("sort", SORTS)
async def test_items_of_a_plain_function_are_kept_one_by_one(callers: Callers, sort: str) -> None:
    payloads: dict[str, Any] = {"a": {}, "b": {"fail": "once"}, "c": {"fail": "for good"}}
    row = await callers.do(
        f"items_{sort}", items=[{"key": key, "payload": payload} for key, payload in payloads.items()]
    )
    assert (row["status"], row["items_done"], row["items_failed"]) == ("partial", 2, 1)
    found = (
        await callers.rest.table("job_items")
        .select("key,status,result,attempts,error_code")
        .eq("job_id", row["id"])
        .order("position")
        .execute()
    )
    assert [(i["key"], i["status"], i["result"], i["attempts"]) for i in found.data] == [
        ("a", "completed", "A", 1),
        ("b", "completed", "B", 2),
        ("c", "failed", None, 1),
    ]


@pytest.mark.parametrize("sort", SORTS)
async def test_items_run_side_by_side_in_threads_or_in_the_handlers_own(callers: Callers, sort: str) -> None:
    items = [{"key": key, "payload": {"seconds": 0.3}} for key in "abcd"]
    alone = (await callers.do(f"items_{sort}", {"concurrency": 1}, items=items))["result"]
    assert (alone["own_thread"], alone["threads"]) == (True, 1)
    beside = (await callers.do(f"items_{sort}", items=items))["result"]
    assert (beside["own_thread"], beside["done"]) == (False, dict(zip("abcd", "ABCD", strict=True)))


@pytest.mark.parametrize("sort", SORTS)
async def test_an_item_that_snoozes_ends_the_attempt_and_what_ran_beside_it_is_kept(
    callers: Callers, sort: str
) -> None:
    items = [{"key": "long", "payload": {"seconds": 0.5}}, {"key": "nap", "payload": {"fail": "snooze"}}]
    row = await callers.do(f"items_{sort}", items=items)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 2, 0)
    found = await callers.rest.table("job_items").select("key,attempts").eq("job_id", row["id"]).execute()
    assert {i["key"]: i["attempts"] for i in found.data} == {"long": 1, "nap": 1}


async def test_what_a_process_logs_stands_in_the_daemons_log(callers: Callers, daemon: Daemon) -> None:
    row = await callers.do("end_process", {"how": "log"})
    pid = (await daemon.event("job.log", job_id=row["id"], message="for the owner", n=1, level="warning"))[
        "pid"
    ]
    assert pid != daemon.process.pid
    foreign = await daemon.event("from stdlib", level="warning", pid=pid)
    own = await daemon.event("mine.event", number=1, pid=pid)
    assert foreign["timestamp"] <= own["timestamp"]


async def test_processes_are_kept_warm(callers: Callers, daemon: Daemon) -> None:
    await callers.do("end_process", {"how": "return"})
    before = len(daemon.all("processes.started"))
    for _ in range(3):
        await callers.do("end_process", {"how": "return"})
    assert len(daemon.all("processes.started")) == before
