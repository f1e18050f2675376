"""The line between a plain function and the loop: what stops a call, and how errors cross processes."""

import threading

import httpx
import pytest

from processor import Discard, JobError, JobStopped, Retry, Snooze
from processor.calls import wire
from processor.calls.line import Answer, Gate, Line, Message, attempt
from processor.hold import Hold, clock


class Stops:
    """A gate, and what was sent through the line behind it; calls are answered with "done"."""

    def __init__(self) -> None:
        self.hold = Hold()
        self.hold.extend(clock() + 60)
        self.stopped = False
        self.sent: list[Message] = []
        self.line = Line(self.send, Gate(stopped=lambda: self.stopped, lost=lambda: not self.hold.holds))

    def send(self, message: Message) -> None:
        self.sent.append(message)
        self.line.deliver(("answer", message[1], Answer("done")))


def test_nothing_is_sent_once_the_lease_is_over_by_the_clock() -> None:
    stops = Stops()
    assert stops.line.call("progress", 1) == "done"
    stops.hold.extend(clock())
    for cleaning_up in (False, True, True):
        with pytest.raises(JobStopped):
            stops.line.call("log", cleaning_up=cleaning_up)
    assert len(stops.sent) == 1


def test_a_call_that_outlasts_the_lease_does_not_return() -> None:
    stops = Stops()
    stops.line = Line(
        lambda message: (stops.hold.extend(clock()), stops.send(message))[0],
        Gate(stopped=lambda: False, lost=lambda: not stops.hold.holds),
    )
    with pytest.raises(JobStopped):
        stops.line.call("spawn_all", [])
    assert len(stops.sent) == 1


def test_a_thread_that_was_told_to_stop_may_log_and_another_is_told_first() -> None:
    stops = Stops()
    stops.stopped = True

    def told() -> list[bool]:
        """Return for two log lines and a report of progress whether they passed."""
        return [
            attempt(stops.line.call, name, cleaning_up=name == "log").error is None
            for name in ("log", "log", "progress")
        ]

    assert told() == [False, True, False]
    answers: list[list[bool]] = []
    thread = threading.Thread(target=lambda: answers.append(told()))
    thread.start()
    thread.join()
    assert answers == [[False, True, False]]


def test_what_has_stopped_a_handler_is_no_exception_that_it_might_catch() -> None:
    assert not issubclass(JobStopped, Exception)


def crossed(error: BaseException) -> BaseException:
    frame = wire.pack(("end", Answer(error=error)))
    arrived = wire.unpack(frame[wire.HEADER.size :])[1].error
    assert arrived is not None
    return arrived


class FussyError(Exception):
    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("fussy")


def fuss() -> None:
    raise FussyError(seconds=1)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "has"),
    [
        (Snooze(5, "a nap"), {"delay": 5.0, "reason": "a nap"}),
        (Retry("again", delay=3), {"delay": 3.0, "reason": "again"}),
        (Discard("no"), {"reason": "no"}),
        (JobError("x", code="ODD", retryable=False, retry_after=2), {"code": "ODD", "retryable": False}),
        (FussyError(seconds=3), {"seconds": 3, "args": ("fussy",)}),
        (FileNotFoundError(2, "gone", "a.txt"), {"errno": 2, "filename": "a.txt"}),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), {"reason": "bad"}),
        (JobStopped("stop"), {"args": ("stop",)}),
    ],
)
def test_an_error_arrives_as_what_it_was(error: BaseException, has: dict) -> None:
    arrived = crossed(error)
    assert type(arrived) is type(error)
    assert {name: getattr(arrived, name) for name in has} == has


def test_a_refused_request_arrives_with_its_response() -> None:
    request = httpx.Request("GET", "http://x/")
    response = httpx.Response(429, headers={"retry-after": "7"}, request=request)
    arrived = crossed(httpx.HTTPStatusError("too many", request=request, response=response))
    assert isinstance(arrived, httpx.HTTPStatusError)
    assert (arrived.response.status_code, arrived.response.headers["retry-after"]) == (429, "7")


def test_an_error_arrives_with_its_causes_and_where_it_was() -> None:
    try:
        try:
            fuss()
        except FussyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        arrived = crossed(error)
    assert isinstance(arrived.__cause__, FussyError)
    assert "test_an_error_arrives_with_its_causes" in arrived.__notes__[0]


def test_what_cannot_cross_arrives_as_what_can_be_said_of_it() -> None:
    class Local(Exception):  # noqa: N818 - nobody finds it elsewhere
        pass

    arrived = crossed(Local("here only"))
    assert type(arrived) is RuntimeError
    assert "Local: here only" in str(arrived)
    assert type(crossed(UnspeakableError())) is UnspeakableError
    locked = wire.pack(("ran", 1, Answer(threading.Lock())))
    answer = wire.unpack(locked[wire.HEADER.size :])[2]
    assert "cannot leave the process" in str(answer.error)


def test_a_function_that_ends_the_interpreter_ends_only_itself() -> None:
    def leave() -> None:
        raise SystemExit(3)

    assert isinstance(attempt(leave).error, RuntimeError)
