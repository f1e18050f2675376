"""The HTTP side of ``/rest/v1``."""

# ruff: noqa: S608 - names come quoted or from the schema cache, values are parameters

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote_plus

import asyncpg
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from processor.local.context import GatewayContext
from processor.local.jwt import JwtError
from processor.local.rest import call, write
from processor.local.rest.errors import RestError
from processor.local.rest.execute import Answer, Caller, run
from processor.local.rest.query import Parameters, Query, parse
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
from processor.local.rest.watch import SchemaWatch

PREFIX = "/rest/v1"
READS = {"GET", "HEAD"}
METHODS = ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT"]
# What may only mean that our reading of the catalogs is old.
STALE = {"42703", "42704", "42883", "42P01", "PGRST200", "PGRST202", "PGRST204", "PGRST205"}

Endpoint = Callable[[Request], Awaitable[Response]]
Build = Callable[[Schema, Statement], bool]  # fills the statement; says whether it only reads


class Rest:
    """The endpoints of ``/rest/v1``; between ``start`` and ``stop`` it hears of schema changes."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._cache = SchemaCache(context.pool)
        self._watch = SchemaWatch(context.admin_dsn, self._cache.expire)

    async def start(self) -> None:
        """Begin to hear of schema changes."""
        await self._watch.start()

    async def stop(self) -> None:
        """Hear no more of them; harmless when not started."""
        await self._watch.stop()

    def routes(self) -> list[Route]:
        """Return the routes, with their full paths."""
        return [
            Route(f"{PREFIX}/rpc/{{name}}", _answering(self._call), methods=METHODS),
            Route(f"{PREFIX}/{{name}}", _answering(self._relation), methods=METHODS),
            Route(f"{PREFIX}/", _answering(self._root), methods=["GET", "HEAD"]),
        ]

    async def _root(self, request: Request) -> Response:
        """There is no OpenAPI description here."""
        raise RestError(404, "PGRST126", "Root endpoint metadata is disabled")

    async def _relation(self, request: Request) -> Response:
        """Read or write a table or a view."""
        name = request.path_params["name"]
        caller = self._caller(request, f"/{name}")
        parameters = parse(_pairs(request))
        wishes, shape = preferences(request), accept(request)
        if request.method in READS:
            return await self._read(request, caller, name, parameters, wishes, shape)
        if request.method == "PUT":
            raise RestError(405, "PGRST117", "Unsupported HTTP method: PUT")
        return await self._write(request, caller, name, parameters, wishes, shape)

    async def _call(self, request: Request) -> Response:
        """Call a function."""
        name = request.path_params["name"]
        caller = self._caller(request, f"/rpc/{name}")
        if request.method not in {*READS, "POST"}:
            raise RestError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        posted = request.method == "POST"
        parameters = parse(_pairs(request), calls=not posted)
        wishes, shape = preferences(request), accept(request)
        _apply_range(request, parameters.query)
        payload = (await body(request) if await request.body() else call.empty()) if posted else None
        names = [key for key, _ in parameters.arguments] if payload is None else call.argument_names(payload)
        head = request.method == "HEAD"
        found: Function | None = None

        def build(schema: Schema, statement: Statement) -> bool:
            nonlocal found
            found = call.find(schema, name, list(dict.fromkeys(names)), posted=posted)
            statement.sql = call.call(
                Reader(schema, statement),
                found,
                parameters,
                payload,
                accept=shape,
                count=wishes.count is not None,
                head=head,
            )
            return not posted or not found.volatile

        answer = await self._run(caller, build, _checks(shape, wishes, parameters.query.offset))
        if found is not None and found.returns_void:
            return Response(status_code=204, headers=wishes.applied())
        return _page(answer, parameters.query.offset, shape, wishes, head=head)

    async def _read(
        self,
        request: Request,
        caller: Caller,
        name: str,
        parameters: Parameters,
        wishes: Preferences,
        shape: Accept,
    ) -> Response:
        query = parameters.query
        _apply_range(request, query)
        head = request.method == "HEAD"

        def build(schema: Schema, statement: Statement) -> bool:
            relation, source = _known(schema, name), quote(SCHEMA, name)
            exactly = wishes.count in {"exact", "estimated"}
            reader = Reader(schema, statement)
            if wishes.count in {"planned", "estimated"}:
                plan = statement.estimate = Statement()
                plan.sql = f"explain (format json) {Reader(schema, plan).everything(relation, query, source)}"
            statement.sql = reader.rows(relation, query, source, accept=shape, count=exactly, head=head)
            return True

        answer = await self._run(caller, build, _checks(shape, wishes, query.offset))
        return _page(answer, query.offset, shape, wishes, head=head)

    async def _write(
        self,
        request: Request,
        caller: Caller,
        name: str,
        parameters: Parameters,
        wishes: Preferences,
        shape: Accept,
    ) -> Response:
        payload = await body(request) if request.method != "DELETE" else None
        wanted = wishes.returning == "representation"

        def build(schema: Schema, statement: Statement) -> bool:
            relation = _known(schema, name)
            reader = Reader(schema, statement)
            returning = write.returning(reader, relation, parameters, wishes)
            if payload is None:
                sql = write.delete(reader, relation, parameters, returning)
            elif request.method == "POST":
                sql = write.insert(reader, relation, parameters, wishes, payload, returning)
            else:
                sql = write.update(reader, relation, parameters, payload, returning)
            source = '"_rest_source"'
            if wanted:
                outer = reader.rows(
                    relation, parameters.query, source, accept=shape, filtered=False, limited=False
                )
            else:
                keys = (
                    f"(json_agg({source}) -> 0)::text" if wishes.returning == "headers-only" else "null::text"
                )
                outer = f"select null::bigint as total, count(*) as rows, {keys} as body from {source}"
            statement.sql = f"with {source} as ({sql}) {outer}"
            return False

        answer = await self._run(caller, build, _checks(shape, wishes, 0, single=wanted and shape.single))
        return _written(request, name, answer, shape, wishes)

    async def _run(self, caller: Caller, build: Build, check: Callable[[Answer], None]) -> Answer:
        """Build and run; once more if that failed for what may have changed since the catalogs were read."""
        schema = await self._schema()
        if caller.claims.role not in schema.roles:
            schema = await self._schema(schema)
            caller.check_role(schema)
        statement = Statement()
        try:
            read_only = build(schema, statement)
            return await run(self._context.pool, caller, statement, read_only=read_only, check=check)
        except RestError as error:
            if error.code not in STALE:
                raise
            fresh, again = await self._schema(schema), Statement()
            read_only = build(fresh, again)
            if again.sql == statement.sql:
                raise
        return await run(self._context.pool, caller, again, read_only=read_only, check=check)

    async def _schema(self, seen: Schema | None = None) -> Schema:
        try:
            return await self._cache.get() if seen is None else await self._cache.reload(seen)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise RestError(
                503,
                "PGRST002",
                "Could not query the database for the schema cache. Retrying.",
                details=str(error),
            ) from error

    def _caller(self, request: Request, path: str) -> Caller:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            token = request.headers.get("apikey", "")
        try:
            claims = self._context.jwt.verify(token.strip())
        except JwtError as error:
            raise RestError(
                401,
                error.code,
                error.message,
                headers={
                    "WWW-Authenticate": f'Bearer error="invalid_token", error_description="{error.message}"'
                },
            ) from error
        return Caller(claims, request.method, path, dict(request.headers))


def _answering(endpoint: Endpoint) -> Endpoint:
    """Make every RestError of an endpoint its response."""

    async def answer(request: Request) -> Response:
        try:
            check_profile(request)
            return await endpoint(request)
        except RestError as error:
            return error.response()

    return answer


def _pairs(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.url.query, keep_blank_values=True)


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


def _checks(
    shape: Accept, wishes: Preferences, offset: int, *, single: bool | None = None
) -> Callable[[Answer], None]:
    """Return what must hold before the transaction may commit."""

    def check(answer: Answer) -> None:
        if (shape.single if single is None else single) and answer.rows != 1:
            raise RestError(
                406,
                "PGRST116",
                "Cannot coerce the result to a single JSON object",
                details=f"The result contains {answer.rows} rows",
            )
        if wishes.max_affected is not None and answer.rows > wishes.max_affected:
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


def _page(answer: Answer, offset: int, shape: Accept, wishes: Preferences, *, head: bool) -> Response:
    """Answer a read: 206 when it is known that there is more."""
    partial = answer.total is not None and answer.rows < answer.total
    return Response(
        b"" if head else answer.body,
        status_code=206 if partial else 200,
        headers={"Content-Range": _content_range(answer, offset), **wishes.applied()},
        media_type=shape.media_type,
    )


def _content_range(answer: Answer, offset: int) -> str:
    total = "*" if answer.total is None else str(answer.total)
    return f"{offset}-{offset + answer.rows - 1}/{total}" if answer.rows else f"*/{total}"


def _written(request: Request, name: str, answer: Answer, shape: Accept, wishes: Preferences) -> Response:
    total = str(answer.rows) if wishes.count else "*"
    reach = f"0-{answer.rows - 1}" if request.method == "PATCH" and answer.rows else "*"
    headers = {"Content-Range": f"{reach}/{total}", **wishes.applied()}
    created = request.method == "POST"
    if wishes.returning == "representation":
        return Response(answer.body, 201 if created else 200, headers, shape.media_type)
    if created and wishes.returning == "headers-only" and answer.body and answer.rows == 1:
        keys = json.loads(answer.body)
        where = "&".join(f"{quote_plus(key)}=eq.{quote_plus(str(value))}" for key, value in keys.items())
        headers["Location"] = f"/{name}?{where}"
    return Response(status_code=201 if created else 204, headers=headers)
