"""Postgres Changes, heard with the official Python client."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from tests.compat.realtime_listener import Listener, MakeTable, listening, publishing


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


@pytest.fixture
async def table(admin: asyncpg.Connection) -> AsyncIterator[MakeTable]:
    async with publishing(admin) as make:
        yield make


async def test_insert_update_and_delete_arrive_in_order_with_their_rows(listen, table, admin):
    name = await table("id int primary key, title text")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1, 'one')")
    await admin.execute(f"update {name} set title = 'two'")
    await admin.execute(f"delete from {name}")
    inserted, updated, deleted = await heard.change(), await heard.change(), await heard.change()
    assert inserted["type"] == "INSERT"
    assert inserted["record"] == {"id": 1, "title": "one"}
    assert "old_record" not in inserted
    assert inserted["columns"] == [{"name": "id", "type": "int4"}, {"name": "title", "type": "text"}]
    assert (inserted["schema"], inserted["table"], inserted["errors"]) == ("public", name, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", inserted["commit_timestamp"])
    assert updated["type"] == "UPDATE"
    assert (updated["record"], updated["old_record"]) == ({"id": 1, "title": "two"}, {"id": 1})
    assert deleted["type"] == "DELETE"
    assert deleted["old_record"] == {"id": 1}
    assert "record" not in deleted


async def test_the_system_message_says_that_changes_are_streamed(listen, table):
    heard = await listen().on(await table("id int primary key")).subscribe()
    message = await heard.system()
    assert (message.extension, message.status) == ("postgres_changes", "ok")
    assert message.message == "Subscribed to PostgreSQL"
    assert f"realtime:{message.channel}" == heard.channel.topic


async def test_nothing_that_commits_after_the_system_message_is_missed(listen, table, admin):
    name = await table("id int primary key")
    for number in range(20):
        heard = await listen().on(name, "INSERT").join()
        await admin.execute(f"insert into {name} values ({number})")
        assert (await heard.change())["record"] == {"id": number}
        await heard.client.close()


async def test_a_row_that_is_told_can_be_read_at_once(stack, listen, table, admin):
    name = await table("id int primary key")
    heard = await listen().on(name, "INSERT").join()
    reader = await asyncpg.connect(stack.db_url)
    try:
        for number in range(300):
            insert = asyncio.create_task(admin.execute(f"insert into {name} values ({number})"))
            await heard.change()
            assert await reader.fetchval(f"select true from {name} where id = {number}"), number
            await insert
    finally:
        await reader.close()


async def test_values_agree_with_to_jsonb(listen, table, admin):
    await admin.execute(
        "drop type if exists watched_mood; create type watched_mood as enum ('sad', 'very happy')"
    )
    await admin.execute("drop domain if exists watched_count; create domain watched_count as bigint")
    await admin.execute("drop type if exists watched_point; create type watched_point as (x int, label text)")
    name = await table(
        """id int primary key, big bigint, small smallint, exact numeric, exact2 numeric(10, 2), real4 real,
        real8 float8, yes bool, words text, short varchar(9), padded char(4), key uuid, doc jsonb, doc1 json,
        day date, clock time, clocktz timetz, at timestamp, attz timestamptz, span interval, raw bytea,
        mood watched_mood, counted watched_count, numbers int[], texts text[], moods watched_mood[],
        matrix int[][], times timestamptz[], docs jsonb[], net inet, between_ int4range, point watched_point,
        points watched_point[], nothing text, xid8_ xid8, boxes box[], money_ money, bits bit(3)"""
    )
    try:
        heard = await listen().on(name).join()
        await admin.execute(
            f"""insert into {name} values (
            1, 9007199254740993, -7, 123456789012345678901234567890.1234567890, 1.50, 1.1, 0.1, true,
            E'ä "quoted" \\\\ line\\nbreak', 'short', 'ab', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
            '{{"a": [1, {{"b": null}}], "n": 1.10}}', '{{"k":  1}}', '2026-11-22', '03:04:05.6',
            '03:04:05+02', '2026-11-22 03:04:05.123456', '2026-11-22 03:04:05.5+02',
            '1 year 2 days 03:04:05', '\\x00ff10',
            'very happy', 42, '{{1,NULL,3}}', '{{a,"b,c","NULL",NULL,"q\\"q"}}', '{{sad,"very happy"}}',
            '{{{{1,2}},{{3,4}}}}', '{{"2026-11-22 03:04:05+00",infinity}}', array['{{"a": 1}}'::jsonb, '[]'],
            '10.0.0.1/8', '[1,5)', row(1, 'a "b"'), array[row(2, null)::watched_point], null, '12345',
            array['(1,1),(0,0)'::box, '(2,2),(1,1)'], '12.50', b'101')"""
        )
        change = await heard.change()
        await admin.execute("set timezone = 'UTC'")
        expected = json.loads(await admin.fetchval(f"select to_jsonb(t)::text from {name} t"))
        assert change["record"] == expected
        types = {column["name"]: column["type"] for column in change["columns"]}
        assert (types["big"], types["texts"], types["mood"]) == ("int8", "_text", "watched_mood")
    finally:
        await admin.execute(
            f"drop table {name}; drop type watched_mood, watched_point; drop domain watched_count"
        )


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("float8", "NaN"),
        ("float8", "-Infinity"),
        ("float8", "1e20"),
        ("float8", "-0.0"),
        ("numeric", "NaN"),
        ("numeric", "0.000001"),
        ("timestamptz", "infinity"),
        ("timestamptz", "0044-03-15 12:00:00+00 BC"),
        ("timestamp", "0044-03-15 12:00:00 BC"),
        ("timestamptz", "12026-01-01 00:00:00+00"),
        ("date", "-infinity"),
        ("int4[]", "[0:1]={1,2}"),
        ("text[]", "{}"),
    ],
)
async def test_extreme_values_agree_with_to_jsonb(listen, table, admin, type_, value):
    name = await table(f"id int primary key, v {type_}")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1, '{value}')")
    record = (await heard.change())["record"]
    await admin.execute("set timezone = 'UTC'")
    expected = json.loads(
        await admin.fetchval(f"select to_jsonb(t)::text from {name} t"), parse_float=Decimal
    )
    got = record["v"]
    assert (Decimal(repr(got)) if isinstance(got, float) else got) == expected["v"]


async def test_a_value_too_large_for_the_row_is_left_out_if_an_update_does_not_touch_it(listen, table, admin):
    name = await table("id int primary key, n int, large text")
    await admin.execute(f"alter table {name} alter column large set storage external")
    await admin.execute(f"insert into {name} values (1, 1, repeat('x', 20000))")
    heard = await listen().on(name).join()
    await admin.execute(f"update {name} set n = 2")
    assert (await heard.change())["record"] == {"id": 1, "n": 2}


async def test_with_replica_identity_full_the_whole_old_row_is_told(listen, table, admin):
    name = await table("id int primary key, n int, large text")
    await admin.execute(f"alter table {name} replica identity full")
    await admin.execute(f"alter table {name} alter column large set storage external")
    await admin.execute(f"insert into {name} values (1, 1, repeat('x', 3000))")
    heard = await listen().on(name).join()
    await admin.execute(f"update {name} set n = 2")
    updated = await heard.change()
    assert updated["old_record"] == {"id": 1, "n": 1, "large": "x" * 3000}
    assert updated["record"] == {"id": 1, "n": 2, "large": "x" * 3000}
    await admin.execute(f"delete from {name}")
    assert (await heard.change())["old_record"]["n"] == 2


async def test_a_changed_key_shows_in_the_old_record(listen, table, admin):
    name = await table("id int primary key, n int")
    await admin.execute(f"insert into {name} values (1, 1)")
    heard = await listen().on(name).join()
    await admin.execute(f"update {name} set id = 2")
    updated = await heard.change()
    assert (updated["record"], updated["old_record"]) == ({"id": 2, "n": 1}, {"id": 1})


async def test_each_binding_hears_only_its_event(listen, table, admin):
    name = await table("id int primary key")
    heard = await listen().on(name, "DELETE").join()
    await admin.execute(f"insert into {name} values (1)")
    await admin.execute(f"delete from {name}")
    assert (await heard.change())["type"] == "DELETE"
    assert heard.changes.empty()


async def test_two_bindings_of_one_channel_are_told_apart(listen, table, admin):
    first, second = await table("id int primary key"), await table("id int primary key")
    heard = await listen().on(first, "INSERT").on(second, "INSERT").join()
    await admin.execute(f"insert into {second} values (1)")
    await admin.execute(f"insert into {first} values (2)")
    assert [(await heard.change())["table"] for _ in range(2)] == [second, first]
    assert heard.changes.empty()


async def test_a_table_of_star_hears_every_published_table_even_later_ones(listen, table, admin):
    first = await table("id int primary key")
    heard = await listen().on("*", "INSERT", schema="public").join()
    later = await table("id int primary key")
    await admin.execute(f"insert into {first} values (1)")
    await admin.execute(f"insert into {later} values (2)")
    mine = []
    while len(mine) < 2:
        change = await heard.change()  # other tests' tables may be heard too
        mine += [change["table"]] if change["table"] in (first, later) else []
    assert mine == [first, later]


async def test_a_table_that_is_published_later_can_be_subscribed_without_a_restart(listen, table, admin):
    name = await table("id int primary key", publish=False)
    refused = await listen().on(name).subscribe()
    assert await refused.state() == "SUBSCRIBED"
    assert await refused.state() == "CHANNEL_ERROR"
    await admin.execute(f"alter publication supabase_realtime add table {name}")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["record"] == {"id": 1}


async def test_a_changed_table_is_told_in_its_new_shape(listen, table, admin):
    name = await table("id int primary key, a text, b int")
    heard = await listen().on(name, filter="b=eq.1").join()
    await admin.execute(f"insert into {name} values (1, 'x', 1)")
    assert (await heard.change())["record"] == {"id": 1, "a": "x", "b": 1}
    await admin.execute(
        f"alter table {name} drop column a, add column c timestamptz[]; alter table {name} alter b type text"
    )
    await admin.execute(f"insert into {name} values (2, '1', '{{2026-01-01 00:00+00}}')")
    change = await heard.change()
    assert change["record"] == {"id": 2, "b": "1", "c": ["2026-01-01T00:00:00+00:00"]}
    assert [column["type"] for column in change["columns"]] == ["int4", "text", "_timestamptz"]


async def test_rows_of_one_transaction_arrive_together_and_a_rollback_is_silent(listen, table, admin):
    name = await table("id int primary key")
    heard = await listen().on(name).join()
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(f"insert into {name} values (1)")
    await transaction.rollback()
    await admin.execute(f"insert into {name} select generate_series(2, 1001)")
    assert [(await heard.change())["record"]["id"] for _ in range(1000)] == list(range(2, 1002))
    assert heard.changes.empty()


async def test_selected_columns_come_with_the_key(listen, table, admin):
    name = await table("id int primary key, a int, b int")
    heard = await listen().on(name, select=["b"]).join()
    await admin.execute(f"insert into {name} values (1, 2, 3)")
    change = await heard.change()
    assert change["record"] == {"id": 1, "b": 3}
    assert [column["name"] for column in change["columns"]] == ["id", "b"]


async def test_a_row_over_one_megabyte_keeps_only_its_short_values(listen, table, admin):
    name = await table("id int primary key, a text, b text")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1, 'short', repeat('x', 1100000))")
    change = await heard.change()
    assert change["record"] == {"id": 1, "a": "short"}
    assert change["errors"] == ["Error 413: Payload Too Large"]


async def test_a_table_without_a_key_says_so(listen, table, admin):
    name = await table("id int")
    heard = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    change = await heard.change()
    assert change["errors"] == ["Error 400: Bad Request, no primary key"]
    assert change["record"] == {}


async def test_a_channel_that_has_left_hears_nothing(listen, table, admin):
    name = await table("id int primary key")
    leaving, staying = await listen().on(name).join(), await listen().on(name).join()
    await leaving.channel.unsubscribe()
    assert await leaving.state() == "CLOSED"
    await admin.execute(f"insert into {name} values (1)")
    await staying.change()
    assert leaving.changes.empty()


async def test_a_burst_larger_than_any_buffer_reaches_a_client_that_reads(listen, table, admin):
    name = await table("id int primary key, filler text")
    heard = await listen().on(name).join()
    await admin.execute(
        f"insert into {name} select n, repeat(md5(n::text), 100) from generate_series(1, 5000) n"
    )
    assert [(await heard.change())["record"]["id"] for _ in range(5000)] == list(range(1, 5001))
    assert heard.states.empty()
