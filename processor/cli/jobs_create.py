"""``processor jobs create``."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID, uuid4

import typer
from rich.text import Text

from processor.cli import look, values
from processor.cli.config import ConfigFile
from processor.cli.jobs_watch import watched
from processor.cli.project import AsJson, WrongInput, ask, names
from processor.operators import Operators, Row


def create(
    kind: Annotated[
        str,
        typer.Argument(
            help="Which handler is to run.",
            show_default=False,
            autocompletion=names(Operators.read_kinds, "kind"),
        ),
    ],
    *,
    payload: Annotated[
        str, typer.Option(help="JSON object; @file reads a file, - standard input.", show_default=False)
    ] = "{}",
    item: Annotated[
        list[str] | None, typer.Option(help="Key of an item; repeat it for more.", show_default=False)
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(
            help="More items, as a JSON array or one key a line; @file and - as above.", show_default=False
        ),
    ] = None,
    owner: Annotated[
        UUID | None, typer.Option(help="Id of the user who owns and pays for it.", show_default=False)
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            help="Another queue than the kind's.",
            show_default=False,
            autocompletion=names(Operators.read_queues, "queue"),
        ),
    ] = None,
    priority: Annotated[int, typer.Option(help="Higher first, -1000 to 1000.")] = 0,
    delay: Annotated[
        str | None, typer.Option(help="Not before so long: 90s, 10m, 2h, 1d.", show_default=False)
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Not before this time: 2026-12-24T18:00.", show_default=False)
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key: the same again is the same job.", show_default=False),
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option(help="Refused while a job with this unique key lives.", show_default=False),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A word to find it by; repeat it for more.", show_default=False)
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="How many attempts may fail.", show_default=False)
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="For one attempt: 30s, 10m.", show_default=False)
    ] = None,
    watching: Annotated[
        bool, typer.Option("--watch", help="Watch it to its end, as processor jobs watch does.")
    ] = False,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Create a job."""

    async def do(project: Operators) -> int:
        if delay is not None and at is not None:
            raise WrongInput("--delay and --at: give one of them.")
        if payload == items == "-":
            raise WrongInput("--payload and --items cannot both come from standard input.")
        job: dict[str, Any] = {
            "kind": kind,
            "payload": values.payload(payload),
            "items": values.items(item or [], items),
            "queue": queue,
            "priority": priority,
            "delay_seconds": None if delay is None else values.seconds("--delay", delay),
            "run_at": None if at is None else values.moment("--at", at),
            # with a key of its own a call whose answer was lost can be repeated
            "idempotency_key": f"cli:{uuid4()}" if key is None else key,
            "unique_key": unique,
            "owner_id": None if owner is None else str(owner),
            "max_attempts": max_attempts,
            "timeout_seconds": None if timeout is None else values.seconds("--timeout", timeout),
            "tags": tag or None,
        }
        made = await project.create_job({name: value for name, value in job.items() if value is not None})
        if watching:
            return await watched(project, [made["id"]], as_json=as_json)
        if as_json:
            look.print_json(made)
        else:
            _tell(made)
        return 0

    raise typer.Exit(ask(config_file, do))


def _tell(job: Row) -> None:
    out = look.console()
    facts = [look.counted(job["items_total"], "item")] if job["items_total"] else []
    if job["credits_held"]:
        facts.append(f"{look.counted(job['credits_held'], 'credit')} reserved")
    if when := look.later(job["run_at"]):
        facts.append(f"runs {when}")
    described = f" {look.plain(job['kind'])} in queue {look.plain(job['queue'])}"
    line = Text.assemble((job["id"], "bold"), described, *(f", {fact}" for fact in facts), ": ")
    out.print(line.append_text(look.status(job["status"])), soft_wrap=True)
    out.print(f"processor jobs watch {job['id']}", style="dim", soft_wrap=True)
