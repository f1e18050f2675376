"""Measure the panel's list of 100,000 jobs: how soon rows are seen, how smoothly it scrolls, what it keeps.

Run it with ``python -m bench.panel`` (needs Debian's chromium, and the panel built by ./scripts/panel). It
starts local mode with a database of its own, opens the page in headless Chromium, and prints JSON. The first
rows are timed from the beginning of the navigation (a reload, signed in) to the frame that draws them.
"""

import argparse
import asyncio
import json
import select
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from playwright.async_api import Page, async_playwright

from tests.browser.conftest import FLAGS
from tests.browser.crowd import fill

READY_SECONDS = 60
FIRST_ROW = """new Promise((resolve) => {
  const within = (host, name) => host?.shadowRoot?.querySelector(name)
  const look = () => {
    const list = within(within(document.querySelector('job-app'), 'job-panel'), 'job-list')
    if (within(list, 'li[data-id]')) requestAnimationFrame(() => resolve(performance.now()))
    else requestAnimationFrame(look)
  }
  look()
})"""
SCROLL = """async (rows) => {
  const panel = document.querySelector('job-app').shadowRoot.querySelector('job-panel')
  const list = panel.shadowRoot.querySelector('job-list')
  const view = list.shadowRoot.querySelector('.scroll')
  const frames = []
  let last = performance.now()
  const rowsDrawn = () => [...list.shadowRoot.querySelectorAll('li[data-id]')]
  const drawn = () => Number(rowsDrawn().at(-1)?.getAttribute('aria-posinset') ?? 0)
  while (drawn() < rows) {
    view.scrollTop += 400
    const now = await new Promise(requestAnimationFrame)
    frames.push(now - last)
    last = now
  }
  return frames
}"""


async def measure(page: Page, jobs: int, scrolled: int, repeats: int) -> dict[str, Any]:
    """Reload several times, then scroll down once."""
    session = await page.context.new_cdp_session(page)

    async def heap() -> float:
        await session.send("HeapProfiler.collectGarbage")
        return round((await session.send("Runtime.getHeapUsage"))["usedSize"] / 1e6, 1)

    paints = []
    for _ in range(repeats):
        await page.reload(wait_until="commit")
        paints.append(await page.evaluate(FIRST_ROW))
    at_first = await heap()
    frames = sorted(await page.evaluate(SCROLL, scrolled))
    return {
        "jobs": jobs,
        "first_rows_ms": {"median": round(statistics.median(paints)), "worst": round(max(paints))},
        "heap_mb": {"first_page": at_first, f"after_{scrolled}_rows": await heap()},
        "dom_nodes": (await session.send("Memory.getDOMCounters"))["nodes"],
        "frame_ms": {
            "median": round(statistics.median(frames), 1),
            "p99": round(frames[int(len(frames) * 0.99)], 1),
            "worst": round(frames[-1], 1),
        },
    }


async def bench(
    stack: dict[str, Any], chromium: str, jobs: int, scrolled: int, repeats: int
) -> dict[str, Any]:
    """Sign somebody up, give them jobs, and look at the page."""
    credentials = {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}
    async with httpx.AsyncClient(headers={"apikey": stack["anon_key"]}, trust_env=False) as http:
        answer = await http.post(f"{stack['url']}/auth/v1/signup", json=credentials)
        answer.raise_for_status()
    admin = await asyncpg.connect(stack["db_url"])
    try:
        await fill(admin, answer.json()["user"]["id"], jobs)
    finally:
        await admin.close()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await page.goto(stack["panel_url"])
        await page.get_by_label("E-mail address").fill(credentials["email"])
        await page.get_by_label("Password").fill(credentials["password"])
        await page.locator("job-sign-in button.primary").click()
        await page.locator("job-list li[data-id]").first.wait_for()
        try:
            return await measure(page, jobs, scrolled, repeats)
        finally:
            await browser.close()


def main() -> None:
    """Read the arguments, run local mode, print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--scroll", type=int, default=20_000, help="rows to scroll down")
    parser.add_argument("--repeats", type=int, default=7, help="page loads")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "processor",
            "dev",
            "--json",
            "--port",
            "0",
            "--data-dir",
            directory + "/data",
        ]
        with (Path(directory) / "stderr").open("wb") as stderr:
            dev = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
        try:
            assert dev.stdout is not None
            readable, _, _ = select.select([dev.stdout], [], [], READY_SECONDS)
            line = dev.stdout.readline() if readable else b""
            if not line:
                sys.exit(f"processor dev was not ready: {(Path(directory) / 'stderr').read_text()}")
            told = bench(json.loads(line), chosen.chromium, chosen.jobs, chosen.scroll, chosen.repeats)
            print(json.dumps(asyncio.run(told), indent=2))
        finally:
            dev.terminate()
            dev.wait(30)


if __name__ == "__main__":
    main()
