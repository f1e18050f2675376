"""The feed against a scripted Phoenix server: every way in which Realtime fails, one by one."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from tests.feed_observer import FAST, ObservedFeed
from tests.phoenix import Phoenix

# the Realtime client reads them when a socket is closed with an error
pytestmark = pytest.mark.filterwarnings(
    "ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning"
)


@pytest_asyncio.fixture
async def phoenix() -> AsyncIterator[Phoenix]:
    async with Phoenix() as running:
        yield running


# -- a healthy life -------------------------------------------------------------------------------


async def test_the_feed_polls_until_changes_are_streamed_then_sweeps_and_goes_live(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        assert watched.feed.mode == "polling"
        await watched.live()
        assert watched.said[0] == "polling"
        assert watched.said[-2:] == ["sweep", "mode:realtime"]


async def test_subscribed_without_the_word_that_changes_are_streamed_is_not_live(phoenix: Phoenix):
    phoenix.streams = False
    async with ObservedFeed(phoenix.url) as watched:
        await phoenix.until(lambda p: len(p.joined) >= 2)
        assert "mode:realtime" not in watched.said
        assert watched.last_cause == "join_timeout"
        assert "changes are streamed" in (watched.feed.status.last_ending or "")


async def test_every_word_that_changes_are_streamed_demands_a_sweep(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        await phoenix.joined[-1].system("ok", "Subscribed to PostgreSQL")
        await watched.said_more("sweep", than=1)
        assert watched.said.count("mode:realtime") == 1


async def test_an_ok_of_another_extension_is_not_taken_for_the_streams(phoenix: Phoenix):
    phoenix.streams = False
    async with ObservedFeed(phoenix.url) as watched:
        await phoenix.until(lambda p: p.joined)
        await phoenix.joined[-1].system("ok", "hello", extension="broadcast")
        await phoenix.until(lambda p: len(p.joined) >= 2)
        assert "sweep" not in watched.said


async def test_a_pending_job_a_resumed_queue_and_the_workers_row_are_heard(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        channel = phoenix.joined[-1]
        await channel.change("jobs", "INSERT", {"id": "1", "queue": "default"})
        await watched.said_more("realtime")
        await channel.change("jobs", "UPDATE", {"id": "1", "queue": "default"})
        await watched.said_more("realtime", than=1)
        await channel.change("job_queues", "UPDATE", {"name": "default", "paused": False})
        await watched.said_more("realtime", than=2)
        await channel.change("job_workers", "UPDATE", {"id": watched.worker_id, "inbox": 7})
        await watched.said_more("row")
        assert watched.rows[-1]["inbox"] == 7


async def test_jobs_of_other_queues_and_paused_queues_do_not_wake(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url, queues=["mine"]) as watched:
        await watched.live()
        channel = phoenix.joined[-1]
        await channel.change("jobs", "INSERT", {"id": "1", "queue": "theirs"})
        await channel.change("job_queues", "UPDATE", {"name": "theirs", "paused": False})
        await channel.change("job_queues", "UPDATE", {"name": "mine", "paused": True})
        await channel.change("jobs", "INSERT", {"id": "2", "queue": "mine"})
        await watched.said_more("realtime")
        assert watched.said.count("realtime") == 1


async def test_the_bindings_ask_for_pending_jobs_the_own_row_and_queues_without_payloads(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        asked = [
            (b["table"], b["event"], b.get("filter"), b.get("select")) for b in phoenix.joined[-1].bindings
        ]
        assert asked == [
            ("jobs", "INSERT", "status=eq.pending", ["id", "queue", "run_at"]),
            ("jobs", "UPDATE", "status=eq.pending", ["id", "queue", "run_at"]),
            ("job_queues", "UPDATE", None, None),
            ("job_workers", "UPDATE", f"id=eq.{watched.worker_id}", None),
        ]


async def test_silence_is_broken_by_probes_and_a_busy_channel_needs_none(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url, timings=replace(FAST, probe_interval=0.3)) as watched:
        await phoenix.until(lambda p: p.probes >= 2)
        before = phoenix.probes
        for count in range(8):
            await phoenix.joined[-1].change("jobs", "INSERT", {"id": str(count), "queue": "default"})
            await watched.said_more("realtime", than=count)
            await asyncio.sleep(0.1)  # the pace of the traffic is what is tested
        assert phoenix.probes <= before + 1  # one may have been due already
        assert watched.said.count("mode:polling") == 0


async def test_a_wake_up_is_heard_whatever_the_client_would_say_of_it(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        channel = phoenix.joined[-1]
        # of a form that the official client does not know
        record = {"id": "1", "queue": "default"}
        data = {"table": "jobs", "type": "INSERT", "record": record, "errors": None, "new": {"in": "2027"}}
        await channel.push("postgres_changes", {"ids": [1], "data": data})
        await watched.said_more("realtime")


async def test_what_is_no_wake_up_at_all_ends_nothing(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        channel = phoenix.joined[-1]
        for nonsense in ({}, {"data": None}, {"data": "jobs"}, {"ids": [1], "data": {"table": "jobs"}}):
            await channel.push("postgres_changes", nonsense)
        for text in ("", "{", "[]", "null", "[" * 100_000, json.dumps({"event": "postgres_changes"})):
            await channel.socket.send(text)
        await channel.change("jobs", "INSERT", {"id": "1", "queue": "default"})
        await watched.said_more("realtime")
        assert watched.said.count("realtime") == 1
        assert watched.said.count("mode:polling") == 0


# -- ways to fail ---------------------------------------------------------------------------------


async def close_normally(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].socket.close(1000)


async def close_with_internal_error(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].socket.close(1011)


async def close_for_restart(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].socket.close(1012)


async def reset_the_socket(phoenix: Phoenix) -> None:
    phoenix.joined[-1].socket.transport.abort()


async def send_phx_error(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].push("phx_error", {})


async def send_phx_close(phoenix: Phoenix) -> None:
    channel = phoenix.joined[-1]
    await channel.push("phx_close", {}, channel.ref)


async def send_system_error(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].system("error", "Subscribing to PostgreSQL failed")


async def expire_the_token(phoenix: Phoenix) -> None:
    channel = phoenix.joined[-1]
    await channel.system("error", "Token has expired", extension="system")
    await channel.push("phx_close", {}, channel.ref)


async def send_a_frame_over_a_mebibyte(phoenix: Phoenix) -> None:
    await phoenix.joined[-1].change("jobs", "INSERT", {"id": "x" * 1_100_000})


async def kill_the_listener(phoenix: Phoenix) -> None:
    # the client expects a reference in every entry, and reads no more after the KeyError
    await phoenix.joined[-1].push("presence_state", {"somebody": {"metas": [{}]}})


@pytest.mark.parametrize(
    ("fail", "cause"),
    [
        (close_normally, "closed"),
        (close_with_internal_error, "closed"),
        (close_for_restart, "closed"),
        (reset_the_socket, "closed"),
        (send_phx_error, "channel_error"),
        (send_phx_close, "channel_closed"),
        (send_system_error, "channel_error"),
        (expire_the_token, "channel_error"),
        (send_a_frame_over_a_mebibyte, "closed"),
        (kill_the_listener, "listener_died"),
    ],
)
async def test_a_bad_sign_means_polling_at_once_and_recovery_after_it(
    phoenix: Phoenix, fail: Callable[[Phoenix], Awaitable[None]], cause: str
):
    slow = replace(FAST, poll_interval=60, probe_interval=60, ack_timeout=60, health_interval=60)
    async with ObservedFeed(phoenix.url, timings=slow) as watched:
        await watched.live()
        sweeps = watched.said.count("sweep")
        await fail(phoenix)
        # no probe and no judgement can have noticed it: both are a minute away
        await watched.said_more("mode:polling")
        assert watched.last_cause == cause
        await watched.said_more("mode:realtime", than=1)
        assert watched.said.count("sweep") == sweeps + 1
        # the poll came with the change of mode, not an interval later; the mode was announced once each way
        assert watched.said.count("polling") == 2
        assert [word for word in watched.said if word.startswith("mode")] == [
            "mode:realtime",
            "mode:polling",
            "mode:realtime",
        ]


async def test_a_mute_server_is_noticed_by_the_missing_acknowledgement(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        phoenix.acknowledges = False  # its websocket still answers pings
        await watched.polling()
        assert watched.last_cause == "ack_timeout"
        phoenix.acknowledges = True
        await watched.live()


async def test_an_error_for_an_acknowledgement_ends_the_incarnation(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        phoenix.ack_error = "no such channel"
        await watched.polling()
        assert watched.last_cause == "ack_refused"
        assert "no such channel" in (watched.feed.status.last_ending or "")
        phoenix.ack_error = None
        await watched.live()


async def test_polls_go_on_at_their_interval_while_unhealthy_and_stop_when_live(phoenix: Phoenix):
    phoenix.answers_joins = False
    async with ObservedFeed(phoenix.url) as watched:
        loop = asyncio.get_running_loop()
        await watched.said_more("polling", than=1)
        began, before = loop.time(), watched.said.count("polling")
        await watched.said_more("polling", than=before + 4)
        took = loop.time() - began
        assert (
            took < 5 * FAST.poll_interval + 0.5
        )  # never later than the interval, give or take a loaded machine
        phoenix.answers_joins = True
        await watched.live()
        at_live = watched.said.count("polling")
        await phoenix.until(lambda p: p.probes >= 3)  # three probe intervals later
        assert watched.said.count("polling") == at_live


async def test_a_refused_join_is_retried_until_it_is_granted(phoenix: Phoenix):
    phoenix.join_error = "ClientJoinRateLimitReached: too many"
    async with ObservedFeed(phoenix.url) as watched:
        await watched.until(lambda: watched.feed.status.incarnations > 3)
        assert watched.last_cause == "join_refused"
        assert watched.feed.mode == "polling"
        phoenix.join_error = None
        await watched.live()


async def test_a_join_that_is_never_answered_is_given_up_and_tried_anew(phoenix: Phoenix):
    phoenix.answers_joins = False
    async with ObservedFeed(phoenix.url) as watched:
        await phoenix.until(lambda p: p.handshakes > 2)
        assert watched.last_cause == "join_timeout"
        phoenix.answers_joins = True
        await watched.live()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_refused_handshake_is_retried_for_ever(phoenix: Phoenix, status: int):
    phoenix.handshake_status = status
    async with ObservedFeed(phoenix.url) as watched:
        await phoenix.until(lambda p: p.handshakes > 6)  # the client itself would have given up after five
        assert watched.feed.status.last_ending == f"refused: HTTP {status}"
        phoenix.handshake_status = None
        await watched.live()


async def test_bindings_that_the_server_confuses_end_the_incarnation(phoenix: Phoenix):
    async def confuse(channel: object, status: str, response: dict[str, list[object]]) -> None:
        if "postgres_changes" in response:
            response["postgres_changes"].reverse()
        await honest(channel, status, response)

    honest = phoenix._reply
    phoenix._reply = confuse  # type: ignore[method-assign, assignment]  # the script of this server
    async with ObservedFeed(phoenix.url) as watched:
        await watched.until(lambda: watched.feed.status.incarnations > 1)
        assert watched.last_cause == "join_refused"
        assert "mode:realtime" not in watched.said


async def test_the_judgement_finds_an_incarnation_that_only_looks_alive(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url, timings=replace(FAST, probe_interval=60)) as watched:
        await watched.live()
        await phoenix.joined[-1].change("jobs", "INSERT", {"id": "1", "queue": "default"})
        await watched.said_more("realtime")
        assert watched.feed._incarnation
        watched.feed._incarnation._heard_at -= 1000  # as if its probes had stopped long ago
        await watched.said_more("mode:polling")
        assert watched.last_cause == "stuck"
        await watched.said_more("mode:realtime", than=1)


async def test_a_process_too_slow_to_see_the_word_in_time_does_not_throw_it_away(phoenix: Phoenix):
    watched = ObservedFeed(phoenix.url)
    prompt = watched._on_wake

    def slow(reason: str) -> None:
        if reason == "sweep":
            time.sleep(FAST.join_timeout * 1.2)  # the word is here, and so is the deadline
        prompt(reason)

    watched.feed._wake_worker = slow  # type: ignore[assignment]  # any callable will do
    async with watched:
        await phoenix.until(lambda p: p.probes > 1)
        assert watched.feed.status.incarnations == 1


async def test_a_handler_that_blocks_the_loop_does_not_cost_a_healthy_connection(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        now = datetime.now(UTC)
        watched.feed.heartbeat_sent(now)
        row = {"id": watched.worker_id, "heartbeat_at": now.isoformat()}
        await phoenix.joined[-1].change("job_workers", "UPDATE", row)
        time.sleep(FAST.echo_timeout * 1.5)  # noqa: ASYNC251  the blocking handler: the echo lies unread
        await watched.said_more("row")
        for _ in range(5):
            seen = phoenix.probes
            await phoenix.until(lambda p: p.probes > seen)  # noqa: B023  used at once
            time.sleep(FAST.ack_timeout * 1.5)  # noqa: ASYNC251  now the acknowledgement does
        seen = phoenix.probes
        await phoenix.until(lambda p: p.probes > seen)
        assert "mode:polling" not in watched.said


# -- the echo -------------------------------------------------------------------------------------


async def test_a_heartbeat_that_comes_back_in_time_keeps_the_feed_live(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        for early in (False, True):
            now = datetime.now(UTC)
            row = {"id": watched.worker_id, "heartbeat_at": now.isoformat()}
            rows = len(watched.rows)
            if not early:
                watched.feed.heartbeat_sent(now)
            await phoenix.joined[-1].change("job_workers", "UPDATE", row)
            await watched.said_more("row", than=rows)
            if early:  # the change may overtake the answer of the RPC
                watched.feed.heartbeat_sent(now)
        seen = phoenix.probes
        await phoenix.until(lambda p: p.probes > seen + 3)  # longer than an echo may take
        assert "mode:polling" not in watched.said


async def test_a_heartbeat_that_never_comes_back_means_a_dead_change_path(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        watched.feed.heartbeat_sent(datetime.now(UTC))
        await watched.polling()
        assert watched.last_cause == "echo_timeout"


async def test_an_older_heartbeat_is_not_the_echo_that_is_awaited(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        now = datetime.now(UTC)
        watched.feed.heartbeat_sent(now)
        stale = (now - timedelta(seconds=30)).isoformat()
        await phoenix.joined[-1].change(
            "job_workers", "UPDATE", {"id": watched.worker_id, "heartbeat_at": stale}
        )
        await watched.polling()
        assert watched.last_cause == "echo_timeout"


async def test_after_a_missing_echo_only_an_echo_makes_the_feed_live_again(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url) as watched:
        await watched.live()
        watched.feed.heartbeat_sent(datetime.now(UTC))
        await watched.polling()
        joins, polls = len(phoenix.joined), watched.said.count("polling")
        await phoenix.until(lambda p: len(p.joined) > joins)
        await watched.said_more("polling", than=polls + 2)
        assert watched.feed.mode == "polling"  # subscribed, streaming, acknowledging, and not believed
        sweeps = watched.said.count("sweep")
        row = {"id": watched.worker_id, "heartbeat_at": datetime.now(UTC).isoformat()}
        await phoenix.joined[-1].change("job_workers", "UPDATE", row)
        await watched.live()
        assert watched.said.count("sweep") == sweeps + 1
        assert watched.said[-3:-1] == ["sweep", "mode:realtime"]


async def test_a_heartbeat_sent_while_not_live_is_not_waited_for(phoenix: Phoenix):
    phoenix.streams = False
    async with ObservedFeed(phoenix.url) as watched:
        await phoenix.until(lambda p: p.joined)
        watched.feed.heartbeat_sent(datetime.now(UTC))
        phoenix.streams = True
        await watched.live()
        await phoenix.until(lambda p: p.probes > 3)
        assert "mode:polling" not in watched.said


# -- what its users do wrong, and what it leaves behind ---------------------------------------------


async def test_an_exception_in_a_callback_does_not_deafen_the_feed(phoenix: Phoenix):
    # printing a traceback takes its time
    watched = ObservedFeed(phoenix.url, timings=replace(FAST, ack_timeout=10))
    calm = watched._on_wake
    angry = True

    def wake(reason: str) -> None:
        calm(reason)
        if angry:
            raise RuntimeError("the daemon's own mistake")

    watched.feed._wake_worker = wake  # type: ignore[assignment]  # any callable will do
    async with watched:
        await watched.live()
        await phoenix.joined[-1].change("jobs", "INSERT", {"id": "1", "queue": "default"})
        await watched.said_more("realtime")
        angry = False
        await phoenix.joined[-1].change("jobs", "INSERT", {"id": "2", "queue": "default"})
        await watched.said_more("realtime", than=1)
        assert "mode:polling" not in watched.said


async def test_fifty_incarnations_leave_no_task_and_no_socket(phoenix: Phoenix):
    endings = [close_normally, reset_the_socket, send_phx_error, send_phx_close, send_system_error]
    timings = replace(FAST, backoff_base=0.001, backoff_cap=0.001)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names are enough

    async with ObservedFeed(phoenix.url, timings=timings) as watched:
        await watched.live()
        tasks, files = {task.get_name() for task in asyncio.all_tasks()}, descriptors()
        count = len(asyncio.all_tasks())
        for number in range(50):
            await endings[number % len(endings)](phoenix)
            await watched.said_more("mode:realtime", than=number + 1)
        await phoenix.until(lambda p: len(p.sockets) == 1)
        assert watched.feed.status.incarnations == 51
        assert len(asyncio.all_tasks()) <= count, {t.get_name() for t in asyncio.all_tasks()} - tasks
        assert descriptors() <= files


async def test_stop_ends_everything_and_says_nothing_more(phoenix: Phoenix):
    before = asyncio.all_tasks()
    watched = ObservedFeed(phoenix.url)
    async with watched:
        await watched.live()
    said = list(watched.said)
    await phoenix.until(lambda p: not p.sockets)
    assert asyncio.all_tasks() - before <= phoenix_tasks(before)
    await watched.feed.stop()  # twice is once
    assert watched.said == said
    assert "mode:polling" not in said  # stopping is no failure


def phoenix_tasks(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    """Tasks of the scripted server's own."""
    return {task for task in asyncio.all_tasks() - before if not task.get_name().startswith("feed-")}


