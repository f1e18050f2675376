"""Run one request's statement: one transaction, as the caller's role, with the caller's claims."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from processor.local.context import Commits
from processor.local.jwt import Claims
from processor.local.rest.errors import RestError, from_postgres
from processor.local.rest.read import MAX_ROWS, Statement
from processor.local.rest.schema import Schema, literal, quote
from processor.local.rest.sessions import Session, Sessions

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# a lost connection shows in each of these ways, depending on what asyncpg was doing
CLIENT_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# names as they are in a Supabase project
SEARCH_PATH = "public, extensions"
# who looks at what the server is doing sees the path of a call by the alias
AT_ONCE = "select rows, body, xid from extensions.rest_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the request, and how, as the database is told."""

    claims: Claims
    method: str
    path: str
    headers: dict[str, str]

    @property
    def anonymous(self) -> bool:
        """Whether authenticating could help."""
        return self.claims.role == "anon"

    def settings(self, *, read_only: bool) -> str:
        """Return the statements that open the transaction: one round trip, hence constants, all quoted."""
        settings = {
            "search_path": SEARCH_PATH,
            "request.jwt.claims": self.claims.json,
            "request.method": self.method,
            "request.path": self.path,
            "request.headers": json.dumps(self.headers),
        }
        calls = ", ".join(f"set_config('{name}', {literal(text)}, true)" for name, text in settings.items())
        begin = "begin read only" if read_only else "begin"
        return f"{begin}; set local role {quote(self.claims.role)}; select {calls}"

    def check_role(self, schema: Schema) -> None:
        """Refuse a role that the gateway may not become.

        Raises:
            RestError: as PostgreSQL would say it.

        """
        if self.claims.role not in schema.roles:
            raise RestError(403, "42501", f'permission denied to set role "{self.claims.role}"')


@dataclass(frozen=True, slots=True)
class Answer:
    """What the statement said: rows on this page, all rows if counted, the JSON of the page."""

    rows: int
    total: int | None
    body: str | None


async def run(
    sessions: Sessions,
    commits: Commits,
    caller: Caller,
    statement: Statement,
    *,
    read_only: bool,
    check: Callable[[Answer], None],
) -> Answer:
    """Run the statement and commit: three round trips, or one if nothing need be checked.

    Args:
        sessions: has the connections.
        commits: is told of transactions that wrote.
        caller: becomes the role and the claims of the transaction.
        statement: returns one row with ``total``, ``rows`` and ``body``.
        read_only: whether the transaction may not write.
        check: raises to roll back, when the answer is not what the client accepts.

    Raises:
        RestError: the database refused, or cannot be reached.

    """
    async with _connection(sessions, caller) as connection:
        if statement.unchecked:
            return await _at_once(connection, caller, statement, commits, read_only=read_only)
        return await _transact(connection, caller.settings(read_only=read_only), statement, check)


async def _at_once(
    connection: PoolConnectionProxy[asyncpg.Record],
    caller: Caller,
    statement: Statement,
    commits: Commits,
    *,
    read_only: bool,
) -> Answer:
    """Let the server do it all, and commit; a cancelled request is stopped and rolled back by the pool."""
    claims = caller.claims
    told = (claims.role, SEARCH_PATH, claims.json, caller.method, caller.path, json.dumps(caller.headers))
    session: Session = connection  # type: ignore[assignment]  # the pool's proxy for one
    known = session.name_of(statement.sql)
    name = known or session.new_name()
    unknown = None if known else statement.sql
    call = AT_ONCE + quote(caller.path)
    with commits.awaited():
        answer = await connection.fetch(call, *told, read_only, name, unknown, statement.values)
        rows, body, xid = answer[0]
        if xid is not None:
            commits.note(xid)
        read_of = commits.read_of
    if read_of:
        await asyncio.sleep(0)  # the word of the change goes first: a worker waits for it, and does the rest
    if unknown is not None:
        session.keep(unknown, name)
    return Answer(rows, None, body)


@asynccontextmanager
async def _connection(
    sessions: Sessions, caller: Caller
) -> AsyncIterator[PoolConnectionProxy[asyncpg.Record]]:
    """Lend a connection; what goes wrong with it or on it becomes the client's error."""
    try:
        connection = await sessions.take()
    except TimeoutError as error:
        raise RestError(504, "PGRST003", "Timed out acquiring connection from connection pool.") from error
    except (asyncpg.PostgresError, *CLIENT_ERRORS) as error:
        message = "Database connection error. Retrying the connection."
        raise RestError(503, "PGRST000", message, details=str(error)) from error
    ended_well = False
    try:
        yield connection
        ended_well = True
    except (asyncpg.PostgresConnectionError, *CLIENT_ERRORS) as error:
        with suppress(asyncpg.InterfaceError):  # it has gone back to the pool by itself
            connection.terminate()
        message = "Database client error. Retrying the connection."
        raise RestError(503, "PGRST001", message, details=str(error)) from error
    except asyncpg.PostgresError as error:
        raise from_postgres(error, anonymous=caller.anonymous) from error
    finally:
        await sessions.give(connection, ended_well=ended_well)


async def _transact(
    connection: PoolConnectionProxy[asyncpg.Record],
    begin: str,
    statement: Statement,
    check: Callable[[Answer], None],
) -> Answer:
    try:
        await connection.execute(begin)
        total, rows, body = (await connection.fetch(statement.sql, *statement.values))[0]
        answer = Answer(rows, total, body)
        if statement.estimate is not None:
            plan = await connection.fetchval(statement.estimate.sql, *statement.estimate.values)
            answer = _estimated(answer, plan)
        check(answer)
        await connection.execute("commit")
    except Exception:
        # a lost connection is the error to tell, not that it cannot roll back; a cancelled request is rolled
        # back by the pool, once its statement has stopped
        with suppress(asyncpg.PostgresError, *CLIENT_ERRORS):
            await connection.execute("rollback")
        raise
    return answer


def _estimated(answer: Answer, plan: str) -> Answer:
    """Replace the total by the planner's, unless counting said that there are few."""
    if answer.total is not None and answer.total <= MAX_ROWS:
        return answer
    return Answer(answer.rows, int(json.loads(plan)[0]["Plan"]["Plan Rows"]), answer.body)
