"""What waits to be told, and what is not told any more."""

import math
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from processor.events.lifecycle import (
    JobFinished,
    JobLost,
    JobProgress,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobStarted,
)
from processor.mqtt.backlog import MOST_STATES, Backlog, Batch, End
from processor.mqtt.messages import Message


def about(job_id=None, attempt=1):
    return {"job_id": job_id or uuid4(), "queue": "q", "kind": "k", "attempt": attempt}


def backlog(**given):
    doubts = []
    made = Backlog(given.get("holds", lambda: True), lambda: doubts.append(1))
    made.doubts = doubts
    return made


def drained(made):
    found = []
    while (one := made.next()) is not None:
        found.append(one)
    return found


def test_an_end_takes_the_place_of_all_that_was_to_be_told_of_its_job():
    made, job = backlog(), about()
    made.hear(JobStarted(**job))
    made.hear(JobProgress(**job, progress=0.5))
    end = JobFinished(**job, ran=1, status="completed")
    made.hear(end)
    [told] = drained(made)
    assert isinstance(told, End)
    assert told.event is end


def test_of_progress_only_the_newest_is_told():
    made, job = backlog(), about()
    made.hear(JobStarted(**job))
    for share in (0.1, 0.2, 0.3):
        made.hear(JobProgress(**job, progress=share))
    started, progress = drained(made)
    assert isinstance(started, JobStarted)
    assert progress.progress == 0.3


def test_what_comes_back_after_the_end_of_its_job_is_not_told():
    made, job = backlog(), about()
    started = JobStarted(**job)
    made.hear(started)
    assert made.next() is started
    made.hear(JobFinished(**job, ran=1, status="failed"))
    made.back([started])
    assert [type(one) for one in drained(made)] == [End]


def test_what_comes_back_while_its_job_runs_is_told_again():
    made, job = backlog(), about()
    started = JobStarted(**job)
    made.hear(started)
    made.next()
    made.back([started])
    assert drained(made) == [started]


def test_ends_that_come_back_are_told_first_and_in_their_order():
    made = backlog()
    for _ in range(3):
        made.hear(JobFinished(**about(), ran=1, status="completed"))
    first, second = made.next(), made.next()
    made.back([first, second])
    assert drained(made)[:2] == [first, second]


def test_a_state_is_not_told_when_the_job_may_be_anothers():
    now = datetime.now(UTC)
    made = backlog()
    made.hear(JobRetried(**about(), ran=1, run_at=now + timedelta(seconds=60), error_code="X"))
    assert len(drained(made)) == 1
    for stale in (
        JobRetried(**about(), ran=1, run_at=now, error_code="X"),
        JobRetried(**about(), ran=1, run_at=now + timedelta(hours=1), at=now - timedelta(seconds=60)),
        JobSnoozed(**about(), ran=1, run_at=now + timedelta(days=9), waiting=True),
    ):
        made.hear(stale)
        assert drained(made) == [], stale
    assert made.dropped["status"] == 3


def test_without_the_lease_no_state_is_told_but_ends_are():
    made, job = backlog(holds=lambda: False), about()
    made.hear(JobStarted(**about()))
    made.hear(JobFinished(**job, ran=1, status="completed"))
    assert [type(one) for one in drained(made)] == [End]


def test_a_job_that_went_or_was_lost_is_in_doubt_and_not_told():
    made = backlog()
    for event in (JobReleased, JobLost):
        job = about()
        made.hear(JobStarted(**job))
        more = {"how": "stale"} if event is JobLost else {}
        assert not made.hear(event(**job, ran=1, **more))
    assert drained(made) == []
    assert len(made.doubts) == 2


def test_states_are_bounded_and_ends_are_not():
    made, later = backlog(), datetime.now(UTC) + timedelta(hours=1)
    for _ in range(MOST_STATES + 5):
        made.hear(JobRetried(**about(), ran=1, run_at=later))
        made.hear(JobFinished(**about(), ran=1, status="completed"))
    assert made.dropped["status"] == 5
    assert len(made.ends) == MOST_STATES + 5


def test_the_oldest_end_counts_those_on_their_way():
    made = backlog()
    assert made.oldest([]) == math.inf
    made.epoch = 3
    made.hear(JobFinished(**about(), ran=1, status="completed"))
    made.epoch = 4
    sent = made.next()
    made.hear(JobFinished(**about(), ran=1, status="completed"))
    assert made.oldest([sent]) == 3
    assert made.oldest([]) == 4


async def test_a_batch_is_done_when_all_of_it_is_taken_and_fails_with_the_connection():
    messages = [Message(f"t/{n}", b"{}", "status") for n in range(2)]
    taken, lost = Batch(messages), Batch(messages)
    for told in taken.told:
        told.batch.taken()
    assert await taken.done is True
    made = backlog()
    lost.told[0].batch.taken()
    made.back([lost.told[1]])
    assert await lost.done is False