@pytest.mark.parametrize("stage", ["handshake", "join", "backoff"])
async def test_stop_is_prompt_at_every_stage_of_a_life(phoenix: Phoenix, stage: str):
    patient = replace(FAST, open_timeout=60, join_timeout=60, backoff_base=60, backoff_cap=60, refused_cap=60)
    phoenix.answers_joins = False
    if stage == "backoff":
        phoenix.handshake_status = 503
    async with ObservedFeed(phoenix.url, timings=patient) as watched:
        await phoenix.until(lambda p: p.handshakes and (stage != "join" or p.sockets))
        if stage == "backoff":
            await watched.until(lambda: watched.last_cause == "refused")
        async with asyncio.timeout(2):
            await watched.feed.stop()


async def test_the_polling_transport_never_connects(phoenix: Phoenix):
    async with ObservedFeed(phoenix.url, transport="polling") as watched:
        await watched.said_more("polling", than=3)
        watched.feed.heartbeat_sent(datetime.now(UTC))
        assert watched.feed.mode == "polling"
        assert phoenix.handshakes == 0
        assert set(watched.said) == {"polling"}


async def test_the_key_is_in_no_log_and_the_clients_noise_is_not_repeated(
    phoenix: Phoenix, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    phoenix.handshake_status = 503
    async with ObservedFeed(phoenix.url, key="a-very-secret-key") as watched:
        await watched.until(lambda: watched.feed.status.incarnations > 2)
        phoenix.handshake_status = None
        await watched.live()
        await phoenix.joined[-1].change("jobs", "INSERT", {"id": "1", "secret": "a-row"})
        await watched.said_more("realtime")
    assert "a-very-secret-key" not in caplog.text
    assert "a-row" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("realtime")]
