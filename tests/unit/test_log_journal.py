"""What the log looks like where it goes into systemd's journal."""

import json
import os
import subprocess
import sys

SAY = """
import logging, structlog
from processor.log import set_up
set_up("debug", {style!r})
log = structlog.get_logger("test")
log.debug("a.b", job_id="1")
log.info("a.b")
log.warning("a.b")
log.error("a.b")
log.critical("a.b")
logging.getLogger("some.library").warning("of a library")
"""


def said(style: str, *, journal: bool) -> list[str]:
    """Return the lines of a process whose standard error is a pipe, which it is told to be the journal's."""
    reading, writing = os.pipe()
    pipe = os.fstat(writing)
    stream = f"{pipe.st_dev}:{pipe.st_ino}" if journal else "1:1"
    with os.fdopen(reading) as lines:
        try:
            subprocess.run(
                [sys.executable, "-c", SAY.format(style=style)],
                env={"JOURNAL_STREAM": stream},
                stderr=writing,
                check=True,
                timeout=30,
            )
        finally:
            os.close(writing)
        return lines.read().splitlines()


def test_lines_for_the_journal_carry_its_priorities_and_no_second_time() -> None:
    lines = said("auto", journal=True)
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<4>"]
    events = [json.loads(line[3:]) for line in lines]
    assert events[0] == {"event": "a.b", "job_id": "1", "level": "debug"}
    assert events[-1]["event"] == "of a library"
    assert not any("timestamp" in event for event in events)


def test_whoever_redirects_a_service_or_asks_for_json_gets_json() -> None:
    for lines in (said("auto", journal=False), said("json", journal=True)):
        assert all("timestamp" in json.loads(line) for line in lines)
