"""A list of 100,000 jobs: what it asks for, draws and keeps does not grow with it."""

import asyncpg
import pytest
from playwright.async_api import CDPSession, expect

from tests.browser.crowd import fill

JOBS = 100_000
FIRST_PAGE, FURTHER_PAGES = 60, 200
DEEP = 5_000
DRAWN_AT_MOST = 80
HEAP_GROWTH_MB = 20


@pytest.fixture
async def crowded(new_user, admin: asyncpg.Connection):
    """Sign up somebody who has 100,000 jobs; a page that is still open would be told of each that goes."""
    user = await new_user()
    await fill(admin, user.id, JOBS)
    yield user
    await admin.execute("delete from public.jobs where owner_id = $1", user.id, timeout=120)


async def heap(session: CDPSession) -> float:
    """Megabytes of live objects."""
    await session.send("HeapProfiler.collectGarbage")
    return (await session.send("Runtime.getHeapUsage"))["usedSize"] / 1e6


async def test_what_a_list_of_100_000_jobs_asks_draws_and_keeps_is_bounded(crowded, visit) -> None:
    visitor = await visit()
    page = visitor.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "rpc/read_jobs" in request.url else None)
    await visitor.sign_in(crowded)
    rows = page.locator("job-list li[data-id]")
    await expect(rows.first).to_be_visible()
    await visitor.live("live")
    assert len(asked) <= 4, asked  # at the start, when the line is up, and what comes next
    assert await rows.count() <= DRAWN_AT_MOST
    session = await page.context.new_cdp_session(page)
    before = await heap(session)

    # down and down: each further page is asked for once
    while (
        await (last := rows.last).get_attribute("aria-posinset")
        and int(await last.get_attribute("aria-posinset") or 0) < DEEP
    ):
        known = await page.locator("job-list ul").evaluate("list => list.clientHeight")
        await page.locator("job-list .scroll").evaluate("view => { view.scrollTop = view.scrollHeight }")
        await page.wait_for_function(
            "([list, known]) => list.clientHeight > known",
            arg=[await page.locator("job-list ul").element_handle(), known],
        )
    assert len(asked) <= 4 + 2 * DEEP / FURTHER_PAGES, f"{len(asked)} requests for {DEEP} rows"
    assert await rows.count() <= DRAWN_AT_MOST
    grown = await heap(session) - before
    assert grown < HEAP_GROWTH_MB, f"{grown:.1f} MB more after {DEEP} rows"
    await visitor.look("list-deep")

    # and up again: what was let go is read again
    await page.locator("job-list .scroll").evaluate("view => { view.scrollTop = 0 }")
    await expect(page.locator('job-list li[data-id][aria-posinset="1"]')).to_be_visible()

    # a filter and a search go through all of them
    await page.locator('job-list [data-filter="failed"]').click()
    await expect(rows.first).to_have_attribute("data-status", "failed")
    await page.get_by_role("searchbox").fill("UPSTREAM_TIME")
    await expect(rows.first).to_have_attribute("data-status", "failed")
