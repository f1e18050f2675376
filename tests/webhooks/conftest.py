"""Certificates of an authority that only these tests know, and receivers that have one."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from tests.webhooks.receiver import Receiver


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """Return an authority, and the file by which others trust it."""
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


@pytest.fixture
async def receivers(
    authority: tuple[trustme.CA, Path],
) -> AsyncIterator[Callable[..., Awaitable[Receiver]]]:
    """Open receivers, whose certificates are for the names given; None: without TLS."""
    opened: list[Receiver] = []

    async def open_one(*names: str | None, host: str = "127.0.0.1", port: int = 0) -> Receiver:
        tls = None
        if None not in names:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority[0].issue_cert(*(name for name in names if name), "localhost").configure_cert(tls)
        receiver = Receiver(tls)
        receiver.port = port
        opened.append(await receiver.open(host))
        return receiver

    yield open_one
    for receiver in opened:
        await receiver.close()
