"""What real daemons deliver: all of it, whatever the receiver, the network or they themselves come to."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests import places
from tests.webhooks.receiver import Hook, Receiver, answer, drop, hang

HERE = "127.0.0.0/8, ::1/128"


class Place(places.Place):
    """A place whose daemons deliver webhooks, and an endpoint that hears of its queue."""

    target = "tests.apps.behaviours:app"
    admin: asyncpg.Connection
    authority: Path
    allow = HERE

    def environment(self, **settings: str) -> dict[str, str]:
        return super().environment(
            **{
                "PROCESSOR_WEBHOOKS": "true",
                "PROCESSOR_WEBHOOK_ALLOW": self.allow,
                "PROCESSOR_LEASE_SECONDS": "3",
                "SSL_CERT_FILE": str(self.authority),
                **settings,
            }
        )

    async def endpoint(self, url: str, **options: Any) -> dict[str, Any]:
        """Add the endpoint; its tries come one soon after the other."""
        wanted = {"name": self.queue, "url": url, "queues": [self.queue], **options}
        added = (await self.rest.rpc("add_webhook", wanted).execute()).data
        await self.admin.execute(
            "update public.job_queues set retry_delays = '{200 ms}', jitter = 0, max_attempts = 100 "
            "where name = 'webhooks'"
        )
        return added

    async def told(self) -> dict[str, Any]:
        """Return the endpoint's row."""
        return (
            await self.rest.table("webhook_endpoints").select("*").eq("name", self.queue).single().execute()
        ).data

    async def deliveries(self) -> list[dict[str, Any]]:
        """Return the jobs that deliver to it, the oldest first."""
        found = self.rest.table("jobs").select("*").eq("kind", "webhook.deliver").order("id")
        return (await found.eq("payload->>endpoint_id", (await self.told())["id"]).execute()).data

    async def failed_delivery(self) -> dict[str, Any]:
        """Wait until the database knows that the only delivery has failed; return it."""

        async def failed() -> dict[str, Any] | None:
            [delivery] = await self.deliveries()
            return delivery if delivery["error_code"] else None

        return await self.eventually(failed)

    async def pass_time(self) -> None:
        """Let be over what deliveries wait for: retries, and circuits that are open."""
        await self.admin.execute(
            "update public.webhook_endpoints set opened_until = now() where opened_until > now()"
        )
        await self.admin.execute(
            "update public.jobs set run_at = now() "
            "where queue = 'webhooks' and status = 'pending' and run_at > now()"
        )

    async def all_over(self, within: float = 60.0) -> list[dict[str, Any]]:
        """Wait until every delivery has ended, and return them."""

        async def over() -> list[dict[str, Any]] | None:
            await self.pass_time()
            rows = await self.deliveries()
            return rows if all(row["finished_at"] for row in rows) else None

        return await self.eventually(over, within=within, every=0.3)


@pytest.fixture
async def place(stack, service, eventually, admin, authority) -> AsyncIterator[Place]:
    here = Place(stack, service, eventually)
    here.admin, here.authority = admin, authority[1]
    yield here
    await service.rpc("remove_webhook", {"endpoint": here.queue}).execute()
    await admin.execute("select * from processor.cancel_queue('webhooks')")


class Taken:
    """An answer that takes hooks and keeps them."""

    def __init__(self) -> None:
        self.hooks: list[Hook] = []

    async def __call__(self, hook: Hook, writer: asyncio.StreamWriter) -> None:
        self.hooks.append(hook)
        await answer(200, "thanks")(hook, writer)

    @property
    def events(self) -> dict[str, str]:
        """Job → what was told of it."""
        return {hook.event["data"]["id"]: hook.event["type"] for hook in self.hooks}


async def test_every_webhook_arrives_across_errors_outages_timeouts_and_dead_daemons(
    place: Place, receivers: Callable[..., Awaitable[Receiver]], eventually
) -> None:
    taken = Taken()
    receiver = await receivers()
    endpoint = await place.endpoint(receiver.url(), timeout_seconds=1)
    expected: dict[str, str] = {}

    async def make(count: int, event: str = "job.completed") -> None:
        how = "return" if event == "job.completed" else "discard"
        for _ in range(count):
            expected[await place.create("end", {"how": how})] = event

    # errors of every sort
    receiver.answers = [
        answer(500, "oops"),
        drop,
        hang,
        answer(503, retry_after="0"),
        answer(302, location="/x"),
    ]
    receiver.always = taken
    first = await (await place.launch()).ready()
    try:
        await make(6)
        await make(2, "job.failed")
        cancelled = await place.create("greet", {"name": "Ada"}, delay_seconds=3600)
        await place.rest.rpc("cancel_job", {"job_id": cancelled}).execute()
        expected[cancelled] = "job.cancelled"
        await place.all_over()
        assert taken.events == expected
        # nobody is there
        await receiver.close()
        await make(4)

        async def circuit_is_open() -> bool:
            return (await place.told())["opened_until"] is not None

        await eventually(circuit_is_open, within=30, every=0.2)
        # somebody is there and says nothing, and the daemon dies in the middle
        receiver.always = hang
        await receiver.open()
        await make(2)
        await place.pass_time()
        await eventually(lambda: receiver.now, within=30)
    finally:
        first.signal(signal.SIGKILL)
        await first.ended()
    # all is well again
    receiver.always = taken
    async with place.daemon() as second:
        await second.ready()
        rows = await place.all_over()
    assert taken.events == expected
    assert {row["status"] for row in rows} == {"completed"}
    assert len(rows) == len(expected)
    bodies: dict[str, bytes] = {}
    for hook in receiver.hooks:
        event = hook.verify(endpoint["secret"])
        assert hook.message_id == f"msg_{event['data']['id'].replace('-', '')}"
        assert bodies.setdefault(hook.message_id, hook.body) == hook.body
    log = first.log() + second.log()
    assert endpoint["secret"] not in log
    assert "webhook.delivered" in log


