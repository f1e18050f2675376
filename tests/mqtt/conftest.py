"""A broker, daemons that tell it what happens, and somebody who listens."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import places
from tests.mqtt.brokers import PREFIX, Mosquitto, Witness


class Place(places.Place):
    """A place whose daemons know a broker."""

    target = "tests.apps.tellers:app"
    broker: Mosquitto

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(
            **{
                "PROCESSOR_MQTT_URL": self.broker.url,
                "PROCESSOR_MQTT_PREFIX": PREFIX,
                # what one reads for all is another's to read soon after it was killed
                "PROCESSOR_LEASE_SECONDS": "6",
                **settings,
            }
        )


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start brokers; all are stopped at the end."""
    started: list[Mosquitto] = []

    def start(**options: Any) -> Mosquitto:
        started.append(Mosquitto(tmp_path / f"broker-{len(started)}", **options).start())
        return started[-1]

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture
def broker(brokers: Callable[..., Mosquitto]) -> Mosquitto:
    return brokers()


@pytest.fixture
def place(stack, service, eventually: Callable[..., Awaitable[Any]], broker: Mosquitto) -> Place:
    place = Place(stack, service, eventually)
    place.broker = broker
    return place


@pytest.fixture
async def witness(broker: Mosquitto, place: Place) -> AsyncIterator[Witness]:
    """Listen to the broker; of jobs, only those of this test count: another's may be told of, too."""
    async with Witness(broker.port) as witness:
        witness.queue = place.queue
        yield witness
