"""What is counted while the daemon lives, and whether it stayed where it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
from asyncio.subprocess import Process
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
WARM, LEVEL, END = 0.2, 0.35, 0.9
"""Shares of the way: from WARM to LEVEL the level is taken, from END on it is compared."""


@dataclass(frozen=True)
class Sample:
    """What there was at one moment; of the gateway for information."""

    seconds: float
    way: float
    jobs: int
    reconnects: int
    rss_mb: float
    fds: int
    threads: int
    tasks: int
    blocks: int
    gateway_rss_mb: float
    gateway_fds: int


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def fds(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def take(
    daemon: Process, gateway: Process, *, seconds: float, way: float, jobs: int, reconnects: int
) -> Sample:
    """Count what there is now."""
    if daemon.returncode is not None or daemon.stdout is None:
        raise RuntimeError(f"the daemon has ended with {daemon.returncode}")
    daemon.send_signal(signal.SIGUSR2)
    async with asyncio.timeout(30):
        told = json.loads(await daemon.stdout.readline())
    return Sample(
        seconds=round(seconds, 2),
        way=round(way, 4),
        jobs=jobs,
        reconnects=reconnects,
        rss_mb=rss_mb(daemon.pid),
        fds=fds(daemon.pid),
        threads=told["threads"],
        tasks=told["tasks"],
        blocks=told["blocks"],
        gateway_rss_mb=rss_mb(gateway.pid),
        gateway_fds=fds(gateway.pid),
    )


def judge(samples: list[Sample], tolerance: float) -> dict[str, Any]:
    """Compare the end with the level after the warm-up; ``leaks`` names what did not stay there.

    ``tolerance`` is a share: 0.1 is what memory may differ by. What is counted in pieces may be ten more.
    """
    level = [asdict(s) for s in samples if WARM <= s.way < LEVEL] or [asdict(s) for s in samples[:1]]
    end = [asdict(s) for s in samples if s.way >= END] or [asdict(s) for s in samples[-1:]]
    report: dict[str, Any] = {}
    leaks = []
    for name in ("rss_mb", "blocks", "fds", "threads", "tasks"):
        before, after = (statistics.median(s[name] for s in some) for some in (level, end))
        report[name] = {"level": round(before, 1), "end": round(after, 1)}
        if name == "rss_mb":
            flat = abs(after - before) <= tolerance * before
        elif name == "blocks":
            flat = after - before <= tolerance * before
        else:
            flat = after - before <= 10
        if not flat:
            leaks.append(name)
    memory = report["rss_mb"]
    report["drift"] = round(memory["end"] / memory["level"] - 1, 4)
    report["leaks"] = leaks
    return report


def plot(samples: list[Sample], path: Path, tolerance: float) -> None:
    """Draw the samples; the file's ending says as what: .svg or .png."""
    import matplotlib as mpl  # noqa: PLC0415 - dear, and not needed for the rest

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    minutes = [s.seconds / 60 for s in samples]
    figure, (memory, pieces, done) = plt.subplots(3, 1, figsize=(10, 9), sharex=True, layout="constrained")
    memory.plot(minutes, [s.rss_mb for s in samples], label="daemon")
    memory.plot(minutes, [s.gateway_rss_mb for s in samples], label="local mode's gateway", alpha=0.4)
    level = judge(samples, tolerance)["rss_mb"]["level"]
    memory.axhspan(level * (1 - tolerance), level * (1 + tolerance), alpha=0.15, label=f"± {tolerance:.0%}")
    memory.set_ylabel("resident memory, MB")
    for name in ("fds", "threads", "tasks"):
        pieces.plot(minutes, [getattr(s, name) for s in samples], label=name)
    pieces.set_ylabel("of the daemon")
    done.plot(minutes, [s.reconnects for s in samples], label="reconnects")
    done.set_ylabel("reconnects")
    jobs = done.twinx()
    jobs.plot(minutes, [s.jobs for s in samples], color="tab:orange", label="jobs")
    jobs.set_ylabel("jobs")
    done.set_xlabel("minutes")
    for axes in (memory, pieces, done, jobs):
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right" if axes is jobs else "upper left")
    figure.savefig(path)
    plt.close(figure)
