"""The schema as migrations of the Supabase CLI: files that `supabase db push` runs.

The CLI runs the files in the order of their names, each once, and remembers their timestamps. It sends the
statements of a file together, which is a transaction but no transaction block; what must run outside a
transaction it recognises since version 2.109 and sends alone. Hence nothing in ours begins a transaction,
locks a table or sets anything locally at the top level, and what runs outside has files of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from processor.rpc import SCHEMA_VERSION
from processor.schema.connect import SchemaError
from processor.schema.files import Migration, Step, migrations, script, steps

_TIMESTAMP = "%Y%m%d%H%M%S"
_WHOLE = re.compile(r"\d{14}_processor_v(?P<version>\d+)(?:_r(?P<revision>\d+))?\.sql")
_DIGEST = re.compile(r"^-- digest: ([0-9a-f]{64})$", re.MULTILINE)
_HEAD = """\
-- supabase-job-processor, schema version {version}. Written by `processor schema export`; not to be edited.
-- digest: {digest}
"""
_HEAD_OUTSIDE = """\
-- supabase-job-processor, on the way to schema version {version}. Written by `processor schema export`.
-- It runs outside a transaction, which the CLI does since version 2.109. With an older one run the
-- statements in the SQL editor, one by one, then: supabase migration repair --status applied {{timestamp}}
"""
_HEAD_BEFORE = """\
-- supabase-job-processor, on the way to schema version {version}. Written by `processor schema export`.
"""


@dataclass(frozen=True, slots=True)
class _Earlier:
    """The newest that earlier exports left in a directory."""

    version: int
    revision: int
    digest: str


def export(project: Path, *, now: datetime | None = None, every: list[Migration] | None = None) -> list[Path]:
    """Write what a project's migrations lack of the newest schema; return the new files, maybe none.

    Args:
        project: the directory that has, or gets, ``supabase/migrations``.
        now: the time that the files' names begin with, unless a file there has a later one.
        every: all migrations there are; by default those of the package.

    Raises:
        SchemaError: the project has a newer version, or the directory cannot be read or written.

    """
    folder = project / "supabase" / "migrations"
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        moment = _first_free(folder, now or datetime.now(UTC))
        for name, text in _lacking(_newest(folder), migrations() if every is None else every):
            timestamp = moment.strftime(_TIMESTAMP)
            path = folder / f"{timestamp}_processor_{name}.sql"
            path.write_text(text.replace("{timestamp}", timestamp), encoding="utf-8")
            written.append(path)
            moment += timedelta(seconds=1)
    except OSError as error:
        raise SchemaError(f"cannot write to {folder}: {error.strerror}") from error
    return written


def _lacking(earlier: _Earlier | None, every: list[Migration]) -> Iterator[tuple[str, str]]:
    """Return the files to be written, as (name without timestamp, text)."""
    # complete, whatever the directory has: the project may have got its schema in another way
    whole = script(every)
    digest = hashlib.sha256(whole.encode()).hexdigest()
    name = f"v{SCHEMA_VERSION}"
    if earlier is not None and earlier.version > SCHEMA_VERSION:
        raise SchemaError(
            f"the project has version {earlier.version} of the schema, this package has {SCHEMA_VERSION}. "
            "Upgrade it: pip install --upgrade supabase-job-processor"
        )
    if earlier is not None and earlier.version == SCHEMA_VERSION:
        if earlier.digest == digest:
            return
        name += f"_r{earlier.revision + 1}"
    elif earlier is not None:
        for step in steps(earlier.version, every)[:-1]:
            yield step.files[-1].name.removesuffix(".sql"), _on_the_way(step)
    yield name, _HEAD.format(version=SCHEMA_VERSION, digest=digest) + "\n" + whole


def _on_the_way(step: Step) -> str:
    head = _HEAD_OUTSIDE if step.outside else _HEAD_BEFORE
    return head.format(version=SCHEMA_VERSION) + "\n" + "\n".join(file.text for file in step.files)


def _newest(folder: Path) -> _Earlier | None:
    found = [(match, path) for path in folder.glob("*.sql") if (match := _WHOLE.fullmatch(path.name))]
    if not found:
        return None
    match, path = max(found, key=lambda entry: (int(entry[0]["version"]), int(entry[0]["revision"] or 1)))
    digest = _DIGEST.search(path.read_text(encoding="utf-8"))
    return _Earlier(int(match["version"]), int(match["revision"] or 1), digest[1] if digest else "")


def _first_free(folder: Path, now: datetime) -> datetime:
    """Return a time after that of every file there: the CLI refuses files older than what it has run."""
    latest = max((path.name[:14] for path in folder.glob("*_*.sql") if path.name[:14].isdigit()), default="")
    if latest < now.strftime(_TIMESTAMP):
        return now
    try:
        return datetime.strptime(latest, _TIMESTAMP).replace(tzinfo=UTC) + timedelta(seconds=1)
    except ValueError as error:
        raise SchemaError(f"{folder} has a file whose name begins with no time: {latest}") from error
