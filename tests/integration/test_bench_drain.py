"""``processor bench drain``, from outside and in small."""

import json
import subprocess
import sys

PARTS = {
    "daemon",
    "gateway",
    "postgres_sessions",
    "postgres_walsender",
    "postgres_rest",
    "total",
}


def test_the_rate_and_the_work_of_each_process_are_one_line_of_json() -> None:
    command = [
        sys.executable,
        "-m",
        "processor",
        "bench",
        "drain",
        "--json",
        "--jobs",
        "500",
        "--slots",
        "50",
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout
    report = json.loads(said)

    assert (report["jobs"], report["slots"]) == (500, 50)
    assert report["jobs_per_s"] > 0
    # 500 jobs in less CPU time than the clock's tick would be a miracle
    for cost in (report["cpu_us_per_job"], report["create_cpu_us_per_job"]):
        assert set(cost) == PARTS
        assert 0 < cost["daemon"] < cost["total"]
