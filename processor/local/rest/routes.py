"""The HTTP side of ``/rest/v1``."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote_plus

import asyncpg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from processor.local.context import GatewayContext
from processor.local.jwt import JwtError
from processor.local.rest import call
from processor.local.rest.call import SOURCE
from processor.local.rest.errors import RestError
from processor.local.rest.execute import CLIENT_ERRORS, Answer, Caller, run
from processor.local.rest.parse import parse
from processor.local.rest.query import Parameters, Query
from processor.local.rest.read import Reader, Statement
from processor.local.rest.request import (
    Accept,
    Preferences,
    accept,
    body,
    check_profile,
    preferences,
    rows_range,
)
from processor.local.rest.schema import SCHEMA, Function, Relation, Schema, SchemaCache, quote
from processor.local.rest.sessions import Sessions
from processor.local.rest.watch import SchemaWatch
from processor.local.rest.write import Write

PREFIX = "/rest/v1"
READS = {"GET", "HEAD"}
METHODS = ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT"]
# What may only mean that our reading of the catalogs is old.
STALE = {"42703", "42704", "42883", "42P01", "PGRST200", "PGRST202", "PGRST204", "PGRST205"}

Endpoint = Callable[[Request], Awaitable[Response]]
Build = Callable[[Schema, Statement], bool]  # fills the statement; says whether it only reads


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, understood as far as that is possible without the schema."""

    request: Request
    name: str
    caller: Caller
    parameters: Parameters
    wishes: Preferences
    shape: Accept

    @property
    def head(self) -> bool:
        """Whether the body is left out."""
        return self.request.method == "HEAD"

    @property
    def is_call(self) -> bool:
        """Whether a function is called."""
        return self.caller.path.startswith("/rpc/")


