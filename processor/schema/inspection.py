"""Look at a database: which version of the schema it has, and how it differs from that version."""

from __future__ import annotations

from dataclasses import dataclass

from processor.rpc import SCHEMA_VERSION
from processor.schema.connect import connected
from processor.schema.drift import Problem, problems
from processor.schema.install import installed_version


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What a database has of the schema."""

    installed: int | None
    wanted: int
    problems: tuple[Problem, ...] = ()
    """How it differs; looked for only if the version is the right one."""

    @property
    def ok(self) -> bool:
        """Whether the daemon of this package version can work with it, and everything is as it should be."""
        return self.installed == self.wanted and not self.problems


async def status(database_url: str) -> SchemaStatus:
    """Say which version of the schema a database has, and what is wrong with it; raises ``SchemaError``."""
    async with connected(database_url) as connection:
        installed = await installed_version(connection)
        if installed != SCHEMA_VERSION:
            return SchemaStatus(installed, SCHEMA_VERSION)
        return SchemaStatus(installed, SCHEMA_VERSION, tuple(await problems(connection)))
