"""Rights are what the last file says, whatever the database gives to new objects by default."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from tests.sql.harness import ALICE, BOOTSTRAP, SQL_FILES, Project, connect, done, fence, fixture

# every right on every object of ours, as (kind, name, grantee, privilege, grantable); an object without an
# entry has the rights that PostgreSQL builds in, such as PUBLIC's to execute a function
RIGHTS = """
    with acl (kind, name, owner, entries) as (
      select 'schema', nspname::text, nspowner, coalesce(nspacl, acldefault('n', nspowner))
      from pg_namespace where nspname = 'processor'
      union all
      select relkind::text, oid::regclass::text, relowner,
        coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
      from pg_class
      where relnamespace in ('public'::regnamespace, 'processor'::regnamespace)
        and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      union all
      select 'column', attrelid::regclass || '.' || attname, relowner, attacl
      from pg_attribute join pg_class c on c.oid = attrelid
      where relnamespace in ('public'::regnamespace, 'processor'::regnamespace) and attacl is not null
      union all
      select 'function', oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner))
      from pg_proc where pronamespace in ('public'::regnamespace, 'processor'::regnamespace)
      union all
      select 'type', oid::regtype::text, typowner, coalesce(typacl, acldefault('T', typowner))
      from pg_type where typnamespace in ('public'::regnamespace, 'processor'::regnamespace)
    )
    select kind, name, case when e.grantee = owner then 'owner' when e.grantee = 0 then 'PUBLIC'
      else e.grantee::regrole::text end as grantee, privilege_type, is_grantable
    from acl cross join lateral aclexplode(entries) e
"""
EVERYBODY = "anon, authenticated, service_role, job_processor"
GRANT_ALL = f"""
    alter default privileges {{where}} grant all on tables to public, {EVERYBODY};
    alter default privileges {{where}} grant all on sequences to public, {EVERYBODY};
    alter default privileges {{where}} grant all on functions to public, {EVERYBODY};
    alter default privileges {{where}} grant all on types to public, {EVERYBODY};
"""
GRANTABLE = """
    alter default privileges grant all on tables to anon, authenticated with grant option;
    alter default privileges grant all on functions to anon, authenticated with grant option;
