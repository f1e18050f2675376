"""``processor jobs watch``: jobs live, to their end, which the exit code tells."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Protocol
from uuid import UUID

import typer
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.jobs_screen import Screen, ending, says
from processor.cli.project import Code, WrongInput, ask
from processor.errors import ApiUnreachable, JobNotFound
from processor.operators import Operators, Row

ITEMS = 100
"""How many of a job's items are watched."""
_MOST = 50
"""Jobs that can be watched at once: their ids are part of an address."""
_FASTEST, _SLOWEST = 0.5, 2.0
"""Seconds between two looks: while something changes, and after a while without."""
TOLD = 2
"""Looks in a row without an answer that are worth a word: one may be a connection that has grown old."""
_WONDERS_AFTER, _WONDERS_EVERY = 3.0, 10.0
"""Seconds after which, and between which, it is asked why jobs that could run do not."""


class Viewer(Protocol):
    """Shows what is watched."""

    def show(self, job: Row, items: list[Row]) -> None:
        """Show a job that has changed."""

    def trouble(self, reason: str | None) -> None:
        """Show that the project does not answer, or that it does again."""


def watch(
    jobs: Annotated[list[UUID], typer.Argument(metavar="JOB", help="Ids of jobs.", show_default=False)],
    *,
    config_file: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each change.")] = False,
) -> None:
    """Watch jobs until they have ended.

    The exit code is 0 if all completed, 1 if one failed or was cancelled, else 3 if one is partial.

    Ctrl-C stops the watching, not the jobs.
    """
    ids = [str(job) for job in dict.fromkeys(jobs)]
    raise typer.Exit(ask(config_file, lambda project: watched(project, ids, as_json=as_json)))


async def watched(project: Operators, ids: list[str], *, as_json: bool) -> int:
    """Show jobs until they have ended; return the exit code that tells how."""
    if len(ids) > _MOST:
        raise WrongInput(f"{len(ids)} jobs: at most {_MOST} can be watched at once.")
    out = look.console()
    screen = Screen(out, ids) if out.is_terminal and not as_json else None
    viewer: Viewer = screen or (JsonLines() if as_json else Lines(several=len(ids) > 1))
    around: AbstractContextManager[object] = screen or nullcontext()
    with around:
        statuses = await _follow(project, ids, viewer)
    if statuses & {"failed", "cancelled"}:
        return Code.REFUSED
    return Code.PARTIAL if "partial" in statuses else 0


async def _follow(project: Operators, ids: list[str], viewer: Viewer) -> set[str]:
    """Show every change of the jobs until the last has ended; return how they ended."""
    open_jobs = list(ids)
    seen: dict[str, tuple[Row, list[Row]]] = {}
    pause, unanswered = _FASTEST, 0
    reasons, wonder_at = dict[str, str](), time.monotonic() + _WONDERS_AFTER
    while open_jobs:
        try:
            # the jobs before their items: when a job has ended, its items have as well
            jobs = {row["id"]: row for row in await project.watched_jobs(open_jobs)}
            with_items = [job["id"] for job in jobs.values() if job["items_total"]]
            items = await project.watched_items(with_items, ITEMS) if with_items else []
            if time.monotonic() >= wonder_at and any(map(_is_due, jobs.values())):
                reasons = _reasons(await project.read_queues())
                wonder_at = time.monotonic() + _WONDERS_EVERY
        except ApiUnreachable as error:
            unanswered += 1
            if unanswered == TOLD:
                viewer.trouble(error.message)
            await asyncio.sleep(_FASTEST if unanswered < TOLD else _SLOWEST)
            continue
        if unanswered >= TOLD:
            viewer.trouble(None)
        unanswered = 0
        pause = min(pause * 1.5, _SLOWEST)
        for job_id in list(open_jobs):
            if job_id not in jobs:
                raise JobNotFound(f"job not found: {job_id}")
            job = jobs[job_id]
            why = reasons.get(job["queue"]) if _is_due(job) else None
            now = ({**job, "waits_for": why}, [item for item in items if item["job_id"] == job_id])
            if seen.get(job_id) != now:
                seen[job_id] = now
                viewer.show(*now)
                pause = _FASTEST
            if job["finished_at"] is not None:
                open_jobs.remove(job_id)
        if open_jobs:
            await asyncio.sleep(pause)
    return {job["status"] for job, _ in seen.values()}


def _is_due(job: Row) -> bool:
    return job["status"] == "pending" and look.later(job["run_at"]) is None


def _reasons(queues: list[Row]) -> dict[str, str]:
    """Say of queues whose due jobs do not run what they wait for."""
    reasons = {}
    for queue in queues:
        most = queue["max_processing"]
        if queue["paused"]:
            reasons[queue["queue"]] = f"its queue is paused: processor queues resume {queue['queue']}"
        elif not queue["live_workers"]:
            reasons[queue["queue"]] = "no worker serves its queue: processor workers list"
        elif most is not None and queue["processing"] >= most:
            reasons[queue["queue"]] = (
                f"its queue runs {most} at once: processor queues limits {queue['queue']}"
            )
    return reasons


class JsonLines:
    """A line of JSON for each change: the job, with its items."""

    def show(self, job: Row, items: list[Row]) -> None:
        """Print a job as it is now."""
        shown = [{name: value for name, value in item.items() if name != "job_id"} for item in items]
        look.print_json({**job, "items": shown})

    def trouble(self, reason: str | None) -> None:
        """Say it where it does not spoil the lines."""
        if reason is not None:
            look.complain(f"{reason}; asking again", "warning")


class Lines:
    """Plain text, where there is no terminal: a line for each thing that happens."""

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._out = look.console()
        self._said: dict[str, tuple[object, ...]] = {}
        self._items: dict[tuple[str, str], str] = {}

    def show(self, job: Row, items: list[Row]) -> None:
        """Say what is new: items that have ended, then the job's status or what it says."""
        prefix = f"{job['id']} " if self._several else ""
        for item in items:
            name = (job["id"], item["key"])
            if self._items.get(name, "pending") != item["status"]:
                self._items[name] = item["status"]
                why = f" {item['error_code']}: {item['error_message']}" if item["error_code"] else ""
                self._say(f"{prefix}{item['key']} {item['status']}{why}")
        ended = job["finished_at"] is not None
        said = (job["status"], job["attempt"], None if ended else job["progress_message"], job["waits_for"])
        if self._said.get(job["id"]) != said:
            self._said[job["id"]] = said
            self._say(f"{prefix}{ending(job) if ended else standing(job)}")

    def trouble(self, reason: str | None) -> None:
        """Say it on standard error."""
        if reason is not None:
            look.complain(f"{reason}; asking again", "warning")

    def _say(self, line: str) -> None:
        self._out.print(Text(look.plain(line)), soft_wrap=True)


def standing(job: Row) -> str:
    """Say how a job that has not ended is doing."""
    share = "" if job["status"] == "pending" else f" {job['progress']:.0%}"
    more = says(job)
    return f"{job['status']}{share}" + (f", {more}" if more else "")
