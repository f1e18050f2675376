"""The daemon that is watched: it counts what is in it, on SIGUSR2."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import sys
import threading

import processor.daemon
from bench.soak.handlers import app
from processor import config, log
from processor.feed.timings import FeedTimings


def count() -> None:
    """Print how much there is of everything that could leak."""
    there = {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "blocks": sys.getallocatedblocks(),
    }
    print(json.dumps(there), flush=True)


async def main() -> int:
    """Run the daemon, with a feed that comes back as fast as it can."""
    processor.daemon.FeedTimings = functools.partial(FeedTimings, backoff_base=0.02)  # type: ignore[assignment,misc]
    settings = config.load()
    log.set_up(settings.log_level, settings.log_format, settings.secrets)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, count)
    return await processor.daemon.Daemon(app, settings).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
