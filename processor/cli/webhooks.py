"""``processor webhooks``: who is told of what becomes of jobs, and whether it arrives."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from processor.cli import look, values
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, WrongInput, ask, names
from processor.errors import ApiUnreachable, InvalidArgument
from processor.operators import Operators, Row

app = typer.Typer(
    help="Webhooks: add, list, show, remove, enable, disable, rotate, deliveries, redeliver, test.",
    no_args_is_help=True,
)

Webhook = Annotated[
    str,
    typer.Argument(
        metavar="WEBHOOK",
        help="Name or id of the endpoint.",
        show_default=False,
        autocompletion=names(Operators.read_webhooks, "name"),
    ),
]
_STATES = {"ok": "green", "new": "cyan", "failing": "yellow", "circuit_open": "red", "disabled": "dim"}
_ONCE = "shown this once: the receiver checks signatures with it (Standard Webhooks)"
_SHOWN = 5
"""Deliveries that ``show`` tells of."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.", show_default=False)],
    url: Annotated[str, typer.Argument(help="Where to: https://….", show_default=False)],
    *,
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="job.completed, job.partial, job.failed, job.cancelled, job.retrying; repeat it. "
            "Default: all.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option(help="Only jobs of this queue; repeat it.", show_default=False)
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only jobs of this kind; repeat it.", show_default=False)
    ] = None,
    owner: Annotated[
        UUID | None, typer.Option(help="Only jobs of this user, from auth.users.", show_default=False)
    ] = None,
    rate_limit: Annotated[
        int | None, typer.Option(help="At most so many tries in each period.", show_default=False)
    ] = None,
    rate_seconds: Annotated[float, typer.Option(help="Length of that period, in seconds.")] = 60,
    timeout_seconds: Annotated[float, typer.Option(help="How long a try may take, in seconds.")] = 15,
    allow_http: Annotated[bool, typer.Option("--allow-http", help="Let the URL be http.")] = False,
    description: Annotated[str, typer.Option(help="What it is for.", show_default=False)] = "",
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell somebody of what becomes of jobs; prints the secret, once."""
    arguments: Row = {
        "name": name,
        "url": url,
        "events": event or ["*"],
        "queues": queue,
        "kinds": kind,
        "owner_id": None if owner is None else str(owner),
        "rate_limit": rate_limit,
        "rate_seconds": rate_seconds,
        "timeout_seconds": timeout_seconds,
        "allow_http": allow_http,
        "description": description,
    }
    row = ask(config_file, lambda project: _once(project.add_webhook(arguments)))
    _secret(row, f"{name} is told of {', '.join(row['events'])}", as_json=as_json)


@app.command("list")
def list_(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the endpoints: whether deliveries arrive, what waits, what was given up."""
    rows = ask(config_file, Operators.read_webhooks)
    if as_json:
        look.print_json(rows)
    else:
        _tell(rows, look.console())