"""
HOSTILE = {
    "everywhere": GRANT_ALL.format(where="")
    + f"alter default privileges grant all on schemas to public, {EVERYBODY};",
    "in schema public": GRANT_ALL.format(where="in schema public"),
    "grantable": GRANTABLE,
    "public may create": "grant create on schema public to public",
}

Bare = Callable[..., AbstractAsyncContextManager[asyncpg.Connection]]


@fixture
async def bare(server) -> Bare:
    """Make databases that are Supabase projects with nothing in them, and connect to them."""

    @asynccontextmanager
    async def make(owner: str = "postgres", password: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        name = f"bare_{uuid4().hex}"
        admin = await connect(server.dsn("postgres"))
        try:
            await admin.execute(f"create database {name} owner {owner}")
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(admin.execute, f"drop database {name} with (force)")
                superuser = await connect(server.dsn(name))
                stack.push_async_callback(superuser.close)
                await superuser.execute(BOOTSTRAP.read_text())
                if password is None:
                    yield superuser
                    return
                await superuser.execute(
                    f"alter publication supabase_realtime owner to {owner}; "
                    f"grant usage on schema auth to {owner}"
                )
                connection = await connect(server.postgres.dsn(name, user=owner, password=password))
                stack.push_async_callback(connection.close)
                yield connection
        finally:
            await admin.close()

    return make


async def install(connection: asyncpg.Connection) -> None:
    for file in SQL_FILES:
        await connection.execute(file.read_text())


async def rights(connection: asyncpg.Connection) -> set[tuple]:
    rows = {tuple(row) for row in await connection.fetch(RIGHTS)}
    assert len(rows) > 200
    return rows


def differences(found: set[tuple], expected: set[tuple]) -> list[str]:
    extra = [f"+ {' '.join(map(str, right))}" for right in found - expected]
    missing = [f"- {' '.join(map(str, right))}" for right in expected - found]
    return sorted(extra + missing)


@fixture
async def friendly(project) -> set[tuple]:
    """Give the rights in a database that gives nothing away."""
    return await rights(project.connection)


@pytest.mark.parametrize("way", HOSTILE)
async def test_hostile_default_privileges_change_no_right(bare, friendly, way):
    async with bare() as connection:
        await connection.execute(HOSTILE[way])
        await install(connection)
        assert differences(await rights(connection), friendly) == []


async def test_what_a_later_version_adds_gets_no_right_from_hostile_defaults(bare, friendly):
    async with bare() as connection:
        await install(connection)
        for way in HOSTILE.values():
            await connection.execute(way)
        await connection.execute(GRANT_ALL.format(where="in schema processor"))
        # as if this version were the one that adds them
        await connection.execute("""
            drop view processor.queue_health;
            drop function public.release_jobs(uuid, jsonb), processor.check_schema();
            drop table public.job_logs, public.credit_captures;
        """)
        await install(connection)
        assert differences(await rights(connection), friendly) == []


async def test_rights_given_by_hand_to_an_api_role_are_taken_back(bare, friendly):
    async with bare() as connection:
        await install(connection)
        await connection.execute("""
            grant insert on public.jobs to authenticated;
            grant update (status) on public.jobs to anon;
            grant usage on schema processor to anon;
            grant execute on function processor.prune_jobs(int) to public;
            grant select on processor.queue_health to authenticated;
            grant usage on sequence public.job_logs_id_seq to authenticated;
        """)
        assert len(differences(await rights(connection), friendly)) == 6
        await install(connection)
        assert differences(await rights(connection), friendly) == []


async def test_rights_of_an_operators_own_role_survive_an_upgrade(bare, friendly):
    role = f"dashboard_{uuid4().hex}"
    async with bare() as connection:
        await install(connection)
        try:
            await connection.execute(
                f"create role {role}; grant usage on schema processor to {role}; "
                f"grant select on processor.queue_health to {role}; grant select on public.jobs to {role}"
            )
            await install(connection)
            assert differences(await rights(connection), friendly) == [
                f"+ r jobs {role} SELECT False",
                f"+ schema processor {role} USAGE False",
                f"+ v processor.queue_health {role} SELECT False",
            ]
        finally:
            await connection.execute(f"drop owned by {role}; drop role {role}")


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ("alter table public.job_logs owner to {stranger}", "(table|sequence) job_logs"),
        ("alter view processor.queue_health owner to {stranger}", "table processor.queue_health"),
        ("alter function public.prune_jobs(int) owner to {stranger}", "function prune_jobs"),
        ("alter schema processor owner to {stranger}", "to {stranger} as schema processor does"),
    ],
)
async def test_an_object_of_somebody_else_is_not_adopted(bare, theirs, named):
    """Whoever owns a table can give it a trigger, which our functions would run with their rights."""
    stranger = f"stranger_{uuid4().hex}"
    async with bare() as connection:
        await install(connection)
        try:
            await connection.execute(f"create role {stranger}; {theirs.format(stranger=stranger)}")
            with pytest.raises(asyncpg.RaiseError, match=named.format(stranger=stranger)) as caught:
                await install(connection)
            assert "always the same" in caught.value.hint
        finally:
            await connection.execute(f"drop owned by {stranger} cascade; drop role {stranger}")


@fixture
async def installer(server) -> AsyncIterator[str]:
    """Give a role as powerful as a hosted project's postgres, which is no superuser."""
    role = f"installer_{uuid4().hex}"
    admin = await connect(server.dsn("postgres"))
    try:
        await admin.execute(f"create role {role} login createrole createdb bypassrls password 'secret'")
        await admin.execute(f"grant job_processor to {role} with admin option")
        yield role
        await admin.execute(f"drop owned by {role}; drop role {role}")
    finally:
        await admin.close()


OWNERS = """
    select nspowner::regrole::text from pg_namespace where nspname = 'processor'
    union select relowner::regrole::text from pg_class
      where relnamespace in ('public'::regnamespace, 'processor'::regnamespace)
    union select proowner::regrole::text from pg_proc
      where pronamespace in ('public'::regnamespace, 'processor'::regnamespace)
    union select typowner::regrole::text from pg_type
      where typnamespace in ('public'::regnamespace, 'processor'::regnamespace)
"""


async def test_everything_belongs_to_who_installed_it(bare, installer, project):
    assert [row["nspowner"] for row in await project.rows(OWNERS)] == ["postgres"]
    async with bare(installer, "secret") as connection:
        await install(connection)
        assert [row["nspowner"] for row in await connection.fetch(OWNERS)] == [installer]


async def test_a_schema_installed_by_no_superuser_has_the_same_rights_and_works(bare, installer, friendly):
    async with bare(installer, "secret") as connection:
        for way in ("everywhere", "in schema public"):
            await connection.execute(HOSTILE[way])
        await install(connection)
        await install(connection)
        assert differences(await rights(connection), friendly) == []

        one = Project(connection)
        await one.kind("translate", credits_per_item=10)
        await one.grant(ALICE, 100)
        await one.create("translate", owner_id=ALICE, items=["de", "fr"])
        worker = await one.worker()
        [job] = await worker.claim()
        await worker.finish_items(job, done("de"))
        await worker.log(job, "hello")
        await worker.heartbeat(job)
        [answer] = await worker.finish_all([fence(job) | {"outcome": "fail"}])
        assert answer["status"] == "partial"
        assert await one.balance(ALICE) == (90, 0, 10)
        assert await one.faults() == []
        assert await one.rows("select * from processor.check_schema()") == []
