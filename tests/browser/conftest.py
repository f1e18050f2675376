"""Chromium on the panel of the local stack, a daemon that tests steer, and what every page must keep to."""

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.async_api import (
    BrowserContext,
    BrowserType,
    ConsoleMessage,
    Page,
    WebSocket,
    async_playwright,
    expect,
)

from tests.browser.panel import Visit
from tests.conftest import RunningStack
from tests.daemons import Daemon

ROOT = Path(__file__).parents[2]
PATIENCE_MS = 15_000
expect.set_options(timeout=PATIENCE_MS)
# no sandbox: tests may run as root; the others keep the browser from calling home
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def needed(program: str) -> str:
    """Return where a program is; without it tests are skipped, in CI they fail."""
    path = shutil.which(program)
    if path is None:
        missing = f"{program} is not installed: on Debian, apt-get install {program}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Debian's Chromium is."""
    return needed("chromium")


@pytest.fixture(scope="session")
def panel(stack: RunningStack) -> str:
    """Build the page if it has changed, and return its address."""
    needed("npm")
    subprocess.run([ROOT / "scripts" / "panel"], check=True)
    return stack.panel_url


class Cards:
    """A daemon that works on cards, and what becomes of each of them."""

    def __init__(self, stack: RunningStack, answers: Path) -> None:
        self.prefix = f"b{uuid4().hex[:8]}"
        self.translate = f"{self.prefix}.translate"
        self.endless = f"{self.prefix}.endless"
        self._answers = answers
        environment = {
            "SUPABASE_URL": stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
            "TEST_PREFIX": self.prefix,
            "TEST_ANSWERS": str(answers),
        }
        self.daemon = Daemon.launch("tests.apps.cards:app", environment, "--slots", "20")

    def decide(self, card: str, **answers: str) -> None:
        """Say of languages of a card whether they are `done` or `fail`."""
        for language, answer in answers.items():
            unfinished = self._answers / f"{card}.{language}.part"
            unfinished.write_text(answer)
            unfinished.rename(self._answers / f"{card}.{language}")

    def stopped_at(self, card: str) -> float | None:
        """When the endless handler of this card was stopped, in seconds since 1970; None if it was not."""
        file = self._answers / f"{card}.stopped"
        return file.stat().st_mtime if file.exists() else None


@pytest.fixture(scope="session")
def cards(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cards]:
    """One daemon for all browser tests; cards have names of their own."""
    cards = Cards(stack, tmp_path_factory.mktemp("answers"))
    try:
        asyncio.run(cards.daemon.ready())
        yield cards
    finally:
        cards.daemon.end()


@pytest.fixture
async def browsers() -> AsyncIterator[BrowserType]:
    """Start browsers as Playwright does."""
    async with async_playwright() as playwright:
        yield playwright.chromium


class Complaints:
    """What a page must not have: errors in the console, errors nobody caught, breaches of its policy."""

    def __init__(self) -> None:
        self.allowed: list[str] = []
        self._heard: list[str] = []

    def watch(self, context: BrowserContext) -> None:
        """Listen to all pages of a browser's user."""
        context.on("console", self._said)
        context.on("weberror", lambda error: self._heard.append(f"uncaught: {error.error}"))

    def allow(self, pattern: str) -> None:
        """Take no offence at what a test brings about on purpose."""
        self.allowed.append(pattern)

    @property
    def left(self) -> list[str]:
        """What nobody has allowed."""
        return [text for text in self._heard if not any(re.search(each, text) for each in self.allowed)]

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._heard.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    """Fail the test, at its end, for whatever its pages complained about."""
    complaints = Complaints()
    yield complaints
    assert not complaints.left, complaints.left


@pytest.fixture
async def visit(
    panel: str, chromium: str, browsers: BrowserType, complaints: Complaints
) -> AsyncIterator[Callable[..., Awaitable[Visit]]]:
    """Open the panel as somebody new; each visit has cookies and storage of its own."""
    browser = await browsers.launch(executable_path=chromium, args=FLAGS)

    async def open_panel(
        *,
        url: str = panel,
        dark: bool = False,
        width: int = 1280,
        height: int = 900,
        language: str = "en",
    ) -> Visit:
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale={"en": "en-US", "de": "de-DE"}[language],
            reduced_motion="reduce",
        )
        return await arrive(context, url, complaints)

    yield open_panel
    await browser.close()


@pytest.fixture
async def lasting_browser(
    panel: str, chromium: str, browsers: BrowserType, complaints: Complaints, tmp_path: Path
) -> AsyncIterator[Callable[[], Awaitable[Visit]]]:
    """Open a browser that keeps what it stores when it is closed and opened again."""
    opened: list[BrowserContext] = []

    async def open_browser() -> Visit:
        opened.append(
            await browsers.launch_persistent_context(
                tmp_path / "profile",
                executable_path=chromium,
                args=FLAGS,
                viewport={"width": 1280, "height": 900},
                locale="en-US",
                reduced_motion="reduce",
            )
        )
        return await arrive(opened[-1], panel, complaints)

    yield open_browser
    for context in opened:
        await context.close()


async def arrive(context: BrowserContext, url: str, complaints: Complaints) -> Visit:
    """Open the page and begin to listen before it loads."""
    complaints.watch(context)
    context.set_default_timeout(PATIENCE_MS)
    page: Page = await context.new_page()
    page.on("websocket", overhear)
    page.on("requestfinished", lambda request: note("read", request.url))
    await page.goto(url)
    return Visit(page, complaints)


def overhear(socket: WebSocket) -> None:
    """Print what is said over a page's Realtime connection: pytest shows it if the test fails."""
    note("open", socket.url.partition("?")[0])
    socket.on("framesent", lambda frame: note(">", frame))
    socket.on("framereceived", lambda frame: note("<", frame))
    socket.on("close", lambda _socket: note("closed", ""))


def note(what: str, text: str | bytes) -> None:
    """Print a line of a page's conversation with the stack, with the time and without its keys."""
    shown = re.sub(r"eyJ[\w.-]+", "…", str(text))[:1000]
    print(f"{time.monotonic():.3f} {what} {shown}")  # noqa: T201 - pytest shows it if the test fails
