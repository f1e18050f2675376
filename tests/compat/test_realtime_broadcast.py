"""Broadcast and presence, with the official Python clients."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from realtime.types import RealtimeAcknowledgementStatus
from supabase import acreate_client

from tests.compat.realtime_listener import SECONDS, Listener, listening, sign


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


async def test_everybody_in_the_topic_hears_a_broadcast_but_not_its_sender(listen):
    topic = uuid4().hex
    sender, other = await listen(topic=topic).join(), await listen(topic=topic).join()
    stranger = await listen().join()
    await sender.channel.send_broadcast("shout", {"n": 1})
    heard = await other.broadcast()
    assert (heard["event"], heard["payload"]) == ("shout", {"n": 1})
    assert sender.broadcasts.empty()
    assert stranger.broadcasts.empty()


async def test_a_sender_who_asks_for_it_hears_itself(listen):
    sender = await listen(broadcast={"ack": False, "self": True}).join()
    await sender.channel.send_broadcast("shout", {"n": 1})
    assert (await sender.broadcast())["payload"] == {"n": 1}


async def test_a_broadcast_is_acknowledged_if_asked_for(listen):
    sender = await listen(broadcast={"ack": True, "self": False}).join()
    acknowledged = asyncio.get_running_loop().create_future()
    push = await sender.channel.push("broadcast", {"type": "broadcast", "event": "e", "payload": {}})
    push.receive(RealtimeAcknowledgementStatus.Ok, acknowledged.set_result)
    await asyncio.wait_for(acknowledged, SECONDS)


async def test_a_private_topic_is_not_the_public_one_of_the_same_name(stack, listen):
    topic = uuid4().hex
    public = await listen(topic=topic).join()
    private = await listen(topic=topic, private=True).join()
    sender = await listen(topic=topic, private=True).join()
    await sender.channel.send_broadcast("secret", {})
    assert (await private.broadcast())["event"] == "secret"
    assert public.broadcasts.empty()


async def test_messages_over_http_reach_their_topics(stack, listen):
    first, second = await listen().join(), await listen().join()
    messages = [
        {"topic": each.channel.topic.removeprefix("realtime:"), "event": "news", "payload": {"n": number}}
        for number, each in enumerate((first, second))
    ]
    async with httpx.AsyncClient(headers=stack.headers(), trust_env=False) as http:
        answer = await http.post(f"{stack.url}/realtime/v1/api/broadcast", json={"messages": messages})
    assert (answer.status_code, answer.content) == (202, b"")
    assert [(await each.broadcast())["payload"] for each in (first, second)] == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": [{"topic": "a"}]}, {"messages": [1]}])
async def test_messages_that_are_none_are_refused(stack, body):
    async with httpx.AsyncClient(headers=stack.headers(), trust_env=False) as http:
        answer = await http.post(f"{stack.url}/realtime/v1/api/broadcast", json=body)
    assert answer.status_code == 422
    assert "messages" in answer.json()["errors"]


async def test_http_needs_a_valid_token(stack):
    headers = {"apikey": stack.anon_key, "authorization": f"Bearer {sign(stack, seconds=-5)}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
        answer = await http.post(f"{stack.url}/realtime/v1/api/broadcast", json={"messages": []})
    assert answer.status_code == 401


async def test_a_client_can_send_one_message_over_http(listen):
    topic = f"a/b {uuid4().hex}"
    heard, sender = await listen(topic=topic).join(), listen(topic=topic)
    await sender.channel.http_send("some event", {"n": 1})
    assert await heard.broadcast() == {"event": "some event", "payload": {"n": 1}}


async def test_presence_tells_who_comes_and_who_goes(listen, eventually):
    topic = uuid4().hex
    watcher, guest = listen(topic=topic), listen(topic=topic, presence={"key": "guest", "enabled": True})
    joins: asyncio.Queue[Any] = asyncio.Queue()
    leaves: asyncio.Queue[Any] = asyncio.Queue()
    watcher.channel.on_presence_join(lambda key, _, new: joins.put_nowait((key, new)))
    watcher.channel.on_presence_leave(lambda key, _, left: leaves.put_nowait((key, left)))
    await watcher.join()
    await guest.join()
    await guest.channel.track({"mood": "fine"})
    key, presences = await asyncio.wait_for(joins.get(), SECONDS)
    assert (key, presences[0]["mood"]) == ("guest", "fine")
    late = await listen(topic=topic, presence={"key": "late", "enabled": True}).join()
    await eventually(late.channel.presence_state)
    assert late.channel.presence_state()["guest"][0]["mood"] == "fine"
    await guest.client.close()
    assert (await asyncio.wait_for(leaves.get(), SECONDS))[0] == "guest"


async def test_supabase_py_hears_changes(stack, admin):
    client = await acreate_client(stack.url, stack.service_role_key)
    name = f"watched_{uuid4().hex}"
    await admin.execute(f"create table {name} (id int primary key); grant select on {name} to service_role")
    await admin.execute(f"alter publication supabase_realtime add table {name}")
    changes: asyncio.Queue[Any] = asyncio.Queue()
    streaming = asyncio.get_running_loop().create_future()
    try:
        channel = client.channel(name).on_postgres_changes("INSERT", changes.put_nowait, table=name)
        await channel.on_system(streaming.set_result).subscribe()
        await asyncio.wait_for(streaming, SECONDS)
        await admin.execute(f"insert into {name} values (7)")
        change = await asyncio.wait_for(changes.get(), SECONDS)
        assert change["data"]["record"] == {"id": 7}
        assert json.dumps(change)
    finally:
        await client.remove_all_channels()
        await client.auth.close()
        await admin.execute(f"drop table {name}")
