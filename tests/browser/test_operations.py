"""The operator's view: what it shows, what it does, and whom it is for."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from playwright.async_api import expect

from tests.browser.conftest import Cards
from tests.conftest import NewUser

SECTIONS = {
    "Queues": "job-queues .card",
    "Workers": "job-workers .card",
    "Schedules": "job-schedules .card",
    "Throughput": "job-throughput .uplot",
    "Errors": "job-error-codes table",
    "Credits": "job-credit-days .uplot",
}


@pytest.fixture
async def operator(new_user, admin: asyncpg.Connection) -> Callable[[], Awaitable[NewUser]]:
    """Sign up an operator; the token that the page gets when it signs in says so."""

    async def sign_up() -> NewUser:
        user = await new_user()
        await admin.execute(
            "update auth.users set raw_app_meta_data = coalesce(raw_app_meta_data, '{}')"
            """ || '{"is_operator": true}' where id = $1""",
            user.id,
        )
        return user

    return sign_up


@pytest.fixture
async def some_work(new_user, cards: Cards, eventually) -> None:
    """Let there be something to see: one language translated, one refused."""
    alice = await new_user(credits=10)
    cards.decide(alice.id, de="done", fr="fail")
    order = {"kind": cards.translate, "payload": {"title": alice.id}, "items": ["de", "fr"]}
    await alice.rest.rpc("create_job", order).execute()

    async def ended() -> bool:
        rows = (await alice.rest.table("jobs").select("finished_at").execute()).data
        return rows[0]["finished_at"] is not None

    await eventually(ended, within=20)


@pytest.mark.usefixtures("some_work")
@pytest.mark.parametrize(
    ("look", "options"),
    [("light", {}), ("dark-narrow", {"dark": True, "width": 360}), ("german", {"language": "de"})],
)
async def test_each_section_shows_what_there_is_without_barriers(visit, operator, look, options) -> None:
    visitor = await (await visit(**options)).sign_in(await operator())
    await visitor.go("#/operations")
    tabs = visitor.page.get_by_role("tab")
    for place, (name, content) in enumerate(SECTIONS.items()):
        await tabs.nth(place).click()
        await expect(visitor.page.locator(content).first).to_be_visible()
        await visitor.look(f"operations-{name.lower()}-{look}")
    wide = await visitor.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"


async def test_the_sections_are_reached_with_the_keyboard(visit, operator) -> None:
    visitor = await (await visit()).sign_in(await operator())
    await visitor.go("#/operations")
    page = visitor.page
    await page.get_by_role("tab", name="Queues").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("tab", name="Workers")).to_be_focused()
    await expect(page.locator("job-workers")).to_be_visible()
    await page.keyboard.press("End")
    await expect(page.get_by_role("tab", name="Credits")).to_be_focused()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("tab", name="Queues")).to_have_attribute("aria-selected", "true")


async def test_a_queue_is_paused_resumed_and_limited(visit, operator, service, cards, complaints) -> None:
    complaints.allow("status of 400")  # the limit that the database refuses
    visitor = await (await visit()).sign_in(await operator())
    await visitor.go("#/operations")
    page, queue = visitor.page, cards.prefix
    row = service.table("job_queues").select("*").eq("name", queue).single()
    try:
        await page.get_by_role("button", name=f"Pause {queue}").click()
        await visitor.look("operations-pause-question")
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert not (await row.execute()).data["paused"]
        await page.get_by_role("button", name=f"Pause {queue}").click()
        await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("button", name=f"Resume {queue}")).to_be_focused()
        assert (await row.execute()).data["paused"]
    finally:
        await page.get_by_role("button", name=f"Resume {queue}").click()
    await expect(page.get_by_role("button", name=f"Pause {queue}")).to_be_visible()
    await page.get_by_role("button", name=f"Limits of {queue}").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("At once, over all workers").fill("50")
    await dialog.get_by_label("Seconds per attempt").fill("99999999")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("timeout_seconds")
    await visitor.look("operations-limits-refused")
    assert (await row.execute()).data["max_processing"] is None, "a refused change changed something"
    await dialog.get_by_label("Seconds per attempt").fill("300")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog).to_be_hidden()
    told = (await row.execute()).data
    assert (told["max_processing"], told["timeout"]) == (50, "00:05:00")
    await expect(page.locator("job-queues .card", has_text=queue)).to_contain_text("50 at once")


async def test_what_others_do_to_a_queue_is_shown_at_once(visit, operator, service, cards) -> None:
    visitor = await (await visit()).sign_in(await operator())
    await visitor.go("#/operations")
    await expect(visitor.page.locator('job-queues [data-live="live"]')).to_be_visible()
    card = visitor.page.locator("job-queues .card", has_text=cards.prefix)
    async with visitor.page.expect_response("**/rpc/read_queues"):
        pass  # the next one comes in 10 s by itself
    try:
        await service.rpc("pause_queue", {"name": cards.prefix}).execute()
        await expect(card).to_contain_text("Paused", timeout=8_000)
    finally:
        await service.rpc("resume_queue", {"name": cards.prefix}).execute()
    await expect(card).to_contain_text("Active", timeout=8_000)


async def test_a_schedule_runs_now_and_links_to_its_job(visit, operator, cards) -> None:
    visitor = await (await visit()).sign_in(await operator())
    await visitor.go("#/operations")
    page, name = visitor.page, f"{cards.prefix}.nightly"
    await page.get_by_role("tab", name="Schedules").click()
    card = page.locator("job-schedules .card", has_text=name).first
    await card.get_by_role("button", name=f"Pause {name}").click()
    await expect(card.get_by_role("button", name=f"Resume {name}")).to_be_visible()
    await card.get_by_role("button", name=f"Resume {name}").click()
    await card.get_by_role("button", name=f"Run now: {name}").click()
    await page.get_by_role("dialog").get_by_role("button", name="Run now").click()
    await card.get_by_role("link").click()
    await expect(page.locator("job-detail").get_by_role("heading", name=name)).to_be_visible()


async def test_nobody_else_is_shown_the_view_or_asks_for_it(visit, new_user) -> None:
    asked: list[str] = []
    visitor = await visit()
    visitor.page.on("request", lambda request: asked.append(request.url))
    await visitor.sign_in(await new_user())
    await visitor.go("#/operations")
    await expect(visitor.page.get_by_text("This view is for operators")).to_be_visible()
    await visitor.look("operations-for-others")
    await expect(visitor.page.get_by_role("navigation")).to_have_count(0)
    assert not [url for url in asked if "rpc/read_queues" in url]


async def test_an_hour_of_throughput_is_drawn_and_can_be_read_as_a_table(visit, operator, some_work) -> None:
    visitor = await (await visit()).sign_in(await operator())
    await visitor.go("#/operations")
    page = visitor.page
    await page.get_by_role("tab", name="Throughput").click()
    await page.get_by_role("radio", name="1 hour").check()
    plot = page.locator("job-plot").first
    await expect(plot.get_by_role("heading")).to_have_text("Ended jobs per minute")
    await plot.get_by_text("As a table").click()
    await expect(plot.get_by_role("row")).not_to_have_count(0)
    drawn = await plot.locator("canvas").evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )
    assert drawn > 2, "the canvas is empty"
    # a window that becomes narrow takes the plot with it
    await page.set_viewport_size({"width": 400, "height": 800})
    await asyncio.wait_for(
        page.wait_for_function(
            "plot => plot.renderRoot.querySelector('.uplot').clientWidth <= 400",
            arg=await plot.element_handle(),
        ),
        10,
    )
