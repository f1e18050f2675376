"""What a broker is told of jobs, workers and queues, and what it keeps for those who come later."""

import signal
from datetime import datetime

from aiomqtt import ProtocolVersion

from tests.mqtt.brokers import PREFIX, kept, retained

QUICK = {"PROCESSOR_LEASE_SECONDS": "3"}
"""A daemon that looks every second for what nobody has told of."""


async def connected(daemon):
    await daemon.ready()
    return await daemon.event("mqtt.connected")


async def test_a_job_is_told_of_from_its_start_to_its_end(place, witness):
    async with place.daemon() as daemon:
        assert (await connected(daemon))["protocol"] == "5"
        job = await place.create("nap", {"seconds": 0.5})
        await place.eventually(lambda: job in witness.ended(), within=15)
    started, ended = witness.jobs()[job]
    assert (started["v"], started["event"], started["status"]) == (1, "job.started", "processing")
    assert (ended["event"], ended["status"], ended["attempt"]) == ("job.completed", "completed", 1)
    assert ended["queue"] == place.queue
    assert ended["kind"] == f"{place.queue}.nap"


async def test_a_failure_is_told_with_its_reason_and_a_retry_with_its_time(place, witness):
    async with place.daemon() as daemon:
        await connected(daemon)
        failing = await place.create("greet", {})
        retried = await place.create("again")
        await place.eventually(lambda: failing in witness.ended(), within=15)
        await place.eventually(
            lambda: any(t["status"] == "pending" for t in witness.jobs().get(retried, [])), within=15
        )
    [*_, told] = witness.jobs()[failing]
    assert (told["status"], told["error_code"]) == ("failed", "INVALID_PAYLOAD")
    [waits] = [t for t in witness.jobs()[retried] if t["status"] == "pending"]
    assert waits["event"] == "job.retrying"
    # as times: a database writes microseconds without their last zeros
    run_at = (await place.row(retried))["run_at"]
    assert datetime.fromisoformat(waits["run_at"]) == datetime.fromisoformat(run_at)


async def test_progress_is_told_beside_the_status(place, witness):
    async with place.daemon() as daemon:
        await connected(daemon)
        job = await place.create("items", items=["a", "b"])
        await place.eventually(lambda: job in witness.ended(), within=15)
        [*_, ended] = witness.jobs()[job]
        assert (ended["items_total"], ended["items_done"]) == (2, 2)
        reports = await place.create("steps")
        await place.eventually(lambda: witness.of(reports, "progress"), within=15)
    told = witness.of(reports, "progress")
    assert all(0 <= one["progress"] <= 1 for one in told)


async def test_who_comes_later_is_told_how_a_job_ended_until_its_time_is_over(place, witness):
    async with place.daemon(PROCESSOR_MQTT_RETAIN_SECONDS="3") as daemon:
        await connected(daemon)
        job = await place.create("greet", {"name": "x"})
        await place.eventually(lambda: job in witness.ended(), within=15)
        topic = f"{PREFIX}/jobs/{place.queue}/{job}/status"
        assert (await retained(place.broker.port, topic))["status"] == "completed"

        async def forgotten() -> bool:
            return await retained(place.broker.port, topic, within=0.3) is None

        await place.eventually(forgotten, within=20, every=0.2)


async def test_a_status_carries_the_trace_that_its_job_was_created_within(place, witness):
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "shop=1"}
    async with place.daemon() as daemon:
        await connected(daemon)
        job = await place.create("greet", {"name": "x"}, trace_context=trace)
        await place.eventually(lambda: job in witness.ended(), within=15)
        message = await kept(
            place.broker.port, f"{PREFIX}/jobs/{place.queue}/{job}/status", protocol=ProtocolVersion.V5
        )
    assert dict(message.properties.UserProperty) == trace
    assert message.properties.ContentType == "application/json"


async def test_a_daemon_says_what_it_does_and_its_last_will_that_it_was_killed(place, witness):
    async with place.daemon(**QUICK) as daemon:
        worker = (await daemon.event("daemon.ready"))["worker_id"]
        topic = f"{PREFIX}/workers/{worker}/state"
        await place.eventually(lambda: [t for t in witness.of(worker) if t["state"] == "ready"], within=15)
        await place.eventually(lambda: [t for t in witness.of(worker) if t["feed"] == "realtime"], within=15)
        assert (await retained(place.broker.port, topic))["state"] == "ready"
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        await place.eventually(lambda: witness.of(worker)[-1]["state"] == "offline", within=10)
        assert (await retained(place.broker.port, topic))["state"] == "offline"


async def test_a_daemon_that_leaves_in_order_says_so(place, witness):
    async with place.daemon() as daemon:
        worker = (await daemon.event("daemon.ready"))["worker_id"]
        await connected(daemon)
        await place.becomes(await place.create("nap", {"seconds": 60}), "processing")
        daemon.signal(signal.SIGTERM)
        # while something runs: a state that lasts for a moment only may be left out for the next one
        await place.eventually(lambda: "draining" in witness.states(worker), within=15)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0, daemon.log()
    await place.eventually(lambda: witness.states(worker)[-1] == "stopped", within=15)
    assert "offline" not in witness.states(worker)


async def test_how_full_queues_are_is_told_by_one_daemon(place, witness):
    async with place.daemon(**QUICK) as daemon, place.daemon(**QUICK) as other:
        await connected(daemon)
        await connected(other)
        await place.create("greet", {"name": "x"}, delay_seconds=3600)
        full = await place.eventually(
            lambda: [d for d in witness.of("queues", place.queue, "depth") if d["scheduled"] == 1],
            within=150,  # a daemon that another test has killed reads the figures until its lease is over
        )
    assert full[0]["queue"] == place.queue
    assert {"due", "processing", "waiting", "paused", "oldest_seconds"} <= full[0].keys()


async def test_a_job_that_ends_without_any_daemon_is_told_of_once(place, witness):
    async with place.daemon(**QUICK) as daemon:
        await connected(daemon)
        job = await place.create("greet", {"name": "x"}, delay_seconds=3600)
        await place.rest.rpc("cancel_job", {"job_id": job}).execute()
        await place.eventually(lambda: job in witness.ended(), within=20)
        assert witness.ended()[job] == "cancelled"
        after = await place.create("greet", {"name": "x"}, delay_seconds=3600)
        await place.rest.rpc("cancel_job", {"job_id": after}).execute()
        await place.eventually(lambda: after in witness.ended(), within=20)
    assert len(witness.of(job, "status")) == 1


async def test_without_the_setting_nothing_is_told(place, witness):
    async with place.daemon(PROCESSOR_MQTT_URL="") as daemon:
        await daemon.ready()
        await place.do("greet", {"name": "x"})
    assert witness.heard == []
