"""A broken stream is never silent: clients must come again, and then hear everything from there on."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from tests.compat.realtime_listener import Listener, MakeTable, listening, publishing

# the client reads attributes that websockets deprecates, in the very handler of a lost connection
pytestmark = pytest.mark.filterwarnings("ignore:ConnectionClosed:DeprecationWarning")

WALSENDER = "select active_pid from pg_replication_slots where slot_name like 'realtime_%' and active"


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


@pytest.fixture
async def table(admin: asyncpg.Connection) -> AsyncIterator[MakeTable]:
    async with publishing(admin) as make:
        yield make


async def test_a_lost_replication_connection_sends_clients_away_and_serves_them_again(listen, table, admin):
    name = await table("id int primary key")
    heard = await listen().on(name).join()
    only_broadcasts = await listen().join()
    assert await admin.fetchval(f"select pg_terminate_backend(({WALSENDER}))")
    assert await heard.state() == "CHANNEL_ERROR"
    assert await heard.state() == "SUBSCRIBED"
    await heard.system()
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["record"] == {"id": 1}
    assert only_broadcasts.states.empty()


async def test_a_join_while_there_is_no_stream_is_confirmed_only_when_there_is_one(listen, table, admin):
    name = await table("id int primary key")
    assert await admin.fetchval(f"select pg_terminate_backend(({WALSENDER}))")
    for number in range(10):
        heard = await listen().on(name).subscribe()
        await heard.system()
        await admin.execute(f"insert into {name} values ({number})")
        assert (await heard.change())["record"] == {"id": number}


async def test_the_slot_is_gone_with_its_connection(admin, eventually):
    pid = await admin.fetchval(WALSENDER)
    await admin.fetchval("select pg_terminate_backend($1)", pid)
    again = await eventually(lambda: admin.fetchval(f"{WALSENDER} and active_pid <> $1", pid))
    assert again != pid
    assert await admin.fetchval("select count(*) from pg_replication_slots") == 1


async def test_a_dropped_and_made_again_publication_is_followed(listen, table, admin, eventually):
    name = await table("id int primary key", publish=False)
    tables = [
        row["name"]
        for row in await admin.fetch(
            "select format('%I.%I', schemaname, tablename) as name from pg_publication_tables"
            " where pubname = 'supabase_realtime'"
        )
    ]
    await admin.execute("drop publication supabase_realtime")
    await admin.execute(f"create publication supabase_realtime for table {', '.join([*tables, name])}")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["record"] == {"id": 1}


async def test_a_crash_of_the_database_is_survived(dev_process, eventually, tmp_path):
    stack = dev_process("--no-schema", "--data-dir", str(tmp_path / "data")).ready()
    admin = await asyncpg.connect(stack.db_url)
    await admin.execute("create table watched (id int primary key); grant select on watched to service_role")
    await admin.execute("alter publication supabase_realtime add table watched")
    async with listening(stack) as listen:
        heard = await listen().on("watched").join()
        # a killed backend makes the server end all others and recover
        os.kill(await admin.fetchval(WALSENDER), signal.SIGKILL)
        assert await heard.state() == "CHANNEL_ERROR"
        assert await heard.state() == "SUBSCRIBED"
        await heard.systems.get()
        await admin.close()

        async def connected() -> asyncpg.Connection | None:
            try:
                return await asyncpg.connect(stack.db_url)
            except (OSError, asyncpg.PostgresError):
                return None

        admin = await eventually(connected)
        await admin.execute("insert into watched values (1)")
        assert (await heard.change())["record"] == {"id": 1}
        await admin.close()
