"""What a user may declare with the clock, what is refused with words, and when it comes."""

from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel

from processor import JobContext, Processor, UsageError
from processor.answers import DueSchedule, SchedulesAnswer
from processor.cron import Cron
from processor.job import Job
from processor.schedules import MAX_TICKS, plan

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Period(BaseModel):
    days: int


def refused(*words: str):
    return pytest.raises(UsageError, match=".*".join(words))


# declarations


def test_one_decorator_declares_the_handler_and_its_schedule() -> None:
    app = Processor()

    @app.cron("0 3 * * *", timezone="Europe/Berlin", queue="reports", timeout=60, priority=5)
    async def nightly_report(job: JobContext) -> None:
        """Count what was sold."""

    handler = app.handlers["nightly_report"]
    assert (handler.function, handler.queue, handler.timeout) == (nightly_report, "reports", 60)
    assert handler.description == "Count what was sold."
    assert handler.public is False
    assert app.schedules["nightly_report"].declaration() == {
        "name": "nightly_report",
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "kind": "nightly_report",
        "payload": {},
        "items": None,
        "priority": 5,
        "catch_up": "last",
    }


def test_a_declared_kind_runs_by_several_schedules_with_payloads_of_their_own() -> None:
    app = Processor()

    @app.job("digest")
    async def digest(job: JobContext[Period]) -> None: ...

    app.schedule("daily", "0 8 * * *", kind="digest", payload={"days": 1}).schedule(
        "weekly", "0 8 * * MON", kind="digest", payload=Period(days=7), items=("a", "b"), catch_up="all"
    )
    assert [s.payload for s in app.schedules.values()] == [{"days": 1}, {"days": 7}]
    assert app.schedules["weekly"].declaration()["items"] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"expression": "61 3 * * *"}, ["Schedule 'tidy'", "Bad minute", "Five fields"]),
        ({"expression": "0 3 * *"}, ["not a cron expression", "Five fields"]),
        ({"expression": "0 0 3 * * *"}, ["not a cron expression", "Five fields"]),
        ({"expression": "@daily"}, ["not a cron expression", "0 3"]),
        ({"expression": "0 0 30 2 *"}, ["Bad day-of-month"]),
        ({"timezone": "Europe/Berlim"}, ["no time zone 'Europe/Berlim'", "Did you mean 'Europe/Berlin'"]),
        ({"timezone": "CEST+2"}, ["no time zone"]),
        ({"timezone": "../../etc/passwd"}, ["no time zone"]),
        ({"timezone": "Europe"}, ["no time zone"]),
        ({"timezone": None}, ["no time zone"]),
        ({"catch_up": "some"}, ["catch_up='some'", "'none', 'last' or 'all'"]),
        ({"priority": 1001}, ["priority=1001", "1000"]),
        ({"kind": "two words"}, ["two words", "Did you mean 'two_words'"]),
        ({"kind": "x" * 91}, ["90 characters"]),
        ({"items": "de"}, ["give a list", "'de'"]),
        ({"items": [float("nan")]}, ["Schedule 'tidy'", "not JSON"]),
        ({"payload": {"days": "many"}}, ["Schedule 'tidy'", "takes another payload", "days"]),
        ({"payload": {"days": object()}}, ["cannot be stored", "not JSON"]),
        ({}, ["takes another payload: days: Field required"]),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_with_words(arguments: dict, words: list[str]) -> None:
    app = Processor()
    expression = arguments.pop("expression", "0 3 * * *")
    with refused(*words):

        @app.cron(expression, **arguments)
        async def tidy(job: JobContext[Period]) -> None: ...

    assert app.schedules == {}


def test_a_decorator_without_parentheses_is_explained() -> None:
    with refused("Write @app.cron"):
        Processor().cron(print)  # type: ignore[arg-type] - that is the mistake


def test_a_schedule_needs_a_handler_that_is_declared_before_it() -> None:
    app = Processor()

    @app.job("digest")
    async def digest(job: JobContext) -> None: ...

    with refused("no handler for 'digets'", "Did you mean 'digest'", "Declare the handler first"):
        app.schedule("daily", "0 8 * * *", kind="digets")


def test_two_schedules_of_one_name_are_refused() -> None:
    app = Processor()

    @app.cron("0 3 * * *")
    async def digest(job: JobContext) -> None: ...

    with refused("Two schedules 'digest'"):
        app.schedule("digest", "0 8 * * *", kind="digest")


# when it comes


def ticks(expression: str, begin: datetime, count: int, timezone: str = "UTC") -> list[str]:
    cron, moment, local = Cron(expression, timezone), begin, []
    for _ in range(count):
        moment = cron.after(moment)
        local.append(moment.astimezone(ZoneInfo(timezone)).strftime("%d %H:%M%z"))
    return local


SPRING = datetime(2026, 3, 28, 12, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 24, 12, tzinfo=UTC)


def test_a_time_that_spring_leaves_out_comes_right_after_the_gap() -> None:
    assert ticks("30 2 * * *", SPRING, 2, "Europe/Berlin") == ["29 03:00+0200", "30 02:30+0200"]


def test_two_times_that_meet_after_the_gap_come_once() -> None:
    assert ticks("0 2,3 * * *", SPRING, 3, "Europe/Berlin") == [
        "29 03:00+0200",
        "30 02:00+0200",
        "30 03:00+0200",
    ]


