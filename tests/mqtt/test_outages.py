"""No end of a job is lost, whatever goes away: the broker, the daemon, both."""

import asyncio
import signal

import httpx
import pytest

from tests.mqtt.brokers import Witness

JOBS = 1000


async def create_many(place, count: int, kind: str = "nap") -> list[str]:
    ids = []
    for start in range(0, count, 250):
        drafts = [
            {"kind": f"{place.queue}.{kind}", "queue": place.queue}
            for _ in range(start, min(start + 250, count))
        ]
        answer = await place.rest.rpc("create_jobs", {"jobs": drafts}).execute()
        ids += [made["id"] for made in answer.data]
    return ids


async def rows_ended(place) -> dict[str, str]:
    answer = (
        await place.rest.table("jobs")
        .select("id,status")
        .eq("queue", place.queue)
        .not_.is_("finished_at", "null")
        .limit(10_000)
        .execute()
    )
    return {row["id"]: row["status"] for row in answer.data}


async def test_a_thousand_jobs_are_told_of_across_two_restarts_of_the_broker_and_a_kill(place, witness):
    settings = {"PROCESSOR_LEASE_SECONDS": "3", "PROCESSOR_SLOTS": "8"}
    first = await place.launch(**settings)
    second = None
    try:
        await first.ready()
        await first.event("mqtt.connected")
        jobs = await create_many(place, JOBS)
        await place.eventually(lambda: len(witness.ended()) > 100, within=40)
        place.broker.stop()
        await first.event("mqtt.lost")
        await asyncio.sleep(0.5)  # jobs end meanwhile
        place.broker.start()
        await place.eventually(lambda: len(first.all("mqtt.connected")) > 1, within=30)
        await place.eventually(lambda: len(witness.ended()) > 250, within=40)
        first.signal(signal.SIGKILL)
        await first.ended()
        second = await place.launch(**settings)
        await second.event("mqtt.connected")
        await place.eventually(lambda: len(witness.ended()) > 400, within=40)
        place.broker.stop()
        await second.event("mqtt.lost")
        place.broker.start()
        await place.eventually(lambda: len(witness.ended()) == JOBS, within=60)
        assert witness.ended() == await rows_ended(place)
        assert witness.ended().keys() == set(jobs)
        assert witness.disorder() == []
    finally:
        await first.close()
        if second is not None:
            await second.close()


async def test_a_broker_that_is_away_costs_jobs_nothing_and_learns_of_them_later(place):
    place.broker.stop()
    async with place.daemon(PROCESSOR_HTTP_PORT="0") as daemon:
        await daemon.ready()
        unreachable = await daemon.event("mqtt.unreachable")
        assert "is the broker running" in unreachable["hint"]
        job = await place.create("greet", {"name": "x"})
        await place.becomes(job, "completed")
        place.broker.start()
        async with Witness(place.broker.port) as witness:
            await place.eventually(lambda: job in witness.ended(), within=60)


async def test_what_waited_on_disk_is_told_by_the_next_daemon(place, tmp_path):
    directory = {"PROCESSOR_SPOOL_DIR": str(tmp_path / "state"), "PROCESSOR_HTTP_PORT": "0"}
    place.broker.stop()
    async with place.daemon(**directory) as daemon:
        await daemon.ready()
        url = (await daemon.event("daemon.listening"))["url"]
        jobs = await create_many(place, 20, "again")
        done = await create_many(place, 20)
        for job in done:
            await place.becomes(job, "completed", within=20)
        await place.eventually(
            lambda: httpx.get(f"{url}/status").json()["mqtt"]["waiting"]["disk"] >= len(done), within=20
        )
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
    place.broker.start()
    async with Witness(place.broker.port) as witness, place.daemon(**directory) as daemon:
        assert (await daemon.event("mqtt.outbox_adopted"))["ends"] >= 20
        await place.eventually(lambda: set(done) <= witness.ended().keys(), within=30)
        assert not [told for job in jobs for told in witness.jobs().get(job, []) if told["attempt"] == 1], (
            "what a dead daemon had to say of jobs that went on is old"
        )


@pytest.mark.timeout(180)
async def test_what_finds_no_room_on_disk_is_read_from_the_database(place, tmp_path):
    (tmp_path / "state").write_text("not a directory")
    settings = {
        "PROCESSOR_SPOOL_DIR": str(tmp_path / "state"),
        "PROCESSOR_MQTT_OUTBOX_MAX_MB": "1",
        "PROCESSOR_LEASE_SECONDS": "6",
        "PROCESSOR_SLOTS": "100",
    }
    place.broker.stop()
    async with place.daemon(**settings) as daemon:
        await daemon.ready()
        await daemon.event("mqtt.outbox_failed")
        jobs = await create_many(place, 2200)
        await daemon.event("mqtt.outbox_full", within=60)
        place.broker.start()
        async with Witness(place.broker.port) as witness:
            await place.eventually(lambda: set(jobs) <= witness.ended().keys(), within=90, every=0.5)
            assert witness.disorder() == []
