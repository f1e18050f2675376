"""Realtime as a worker uses it: joined, and a change of its own row brought back."""

import asyncio
import os
import socket
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

from processor import __version__
from processor.config import Settings
from processor.doctor.finding import Finding, fail, ok, warn
from processor.errors import ApiError
from processor.feed import Feed
from processor.rpc import Rpc

_JOIN_SECONDS = 20.0
_ECHO_SECONDS = 15.0
_SLOW_ECHO = 3.0
_LEASE = 60.0
_LOOK_EVERY = 0.05


async def round_trip(settings: Settings, rpc: Rpc) -> list[Finding]:
    """Register a worker that takes no jobs, join, beat once, and wait for the heartbeat to come back."""
    worker_id = uuid4()
    worker = {
        "id": str(worker_id),
        "name": f"processor doctor on {socket.gethostname()}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "queues": [],
        "kinds": [],
        "schedules": [],
        "slots": 1,
        "lease_seconds": _LEASE,
        "feed": "polling",
        "transport": settings.feed,
    }
    try:
        await rpc.register_worker(worker)
    except ApiError as error:
        return [
            fail("worker", f"no worker can register: {error}", "Run: processor schema apply --database-url …")
        ]
    try:
        return [ok("worker", "a worker can register"), await _listen(settings, rpc, worker_id)]
    except ApiError as error:
        return [fail("worker", f"no heartbeat gets through: {error}", "Is its key one of a worker?")]
    finally:
        with suppress(ApiError):  # its lease ends soon, and a day later it is forgotten
            await rpc.deregister_worker(worker_id)


async def _listen(settings: Settings, rpc: Rpc, worker_id: Any) -> Finding:
    rows: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    feed = Feed(
        settings.url,
        settings.key.get_secret_value(),
        str(worker_id),
        lambda _wake: None,
        rows.put_nowait,
        api_key=settings.api_key,
        queues=(),
        transport=settings.feed,
    )
    began = time.monotonic()
    await feed.start()
    try:
        if (reason := await _joined(feed)) is not None:
            return fail("realtime", reason, _HELP)
        joined = time.monotonic() - began
        began = time.monotonic()
        await rpc.heartbeat_worker(worker_id, running=(), feed=feed.mode)
        try:
            async with asyncio.timeout(_ECHO_SECONDS):
                await rows.get()
        except TimeoutError:
            seen = f"joined in {joined:.1f} s, but a change did not arrive within {_ECHO_SECONDS:g} s"
            return fail("realtime", seen, _HELP)
        echo = time.monotonic() - began
    finally:
        await feed.stop()
    seen = f"joined in {joined * 1000:.0f} ms, and a change arrived in {echo * 1000:.0f} ms"
    if echo > _SLOW_ECHO:
        return warn(
            "realtime", seen, "Realtime is slow: see the project's Realtime reports, and REALTIME.md."
        )
    return ok("realtime", seen)


async def _joined(feed: Feed) -> str | None:
    """Wait until changes are streamed; return why they are not."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while feed.mode == "polling":
        if feed.status.last_ending is not None:
            return f"cannot be joined: {feed.status.last_ending}"
        if time.monotonic() > deadline:
            return f"cannot be joined within {_JOIN_SECONDS:g} s"
        await asyncio.sleep(_LOOK_EVERY)
    return None


_HELP = (
    "The daemon would poll meanwhile. Is Realtime enabled in the project (Database → Publications → "
    "supabase_realtime), and may websockets pass from here? REALTIME.md has a table of failures."
)
