"""Messages that the database sends to workers: how many, to whom, and what they are not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from processor.rpc import SCHEMA_VERSION
from tests.compat.realtime_listener import Listener, listening, sign
from tests.feed_observer import ObservedFeed


@pytest.fixture
async def listen(stack: Any) -> AsyncIterator[Callable[..., Listener]]:
    async with listening(stack) as listener:
        yield listener


class Worker:
    """A registered worker whose feed is broadcast, serving a queue of its own."""

    def __init__(self, service: Any) -> None:
        self.id = str(uuid4())
        self.queue = f"q{uuid4().hex[:8]}"
        self.kind = f"{self.queue}.echo"
        self._service = service

    async def call(self, function: str, **arguments: Any) -> Any:
        return (await self._service.rpc(function, arguments).execute()).data

    async def register(self, **changes: Any) -> None:
        declared = {
            "id": self.id,
            "name": "broadcast",
            "queues": [self.queue],
            "slots": 1,
            "lease_seconds": 90,
            "transport": "broadcast",
            "kinds": [{"kind": self.kind, "queue": self.queue}],
            "schema_version": SCHEMA_VERSION,
        }
        await self.call("register_worker", worker=declared | changes)


@pytest.fixture
async def worker(service: Any) -> AsyncIterator[Worker]:
    it = Worker(service)
    await it.register()
    yield it
    await it.call("deregister_worker", worker_id=it.id)


async def messages(admin: asyncpg.Connection, queue: str) -> int:
    return await admin.fetchval(
        "select count(*) from realtime.messages where topic = 'processor:jobs' and payload -> 'queues' ? $1",
        queue,
    )


async def test_a_thousand_jobs_of_one_call_are_one_message_that_names_their_queue_and_no_job(
    worker: Worker, listen: Callable[..., Listener], admin: asyncpg.Connection
):
    heard = await listen(topic="processor:jobs", private=True).join()
    jobs = [{"kind": worker.kind, "payload": {"n": number}} for number in range(1000)]
    await worker.call("create_jobs", jobs=jobs)
    while worker.queue not in (message := await heard.broadcast())["payload"]["queues"]:
        pass  # somebody else's
    assert message["event"] == "look"
    assert set(message["payload"]) == {"queues", "id"}
    assert await messages(admin, worker.queue) == 1
    # claiming and finishing make nothing pending
    claim = await worker.call("claim_jobs", worker_id=worker.id, request_id=str(uuid4()), limit=3)
    reports = [{"id": job["id"], "attempt": 1, "outcome": "done"} for job in claim["jobs"]]
    assert len(reports) == 3
    await worker.call("finish_jobs", worker_id=worker.id, results=reports[:2])
    assert await messages(admin, worker.queue) == 1
    await worker.call("release_jobs", worker_id=worker.id, jobs=reports[2:])
    assert await messages(admin, worker.queue) == 2


async def test_without_a_listening_worker_that_serves_the_queue_nothing_is_sent(
    worker: Worker, admin: asyncpg.Connection
):
    async def rows() -> int:
        topic = f"processor:worker:{worker.id}"
        return await admin.fetchval("select count(*) from realtime.messages where topic = $1", topic)

    for transport in ("postgres_changes", "polling"):
        await worker.register(transport=transport)
        await worker.call("create_job", kind=worker.kind)
        await worker.call("heartbeat_worker", worker_id=worker.id)
    assert (await rows(), await messages(admin, worker.queue)) == (0, 0)
    await worker.register()
    await admin.execute(
        "update public.job_workers set lease_expires_at = now() - interval '1 s' where id = $1", worker.id
    )
    assert await rows() == 2, "it is told that it has changed"
    await worker.call("create_job", kind=worker.kind)
    assert await messages(admin, worker.queue) == 0


async def test_a_job_is_made_though_no_message_can_be_sent(worker: Worker, admin: asyncpg.Connection):
    await admin.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
    try:
        job = await worker.call("create_job", kind=worker.kind)
    finally:
        await admin.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")
    assert job["status"] == "pending"


async def test_a_worker_that_wants_messages_is_refused_where_none_can_be_sent(
    worker: Worker, admin: asyncpg.Connection
):
    await admin.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
    try:
        with pytest.raises(Exception, match=r"no function realtime\.send") as caught:
            await worker.register()
    finally:
        await admin.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")
    assert caught.value.code == "JQ006"
    assert "PROCESSOR_FEED=postgres_changes" in caught.value.hint


async def test_a_worker_with_the_least_rights_hears_its_messages_and_is_acknowledged(
    stack, worker: Worker, admin: asyncpg.Connection
):
    token = sign(stack, role="job_processor")
    feed = ObservedFeed(stack.url, token, worker_id=worker.id, api_key=stack.anon_key, transport="broadcast")
    async with feed:
        await feed.live()
        await worker.call("create_job", kind=worker.kind)
        await feed.said_more("realtime")
        await asyncio.sleep(1)  # several probes: each would end the incarnation if nobody acknowledged it
        assert "mode:polling" not in feed.said


async def test_a_key_that_may_not_hear_the_topics_polls_and_says_why(stack, worker: Worker):
    feed = ObservedFeed(
        stack.url, sign(stack), worker_id=worker.id, api_key=stack.anon_key, transport="broadcast"
    )
    async with feed:
        await feed.until(lambda: feed.feed.status.incarnations > 1)
        assert feed.last_cause == "join_refused"
        assert "Unauthorized" in (feed.feed.status.last_ending or "")
        assert feed.feed.mode == "polling"
