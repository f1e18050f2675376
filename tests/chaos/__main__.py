"""Run real daemons against a real stack under faults chosen by chance; then name all that went wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.catalogue import CATALOGUE, missing
from tests.chaos.judge import judge
from tests.chaos.run import Run, for_seconds, mix, running
from tests.chaos.world import DAEMONS


def tell(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


async def run(seconds: float, seed: int, daemons: int, only: list[str], directory: Path) -> dict[str, Any]:
    """Run it all; return the report."""
    began = time.monotonic()
    async with running(directory, seed=seed, daemons=daemons, tell=tell) as it:
        not_here = missing(it.world)
        for name, why in not_here.items():
            it.tell(f"without {name}: {why}")
        without = frozenset(not_here) | (frozenset(CATALOGUE) - frozenset(only or CATALOGUE))
        await it.under(for_seconds(mix(seed, daemons=daemons, without=without), seconds))
        evidence = await it.evidence()
        verdict = judge(evidence)
        memory = max([(await it.world.level(member)).memory_mb for member in it.world.fleet])
        verdict.leaks += await it.farewell()
    for line in verdict.lines():
        tell(f"  {line}")
    return report(it, evidence.jobs, verdict.counts()) | {
        "memory_mb": [round(it.before.memory_mb), round(memory)],
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
    }


def report(it: Run, jobs: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    """Put the figures together."""
    return {
        "jobs": len(jobs),
        "faults": len(it.blows),
        **counts,
        "statuses": dict(Counter(job["status"] for job in jobs.values())),
        "worker_crashed": sum(job["error_code"] == "WORKER_CRASHED" for job in jobs.values()),
        "attempts": len(it.world.witness.attempts),
        "by_fault": dict(Counter(blow.name for blow in it.blows)),
    }


def main() -> None:
    """Read the arguments, run, report."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=__doc__,
        epilog="Exit code 0: nothing was wrong. The last line is JSON. Faults: " + ", ".join(CATALOGUE),
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long faults fall (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="what all choices follow from (default: 1)")
    parser.add_argument("--daemons", type=int, default=DAEMONS, help=f"how many (default: {DAEMONS})")
    parser.add_argument("--only", nargs="*", default=[], choices=list(CATALOGUE), help="only these faults")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as directory:
        result = asyncio.run(
            run(arguments.seconds, arguments.seed, arguments.daemons, arguments.only, Path(directory))
        )
    print(json.dumps(result))
    sys.exit(
        1 if any(result[name] for name in ("lost", "doubled", "overlaps", "credit_errors", "leaks")) else 0
    )


if __name__ == "__main__":
    main()
