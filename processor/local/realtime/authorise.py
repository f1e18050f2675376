"""Row level security: which rows may a subscriber see, asked as that subscriber."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from processor.local.realtime.tables import Table, quote


async def visible_rows(
    pool: asyncpg.Pool, table: Table, role: str, claims: str, keys: Sequence[tuple[str | None, ...]]
) -> set[int]:
    """Return the positions in ``keys`` of the rows that exist and that the policies let this caller see.

    All keys are checked in one transaction, with the role and the claims set as REST does it.

    Args:
        pool: connected as ``authenticator``.
        table: has a primary key.
        role: what to switch to.
        claims: the token's claims as JSON text.
        keys: values of the primary key, in its order, in PostgreSQL's text form.

    Raises:
        asyncpg.PostgresError: a policy failed, or the role may not read the key.

    """
    columns = range(len(table.primary_key))
    names = ", ".join(f"c{index}" for index in columns)
    arrays = ", ".join(f"${index + 1}::text[]" for index in columns)
    same = " and ".join(
        f"t.{quote(name)} = k.c{index}::{table.type_of(name).sql}"
        for index, name in enumerate(table.primary_key)
    )
    literal = claims.replace("\\", "\\\\").replace("'", "''")
    async with pool.acquire() as connection:
        # one message instead of three; SET takes no parameters
        await connection.execute(
            f"begin; set local role {quote(role)}; set local request.jwt.claims = E'{literal}'"
        )
        try:
            rows = await connection.fetch(
                # identifiers are quoted, values are parameters; the limit makes each key one look into the
                # index, where a join might read the whole table
                f"select k.position - 1 as position"  # noqa: S608 - see above
                f" from unnest({arrays}) with ordinality as k ({names}, position)"
                f" cross join lateral (select from {table.sql} as t where {same} limit 1) as found",
                *([key[index] for key in keys] for index in columns),
            )
        except BaseException:
            if not connection.is_closed():
                await connection.execute("rollback")
            raise
        await connection.execute("commit")
    return {row["position"] for row in rows}
