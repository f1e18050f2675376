"""The story of the product, from a person's first look at the page to the last language delivered."""

from uuid import uuid4

import asyncpg
from playwright.async_api import expect

from tests.browser.conftest import Cards

LANGUAGES = ("de", "fr", "es", "it", "pt")


async def test_five_languages_of_which_two_fail_and_are_tried_again(
    lasting_browser, service, admin: asyncpg.Connection, cards: Cards
) -> None:
    card = uuid4().hex
    visitor = await lasting_browser()
    page = visitor.page

    # sign up, and see the balance as soon as there is one
    email = f"{card}@example.com"
    await page.get_by_role("button", name="New here?").click()
    await page.get_by_label("E-mail address").fill(email)
    await page.get_by_label("Password").fill("a long password")
    await page.get_by_role("button", name="Create an account").click()
    await expect(page.locator("job-list .message")).to_contain_text("No jobs yet")
    await visitor.live("live")
    await visitor.look("story-1-empty")
    user_id = await admin.fetchval("select id from auth.users where email = $1", email)
    await service.rpc(
        "grant_credits", {"owner_id": str(user_id), "amount": 20, "reason": "welcome"}
    ).execute()
    balance = page.locator("credit-balance button.balance")
    await expect(balance).to_contain_text("20")

    # a card into five languages, its price shown before
    await page.get_by_role("link", name="New job").click()
    await page.get_by_label("Kind of job").select_option(cards.translate)
    await page.get_by_label("Title").fill(card)
    for language in LANGUAGES:
        await page.get_by_label("Items").last.fill(language)
        await page.keyboard.press("Enter")
    await expect(page.get_by_text("2 = 10 credits")).to_be_visible()
    await visitor.look("story-2-new-job")
    await page.evaluate("window.notReloaded = true")
    await page.get_by_role("button", name="Create job").click()

    # it progresses before one's eyes
    await visitor.status("processing")
    job_id = (await page.evaluate("location.hash")).split("/")[-1]
    await expect(visitor.item("pt")).to_have_attribute("data-status", "pending")
    cards.decide(card, de="done", fr="done")
    for language in ("de", "fr"):
        await expect(visitor.item(language)).to_have_attribute("data-status", "completed")
    await expect(visitor.job.get_by_text("2 of 5 done").first).to_be_visible()
    await expect(visitor.job.get_by_role("progressbar")).to_have_js_property("value", 0.7)
    await expect(visitor.job.get_by_text("10 credits are reserved.")).to_be_visible()
    await visitor.look("story-3-running")
    assert await page.evaluate("window.notReloaded"), "the page was reloaded"

    # the browser is closed; two languages fail meanwhile
    await page.context.close()
    cards.decide(card, es="done", it="fail", pt="fail")
    visitor = await lasting_browser()
    page = visitor.page
    await expect(visitor.row(job_id)).to_have_attribute("data-status", "partial")
    await visitor.row(job_id).get_by_role("link").click()
    await visitor.status("partial")
    for language, status in zip(LANGUAGES, ["completed"] * 3 + ["failed"] * 2, strict=True):
        await expect(visitor.item(language)).to_have_attribute("data-status", status)
    credits_told = "10 credits were reserved: 6 paid for what was done, 4 given back."
    await expect(visitor.job.get_by_text(credits_told)).to_be_visible()
    balance = page.locator("credit-balance button.balance")
    await expect(balance).to_contain_text("14")
    await visitor.look("story-4-two-failed")

    # only those two are tried again, and paid
    cards.decide(card, it="done", pt="done")
    await page.get_by_role("button", name="Retry the 2 failed items (reserves 4 credits)").click()
    await expect(visitor.job.get_by_text("Repeats an earlier job")).to_be_visible()
    await visitor.status("completed")
    assert await page.locator("job-detail [data-key]").count() == 2
    for language in ("it", "pt"):
        await expect(visitor.item(language)).to_have_attribute("data-status", "completed")
    await expect(visitor.job.get_by_text("4 credits were reserved and paid.")).to_be_visible()
    await expect(balance).to_contain_text("10")
    await visitor.look("story-5-all-there")
    account = await admin.fetchrow(
        "select available, held, spent from public.credit_accounts where owner_id = $1", user_id
    )
    assert tuple(account) == (10, 0, 10)
