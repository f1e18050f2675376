"""What the database tells workers whose feed is broadcast; and a database that cannot."""

import pytest

from processor.schema.drift import problems
from tests.sql.harness import SQL_FILES

KIND = {"kind": "echo", "queue": "default"}


async def told(project, topic="processor:jobs"):
    """Return the payloads sent so far, without ids, in the order sent."""
    rows = await project.rows(
        "select payload - 'id' as payload from realtime.messages where topic = $1 order by ctid", topic
    )
    return [row["payload"] for row in rows]


async def listener(project, **more):
    return await project.worker(transport="broadcast", queues=["default"], kinds=[KIND], **more)


async def test_every_way_to_become_pending_is_told_once_a_call(project):
    worker = await listener(project)
    await project.call("create_jobs", jobs=[{"kind": "echo"}] * 5)
    look = {"queues": ["default"]}
    assert await told(project) == [look]
    released, retried, snoozed, *_ = await worker.claim(5)
    assert await told(project) == [look]
    await worker.release(released)
    assert await told(project) == [look] * 2
    await worker.finish(retried, "retry", error_code="RATE_LIMITED")
    assert await told(project) == [look] * 3
    await worker.finish(snoozed, "snooze", delay_seconds=60)
    assert await told(project) == [look] * 4
    await project.later(seconds=100)  # the worker's lease is over
    other = await listener(project)
    assert (await other.heartbeat())["rescued"] == 2
    assert await told(project) == [look] * 5


async def test_ending_progress_and_waiting_for_children_are_not_told(project):
    worker = await listener(project)
    children = [{"kind": "echo"}, {"kind": "echo"}]
    await project.create("echo", children=children)
    assert len(await told(project)) == 1, "the children were told of, their parent was not"
    first, second = await worker.claim(5)
    await worker.progress(first, 0.5)
    await worker.log(first, "a line")
    await worker.finish(first)
    assert len(await told(project)) == 1
    await worker.finish(second)  # the last one: the parent can go on
    assert len(await told(project)) == 2


async def test_only_queues_that_a_living_listener_serves_are_named(project):
    await project.kind("echo")
    await project.kind("other", queue="elsewhere")
    await project.worker(queues=["elsewhere"])  # it listens to changes
    await listener(project)
    await project.call("create_jobs", jobs=[{"kind": "other"}, {"kind": "echo"}])
    await project.create("other")
    assert await told(project) == [{"queues": ["default"]}]
    await project.later(minutes=2)  # its lease is over
    await project.create("echo")
    assert await told(project) == [{"queues": ["default"]}]


async def test_a_resumed_queue_is_told_and_a_paused_one_is_not(project):
    await listener(project)
    await project.call("processor.pause_queue", name="default")
    assert await told(project) == []
    await project.call("processor.resume_queue", name="default")
    assert await told(project) == [{"queues": ["default"]}]
    await project.kind("other", queue="elsewhere")
    await project.sql("update public.job_queues set max_processing = 5")
    assert await told(project) == [{"queues": ["default"]}] * 2, "one statement, and nobody serves elsewhere"


async def test_the_service_may_turn_the_knobs_of_a_queue_while_somebody_listens(project):
    await project.sql("select set_config('processor.now', '', false)")  # an API session has the real time
    await listener(project)
    # over the API it is as late as it is, and not noon
    await project.sql("update public.job_workers set lease_expires_at = clock_timestamp() + lease")
    async with project.acting("service_role", api=True):
        await project.sql("update public.job_queues set rate_limit = 5 where name = 'default'")
    assert await told(project) == [{"queues": ["default"]}]


async def test_a_worker_is_told_of_its_own_row_by_heartbeats_cancels_and_drains(project):
    worker = await listener(project)
    topic = f"processor:worker:{worker.id}"
    answer = await worker.heartbeat()
    job = await project.create("echo")
    await worker.claim()
    await project.cancel(job)
    await project.call("processor.drain_worker", worker="test")
    beat, cancel, drain = await told(project, topic)
    assert beat == {"heartbeat_at": answer["heartbeat_at"], "inbox": 0, "draining": False}
    assert (cancel["inbox"], cancel["draining"]) == (1, False)
    assert (drain["inbox"], drain["draining"]) == (2, True)


async def test_a_transport_that_is_none_is_refused(project):
    async with project.refused("JQ006", "transport is pigeon"):
        await project.worker(transport="pigeon")


@pytest.mark.parametrize("how", ["drop schema realtime cascade", "drop function realtime.send"])
async def test_where_nothing_can_be_broadcast_all_else_works(blank, how):
    database = await blank()
    [project] = database.projects
    await project.connection.execute(how)
    for file in SQL_FILES:
        await project.connection.execute(file.read_text())
    assert await problems(project.connection) == []
    await project.kind("echo")
    worker = await project.worker()
    await project.create("echo")
    [job] = await worker.claim()
    assert (await worker.finish(job))["status"] == "completed"
    async with project.refused("JQ006", "no function realtime.send()"):
        await project.worker(transport="broadcast")


async def test_a_message_that_cannot_be_sent_costs_nobody_the_job(project):
    await listener(project)
    await project.connection.execute("""
        create or replace function realtime.send(
          payload jsonb, event text, topic text, private boolean default true)
        returns void language plpgsql set search_path = ''
        as $$ begin raise exception 'no partition for today'; end $$
    """)
    assert (await project.create("echo"))["status"] == "pending"
