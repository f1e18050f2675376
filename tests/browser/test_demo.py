"""What `processor dev` offers: a page with two users to try it with, one click each."""

from playwright.async_api import expect


async def test_the_users_of_a_demo_sign_in_with_one_click(visit, dev_process, tmp_path) -> None:
    app = "examples.translation.app:app"
    stack = dev_process(app, "--data-dir", str(tmp_path / "data")).ready()
    visitor = await visit(url=stack.panel_url)
    page = visitor.page
    await expect(page.get_by_role("button", name="Sign in as")).to_have_count(2)
    await visitor.look("sign-in-demo")
    await page.get_by_role("button", name=f"Sign in as {stack.demo_user['email']}").click()
    await expect(page.locator("credit-balance button.balance")).to_contain_text("1,000")
    await page.get_by_label("Settings").click()
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name=f"Sign in as {stack.operator_user['email']}").click()
    await page.get_by_role("link", name="Operations").click()
    await expect(page.locator("job-queues").get_by_role("heading", name="translation")).to_be_visible()
    await page.context.close()  # before the server that it talks to
