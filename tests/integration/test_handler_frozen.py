"""A daemon that was frozen for longer than its lease: what its handlers may not do when it thaws."""

import asyncio
import signal
import time

import pytest

from tests.callers import Callers, alive

LEASE = "5"
FROZEN = {"PROCESSOR_LEASE_SECONDS": LEASE, "PROCESSOR_FEED": "polling"}
RESCUER = {"PROCESSOR_LEASE_SECONDS": "9", "PROCESSOR_FEED": "polling", "PROCESSOR_POLL_SECONDS": "1"}
"""A lease of its own that a busy machine does not cost it, and heartbeats often enough to rescue soon."""
AT_ONCE = {"progress", "log", "supabase"}
"""Calls that return without waiting for an answer."""


@pytest.fixture
def callers(stack, service, eventually, tmp_path) -> Callers:
    return Callers(stack, service, eventually, tmp_path)


@pytest.mark.parametrize("sort", ["async", "thread", "process"])
async def test_after_the_thaw_no_call_of_a_handler_returns(callers: Callers, sort: str, admin) -> None:
    name = f"frozen_{sort}"
    async with callers.daemon(**FROZEN) as first:
        await first.event("daemon.ready")
        job_id = await callers.create(name, items=["a", "b"])
        calls = {"progress", "log", "each", "supabase", "spawn"}
        await callers.eventually(lambda: calls <= {line[1] for line in callers.witness(name)}, within=40)
        first.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(0.2)  # let what another core was doing come to rest
            frozen_at = time.time()
            (callers.directory / "rescue").touch()
            async with callers.daemon(**RESCUER) as second:
                row = await callers.ended(job_id, within=60)
                assert (row["status"], row["result"]) == ("completed", "rescued")
                before = await counts(callers, admin, job_id)
                seen = len(callers.witness(name))
                first.signal(signal.SIGCONT)
                await first.event("job.lost", job_id=job_id)
                second.signal(signal.SIGTERM)
                await second.ended()
            first.signal(signal.SIGTERM)
            assert await first.ended(within=40) == 0
        finally:
            first.signal(signal.SIGCONT)
        late = [line for line in callers.witness(name)[seen:] if float(line[3]) > frozen_at + float(LEASE)]
        # one that waits for nobody may have looked at the clock just before the freeze; its effects are below
        in_the_air = [line for line in late if line[1] in AT_ONCE and float(line[2]) < frozen_at]
        assert len(in_the_air) <= 1
        assert late == in_the_air
        assert await counts(callers, admin, job_id) == before
        assert not first.all("job.finished", job_id=job_id)


async def counts(callers: Callers, admin, job_id: str) -> list[object]:
    """Return every row that a handler could have changed; children may end by themselves meanwhile."""
    return [
        await admin.fetchval("select to_jsonb(j) - 'children_done' from public.jobs j where id = $1", job_id),
        await admin.fetch(
            "select to_jsonb(i) from public.job_items i where job_id = $1 order by key", job_id
        ),
        await admin.fetchval("select count(*) from public.jobs where parent_id = $1", job_id),
        await admin.fetchval("select count(*) from public.job_logs where job_id = $1", job_id),
    ]


def outlived(lines: list[list[str]], seconds: float) -> bool:
    """Whether the process that wrote last has done so for longer than this: its lease was extended."""
    times = [float(at) for pid, at in lines if pid == lines[-1][0]]
    return times[-1] - times[0] > seconds


async def test_a_process_that_computes_ends_with_the_lease_of_its_frozen_daemon(callers: Callers) -> None:
    async with callers.daemon(**FROZEN) as first:
        await first.event("daemon.ready")
        job_id = await callers.create("alone")
        await callers.eventually(lambda: callers.witness("alone"), within=40)
        await callers.eventually(lambda: outlived(callers.witness("alone"), float(LEASE)), within=40)
        (callers.directory / "rescue").touch()
        pid = int(callers.witness("alone")[-1][0])
        first.signal(signal.SIGSTOP)
        try:
            async with callers.daemon(**RESCUER) as second:
                started = await second.event("job.started", job_id=job_id, within=60)
                last = float(callers.witness("alone")[-1][1])
                assert last < started["started_at"]  # nobody else has it while this one still works on it
                assert (await callers.ended(job_id))["result"] == "rescued"
        finally:
            first.signal(signal.SIGCONT)
        await first.event("job.lost", job_id=job_id)
        assert "Timeout" in first.log()  # where it was, said the process
        assert not alive(pid)
