"""What is counted, and that no label grows without end."""

import time
from uuid import UUID

import pytest
from prometheus_client import generate_latest

from processor import Processor
from processor.answers import MetricsAnswer
from processor.assignment import assign
from processor.config import Settings
from processor.errors import ApiUnreachable, ErrorCode
from processor.events.bus import Bus
from processor.events.lifecycle import (
    About,
    AttemptEnded,
    FeedModeChanged,
    ItemFinished,
    JobClaimed,
    JobFinished,
    JobRetried,
)
from processor.figures import Figures
from processor.metrics import MOST_CODES, Metrics, measure

app = Processor()


@app.job("known", queue="mine")
async def known(job):
    pass


async def nothing() -> MetricsAnswer:
    return MetricsAnswer(figures=None, again_in_seconds=30)


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def metrics(bus: Bus) -> Metrics:
    metrics = Metrics(assign(app), 90.0, Figures(nothing))
    metrics.listen(bus)
    return metrics


def about(queue: str = "mine", kind: str = "known") -> About:
    return {
        "job_id": UUID(int=1),
        "queue": queue,
        "kind": kind,
        "attempt": 1,
        "owner_id": None,
        "trace_context": None,
    }


def series(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_names_that_nobody_declared_share_one_series(metrics: Metrics, bus: Bus) -> None:
    for number in range(1000):
        strange = about(f"q{number}", f"k{number}")
        bus.publish(JobClaimed(**strange, waited=0.1))
        bus.publish(JobFinished(**strange, ran=0.1, status="failed", error_code=f"CODE_{number}"))
        bus.publish(ItemFinished(**strange, key="a", status="failed"))
    bus.publish(JobClaimed(**about(), waited=0.1))
    assert series(metrics, "processor_jobs_claimed_total") == {
        ("other", "other"): 1000,
        ("mine", "known"): 1,
    }
    assert series(metrics, "processor_jobs_finished_total") == {("other", "other", "failed"): 1000}
    codes = series(metrics, "processor_job_errors_total")
    assert len(codes) == MOST_CODES + 1
    assert codes["other", "other"] == 1000 - MOST_CODES
    assert len(generate_latest(metrics.registry)) < 40_000


def test_our_own_codes_are_told_apart_however_many_others_came_before(metrics: Metrics, bus: Bus) -> None:
    for number in range(100):
        bus.publish(JobFinished(**about(), ran=0.1, status="failed", error_code=f"CODE_{number}"))
    for code in ErrorCode:
        bus.publish(JobRetried(**about(), ran=0.1, error_code=code))
    codes = series(metrics, "processor_job_errors_total")
    assert {("known", str(code)) for code in ErrorCode} <= codes.keys()


def test_being_cancelled_is_no_error(metrics: Metrics, bus: Bus) -> None:
    ended: list[AttemptEnded] = []
    bus.listen("test", ended.append, AttemptEnded)
    bus.publish(JobFinished(**about(), ran=0.1, status="cancelled", error_code="CANCELLED"))
    assert [event.outcome for event in ended] == ["cancelled"]
    assert series(metrics, "processor_job_errors_total") == {}
    assert series(metrics, "processor_jobs_finished_total") == {("mine", "known", "cancelled"): 1}


def test_what_subscribers_were_too_slow_for_is_counted(metrics: Metrics) -> None:
    metrics.event_dropped("slow")
    metrics.event_dropped("slow")
    assert series(metrics, "processor_events_dropped_total") == {("slow",): 2}


def test_only_what_a_sweep_alone_found_in_live_mode_was_missed(metrics: Metrics, bus: Bus) -> None:
    def claim(*wakes: str, found: int = 1) -> float:
        metrics.claim_answered(frozenset(wakes), found)
        return series(metrics, "processor_feed_missed_jobs_total")[()]

    assert claim("sweep") == 0  # it polls
    bus.publish(FeedModeChanged(mode="realtime"))
    assert claim("sweep") == 0  # what came while there was no connection
    assert claim("realtime") == 0
    assert claim("sweep", "realtime") == 0  # the event came, too
    assert claim("sweep", "next") == 0  # there is a backlog
    assert claim("sweep", found=0) == 0
    assert claim("sweep", found=2) == 2
    bus.publish(FeedModeChanged(mode="polling"))
    bus.publish(FeedModeChanged(mode="realtime"))
    assert claim("sweep") == 2


def test_the_time_in_each_mode_adds_up_to_the_life_of_the_process(bus: Bus, monkeypatch) -> None:
    began = time.monotonic()
    moment = 0.0
    metrics = Metrics(assign(app), 90.0, Figures(nothing))
    metrics.listen(bus)
    monkeypatch.setattr(time, "monotonic", lambda: began + moment)
    moment = 10.0
    bus.publish(FeedModeChanged(mode="realtime"))
    moment = 17.0
    spent = series(metrics, "processor_feed_mode_seconds_total")
    assert spent[("polling",)] == pytest.approx(10, abs=0.1)
    assert spent[("realtime",)] == pytest.approx(7, abs=0.1)
    assert series(metrics, "processor_feed_mode") == {("realtime",): 1, ("polling",): 0}


def test_nobody_counts_where_nobody_can_look() -> None:
    known = {"url": "https://x.supabase.co", "key": "sb_secret_x"}
    assert measure(Settings(**known), assign(app), Figures(nothing)) is None
    assert measure(Settings(**known, http_port=0, metrics=False), assign(app), Figures(nothing)) is None
    assert measure(Settings(**known, http_port=0), assign(app), Figures(nothing)) is not None


TOLD = {
    "queues": [
        {
            "queue": "mine",
            "paused": True,
            "due": 3,
            "scheduled": 2,
            "waiting": 1,
            "processing": 4,
            "oldest_seconds": 5.5,
        }
    ],
    "stuck": {"no_worker": 3},
    "workers": {"live": 1},
    "webhooks": {"failing": 2, "given_up": 0},
    "polling": 1,
    "created": [{"queue": "mine", "kind": "known", "total": 7}],
    "credits": {"grant": 100, "reserve": 20, "capture": 5, "release": 5},
    "credit_faults": 0,
    "seconds": 0.01,
}


async def test_figures_are_read_when_somebody_looks_and_not_again_at_once() -> None:
    asked = 0

    async def read() -> MetricsAnswer:
        nonlocal asked
        asked += 1
        return MetricsAnswer.model_validate({"figures": TOLD, "again_in_seconds": 10})

    metrics = Metrics(assign(app), 90.0, Figures(read))
    assert asked == 0
    for _ in range(3):
        await metrics.exposition("")
    assert asked == 1
    assert series(metrics, "processor_database_queue_jobs")["mine", "due"] == 3
    assert series(metrics, "processor_database_oldest_pending_seconds") == {("mine",): 5.5}
    assert series(metrics, "processor_database_webhooks") == {("failing",): 2, ("given_up",): 0}
    assert series(metrics, "processor_database_jobs_created_total") == {("mine", "known"): 7}
    assert series(metrics, "processor_database_credits_held") == {(): 10}
    assert series(metrics, "processor_database_credits_total")[("grant",)] == 100


async def test_figures_that_cannot_be_read_are_left_out(monkeypatch) -> None:
    answers: list[MetricsAnswer | Exception] = [
        MetricsAnswer.model_validate({"figures": TOLD, "again_in_seconds": 0}),
        ApiUnreachable("away"),
        MetricsAnswer.model_validate({"figures": TOLD, "again_in_seconds": 0}),
    ]

    async def read() -> MetricsAnswer:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("processor.figures._AGAIN", 0.0)
    metrics = Metrics(assign(app), 90.0, Figures(read))
    for up in ({(): 1}, {}, {(): 1}):
        await metrics.exposition("")
        assert series(metrics, "processor_database_up") == up
