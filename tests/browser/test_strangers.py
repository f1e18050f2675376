"""What one user must not see, change or do to another."""

from playwright.async_api import expect

from tests.apps.cards import LOGGED, REFUSAL
from tests.browser.conftest import Cards

ATTACK = '<img src="x" onerror="document.title=1"><script>document.title=1</script>'


async def test_a_second_user_sees_nothing_of_a_job(visit, new_user, cards: Cards) -> None:
    alice, bob = await new_user(credits=10), await new_user()
    order = {"kind": cards.translate, "payload": {"title": "secret"}, "items": ["de"]}
    job_id = (await alice.rest.rpc("create_job", order).execute()).data["id"]
    stranger = await (await visit()).sign_in(bob)
    await stranger.live("live")
    await expect(stranger.page.locator("job-list .message")).to_be_visible()
    await stranger.go(f"#/jobs/{job_id}")
    await expect(stranger.page.get_by_role("heading", name="No such job")).to_be_visible()
    # nor while it goes on
    cards.decide("secret", de="done")
    owner = await (await visit()).sign_in(alice)
    await owner.open_job(job_id)
    await owner.status("completed")
    await expect(stranger.page.get_by_role("heading", name="No such job")).to_be_visible()
    await stranger.look("no-such-job")
    assert await stranger.row(job_id).count() == 0


async def test_a_forged_owner_changes_nothing(visit, new_user, cards: Cards, complaints) -> None:
    complaints.allow("status of 400.*rpc/create_job")
    alice, mallory = await new_user(credits=10), await new_user(credits=10)
    page = (await (await visit()).sign_in(mallory)).page
    answer = await page.evaluate(
        """async ([kind, owner_id]) => {
          const kept = Object.entries(localStorage).find(([name]) => name.endsWith('-auth-token'))[1]
          const { url, key } = await (await fetch('config.json')).json()
          const response = await fetch(`${url}/rest/v1/rpc/create_job`, {
            method: 'POST',
            headers: {
              apikey: key,
              authorization: `Bearer ${JSON.parse(kept).access_token}`,
              'content-type': 'application/json',
            },
            body: JSON.stringify({ kind, payload: { title: 'forged' }, items: ['de'], owner_id }),
          })
          return { status: response.status, body: await response.json() }
        }""",
        [cards.translate, alice.id],
    )
    assert answer["status"] == 400, answer
    accounts = (await alice.rest.table("credit_accounts").select("held, available").execute()).data
    assert accounts == [{"held": 0, "available": 10}]
    assert (await alice.rest.table("jobs").select("id").execute()).data == []


async def test_stored_text_is_text_wherever_it_is_shown(visit, new_user, cards: Cards) -> None:
    alice = await new_user(credits=10)
    title = f"{ATTACK[:60]} {alice.id[:8]}".replace("/", "")
    order = {
        "kind": cards.translate,
        "payload": {"title": title, "text": ATTACK},
        "items": ["de", {"key": "fr", "payload": {"note": ATTACK}}],
        "tags": ["<b>tag</b>"],
    }
    cards.decide(title, de="done", fr="fail")
    job_id = (await alice.rest.rpc("create_job", order).execute()).data["id"]
    visitor = await (await visit()).sign_in(alice)
    await visitor.open_job(job_id)
    await visitor.status("partial")
    await expect(visitor.job.get_by_text(LOGGED)).to_be_visible()
    await visitor.item("fr").click()
    await expect(visitor.job.get_by_text(f"In the words of the program: {REFUSAL}")).to_be_visible()
    await visitor.item("de").click()
    await expect(visitor.job.get_by_role("region", name="Result of German")).to_contain_text("<img src=")
    await visitor.job.locator("summary").last.click()
    await expect(visitor.job.get_by_role("region", name="What it was given")).to_contain_text("<script>")
    assert await visitor.page.locator("img, script:not([type=module]), b:has-text('tag')").count() == 0
    assert "1" not in await visitor.page.title()
    await visitor.look("hostile-text")


async def test_the_page_comes_with_a_policy_that_the_browser_enforces(visit, complaints) -> None:
    visitor = await visit()
    answer = await visitor.page.reload()
    policy = (await answer.all_headers())["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    complaints.allow("Content Security Policy")
    ran = await visitor.page.evaluate(
        """() => {
          const inline = document.createElement('script')
          inline.textContent = 'window.ran = true'
          document.head.append(inline)
          return window.ran === true
        }"""
    )
    assert not ran
