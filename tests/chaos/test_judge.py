"""The judge finds what is wrong: without this, a verdict of "nothing" would say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.chaos.creator import OWNERS, Order
from tests.chaos.judge import Evidence, judge
from tests.chaos.levels import Level
from tests.chaos.witness import Attempt
from tests.chaos.world import Freeze

ANNA = OWNERS[0]


def job(job_id: str, kind: str, **row: object) -> dict[str, object]:
    return {
        "id": job_id,
        "kind": kind,
        "status": "completed",
        "result": None,
        "error_code": None,
        "error_message": None,
        "attempt": 1,
        "owner_id": ANNA,
        "parent_id": None,
        "children_open": 0,
        "credits_captured": 0,
        "n": "7",
        **row,
    }


def good() -> Evidence:
    """Give what there is after a run in which all went well."""
    return Evidence(
        orders={
            "p": Order("p", "priced", {"n": 7}, [], ANNA),
            "i": Order("i", "items", {"n": 8}, ["a", "b"], ANNA),
            "c": Order("c", "long", {"n": 9}, [], ANNA, cancelled=True),
            "h": Order("h", "hopeless", {"n": 10}, [], ANNA),
            "m": Order("m", "parent", {"n": 20}, [], ANNA),
            "s": Order("s", "checkpoints", {"n": 30, "steps": 2}, [], ANNA),
        },
        jobs={
            "p": job("p", "priced", result={"n": 7}, credits_captured=5, attempt=2),
            "i": job("i", "items", result={"a": "A", "b": "B"}, credits_captured=4),
            "c": job("c", "long", status="cancelled", error_code="CANCELLED"),
            "h": job("h", "hopeless", status="failed", error_code="DISCARDED"),
            "s": job("s", "checkpoints", result={"n": 30}, credits_captured=2, attempt=2),
            "m": job("m", "parent", result={"n": 20 + 21 + 22}, credits_captured=1),
            **{
                f"m{n}": job(
                    f"m{n}", "part", parent_id="m", result={"n": 20 + n}, credits_captured=1, n=f"{20 + n}"
                )
                for n in range(3)
            },
        },
        items={"i": {"a": "completed", "b": "completed"}},
        ends=[
            ("p", "completed"),
            ("i", "completed"),
            ("c", "cancelled"),
            ("h", "failed"),
            ("m", "completed"),
            ("s", "completed"),
        ],
        items_done=[("i", "a"), ("i", "b")],
        checkpoints=[("s", "step 0", 1), ("s", "step 1", 2)],
        accounts={ANNA: {"spent": 15, "held": 0, "available": 85, "issued": 100}},
        attempts=[
            Attempt("p", 1, 11, began=1.0, ended=2.0),
            Attempt("p", 2, 12, began=2.0, ended=4.0, how="returned", did=[(3.0, "work")]),
            Attempt("i", 1, 11, began=1.0, ended=3.0, how="returned", did=[(1.5, "a"), (2.0, "b")]),
            # its first attempt took step 1, too, and was lost before that was kept
            Attempt("s", 1, 11, began=1.0, ended=2.0, did=[(1.2, "step 0"), (1.5, "step 1")]),
            Attempt("s", 2, 12, began=2.0, ended=3.0, how="returned", did=[(2.5, "step 1")]),
            *(
                Attempt(name, 1, 12, began=1.0, ended=2.0, how="returned", did=[(1.5, "work")])
                for name in ("m", "m0", "m1", "m2")
            ),
        ],
    )


def test_after_a_good_run_nothing_is_wrong():
    assert judge(good()).lines() == []


def gone(it: Evidence) -> None:
    del it.jobs["h"]


def still_pending(it: Evidence) -> None:
    it.jobs["h"]["status"] = "pending"


def still_processing(it: Evidence) -> None:
    it.jobs["c"]["status"] = "processing"


def another_result(it: Evidence) -> None:
    it.jobs["p"]["result"] = {"n": 8}


def failed_without_a_reason(it: Evidence) -> None:
    it.jobs["i"] |= {"status": "failed", "error_code": "HANDLER_CRASHED"}


def cancelled_by_nobody(it: Evidence) -> None:
    it.jobs["p"] |= {"status": "cancelled", "error_code": "CANCELLED", "result": None, "credits_captured": 0}
    it.accounts[ANNA] |= {"spent": 10, "available": 90}


def a_parent_that_missed_a_child(it: Evidence) -> None:
    it.jobs["m"]["result"] = {"n": 41}


def a_child_counted_as_open(it: Evidence) -> None:
    it.jobs["m"]["children_open"] = 1


def completed_without_anything_done(it: Evidence) -> None:
    it.attempts[1].did.clear()


def an_item_that_nobody_did(it: Evidence) -> None:
    del it.attempts[2].did[0]


def crashed_at_once(it: Evidence) -> None:
    it.jobs["h"] |= {"error_code": "WORKER_CRASHED", "attempt": 1}


def ended_twice(it: Evidence) -> None:
    it.ends.append(("p", "completed"))


def an_item_completed_twice(it: Evidence) -> None:
    it.items_done.append(("i", "a"))


def a_step_taken_again(it: Evidence) -> None:
    it.checkpoints[1] = ("s", "step 1", 1)


def two_jobs_for_one_key(it: Evidence) -> None:
    it.doubled_keys.append("key")


def two_at_once(it: Evidence) -> None:
    it.attempts[0].ended = 2.5


def one_that_never_ended(it: Evidence) -> None:
    it.attempts[0].ended = None


def frozen_and_then_acting(it: Evidence) -> None:
    it.freezes.append(Freeze(11, began=1.5, ended=3.5))
    it.attempts[0].ended = 3.6
    it.attempts[0].did.append((3.55, "work"))


def frozen_too_early(it: Evidence) -> None:
    it.freezes.append(Freeze(11, began=1.2, ended=1.8))
    it.attempts[0].ended = 2.5


def another_process_frozen(it: Evidence) -> None:
    it.freezes.append(Freeze(99, began=1.5, ended=3.5))
    it.attempts[0].ended = 3.6


def books_that_are_wrong(it: Evidence) -> None:
    it.faulty_books.append("account.held is not the sum of its open holds")


def a_wrong_price(it: Evidence) -> None:
    it.jobs["p"]["credits_captured"] = 10


def spent_what_nothing_cost(it: Evidence) -> None:
    it.accounts[ANNA] |= {"spent": 16, "available": 84}


def still_held(it: Evidence) -> None:
    it.accounts[ANNA] |= {"held": 5, "available": 80}


def credits_from_nowhere(it: Evidence) -> None:
    it.accounts[ANNA]["available"] = 86


def a_leak(it: Evidence) -> None:
    it.leaks.append("daemon 0: 40 descriptors of socket, 9 before")


@pytest.mark.parametrize(
    ("tamper", "counter"),
    [
        (gone, "lost"),
        (still_pending, "lost"),
        (still_processing, "lost"),
        (another_result, "lost"),
        (failed_without_a_reason, "lost"),
        (cancelled_by_nobody, "lost"),
        (a_parent_that_missed_a_child, "lost"),
        (a_child_counted_as_open, "lost"),
        (completed_without_anything_done, "lost"),
        (an_item_that_nobody_did, "lost"),
        (crashed_at_once, "lost"),
        (ended_twice, "doubled"),
        (an_item_completed_twice, "doubled"),
        (a_step_taken_again, "doubled"),
        (two_jobs_for_one_key, "doubled"),
        (two_at_once, "overlaps"),
        (one_that_never_ended, "overlaps"),
        (frozen_and_then_acting, "overlaps"),
        (frozen_too_early, "overlaps"),
        (another_process_frozen, "overlaps"),
        (books_that_are_wrong, "credit_errors"),
        (a_wrong_price, "credit_errors"),
        (spent_what_nothing_cost, "credit_errors"),
        (still_held, "credit_errors"),
        (credits_from_nowhere, "credit_errors"),
        (a_leak, "leaks"),
    ],
)
def test_what_is_wrong_is_counted_where_it_belongs(tamper: Callable[[Evidence], None], counter: str):
    evidence = good()
    tamper(evidence)
    verdict = judge(evidence)
    assert verdict.counts()[counter] >= 1, verdict.lines()


def test_a_frozen_process_is_forgiven_what_it_could_not_know():
    evidence = good()
    evidence.freezes.append(Freeze(11, began=1.5, ended=3.5))
    evidence.attempts[0].ended = 3.6
    assert judge(evidence).lines() == []


def test_a_job_that_lost_two_workers_may_have_failed_for_it():
    evidence = good()
    evidence.jobs["h"] |= {"error_code": "WORKER_CRASHED", "attempt": 3}
    assert judge(evidence).lines() == []


def test_the_levels_of_a_process_tell_descriptors_tasks_threads_children_and_memory():
    def level(
        sockets: int = 5, pipes: int = 3, threads: int = 2, children: int = 0, mb: float = 60, tasks: int = 4
    ) -> Level:
        return Level(
            Counter(socket=sockets, pipe=pipes), threads, children, mb, Counter(claims=1, feed=tasks)
        )

    before = level()
    assert level(sockets=11, threads=4, children=2, mb=85, tasks=6).above(before) == []
    assert len(level(tasks=7).above(before)) == 1
    assert len(level(sockets=12).above(before)) == 1
    assert len(level(pipes=4).above(before)) == 1
    assert len(level(threads=5).above(before)) == 1
    assert len(level(children=3).above(before)) == 1
    assert len(level(mb=95).above(before)) == 1
