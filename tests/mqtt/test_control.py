"""What daemons do when they are asked over MQTT, by whom, and what they refuse."""

import asyncio
import statistics
from datetime import datetime

import pytest

from tests.conftest import rest_client
from tests.faults import FaultProxy
from tests.mqtt.brokers import PREFIX, client

USERS = {"daemon": "password-of-the-daemon", "chief": "password-of-the-chief", "other": "password-of-another"}
ACL = (
    f"user daemon\ntopic write {PREFIX}/#\ntopic read {PREFIX}/control/#\n\n"
    f"user chief\ntopic write {PREFIX}/control/#\n\n"
    f"user other\ntopic read {PREFIX}/#\n"
)
CONTROL = {"PROCESSOR_MQTT_CONTROL": "true"}


async def obeying(place, **settings):
    daemon = await place.launch(**CONTROL, **settings)
    await daemon.ready()
    await daemon.event("mqtt.connected")
    return daemon


async def test_pause_resume_and_drain(place, eventually):
    daemon = await obeying(place)
    worker = (await daemon.event("daemon.ready"))["worker_id"]
    try:
        async with client(place.broker.port) as chief:
            await chief.publish(f"{PREFIX}/control/workers/{worker}", b"pause", qos=1)
            await daemon.event("mqtt.commanded", command="pause")
            job = await place.create("greet", {"name": "x"})
            await asyncio.sleep(1)
            assert (await place.row(job))["status"] == "pending"
            await chief.publish(f"{PREFIX}/control/workers/all", b"resume", qos=1)
            await place.becomes(job, "completed")
            await chief.publish(f"{PREFIX}/control/workers/all", b"drain", qos=1)
            assert await daemon.ended() == 0, daemon.log()
    finally:
        await daemon.close()


async def test_what_makes_no_sense_is_refused_with_a_reason(place):
    daemon = await obeying(place)
    try:
        async with client(place.broker.port) as chief:
            topic = f"{PREFIX}/control/workers/all"
            await chief.publish(topic, b"explode", qos=1)
            assert "explode" in (await daemon.event("mqtt.command_refused"))["reason"]
            await chief.publish(topic, b"drain" * 100, qos=1)
            await daemon.event("mqtt.command_refused", where=lambda e: "200 bytes" in e["reason"])
            await place.do("greet", {"name": "x"})
    finally:
        await daemon.close()


async def test_a_command_that_the_broker_kept_is_not_obeyed_at_each_connection(place):
    async with client(place.broker.port) as chief:
        await chief.publish(f"{PREFIX}/control/workers/all", b"drain", qos=1, retain=True)
    daemon = await obeying(place)
    try:
        await place.do("greet", {"name": "x"})
        assert daemon.all("mqtt.commanded") == []
    finally:
        await daemon.close()


async def test_commands_are_off_unless_they_are_switched_on(place):
    async with place.daemon() as daemon:
        await daemon.event("mqtt.connected")
        async with client(place.broker.port) as chief:
            await chief.publish(f"{PREFIX}/control/workers/all", b"drain", qos=1)
        await place.do("greet", {"name": "x"})
        assert daemon.process.poll() is None
        assert daemon.all("mqtt.commanded") == []


async def test_who_may_command_is_for_the_acl_to_say(place, brokers):
    place.broker = brokers(users=USERS, acl=ACL)
    daemon = await obeying(place, PROCESSOR_MQTT_USERNAME="daemon", PROCESSOR_MQTT_PASSWORD=USERS["daemon"])
    try:
        async with client(place.broker.port, username="other", password=USERS["other"]) as other:
            await other.publish(f"{PREFIX}/control/workers/all", b"drain", qos=1)
        await place.do("greet", {"name": "x"})
        assert daemon.all("mqtt.commanded") == []
        async with client(place.broker.port, username="chief", password=USERS["chief"]) as chief:
            await chief.publish(f"{PREFIX}/control/workers/all", b"drain", qos=1)
        assert await daemon.ended() == 0
    finally:
        await daemon.close()


async def pickup(place, job: str) -> float:
    row = await place.ended(job)
    times = [datetime.fromisoformat(row[name]) for name in ("created_at", "started_at")]
    return (times[1] - times[0]).total_seconds()


@pytest.mark.timeout(180)
async def test_without_realtime_a_wake_up_over_mqtt_is_as_good(place, stack):
    async with FaultProxy(stack.url) as proxy, rest_client(stack, stack.service_headers):
        proxy.refuse("websocket")
        daemon = await place.launch(**CONTROL, SUPABASE_URL=proxy.url, PROCESSOR_POLL_SECONDS="30")
        try:
            await daemon.event("daemon.ready")
            await daemon.event("mqtt.connected")
            async with client(place.broker.port) as application:
                for _ in range(3):  # what is slow at first
                    await woken(place, application)
                pickups = [await pickup(place, await woken(place, application)) for _ in range(40)]
            assert daemon.all("feed.mode", mode="realtime") == []
        finally:
            await daemon.close()
    assert statistics.median(pickups) < 0.1, sorted(pickups)
    assert max(pickups) < 5, "nobody waited for the clock"


async def woken(place, application) -> str:
    job = await place.create("greet", {"name": "x"})
    await application.publish(f"{PREFIX}/control/wake", place.queue.encode(), qos=1)
    await place.ended(job)
    return job
