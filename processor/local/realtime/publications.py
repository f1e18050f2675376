"""What the stream of the WAL contains."""

from __future__ import annotations

import asyncpg

CHANGES = "supabase_realtime"
"""The tables whose changes clients may subscribe to."""
MESSAGES = "supabase_realtime_messages_publication"
"""The table of messages alone, as hosted projects have it: nobody can subscribe to its changes."""


async def ensure(pool: asyncpg.Pool) -> None:
    """Make the publications that somebody has dropped: without them there is no stream."""
    there = {row["pubname"] for row in await pool.fetch("select pubname::text from pg_publication")}
    if CHANGES not in there:
        await pool.execute(f"create publication {CHANGES}")
    if MESSAGES not in there:
        of_what = "for table realtime.messages with (publish = 'insert')"
        await pool.execute(f"create publication {MESSAGES} {of_what}")
