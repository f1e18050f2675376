"""The REST gateway when its connections end, or there is no database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette

from processor.local.context import GatewayContext
from processor.local.jwt import Jwt
from processor.local.rest import Rest

TERMINATE = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1 and query ~ $2"


@pytest.fixture
async def http(rest_stack: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give plain HTTP as service_role."""
    async with httpx.AsyncClient(
        base_url=f"{rest_stack.url}/rest/v1", headers=rest_stack.service_headers, trust_env=False
    ) as client:
        yield client


async def test_a_request_whose_connection_ends_is_503_and_the_next_one_works(
    http: httpx.AsyncClient, admin: asyncpg.Connection, eventually: Callable[..., Awaitable[Any]]
) -> None:
    name = f"rest_wait_{uuid4().hex}"
    await admin.execute(
        f"create function public.{name}() returns void language plpgsql as 'begin perform pg_sleep(60); end'"
    )
    waiting = asyncio.create_task(http.post(f"/rpc/{name}", json={}, timeout=30))
    await eventually(lambda: admin.fetchval(TERMINATE, "authenticator", name))
    answer = await waiting
    assert answer.status_code == 503
    assert answer.json()["code"] in {"57P01", "PGRST001"}
    assert (await http.post("/rpc/rest_add", json={"a": 1})).json() == 2


async def test_idle_connections_that_ended_are_replaced(
    http: httpx.AsyncClient, admin: asyncpg.Connection, eventually: Callable[..., Awaitable[Any]]
) -> None:
    assert (await http.post("/rpc/rest_add", json={"a": 1})).json() == 2
    await admin.fetch(TERMINATE, "authenticator", "")

    async def works() -> bool:
        answer = await http.post("/rpc/rest_add", json={"a": 1})
        assert answer.status_code in {200, 503}
        return answer.status_code == 200

    await eventually(works)


async def test_schema_changes_are_heard_again_after_the_listener_ended(
    http: httpx.AsyncClient, admin: asyncpg.Connection, eventually: Callable[..., Awaitable[Any]]
) -> None:
    name = f"rest_shape_{uuid4().hex}"
    await admin.execute(f"create function public.{name}() returns integer language sql as 'select 1'")
    assert (await http.post(f"/rpc/{name}", json={})).json() == 1
    assert await admin.fetch(TERMINATE, "postgres", "(?i)^listen .*pgrst")
    await admin.execute(f"drop function public.{name}")
    await admin.execute(f"create function public.{name}() returns setof integer language sql as 'select 1'")

    async def has_the_new_shape() -> bool:
        return (await http.post(f"/rpc/{name}", json={})).json() == [1]

    await eventually(has_the_new_shape)


async def test_without_a_database_every_request_is_503() -> None:
    nowhere = "postgresql://authenticator@127.0.0.1:1/postgres"
    jwt = Jwt("a secret that is long enough for a test")
    key = jwt.sign({"role": "anon"})
    async with asyncpg.create_pool(nowhere, min_size=0, max_size=1) as pool:
        rest = Rest(GatewayContext(pool=pool, admin_dsn=nowhere, jwt=jwt, anon_key=key, service_role_key=key))
        app = httpx.ASGITransport(Starlette(routes=rest.routes()))
        async with httpx.AsyncClient(
            transport=app, base_url="http://rest", headers={"apikey": key}
        ) as client:
            answer = await client.get("/rest/v1/rest_films")
    assert answer.status_code == 503
    assert answer.json()["code"] == "PGRST002"
    assert "Connect call failed" in answer.json()["details"]
