"""``processor bench latency``, from outside and in small."""

import json
import subprocess
import sys


def test_the_times_from_insert_to_handler_are_one_line_of_json() -> None:
    command = [sys.executable, "-m", "processor", "bench", "latency", "--json", "--jobs", "5"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout
    report = json.loads(said)

    assert report["jobs"] == 5
    # a job is made before it runs, and by the clock of the same machine
    assert 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert 0 <= report["realtime_share"] <= 1
