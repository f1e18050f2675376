"""What a process is doing at the moment: tasks and threads, with what they wait for. No values."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import PurePath
from types import FrameType
from typing import Any

import structlog

from processor.feed import Feed
from processor.redact import redact
from processor.report import Reporter
from processor.settle import Settler
from processor.worker import Worker

_FIRST, _LAST = 4, 10
"""Frames shown of a long stack: the first ones say what it is about, the last ones what it waits for."""

log = structlog.get_logger("processor.dump")


def show(
    loop: asyncio.AbstractEventLoop,
    worker: Worker,
    feed: Feed,
    settler: Settler,
    reporter: Reporter,
    *,
    people: bool,
) -> None:
    """Log what the parts of a daemon are doing: as lines for people, or as one event; from any thread."""
    now = time.monotonic()
    found = {
        "paused": list(worker.pauses),
        "feed": asdict(feed.status),
        "waiting": {**settler.waiting, "log_lines": reporter.waiting},
        "jobs": [
            {"name": run.job.kind, "id": str(run.job.id), "for_s": round(now - run.began, 1)}
            | ({"stopped_for": run.stopped_for} if run.stopped_for else {})
            for run in (*worker.runs, *worker.strays)
        ],
        "tasks": tasks(loop),
        "threads": threads(),
    }
    if people:
        sys.stderr.write(f"{redact(text(found))}\n")
    else:
        log.warning("daemon.dump", **found)


def tasks(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """Return every task with the calls it is in, outermost first; may be called from any thread."""
    return [
        {"name": task.get_name(), "stack": _ends([*_awaited(task.get_coro())])}
        for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    ]


def threads() -> list[dict[str, Any]]:
    """Return every thread but this one with the calls it is in, outermost first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        {
            "name": names.get(ident, f"thread {ident}"),
            "stack": _ends([_place(inner, line) for inner, line in traceback.walk_stack(frame)][::-1]),
        }
        for ident, frame in sys._current_frames().items()  # noqa: SLF001  documented, for debuggers
        if ident != threading.get_ident()
    ]


def text(dump: Mapping[str, Any]) -> str:
    """Return a dump as lines for people."""
    lines: list[str] = []
    for title, part in dump.items():
        if not part or not isinstance(part, list) or not isinstance(part[0], Mapping):
            lines.append(f"{title}: {_flat(part)}")
            continue
        lines.append(f"{title}: {len(part)}")
        for entry in part:
            stack = entry.get("stack", ())
            rest = {name: value for name, value in entry.items() if name != "stack"}
            lines.append(f"  {rest.pop('name', '')} {_flat(rest)}".rstrip())
            lines += [f"      {place}" for place in stack]
    return "\n".join(lines)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name}={_flat(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)


def _ends(stack: list[str]) -> list[str]:
    if len(stack) <= _FIRST + _LAST:
        return stack
    return [*stack[:_FIRST], f"… {len(stack) - _FIRST - _LAST} more …", *stack[-_LAST:]]


def _awaited(coroutine: Any) -> Iterator[str]:
    """Follow what a coroutine awaits, down to what is no coroutine any more."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if not isinstance(frame, FrameType):
            break
        yield _place(frame, frame.f_lineno)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _place(frame: FrameType, line: int) -> str:
    file = PurePath(frame.f_code.co_filename)
    return f"{frame.f_code.co_qualname} ({PurePath(*file.parts[-3:])}:{line})"
