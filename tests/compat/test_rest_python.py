"""The REST gateway through postgrest-py and supabase-py, unmodified."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest
from postgrest import APIError, AsyncPostgrestClient, CountMethod, ReturnMethod
from supabase import AsyncClient, AsyncClientOptions, acreate_client


@pytest.fixture
async def service(rest_stack: Any) -> AsyncIterator[AsyncPostgrestClient]:
    """Give the official client as service_role."""
    http = httpx.AsyncClient(
        base_url=f"{rest_stack.url}/rest/v1", headers=rest_stack.service_headers, trust_env=False
    )
    async with AsyncPostgrestClient(
        f"{rest_stack.url}/rest/v1", headers=rest_stack.service_headers, http_client=http
    ) as client:
        yield client


@pytest.fixture
def batch() -> str:
    """Name the rows of one test."""
    return uuid.uuid4().hex


def titles(answer: Any) -> list[int]:
    return [row["id"] for row in answer.data]


# Functions ------------------------------------------------------------------------------------------------


async def test_a_scalar_function_returns_its_value_and_bigints_stay_exact(
    service: AsyncPostgrestClient,
) -> None:
    answer = await service.rpc("rest_add", {"a": 1, "b": 9007199254740993}).execute()
    assert answer.data == 9007199254740994


async def test_defaults_fill_the_arguments_left_out(service: AsyncPostgrestClient) -> None:
    assert (await service.rpc("rest_add", {"a": 41}).execute()).data == 42


async def test_a_read_only_call_takes_its_arguments_from_the_query(service: AsyncPostgrestClient) -> None:
    assert (await service.rpc("rest_add", {"a": 1, "b": 2}, get=True).execute()).data == 3


@pytest.mark.parametrize("get", [False, True])
async def test_json_arguments_arrive_as_they_were_sent(service: AsyncPostgrestClient, get: bool) -> None:
    payload = {"text": 'é "quoted" \\ \n', "list": [1, 2.5, None, {"deep": True}], "big": 9007199254740993}
    answer = await service.rpc("rest_echo", {"payload": payload}, get=get).execute()
    assert answer.data == payload


@pytest.mark.parametrize("payload", ["a string", 5, [1, {"a": 2}], False])
async def test_a_json_argument_need_not_be_an_object(service: AsyncPostgrestClient, payload: Any) -> None:
    assert (await service.rpc("rest_echo", {"payload": payload}).execute()).data == payload


@pytest.mark.parametrize("get", [False, True])
async def test_json_arrays_become_sql_arrays(service: AsyncPostgrestClient, get: bool) -> None:
    arguments = {"ids": [str(uuid.uuid4()), str(uuid.uuid4())], "numbers": [1, 2, 3]}
    assert (await service.rpc("rest_sizes", arguments, get=get).execute()).data == 203


async def test_a_void_function_returns_nothing(service: AsyncPostgrestClient) -> None:
    assert (await service.rpc("rest_nothing", {"times": 2}).execute()).data == []


async def test_a_composite_result_is_one_object(service: AsyncPostgrestClient) -> None:
    answer = await service.rpc("rest_film", {"id": 9007199254740993}).execute()
    assert answer.data["id"] == 9007199254740993
    assert answer.data["title"] == 'Quoted "title", (comma)'


async def test_a_set_of_rows_is_a_list_that_can_be_filtered_ordered_and_counted(
    service: AsyncPostgrestClient,
) -> None:
    call = service.rpc("rest_films_before", {"year": 1980}, count=CountMethod.exact)
    answer = (
        await call.select("title, rest_directors(name)")
        .gt("year", 1900)
        .order("year", desc=True)
        .limit(1)
        .execute()
    )
    assert answer.data == [{"title": "La Noire de…", "rest_directors": {"name": "Ousmane Sembène"}}]
    assert answer.count == 2


async def test_a_table_result_has_the_declared_columns(service: AsyncPostgrestClient) -> None:
    answer = await service.rpc("rest_squares", {"upto": 3}).gte("square", 4).execute()
    assert answer.data == [{"n": 2, "square": 4}, {"n": 3, "square": 9}]


async def test_a_set_of_scalars_is_a_list_of_values(service: AsyncPostgrestClient) -> None:
    assert (await service.rpc("rest_count_to", {"n": 3}).execute()).data == [1, 2, 3]


async def test_an_error_raised_in_sql_arrives_whole(service: AsyncPostgrestClient) -> None:
    with pytest.raises(APIError) as caught:
        await service.rpc("rest_fail", {"code": "JQ007", "message": "said"}).execute()
    assert caught.value.json() == {
        "code": "JQ007",
        "message": "said",
        "details": "a detail",
        "hint": "a hint",
    }


async def test_a_function_made_after_the_first_request_is_found(
    service: AsyncPostgrestClient, rest_stack: Any
) -> None:
    await service.rpc("rest_add", {"a": 1}).execute()
    name = f"rest_new_{uuid.uuid4().hex[:8]}"
    await _sql(rest_stack, f"create function public.{name}() returns text language sql as $$ select 'new' $$")
    assert (await service.rpc(name, {}).execute()).data == "new"


async def test_a_function_whose_result_changed_answers_in_its_new_shape(
    service: AsyncPostgrestClient, rest_stack: Any, eventually: Callable[..., Awaitable[Any]]
) -> None:
    name = f"rest_changed_{uuid.uuid4().hex[:8]}"
    await _sql(rest_stack, f"create function public.{name}() returns integer language sql as 'select 1'")
    assert (await service.rpc(name, {}).execute()).data == 1
    await _sql(
        rest_stack,
        f"drop function public.{name}; "
        f"create function public.{name}() returns setof integer language sql as 'select 1'",
    )

    async def is_a_list() -> bool:
        return (await service.rpc(name, {}).execute()).data == [1]

    await eventually(is_a_list)


async def test_a_function_whose_argument_changed_type_is_called_again(
    service: AsyncPostgrestClient, rest_stack: Any, eventually: Callable[..., Awaitable[Any]]
) -> None:
    name = f"rest_typed_{uuid.uuid4().hex[:8]}"
    await _sql(
        rest_stack, f"create function public.{name}(a integer) returns text language sql as 'select a::text'"
    )
    assert (await service.rpc(name, {"a": 1}).execute()).data == "1"
    await _sql(
        rest_stack,
        f"drop function public.{name}; "
        f"create function public.{name}(a uuid) returns text language sql as 'select a::text'",
    )
    given = str(uuid.uuid4())

    async def takes_it() -> bool:
        with suppress(APIError):  # of the old reading, until the notification is here
            return bool((await service.rpc(name, {"a": given}).execute()).data == given)
        return False

    await eventually(takes_it)


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "column", "value", "expected"),
    [
        ("eq", "id", 1, [1]),
        ("eq", "title", 'Quoted "title", (comma)', [9007199254740993]),
        ("neq", "year", 1962, [2, 3]),
        ("gt", "year", 1966, [3]),
        ("gte", "year", 1966, [2, 3]),
        ("lt", "released", datetime(1966, 1, 1, tzinfo=UTC).isoformat(), [1]),
        ("lte", "released", "1966-01-01T00:00:00Z", [1, 2]),
        ("like", "title", "%toit%", [3]),
        ("ilike", "title", "cléo*", [1]),
        ("is_", "year", None, [9007199254740993]),
        ("in_", "id", [1, 3, 77], [1, 3]),
        ("in_", "title", ['Quoted "title", (comma)', "x"], [9007199254740993]),
        ("in_", "id", [], []),
        ("contains", "details", {"minutes": 59}, [2]),
        ("contains", "tags", ["black, white"], [2]),
        ("contained_by", "tags", ["drama", "paris"], [1, 3, 9007199254740993]),
        ("overlaps", "tags", ["paris", "x"], [1]),
        ("eq", "details->>minutes", "105", [3]),
        ("gt", "details->minutes", 60, [1, 3]),
        ("eq", "details->cast->0->>name", "Marchand", [1]),
    ],
)
async def test_filters_find_what_they_say(
    service: AsyncPostgrestClient, operator: str, column: str, value: Any, expected: list[int]
) -> None:
    query = service.from_("rest_films").select("id").order("id")
    assert titles(await getattr(query, operator)(column, value).execute()) == expected


async def test_further_operators_are_reached_through_filter(service: AsyncPostgrestClient) -> None:
    async def found(column: str, operator: str, value: str) -> list[int]:
        query = service.from_("rest_films").select("id").order("id")
        return titles(await query.filter(column, operator, value).execute())

    assert await found("title", "match", "^(La|Sans)") == [2, 3]
    assert await found("title", "imatch", "^sans") == [3]
    assert await found("year", "isdistinct", "1962") == [2, 3, 9007199254740993]
    assert await found("year", "is", "not_null") == [1, 2, 3]
    assert await found("year", "eq(any)", "{1962,1985}") == [1, 3]
    assert await found("title", "like(any)", "{*Noire*,*toit*}") == [2, 3]
    assert await found("title", "fts(french)", "toit") == [3]


async def test_conditions_are_negated_and_combined(service: AsyncPostgrestClient) -> None:
    films = service.from_("rest_films")
    negated = films.select("id").order("id").not_.in_("id", [1, 2])
    assert titles(await negated.execute()) == [3, 9007199254740993]
    either = (
        films.select("id").order("id").or_('id.eq.1,and(year.gt.1980,not.or(year.lt.1900,title.eq."x,y"))')
    )
    assert titles(await either.execute()) == [1, 3]
    listed = (
        films.select("id").order("id").or_("tags.cs.{paris},id.in.(3,4),year.not.is.null").gt("year", 1970)
    )
    assert titles(await listed.execute()) == [3]


async def test_columns_are_renamed_cast_and_reached_into(service: AsyncPostgrestClient) -> None:
    select = "number:id::text, year, details->>minutes, first:details->cast->0->>name"
    answer = await service.from_("rest_films").select(select).eq("id", 1).execute()
    assert answer.data == [{"number": "1", "year": 1962, "minutes": "90", "first": "Marchand"}]


async def test_rows_come_in_the_order_asked_for(service: AsyncPostgrestClient) -> None:
    films = service.from_("rest_films")
    last = await films.select("id").order("year", desc=True, nullsfirst=False).execute()
    assert titles(last) == [3, 2, 1, 9007199254740993]
    first = await films.select("id").order("year", nullsfirst=True).order("id").execute()
    assert titles(first) == [9007199254740993, 1, 2, 3]
    nested = await films.select("id").order("details->minutes", nullsfirst=False).execute()
    assert titles(nested) == [2, 1, 3, 9007199254740993]


async def test_pages_say_how_many_rows_there_are(service: AsyncPostgrestClient) -> None:
    page = service.from_("rest_films").select("id", count=CountMethod.exact).order("id").range(1, 2)
    answer = await page.execute()
    assert (titles(answer), answer.count) == ([2, 3], 4)
    head = await service.from_("rest_films").select("*", count=CountMethod.exact, head=True).execute()
    assert (head.data, head.count) == ([], 4)


@pytest.mark.parametrize("method", [CountMethod.planned, CountMethod.estimated])
async def test_counts_can_be_the_planners(service: AsyncPostgrestClient, method: CountMethod) -> None:
    answer = await service.from_("rest_films").select("id", count=method).limit(1).execute()
    assert answer.count is not None
    assert answer.count >= 1


async def test_single_takes_exactly_one_row(service: AsyncPostgrestClient) -> None:
    films = service.from_("rest_films")
    assert (await films.select("id").eq("id", 1).single().execute()).data == {"id": 1}
    with pytest.raises(APIError) as caught:
        await films.select("id").single().execute()
    assert caught.value.code == "PGRST116"
    assert caught.value.details == "The result contains 4 rows"
    assert await films.select("id").eq("id", 77).maybe_single().execute() is None
    found = await films.select("id").eq("id", 1).maybe_single().execute()
    assert found is not None
    assert found.data == {"id": 1}


async def test_nulls_can_be_left_out(service: AsyncPostgrestClient) -> None:
    query = service.from_("rest_films").select("id, year").eq("id", 9007199254740993).strip_nulls()
    assert (await query.execute()).data == [{"id": 9007199254740993}]


async def test_a_view_is_read_like_a_table(service: AsyncPostgrestClient) -> None:
    answer = await service.from_("rest_titles").select("*").eq("year", 1985).execute()
    assert answer.data == [{"title": "Sans toit ni loi", "year": 1985}]


# Embedding ------------------------------------------------------------------------------------------------


async def test_a_row_embeds_the_row_it_refers_to(service: AsyncPostgrestClient) -> None:
    query = service.from_("rest_films").select("id, director:rest_directors(name)").order("id")
    assert (await query.execute()).data == [
        {"id": 1, "director": {"name": "Agnès Varda"}},
        {"id": 2, "director": {"name": "Ousmane Sembène"}},
        {"id": 3, "director": {"name": "Agnès Varda"}},
        {"id": 9007199254740993, "director": None},
    ]


async def test_a_row_embeds_the_rows_that_refer_to_it(service: AsyncPostgrestClient) -> None:
    query = service.from_("rest_directors").select("name, rest_films(id)").order("id")
    answer = await query.order("year", desc=True, foreign_table="rest_films").execute()
    assert [row["rest_films"] for row in answer.data] == [[{"id": 3}, {"id": 1}], [{"id": 2}], []]
    limited = query.limit(1, foreign_table="rest_films")
    assert [row["rest_films"] for row in (await limited.execute()).data] == [[{"id": 3}], [{"id": 2}], []]


async def test_embedded_rows_are_filtered_and_inner_ones_filter_their_parents(
    service: AsyncPostgrestClient,
) -> None:
    directors = service.from_("rest_directors")
    outer = await directors.select("id, films:rest_films(id)").gt("films.year", 1980).order("id").execute()
    assert outer.data == [{"id": 1, "films": [{"id": 3}]}, {"id": 2, "films": []}, {"id": 3, "films": []}]
    inner = await directors.select("id, films:rest_films!inner(id)").gt("films.year", 1980).execute()
    assert inner.data == [{"id": 1, "films": [{"id": 3}]}]
    without = await directors.select("id, rest_films()").is_("rest_films", None).execute()
    assert without.data == [{"id": 3}]


async def test_a_table_in_between_joins_many_to_many_and_embeds_nest(service: AsyncPostgrestClient) -> None:
    query = service.from_("rest_directors").select("name, rest_films(id, rest_actors(name))").eq("id", 2)
    assert (await query.execute()).data == [
        {"name": "Ousmane Sembène", "rest_films": [{"id": 2, "rest_actors": [{"name": "Mbissine Diop"}]}]}
    ]


# Writing --------------------------------------------------------------------------------------------------


async def test_an_insert_returns_the_row_with_its_defaults(service: AsyncPostgrestClient, batch: str) -> None:
    row = {"batch": batch, "name": "a", "big": 9007199254740993}
    answer = await service.from_("rest_items").insert(row).execute()
    assert answer.data[0] | row == answer.data[0]
    assert answer.data[0]["amount"] == 7


async def test_many_rows_are_inserted_at_once(service: AsyncPostgrestClient, batch: str) -> None:
    items = service.from_("rest_items")
    rows = [{"batch": batch, "name": "a", "amount": 1}, {"batch": batch, "name": "b"}]
    nulled = await items.insert(rows, count=CountMethod.exact).execute()
    assert [row["amount"] for row in nulled.data] == [1, None]
    assert nulled.count == 2
    renamed = [row | {"name": row["name"] * 2} for row in rows]
    defaulted = await items.insert(renamed, default_to_null=False).select("amount").execute()
    assert defaulted.data == [{"amount": 1}, {"amount": 7}]
    assert (await items.insert([]).execute()).data == []


async def test_a_minimal_insert_returns_nothing(service: AsyncPostgrestClient, batch: str) -> None:
    row = {"batch": batch, "name": "a"}
    answer = await service.from_("rest_items").insert(row, returning=ReturnMethod.minimal).execute()
    assert answer.data == []


async def test_an_upsert_merges_or_ignores_what_is_there(service: AsyncPostgrestClient, batch: str) -> None:
    items = service.from_("rest_items")
    first = (await items.insert({"batch": batch, "name": "a", "amount": 1}).execute()).data[0]
    by_key = await items.upsert(first | {"amount": 2}).execute()
    assert by_key.data == [first | {"amount": 2}]
    row = {"batch": batch, "name": "a", "amount": 3}
    merged = await items.upsert(row, on_conflict="batch,name").execute()
    assert merged.data == [first | {"amount": 3}]
    ignored = await items.upsert(
        row | {"amount": 4}, on_conflict="batch,name", ignore_duplicates=True
    ).execute()
    assert ignored.data == []


async def test_an_update_changes_only_what_matches(service: AsyncPostgrestClient, batch: str) -> None:
    items = service.from_("rest_items")
    await items.insert([{"batch": batch, "name": name, "amount": 1} for name in "abc"]).execute()
    update = items.update({"amount": 5}, count=CountMethod.exact).eq("batch", batch).in_("name", ["a", "b"])
    answer = await update.execute()
    assert sorted(row["name"] for row in answer.data) == ["a", "b"]
    assert answer.count == 2
    left = await items.select("amount").eq("batch", batch).order("name").execute()
    assert [row["amount"] for row in left.data] == [5, 5, 1]


async def test_a_delete_returns_what_it_deleted(service: AsyncPostgrestClient, batch: str) -> None:
    items = service.from_("rest_items")
    await items.insert([{"batch": batch, "name": name} for name in "ab"]).execute()
    answer = await items.delete().eq("batch", batch).eq("name", "a").select("name").execute()
    assert answer.data == [{"name": "a"}]
    assert len((await items.select("id").eq("batch", batch).execute()).data) == 1


async def test_a_write_returns_embedded_rows_too(service: AsyncPostgrestClient, batch: str) -> None:
    row = {"batch": batch, "name": "a", "film_id": 1}
    answer = await service.from_("rest_items").insert(row).select("name, rest_films(title)").execute()
    assert answer.data == [{"name": "a", "rest_films": {"title": "Cléo de 5 à 7"}}]


async def test_a_write_that_affects_too_many_rows_is_rolled_back(
    service: AsyncPostgrestClient, batch: str
) -> None:
    items = service.from_("rest_items")
    await items.insert([{"batch": batch, "name": name} for name in "ab"]).execute()
    with pytest.raises(APIError) as caught:
        await items.delete().eq("batch", batch).max_affected(1).execute()
    assert caught.value.code == "PGRST124"
    with pytest.raises(APIError) as caught:
        await items.update({"amount": 1}).eq("batch", batch).select("id").single().execute()
    assert caught.value.code == "PGRST116"
    left = await items.select("amount").eq("batch", batch).execute()
    assert left.data == [{"amount": 7}, {"amount": 7}]


# Who asks -------------------------------------------------------------------------------------------------


async def test_row_level_security_shows_each_user_their_own_rows(rest_stack: Any) -> None:
    async with signed_up(rest_stack) as one, signed_up(rest_stack) as two:
        await one.table("rest_notes").insert({"body": "of one"}).execute()
        await two.table("rest_notes").insert({"body": "of two"}).execute()
        assert (await one.table("rest_notes").select("body").execute()).data == [{"body": "of one"}]
        assert (await two.table("rest_notes").select("body").execute()).data == [{"body": "of two"}]
        user = await one.auth.get_user()
        assert user is not None
        caller = (await one.rpc("rest_caller", {}).execute()).data
        assert (caller["role"], caller["uid"]) == ("authenticated", user.user.id)
        with pytest.raises(APIError) as caught:
            await one.table("rest_notes").insert({"body": "x", "owner_id": str(uuid.uuid4())}).execute()
        assert caught.value.code == "42501"


@asynccontextmanager
async def signed_up(stack: Any) -> AsyncIterator[AsyncClient]:
    """Give supabase-py, signed in as a new user."""
    async with httpx.AsyncClient(trust_env=False) as http:
        client = await acreate_client(stack.url, stack.anon_key, AsyncClientOptions(httpx_client=http))
        await client.auth.sign_up({"email": f"{uuid.uuid4().hex}@example.com", "password": "correct horse"})
        yield client
        await client.auth.sign_out()


async def _sql(stack: Any, statement: str) -> None:
    connection = await asyncpg.connect(stack.db_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
