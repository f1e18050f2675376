"""What the project's API says: that it is there, takes the key, has the schema, and what time it is."""

import time
from collections.abc import Iterator
from datetime import datetime

from pydantic import BaseModel, ValidationError

from processor.config import Settings
from processor.doctor.finding import Finding, fail, ok, warn
from processor.errors import ApiError, ApiUnreachable, AuthFailed, SchemaMissing
from processor.rpc import SCHEMA_VERSION, Rpc
from processor.schema import SchemaError, status

_APPLY = "processor schema apply --database-url …"
_SKEW = 2.0
"""Seconds that a clock may be wrong: tokens, due times and logs are the worse for more."""


class Installation(BaseModel):
    """The answer to check_installation."""

    now: datetime
    schema_version: int
    role: str
    problems: tuple[str, ...]
    wal_level: str
    broadcast: bool


class NoProject(Exception):  # noqa: N818  it says what is the matter
    """Nothing else can be looked at; carries what was found until then."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__()
        self.findings = findings


async def api(settings: Settings, rpc: Rpc) -> list[Finding]:
    """Ask the project about itself; raises :class:`NoProject` if it cannot be had."""
    there = ok("address", f"{settings.url} is a Supabase project")
    try:
        await rpc.check_installation()  # the first answer takes a connection, and tells no time
        wall, began = time.time(), time.monotonic()
        told = Installation.model_validate(await rpc.check_installation())
    except ApiUnreachable as error:
        raise NoProject(fail("address", error.message, error.hint or "Check SUPABASE_URL.")) from error
    except AuthFailed as error:
        raise NoProject(there, fail("key", error.message, error.hint or "Check the key.")) from error
    except SchemaMissing as error:
        seen = f"the jobs schema is not installed, or older than version {SCHEMA_VERSION}"
        raise NoProject(there, fail("schema", seen, f"Run: {_APPLY}")) from error
    except (ApiError, ValidationError) as error:
        raise NoProject(there, fail("schema", str(error), f"Run: {_APPLY}")) from error
    took = time.monotonic() - began
    if told.schema_version != SCHEMA_VERSION:
        raise NoProject(there, _other_version(told.schema_version))
    answered = ok("address", f"{settings.url} answered in {took * 1000:.0f} ms, as {told.role}")
    skew = told.now.timestamp() - (wall + took / 2)
    return [answered, *_schema(told), _clock(skew, took / 2), *_realtime(settings, told)]


async def database(url: str) -> list[Finding]:
    """Compare every object of the schema, with a connection to the database."""
    try:
        found = await status(url)
    except SchemaError as error:
        return [fail("database", str(error), "Take the URL from the dashboard, under Connect.")]
    if found.ok:
        return [ok("database", f"every object and right is as in schema version {found.installed}")]
    if found.installed != found.wanted:
        return [_other_version(found.installed)]
    return [
        (fail if problem.serious else warn)("database", problem.says, problem.mend)
        for problem in found.problems
    ]


def _schema(told: Installation) -> Iterator[Finding]:
    for problem in told.problems:
        yield fail("schema", problem, f"Run: {_APPLY}")
    if not told.problems:
        yield ok("schema", f"version {told.schema_version}: tables, row level security and rights are there")


def _other_version(installed: int | None) -> Finding:
    newer = installed is not None and installed > SCHEMA_VERSION
    mend = "Run: pip install --upgrade supabase-job-processor" if newer else f"Run: {_APPLY}"
    return fail("schema", f"the database has version {installed}, this package needs {SCHEMA_VERSION}", mend)


def _clock(skew: float, uncertainty: float) -> Finding:
    """Judge how far this machine's clock is from the database's, both in seconds."""
    if abs(skew) - uncertainty <= _SKEW:
        return ok("clock", f"{abs(skew):.2f} s from the database's, give or take {uncertainty:.2f} s")
    way = "behind" if skew > 0 else "ahead of"
    seen = f"this machine is {abs(skew):.1f} s {way} the database, give or take {uncertainty:.1f} s"
    return warn("clock", seen, "Have it set by NTP: timedatectl set-ntp true")


def _realtime(settings: Settings, told: Installation) -> Iterator[Finding]:
    if settings.feed != "polling" and told.wal_level != "logical":
        seen = f"the database's wal_level is {told.wal_level}: Realtime has nothing to read changes from"
        yield fail(
            "realtime", seen, "Set wal_level = logical and restart PostgreSQL, or PROCESSOR_FEED=polling."
        )
    if settings.feed == "broadcast" and not told.broadcast:
        mend = "Upgrade the project's Realtime, or use PROCESSOR_FEED=postgres_changes."
        yield fail("realtime", "the database has no realtime.send(), which broadcast needs", mend)