def test_a_time_that_autumn_has_twice_comes_the_first_time() -> None:
    assert ticks("30 2 * * *", AUTUMN, 2, "Europe/Berlin") == ["25 02:30+0200", "26 02:30+0100"]


def test_what_runs_every_hour_or_more_often_goes_by_real_time() -> None:
    hours = ticks("0 * * * *", datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 4, "Europe/Berlin")
    assert hours == ["25 02:00+0200", "25 02:00+0100", "25 03:00+0100", "25 04:00+0100"]
    hours = ticks("0 * * * *", datetime(2026, 3, 28, 23, 30, tzinfo=UTC), 3, "Europe/Berlin")
    assert hours == ["29 01:00+0100", "29 03:00+0200", "29 04:00+0200"]


def test_half_an_hour_of_summer_time_is_right_too() -> None:
    zone = "Australia/Lord_Howe"
    assert ticks("15 2 * * *", datetime(2026, 10, 3, 0, tzinfo=UTC), 2, zone) == [
        "04 02:30+1100",
        "05 02:15+1100",
    ]
    assert ticks("45 1 * * *", datetime(2026, 4, 4, 0, tzinfo=UTC), 2, zone) == [
        "05 01:45+1100",
        "06 01:45+1030",
    ]


@pytest.mark.parametrize("minutes", range(0, 60, 7))
def test_the_next_time_is_never_in_the_past_not_even_in_the_second_of_two_equal_hours(minutes: int) -> None:
    second = datetime(2026, 10, 25, 1, tzinfo=UTC) + timedelta(minutes=minutes)  # 02:00+0100 and on
    for expression in ("30 2 * * *", "0,30 2,3 * * *", "*/10 * * * *"):
        assert Cron(expression, "Europe/Berlin").after(second) > second
    assert Cron("30 2 * * *", "Europe/Berlin").after(second) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_day_that_is_rare_is_found_and_one_that_never_comes_is_said_so() -> None:
    assert ticks("0 0 29 2 *", NOW, 2) == ["29 00:00+0000"] * 2
    with refused("never comes"):
        Cron("0 0 LW * */6")  # the last working day of a month, on a weekend


def test_days_and_weekdays_are_alternatives_as_in_cron() -> None:
    assert ticks("0 0 1 * MON", NOW, 3) == ["23 00:00+0000", "30 00:00+0000", "01 00:00+0000"]


# what a call carries


def due(name: str, cron: str, tick: datetime | None, after: datetime | None = None, zone: str = "UTC"):
    return DueSchedule(name=name, cron=cron, timezone=zone, tick=tick, after=after or tick or NOW)


def answer(*schedules: DueSchedule) -> SchedulesAnswer:
    return SchedulesAnswer(now=NOW, due=schedules, created=(), moved=0, problems={}, next_at=None)


def test_steps_lead_from_tick_to_tick_until_now() -> None:
    start = NOW - timedelta(hours=2)
    steps = plan(answer(due("hourly", "0 * * * *", start)))
    assert [(step.tick, step.next) for step in steps] == [
        (start, start + timedelta(hours=1)),
        (start + timedelta(hours=1), NOW),
        (NOW, NOW + timedelta(hours=1)),
    ]


def test_steps_leave_out_what_the_database_does_not_want() -> None:
    steps = plan(answer(due("hourly", "0 * * * *", NOW - timedelta(days=9), NOW - timedelta(minutes=1))))
    assert [step.next for step in steps] == [NOW, NOW + timedelta(hours=1)]


def test_what_cannot_be_computed_is_a_problem_of_its_own() -> None:
    steps = plan(
        answer(
            due("bad", "61 * * * *", None),
            due("nowhere", "0 * * * *", NOW, zone="Mars/Olympus"),
            due("good", "0 3 * * *", None),
        )
    )
    assert [step.name for step in steps] == ["bad", "nowhere", "good"]
    assert "Bad minute" in (steps[0].problem or "")
    assert "no time zone" in (steps[1].problem or "")
    assert steps[1].next is None
    assert steps[2].problem is None


def test_a_call_carries_a_bounded_number_of_steps() -> None:
    long_ago = NOW - timedelta(days=30)
    steps = plan(answer(*(due(name, "* * * * *", long_ago) for name in "ab")))
    assert len(steps) == MAX_TICKS
    assert steps[-1].next == long_ago + timedelta(minutes=MAX_TICKS)


# what the handler sees


def context(*tags: str) -> JobContext:
    job = Job(
        id=UUID(int=1), queue="q", kind="k", payload={}, attempt=1, run_at=NOW, created_at=NOW, tags=tags
    )
    return JobContext(job, {}, None, logger=None)  # type: ignore[arg-type] - nothing is reported


def test_a_handler_knows_for_which_time_its_job_is() -> None:
    assert context("schedule:x", "tick:2026-11-22T12:00:00Z").tick == NOW


@pytest.mark.parametrize("tags", [(), ("schedule:x",), ("tick:",), ("tick:yesterday",)])
def test_a_job_that_no_schedule_made_has_no_tick(tags: tuple[str, ...]) -> None:
    assert context(*tags).tick is None
