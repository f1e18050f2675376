"""What people do on the panel, in their words, and how it is looked at."""

import json
import re
from pathlib import Path
from typing import Any, Protocol

from playwright.async_api import Locator, Page, expect

from tests.conftest import NewUser

ROOT = Path(__file__).parents[2]
AXE = ROOT / "panel" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = Path(__file__).with_name("shots")
"""Screenshots of each view and state, kept after a run to be looked at."""

FIND = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations.map((one) => ({
  rule: one.id,
  help: one.help,
  where: one.nodes.map((node) => [node.target, node.failureSummary]),
})))"""


class Hearing(Protocol):
    """Takes note of what a page complains about."""

    def allow(self, pattern: str) -> None: ...


class Visit:
    """Somebody on the page."""

    def __init__(self, page: Page, complaints: Hearing) -> None:
        self.page = page
        self.complaints = complaints

    async def sign_in(self, user: NewUser) -> "Visit":
        """Sign in with the form and wait for the list."""
        page = self.page
        await page.get_by_label(re.compile("E-mail address|E-Mail-Adresse")).fill(user.email)
        await page.get_by_label(re.compile("^(Password|Passwort)")).fill(user.password)
        await page.locator("job-sign-in button.primary").click()
        await expect(page.locator("job-panel")).to_be_visible()
        return self

    async def go(self, where: str) -> None:
        """Follow a link within the page, such as `#/jobs/…`."""
        await self.page.evaluate("where => { location.hash = where }", where)

    async def open_job(self, job_id: str) -> None:
        """Open a job and wait until it is shown."""
        await self.go(f"#/jobs/{job_id}")
        await expect(self.page.locator("job-detail article")).to_be_visible()

    def row(self, job_id: str) -> Locator:
        """Return a job's row in the list."""
        return self.page.locator(f'job-list li[data-id="{job_id}"]')

    def item(self, key: str) -> Locator:
        """Return an item's tag in the open job."""
        return self.page.locator(f'job-detail [data-key="{key}"]')

    @property
    def job(self) -> Locator:
        """The open job."""
        return self.page.locator("job-detail")

    async def status(self, status: str) -> None:
        """Wait until the open job has this status."""
        await expect(self.job.locator(f'header [data-status="{status}"]')).to_be_visible()

    async def live(self, state: str, within: float = 15.0) -> None:
        """Wait until the list says so of its line: connecting, live, refreshing or offline."""
        await expect(self.page.locator(f'job-list [data-live="{state}"]')).to_be_visible(
            timeout=within * 1000
        )

    async def look(self, name: str) -> None:
        """Take a screenshot, and let axe-core look for barriers: there are none."""
        SHOTS.mkdir(exist_ok=True)
        await self.page.screenshot(path=SHOTS / f"{name}.png")
        await self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = await self.page.evaluate(FIND)
        assert not found, f"{name}: {json.dumps(found, indent=1)}"
