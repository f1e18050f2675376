"""What a broker is told of jobs, workers and queues."""

import signal

from tests.mqtt.brokers import PREFIX, retained


async def test_a_job_is_told_of_from_its_start_to_its_end(place, witness):
    async with place.daemon() as daemon:
        await daemon.ready()
        await daemon.event("mqtt.connected", protocol="5")
        job = await place.create("greet", {"name": "x"})
        await place.eventually(lambda: job in witness.ended(), within=15)
    told = witness.jobs()[job]
    assert [one["status"] for one in told] in (["processing", "completed"], ["completed"])
