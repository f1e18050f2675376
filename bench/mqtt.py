"""Measure what telling an MQTT broker costs a daemon that has all it can do.

Run it with ``python bench/mqtt.py --pairs 3``: ``processor bench drain``, in turns without a broker and with
one that runs on the same machine, so that its work counts, too. Of jobs that take no time a daemon can end
more in a second than ``PROCESSOR_MQTT_RATE`` lets it tell: the rest goes to disk and is told after, which is
part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def broker(directory: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a mosquitto of our own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    configuration = directory / "mosquitto.conf"
    configuration.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen(["mosquitto", "-c", configuration], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)):
        if time.monotonic() > deadline:
            raise SystemExit("mosquitto does not start: is Debian's package `mosquitto` installed?")
        time.sleep(0.05)
    return process, port


def drain(jobs: int, slots: int, directory: Path, **settings: str) -> dict[str, float]:
    """Work off a backlog; return what ``processor bench drain`` says of it."""
    command = [sys.executable, "-m", "processor", "bench", "drain", "--json"]
    environment = {**os.environ, "XDG_STATE_HOME": str(directory), **settings}
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "--slots", str(slots)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    report = json.loads(done.stdout)
    return {
        "jobs_per_s": report["jobs_per_s"],
        **{f"us:{k}": v for k, v in (report["cpu_us_per_job"] or {}).items()},
    }


def main() -> None:
    """Drain in turns, and say how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=3, help="at least 2")
    given = parser.parse_args()
    off: list[dict[str, float]] = []
    on: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-mqtt-") as name:
        directory = Path(name)
        process, port = broker(directory)
        try:
            url = f"mqtt://127.0.0.1:{port}"
            for number in range(given.pairs):
                turns = [(off, {}), (on, {"PROCESSOR_MQTT_URL": url})]
                for runs, settings in turns if number % 2 == 0 else reversed(turns):
                    runs.append(drain(given.jobs, given.slots, directory, **settings))
                print(json.dumps({"off": off[-1], "on": on[-1]}), flush=True)
        finally:
            process.terminate()
            process.wait()
    # a machine that others use is faster and slower by minutes: what ran one after the other can be compared
    ratios = [with_it["jobs_per_s"] / without["jobs_per_s"] for without, with_it in zip(off, on, strict=True)]
    low, *_, high = sorted(ratios)
    print(
        json.dumps(
            {"on_of_off": round(statistics.median(ratios), 3), "from": round(low, 3), "to": round(high, 3)}
        )
    )


if __name__ == "__main__":
    main()
