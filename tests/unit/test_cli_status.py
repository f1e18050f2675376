"""What `processor status` calls a problem."""

from typing import Any

import pytest

from processor.cli.status import problems

ALIVE = {"name": "web-1", "alive": True, "feed": "realtime", "transport": "postgres_changes"}
QUEUE = {"queue": "q", "paused": False, "due": 0, "live_workers": 1, "oldest_due_seconds": None}


def said(queue: dict[str, Any], *workers: dict[str, Any]) -> list[tuple[str, str]]:
    found = problems([QUEUE | queue], [ALIVE | worker for worker in workers], [], wait=60)
    return [(problem["what"], problem["why"]) for problem in found]


@pytest.mark.parametrize(
    ("queue", "worker", "expected"),
    [
        ({}, {}, []),
        ({"due": 3, "oldest_due_seconds": 59.0}, {}, []),
        ({"due": 3, "oldest_due_seconds": 61.0}, {}, [("queue", "3 due, the oldest for 61 s")]),
        ({"due": 3, "oldest_due_seconds": 999.0, "paused": True, "live_workers": 0}, {}, []),
        (
            {"due": 1, "paused": None, "live_workers": 0},
            {},
            [("queue", "1 due, and no live worker serves it")],
        ),
        ({}, {"feed": "polling"}, [("worker", "it polls: Realtime is not healthy for it")]),
        ({}, {"feed": "polling", "transport": "polling"}, []),
        ({}, {"alive": False, "feed": "polling"}, [("fleet", "none is alive")]),
    ],
)
def test_a_problem_is_what_an_operator_should_look_at(
    queue: dict[str, Any], worker: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert said(queue, worker) == expected


def test_a_schedule_that_does_not_run_is_one() -> None:
    rows = [
        {"schedule": name, "state": state, "why": None if state == "ok" else f"because {name}"}
        for name, state in (("a", "ok"), ("b", "paused"), ("c", "problem"), ("d", "overdue"))
    ]
    assert [(p["name"], p["why"]) for p in problems([], [], rows, wait=60)] == [
        ("c", "because c"),
        ("d", "because d"),
    ]
