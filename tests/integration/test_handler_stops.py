"""Handlers of every sort that have to stop: at once if they look, killed if they can be, counted if not."""

import asyncio
import os
import signal
import time

import httpx
import pytest

from tests.callers import Callers, alive


@pytest.fixture
def callers(stack, service, eventually, tmp_path) -> Callers:
    return Callers(stack, service, eventually, tmp_path)


async def test_a_users_click_stops_a_handler_of_any_sort_within_a_second(callers: Callers) -> None:
    # with these heartbeats 30 s apart, only the click itself can have told the daemon
    async with callers.daemon(PROCESSOR_LEASE_SECONDS="90", PROCESSOR_SLOTS="3") as daemon:
        await daemon.ready()
        await callers.do(
            "end_process", {"how": "return"}
        )  # a process is warm, and the heartbeats are due later
        for kind in ("wait_async", "wait_thread", "wait_process"):
            job_id = await callers.create(kind)
            await daemon.event("job.started", job_id=job_id)
            clicked = time.time()
            await callers.rest.rpc("cancel_job", {"job_id": job_id}).execute()
            seen = await daemon.event("job.log", job_id=job_id, message="stopped")
            assert seen["at"] - clicked < 1.0, kind
            row = await callers.ended(job_id)
            assert (row["status"], row["error_code"]) == ("cancelled", "CANCELLED")
            lines = (
                await callers.rest.table("job_logs").select("message").eq("job_id", job_id).execute()
            ).data
            assert lines == [{"message": "stopped"}]  # who cleans up may still say so
        assert not daemon.all("job.ignores_cancellation")
        assert not daemon.all("processes.killed")


@pytest.mark.parametrize("sort", ["thread", "process"])
async def test_a_timeout_ends_a_loop_that_catches_every_exception(callers: Callers, sort: str) -> None:
    async with callers.daemon() as daemon:
        await daemon.ready()
        row = await callers.do(f"loop_{sort}", max_attempts=1)
        assert (row["status"], row["error_code"]) == ("failed", "HANDLER_TIMEOUT")
        assert not daemon.all("job.ignores_cancellation")
        assert not daemon.all("processes.killed")


async def test_a_process_that_does_not_stop_is_killed_with_all_it_started(callers: Callers) -> None:
    async with callers.daemon(PROCESSOR_CANCEL_GRACE_SECONDS="1.5", PROCESSOR_SLOTS="1") as daemon:
        await daemon.ready()
        row = await callers.do("deaf_process", max_attempts=1)
        assert (row["status"], row["error_code"]) == ("failed", "HANDLER_TIMEOUT")
        pid = (await daemon.event("processes.killed"))["pid"]
        assert not alive(pid)
        told = callers.witness("deaf")
        assert [line[1] for line in told] == ["helper", "terminated"]  # SIGTERM came before SIGKILL
        await callers.eventually(lambda: not alive(int(told[0][2])))
        assert (await callers.do("end_process", {"how": "return"}))["status"] == "completed"
        assert len(daemon.all("processes.started")) == 2
        assert not daemon.all("job.ignores_cancellation")


async def test_a_thread_that_does_not_stop_has_its_slot_until_it_ends(callers: Callers) -> None:
    async with callers.daemon(
        PROCESSOR_CANCEL_GRACE_SECONDS="0.3", PROCESSOR_SLOTS="1", PROCESSOR_HTTP_PORT="0"
    ) as daemon:
        url = (await (await daemon.ready()).event("daemon.listening"))["url"]
        job_id = await callers.create("deaf_thread", max_attempts=1)
        row = await callers.ended(job_id)
        assert (row["status"], row["error_code"]) == ("failed", "HANDLER_TIMEOUT")
        await daemon.event("job.ignores_cancellation", job_id=job_id)
        waiting = await callers.create("wait_async")

        async def says_so() -> bool:
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.get(f"{url}/readyz")
            return answer.status_code == 503 and job_id in answer.json()["checks"]["slots"]

        await callers.eventually(says_so)
        assert not daemon.all("job.started", job_id=waiting)
        (callers.directory / "release").touch()
        await daemon.event("job.stray_ended", job_id=job_id)
        await daemon.event("job.started", job_id=waiting)
        assert [line[1] for line in callers.witness("deaf")] == ["begins", "refused"]


async def test_a_coroutine_that_does_not_stop_has_its_slot_too(callers: Callers) -> None:
    async with callers.daemon(PROCESSOR_CANCEL_GRACE_SECONDS="0.3", PROCESSOR_SLOTS="1") as daemon:
        await daemon.ready()
        stray = await callers.create("deaf_async", max_attempts=1)
        await daemon.event("job.ignores_cancellation", job_id=stray)
        await callers.ended(stray)
        waiting = await callers.create("wait_async")
        (callers.directory / "release").touch()
        await daemon.event("job.started", job_id=waiting)
        order = [e["event"] for e in daemon.events if e.get("job_id") in {stray, waiting}]
        assert order.index("job.stray_ended") < order.index("job.started", 1)


async def test_the_daemon_leaves_a_thread_that_does_not_stop(callers: Callers) -> None:
    async with callers.daemon(PROCESSOR_GRACE_SECONDS="0", PROCESSOR_CANCEL_GRACE_SECONDS="0.3") as daemon:
        await daemon.ready()
        job_id = await callers.create("deaf_thread")
        await daemon.event("job.started", job_id=job_id)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(within=20) == 0
        await daemon.event("daemon.stopped")


async def test_a_daemon_that_is_killed_takes_its_processes_with_it(callers: Callers) -> None:
    async with callers.daemon() as daemon:
        await daemon.ready()
        await callers.create("spin")
        await callers.eventually(lambda: callers.witness("spin"), within=15)
        pid = int(callers.witness("spin")[0][0])
        assert alive(pid)
        daemon.signal(signal.SIGKILL)
        await callers.eventually(lambda: not alive(pid))


async def test_a_terminals_signals_leave_the_processes_to_the_drain(callers: Callers) -> None:
    async with callers.daemon() as daemon:
        await daemon.ready()
        job_id = await callers.create("items_process", items=[{"key": "a", "payload": {"seconds": 1.5}}])
        pid = (await daemon.event("processes.started"))["pid"]
        assert os.getpgid(pid) != os.getpgid(daemon.process.pid)
        running = callers.rest.table("job_items").select("progress").eq("job_id", job_id)

        async def item_runs() -> bool:
            return (await running.execute()).data[0]["progress"] > 0

        await callers.eventually(item_runs)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(pid, number)  # as a service manager does, which signals all processes of a service
        os.killpg(daemon.process.pid, signal.SIGINT)
        assert await daemon.ended(within=20) == 0
        assert (await callers.row(job_id))["status"] == "completed"
        assert not alive(pid)


async def test_more_jobs_than_processes_take_turns(callers: Callers) -> None:
    async with callers.daemon(PROCESSOR_PROCESSES="1") as daemon:
        await daemon.ready()
        jobs = [await callers.create("end_process", {"how": "return"}) for _ in range(4)]
        rows = await asyncio.gather(*(callers.ended(job_id) for job_id in jobs))
        assert {row["status"] for row in rows} == {"completed"}
        assert len(daemon.all("processes.started")) == 1
