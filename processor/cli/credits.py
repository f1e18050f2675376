"""``processor credits``: an owner's account, grants, the statement; and whether the books are right."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.text import Text

from processor.cli import look, values
from processor.cli.config import ConfigFile
from processor.cli.project import AsJson, Code, ask
from processor.operators import Operators, Row

app = typer.Typer(help="Credits: show, grant, history, check.", no_args_is_help=True)

Owner = Annotated[
    UUID, typer.Argument(metavar="OWNER", help="Id of the user, from auth.users.", show_default=False)
]
_SUMS = ("available", "held", "spent", "expired", "issued")


@app.command()
def show(owner: Owner, *, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show what an owner has, and what is left of each grant, in the order in which it will be spent."""

    async def read(project: Operators) -> Row:
        account = await project.read_account(str(owner))
        lots = await project.read_lots(str(owner))
        return {
            "owner_id": str(owner),
            **{name: (account or {}).get(name, 0) for name in _SUMS},
            "lots": lots,
        }

    found = ask(config_file, read)
    if as_json:
        look.print_json(found)
        return
    out = look.console()
    line = Text.assemble((f"{found['available']:,}", "bold green"), " available")
    out.print(line.append("".join(f", {found[name]:,} {name}" for name in _SUMS[1:]), "dim"))
    if not found["lots"]:
        return
    rows = [
        [
            look.number(lot["remaining"]),
            look.number(lot["amount"]),
            look.words(look.ago(lot["created_at"])),
            look.words("never" if lot["expires_at"] is None else look.ago(lot["expires_at"])),
            look.number(lot["priority"]),
        ]
        for lot in found["lots"]
    ]
    columns = ("left", "of", "granted", "expires", "priority")
    look.print_table(out, columns, rows, right=("left", "of", "priority"))


@app.command()
def grant(
    owner: Owner,
    amount: Annotated[int, typer.Argument(min=1, help="How many.", show_default=False)],
    *,
    reason: Annotated[
        str | None, typer.Option(help="Why; the owner can read it.", show_default=False)
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key, such as an order's number: the same again gives no more."),
    ] = None,
    priority: Annotated[int, typer.Option(help="Those of the highest are spent first.")] = 0,
    expires: Annotated[
        str | None,
        typer.Option(help="When what is left is lost: 30d, or 2026-12-31T00:00.", show_default=False),
    ] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Give credits to an owner."""

    async def do(project: Operators) -> Row:
        arguments: Row = {
            "owner_id": str(owner),
            "amount": amount,
            "reason": reason,
            # with a key of its own a call whose answer was lost can be repeated
            "idempotency_key": f"cli:{uuid4()}" if key is None else key,
            "priority": priority,
            "expires_at": None if expires is None else values.moment_or_length("--expires", expires),
        }
        return await project.grant_credits(arguments)

    account = ask(config_file, do)
    if as_json:
        look.print_json(account)
    else:
        look.console().print(
            f"{look.counted(amount, 'credit')} granted: {owner} has {account['available']:,} available",
            soft_wrap=True,
        )


@app.command()
def history(
    owner: Owner,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many lines.")] = 20,
    before: Annotated[
        int | None, typer.Option(help="Older than this line: the next page.", show_default=False)
    ] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show an owner's statement, the last line first."""
    rows = ask(config_file, lambda project: project.read_statement(str(owner), before=before, limit=limit))
    if as_json:
        look.print_json(rows)
        return
    out = look.console()
    if not rows:
        out.print("no entries")
        return
    time = look.clock if out.width >= look.WIDE else look.ago
    lines = [
        [
            look.words(time(row["created_at"]), "dim"),
            look.words(row["kind"]),
            _change(row["change"]),
            look.words(f"{row['balance']:,}"),
            look.words(row["reason"] if row["job_id"] is None else row["job_id"]),
        ]
        for row in rows
    ]
    columns = ("when", "what", "change", "balance", "job or reason")
    look.print_table(out, columns, lines, right=("change", "balance"), flexible=("job or reason",))
    if len(rows) == limit:
        out.print(f"older ones: --before {rows[-1]['id']}", style="dim")


@app.command()
def check(*, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check that every credit is accounted for; exit code 0: the books are right, 1: they are not.

    It reads the whole journal. Where that is too long for alerts to read they say what this found: have a
    timer run it daily.
    """
    faults = ask(config_file, lambda project: project.check_credits())
    if as_json:
        look.print_json({"ok": not faults, "faults": faults})
    elif faults:
        rows = [
            [
                look.words(fault["problem"], "red"),
                look.words(fault["owner_id"]),
                look.words(fault["job_id"] or ""),
                look.number(fault["expected"]),
                look.number(fault["found"]),
            ]
            for fault in faults
        ]
        columns = ("fault", "owner", "job", "expected", "found")
        look.print_table(look.console(), columns, rows, right=("expected", "found"), flexible=("fault",))
    else:
        look.console().print("ok: the books are right")
    if faults:
        raise typer.Exit(Code.REFUSED)


def _change(amount: int) -> Text:
    style = "green" if amount > 0 else "red" if amount else "dim"
    return look.words(f"{amount:+,}" if amount else "0", style)