async def test_a_delivery_is_not_taken_for_what_kills_daemons(
    place: Place, receivers: Callable[..., Awaitable[Receiver]]
) -> None:
    """Of an application's job it would be: the one that loses its second worker in a row ends."""
    receiver = await receivers()
    receiver.always = hang
    await place.endpoint(receiver.url(), timeout_seconds=30)
    for asked in (1, 2):
        async with place.daemon() as daemon:
            await daemon.ready()
            if asked == 1:
                await place.do("greet", {"name": "Ada"})
            await place.eventually(lambda asked=asked: len(receiver.hooks) == asked, within=30)
            daemon.signal(signal.SIGKILL)
            await daemon.ended()
    receiver.always = answer(204)
    async with place.daemon() as daemon:
        await daemon.ready()
        [delivery] = await place.all_over()
    assert (delivery["status"], delivery["attempt"], delivery["failures"]) == ("completed", 3, 0)


async def test_a_receiver_that_hangs_takes_no_slot_from_other_jobs(place: Place, receivers) -> None:
    receiver = await receivers()
    receiver.always = hang
    await place.endpoint(receiver.url(), timeout_seconds=30)
    async with place.daemon(PROCESSOR_SLOTS="1", PROCESSOR_WEBHOOK_SLOTS="2") as daemon:
        await daemon.ready()
        for _ in range(6):
            assert (await place.do("greet", {"name": "Ada"}))["status"] == "completed"
        await place.eventually(lambda: receiver.now == 2, within=20)
        assert (await place.do("greet", {"name": "Ada"}))["status"] == "completed"
        workers = place.rest.table("job_workers").select("slots").contains("queues", [place.queue])
        assert (await workers.execute()).data == [{"slots": 3}]
        assert (receiver.now, receiver.most) == (2, 2)
        daemon.signal(signal.SIGTERM)
        await daemon.event("daemon.stopping")
        daemon.signal(signal.SIGTERM)  # hurries
        assert await daemon.ended() == 0
    waiting = await place.deliveries()
    assert {(row["status"], row["failures"]) for row in waiting} == {("pending", 0)}


async def test_after_a_rotation_both_secrets_verify_then_the_new_one_alone(place: Place, receivers) -> None:
    taken = Taken()
    receiver = await receivers()
    receiver.always = taken
    old = (await place.endpoint(receiver.url()))["secret"]
    async with place.daemon() as daemon:
        await daemon.ready()
        rotated = await place.rest.rpc("rotate_webhook", {"endpoint": place.queue}).execute()
        new = rotated.data["secret"]
        await place.do("greet", {"name": "Ada"})
        await place.all_over()
        assert taken.hooks[0].verify(old) == taken.hooks[0].verify(new)
        await place.admin.execute(
            "update processor.webhook_secrets set expires_at = now() where expires_at > now()"
        )
        await place.do("greet", {"name": "Ada"})
        await place.all_over()
        taken.hooks[1].verify(new)
        with pytest.raises(Exception, match="No matching signature"):
            taken.hooks[1].verify(old)


async def test_an_address_inside_is_refused_by_a_daemon_that_allows_none(place: Place, receivers) -> None:
    receiver = await receivers()
    place.allow = ""
    await place.endpoint(f"https://127.1:{receiver.port}/hooks")
    async with place.daemon() as daemon:
        await daemon.ready()
        await place.do("greet", {"name": "Ada"})
        await daemon.event("webhook.failed")
        delivery = await place.failed_delivery()
    row = await place.told()
    assert "127.1 is 127.0.0.1, which is no public address" in row["last_error"]
    assert receiver.connections == 0
    assert delivery["error_code"] == "WEBHOOK_REFUSED"


async def test_410_ends_it_and_a_disabled_endpoint_is_asked_nothing(place: Place, receivers) -> None:
    receiver = await receivers()
    receiver.always = answer(410)
    await place.endpoint(receiver.url())
    async with place.daemon() as daemon:
        await daemon.ready()
        await place.rest.rpc("pause_queue", {"name": "webhooks"}).execute()
        await place.do("greet", {"name": "Ada"})
        await place.do("greet", {"name": "Ada"})
        await place.rest.rpc("resume_queue", {"name": "webhooks"}).execute()
        rows = await place.all_over()
    assert {(row["status"], row["error_code"]) for row in rows} == {("failed", "WEBHOOK_GONE")}
    assert (await place.told())["enabled"] is False


async def test_retry_after_is_waited_for(place: Place, receivers) -> None:
    receiver = await receivers()
    receiver.always = answer(429, "slowly, please", retry_after="1800")
    await place.endpoint(receiver.url())
    async with place.daemon() as daemon:
        await daemon.ready()
        await place.do("greet", {"name": "Ada"})
        failed = await daemon.event("webhook.failed", status=429)
        delivery = await place.failed_delivery()
    assert "slowly, please" in failed["error"]
    wait = datetime.fromisoformat(delivery["run_at"]) - datetime.now(UTC)
    assert 1600 < wait.total_seconds() <= 1800
    assert delivery["error_code"] == "RATE_LIMITED"
