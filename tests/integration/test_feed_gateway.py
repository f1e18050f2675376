"""The feed against the local stack, through a proxy that fails on command."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio

from processor.rpc import SCHEMA_VERSION
from tests.faults import FaultProxy
from tests.feed_observer import FAST, ObservedFeed

# the Realtime client reads them when a socket is closed with an error
pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning"
)

QUEUE = "feed-tests"
both = pytest.mark.parametrize("transport", ["postgres_changes", "broadcast"])
"""Runs a test with a feed of each kind that connects."""


class Api:
    """The RPCs of a worker and of a client, straight to the stack: no fault touches them."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(self, function: str, **arguments: object) -> dict:
        answer = await self._http.post(f"/rest/v1/rpc/{function}", json=arguments)
        assert answer.is_success, answer.text
        return answer.json()

    async def register(self, worker_id: str, transport: str = "postgres_changes") -> None:
        kind = {"kind": "feed-test", "queue": QUEUE, "public": False}
        await self.call(
            "register_worker",
            worker={
                "id": worker_id,
                "name": "feed",
                "queues": [QUEUE],
                "slots": 1,
                "lease_seconds": 90,
                "transport": transport,
                "kinds": [kind],
                "schema_version": SCHEMA_VERSION,
            },
        )

    async def heartbeat(self, worker_id: str) -> datetime:
        answer = await self.call("heartbeat_worker", worker_id=worker_id, running=[], feed="polling")
        return datetime.fromisoformat(answer["heartbeat_at"])

    async def create_job(self) -> dict:
        return await self.call("create_job", kind="feed-test", payload={})


@pytest_asyncio.fixture
async def proxy(stack) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(stack.url) as running:
        yield running


@pytest_asyncio.fixture
async def api(stack) -> AsyncIterator[Api]:
    async with httpx.AsyncClient(base_url=stack.url, headers=stack.service_headers, trust_env=False) as http:
        yield Api(http)


@pytest.fixture
def transport() -> str:
    """Give what a feed listens to, unless a test says otherwise."""
    return "postgres_changes"


@pytest_asyncio.fixture
async def watched(
    stack, proxy: FaultProxy, api: Api, transport: str, admin: asyncpg.Connection
) -> AsyncIterator[ObservedFeed]:
    """Give a registered worker's feed through the proxy, live, and nothing to do."""
    await admin.execute("delete from public.jobs where queue = $1", QUEUE)
    feed = ObservedFeed(proxy.url, stack.service_role_key, transport=transport)
    await api.register(feed.worker_id, transport)
    async with feed:
        await feed.live()
        yield feed
    await api.call("deregister_worker", worker_id=feed.worker_id)


# -- a healthy life -------------------------------------------------------------------------------


@both
async def test_a_job_inserted_or_returned_wakes_and_a_running_one_does_not(
    watched: ObservedFeed, api: Api, admin: asyncpg.Connection
):
    job = await api.create_job()
    await watched.said_more("realtime")
    claim = await api.call("claim_jobs", worker_id=watched.worker_id, request_id=str(uuid4()), limit=1)
    assert [claimed["id"] for claimed in claim["jobs"]] == [job["id"]]
    await api.call(
        "report_progress",
        worker_id=watched.worker_id,
        reports=[{"id": job["id"], "attempt": 1, "progress": 0.5}],
    )
    before = watched.said.count("realtime")
    await api.call("release_jobs", worker_id=watched.worker_id, jobs=[{"id": job["id"], "attempt": 1}])
    await watched.said_more("realtime", than=before)
    assert watched.said.count("realtime") == before + 1 == 2


