"""Real daemons that run schedules and keep house."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from processor.errors import ApiError
from processor.maintenance import BATCH, MAX_BATCHES, Maintenance
from processor.rpc import Rpc
from processor.schedules import Schedules
from tests.daemons import Daemon
from tests.integration.scripted_api import ScriptedApi, scripted_api

ME = UUID("11111111-1111-4111-8111-111111111111")
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Clock:
    """An application with schedules of its own, in a project that others use too."""

    def __init__(self, stack, service, admin, eventually) -> None:
        self.prefix = f"c{uuid4().hex[:8]}"
        self.stack = stack
        self.rest = service
        self.admin = admin
        self.eventually = eventually

    @asynccontextmanager
    async def daemons(self, count: int = 1, **environment: str) -> AsyncIterator[list[Daemon]]:
        """Run daemons that hear of changed schedules within a second."""
        settings = {
            "SUPABASE_URL": self.stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.stack.service_role_key,
            "PROCESSOR_LEASE_SECONDS": "3",
            "PROCESSOR_FEED": "polling",
            "PROCESSOR_POLL_SECONDS": "0.5",
            "TEST_PREFIX": self.prefix,
        }
        started = []
        try:
            for _ in range(count):
                daemon = await Daemon.start("tests.apps.clockwork:app", settings | environment)
                started.append(daemon)
            for daemon in started:
                await daemon.event("daemon.ready")
            yield started
        finally:
            for daemon in started:
                await daemon.close()

    async def schedules(self) -> dict[str, dict[str, Any]]:
        rows = (await self.rest.table("job_schedules").select("*").execute()).data
        return {row["name"]: row for row in rows if row["name"].startswith(self.prefix)}

    async def computed(self) -> dict[str, dict[str, Any]]:
        async def all_computed():
            found = await self.schedules()
            return found if found and all(row["next_run_at"] for row in found.values()) else None

        return await self.eventually(all_computed)

    async def run_at(self, moment: datetime, names: str = "%") -> None:
        """Let them run once at another time, as an operator may."""
        change = self.rest.table("job_schedules").update({"next_run_at": moment.isoformat()})
        await change.like("name", f"{self.prefix}.{names}").execute()

    async def jobs(self) -> list[dict[str, Any]]:
        return (await self.rest.table("jobs").select("*").eq("queue", self.prefix).execute()).data

    async def all_done(self, count: int) -> list[dict[str, Any]]:
        async def done():
            rows = [job for job in await self.jobs() if job["status"] == "completed"]
            return rows if len(rows) >= count else None

        return await self.eventually(done, within=15)


@pytest.fixture
async def clock(stack, service, admin, eventually) -> AsyncIterator[Clock]:
    it = Clock(stack, service, admin, eventually)
    yield it
    # the daemons of other tests would run them too
    await admin.execute("delete from public.job_schedules where name like $1", f"{it.prefix}%")


async def test_three_daemons_run_each_schedule_once(clock: Clock) -> None:
    async with clock.daemons(3) as daemons:
        assert len(await clock.computed()) == 10
        for count in (10, 20):
            tick = datetime.now(UTC) + timedelta(seconds=1.5)
            await clock.run_at(tick)
            done = await clock.all_done(count)
            assert sum(job["result"]["tick"] == tick.isoformat() for job in done) == 10
        assert {job["payload"].get("number") for job in done} == {None, *range(9)}
        for daemon in daemons:
            daemon.signal(signal.SIGTERM)
        assert [await daemon.ended() for daemon in daemons] == [0, 0, 0]
        stopped = [(await daemon.event("daemon.stopped"))["calls"]["run_due_schedules"] for daemon in daemons]
        assert len(stopped) == 3
    assert len(await clock.jobs()) == 20
    assert {row["problem"] for row in (await clock.schedules()).values()} == {None}
    assert all(datetime.fromisoformat(r["next_run_at"]) > tick for r in (await clock.schedules()).values())


async def test_a_job_comes_within_a_second_of_its_time(clock: Clock) -> None:
    async with clock.daemons():
        await clock.computed()
        tick = datetime.now(UTC) + timedelta(seconds=2.5)
        await clock.run_at(tick)
        await asyncio.sleep(1.2)  # the daemon has heard of it by a heartbeat, and sleeps until then
        for job in await clock.all_done(10):
            late = datetime.fromisoformat(job["created_at"]) - tick
            assert timedelta(0) <= late < timedelta(seconds=1)


async def test_what_the_service_inserts_is_run_and_what_nobody_can_read_says_so(clock: Clock) -> None:
    async with clock.daemons() as [daemon]:
        await clock.computed()
        row = {"kind": f"{clock.prefix}.nightly", "cron": "0 6 * * *", "payload": {"by": "hand"}}
        rows = [
            row | {"name": f"{clock.prefix}.hand"},
            row | {"name": f"{clock.prefix}.bad", "cron": "a b c d e"},
        ]
        await clock.rest.table("job_schedules").insert(rows).execute()
        problem = await daemon.event("schedule.problem", schedule=f"{clock.prefix}.bad")
        assert "not a cron expression" in problem["problem"]
        bad, hand = [(await clock.schedules())[f"{clock.prefix}.{name}"] for name in ("bad", "hand")]
        assert (bad["next_run_at"], bad["problem"]) == (None, problem["problem"])
        assert (hand["next_run_at"] is None, hand["problem"]) == (False, None)
        await clock.run_at(datetime.now(UTC), "hand")
        [job] = await clock.all_done(1)
        assert job["payload"] == {"by": "hand"}


async def test_a_daemon_without_schedules_never_asks_for_them(clock: Clock, admin) -> None:
    assert await admin.fetchval("select count(*) from public.job_schedules") == 0
    settings = {
        "SUPABASE_URL": clock.stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": clock.stack.service_role_key,
        "PROCESSOR_LEASE_SECONDS": "3",
        "TEST_PREFIX": clock.prefix,
    }
    daemon = await Daemon.start("tests.apps.behaviours:app", settings)
    try:
        await daemon.event("daemon.ready")
        await asyncio.sleep(2)  # two heartbeats
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        calls = (await daemon.event("daemon.stopped"))["calls"]
        assert calls["heartbeat_worker"] >= 2
        assert "run_due_schedules" not in calls
        assert "prune_jobs" not in calls
    finally:
        await daemon.close()


async def test_a_daemon_prunes_every_now_and_then(clock: Clock, admin) -> None:
    async with clock.daemons(PROCESSOR_MAINTENANCE_SECONDS="0.5") as [daemon]:
        await admin.execute(
            "update public.job_queues set retain_for = '0', retain_last = 0 where name = $1", clock.prefix
        )
        await clock.computed()
        await clock.run_at(datetime.now(UTC))

        async def all_gone():
            ran = await admin.fetchval(
                "select count(last_job_id) from public.job_schedules where name like $1", f"{clock.prefix}%"
            )
            return ran == 10 and await clock.jobs() == []

        await clock.eventually(all_gone, within=15)
        assert (await daemon.event("maintenance.done"))["task"] == "prune_jobs"


async def test_a_daemon_expires_credits_every_now_and_then(clock: Clock, admin, new_user, eventually) -> None:
    user = await new_user(credits=5)
    async with clock.daemons(PROCESSOR_MAINTENANCE_SECONDS="0.5"):
        await admin.execute(
            "update public.credit_lots set expires_at = now() - interval '1 second' where owner_id = $1",
            user.id,
        )

        async def expired():
            [account] = (await user.rest.table("credit_accounts").select("*").execute()).data
            return (account["available"], account["expired"]) == (0, 5)

        await eventually(expired, within=15)
        assert [dict(row) for row in await admin.fetch("select * from processor.check_credits()")] == []


# -- one room, with an API that answers as told -------------------------------------------------------


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as it:
        yield it


@pytest.fixture
async def rpc(api: ScriptedApi) -> AsyncIterator[Rpc]:
    it = Rpc(api.url, "sb_secret_test", patience=0.1)
    yield it
    await it.aclose()


@asynccontextmanager
async def running(loop: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(loop)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def answers(**fields: Any) -> Callable[[dict[str, Any]], tuple[int, Any]]:
    told = {"now": NOW, "due": [], "created": [], "moved": 0, "problems": {}, "next_at": None} | fields
    told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in told.items()}
    return lambda _arguments: (200, told)


def due(name: str) -> dict[str, Any]:
    return {"name": name, "cron": "0 3 * * *", "timezone": "UTC", "tick": None, "after": NOW.isoformat()}


async def test_nothing_is_asked_until_something_is_due(api: ScriptedApi, rpc: Rpc, eventually) -> None:
    schedules = Schedules(rpc, ME)
    api.answers["run_due_schedules"] = answers(next_at=NOW + timedelta(seconds=0.4))
    async with running(schedules.run()):
        schedules.due_in(None)
        await asyncio.sleep(0.3)
        assert api.calls["run_due_schedules"] == []
        begin = asyncio.get_running_loop().time()
        schedules.due_in(-5)
        await eventually(lambda: len(api.calls["run_due_schedules"]) == 2)
        assert asyncio.get_running_loop().time() - begin >= 0.4, "it slept until next_at"


async def test_it_survives_an_api_that_is_away_or_forgets_it(api: ScriptedApi, rpc: Rpc, eventually) -> None:
    schedules = Schedules(rpc, ME)
    api.answers["run_due_schedules"] = lambda _: (400, {"code": "JQ011", "message": "unknown worker"})
    async with running(schedules.run()) as task:
        schedules.due_in(0)
        await eventually(lambda: api.calls["run_due_schedules"])
        del api.answers["run_due_schedules"]  # 503
        schedules.due_in(0)
        await eventually(lambda: len(api.calls["run_due_schedules"]) >= 2)
        api.answers["run_due_schedules"] = answers()
        seen = len(api.calls["run_due_schedules"])
        schedules.due_in(0)
        await eventually(lambda: len(api.calls["run_due_schedules"]) > seen)
        assert not task.done()


async def test_what_another_worker_has_in_hand_is_looked_at_again_later(
    api: ScriptedApi, rpc: Rpc, eventually
) -> None:
    schedules = Schedules(rpc, ME)
    api.answers["run_due_schedules"] = answers(due=[due("a")])
    async with running(schedules.run()):
        schedules.due_in(0)
        await eventually(lambda: len(api.calls["run_due_schedules"]) == 2)
        assert api.calls["run_due_schedules"][1]["ticks"][0]["name"] == "a"
        await asyncio.sleep(0.5)
        assert len(api.calls["run_due_schedules"]) == 2, "it insisted"
        await eventually(lambda: len(api.calls["run_due_schedules"]) == 4)


async def test_a_round_stops_at_the_first_batch_that_is_not_full_and_is_bounded(
    api: ScriptedApi, rpc: Rpc, eventually
) -> None:
    for answered, calls in ((BATCH - 1, 1), (BATCH, MAX_BATCHES)):
        api.calls["prune_jobs"].clear()
        api.answers["prune_jobs"] = lambda _arguments, count=answered: (200, count)
        api.answers["expire_credits"] = lambda _arguments: (200, 0)
        async with running(Maintenance(rpc, 0.6).run()):
            await eventually(lambda expected=calls: len(api.calls["prune_jobs"]) == expected, within=30)
            await asyncio.sleep(0.2)
            assert len(api.calls["prune_jobs"]) == calls
            assert api.calls["prune_jobs"][0] == {"batch": BATCH}


async def test_housekeeping_goes_on_after_an_error(api: ScriptedApi, rpc: Rpc, eventually) -> None:
    api.answers["prune_jobs"] = lambda _arguments: (400, {"code": "JQ006", "message": "no"})
    api.answers["expire_credits"] = lambda _arguments: (200, 0)
    with pytest.raises(ApiError):
        await rpc.prune_jobs(1)
    async with running(Maintenance(rpc, 0.1).run()) as task:
        await eventually(lambda: len(api.calls["expire_credits"]) >= 3)
        assert len(api.calls["prune_jobs"]) >= 3
        assert not task.done()
