"""Each view in each state, light and dark, wide and narrow, English and German: no barriers, and pictures."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Cards

LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"dark": True},
    "narrow": {"width": 360, "height": 740},
    "german-dark-narrow": {"dark": True, "width": 360, "height": 740, "language": "de"},
}


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> str:
    """Look at the page in one of several ways."""
    return request.param


async def fits(visitor) -> None:
    """Nothing makes the page wider than its window."""
    wide = await visitor.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"


async def test_every_view_is_without_barriers(visit, new_user, cards: Cards, eventually, look: str) -> None:
    alice = await new_user(credits=100)
    visitor = await visit(**LOOKS[look])
    page = visitor.page
    await expect(page.locator("job-sign-in")).to_be_visible()
    await visitor.look(f"sign-in-{look}")
    await fits(visitor)
    await visitor.sign_in(alice)
    await expect(page.locator("job-list .message")).to_be_visible()
    await visitor.look(f"list-empty-{look}")

    ids = {}
    for name, answers in {
        "done": {"de": "done", "fr": "done"},
        "some": {"de": "done", "fr": "fail"},
        "runs": {},
    }.items():
        title = f"{name} {alice.id}"
        cards.decide(title, **answers)
        order = {"kind": cards.translate, "payload": {"title": title}, "items": ["de", "fr"], "tags": [name]}
        ids[name] = (await alice.rest.rpc("create_job", order).execute()).data["id"]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    late = {"kind": cards.translate, "payload": {"title": "late"}, "items": ["de"], "run_at": tomorrow}
    ids["late"] = (await alice.rest.rpc("create_job", late).execute()).data["id"]
    for name, status in {
        "done": "completed",
        "some": "partial",
        "runs": "processing",
        "late": "pending",
    }.items():
        await expect(visitor.row(ids[name])).to_have_attribute("data-status", status)
    await visitor.look(f"list-{look}")
    await fits(visitor)

    for name, status in {
        "done": "completed",
        "some": "partial",
        "runs": "processing",
        "late": "pending",
    }.items():
        await visitor.open_job(ids[name])
        await visitor.status(status)
        await visitor.look(f"job-{status}-{look}")
        await fits(visitor)
    await visitor.go("#/new")
    await page.locator("job-create select").first.select_option(cards.translate)
    await page.locator("job-create button.primary").click()
    await expect(page.locator("job-create [aria-invalid=true]").first).to_be_visible()
    await visitor.look(f"new-job-with-mistakes-{look}")
    await fits(visitor)
    await visitor.go("#/")
    await page.locator("credit-balance button.balance").click()
    await expect(page.locator("credit-balance dialog")).to_be_visible()
    await visitor.look(f"statement-{look}")


async def test_what_nothing_can_be_read_from_says_so(visit, new_user, complaints) -> None:
    complaints.allow("status of 503")
    alice = await new_user()
    visitor = await visit()

    async def away(route) -> None:
        await route.fulfill(status=503, body="{}")

    await visitor.page.route("**/rest/v1/rpc/read_jobs", away)
    await visitor.sign_in(alice)
    await expect(visitor.page.get_by_role("heading", name="The jobs cannot be read")).to_be_visible()
    await visitor.look("list-unreadable")
    await visitor.page.unroute("**/rest/v1/rpc/read_jobs")
    await visitor.page.get_by_role("button", name="Try again").click()
    await expect(visitor.page.get_by_text("No jobs yet")).to_be_visible()


async def test_the_first_answer_is_waited_for_visibly(visit, new_user) -> None:
    alice = await new_user()
    visitor = await visit()
    answered = asyncio.Event()

    async def slow(route) -> None:
        await answered.wait()
        await route.continue_()

    await visitor.page.route("**/rest/v1/rpc/read_jobs", slow)
    await visitor.sign_in(alice)
    await expect(visitor.page.locator("job-list .skeleton").first).to_be_attached()
    await visitor.look("list-loading")
    answered.set()
    await expect(visitor.page.get_by_text("No jobs yet")).to_be_visible()