@both
async def test_of_a_parents_changes_only_the_end_of_its_last_child_wakes(
    watched: ObservedFeed, api: Api, admin: asyncpg.Connection, transport: str
):
    # what other tests left running would wake too, once a heartbeat rescues it
    await admin.execute("delete from public.jobs where status = 'processing'")
    child = {"kind": "feed-test"}
    parent = await api.call("create_job", kind="feed-test", payload={}, children=[child, child])
    made = 1 if transport == "broadcast" else 2  # messages tell of statements, changes of rows
    await watched.said_more("realtime", than=made - 1)  # the children; the parent cannot run yet
    claim = await api.call("claim_jobs", worker_id=watched.worker_id, request_id=str(uuid4()), limit=9)
    children = [job for job in claim["jobs"] if job["parent_id"] == parent["id"]]
    assert len(children) == 2
    for number, job in enumerate(children):
        report = {"id": job["id"], "attempt": 1, "outcome": "done"}
        await api.call("finish_jobs", worker_id=watched.worker_id, results=[report])
        watched.feed.heartbeat_sent(await api.heartbeat(watched.worker_id))
        await watched.said_more("row", than=number)  # what went before has been heard
    assert watched.said.count("realtime") == made + 1


@both
async def test_a_resumed_queue_wakes(watched: ObservedFeed, admin: asyncpg.Connection):
    await admin.execute("update public.job_queues set paused = true where name = $1", QUEUE)
    await admin.execute("update public.job_queues set paused = false where name = $1", QUEUE)
    await watched.said_more("realtime")
    assert watched.said.count("realtime") == 1


@both
async def test_the_inbox_of_the_own_row_is_heard_and_others_rows_are_not(
    watched: ObservedFeed, api: Api, admin: asyncpg.Connection, transport: str
):
    stranger = str(uuid4())
    await api.register(stranger, transport)
    await api.heartbeat(stranger)
    await admin.execute("update public.job_workers set inbox = inbox + 1 where id = $1", watched.worker_id)
    await watched.said_more("row")
    assert [(row["id"], row["inbox"]) for row in watched.rows] == [(watched.worker_id, 1)]
    await api.call("deregister_worker", worker_id=stranger)


@both
async def test_heartbeats_come_back_and_keep_the_feed_live(watched: ObservedFeed, api: Api):
    for beat in range(3):
        watched.feed.heartbeat_sent(await api.heartbeat(watched.worker_id))
        await watched.said_more("row", than=beat)
    assert watched.feed._incarnation
    assert watched.feed._incarnation._echo.awaited is None
    assert "mode:polling" not in watched.said


# -- faults ---------------------------------------------------------------------------------------


def cut(proxy: FaultProxy) -> None:
    assert proxy.cut("websocket") == 1
    proxy.refuse("websocket")


