"""Runs schedules: computes when each comes next, and has the database make the jobs.

The database decides who makes a job (see ``sql/59_run_schedules.sql``); this only computes times. Every
daemon does it, for all schedules of the project: one is enough, more do no harm.
"""

import asyncio
import math
import random
from uuid import UUID

import structlog

from processor.answers import DueSchedule, SchedulesAnswer, Tick
from processor.cron import Cron
from processor.errors import ApiError, UsageError
from processor.rpc import Rpc, seconds_until

MAX_TICKS = 500
"""How many steps a call may carry; what is left follows in the next one."""

log = structlog.get_logger("processor.schedules")


class Schedules:
    """Sleeps until a schedule is due. Where there is none it makes no call at all."""

    def __init__(self, rpc: Rpc, worker_id: UUID) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._next = math.inf
        self._heard = asyncio.Event()

    def due_in(self, seconds: float | None) -> None:
        """Hear in how many seconds the next schedule is due; None: there is none."""
        # a little late, each by another bit: whoever is first does it, and the others find it done
        delay = math.inf if seconds is None else max(seconds, 0.0) + random.uniform(0.0, 0.3)  # noqa: S311 - jitter
        self._next = asyncio.get_running_loop().time() + delay
        self._heard.set()

    async def run(self) -> None:
        """Make the jobs of schedules whenever their time has come, until cancelled."""
        while True:
            await self._until_due()
            self._next = math.inf
            try:
                await self._run_due()
            except ApiError as error:
                log.warning("schedules.failed", error=str(error))
                self.due_in(random.uniform(2, 5))  # noqa: S311 - jitter

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._next - loop.time()) > 0:
            self._heard.clear()
            try:
                async with asyncio.timeout(None if left == math.inf else left):
                    await self._heard.wait()
            except TimeoutError:
                continue

    async def _run_due(self) -> None:
        answer = await self._rpc.run_due_schedules(self._id)
        while ticks := plan(answer):
            answer = await self._rpc.run_due_schedules(self._id, ticks)
            for name, problem in answer.problems.items():
                log.warning("schedule.problem", schedule=name, problem=problem)
            if answer.created:
                log.info("schedules.ran", jobs=[str(job) for job in answer.created])
            if not answer.moved:  # another worker has them in hand: look again when it is done
                self.due_in(1.0)
                return
        self.due_in(seconds_until(answer.next_at, answer.now))


def plan(answer: SchedulesAnswer) -> list[Tick]:
    """Compute the steps of all that is due, each schedule's up to the server's now, in order."""
    ticks: list[Tick] = []
    for schedule in answer.due:
        if len(ticks) >= MAX_TICKS:
            break
        ticks += _steps(schedule, answer, MAX_TICKS - len(ticks))
    return ticks


def _steps(schedule: DueSchedule, answer: SchedulesAnswer, most: int) -> list[Tick]:
    steps: list[Tick] = []
    tick, after = schedule.tick, schedule.after
    try:
        cron = Cron(schedule.cron, schedule.timezone)
        while len(steps) < most and (not steps or after <= answer.now):
            following = cron.after(after)
            steps.append(Tick(name=schedule.name, tick=tick, next=following))
            tick = after = following
    except UsageError as error:
        steps.append(Tick(name=schedule.name, tick=tick, next=None, problem=str(error)))
    return steps
