"""Lines that repeat, and the file they may go to."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from processor import log as logs
from processor.logfile import KEPT, LogFile
from processor.repeats import Kind, Repeats, kind_of


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    logs.set_up()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_the_same_error_is_logged_so_often_and_then_counted_whoever_logs_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("info", "json", repeats=2)
    ours, library = structlog.get_logger("test"), logging.getLogger("some.library")
    for number in range(10):
        ours.error("job.crashed", job_id=number, exc_info=ValueError(number))
        ours.error("job.crashed", job_id=number, exc_info=KeyError(number))
        ours.warning("api.failed", error="refused")
        ours.warning("api.failed", error="timed out")
        library.error("cannot reach %s", number)
        ours.info("job.finished")
        library.info("hello")
    logs.flush()
    lines = told(capsys)
    counts: dict[object, int] = {}
    for line in lines:
        if line["event"] != "log.repeated":
            counts[line["event"]] = counts.get(line["event"], 0) + 1
    assert counts == {
        "job.crashed": 4,
        "api.failed": 4,
        "cannot reach 0": 1,
        "cannot reach 1": 1,
        "job.finished": 10,
        "hello": 10,
    }
    repeated = {(line["of"], *line["like"]): line["lines"] for line in lines if "of" in line}  # type: ignore[misc]  # a list
    assert repeated == {
        ("job.crashed", "exception=ValueError"): 8,
        ("job.crashed", "exception=KeyError"): 8,
        ("api.failed", "error=refused"): 8,
        ("api.failed", "error=timed out"): 8,
        ("some.library: cannot reach %s",): 8,
    }


def test_zero_logs_everything(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json", repeats=0)
    for _ in range(500):
        structlog.get_logger("test").error("a.b")
    logs.flush()
    assert len(told(capsys)) == 500


def test_what_was_left_out_is_told_when_its_minute_is_over_though_nothing_more_is_logged() -> None:
    heard: list[tuple[Kind, int]] = []
    over = threading.Event()

    def tell(kind: Kind, lines: int) -> None:
        heard.append((kind, lines))
        over.set()

    repeats = Repeats(1, tell, seconds=0.1)
    kind = kind_of("error", {"event": "a.b"})
    assert [repeats.too_many(kind) for _ in range(3)] == [False, True, True]
    assert over.wait(10)
    assert heard == [(kind, 2)]
    assert not repeats.too_many(kind)


def test_a_full_file_is_renamed_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "processor.log"
    file = LogFile(path, 4000)
    logs.set_up("info", "json", file=file)
    threads = [
        threading.Thread(target=lambda: [structlog.get_logger("t").info("a.b", n=n) for n in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logging.getLogger("some.library").info("hello")
    files = sorted(tmp_path.iterdir())
    assert 1 < len(files) <= KEPT + 1
    assert all(one.stat().st_size <= 4000 for one in files)
    said = [event for one in files for event in events(one)]
    assert sorted(said) == ["a.b"] * 80 + ["hello"]
    file.close()


def test_a_directory_that_has_gone_costs_lines_and_comes_back(tmp_path: Path) -> None:
    place = tmp_path / "logs"
    place.mkdir()
    file = LogFile(place / "processor.log", 0)
    logs.set_up("info", "json", file=file)
    place.rename(tmp_path / "gone")
    logs.renew("info", ())
    structlog.get_logger("t").info("written to the open one")
    place.mkdir()
    logs.renew("info", ())
    structlog.get_logger("t").info("back")
    gone = events(tmp_path / "gone" / "processor.log")
    assert gone == ["log.not_reopened", "written to the open one"]
    assert events(place / "processor.log") == ["back"]
    file.close()
