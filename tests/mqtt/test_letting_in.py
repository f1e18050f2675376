"""How a daemon gets into a broker, and what it says when it does not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.mqtt.brokers import PREFIX, Certificates, Witness

USERS = {"daemon": "password-of-the-daemon", "reader": "password-of-the-reader"}
ACL = (
    f"user daemon\ntopic write {PREFIX}/#\ntopic read {PREFIX}/control/#\n\n"
    f"user reader\ntopic read {PREFIX}/#\n"
)
READER = {"username": "reader", "password": USERS["reader"]}


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path / "certificates")


def as_daemon(tmp_path, password: str = USERS["daemon"]) -> dict[str, str]:
    path = tmp_path / "password"
    path.write_text(password)
    path.chmod(0o600)
    return {"PROCESSOR_MQTT_USERNAME": "daemon", "PROCESSOR_MQTT_PASSWORD_FILE": str(path)}


async def test_user_and_password_from_files_and_an_acl(place, brokers, tmp_path):
    place.broker = brokers(users=USERS, acl=ACL)
    async with Witness(place.broker.port, **READER) as witness, place.daemon(**as_daemon(tmp_path)) as daemon:
        await daemon.event("mqtt.connected")
        await daemon.event("daemon.ready")
        job = await place.create("greet", {"name": "x"})
        await place.eventually(lambda: job in witness.ended(), within=20)
        assert USERS["daemon"] not in daemon.log()


async def test_a_wrong_password_is_said_with_what_to_do(place, brokers, tmp_path):
    place.broker = brokers(users=USERS, acl=ACL)
    async with place.daemon(**as_daemon(tmp_path, "another-password")) as daemon:
        refused = await daemon.event("mqtt.unreachable")
        assert "PROCESSOR_MQTT_PASSWORD" in refused["hint"]
        assert "another-password" not in daemon.log()
        await daemon.event("daemon.ready")
        await place.do("greet", {"name": "x"})


async def test_an_acl_that_lets_the_daemon_write_nothing_is_no_secret(place, brokers, tmp_path):
    place.broker = brokers(users=USERS, acl=f"user daemon\ntopic write {PREFIX}/workers/#\n")
    async with place.daemon(**as_daemon(tmp_path)) as daemon:
        await daemon.event("mqtt.connected")
        await daemon.event("daemon.ready")
        await place.create("greet", {"name": "x"})
        refused = await daemon.event("mqtt.refused")
        assert "/jobs/" in refused["topic"]
        assert f"{PREFIX}/#" in refused["hint"]


async def test_tls_with_an_authority_of_ones_own_and_a_client_certificate(
    place, brokers, certificates, tmp_path
):
    place.broker = brokers(certificates=certificates, client_certificates=True)
    mine = {
        "PROCESSOR_MQTT_CA_FILE": str(certificates.ca),
        "PROCESSOR_MQTT_CERT_FILE": str(certificates.client_cert),
        "PROCESSOR_MQTT_KEY_FILE": str(certificates.client_key),
    }
    async with place.daemon(**mine) as daemon:
        assert (await daemon.event("mqtt.connected"))["broker"] == place.broker.url
        await daemon.event("daemon.ready")
        await place.do("greet", {"name": "x"})


async def test_an_authority_that_nobody_knows_is_said_with_what_to_do(place, brokers, certificates):
    place.broker = brokers(certificates=certificates)
    async with place.daemon() as daemon:
        refused = await daemon.event("mqtt.unreachable")
        assert "PROCESSOR_MQTT_CA_FILE" in refused["hint"]
        await daemon.event("daemon.ready")
        await place.do("greet", {"name": "x"})


@contextlib.asynccontextmanager
async def knows_only_the_older_protocol(port: int) -> AsyncIterator[int]:
    """Stand before a broker, and refuse MQTT 5 as one of 2014 does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(12)  # of a CONNECT with two bytes of length, or one
            level = head[head.index(b"MQTT") + 4]
            if level != 4:
                writer.write(b"\x20\x02\x00\x01")
                await writer.drain()
                writer.close()
                return
            upstream, down = await asyncio.open_connection("127.0.0.1", port)
            down.write(head)
            await asyncio.gather(forward(reader, down), forward(upstream, writer))
        writer.close()

    async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_broker_of_the_older_protocol_is_spoken_to_in_it_and_cleaned_up_after(place, witness):
    async with knows_only_the_older_protocol(place.broker.port) as port:
        settings = {
            "PROCESSOR_MQTT_URL": f"mqtt://127.0.0.1:{port}",
            "PROCESSOR_MQTT_RETAIN_SECONDS": "2",
        }
        async with place.daemon(**settings) as daemon:
            await daemon.event("mqtt.older_protocol")
            assert (await daemon.event("mqtt.connected"))["protocol"] == "3.1.1"
            await daemon.event("daemon.ready")
            job = await place.create("greet", {"name": "x"})
            await place.eventually(lambda: job in witness.ended(), within=20)
            await place.eventually(
                lambda: [m for m in witness.heard if job in m.topic.value and not m.payload], within=20
            )
