"""A daemon whose key is a token of a few seconds, in a file that somebody renews, or forgets to."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.daemons import Daemon


class Keyring:
    """A file with a token of role job_processor, and daemons that read it."""

    def __init__(self, stack: Any, service: Any, file: Path) -> None:
        self._stack = stack
        self._service = service
        self._file = file
        self.expires_at = 0.0

    def renew(self, life: int) -> None:
        """Write the next token, as whoever issues tokens should: all at once."""
        now = int(time.time())
        self.expires_at = now + life
        claims = {"role": "job_processor", "iat": now, "exp": now + life, "jti": uuid4().hex}
        aside = self._file.with_suffix(".new")
        aside.write_text(jwt.encode(claims, self._stack.jwt_secret, algorithm="HS256") + "\n")
        aside.chmod(0o600)
        os.replace(aside, self._file)  # noqa: PTH105  atomic

    @asynccontextmanager
    async def renewing(self, life: int, every: float) -> AsyncIterator[None]:
        """Write a token of this life again and again, while the block runs."""

        async def renew_forever() -> None:
            while True:
                await asyncio.sleep(every)
                self.renew(life)

        self.renew(life)
        task = asyncio.create_task(renew_forever(), name="renewals")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def until_expired(self, moment: float) -> None:
        """Wait until a token that ends then has ended, for a server whose clock is this one."""
        await asyncio.sleep(max(0.0, moment + 0.3 - time.time()))

    async def start(self, queue: str, **environment: str) -> Daemon:
        return await Daemon.start(
            "tests.apps.tokens:app",
            {
                "SUPABASE_URL": self._stack.url,
                "SUPABASE_SERVICE_ROLE_KEY_FILE": str(self._file),
                "SUPABASE_ANON_KEY": self._stack.anon_key,
                "TEST_PREFIX": queue,
                **environment,
            },
        )

    async def create(self, queue: str, kind: str = "look") -> str:
        return (await self._service.rpc("create_job", {"kind": f"{queue}.{kind}"}).execute()).data["id"]

    async def job(self, job_id: str) -> Any:
        row = (await self._service.table("jobs").select("*").eq("id", job_id).single().execute()).data
        return row["status"], row["result"], row["attempt"]


@pytest.fixture
def keyring(stack: Any, service: Any, tmp_path: Path) -> Keyring:
    return Keyring(stack, service, tmp_path / "key")


@pytest.mark.timeout(120)
async def test_daemons_outlive_three_tokens_on_one_connection_and_lose_no_job(keyring: Keyring, eventually):
    # heartbeats every two seconds: each of them needs a token that is valid, and its echo a channel that is
    short = {"PROCESSOR_LEASE_SECONDS": "6"}
    queues = {feed: f"q{uuid4().hex[:8]}" for feed in ("postgres_changes", "broadcast")}
    daemons: list[Daemon] = []
    async with keyring.renewing(life=10, every=2):
        for feed, queue in queues.items():
            daemons.append(await keyring.start(queue, PROCESSOR_FEED=feed, **short))
        try:
            for daemon in daemons:
                await daemon.ready()
            for number in (1, 2, 3):
                for daemon, queue in zip(daemons, queues.values(), strict=True):
                    await eventually(lambda d=daemon: len(d.all("credential.renewed")) >= number, within=30)  # noqa: B023  used at once
                    for kind in ("look", "look_aside"):
                        job_id = await keyring.create(queue, kind)
                        await daemon.event("job.finished", job_id=job_id, within=40)
                        # the handler asked the API with a client that was made for an older token
                        assert await keyring.job(job_id) == ("completed", 1, 1)
            await asyncio.sleep(
                3
            )  # the third token that was replaced ends, too: a fifth of its life was left
            for daemon, queue in zip(daemons, queues.values(), strict=True):
                await daemon.event("job.finished", job_id=await keyring.create(queue), within=40)
            for daemon in daemons:
                assert [(e["mode"], e["incarnation"]) for e in daemon.all("feed.mode")] == [("realtime", 1)]
                for bad in ("feed.ended", "lease.heartbeat_failed", "credential.expired", "rpc.repeated"):
                    assert not daemon.all(bad), daemon.log()
        finally:
            for daemon in daemons:
                await daemon.close()


@pytest.mark.timeout(120)
async def test_a_token_that_nobody_renews_is_told_in_time_and_a_late_one_mends_all(
    keyring: Keyring, eventually
):
    queue = f"q{uuid4().hex[:8]}"
    keyring.renew(16)
    daemon = await keyring.start(queue, PROCESSOR_HTTP_PORT="0", PROCESSOR_POLL_SECONDS="0.5")
    try:
        url = (await (await daemon.ready()).event("daemon.listening"))["url"]
        warned = await daemon.event("credential.not_renewed", within=30)
        assert warned["expires_in_s"] > 0
        await keyring.until_expired(keyring.expires_at)
        await daemon.event("credential.expired")
        gone = await daemon.event("feed.mode", mode="polling")
        assert "Token has expired" in gone["reason"]
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            answer = await http.get("/readyz")
            assert answer.status_code == 503
            assert "expired" in answer.json()["checks"]["credential"]
            assert (await http.get("/healthz")).status_code == 200

            waiting = await keyring.create(queue)
            assert (await keyring.job(waiting))[0] == "pending"
            keyring.renew(60)
            await daemon.event("job.finished", job_id=waiting, within=40)
            await daemon.event("feed.mode", mode="realtime", where=lambda e: e["incarnation"] > 1, within=30)

            async def ready() -> bool:
                return (await http.get("/readyz")).status_code == 200

            await eventually(ready, within=30)
    finally:
        await daemon.close()
