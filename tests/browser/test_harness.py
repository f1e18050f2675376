"""The tests' own eyes: what they are to find, they find."""

import pytest


async def test_whatever_a_page_complains_about_is_heard(visit, complaints, eventually) -> None:
    page = (await visit()).page
    await page.evaluate("console.error('said')")
    await page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    await page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: '1'}))")
    await eventually(lambda: len(complaints.left) >= 3)
    for sort in ("said", "thrown", "Content Security Policy"):
        assert any(sort in text for text in complaints.left), (sort, complaints.left)
        complaints.allow(sort)


async def test_a_barrier_is_found_in_the_depth_of_components(visit) -> None:
    visitor = await visit()
    await visitor.page.locator("job-sign-in form").wait_for()
    await visitor.page.evaluate(
        """() => {
          const form = document.querySelector('job-app').shadowRoot.querySelector('job-sign-in').shadowRoot
          form.append(document.createElement('input'))
        }"""
    )
    with pytest.raises(AssertionError, match="label"):
        await visitor.look("harness-barrier")