@app.command()
def show(webhook: Webhook, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show an endpoint, how it is doing, and its last deliveries; not its secret."""

    async def read(project: Operators) -> Row:
        found = [row for row in await project.read_webhooks() if webhook in (row["name"], row["id"])]
        if not found:
            raise WrongInput(f"unknown webhook: {webhook}. Their names: processor webhooks list")
        last = await project.read_webhook_deliveries(webhook=found[0]["id"], limit=_SHOWN)
        return found[0] | {"deliveries": last}

    row = ask(config_file, read)
    if as_json:
        look.print_json(row)
        return
    out = look.console()
    out.print(Text.assemble((look.plain(row["name"]), "bold"), " ", look.words(row["state"], _style(row))))
    for label, value in _facts(row):
        out.print(Text.assemble((f"  {label}: ", "dim"), look.plain(value)), soft_wrap=True)
    if row["deliveries"]:
        out.print()
        _tell_deliveries(row["deliveries"], out)


@app.command()
def remove(webhook: Webhook, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Remove an endpoint and its secrets; what waits for it is given up."""
    row = ask(config_file, lambda project: _known(project.remove_webhook(webhook)))
    _changed(row, f"{row['name']} is removed", as_json=as_json)


@app.command()
def enable(webhook: Webhook, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Tell an endpoint again; also closes its circuit, so that the next try comes at once."""
    row = ask(config_file, lambda project: _known(project.enable_webhook(webhook)))
    _changed(row, f"{row['name']} is told again", as_json=as_json)


@app.command()
def disable(webhook: Webhook, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Tell an endpoint no more; what waits for it is given up. For a pause, pause queue webhooks."""
    row = ask(config_file, lambda project: _known(project.disable_webhook(webhook)))
    _changed(row, f"{row['name']} is disabled: what waits for it is given up", as_json=as_json)


@app.command()
def rotate(
    webhook: Webhook,
    *,
    overlap: Annotated[str, typer.Option(help="How long the old secret signs too: 24h, or 0.")] = "24h",
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Give an endpoint a new secret and print it, once; for a while the old one signs beside it."""
    seconds = values.seconds("--overlap", overlap)
    row = ask(config_file, lambda project: _known(_once(project.rotate_webhook(webhook, seconds))))
    until = (
        f"the old one signs until {look.clock(row['previous_valid_until'])}"
        if seconds
        else "the old one is out"
    )
    _secret(row, f"{row['name']} has a new secret, {until}", as_json=as_json)


@app.command()
def deliveries(
    webhook: Annotated[
        str | None,
        typer.Argument(
            metavar="[WEBHOOK]",
            help="Name or id of the endpoint; without, of all.",
            show_default=False,
            autocompletion=names(Operators.read_webhooks, "name"),
        ),
    ] = None,
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="pending, processing, completed, failed or cancelled; repeat it.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 20,
    before: Annotated[
        UUID | None, typer.Option(help="Older than this one: the next page.", show_default=False)
    ] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest first; those that failed were given up."""
    older = None if before is None else str(before)
    rows = ask(
        config_file,
        lambda project: _known(
            project.read_webhook_deliveries(webhook=webhook, statuses=status or (), before=older, limit=limit)
        ),
    )
    if as_json:
        look.print_json(rows)
        return
    out = look.console()
    if not rows:
        out.print("no deliveries")
        return
    _tell_deliveries(rows, out)
    if len(rows) == limit:
        out.print(f"older ones: --before {rows[-1]['job_id']}", style="dim")


@app.command()
def redeliver(
    job: Annotated[UUID, typer.Argument(metavar="DELIVERY", help="Id of the delivery.", show_default=False)],
    *,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Deliver once more, with the same message id; one that is on its way is left alone."""
    row = ask(config_file, lambda project: project.redeliver_webhook(str(job)))
    _changed(row, f"{row['id']} {row['status']}", as_json=as_json)


@app.command("test")
def try_(webhook: Webhook, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Send an endpoint an event of type webhook.test."""
    row = ask(config_file, lambda project: _known(_once(project.test_webhook(webhook))))
    _changed(row, f"{row['id']} {row['status']}: processor webhooks deliveries {webhook}", as_json=as_json)


async def _known(doing: Awaitable[Any]) -> Any:
    """Say where the names are, if this is none."""
    try:
        return await doing
    except InvalidArgument as error:
        if "unknown webhook" in error.message:
            error.hint = "Their names: processor webhooks list"
        raise


async def _once(doing: Awaitable[Row]) -> Row:
    """Say what to look for, if it is not known whether it was done."""
    try:
        return await doing
    except ApiUnreachable as error:
        error.hint = "It may have been done all the same, see processor webhooks list, so it is not repeated."
        raise


def _changed(row: Row, said: str, *, as_json: bool) -> None:
    if as_json:
        look.print_json(row)
    else:
        look.console().print(Text(look.plain(said)), soft_wrap=True)


def _secret(row: Row, said: str, *, as_json: bool) -> None:
    if as_json:
        look.print_json(row)
        return
    out = look.console()
    out.print(Text(look.plain(said)), soft_wrap=True)
    out.print(Text.assemble((row["secret"], "bold")), soft_wrap=True)
    out.print(_ONCE, style="dim", soft_wrap=True)


def _style(row: Row) -> str:
    return _STATES.get(row["state"], "")


def _facts(row: Row) -> list[tuple[str, str]]:
    """Return what ``show`` says of an endpoint, line by line."""
    wants = [", ".join(row["events"])]
    wants += [f"{name} {', '.join(row[name])}" for name in ("queues", "kinds") if row[name] is not None]
    if row["owner_id"] is not None:
        wants.append(f"jobs of {row['owner_id']}")
    facts = [("id", row["id"]), ("url", row["url"]), ("wants", "; ".join(wants))]
    if row["description"]:
        facts.append(("what for", row["description"]))
    if row["rate_limit"] is not None:
        facts.append(("at most", f"{row['rate_limit']:,} in {look.lasts(row['rate_seconds'])}"))
    facts += [
        ("waiting", _waiting(row)),
        ("given up in a day", f"{row['given_up_last_day']:,}"),
        ("last success", look.ago(row["last_success_at"])),
    ]
    if row["last_failure_at"] is not None:
        facts.append(("last failure", f"{look.ago(row['last_failure_at'])}: {row['last_error']}"))
    if row["opened_until"] is not None:
        facts.append(("circuit", f"open, next try {look.ago(row['opened_until'])}"))
    if row["secrets"] > 1:
        facts.append(("secrets", f"{row['secrets']} sign, as one was rotated"))
    return facts


def _waiting(row: Row) -> str:
    if not row["waiting"]:
        return "0"
    return f"{row['waiting']:,}, the oldest for {look.lasts(row['oldest_seconds'])}"


def _tell(rows: list[Row], out: Console) -> None:
    if not rows:
        out.print("no webhooks: add one with processor webhooks add NAME URL")
        return
    columns = ["webhook", "state", "waiting", "given up/d", "last success", "url"]
    lines = [
        [
            look.words(row["name"]),
            look.words(row["state"], _style(row)),
            look.number(row["waiting"]),
            look.number(row["given_up_last_day"]),
            look.words(look.ago(row["last_success_at"])),
            look.words(row["url"]),
        ]
        for row in rows
    ]
    look.print_table(out, columns, lines, right=("waiting", "given up/d"), flexible=("url", "webhook"))
    for row in rows:
        if row["state"] in {"circuit_open", "disabled"} and row["last_error"]:
            out.print(Text(look.plain(f"{row['name']}: {row['last_error']}"), style="red"), soft_wrap=True)


def _tell_deliveries(rows: list[Row], out: Console) -> None:
    columns = ["delivery", "webhook", "event", "status", "answer", "tries", "when"]
    wide = out.width >= look.WIDE
    if wide:
        columns.append("error")
    lines = []
    for row in rows:
        when = row["run_at"] if row["status"] == "pending" else row["finished_at"] or row["created_at"]
        line = [
            look.words(row["job_id"]),
            look.words(row["webhook"]),
            look.words(row["event"]),
            look.status(row["status"]),
            look.words(row["http_status"] or "-"),
            look.words(f"{row['failures'] + (row['status'] == 'completed')}/{row['max_attempts']}"),
            look.words(look.ago(when), "dim"),
        ]
        if wide:
            line.append(look.words(row["error_message"]))
        lines.append(line)
    look.print_table(out, columns, lines, right=("answer", "tries"), flexible=("webhook", "error"))