def refuse_everything(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.cut()


def freeze(proxy: FaultProxy) -> None:
    proxy.freeze("websocket")


def lose_what_goes_up(proxy: FaultProxy) -> None:
    proxy.drop("up", "websocket")


def lose_what_comes_down(proxy: FaultProxy) -> None:
    proxy.drop("down", "websocket")


def lag(proxy: FaultProxy) -> None:
    proxy.delay(60, only="websocket")


@pytest.mark.parametrize(
    ("fault", "cause", "transport"),
    [
        (cut, "closed", "postgres_changes"),
        (refuse_everything, "closed", "postgres_changes"),
        (freeze, "ack_timeout", "postgres_changes"),
        (lose_what_goes_up, "ack_timeout", "postgres_changes"),
        (lose_what_comes_down, "ack_timeout", "postgres_changes"),
        (lag, "ack_timeout", "postgres_changes"),
        (cut, "closed", "broadcast"),
        (lose_what_goes_up, "ack_timeout", "broadcast"),
    ],
)
async def test_a_fault_means_polling_until_it_is_over_and_misses_no_job(
    watched: ObservedFeed,
    proxy: FaultProxy,
    api: Api,
    fault: Callable[[FaultProxy], None],
    cause: str,
    transport: str,
):
    loop = asyncio.get_running_loop()
    began = loop.time()
    fault(proxy)
    await watched.said_more("mode:polling")
    assert loop.time() - began < FAST.probe_interval + FAST.ack_timeout + 1
    assert watched.last_cause == cause

    await api.create_job()  # nobody hears of it
    polls = watched.said.count("polling")
    await watched.said_more("polling", than=polls + 3)
    assert watched.feed.mode == "polling"
    assert "realtime" not in watched.said

    sweeps = watched.said.count("sweep")
    await proxy.heal()
    await watched.live()
    # which is when the job is found; a broadcasting server speaks twice: of the join, and of the database
    words = 2 if transport == "broadcast" else 1
    await watched.said_more("sweep", than=sweeps + words - 1)
    assert watched.said.count("sweep") == sweeps + words
    await api.create_job()
    await watched.said_more("realtime")
    assert [word for word in watched.said if word.startswith("mode")] == [
        "mode:realtime",
        "mode:polling",
        "mode:realtime",
    ]


async def test_a_handshake_that_is_never_answered_is_given_up_and_tried_anew(
    stack, proxy: FaultProxy, api: Api
):
    proxy.freeze("websocket")
    async with ObservedFeed(proxy.url, stack.service_role_key) as watched:
        await proxy.arrived("websocket", more_than=2)
        assert watched.feed.status.last_ending == "unreachable: no websocket within 1 s"
        await proxy.heal()
        await watched.live()


async def test_a_wrong_key_is_refused_and_the_feed_polls(proxy: FaultProxy):
    async with ObservedFeed(proxy.url, "not-a-key") as watched:
        await proxy.arrived("websocket", more_than=2)
        assert watched.last_cause == "refused"
        assert watched.feed.mode == "polling"


async def test_a_server_that_is_not_there_yet_is_waited_for(stack, proxy: FaultProxy):
    proxy.refuse()
    async with ObservedFeed(proxy.url, stack.service_role_key) as watched:
        await watched.until(lambda: watched.feed.status.incarnations > 6)
        assert watched.last_cause == "unreachable"
        await proxy.heal()
        await watched.live()


async def test_rest_goes_on_while_only_websockets_fail(stack, proxy: FaultProxy, watched: ObservedFeed):
    proxy.freeze("websocket")
    await watched.polling()
    async with httpx.AsyncClient(base_url=proxy.url, headers=stack.service_headers, trust_env=False) as http:
        answer = await http.get("/rest/v1/job_queues", params={"name": f"eq.{QUEUE}"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("transport", "path"),
    [
        ("postgres_changes", "publication supabase_realtime {} table public.job_workers"),
        ("broadcast", "publication supabase_realtime_messages_publication {} table realtime.messages"),
    ],
)
async def test_a_change_path_that_dies_is_noticed_though_everything_answers(
    watched: ObservedFeed, api: Api, admin: asyncpg.Connection, path: str
):
    await admin.execute(f"alter {path.format('drop')}")
    try:
        watched.feed.heartbeat_sent(await api.heartbeat(watched.worker_id))
        await watched.polling()
        assert watched.last_cause == "echo_timeout"
        joins = watched.feed.status.incarnations
        await watched.until(lambda: watched.feed.status.incarnations > joins)
        assert watched.feed.mode == "polling"
    finally:
        await admin.execute(f"alter {path.format('add')}")
    while watched.feed.mode == "polling":  # as a daemon beats at every sweep
        sweeps = watched.said.count("sweep")
        watched.feed.heartbeat_sent(await api.heartbeat(watched.worker_id))
        await watched.until(lambda: watched.feed.mode == "realtime" or watched.said.count("sweep") > sweeps)  # noqa: B023  used at once
    assert watched.feed.mode == "realtime"


@both
async def test_faults_again_and_again_leave_no_task_behind(watched: ObservedFeed, proxy: FaultProxy):
    assert replace(FAST) == watched.feed._timings
    feed_tasks = len([task for task in asyncio.all_tasks() if "feed" in task.get_name()])
    for number in range(20):
        proxy.cut("websocket")
        await watched.said_more("mode:realtime", than=number + 1)
    assert len([task for task in asyncio.all_tasks() if "feed" in task.get_name()]) <= feed_tasks
    assert proxy.open("websocket") <= 2
