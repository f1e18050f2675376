"""The files of the schema: the newest one as a whole, and the migrations that bring older databases to it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

OUTSIDE = "-- outside a transaction"
"""How a migration begins that no transaction may hold, such as one that builds an index concurrently."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the schema."""

    name: str
    text: str

    @property
    def statements(self) -> list[str]:
        """Its statements, of a file that runs outside a transaction: each ends with a line."""
        lines = (line for line in self.text.splitlines() if not line.lstrip().startswith("--"))
        statements = ("\n".join(lines) + "\n").split(";\n")
        return [statement.strip() for statement in statements if statement.strip()]


@dataclass(frozen=True, slots=True)
class Migration(File):
    """What brings a database to a version, as far as the schema's own files cannot."""

    @property
    def version(self) -> int:
        """The version that it leads to: the four digits its name begins with."""
        return int(self.name[:4])

    @property
    def outside(self) -> bool:
        """Whether it runs outside a transaction, statement by statement."""
        return self.text.startswith(OUTSIDE)


@dataclass(frozen=True, slots=True)
class Step:
    """Files that go into a database together: in one transaction, or outside any."""

    files: tuple[File, ...]
    outside: bool = False


def sql_files() -> list[File]:
    """Return the files of the newest schema, in load order. Each may be applied to a database that has it."""
    return [File(name, text) for name, text in _read(_folder())]


def migrations() -> list[Migration]:
    """Return all migrations, in order."""
    return [Migration(name, text) for name, text in _read(_folder() / "migrations")]


def steps(installed: int | None, every: list[Migration]) -> list[Step]:
    """Return what brings a database to the newest version, in order.

    All that can be is one transaction: a database has one version or another, never something between.

    Args:
        installed: the version it has; None if it has none.
        every: all migrations there are.

    """
    done: list[Step] = []
    together: list[File] = []
    for migration in every:
        if installed is None or migration.version <= installed:
            continue
        if not migration.outside:
            together.append(migration)
            continue
        if together:
            done.append(Step(tuple(together)))
            together = []
        done.append(Step((migration,), outside=True))
    return [*done, Step((*together, *sql_files()))]


def script(every: list[Migration]) -> str:
    """Return one text that brings any database to the newest version, new or of any older version.

    Migrations say themselves whether they are needed. Those that run outside a transaction are left out: the
    files build what they would have built, with a lock.
    """
    inside = [migration for migration in every if not migration.outside]
    return "\n".join(f"-- ===== {file.name} =====\n{file.text}" for file in [*inside, *sql_files()])


def _folder() -> Traversable:
    """Return where the files lie: inside the package in a wheel, beside it in a checkout."""
    folder: Traversable = files("processor") / "sql"
    return folder if folder.is_dir() else Path(__file__).parents[2] / "sql"


def _read(folder: Traversable) -> list[tuple[str, str]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]
