"""The demo as a newcomer runs it: a real process, on a pipe and on a terminal, to its end or interrupted."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest

from tests.acceptance import terminal


def processes(home: Path) -> list[str]:
    """Return the command lines of the demo and all that it has started, PostgreSQL's own children too."""
    return [command for pid, command in _commands() if _belongs(pid, str(home))]


def leftovers(home: Path) -> list[str]:
    """Return the files and directories that the demo has left behind."""
    return [path.name for path in home.iterdir()]


def _commands() -> Iterator[tuple[str, str]]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # a zombie has none
                    yield process.name, command


def _belongs(pid: str, home: str) -> bool:
    """Say whether a process got the demo's TMPDIR, or works in it: PostgreSQL wipes its environment."""
    with suppress(OSError):
        environ = Path("/proc", pid, "environ").read_bytes().decode(errors="replace")
        return f"TMPDIR={home}\0" in environ or home in str(Path("/proc", pid, "cwd").readlink())
    return False


@pytest.fixture
def home() -> Iterator[Path]:
    """Make a directory with a short name, for PostgreSQL's socket."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


def demo(home: Path, *, columns: int | None = None) -> AbstractAsyncContextManager[terminal.Running]:
    """Run the demo with its output on a pipe, or on a terminal of so many columns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment |= {"TMPDIR": str(home), "TERM": "xterm-256color"}
    return terminal.running("examples.translation.demo", environment=environment, columns=columns)


async def test_on_a_pipe_it_tells_the_main_job_in_plain_lines_and_stops_everything(home: Path):
    async with demo(home) as running:
        await running.says("wake-up:")
        during = processes(home)
        assert await running.ends() == 0, running.output
    assert any("processor run" in command for command in during), during
    assert any("processor dev" in command for command in during), during
    assert any("postgres" in command for command in during), during
    assert processes(home) == []
    assert leftovers(home) == []

    said = running.output
    assert "\x1b" not in said
    assert "wake-up: by realtime, handler started " in said
    assert re.findall(r"^(German|French|Spanish|Swedish): completed · 2 credits$", said, re.MULTILINE)
    assert "Klingon: failed · UNSUPPORTED_LANGUAGE" in said
    assert "credits: 10 held, 0 captured, 0 refunded" in said
    assert "credits: 0 held, 8 captured, 2 refunded" in said
    assert _table(said, "public.jobs") >= {
        ("status", "partial"),
        ("items_done", "4"),
        ("items_failed", "1"),
        ("credits_held", "0"),
        ("credits_captured", "8"),
        ("credits_refunded", "2"),
    }
    assert {row[:3] for row in _table(said, "public.job_items")} >= {
        ("de", "completed", "2"),
        ("fr", "completed", "2"),
        ("tlh", "failed", "0"),
        ("es", "completed", "2"),
        ("sv", "completed", "2"),
    }
    assert {row[1:3] for row in _table(said, "public.credit_entries")} >= {
        ("grant", "20"),
        ("reserve", "10"),
        ("capture", "8"),
        ("release", "2"),
    }
    assert ("20", "12", "0", "8", "0") in _table(said, "public.credit_accounts")


async def test_on_a_terminal_it_draws_in_place_within_the_width(home: Path):
    async with demo(home, columns=80) as running:
        assert await running.ends() == 0, running.output
    assert "\x1b[" in running.output
    assert running.output.rfind("\x1b[?25h") > running.output.rfind("\x1b[?25l") >= 0  # the cursor is back
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", running.output))
    assert max(map(len, lines)) <= 80
    assert "wake-up     by realtime, handler started " in running.output
    assert processes(home) == []


@pytest.mark.parametrize(("moment", "number"), [("local mode:", signal.SIGTERM), ("wake-up:", signal.SIGINT)])
async def test_an_interrupted_demo_stops_everything_and_ends_with_1(
    home: Path, moment: str, number: signal.Signals
):
    async with demo(home) as running:
        await running.says(moment)
        running.process.send_signal(number)
        assert await running.ends() == 1, running.output
    assert f"ended by {number.name}" in running.output
    assert "Traceback" not in running.output
    assert processes(home) == []
    assert leftovers(home) == []


async def test_a_part_that_dies_ends_the_demo_with_its_last_words(home: Path):
    async with demo(home) as running:
        await running.says("wake-up:")
        (local,) = [pid for pid, command in _commands() if _belongs(pid, str(home)) and " dev " in command]
        os.kill(int(local), signal.SIGKILL)
        assert await running.ends() == 1, running.output
    assert "demo: local mode ended before" in running.output
    assert "Traceback" not in running.output
    assert processes(home) == []


def _table(said: str, title: str) -> set[tuple[str, ...]]:
    """Return the rows printed below a title, up to the next empty line, as words."""
    below = said.partition(f" {title}")[2].partition("\n")[2]
    rows = below.partition("\n \n")[0] if "\n \n" in below else below
    return {tuple(row.split()) for row in rows.splitlines() if row.strip()}
