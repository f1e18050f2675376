"""The script that people run: a short mix of faults, its report, its exit code."""

from __future__ import annotations

import json
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec

import pytest

from tests.chaos.catalogue import CATALOGUE
from tests.chaos.run import mix
from tests.sql.harness import ROOT

SECONDS = 12
WRONG = ("lost", "doubled", "overlaps", "credit_errors", "leaks")


async def chaos(*arguments: str) -> tuple[int | None, str]:
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", *arguments), cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert output, errors.decode()
    return process.returncode, output.decode()


@pytest.mark.timeout(240)
async def test_a_short_run_of_faults_by_chance_finds_nothing_wrong_and_says_so():
    code, said = await chaos("--seconds", str(SECONDS), "--seed", "4")
    report = json.loads(said.splitlines()[-1])
    assert {name: report[name] for name in WRONG} == dict.fromkeys(WRONG, 0), said
    assert code == 0
    assert report["faults"] >= 2
    assert report["jobs"] > 30
    for name in report["by_fault"]:
        assert f" s  {name}" in said  # it tells what it does


async def test_the_script_describes_itself():
    code, said = await chaos("--help")
    assert code == 0
    assert all(name in said for name in CATALOGUE)


def test_the_same_seed_gives_the_same_faults_and_each_comes_before_one_comes_twice():
    blows = mix(7)
    first = [next(blows) for _ in range(2 * len(CATALOGUE))]
    again = mix(7)
    assert first == [next(again) for _ in range(2 * len(CATALOGUE))]
    other = mix(8)
    assert first != [next(other) for _ in range(2 * len(CATALOGUE))]
    assert {together[0].name for together, _ in first[: len(CATALOGUE)]} == set(CATALOGUE)
    for together, _ in first:
        rooms = [CATALOGUE[blow.name].room for blow in together]
        assert len(set(rooms)) == len(rooms), "two of a room would heal each other's faults"
