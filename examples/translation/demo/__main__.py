"""Start everything, order a translation as a user would, watch it, show the rows, stop everything."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import httpx
from postgrest import APIError
from rich.console import Console
from supabase import AsyncClientOptions, AuthError, create_async_client

from examples.translation.card import Card
from examples.translation.demo.customer import Customer, close, signed_up
from examples.translation.demo.process import Child, DemoError, running, until
from examples.translation.demo.screen import record, rows, screen
from examples.translation.demo.story import Story

CARD = Path(__file__).parents[1] / "cards" / "sourdough.json"
LANGUAGES = ("de", "fr", "tlh", "es", "sv")  # the translator does not speak Klingon: a refund to be seen
GRANT = 20
READY_SECONDS = 60.0  # the first start of all compiles every module
JOB_SECONDS = 300.0  # a real endpoint may take its time

JOB_COLUMNS = ("id", "kind", "status", "attempt", "items_total", "items_done", "items_failed",
               "credits_held", "credits_captured", "credits_refunded", "result")  # fmt: skip
ITEM_COLUMNS = ("key", "status", "credits", "error_code", "result ->> title")
LOG_COLUMNS = ("level", "message")
ENTRY_COLUMNS = ("id", "kind", "amount", "reason")
ACCOUNT_COLUMNS = ("issued", "available", "held", "spent", "expired")


async def main(console: Console) -> int:
    """Play the story; return the exit code."""
    playing = asyncio.current_task()
    assert playing is not None  # noqa: S101 - we are inside one
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, playing.cancel, signal.Signals(number).name)
    # no proxy can reach this machine's loopback
    for variable in ("NO_PROXY", "no_proxy"):
        os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), "127.0.0.1"]))
    began = monotonic()
    try:
        await play(console)
    except asyncio.CancelledError as reason:
        console.print(f"demo: ended by {reason}; everything it had started is stopped")
        return 1
    except (DemoError, APIError, AuthError, httpx.HTTPError) as error:
        console.print(f"demo: {error or type(error).__name__}", style="red", markup=False, highlight=False)
        return 1
    console.print(f" Everything is stopped again, after {monotonic() - began:.1f} s.", highlight=False)
    return 0


async def play(console: Console) -> None:
    """Run the main job from an empty database to its last row."""
    story = Story(Card.model_validate_json(CARD.read_text()), LANGUAGES)
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="processor-demo-", ignore_cleanup_errors=True)
        )
        stop_showing = stack.enter_context(screen(console, story))
        local, keys = await stack.enter_async_context(local_mode(story, directory))
        worker = await stack.enter_async_context(daemon(story, keys))
        customer = await stack.enter_async_context(user(story, keys))
        await order(story, customer)
        await until(story.ended, "the user had heard of the job's end", JOB_SECONDS, local, worker)
        stop_showing()
        await show_rows(console, story, customer)


@asynccontextmanager
async def local_mode(story: Story, directory: str) -> AsyncIterator[tuple[Child, Mapping[str, str]]]:
    """Run `processor dev`; give the process, and the address and keys that it prints."""
    step = story.begin("local mode", "starts PostgreSQL and the Supabase API in front of it")
    keys: dict[str, str] = {}
    ready = asyncio.Event()

    def hear(line: str) -> None:
        if line.startswith('{"url"'):
            keys.update(json.loads(line))
            ready.set()

    arguments = ("dev", "--json", "--port", "0", "--data-dir", directory)
    async with running("local mode", *arguments, hear=hear) as child:
        await until(ready, "it was ready", READY_SECONDS, child)
        story.done(step, f"PostgreSQL and a Supabase API, {keys['url']}")
        yield child, keys


@asynccontextmanager
async def daemon(story: Story, keys: Mapping[str, str]) -> AsyncIterator[Child]:
    """Run `processor run` as a process of its own, and read its log; wait until Realtime can wake it."""
    step = story.begin("daemon", "starts and subscribes to the jobs")
    live = asyncio.Event()

    def hear(line: str) -> None:
        said = json.loads(line) if line.startswith("{") else {}
        match said.get("event"):
            case "feed.mode" if said.get("mode") == "realtime":
                live.set()
            case "job.started":
                story.woken_by = said["wake"]
                story.started_at = datetime.fromtimestamp(said["started_at"], UTC)
                story.changed()

    environment = {
        "SUPABASE_URL": keys["url"],
        "SUPABASE_SERVICE_ROLE_KEY": keys["service_role_key"],
        "PROCESSOR_LOG_FORMAT": "json",
        "PROCESSOR_LOG_LEVEL": "info",
        "PROCESSOR_GRACE_SECONDS": "3",
    }
    arguments = ("run", "examples.translation.app:app")
    async with running("the daemon", *arguments, hear=hear, environment=environment) as child:
        await until(live, "Realtime could wake it", READY_SECONDS, child)
        story.done(step, f"process {child.pid}, listens to Realtime")
        yield child


@asynccontextmanager
async def user(story: Story, keys: Mapping[str, str]) -> AsyncIterator[Customer]:
    """Sign a user up, grant credits as only the service may, and watch the user's rows as a frontend does."""
    step = story.begin("user", "signs up")
    async with signed_up(keys["url"], keys["anon_key"]) as customer:
        service = await create_async_client(
            keys["url"], keys["service_role_key"], AsyncClientOptions(auto_refresh_token=False)
        )
        try:
            await service.rpc(
                "grant_credits", {"owner_id": customer.id, "amount": GRANT, "reason": "welcome"}
            ).execute()
        finally:
            await close(service)
        await customer.watch(story.row)
        story.done(step, f"{customer.email} signed up, {GRANT} credits granted")
        yield customer


async def order(story: Story, customer: Customer) -> None:
    """Create the job."""
    step = story.begin("job", "is created")
    job = await customer.order(story.card, story.languages)
    story.row("jobs", job)
    story.done(
        step,
        f"“{story.card.title}” into {len(story.languages)} languages, {job['credits_held']} credits held",
    )


async def show_rows(console: Console, story: Story, customer: Customer) -> None:
    """Show what the user can now read in the database."""
    job_id = story.job["id"]
    (job,) = await customer.rows("jobs", order="id", id=job_id)
    items = await customer.rows("job_items", order="position", job_id=job_id)
    logs = await customer.rows("job_logs", order="id", job_id=job_id)
    entries = await customer.rows("credit_entries", order="id")
    accounts = await customer.rows("credit_accounts", order="owner_id")
    for item in items:
        item["result ->> title"] = item["result"] and item["result"]["title"]
    record(console, "public.jobs", JOB_COLUMNS, job)
    rows(console, "public.job_items", ITEM_COLUMNS, items)
    rows(console, "public.job_logs", LOG_COLUMNS, logs)
    rows(console, "public.credit_entries", ENTRY_COLUMNS, entries)
    rows(console, "public.credit_accounts", ACCOUNT_COLUMNS, accounts)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Console())))