class Rest:
    """The endpoints of ``/rest/v1``; between ``start`` and ``stop`` it hears of schema changes."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._sessions = Sessions(context.pool)
        self._cache = SchemaCache(context.pool)
        self._watch = SchemaWatch(context.admin_dsn, self._cache.expire)

    async def start(self) -> None:
        """Begin to hear of schema changes."""
        await self._watch.start()

    async def stop(self) -> None:
        """Hear no more of them; harmless when not started."""
        await self._watch.stop()
        await self._sessions.close()

    def routes(self) -> list[Route]:
        """Return the routes, with their full paths."""
        return [
            Route(f"{PREFIX}/rpc/{{name}}", _Answering(self._call), methods=METHODS),
            Route(f"{PREFIX}/{{name}}", _Answering(self._relation), methods=METHODS),
            Route(f"{PREFIX}/", _Answering(self._root), methods=["GET", "HEAD"]),
        ]

    async def _root(self, request: Request) -> Response:
        """There is no OpenAPI description here."""
        raise RestError(404, "PGRST126", "Root endpoint metadata is disabled")

    async def _relation(self, request: Request) -> Response:
        """Read or write a table or a view."""
        ask = self._ask(request, "/{name}", calls=False)
        if request.method in READS:
            return await self._read(ask)
        if request.method == "PUT":
            raise RestError(405, "PGRST117", "Unsupported HTTP method: PUT")
        return await self._write(ask)

    async def _call(self, request: Request) -> Response:
        """Call a function."""
        if request.method not in {*READS, "POST"}:
            raise RestError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        posted = request.method == "POST"
        ask = self._ask(request, "/rpc/{name}", calls=not posted)
        query = ask.parameters.query
        _apply_range(request, query)
        payload = (await body(request) if await request.body() else call.NO_BODY) if posted else None
        names = call.argument_names(ask.parameters, payload)
        found: Function | None = None

        plain = names and query == Query(star=True) and not ask.wishes.values
        text = payload[0] if plain and payload is not None else None
        key = (ask.name, ask.shape, frozenset(names))

        def build(schema: Schema, statement: Statement) -> bool:
            nonlocal found
            if text is not None and (known := schema.calls.get(key)) is not None:
                found, statement.sql, further = known
                statement.values = [text, *further]
                statement.unchecked = True
                return not found.volatile
            found = call.find(schema, ask.name, names, posted=posted)
            statement.sql = call.call(
                Reader(schema, statement),
                found,
                ask.parameters,
                payload,
                accept=ask.shape,
                count=ask.wishes.count is not None,
                head=ask.head,
            )
            # of what is not a set there is one row, whatever the client accepts
            statement.unchecked = (
                not found.returns_set
                and query == Query(star=True)
                and ask.wishes.max_affected is None
                and posted
            )
            if text is not None and statement.unchecked and not found.takes_body:
                schema.calls[key] = (found, statement.sql, tuple(statement.values[1:]))
            return not posted or not found.volatile

        answer = await self._run(ask.caller, build, _checks(ask, query.offset))
        if found is not None and found.returns_void:
            return Response(status_code=204, headers=ask.wishes.applied())
        return _page(ask, answer)

    async def _read(self, ask: Ask) -> Response:
        query, count = ask.parameters.query, ask.wishes.count
        _apply_range(ask.request, query)

        def build(schema: Schema, statement: Statement) -> bool:
            relation, source = _known(schema, ask.name), quote(SCHEMA, ask.name)
            exactly = count in {"exact", "estimated"}
            reader = Reader(schema, statement)
            if count in {"planned", "estimated"}:
                plan = statement.estimate = Statement()
                plan.sql = f"explain (format json) {Reader(schema, plan).everything(relation, query, source)}"
            statement.sql = reader.rows(
                relation, query, source, accept=ask.shape, count=exactly, head=ask.head
            )
            return True

        answer = await self._run(ask.caller, build, _checks(ask, query.offset))
        return _page(ask, answer)

    async def _write(self, ask: Ask) -> Response:
        method, returned = ask.request.method, ask.wishes.returning
        payload = await body(ask.request) if method != "DELETE" else None

        def build(schema: Schema, statement: Statement) -> bool:
            relation = _known(schema, ask.name)
            reader = Reader(schema, statement)
            write = Write(reader, relation, ask.parameters, ask.wishes)
            if payload is None:
                sql = write.delete()
            else:
                sql = write.insert(*payload) if method == "POST" else write.update(*payload)
            if returned == "representation":
                outer = reader.rows(
                    relation, ask.parameters.query, SOURCE, accept=ask.shape, filtered=False, limited=False
                )
            else:
                keys = f"(json_agg({SOURCE}) -> 0)::text" if returned == "headers-only" else "null::text"
                outer = f"select null::bigint as total, count(*) as rows, {keys} as body from {SOURCE}"
            statement.sql = f"with {SOURCE} as ({sql}) {outer}"
            return False

        return _written(ask, await self._run(ask.caller, build, _checks(ask, 0)))

    async def _run(self, caller: Caller, build: Build, check: Callable[[Answer], None]) -> Answer:
        """Build and run; once more if that failed for what may have changed since the catalogs were read."""
        schema = await self._schema()
        if caller.claims.role not in schema.roles:
            schema = await self._schema(schema)
            caller.check_role(schema)
        statement = Statement()
        try:
            read_only = build(schema, statement)
            return await self._execute(caller, statement, check, read_only=read_only)
        except RestError as error:
            if error.code not in STALE:
                raise
            fresh, again = await self._schema(schema), Statement()
            read_only = build(fresh, again)
            if again.sql == statement.sql:
                raise
        return await self._execute(caller, again, check, read_only=read_only)

    async def _execute(
        self, caller: Caller, statement: Statement, check: Callable[[Answer], None], *, read_only: bool
    ) -> Answer:
        sessions, commits = self._sessions, self._context.commits
        return await run(sessions, commits, caller, statement, read_only=read_only, check=check)

    async def _schema(self, seen: Schema | None = None) -> Schema:
        try:
            return await self._cache.get() if seen is None else await self._cache.reload(seen)
        except (asyncpg.PostgresError, *CLIENT_ERRORS) as error:
            raise RestError(
                503,
                "PGRST002",
                "Could not query the database for the schema cache. Retrying.",
                details=str(error),
            ) from error

    def _ask(self, request: Request, path: str, *, calls: bool) -> Ask:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            token = request.headers.get("apikey", "")
        try:
            claims = self._context.jwt.verify(token.strip())
        except JwtError as error:
            challenge = f'Bearer error="invalid_token", error_description="{error.message}"'
            raise RestError(
                401, error.code, error.message, headers={"WWW-Authenticate": challenge}
            ) from error
        name = request.path_params["name"]
        return Ask(
            request=request,
            name=name,
            caller=Caller(claims, request.method, path.format(name=name), _headers(request)),
            parameters=parse(_pairs(request), calls=calls),
            wishes=preferences(request),
            shape=accept(request),
        )


class _Answering:
    """An endpoint whose RestErrors become responses; a class, because Starlette wraps functions twice."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            check_profile(request)
            response = await self._endpoint(request)
        except RestError as error:
            response = error.response()
        await response(scope, receive, send)


