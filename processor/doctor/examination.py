"""All checks, one after the other; each is told as soon as it is known."""

from collections.abc import AsyncIterator

from processor.config import Settings
from processor.doctor import host, project
from processor.doctor.finding import Finding, ok
from processor.doctor.realtime import round_trip
from processor.rpc import Rpc

_PATIENCE = 3.0
"""Seconds for which an API that cannot be reached is asked again."""


async def examine(settings: Settings, database_url: str | None = None) -> AsyncIterator[Finding]:
    """Look at everything that a daemon with these settings depends on; changes nothing that stays.

    Args:
        settings: what the daemon would run with.
        database_url: the database itself, to compare every object of the schema.

    """
    for check in (host.settings, host.address, host.keys, host.host):
        for finding in check(settings):
            yield finding
    rpc = Rpc(settings.url, settings.key.get_secret_value(), api_key=settings.api_key, patience=_PATIENCE)
    try:
        try:
            for finding in await project.api(settings, rpc):
                yield finding
            if settings.feed == "polling":
                yield ok("realtime", "not used: PROCESSOR_FEED=polling")
            else:
                for finding in await round_trip(settings, rpc):
                    yield finding
        except project.NoProject as end:
            for finding in end.findings:
                yield finding
    finally:
        await rpc.aclose()
    if database_url is not None:
        for finding in await project.database(database_url):
            yield finding
