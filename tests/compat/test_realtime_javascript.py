"""Realtime through supabase-js, unmodified; it speaks version 2 of the protocol."""

from typing import Any

import asyncpg

from tests.compat import javascript

TABLE = "realtime_js_watched"


async def test_supabase_js_hears_changes_broadcasts_and_presence(
    stack: Any, admin: asyncpg.Connection
) -> None:
    javascript.install()
    await admin.execute(
        f"""
        drop table if exists {TABLE};
        create table {TABLE} (
          id int primary key, owner uuid, big bigint, exact numeric, doc jsonb, words text[], yes bool
        );
        alter table {TABLE} enable row level security;
        create policy own on {TABLE} for select using (owner = auth.uid());
        grant all on {TABLE} to service_role;
        grant select on {TABLE} to anon, authenticated;
        alter publication supabase_realtime add table {TABLE};
        create policy js_room on realtime.messages for select to authenticated
          using (topic = 'js-room' and auth.uid() is not null);
        create function realtime_js_send(topic text, payload jsonb) returns void language sql
          as $$ select realtime.send(payload, 'news', topic, true) $$
        """
    )
    try:
        await javascript.run("realtime.js", stack)
    finally:
        await admin.execute(
            f"""
            drop table {TABLE};
            drop policy js_room on realtime.messages;
            drop function realtime_js_send
            """
        )
