"""The soak, for some seconds, and its judge: what it calls flat, and what it calls a leak."""

import json
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from dataclasses import replace
from pathlib import Path

import pytest

from bench.soak.census import Sample, judge

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
async def test_a_short_soak_cuts_the_connection_does_the_jobs_and_draws_what_it_counted(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "soak.svg"
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "bench.soak", "--reconnects", "5", "--jobs", "200", "--every", "0.2"),
        *("--tolerance", "0.5", "--plot", str(picture)),
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, output.decode() + errors.decode()
    report = json.loads(output.decode().splitlines()[-1])
    assert (report["ok"], report["wrong"], report["leaks"]) == (True, [], [])
    assert report["reconnects"] == 5
    assert report["jobs"] >= 200
    assert report["rss_mb"]["level"] > 10
    assert picture.read_text().startswith("<?xml")


def samples(**growth: float) -> list[Sample]:
    """Make a hundred samples, of which what is named grows to so many times of what it was."""
    first = Sample(0, 0, 0, 0, 60.0, 20, 3, 30, 300_000, 100.0, 40)

    def at(way: float) -> Sample:
        grown = {name: getattr(first, name) * (1 + (times - 1) * way) for name, times in growth.items()}
        return replace(first, way=way, **grown)

    return [at(n / 100) for n in range(100)]


def test_what_stays_where_it_was_is_flat() -> None:
    report = judge(samples(rss_mb=1.05, blocks=1.05), tolerance=0.1)
    assert report["leaks"] == []
    assert 0 < report["drift"] < 0.05


@pytest.mark.parametrize(
    ("name", "times"),
    [("rss_mb", 1.3), ("rss_mb", 0.7), ("blocks", 1.3), ("fds", 3), ("threads", 9), ("tasks", 2)],
)
def test_what_grows_is_a_leak(name: str, times: float) -> None:
    assert judge(samples(**{name: times}), tolerance=0.1)["leaks"] == [name]
