"""What is exported for the Supabase CLI gives the same database, run as the CLI runs it."""

import re
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import groupby

import psycopg
import pytest

from processor import schema
from processor.rpc import SCHEMA_VERSION
from processor.schema import SchemaError
from processor.schema.files import OUTSIDE, Migration
from tests.sql.harness import OLD_VERSIONS, VERSIONS

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TOKEN = re.compile(
    r"--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'(?:[^']|'')*'|\"[^\"]*\"|[^;]|(?P<end>;)", re.DOTALL
)
ALONE = re.compile(r"\s*create\s+(unique\s+)?index\s+concurrently\s")
COLUMN = Migration(
    f"{SCHEMA_VERSION:04}_1_column.sql", "alter table public.jobs add column if not exists colour text;\n"
)
INDEX = Migration(
    f"{SCHEMA_VERSION:04}_2_index.sql",
    f"{OUTSIDE}\ncreate index concurrently if not exists jobs_colour_idx on public.jobs (colour);\n",
)


def statements(text):
    """Divide a script as the CLI does: at the semicolons that stand outside quotes and comments."""
    found, current = [], ""
    for token in TOKEN.finditer(text):
        if token["end"]:
            found.append(current)
            current = ""
        elif not token[0].startswith("--"):
            current += token[0]
    assert not current.strip()
    return found


async def push(database, files):
    """Run files as `supabase db push` does: together, without a transaction block; what cannot be, alone."""
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
        for file in files:
            each = statements(file.read_text(encoding="utf-8"))
            for alone, batch in groupby(each, lambda statement: bool(ALONE.match(statement))):
                async with nullcontext() if alone else connection.pipeline():
                    for statement in batch:
                        await connection.execute(statement)


def names(paths):
    return [path.name for path in paths]


def earlier_export(project, version):
    folder = project / "supabase" / "migrations"
    folder.mkdir(parents=True)
    old = folder / f"20260101000000_processor_v{version}.sql"
    old.write_text((VERSIONS / f"{version}.sql").read_text() if version in OLD_VERSIONS else "")
    return old


async def test_the_export_makes_the_same_database(tmp_path, blank, database, dump):
    new = await blank()
    [file] = schema.export(tmp_path, now=NOON)
    assert file == tmp_path / f"supabase/migrations/20261122120000_processor_v{SCHEMA_VERSION}.sql"
    await push(new, [file])
    assert await dump(new) == await dump(database)


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_the_export_brings_a_project_with_an_earlier_one_up(version, tmp_path, blank, database, dump):
    upgraded = await blank()
    await push(upgraded, [earlier_export(tmp_path, version), *schema.export(tmp_path)])
    assert await dump(upgraded) == await dump(database)


async def test_what_runs_outside_a_transaction_has_a_file_of_its_own(tmp_path, blank):
    earlier_export(tmp_path, SCHEMA_VERSION - 1)
    files = schema.export(tmp_path, now=NOON, every=[COLUMN, INDEX])
    assert names(files) == [
        f"20261122120000_processor_{SCHEMA_VERSION:04}_1_column.sql",
        f"20261122120001_processor_{SCHEMA_VERSION:04}_2_index.sql",
        f"20261122120002_processor_v{SCHEMA_VERSION}.sql",
    ]
    assert "supabase migration repair --status applied 20261122120001\n" in files[1].read_text()

    database = await blank()
    await schema.apply(database.dsn)
    await push(database, files)
    assert await database.projects[0].sql(
        "select indisvalid from pg_index where indexrelid = 'public.jobs_colour_idx'::regclass"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("lock table auth.users;", "LOCK TABLE can only be used in transaction blocks"),
        ("select 1; reindex index concurrently auth.users_pkey;", "REINDEX CONCURRENTLY cannot"),
    ],
)
async def test_files_run_here_as_the_cli_runs_them(text, error, tmp_path, blank):
    """Its batches are a transaction, but no transaction block: some statements fail in them that did not."""
    file = tmp_path / "x.sql"
    file.write_text(text)
    with pytest.raises(psycopg.Error, match=error):
        await push(await blank(), [file])


def test_exporting_again_writes_nothing(tmp_path):
    assert len(schema.export(tmp_path)) == 1
    assert schema.export(tmp_path) == []


def test_a_change_without_a_new_version_is_a_revision(tmp_path):
    [first] = schema.export(tmp_path, now=NOON)
    first.write_text(first.read_text().replace("digest: ", "digest: 0"))
    assert names(schema.export(tmp_path, now=NOON)) == [f"20261122120001_processor_v{SCHEMA_VERSION}_r2.sql"]
    assert schema.export(tmp_path, now=NOON) == []
    assert names(schema.export(tmp_path, now=NOON, every=[COLUMN])) == [
        f"20261122120002_processor_v{SCHEMA_VERSION}_r3.sql"
    ]


def test_an_export_comes_after_every_migration_there_is(tmp_path):
    folder = tmp_path / "supabase" / "migrations"
    folder.mkdir(parents=True)
    (folder / "20270228235959_cards.sql").write_text("create table cards ();")
    assert names(schema.export(tmp_path, now=NOON)) == [f"20270301000000_processor_v{SCHEMA_VERSION}.sql"]


def test_a_project_with_a_newer_schema_is_refused(tmp_path):
    earlier_export(tmp_path, SCHEMA_VERSION + 1)
    with pytest.raises(SchemaError, match=f"version {SCHEMA_VERSION + 1} .*pip install --upgrade"):
        schema.export(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "supabase").write_text("a file")
    with pytest.raises(SchemaError, match=r"cannot write to .*supabase/migrations"):
        schema.export(tmp_path)
