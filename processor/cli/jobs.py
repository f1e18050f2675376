"""``processor jobs``: list, show, cancel, retry; creating and watching have files of their own."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console

from processor.cli import look
from processor.cli.config import ConfigFile
from processor.cli.jobs_create import create
from processor.cli.jobs_logs import logs
from processor.cli.jobs_show import show
from processor.cli.jobs_watch import watch, watched
from processor.cli.project import AsJson, ask, names, refused
from processor.errors import ApiError, ApiUnreachable, AuthFailed, InvalidState
from processor.job import JobStatus
from processor.operators import Operators, Row

app = typer.Typer(help="Jobs: create, list, show, watch, cancel, retry, logs.", no_args_is_help=True)

Jobs = Annotated[list[UUID], typer.Argument(metavar="JOB", help="Ids of jobs.", show_default=False)]


def list_(
    *,
    status: Annotated[
        list[JobStatus] | None, typer.Option(help="Only such; repeat it for more.", show_default=False)
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            help="Only this queue.",
            show_default=False,
            autocompletion=names(Operators.read_queues, "queue"),
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="Only with this in kind, tags, error or progress, or at the id's beginning.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 20,
    before: Annotated[
        UUID | None, typer.Option(help="Older than this job: the next page.", show_default=False)
    ] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""

    async def read(project: Operators) -> list[Row]:
        return await project.read_jobs(
            statuses=[str(one) for one in status or ()],
            queue=queue,
            search=search,
            before=None if before is None else str(before),
            limit=limit,
        )

    rows = ask(config_file, read)
    if as_json:
        look.print_json(rows)
    else:
        _tell(rows, full=len(rows) == limit)


def cancel(jobs: Jobs, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """End jobs that wait, and ask those that run to stop."""
    rows, code = ask(config_file, lambda project: _each(jobs, project.cancel_job))
    if as_json:
        look.print_json(rows)
    else:
        out = look.console()
        for row in rows:
            out.print(f"{row['id']} {_cancelled(row)}", soft_wrap=True)
    raise typer.Exit(code)


def retry(
    jobs: Jobs,
    *,
    all_items: Annotated[
        bool, typer.Option("--all-items", help="The whole job again, not only what is not done.")
    ] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Watch the new jobs to their end.")] = False,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Repeat jobs that have ended: new jobs with what the old ones left undone."""

    async def do(project: Operators) -> int:
        async def again(job_id: str) -> Row:
            try:
                return await project.retry_job(job_id, all_items=all_items)
            except InvalidState as error:
                if "all_items" in (error.hint or ""):
                    error.hint = f"To do all of it again: processor jobs retry {job_id} --all-items"
                raise

        rows, code = await _each(jobs, again)
        if watching and rows:
            return code or await watched(project, [row["id"] for row in rows], as_json=as_json)
        if as_json:
            look.print_json(rows)
        else:
            out = look.console()
            for row in rows:
                out.print(f"{row['id']} repeats {row['retry_of']}: {row['status']}", soft_wrap=True)
        return code

    raise typer.Exit(ask(config_file, do))


async def _each(jobs: list[UUID], do: Any) -> tuple[list[Row], int]:
    """Do something to each job, whatever became of the others; return the rows, and the worst exit code."""
    rows: list[Row] = []
    code = 0
    for job in dict.fromkeys(jobs):
        try:
            rows.append(await do(str(job)))
        except (ApiUnreachable, AuthFailed):
            raise
        except ApiError as error:
            code = max(code, refused(error))
    return rows, code


def _cancelled(row: Row) -> str:
    if row["status"] == JobStatus.CANCELLED:
        refunded = row["credits_refunded"]
        return "is cancelled" + (f"; {look.counted(refunded, 'credit')} refunded" if refunded else "")
    if row["finished_at"] is not None:
        return f"had ended already: {row['status']}"
    return f"is asked to stop: processor jobs watch {row['id']}"


def _tell(rows: list[Row], *, full: bool) -> None:
    out = look.console()
    if not rows:
        out.print("no jobs")
        return
    columns = ["id", "status", "kind", "done", "created"]
    wide = out.width >= look.WIDE
    if wide:
        columns += ["queue", "says"]
    lines = []
    for row in rows:
        line = [
            look.words(row["id"]),
            look.status(row["status"]),
            look.words(row["kind"]),
            look.words(done(row)),
            look.words(look.ago(row["created_at"]), "dim"),
        ]
        if wide:
            line += [look.words(row["queue"]), look.words(note(row), "dim")]
        lines.append(line)
    look.print_table(out, columns, lines, right=("done",), flexible=("says",) if wide else ("kind",))
    if full:
        _next_page(out, rows[-1]["id"])


def _next_page(out: Console, last: str) -> None:
    out.print(f"older ones: --before {last}", style="dim", soft_wrap=True)


def done(row: Row) -> str:
    """Say how much of a job is done: of its items, or of itself."""
    if row["items_total"]:
        return f"{row['items_done']}/{row['items_total']}"
    return f"{row['progress']:.0%}"


def note(row: Row) -> str | None:
    """Say what is worth knowing of a job beside its numbers: why it failed, what it does, when it runs."""
    if row["error_code"] is not None and row["status"] != JobStatus.CANCELLED:
        return f"{row['error_code']}: {row['error_message']}"
    if row["status"] == JobStatus.PENDING and (when := look.later(row["run_at"])):
        return f"runs {when}"
    message: str | None = row["progress_message"]
    return message


app.command()(create)
app.command("list")(list_)
for command in (show, watch, logs, cancel, retry):
    app.command()(command)
