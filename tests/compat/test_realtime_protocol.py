"""The protocol itself, frame by frame, for what the official clients hide."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.compat.realtime_listener import SECONDS, publishing, sign


class Phone:
    """A websocket that speaks frames of one version."""

    def __init__(self, websocket: ClientConnection, version: int) -> None:
        self.websocket = websocket
        self.version = version

    async def send(
        self, topic: str, event: str, payload: Any, ref: str = "1", join_ref: str | None = None
    ) -> None:
        frame = (
            {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
            if self.version == 1
            else [join_ref, ref, topic, event, payload]
        )
        await self.websocket.send(json.dumps(frame))

    async def read_to_the_end(self) -> None:
        while True:
            await self.websocket.recv()

    async def raw(self) -> Any:
        data = await asyncio.wait_for(self.websocket.recv(), SECONDS)
        return data if isinstance(data, bytes) else json.loads(data)

    async def receive(self) -> tuple[Any, Any, Any, Any]:
        """Return event, payload, ref and join_ref of the next frame (version 1 has no join_ref)."""
        frame = await self.raw()
        if self.version == 1:
            assert set(frame) == {"topic", "event", "payload", "ref"}
            return frame["event"], frame["payload"], frame["ref"], None
        join_ref, ref, _topic, event, payload = frame
        return event, payload, ref, join_ref


@asynccontextmanager
async def phone(stack: Any, version: int = 2, token: str | None = None) -> AsyncIterator[Phone]:
    address = stack.url.replace("http", "ws") + "/realtime/v1/websocket"
    url = f"{address}?apikey={token or stack.service_role_key}&vsn={version}.0.0"
    async with connect(url, proxy=None) as websocket:
        yield Phone(websocket, version)


def config(**options: Any) -> dict[str, Any]:
    return {"config": {"broadcast": {"ack": False, "self": False}, "presence": {"key": ""}} | options}


@pytest.mark.parametrize("version", [1, 2])
async def test_a_heartbeat_is_answered(stack, version):
    async with phone(stack, version) as line:
        await line.send("phoenix", "heartbeat", {}, ref="9")
        assert await line.receive() == ("phx_reply", {"status": "ok", "response": {}}, "9", None)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_join_echoes_its_bindings_with_ids_and_then_streams(stack, admin, version):
    async with publishing(admin) as table, phone(stack, version) as line:
        name = await table("id int primary key")
        bindings = [
            {"event": "INSERT", "schema": "public", "table": name, "filter": "id=gt.5"},
            {"event": "*", "schema": "public", "table": name},
        ]
        await line.send("realtime:a", "phx_join", config(postgres_changes=bindings), ref="1", join_ref="1")
        event, payload, ref, join_ref = await line.receive()
        assert (event, ref, join_ref) == ("phx_reply", "1", "1" if version == 2 else None)
        echoed = payload["response"]["postgres_changes"]
        ids = [binding.pop("id") for binding in echoed]
        assert (payload["status"], echoed) == ("ok", bindings)
        assert len(set(ids)) == 2
        assert all(isinstance(number, int) and number for number in ids)
        event, payload, ref, join_ref = await line.receive()
        assert (event, ref) == ("system", None)
        assert payload == {
            "extension": "postgres_changes",
            "status": "ok",
            "message": "Subscribed to PostgreSQL",
            "channel": "a",
        }
        await admin.execute(f"insert into {name} values (1), (7)")
        event, payload, ref, join_ref = await line.receive()
        assert (event, payload["ids"], ref, join_ref) == ("postgres_changes", ids[1:], None, None)
        event, payload, ref, join_ref = await line.receive()
        assert (payload["ids"], payload["data"]["record"]) == (ids, {"id": 7})


@pytest.mark.parametrize("version", [1, 2])
async def test_a_leave_is_confirmed_and_then_the_channel_closes(stack, version):
    async with phone(stack, version) as line:
        await line.send("realtime:a", "phx_join", config(), ref="4", join_ref="4")
        await line.receive()
        await line.send("realtime:a", "phx_leave", {}, ref="5", join_ref="4")
        assert (await line.receive())[:3] == ("phx_reply", {"status": "ok", "response": {}}, "5")
        assert (await line.receive())[:3] == ("phx_close", {}, "4")
        await line.send("realtime:a", "broadcast", {}, ref="6", join_ref="4")
        event, payload, ref, _ = await line.receive()
        assert (event, payload["response"], ref) == ("phx_reply", {"reason": "unmatched topic"}, "6")


async def test_a_second_join_closes_the_first_channel_before_it_is_answered(stack):
    async with phone(stack) as line:
        await line.send("realtime:a", "phx_join", config(), ref="1", join_ref="1")
        await line.receive()
        await line.send("realtime:a", "phx_join", config(), ref="2", join_ref="2")
        assert await line.receive() == ("phx_close", {}, "1", "1")
        event, payload, ref, join_ref = await line.receive()
        assert (event, payload["status"], ref, join_ref) == ("phx_reply", "ok", "2", "2")


async def test_what_is_said_to_an_earlier_join_of_a_topic_is_not_said_to_the_later_one(stack):
    async with phone(stack) as line:
        echoing = config(broadcast={"self": True, "ack": False})
        await line.send("realtime:a", "phx_join", echoing, ref="1", join_ref="1")
        await line.send("realtime:a", "phx_join", echoing, ref="2", join_ref="2")
        for _ in range(3):
            await line.receive()
        await line.send("realtime:a", "broadcast", {"event": "late"}, ref="3", join_ref="1")
        await line.send("realtime:a", "phx_leave", {}, ref="4", join_ref="1")
        assert (await line.receive())[::2] == ("phx_reply", "4")
        await line.send("realtime:a", "broadcast", {"event": "now"}, ref="5", join_ref="2")
        assert (await line.receive())[:2] == ("broadcast", {"event": "now"})


@pytest.mark.parametrize(
    ("topic", "reason"),
    [("other:a", "unmatched topic"), ("realtime:", "TopicNameRequired: You must provide a topic name")],
)
async def test_a_topic_that_cannot_be_joined_is_an_error_reply(stack, topic, reason):
    async with phone(stack) as line:
        await line.send(topic, "phx_join", config(), ref="1", join_ref="1")
        assert (await line.receive())[1] == {"status": "error", "response": {"reason": reason}}


async def test_the_end_of_a_token_is_a_system_error_and_then_a_close(stack):
    async with phone(stack, token=sign(stack, seconds=600)) as line:
        payload = config() | {"access_token": sign(stack, seconds=1.5)}
        await line.send("realtime:a", "phx_join", payload, ref="1", join_ref="1")
        assert (await line.receive())[0] == "phx_reply"
        event, payload, _, _ = await line.receive()
        assert (event, payload["extension"], payload["status"]) == ("system", "system", "error")
        assert payload["message"].startswith("Token has expired")
        assert await line.receive() == ("phx_close", {}, "1", "1")


async def test_keys_of_the_new_kind_stand_for_the_sockets_own_token(stack):
    async with phone(stack) as line:
        payload = config() | {"access_token": "sb_publishable_abc"}
        await line.send("realtime:a", "phx_join", payload, ref="1", join_ref="1")
        assert (await line.receive())[1]["status"] == "ok"
        await line.send(
            "realtime:a", "access_token", {"access_token": "sb_secret_abc"}, ref="2", join_ref="1"
        )
        await line.send("phoenix", "heartbeat", {}, ref="3")
        assert (await line.receive())[::2] == ("phx_reply", "3")


async def test_a_binary_broadcast_arrives_in_kind_4_and_as_text_in_version_1(stack):
    topic = f"realtime:{uuid4().hex}"
    async with phone(stack) as sender, phone(stack) as new, phone(stack, 1) as old:
        for line in (sender, new, old):
            joining = config(broadcast={"ack": line is sender, "self": False})
            await line.send(topic, "phx_join", joining, ref="1", join_ref="1")
            await line.receive()

        async def send(payload: bytes, encoding: int) -> None:
            strings = [b"1", b"2", topic.encode(), b"shout", b""]
            head = bytes([3, *map(len, strings), encoding])
            await sender.websocket.send(head + b"".join(strings) + payload)
            assert (await sender.receive())[1]["status"] == "ok"

        head = bytes([4, len(topic), 5, 0])
        await send(b"\x00\x01\xff", 0)
        assert await new.raw() == head + b"\x00" + topic.encode() + b"shout" + b"\x00\x01\xff"
        await send(b'{"n":1}', 1)
        assert await new.raw() == head + b"\x01" + topic.encode() + b"shout" + b'{"n":1}'
        event, payload, _, _ = await old.receive()
        assert (event, payload) == ("broadcast", {"event": "shout", "payload": {"n": 1}, "type": "broadcast"})


@pytest.mark.parametrize("data", ["nonsense", "{}", b"\x07abc"])
async def test_what_is_no_frame_closes_the_socket_with_the_reason(stack, data):
    async with phone(stack) as line:
        await line.websocket.send(data)
        with pytest.raises(ConnectionClosed, match="1003"):
            await line.raw()


async def test_a_client_that_does_not_read_is_closed_before_it_fills_the_memory(stack):
    topic = f"realtime:{uuid4().hex}"
    async with phone(stack) as loud, phone(stack) as deaf:
        for line in (loud, deaf):
            await line.send(topic, "phx_join", config(broadcast={"ack": True}), ref="1", join_ref="1")
            await line.receive()
        deaf.websocket.transport.pause_reading()
        text = os.urandom(250_000).hex()  # which compression cannot make small
        for number in range(40):  # 20 MB, more than the limit and all buffers on the way
            await loud.send(
                topic, "broadcast", {"event": "e", "payload": text}, ref=str(number), join_ref="1"
            )
            assert (await loud.receive())[1]["status"] == "ok"
        deaf.websocket.transport.resume_reading()
        with pytest.raises(ConnectionClosed, match="1013"):
            await asyncio.wait_for(deaf.read_to_the_end(), 2 * SECONDS)


async def test_a_client_that_does_not_read_changes_holds_nobody_up_for_long(stack, admin):
    async with publishing(admin) as table, phone(stack) as reads, phone(stack) as deaf:
        name = await table("id int primary key, filler text")
        binding = {"event": "*", "schema": "public", "table": name}
        for line in (deaf, reads):
            await line.send("realtime:a", "phx_join", config(postgres_changes=[binding]), join_ref="1")
            assert [(await line.receive())[0] for _ in range(2)] == ["phx_reply", "system"]
        deaf.websocket.transport.pause_reading()
        filler = "(select string_agg(md5(n::text || i), '') from generate_series(1, 3000) i)"
        await admin.execute(f"insert into {name} select n, {filler} from generate_series(1, 100) n")
        for number in range(1, 101):
            frame = json.loads(await asyncio.wait_for(reads.websocket.recv(), 2 * SECONDS))
            assert frame[4]["data"]["record"]["id"] == number
        deaf.websocket.transport.resume_reading()
        with pytest.raises(ConnectionClosed, match="1013"):
            await asyncio.wait_for(deaf.read_to_the_end(), 2 * SECONDS)
