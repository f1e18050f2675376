"""``processor bench sql``, from outside and in small."""

import json
import subprocess
import sys


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "processor", "bench", "sql", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def test_the_rates_and_the_claims_by_size_are_one_line_of_json() -> None:
    report = json.loads(bench("--json", "--jobs", "1000", "--rows", "1000"))

    for name in ("enqueue", "drain", "enqueue_credits", "drain_credits"):
        assert report[f"{name}_per_s"] > 0
    for call in ("create", "claim", "finish", "create_credits", "claim_credits", "finish_credits"):
        assert report[f"{call}_ms_per_1000"] > 0
    sizes = ["0", "1000"]
    for name in ("claim_ms", "claim_ms_stale_statistics", "claim_ms_no_statistics"):
        assert list(report[name]) == sizes
        assert all(milliseconds > 0 for milliseconds in report[name].values())
    assert list(report["claim_ratio"]) == sizes[1:]


def test_people_get_a_table() -> None:
    said = bench("--jobs", "1000")
    assert "claimed and finished" in said
    assert "jobs/s" in said
