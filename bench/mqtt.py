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
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    off, on = [], []
    with tempfile.TemporaryDirectory(prefix="bench-mqtt-") as name:
        directory = Path(name)
        process, port = broker(directory)
        try:
            for _ in range(given.pairs):
                off.append(drain(given.jobs, given.slots, directory))
                on.append(
                    drain(given.jobs, given.slots, directory, PROCESSOR_MQTT_URL=f"mqtt://127.0.0.1:{port}")
                )
                print(json.dumps({"off": off[-1], "on": on[-1]}), flush=True)
        finally:
            process.terminate()
            process.wait()
    rates = {
        name: statistics.median(run["jobs_per_s"] for run in runs)
        for name, runs in (("off", off), ("on", on))
    }
    print(json.dumps({**rates, "on_of_off": round(rates["on"] / rates["off"], 3)}))


if __name__ == "__main__":
    main()
