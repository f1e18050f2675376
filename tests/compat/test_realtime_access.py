"""Who hears what: row level security, privileges and tokens, with the official Python client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.compat.realtime_listener import SECONDS, Listener, MakeTable, listening, publishing, sign


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


@pytest.fixture
async def table(admin: asyncpg.Connection) -> AsyncIterator[MakeTable]:
    async with publishing(admin) as make:
        yield make


@pytest.fixture
async def owned(table: MakeTable, admin: asyncpg.Connection) -> str:
    """Make a table whose rows only their owner may see."""
    name = await table("id int primary key, owner uuid, note text")
    await admin.execute(f"alter table {name} enable row level security")
    await admin.execute(f"create policy own on {name} for select using (owner = auth.uid())")
    return name


async def test_users_hear_only_their_own_rows(stack, listen, owned, admin):
    ann, bob = str(uuid4()), str(uuid4())
    hears_ann = await listen(sign(stack, sub=ann), key=stack.anon_key).on(owned).join()
    hears_bob = await listen(sign(stack, sub=bob), key=stack.anon_key).on(owned).join()
    hears_all = await listen().on(owned).join()
    await admin.execute(f"insert into {owned} values (1, '{ann}'), (2, '{bob}'), (3, null), (4, '{ann}')")
    await admin.execute(f"update {owned} set note = 'x' where id in (1, 2)")
    assert [(await hears_all.change())["record"]["id"] for _ in range(6)] == [1, 2, 3, 4, 1, 2]
    assert [(await hears_ann.change())["record"]["id"] for _ in range(3)] == [1, 4, 1]
    assert [(await hears_bob.change())["record"]["id"] for _ in range(2)] == [2, 2]
    assert hears_ann.changes.empty()
    assert hears_bob.changes.empty()


async def test_no_row_is_lost_to_the_moment_between_its_commit_and_its_visibility(
    stack, listen, owned, admin
):
    ann = str(uuid4())
    heard = await listen(sign(stack, sub=ann), key=stack.anon_key).on(owned).join()
    for number in range(300):
        await admin.execute(f"insert into {owned} values ({number}, '{ann}')")
        assert (await heard.change())["record"]["id"] == number


async def test_a_deleted_row_is_told_to_everybody_by_its_key_alone(stack, listen, owned, admin):
    await admin.execute(f"alter table {owned} replica identity full")
    await admin.execute(f"insert into {owned} values (1, '{uuid4()}', 'secret')")
    heard = await listen(sign(stack, sub=str(uuid4())), key=stack.anon_key).on(owned).join()
    await admin.execute(f"delete from {owned}")
    change = await heard.change()
    assert (change["type"], change["old_record"]) == ("DELETE", {"id": 1})


async def test_a_row_that_is_gone_before_it_could_be_checked_is_not_told(stack, listen, owned, admin):
    ann = str(uuid4())
    heard = await listen(sign(stack, sub=ann), key=stack.anon_key).on(owned).join()
    async with admin.transaction():
        await admin.execute(f"insert into {owned} values (1, '{ann}')")
        await admin.execute(f"delete from {owned}")
    assert (await heard.change())["type"] == "DELETE"


async def test_policies_see_the_whole_token(stack, listen, table, admin):
    name = await table("id int primary key, team text")
    await admin.execute(f"alter table {name} enable row level security")
    await admin.execute(
        f"create policy team on {name}"
        " using (team = auth.jwt() -> 'app_metadata' ->> 'team' and current_user = 'authenticated')"
    )
    team = 'o\'neill \\ "x"'
    heard = await listen(sign(stack, app_metadata={"team": team}), key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1, 'other')")
    await admin.execute(f"insert into {name} values (2, $1)", team)
    assert (await heard.change())["record"] == {"id": 2, "team": team}


async def test_a_composite_key_is_checked_as_one(stack, listen, table, admin):
    ann = str(uuid4())
    name = await table('"Order" int, "line no" text, owner uuid, primary key ("line no", "Order")')
    await admin.execute(f"alter table {name} enable row level security")
    await admin.execute(f"create policy own on {name} for select using (owner = auth.uid())")
    heard = await listen(sign(stack, sub=ann), key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1, 'a', null), (1, 'b', '{ann}'), (2, 'a', null)")
    assert (await heard.change())["record"] == {"Order": 1, "line no": "b", "owner": ann}
    assert heard.changes.empty()


async def test_a_role_without_the_right_to_read_learns_only_that_it_has_none(stack, listen, table, admin):
    name = await table("id int primary key, secret text", grant="service_role")
    anonymous = await listen(key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1, 'x')")
    change = await anonymous.change()
    assert change["errors"] == ["Error 401: Unauthorized"]
    assert (change["record"], change["columns"]) == ({}, [])


async def test_only_columns_that_the_role_may_read_are_told(stack, listen, table, admin):
    name = await table("id int primary key, open text, secret text", grant="service_role")
    await admin.execute(f"grant select (id, open) on {name} to authenticated")
    heard = await listen(sign(stack), key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1, 'a', 'b')")
    change = await heard.change()
    assert change["record"] == {"id": 1, "open": "a"}
    assert [column["name"] for column in change["columns"]] == ["id", "open"]
    refused = await listen(sign(stack), key=stack.anon_key).on(name, filter="secret=eq.b").subscribe()
    assert await refused.state() == "SUBSCRIBED"
    state, error = await asyncio.wait_for(refused.states.get(), SECONDS)
    assert (state, "invalid column for filter secret" in str(error)) == ("CHANNEL_ERROR", True)


async def test_a_revoked_right_ends_delivery_at_once(stack, listen, table, admin):
    name = await table("id int primary key")
    heard = await listen(sign(stack), key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["record"] == {"id": 1}
    await admin.execute(f"revoke select on {name} from authenticated")
    await admin.execute(f"insert into {name} values (2)")
    assert (await heard.change())["errors"] == ["Error 401: Unauthorized"]


async def test_a_role_that_the_gateway_may_not_become_hears_nothing_even_a_superuser(
    stack, listen, table, admin
):
    name = await table("id int primary key")
    heard = await listen(sign(stack, role="postgres"), key=stack.anon_key).on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["errors"] == ["Error 401: Unauthorized"]


async def test_a_failing_policy_is_a_system_error_for_those_it_concerns(stack, listen, table, admin):
    name = await table("id int primary key")
    await admin.execute(f"alter table {name} enable row level security")
    await admin.execute(f"create policy broken on {name} using (1 / (id - id) = 1)")
    concerned = await listen(sign(stack), key=stack.anon_key).on(name).join()
    other = await listen().on(name).join()
    await admin.execute(f"insert into {name} values (1)")
    assert (await other.change())["record"] == {"id": 1}
    state, error = await asyncio.wait_for(concerned.states.get(), SECONDS)
    assert (state, "division by zero" in str(error)) == ("CHANNEL_ERROR", True)
    assert concerned.changes.empty()


async def test_a_new_token_changes_what_is_heard_and_is_confirmed(stack, listen, owned, admin):
    ann, bob = str(uuid4()), str(uuid4())
    heard = await listen(sign(stack, sub=ann), key=stack.anon_key).on(owned).join()
    await heard.client.set_auth(sign(stack, sub=bob))
    assert (await heard.system()).message == "Subscribed to PostgreSQL"
    await admin.execute(f"insert into {owned} values (1, '{ann}'), (2, '{bob}')")
    assert (await heard.change())["record"]["id"] == 2
    assert heard.changes.empty()


async def test_a_channel_ends_with_its_token(stack, listen, table):
    heard = (
        await listen(sign(stack, seconds=2), key=stack.anon_key).on(await table("id int primary key")).join()
    )
    assert await heard.state() == "CHANNEL_ERROR"
    assert await heard.state() == "CLOSED"


async def test_a_fresh_token_in_time_keeps_the_channel(stack, listen, table, admin):
    name = await table("id int primary key")
    heard = await listen(sign(stack, seconds=2), key=stack.anon_key).on(name).join()
    ending = await listen(sign(stack, seconds=2), key=stack.anon_key).on(name).join()
    await heard.client.set_auth(sign(stack))
    await heard.system()
    assert [await ending.state(), await ending.state()] == ["CHANNEL_ERROR", "CLOSED"]
    await admin.execute(f"insert into {name} values (1)")
    assert (await heard.change())["record"] == {"id": 1}


async def test_a_bad_token_closes_a_channel_that_was_open(stack, listen, table):
    heard = await listen(sign(stack), key=stack.anon_key).on(await table("id int primary key")).join()
    await heard.client.set_auth("no.token.atall")
    assert await heard.state() == "CHANNEL_ERROR"
    assert await heard.state() == "CLOSED"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"seconds": -5}, "Token has expired"),
        ({"role": None}, "Fields `role` and `exp` are required in JWT"),
        ({"exp": None}, "Fields `role` and `exp` are required in JWT"),
    ],
)
async def test_a_join_with_a_bad_token_is_refused(stack, listen, claims, reason):
    heard = await listen(sign(stack, **claims), key=stack.anon_key).subscribe()
    state, error = await asyncio.wait_for(heard.states.get(), SECONDS)
    assert state == "CHANNEL_ERROR"
    assert reason in str(error)


@pytest.mark.parametrize("key", ["not-a-token", "a.b.c", None])
async def test_a_wrong_key_is_refused_before_the_upgrade(stack, listen, key):
    wrong = key or sign(type("Other", (), {"jwt_secret": "another secret of at least 32 characters"})())
    client = listen(key=wrong).client
    client.auto_reconnect = False
    with pytest.raises(InvalidStatus, match="401"):
        await client.connect()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "API key is missing"),
        ("?apikey=nonsense", "The token provided is not a valid JWT"),
        ("?apikey=expired", "Token has expired"),
        ("?apikey=forged", "Failed to validate JWT signature"),
    ],
)
async def test_a_refused_handshake_says_why_in_json(stack, query, message):
    forged = sign(type("Other", (), {"jwt_secret": "another secret of at least 32 characters"})())
    query = query.replace("expired", sign(stack, seconds=-1)).replace("forged", forged)
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{stack.url}/realtime/v1/websocket{query}", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"error": message})
