"""The panel's page as browsers get it: files, what they may do, and what the page needs to know."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from processor.config import Settings
from processor.web import panel
from processor.web.server import WebServer

ROOT = Path(__file__).parents[2]
INDEX = "<!doctype html><title>Jobs</title><script type=module src=/panel/assets/index-abc.js></script>"


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a small page in place of the one that is built."""
    directory = tmp_path / "static"
    (directory / "assets").mkdir(parents=True)
    (directory / "index.html").write_text(INDEX)
    (directory / "icon.svg").write_text("<svg/>")
    (directory / "assets" / "index-abc.js").write_text("let x")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(panel, "STATIC", directory)
    return directory


@asynccontextmanager
async def served(stack: Any, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run the daemon's server without a daemon around it."""
    known = {"url": stack.url, "key": stack.service_role_key, "anon_key": stack.anon_key}
    web = WebServer(
        Settings(**known | settings, http_port=0, panel=True),
        healthy=dict,
        ready=dict,
        status=dict,
        on_end=lambda _task: None,
    )
    try:
        async with httpx.AsyncClient(base_url=await web.start(), trust_env=False) as client:
            yield client
    finally:
        await web.stop()


def guarded(answer: httpx.Response) -> bool:
    """Whether a browser is told what the page must not do."""
    policy = answer.headers.get("content-security-policy", "")
    return (
        policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ")
        and "unsafe" not in policy
        and policy.endswith("base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        and answer.headers["x-content-type-options"] == "nosniff"
        and answer.headers["referrer-policy"] == "no-referrer"
        and "camera=()" in answer.headers["permissions-policy"]
    )


async def test_the_page_comes_with_a_strict_policy_and_assets_are_kept(stack, static) -> None:
    async with served(stack) as client:
        page = await client.get("/panel/")
        assert (page.status_code, page.text) == (200, INDEX)
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-cache"
        asset = await client.get("/panel/assets/index-abc.js")
        assert asset.headers["content-type"].startswith("text/javascript")
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        icon = await client.get("/panel/icon.svg")
        assert icon.headers["cache-control"] == "no-cache"
        same = await client.get("/panel/", headers={"If-None-Match": page.headers["etag"]})
        assert same.status_code == 304
        missing = await client.get("/panel/assets/gone-123.js")
        assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-cache")
        assert all(guarded(answer) for answer in (page, asset, icon, same, missing))
        sent = await client.get("/panel")
        assert (sent.status_code, sent.headers["location"]) == (307, "/panel/")


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "%2e%2e/secret.txt", "assets/..%2f..%2fsecret.txt", "assets", "%00", "assets%00"],
)
async def test_nothing_but_its_files_is_served(stack, static, path) -> None:
    async with served(stack) as client:
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)  # a client would tidy the path up
        writer.write(f"GET /panel/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in answer


async def test_the_page_learns_the_address_and_the_public_key_and_nothing_else(stack, static) -> None:
    async with served(stack) as client:
        answer = await client.get("/panel/config.json")
        assert guarded(answer)
        assert answer.json() == {"url": stack.url, "key": stack.anon_key, "demo": []}
        assert stack.service_role_key not in answer.text


async def test_a_page_that_is_not_built_says_how_to_build_it(stack, static, tmp_path) -> None:
    shutil.rmtree(static)
    async with served(stack) as client:
        page = await client.get("/panel/")
        assert page.status_code == 503
        assert "./scripts/panel" in page.text
        assert guarded(page)
        asset = await client.get("/panel/assets/index-abc.js")
        assert asset.status_code == 404
        assert (await client.get("/healthz")).status_code == 200


def test_the_policy_allows_the_project_and_its_websockets_only() -> None:
    policy = panel.policy("https://abc.supabase.co")
    assert "connect-src 'self' https://abc.supabase.co wss://abc.supabase.co;" in policy
    assert "connect-src 'self' http://127.0.0.1:54321 ws://127.0.0.1:54321;" in panel.policy(
        "http://127.0.0.1:54321/base"
    )


async def test_local_mode_serves_the_page_to_whoever_has_no_key_and_the_api_to_nobody_else(stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:
        config = await client.get("/panel/config.json", headers={"Origin": "https://evil.example"})
        assert config.json() == {"url": stack.url, "key": stack.anon_key, "demo": []}
        assert guarded(config)
        assert "access-control-allow-origin" not in config.headers  # other pages may not read it
        assert guarded(await client.get("/panel/"))
        for path in ("/rest/v1/jobs", "/panels", "/auth/v1/health"):
            assert (await client.get(path)).status_code in {401, 404}, path
        assert (await client.get("/rest/v1/jobs")).status_code == 401


# -- the package -----------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Path]:
    """Build sdist and wheel of a copy of the project, whose page is a small one."""
    source, out = tmp_path / "source", tmp_path / "dist"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "static")
    for name in ("processor", "sql"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    assets = source / "processor/web/static/assets"
    assets.mkdir(parents=True)
    (assets.parent / "index.html").write_text(INDEX)
    (assets / "index-abc.js").write_text("let x")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out), "-t", "sdist", "-t", "wheel"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


async def test_a_wheel_has_the_page_and_serves_it(built, tmp_path) -> None:
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(built["sdist"], unpacked)
    assert next(unpacked.glob("*/processor/web/static/assets/index-abc.js")).is_file()
    site = tmp_path / "site"
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(site)
    dev = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "dev", "--json", "--port", "0", "--no-schema"),
        *("--data-dir", str(tmp_path / "data")),
        cwd=tmp_path,  # not the clone, which would come first
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            line = json.loads(await dev.stdout.readline())
        async with httpx.AsyncClient(trust_env=False) as client:
            page = await client.get(line["panel_url"])
            assert (page.status_code, page.text) == (200, INDEX)
            asset = await client.get(f"{line['panel_url']}assets/index-abc.js")
            assert asset.text == "let x"
    finally:
        dev.terminate()
        await dev.communicate()
    assert dev.returncode == 0


def test_without_node_the_build_says_what_is_missing(tmp_path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [ROOT / "scripts/panel"], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "node 20.19 or newer and npm are needed" in done.stderr
