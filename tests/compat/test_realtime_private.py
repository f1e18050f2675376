"""Private topics: who is let in, and what the database sends there, with the official Python client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from realtime.types import RealtimeAcknowledgementStatus
from supabase import acreate_client

from tests.compat.realtime_listener import SECONDS, Listener, listening, sign

REFUSED = "You do not have permissions to read from this Channel topic"
Allow = Callable[..., Awaitable[None]]


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


@pytest.fixture
async def allow(admin: asyncpg.Connection) -> AsyncIterator[Allow]:
    """Make policies on the messages; all are dropped at the end."""
    names: list[str] = []

    async def policy(what: str, condition: str) -> None:
        names.append(f"test_{uuid4().hex}")
        check = "with check" if what.startswith("insert") else "using"
        await admin.execute(
            f"create policy {names[-1]} on realtime.messages for {what} {check} ({condition})"
        )

    yield policy
    for name in names:
        await admin.execute(f"drop policy {name} on realtime.messages")


@asynccontextmanager
async def silence(*listeners: Listener) -> AsyncIterator[None]:
    """Expect that these hear nothing of what happens here; a message over each proves that they would."""
    yield
    for each in listeners:
        assert each.broadcasts.empty(), each.broadcasts


async def refusal(listener: Listener) -> str:
    """Return why a join is refused."""
    await listener.subscribe()
    state, error = await asyncio.wait_for(listener.states.get(), SECONDS)
    assert state == "CHANNEL_ERROR"
    return str(error)


async def test_without_a_policy_a_private_topic_is_closed_to_all_but_the_service(stack, listen):
    for token in (stack.anon_key, sign(stack), sign(stack, role="postgres"), sign(stack, role="nobody")):
        assert REFUSED in await refusal(listen(token, key=stack.anon_key, private=True))
    await listen(private=True).join()


async def test_a_policy_lets_in_those_whom_it_names_by_topic_and_token(stack, listen, allow: Allow):
    ann, topic = str(uuid4()), f"room:{uuid4().hex}"
    await allow("select to authenticated", f"realtime.topic() = '{topic}' and auth.uid() = '{ann}'")
    await listen(sign(stack, sub=ann), key=stack.anon_key, topic=topic, private=True).join()
    bob = listen(sign(stack, sub=str(uuid4())), key=stack.anon_key, topic=topic, private=True)
    assert REFUSED in await refusal(bob)
    elsewhere = listen(sign(stack, sub=ann), key=stack.anon_key, private=True)
    assert REFUSED in await refusal(elsewhere)


async def test_a_policy_that_fails_lets_nobody_in(stack, listen, allow: Allow):
    await allow("select to authenticated", "1 / (length(topic) - length(topic)) = 1")
    assert REFUSED in await refusal(listen(sign(stack), key=stack.anon_key, private=True))


async def test_what_the_database_sends_is_heard_in_the_private_topic_and_nowhere_else(
    stack, listen, admin: asyncpg.Connection
):
    topic = uuid4().hex
    private = await listen(topic=topic, private=True).join()
    public = await listen(topic=topic).join()
    other = await listen(private=True).join()
    async with silence(public, other):
        await admin.execute("select realtime.send($1, 'news', $2, true)", '{"n": 1}', topic)
        heard = await private.broadcast()
    assert (heard["event"], heard["payload"]["n"]) == ("news", 1)
    assert heard["payload"]["id"] == heard["meta"]["id"]
    await admin.execute("select realtime.send($1, 'news', $2, false)", '{"n": 2, "id": "own"}', topic)
    assert (await public.broadcast())["payload"] == {"n": 2, "id": "own"}
    assert private.broadcasts.empty()


async def test_messages_come_when_their_transaction_commits_and_never_if_it_does_not(
    stack, listen, admin: asyncpg.Connection
):
    topic = uuid4().hex
    heard = await listen(topic=topic, private=True).join()
    send = "select realtime.send(jsonb_build_object('n', $1::int), 'news', $2, true)"
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(send, 1, topic)
    await transaction.rollback()
    async with admin.transaction():
        for number in (2, 3):
            await admin.execute(send, number, topic)
    assert [(await heard.broadcast())["payload"]["n"] for _ in range(2)] == [2, 3]


async def test_sending_fails_in_silence_where_it_may_not(admin: asyncpg.Connection):
    async with admin.transaction():
        await admin.execute("set local role authenticated")
        await admin.execute("select realtime.send('{}', 'news', 'somewhere', true)")
    assert await admin.fetchval("select count(*) from realtime.messages where topic = 'somewhere'") == 0


async def test_wildcard_subscribers_are_not_told_of_messages_as_changes(stack, listen, admin):
    name = f"watched_{uuid4().hex}"
    await admin.execute(f"create table {name} (id int primary key)")
    await admin.execute(f"alter publication supabase_realtime add table {name}")
    try:
        everything = await listen().on("*", schema="*").join()
        await admin.execute("select realtime.send('{}', 'news', 'somewhere', true)")
        await admin.execute(f"insert into {name} values (1)")
        assert (await everything.change())["table"] == name
    finally:
        await admin.execute(f"drop table {name}")


async def test_who_may_only_listen_is_not_heard_and_not_acknowledged(stack, listen, allow: Allow):
    topic = uuid4().hex
    await allow("select to authenticated", f"topic = '{topic}'")
    broadcast = {"ack": True, "self": False}
    mute = await listen(
        sign(stack), key=stack.anon_key, topic=topic, private=True, broadcast=broadcast
    ).join()
    witness = await listen(topic=topic, private=True).join()
    speaker = await listen(topic=topic, private=True, broadcast=broadcast).join()
    answers: asyncio.Queue[str] = asyncio.Queue()
    for name, each in (("mute", mute), ("speaker", speaker)):
        push = await each.channel.push("broadcast", {"type": "broadcast", "event": name, "payload": {}})
        push.receive(RealtimeAcknowledgementStatus.Ok, lambda _, name=name: answers.put_nowait(name))
        if name == "mute":
            push.destroy()
    assert await asyncio.wait_for(answers.get(), SECONDS) == "speaker"
    assert (await witness.broadcast())["event"] == "speaker"
    assert answers.empty()
    await allow("insert to authenticated", f"topic = '{topic}'")
    spoken = await listen(
        sign(stack), key=stack.anon_key, topic=topic, private=True, broadcast=broadcast
    ).join()
    await spoken.channel.send_broadcast("now", {})
    assert (await witness.broadcast())["event"] == "now"


async def test_messages_over_http_need_the_right_to_send(stack, listen, allow: Allow):
    topic = uuid4().hex
    heard = await listen(topic=topic, private=True).join()

    async def post(token: str, event: str) -> None:
        message = {"topic": topic, "event": event, "payload": {}, "private": True}
        headers = {"apikey": stack.anon_key, "authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
            answer = await http.post(f"{stack.url}/realtime/v1/api/broadcast", json={"messages": [message]})
        assert answer.status_code == 202

    await post(sign(stack), "before")
    await allow("insert to authenticated", f"topic = '{topic}'")
    await post(sign(stack), "after")
    assert (await heard.broadcast())["event"] == "after"


async def test_a_new_token_that_may_not_stay_closes_the_channel(stack, listen, allow: Allow):
    ann, topic = str(uuid4()), uuid4().hex
    await allow("select to authenticated", f"topic = '{topic}' and auth.uid() = '{ann}'")
    heard = await listen(sign(stack, sub=ann), key=stack.anon_key, topic=topic, private=True).join()
    await heard.client.set_auth(sign(stack, sub=ann, seconds=500))
    await heard.client.set_auth(sign(stack, sub=str(uuid4())))
    assert [await heard.state(), await heard.state()] == ["CHANNEL_ERROR", "CLOSED"]


async def test_who_asks_is_told_when_the_database_is_listened_to(stack, listen):
    ready = {"ack": True, "self": False, "replication_ready": True}
    heard = await listen(private=True, broadcast=ready).join()
    message = await heard.system()
    assert (message.extension, message.status, message.message) == (
        "system",
        "ok",
        "Replication connection established",
    )


async def test_the_topics_of_workers_are_closed_to_users_whatever_other_policies_say(
    stack, listen, allow: Allow
):
    await allow("select to authenticated, anon", "true")
    await allow("insert to authenticated, anon", "true")
    await listen(sign(stack), key=stack.anon_key, topic="elsewhere", private=True).join()
    worker = sign(stack, role="job_processor")
    mine = f"processor:worker:{uuid4()}"
    for topic in ("processor:jobs", mine):
        for token in (sign(stack), stack.anon_key):
            assert REFUSED in await refusal(listen(token, key=stack.anon_key, topic=topic, private=True))
        await listen(worker, key=stack.anon_key, topic=topic, private=True).join()
    assert REFUSED in await refusal(listen(worker, key=stack.anon_key, topic="else", private=True))


async def test_supabase_py_hears_what_the_database_sends(stack, admin: asyncpg.Connection):
    client = await acreate_client(stack.url, stack.service_role_key)
    heard: asyncio.Queue[Any] = asyncio.Queue()
    topic = uuid4().hex
    try:
        channel = client.channel(topic, {"config": {"private": True, "broadcast": None, "presence": None}})
        await channel.on_broadcast("news", heard.put_nowait).subscribe()
        await admin.execute("select realtime.send($1, 'news', $2, true)", '{"n": 1}', topic)
        message = await asyncio.wait_for(heard.get(), SECONDS)
        assert (message["event"], message["payload"]["n"]) == ("news", 1)
    finally:
        await client.remove_all_channels()
        await client.auth.close()