def _headers(request: Request) -> dict[str, str]:
    """Return the headers, of a repeated one the first."""
    pairs: list[tuple[bytes, bytes]] = request.scope["headers"]
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(pairs)}


def _pairs(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.scope["query_string"].decode(errors="replace"), keep_blank_values=True)


def _known(schema: Schema, name: str) -> Relation:
    relation = schema.relations.get(name)
    if relation is None:
        raise RestError(404, "PGRST205", f"Could not find the table '{SCHEMA}.{name}' in the schema cache")
    return relation


def _apply_range(request: Request, query: Query) -> None:
    """Narrow the query to the Range header."""
    offset, limit = rows_range(request)
    query.offset += offset
    if limit is not None:
        query.limit = limit if query.limit is None else max(0, min(query.limit - offset, limit))


def _checks(ask: Ask, offset: int) -> Callable[[Answer], None]:
    """Return what must hold before the transaction may commit."""
    most = ask.wishes.max_affected
    returns_rows = ask.request.method in READS or ask.is_call or ask.wishes.returning == "representation"

    def check(answer: Answer) -> None:
        if ask.shape.single and returns_rows and answer.rows != 1:
            raise RestError(
                406,
                "PGRST116",
                "Cannot coerce the result to a single JSON object",
                details=f"The result contains {answer.rows} rows",
            )
        if most is not None and answer.rows > most:
            raise RestError(
                400,
                "PGRST124",
                "Query result exceeds max-affected preference constraint",
                details=f"The query affects {answer.rows} rows",
            )
        if answer.total is not None and offset > answer.total:
            raise RestError(
                416,
                "PGRST103",
                "Requested range not satisfiable",
                details=f"An offset of {offset} was requested, but there are only {answer.total} rows.",
            )

    return check


def _page(ask: Ask, answer: Answer) -> Response:
    """Answer a read: 206 when it is known that there is more."""
    partial = answer.total is not None and answer.rows < answer.total
    content_range = _content_range(answer, ask.parameters.query.offset)
    return Response(
        b"" if ask.head else answer.body,
        status_code=206 if partial else 200,
        headers={"Content-Range": content_range, **ask.wishes.applied()},
        media_type=ask.shape.media_type,
    )


def _content_range(answer: Answer, offset: int) -> str:
    total = "*" if answer.total is None else str(answer.total)
    return f"{offset}-{offset + answer.rows - 1}/{total}" if answer.rows else f"*/{total}"


def _written(ask: Ask, answer: Answer) -> Response:
    created, patched = ask.request.method == "POST", ask.request.method == "PATCH"
    total = str(answer.rows) if ask.wishes.count else "*"
    reach = f"0-{answer.rows - 1}" if patched and answer.rows else "*"
    headers = {"Content-Range": f"{reach}/{total}", **ask.wishes.applied()}
    if ask.wishes.returning == "representation":
        return Response(answer.body, 201 if created else 200, headers, ask.shape.media_type)
    if created and ask.wishes.returning == "headers-only" and answer.body and answer.rows == 1:
        keys = json.loads(answer.body)
        where = "&".join(f"{quote_plus(key)}=eq.{quote_plus(str(value))}" for key, value in keys.items())
        headers["Location"] = f"/{ask.name}?{where}"
    return Response(status_code=201 if created else 204, headers=headers)
