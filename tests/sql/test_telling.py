"""Who is told of what is wrong: each thing once, again while it lasts, and once more when it is over."""

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.sql.harness import NOON, fixture

NOBODY = ("ProcessorNoLiveWorker", "", "firing")
OVER = ("ProcessorNoLiveWorker", "", "resolved")
PRUNE = {"alert": "ProcessorMaintenanceFailed", "severity": "warning", "about": "prune_jobs", "summary": "no"}


async def take(project, *findings, request=None, **arguments):
    """Return what a machine is to tell: name, what it is about, state."""
    answer = await project.call(
        "take_alerts", request_id=request or uuid4(), findings=list(findings), **arguments
    )
    return [(told["alert"], told["about"], told["state"]) for told in answer["tell"]]


async def tell(project, *findings, **arguments):
    """Take what is to be told, and tell it."""
    request = uuid4()
    told = await take(project, *findings, request=request, **arguments)
    await project.call("settle_alerts", request_id=request, told=True)
    return told


async def remembered(project):
    return [row["alert"] for row in await project.rows("select alert from processor.told_alerts")]


@fixture
async def worker(project):
    """Give a worker whose lease is over: nobody is alive."""
    await project.kind("echo")
    worker = await project.worker(name="web-1", host="vm-1", feed="realtime")
    await project.later(minutes=10)
    return worker


async def test_a_fleet_is_told_once_then_again_while_it_lasts_and_once_when_it_is_over(project, worker):
    assert await tell(project) == [NOBODY]
    for _ in range(3):
        assert await tell(project) == []
    await project.later(hours=3, minutes=59)
    assert await tell(project) == []
    await project.later(minutes=1)
    assert await tell(project) == [NOBODY]
    await worker.heartbeat(feed="realtime")
    assert await tell(project) == [OVER]
    assert await tell(project) == []
    assert await remembered(project) == []
    await project.later(minutes=10)
    assert await tell(project) == [NOBODY], "it is news again"


async def test_everybody_hears_what_is_wrong_though_one_alone_tells(project, worker):
    answers = [
        await project.call("take_alerts", request_id=uuid4(), findings=[PRUNE | {"severity": "critical"}])
        for _ in range(2)
    ]
    for answer in answers:
        assert [(row["alert"], row["reported"]) for row in answer["wrong"]] == [
            ("ProcessorMaintenanceFailed", True),
            ("ProcessorNoLiveWorker", False),
        ]
    assert [len(answer["tell"]) for answer in answers] == [2, 0]
    [_, nobody] = answers[0]["tell"]
    assert nobody["since"] == (NOON + timedelta(seconds=90)).isoformat()
    assert "Start a daemon" in nobody["summary"]


async def test_a_request_whose_answer_was_lost_gets_it_again(project, worker):
    request = uuid4()
    for _ in range(2):
        assert await take(project, request=request) == [NOBODY]
    assert await take(project) == []


async def test_what_could_not_be_told_is_due_at_once(project, worker):
    request = uuid4()
    assert await take(project, request=request) == [NOBODY]
    assert await project.call("settle_alerts", request_id=request, told=False) == 1
    assert await tell(project) == [NOBODY]
    await worker.heartbeat(feed="realtime")
    assert await take(project, request=request) == [OVER]
    await project.call("settle_alerts", request_id=request, told=False)
    assert await tell(project) == [OVER]


async def test_what_a_machine_took_to_its_grave_is_told_by_another(project, worker):
    assert await take(project) == [NOBODY]
    await project.later(seconds=119)
    assert await take(project) == []
    await project.later(seconds=2)
    assert await tell(project) == [NOBODY]


async def test_what_is_over_before_anybody_heard_of_it_is_not_told(project, worker):
    request = uuid4()
    await take(project, request=request)
    await project.call("settle_alerts", request_id=request, told=False)
    await worker.heartbeat(feed="realtime")
    assert await tell(project) == []
    assert await remembered(project) == []


async def test_what_comes_back_while_its_end_is_told_is_news(project, worker):
    await tell(project)
    await worker.heartbeat(feed="realtime")
    request = uuid4()
    assert await take(project, request=request) == [OVER]
    await project.later(seconds=100)
    assert await take(project) == [], "somebody is telling"
    await project.call("settle_alerts", request_id=request, told=True)
    assert await tell(project) == [NOBODY]


async def test_queues_and_workers_are_told_apart(project, worker):
    await worker.heartbeat(feed="realtime")
    for queue in ("books", "films"):
        await project.kind(queue, queue=queue)
        for _ in range(2):
            await project.create(queue)
    deep = [("ProcessorQueueDeep", queue, "firing") for queue in ("books", "films")]
    assert await tell(project, max_depth=1) == deep
    await project.create("books")
    assert await tell(project, max_depth=1) == [], "another number is no news"
    assert await tell(project, max_depth=2) == [("ProcessorQueueDeep", "films", "resolved")]


async def test_what_a_machine_reports_is_over_when_nobody_has_seen_it_for_a_while(project, worker):
    await worker.heartbeat(feed="realtime")
    failed = ("ProcessorMaintenanceFailed", "prune_jobs")
    assert await tell(project, PRUNE) == [(*failed, "firing")]
    for _ in range(6):  # another machine sees nothing of it
        await project.later(minutes=5)
        await worker.heartbeat(feed="realtime")
        assert await tell(project) == []
        assert await tell(project, PRUNE | {"summary": "again"}) == []
    await project.later(minutes=16)
    await worker.heartbeat(feed="realtime")
    assert await tell(project) == [(*failed, "resolved")]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"findings": [PRUNE | {"alert": "drop table"}]}, "alert"),
        ({"findings": [PRUNE | {"severity": "loud"}]}, "severity"),
        ({"findings": [PRUNE] * 21}, "findings"),
        ({"findings": PRUNE}, "findings"),
        ({"repeat_seconds": 1}, "repeat_seconds"),
        ({"repeat_seconds": None}, "repeat_seconds"),
        ({"max_depth": 0}, "max_depth"),
        ({"request_id": None}, "request_id"),
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused(project, worker, arguments, word):
    async with project.refused("JQ006", word):
        await project.call("take_alerts", **({"request_id": uuid4()} | arguments))


async def test_of_two_that_ask_at_the_same_moment_exactly_one_tells(database):
    first, second = await database.project(), await database.project()
    transaction = first.connection.transaction()
    await transaction.start()
    assert await take(first) == [NOBODY]
    assert await take(second) == [], "it does not wait"
    await transaction.rollback()
    assert await take(second) == [NOBODY], "who failed has told nobody"
    assert await take(first) == []
