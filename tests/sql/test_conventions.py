"""What holds for every object and every file of the schema."""

import re

import pytest

from tests.sql.harness import SQL_FILES, TABLES, connect

FUNCTIONS = """
    select p.oid, n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'
      as name, p.proconfig, p.prosecdef, obj_description(p.oid, 'pg_proc') as comment
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'processor' or (n.nspname = 'public' and p.prokind = 'f')
"""


async def test_every_table_and_column_has_a_comment(project):
    rows = await project.rows("""
        select c.relname || coalesce('.' || a.attname, '') as name,
          case when a.attnum is null then obj_description(c.oid, 'pg_class')
            else col_description(c.oid, a.attnum) end as comment
        from pg_class c
        left join lateral (
          select attname, attnum from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped
          union all select null, null
        ) a on true
        where c.relnamespace in ('public'::regnamespace, 'processor'::regnamespace)
          and c.relkind in ('r', 'v', 'm')
    """)
    assert len(rows) > len(TABLES)
    assert [row["name"] for row in rows if not row["comment"]] == []


async def test_every_function_has_a_comment(project):
    assert [f["name"] for f in await project.rows(FUNCTIONS) if not f["comment"]] == []


async def test_every_function_has_a_search_path_without_schemas_of_others(project):
    """Empty, and the temporary schema last: unnamed, it would come first where types are looked for."""
    rows = await project.rows(FUNCTIONS)
    assert len(rows) > 30
    assert [f["name"] for f in rows if 'search_path="", pg_temp' not in (f["proconfig"] or [])] == []


async def test_no_plan_that_must_not_scan_is_compiled_for_looking_dear(project):
    rows = [f for f in await project.rows(FUNCTIONS) if "enable_seqscan=off" in (f["proconfig"] or [])]
    assert len(rows) > 30
    assert [f["name"] for f in rows if "jit=off" not in f["proconfig"]] == []


async def test_no_function_is_overloaded(project):
    rows = await project.rows("""
        select proname from pg_proc where pronamespace in ('public'::regnamespace, 'processor'::regnamespace)
        group by pronamespace, proname having count(*) > 1
    """)
    assert rows == []


async def test_functions_in_public_run_as_definer_and_private_ones_as_their_caller(project):
    for function in await project.rows(FUNCTIONS):
        assert function["prosecdef"] == function["name"].startswith("public."), function["name"]


@pytest.mark.parametrize("file", SQL_FILES, ids=lambda file: file.name)
def test_every_definer_says_why(file):
    for line in file.read_text().splitlines():
        if re.match(r"^security definer", line):
            assert re.match(r"^security definer -- \w+", line), line


@pytest.mark.parametrize("file", SQL_FILES, ids=lambda file: file.name)
def test_time_comes_from_one_clock(file):
    for number, line in enumerate(file.read_text().splitlines(), 1):
        code = line.split("--")[0]
        if "replace function processor.now" in code or "clock_timestamp" in code:
            assert file.name.startswith("00"), f"{file.name}:{number}"
        assert not re.search(r"(?<!processor\.)\bnow\(\)|current_timestamp", code), (
            f"{file.name}:{number}: {line}"
        )


@pytest.mark.parametrize("file", SQL_FILES, ids=lambda file: file.name)
def test_lines_fit_a_screen(file):
    assert [n for n, line in enumerate(file.read_text().splitlines(), 1) if len(line) > 140] == []


CATALOG = """
    select 'function' as kind, p.oid::regprocedure::text as name,
      concat_ws('|', md5(pg_get_functiondef(p.oid)), p.proacl, obj_description(p.oid, 'pg_proc')) as what
    from pg_proc p where p.pronamespace in ('public'::regnamespace, 'processor'::regnamespace)
    union all
    select 'column', attrelid::regclass || '.' || attname,
      concat_ws('|', attnum, atttypid::regtype, attnotnull, attidentity, attacl, pg_get_expr(adbin, adrelid),
        col_description(attrelid, attnum))
    from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where attrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace) and attnum > 0
    union all
    select 'relation', oid::regclass::text,
      concat_ws('|', relkind, relrowsecurity, relreplident, relacl, reloptions,
        obj_description(oid, 'pg_class'))
    from pg_class where relnamespace = 'public'::regnamespace
    union all
    select 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
    union all
    select 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
    from pg_index where indrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)
    union all
    select 'policy', tablename || '.' || policyname, concat_ws('|', cmd, roles, qual, with_check)
    from pg_policies where schemaname = 'public'
    union all
    select 'publication', pubname, tablename::text from pg_publication_tables
    union all
    select 'schema', nspname, concat_ws('|', nspacl, obj_description(oid, 'pg_namespace'))
    from pg_namespace where nspname in ('public', 'processor')
    order by 1, 2, 3
"""


@pytest.mark.parametrize("times", [1, 2])
async def test_applying_the_files_again_changes_nothing(database, times):
    project = await database.project()
    before = await project.rows(CATALOG)
    assert len(before) > 200
    for _ in range(times):
        for file in SQL_FILES:
            await project.connection.execute(file.read_text())
    assert await project.rows(CATALOG) == before


async def test_applying_the_files_again_keeps_what_is_there(database):
    project = await database.project()
    await project.kind("echo")
    job = await project.create("echo")
    for file in SQL_FILES:
        await project.connection.execute(file.read_text())
    assert await project.job(job) == job
    assert await project.rows("select * from processor.check_schema()") == []


async def test_any_file_can_be_applied_alone_afterwards(database):
    project = await database.project()
    for file in SQL_FILES:
        await project.connection.execute(file.read_text())
        await project.connection.execute(file.read_text())


async def test_a_database_that_is_no_supabase_project_is_refused_with_a_hint(server):
    admin = await connect(server.dsn("postgres"))
    await admin.execute("create database plain")
    try:
        plain = await connect(server.dsn("plain"))
        try:
            with pytest.raises(Exception, match="not a Supabase project") as caught:
                await plain.execute(SQL_FILES[0].read_text())
            assert "processor dev" in caught.value.hint
        finally:
            await plain.close()
    finally:
        await admin.execute("drop database plain with (force)")
        await admin.close()


async def test_a_broken_installation_is_noticed(project):
    assert await project.rows("select * from processor.check_schema()") == []
    await project.connection.execute("""
        alter publication supabase_realtime drop table public.jobs;
        alter table public.job_items disable row level security;
        revoke execute on function public.claim_jobs(uuid, uuid, text[], int) from service_role;
        alter table public.job_logs rename to job_lines;
    """)
    problems = {row["problem"] for row in await project.rows("select problem from processor.check_schema()")}
    assert len(problems) == 4
    assert any("public.jobs is not in the publication" in problem for problem in problems)
    assert any("row level security of public.job_items" in problem for problem in problems)
