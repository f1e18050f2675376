"""The REST gateway over plain HTTP: statuses, headers and error bodies as PostgREST has them."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import jwt
import pytest

from processor.local.rest.sessions import KEPT

OBJECT = "application/vnd.pgrst.object+json"


@pytest.fixture
async def http(rest_stack: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give plain HTTP as service_role."""
    async with httpx.AsyncClient(
        base_url=f"{rest_stack.url}/rest/v1", headers=rest_stack.service_headers, trust_env=False
    ) as client:
        yield client


@pytest.fixture
async def anonymous(rest_stack: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give plain HTTP with nothing but the anon key."""
    async with httpx.AsyncClient(
        base_url=f"{rest_stack.url}/rest/v1", headers={"apikey": rest_stack.anon_key}, trust_env=False
    ) as client:
        yield client


@pytest.fixture
def batch() -> str:
    """Name the rows of one test."""
    return uuid.uuid4().hex


def token(stack: Any, secret: str | None = None, **claims: Any) -> dict[str, str]:
    said = {"role": "authenticated", "exp": int(time.time()) + 60} | claims
    return {"Authorization": f"Bearer {jwt.encode(said, secret or stack.jwt_secret, algorithm='HS256')}"}


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("P0001", 400), ("JQ001", 400), ("PT402", 402), ("PT429", 429), ("23505", 409), ("23503", 409),
        ("23514", 400), ("22023", 400), ("22P02", 400), ("42501", 403), ("42883", 404), ("42P01", 404),
        ("42703", 400), ("40001", 500), ("40P01", 500), ("53300", 503), ("57014", 500), ("P0002", 500),
        ("XX000", 500), ("28000", 403), ("25006", 405),
    ],
)  # fmt: skip
async def test_each_sqlstate_has_postgrests_status(
    http: httpx.AsyncClient, sqlstate: str, status: int
) -> None:
    answer = await http.post("/rpc/rest_fail", json={"code": sqlstate, "message": "said"})
    assert answer.status_code == status
    assert answer.json() == {"code": sqlstate, "message": "said", "details": "a detail", "hint": "a hint"}
    assert answer.headers["proxy-status"] == f"PostgREST; error={sqlstate}"


async def test_a_function_can_decide_the_whole_error_response(http: httpx.AsyncClient) -> None:
    message = '{"code": "own", "message": "said", "details": "d", "hint": "h"}'
    detail = '{"status": 418, "headers": {"X-Kettle": "on"}}'
    answer = await http.post("/rpc/rest_fail", json={"code": "PGRST", "message": message, "detail": detail})
    assert answer.status_code == 418
    assert answer.headers["x-kettle"] == "on"
    assert answer.json() == {"code": "own", "message": "said", "details": "d", "hint": "h"}
    broken = await http.post("/rpc/rest_fail", json={"code": "PGRST", "message": "x"})
    assert (broken.status_code, broken.json()["code"]) == (500, "PGRST121")


async def test_statuses_of_calls(http: httpx.AsyncClient) -> None:
    assert (await http.post("/rpc/rest_nothing", json={"times": 1})).status_code == 204
    answer = await http.post("/rpc/rest_add", json={"a": 1})
    assert (answer.status_code, answer.text) == (200, "2")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (await http.post("/rpc/rest_caller")).status_code == 200
    head = await http.head("/rpc/rest_add", params={"a": 1})
    assert (head.status_code, head.content) == (200, b"")
    assert (await http.delete("/rpc/rest_add")).json()["code"] == "PGRST101"


async def test_a_get_cannot_write(http: httpx.AsyncClient, batch: str) -> None:
    answer = await http.get("/rpc/rest_write", params={"batch": batch})
    assert (answer.status_code, answer.json()["code"]) == (405, "25006")
    assert (await http.post("/rpc/rest_write", json={"batch": batch})).status_code == 200


async def test_an_unknown_function_is_404_with_a_suggestion(http: httpx.AsyncClient) -> None:
    answer = await http.post("/rpc/rest_add", json={"b": 1, "x": 2})
    assert answer.status_code == 404
    assert answer.json() == {
        "code": "PGRST202",
        "message": "Could not find the function public.rest_add(b, x) in the schema cache",
        "details": "Searched for the function public.rest_add with parameters b, x or with a single unnamed "
        "json/jsonb parameter, but no matches were found in the schema cache.",
        "hint": "Perhaps you meant to call the function public.rest_add(a, b)",
    }
    near = await http.post("/rpc/rest_echos", json={})
    assert near.json()["hint"] == "Perhaps you meant to call the function public.rest_echo"


async def test_the_database_is_told_about_the_request(http: httpx.AsyncClient) -> None:
    answer = await http.post("/rpc/rest_caller", json={}, headers={"X-Test": 'it\'s \\ "quoted"'})
    assert answer.json() == {
        "role": "service_role",
        "uid": None,
        "method": "POST",
        "path": "/rpc/rest_caller",
        "agent": 'it\'s \\ "quoted"',
    }


async def test_reads_say_which_rows_they_returned(http: httpx.AsyncClient) -> None:
    async def get(headers: dict[str, str], **params: Any) -> tuple[int, str]:
        answer = await http.get(
            "/rest_films", params={"select": "id", "order": "id", **params}, headers=headers
        )
        return answer.status_code, answer.headers["content-range"]

    exact = {"Prefer": "count=exact"}
    assert await get({}) == (200, "0-3/*")
    assert await get(exact) == (200, "0-3/4")
    assert await get(exact, limit=2) == (206, "0-1/4")
    assert await get(exact | {"Range": "1-2"}) == (206, "1-2/4")
    assert await get(exact | {"Range": "2-"}) == (206, "2-3/4")
    assert await get(exact, id="eq.77") == (200, "*/0")
    assert await get({}, offset=10) == (200, "*/*")


async def test_a_range_beyond_the_rows_is_416(http: httpx.AsyncClient) -> None:
    beyond = await http.get("/rest_films", params={"offset": 10}, headers={"Prefer": "count=exact"})
    assert beyond.status_code == 416
    assert beyond.json()["code"] == "PGRST103"
    assert beyond.json()["details"] == "An offset of 10 was requested, but there are only 4 rows."
    assert (await http.get("/rest_films", params={"limit": -1})).status_code == 416
    assert (await http.get("/rest_films", headers={"Range": "5-1"})).status_code == 416


async def test_one_object_or_406(http: httpx.AsyncClient) -> None:
    one = await http.get("/rest_films", params={"id": "eq.1", "select": "id"}, headers={"Accept": OBJECT})
    assert (one.status_code, one.json()) == (200, {"id": 1})
    assert one.headers["content-type"] == f"{OBJECT}; charset=utf-8"
    none = await http.get("/rest_films", params={"id": "eq.77"}, headers={"Accept": OBJECT})
    assert none.status_code == 406
    assert none.json() == {
        "code": "PGRST116",
        "message": "Cannot coerce the result to a single JSON object",
        "details": "The result contains 0 rows",
        "hint": None,
    }


async def test_statuses_of_writes(http: httpx.AsyncClient, batch: str) -> None:
    row = {"batch": batch, "name": "a"}
    where = {"batch": f"eq.{batch}"}
    full = {"Prefer": "return=representation"}
    created = await http.post("/rest_items", json=row)
    assert (created.status_code, created.content) == (201, b"")
    again = await http.post("/rest_items", json=row)
    assert (again.status_code, again.json()["code"]) == (409, "23505")
    returned = await http.post("/rest_items", json=row | {"name": "b"}, headers=full)
    assert (returned.status_code, len(returned.json())) == (201, 1)
    assert returned.headers["preference-applied"] == "return=representation"
    located = await http.post(
        "/rest_items", json=row | {"name": "c"}, headers={"Prefer": "return=headers-only"}
    )
    assert (located.status_code, located.content) == (201, b"")
    assert located.headers["location"] == f"/rest_items?id=eq.{returned.json()[0]['id'] + 1}"
    updated = await http.patch("/rest_items", params=where, json={"amount": 1})
    assert (updated.status_code, updated.content, updated.headers["content-range"]) == (204, b"", "0-2/*")
    changed = await http.patch("/rest_items", params=where, json={"amount": 2}, headers=full)
    assert (changed.status_code, len(changed.json())) == (200, 3)
    deleted = await http.delete("/rest_items", params=where, headers={"Prefer": "count=exact"})
    assert (deleted.status_code, deleted.headers["content-range"]) == (204, "*/3")


async def test_bodies_and_columns_are_checked(http: httpx.AsyncClient, batch: str) -> None:
    async def code(body: str, method: str = "POST", **params: str) -> tuple[int, str]:
        answer = await http.request(
            method, "/rest_items", content=body, params=params, headers={"Content-Type": "application/json"}
        )
        return answer.status_code, answer.json()["code"]

    assert await code("{") == (400, "PGRST102")
    assert await code("") == (400, "PGRST102")
    assert await code("[1]") == (400, "PGRST102")
    assert await code('[{"name": "a"}, {"batch": "b"}]') == (400, "PGRST102")
    assert await code('{"nope": 1}') == (400, "PGRST204")
    assert await code("[{}]", columns="nope") == (400, "PGRST204")
    assert await code('{"name": 5, "batch": null}') == (400, "23502")
    assert await code(f'{{"name": "a", "batch": "{batch}", "amount": 5000}}') == (400, "23514")
    assert await code(f'{{"name": "a", "batch": "{batch}", "film_id": 77}}') == (409, "23503")
    assert await code(f'{{"name": "a", "batch": "{batch}", "amount": "x"}}') == (400, "22P02")
    assert await code('{"amount": 1}', "PATCH") == (400, "21000")
    assert await code("", "DELETE") == (400, "21000")
    text = await http.post("/rest_items", content="a=b", headers={"Content-Type": "text/plain"})
    assert (text.status_code, text.json()["code"]) == (400, "PGRST102")


async def test_what_does_not_exist_is_said_so(http: httpx.AsyncClient) -> None:
    async def code(path: str, **params: str) -> tuple[int, str]:
        answer = await http.get(path, params=params)
        return answer.status_code, answer.json()["code"]

    assert await code("/rest_nope") == (404, "PGRST205")
    assert await code("/rest_films", select="nope") == (400, "42703")
    assert await code("/rest_films", nope="eq.1") == (400, "42703")
    assert await code("/rest_films", order="nope") == (400, "42703")
    assert await code("/rest_films", select="rest_items(nope)") == (400, "42703")
    assert await code("/rest_films", select="rest_notes(*)") == (400, "PGRST200")
    assert await code("/rest_films", **{"rest_directors.name": "eq.x"}) == (400, "PGRST108")


async def test_what_is_not_supported_is_refused(http: httpx.AsyncClient) -> None:
    async def code(
        method: str = "GET", headers: dict[str, str] | None = None, **params: str
    ) -> tuple[int, str]:
        answer = await http.request(method, "/rest_films", params=params, headers=headers)
        return answer.status_code, answer.json()["code"]

    assert await code(select="...rest_directors(name)") == (400, "PGRST127")
    assert await code(select="year.sum()") == (400, "PGRST123")
    assert await code(select="count()") == (400, "PGRST123")
    assert await code(order="rest_directors(name)") == (400, "PGRST127")
    assert await code("DELETE", id="eq.77", limit="1") == (400, "PGRST127")
    assert await code("PUT", id="eq.77") == (405, "PGRST117")
    assert await code(headers={"Accept": "text/csv"}) == (406, "PGRST107")
    assert await code(headers={"Accept-Profile": "auth"}) == (406, "PGRST106")
    assert await code(headers={"Prefer": "handling=strict, nope=1"}) == (400, "PGRST122")
    assert await code(year="nope.1") == (400, "PGRST100")
    assert await code(select="id,") == (400, "PGRST100")
    assert (await http.get("/")).status_code == 404


@pytest.mark.parametrize(
    "params",
    [
        {"select": 'id"; drop table rest_films; --'},
        {"select": "id::text); drop table rest_films; --"},
        {"select": "id::integer as x"},
        {"select": "details->>'; drop table rest_films; --"},
        {"order": "id; drop table rest_films"},
        {"order": 'id" desc, (select 1)'},
        {"title": "eq.'; drop table rest_films; --"},
        {"title": "in.('); drop table rest_films; --,x)"},
        {"details->>a'; drop table rest_films; --": "eq.1"},
        {'"title"" or true or ""': "eq.1"},
        {"or": "(title.eq.'; drop table rest_films; --,id.eq.1 or true)"},
        {"title": "fts(english'); drop table rest_films; --).x"},
        {"limit": "1; drop table rest_films"},
        {"title": "like(any).{'); drop table rest_films; --}"},
    ],
)
async def test_nothing_in_a_query_string_becomes_sql(http: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await http.get("/rest_films", params=params)
    assert answer.status_code in {200, 400, 404, 416}
    assert answer.status_code != 200 or len(answer.json()) <= 1 or "select" in params
    assert len((await http.get("/rest_films")).json()) == 4


async def test_a_result_without_columns_is_not_filtered(http: httpx.AsyncClient) -> None:
    counted = await http.post("/rpc/rest_count_to", json={"n": 3}, headers={"Prefer": "count=exact"})
    assert (counted.json(), counted.headers["content-range"]) == ([1, 2, 3], "0-2/3")
    for params in ({"value": "gt.1"}, {"order": "value"}, {"limit": "1"}, {"select": "value"}):
        answer = await http.post("/rpc/rest_count_to", json={"n": 3}, params=params)
        assert (answer.status_code, answer.json()["code"]) == (400, "PGRST127")


async def test_a_null_character_is_refused(http: httpx.AsyncClient) -> None:
    for query in ("title=eq.a%00b", "select=%22a%00b%22", "details->>a%00b=eq.1"):
        answer = await http.get(f"/rest_films?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "PGRST100")


async def test_a_query_can_be_nested_only_so_deep(http: httpx.AsyncClient) -> None:
    deep = "(" + "and(" * 500 + "id.eq.1" + ")" * 501
    answer = await http.get("/rest_films", params={"or": deep})
    assert (answer.status_code, answer.json()["code"]) == (400, "PGRST100")


async def test_backslashes_and_quotes_in_json_paths_are_keys(http: httpx.AsyncClient) -> None:
    answer = await http.get("/rest_films", params={"select": "a:details->>it's\\", "id": "eq.1"})
    assert answer.json() == [{"a": None}]


async def test_tokens_decide_who_asks(anonymous: httpx.AsyncClient, rest_stack: Any) -> None:
    async def ask(headers: dict[str, str] | None = None) -> tuple[int, Any]:
        answer = await anonymous.post("/rpc/rest_caller", json={}, headers=headers)
        return answer.status_code, answer.json().get("role") or answer.json()["code"]

    assert await ask() == (200, "anon")
    assert await ask({"Authorization": f"Bearer {rest_stack.service_role_key}"}) == (200, "service_role")
    assert await ask(token(rest_stack)) == (200, "authenticated")
    assert await ask(token(rest_stack, exp=int(time.time()) - 60)) == (401, "PGRST303")
    assert await ask(token(rest_stack, secret="another secret of sufficient length")) == (401, "PGRST301")
    assert await ask({"Authorization": "Bearer nonsense"}) == (401, "PGRST301")
    for role in ("postgres", "authenticator", "nobody", 'x"; reset role; --'):
        assert await ask(token(rest_stack, role=role)) == (403, "42501")


async def test_a_request_without_the_projects_key_is_401(rest_stack: Any) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.url, trust_env=False) as bare:
        answer = await bare.get("/rest/v1/rest_films")
    assert answer.status_code == 401
    assert answer.json()["message"] == "No API key found in request"


async def test_a_refused_privilege_is_401_for_nobody_and_403_for_somebody(
    anonymous: httpx.AsyncClient, rest_stack: Any
) -> None:
    nobody = await anonymous.get("/rest_items")
    assert (nobody.status_code, nobody.json()["code"]) == (401, "42501")
    assert nobody.headers["www-authenticate"] == "Bearer"
    somebody = await anonymous.get("/rest_items", headers=token(rest_stack))
    assert (somebody.status_code, somebody.json()["code"]) == (403, "42501")


async def test_a_role_does_not_outlive_its_request(
    http: httpx.AsyncClient, anonymous: httpx.AsyncClient
) -> None:
    for _ in range(20):
        assert (await http.post("/rpc/rest_caller", json={})).json()["role"] == "service_role"
        assert (
            await anonymous.post("/rpc/rest_fail", json={"code": "P0001", "message": "x"})
        ).status_code == 400
        assert (await anonymous.post("/rpc/rest_caller", json={})).json()["role"] == "anon"


async def test_a_call_that_fails_when_it_is_committed_changes_nothing_and_says_so(
    http: httpx.AsyncClient, admin: asyncpg.Connection, batch: str
) -> None:
    await admin.execute(f"""
        create table public.rest_late_{batch} (n int unique deferrable initially deferred);
        grant all on public.rest_late_{batch} to service_role;
        create function public.rest_twice_{batch}() returns int language sql
          as 'insert into public.rest_late_{batch} values (1), (1) returning n';
        notify pgrst, 'reload schema'
    """)
    answer = await http.post(f"/rpc/rest_twice_{batch}", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "23505")
    assert await admin.fetchval(f"select count(*) from public.rest_late_{batch}") == 0
    assert (await http.post("/rpc/rest_caller", json={})).json()["role"] == "service_role"


async def test_a_posted_call_that_promises_not_to_write_cannot(
    http: httpx.AsyncClient, admin: asyncpg.Connection, batch: str
) -> None:
    await admin.execute(f"""
        create function public.rest_liar_{batch}() returns text stable language plpgsql
          as $$ begin return set_config('transaction_read_only', 'off', true); end $$;
        notify pgrst, 'reload schema'
    """)
    answer = await http.post(f"/rpc/rest_liar_{batch}", json={})
    assert (answer.status_code, answer.json()["code"]) == (500, "25001")


async def test_a_function_that_is_made_anew_between_calls_is_the_one_that_answers(
    http: httpx.AsyncClient, admin: asyncpg.Connection, batch: str
) -> None:
    async def call() -> object:
        return (await http.post(f"/rpc/rest_again_{batch}", json={"n": 20})).json()

    for body in ("n", "n + 1"):
        await admin.execute(f"""
            create or replace function public.rest_again_{batch}(n int) returns int
              language sql as 'select {body}'
        """)
        before = [await call() for _ in range(8)]  # so often that a plan is kept
    await admin.execute(f"""
        drop function public.rest_again_{batch};
        create function public.rest_again_{batch}(n int) returns text
          language sql as $$ select 'text ' || n $$
    """)
    assert (before, await call()) == ([21] * 8, "text 20")


async def test_a_call_that_failed_the_first_time_works_the_second(
    http: httpx.AsyncClient, admin: asyncpg.Connection, batch: str
) -> None:
    await admin.execute(f"""
        create function public.rest_share_{batch}(n int) returns int language sql as 'select 12 / n';
        notify pgrst, 'reload schema'
    """)
    answers = [await http.post(f"/rpc/rest_share_{batch}", json={"n": n}) for n in (0, 3, 0, 4)]
    assert [answer.status_code for answer in answers] == [400, 200, 400, 200]
    assert (answers[1].json(), answers[3].json()) == (4, 3)


async def test_more_kinds_of_calls_than_a_session_keeps_plans_for(
    http: httpx.AsyncClient, admin: asyncpg.Connection, batch: str
) -> None:
    names = "abcdefg"
    arguments = ", ".join(f"{name} int default 0" for name in names)
    await admin.execute(f"""
        create function public.rest_sum_{batch}({arguments}) returns int
          language sql as 'select {" + ".join(names)}';
        notify pgrst, 'reload schema'
    """)
    kinds = [
        {name: place + 1 for place, name in enumerate(names) if 1 << place & number}
        for number in range(1 << len(names))
    ]
    assert len(kinds) > KEPT
    for given in [*kinds, *kinds[:3]]:
        answer = await http.post(f"/rpc/rest_sum_{batch}", json=given)
        assert answer.json() == sum(given.values())


async def test_only_the_gateway_may_run_statements_as_somebody(admin: asyncpg.Connection) -> None:
    allowed = await admin.fetch("""
        select r.rolname from pg_roles r join pg_proc p on p.proname = 'rest_call'
        where has_function_privilege(r.oid, p.oid, 'execute') and not r.rolsuper
    """)
    assert [row["rolname"] for row in allowed] == ["authenticator"]


async def test_a_project_returns_at_most_a_thousand_rows(http: httpx.AsyncClient) -> None:
    answer = await http.post("/rpc/rest_squares", json={"upto": 1500}, headers={"Prefer": "count=exact"})
    assert (answer.status_code, len(answer.json())) == (206, 1000)
    assert answer.headers["content-range"] == "0-999/1500"
