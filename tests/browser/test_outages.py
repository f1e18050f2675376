"""A network that goes away under an open page, and a job that is stopped from it."""

import time
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from processor.config import Settings
from processor.web.server import WebServer
from tests.browser.conftest import Cards
from tests.conftest import RunningStack
from tests.faults import FaultProxy

CUT_SECONDS = 30.0


@pytest.fixture
async def line(stack: RunningStack, panel: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """Give a line to the project that can be cut, and a page, the daemon's own, that uses it."""
    async with FaultProxy(stack.url) as proxy:
        settings = Settings(
            url=proxy.url, key=stack.service_role_key, anon_key=stack.anon_key, http_port=0, panel=True
        )
        web = WebServer(settings, healthy=dict, ready=dict, status=dict, on_end=lambda _task: None)
        try:
            yield proxy, f"{await web.start()}/panel/"
        finally:
            await web.stop()


async def test_a_cut_of_30_s_is_said_and_nothing_is_missed(
    line, visit, new_user, cards: Cards, complaints
) -> None:
    proxy, url = line
    complaints.allow(r"net::ERR_|WebSocket connection")  # the browser's own words for a line that is down
    alice = await new_user(credits=20)
    order = {"kind": cards.translate, "payload": {"title": alice.id}, "items": ["de", "fr", "es"]}
    job_id = (await alice.rest.rpc("create_job", order).execute()).data["id"]
    visitor = await (await visit(url=url)).sign_in(alice)
    await visitor.open_job(job_id)
    await visitor.live("live")
    cards.decide(alice.id, de="done")
    await expect(visitor.item("de")).to_have_attribute("data-status", "completed")

    began = time.monotonic()
    proxy.refuse()
    proxy.cut()
    await visitor.live("offline", within=10)
    await visitor.look("offline")
    cards.decide(alice.id, fr="done", es="fail")  # while nobody can see it
    more = (await alice.rest.rpc("create_job", order | {"payload": {"title": "later"}}).execute()).data["id"]
    await visitor.page.wait_for_timeout(max(0.0, CUT_SECONDS - (time.monotonic() - began)) * 1000)
    await expect(visitor.item("fr")).to_have_attribute("data-status", "pending")

    await proxy.heal()
    await visitor.live("live", within=25)
    await visitor.status("partial")
    for key, status in {"de": "completed", "fr": "completed", "es": "failed"}.items():
        await expect(visitor.item(key)).to_have_attribute("data-status", status)
    await expect(visitor.row(more)).to_be_visible()
    # and it hears again what happens, without reading
    cards.decide("later", de="fail", fr="fail", es="fail")
    await expect(visitor.row(more)).to_have_attribute("data-status", "failed")


async def test_cancel_stops_the_handler_within_a_second_and_the_refund_is_shown(
    visit, new_user, cards: Cards, eventually
) -> None:
    alice = await new_user(credits=20)
    order = {"kind": cards.endless, "payload": {"title": alice.id}}
    job_id = (await alice.rest.rpc("create_job", order).execute()).data["id"]
    visitor = await (await visit()).sign_in(alice)
    await visitor.open_job(job_id)
    await visitor.status("processing")
    await expect(visitor.job.get_by_text("until somebody stops it").first).to_be_visible()
    await visitor.page.get_by_role("button", name="Cancel job").click()
    await visitor.look("cancel-question")
    began = time.time()
    await visitor.page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    stopped_at = await eventually(lambda: cards.stopped_at(alice.id), within=10)
    assert stopped_at - began < 1.0
    await visitor.status("cancelled")
    await expect(visitor.job.get_by_text("5 credits were reserved and all given back.")).to_be_visible()
    await visitor.look("cancelled")
