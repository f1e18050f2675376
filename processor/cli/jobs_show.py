"""``processor jobs show``: all that is known of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.jobs_logs import log_line
from processor.cli.jobs_screen import item_line
from processor.cli.project import AsJson, ask
from processor.errors import JobNotFound
from processor.operators import Operators, Row

_LAST_LINES = 10
_LONG = 40
"""Lines of a value after which the rest is left out."""


def show(
    job: Annotated[UUID, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)],
    *,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show all of a job: state, credits, errors, payload, result, items, and its last log lines."""

    async def read(project: Operators) -> Row:
        found = await project.read_job(str(job))
        if found is None:
            raise JobNotFound(f"job not found: {job}")
        return found

    found = ask(config_file, read)
    if as_json:
        look.print_json(found)
    else:
        _tell(found, look.console())


def _tell(found: Row, out: Console) -> None:
    job = found["job"]
    out.print(Text.assemble((look.plain(job["kind"]), "bold"), "  ", look.status(job["status"])))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(job):
        facts.add_row(name, Text(look.plain(value)))
    out.print(facts)
    for attempt in job["errors"]:
        said = f"{attempt['code']}: {attempt['message']}"
        line = Text.assemble((f"attempt {attempt['attempt']} failed ", "red"), look.plain(said))
        out.print(line.append(f" ({look.ago(attempt['at'])})", "dim"))
    _value(out, "payload", job["payload"])
    if job["result"] is not None:
        _value(out, "result", job["result"])
    if found["items"]:
        _title(out, "items")
        for item in found["items"]:
            out.print(item_line(item, whole=True), soft_wrap=True)
    if found["logs"]:
        _title(out, "log" if len(found["logs"]) <= _LAST_LINES else f"log, the last {_LAST_LINES} lines")
        for line in found["logs"][-_LAST_LINES:]:
            out.print(log_line(line), soft_wrap=True)


def _facts(job: Row) -> Iterator[tuple[str, Any]]:
    yield "id", job["id"]
    yield "queue", job["queue"] + (f", priority {job['priority']}" if job["priority"] else "")
    yield "owner", job["owner_id"] or "nobody: a job of the system, free"
    yield "created", _when(job["created_at"])
    if job["status"] == "pending" and look.later(job["run_at"]):
        yield "runs", _when(job["run_at"])
    if job["started_at"] is not None:
        yield "started", _when(job["started_at"])
    if job["finished_at"] is not None:
        took = look.between(job["started_at"], job["finished_at"])
        yield "ended", _when(job["finished_at"]) + (f", after {look.lasts(took)}" if took is not None else "")
    if job["cancel_requested_at"] is not None and job["finished_at"] is None:
        yield "asked", f"to stop, {look.ago(job['cancel_requested_at'])}"
    yield (
        "failures",
        f"{job['failures']} of {job['max_attempts']}, in {look.counted(job['attempt'], 'attempt')}",
    )
    if job["items_total"]:
        failed = f", {job['items_failed']} failed" if job["items_failed"] else ""
        yield "items", f"{job['items_done']} of {job['items_total']} done{failed}"
    if job["children_total"]:
        failed = f", {job['children_failed']} failed" if job["children_failed"] else ""
        yield (
            "children",
            f"{job['children_total'] - job['children_open']} of {job['children_total']} ended{failed}",
        )
    if not job["items_total"] and job["finished_at"] is None:
        yield "progress", f"{job['progress']:.0%}"
    if job["progress_message"] and job["finished_at"] is None:
        yield "says", job["progress_message"]
    held, paid, back = (job[f"credits_{name}"] for name in ("held", "captured", "refunded"))
    if held or paid or back:
        yield "credits", f"{paid:,} paid, {back:,} refunded" + (f", {held:,} reserved" if held else "")
    if job["error_code"] is not None:
        yield "error", f"{job['error_code']}: {job['error_message']}"
    for name, what in (("retry_of", "repeats"), ("parent_id", "part of"), ("unique_key", "unique")):
        if job.get(name) is not None:
            yield what, job[name]
    if job["tags"]:
        yield "tags", ", ".join(job["tags"])


def _when(stamp: str) -> str:
    at = look.clock(stamp)
    return look.ago(stamp) if at == "-" else f"{look.ago(stamp)} ({at})"


def _title(out: Console, title: str) -> None:
    out.print(Text(f"\n{title}", style="bold"))


def _value(out: Console, title: str, value: Any) -> None:
    lines = look.plain(json.dumps(value, indent=2, ensure_ascii=False), lines=True).splitlines()
    _title(out, title)
    out.print(Text("\n".join(lines[:_LONG])), soft_wrap=True)
    if len(lines) > _LONG:
        out.print(f"… {len(lines) - _LONG} more lines: --json has all", style="dim")
