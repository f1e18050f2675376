"""``/healthz``, ``/readyz`` and ``/status``: each says why not."""

from collections.abc import Mapping

import httpx
import pytest
from starlette.applications import Starlette

from processor.web.health import routes

WELL: Mapping[str, str | None] = {"heartbeats": None, "claims": None}
STUCK = WELL | {"claims": "a claim has been under way for 61 s"}
AWAY = WELL | {"lease": "no heartbeat gets through"}


@pytest.mark.parametrize(
    ("healthy", "ready", "codes", "why"),
    [
        (WELL, WELL, (200, 200), {}),
        (WELL, AWAY, (200, 503), {"/readyz": "no heartbeat gets through"}),
        (STUCK, STUCK, (503, 503), dict.fromkeys(("/healthz", "/readyz"), STUCK["claims"])),
    ],
    ids=["well", "a restart would not help", "a restart helps"],
)
async def test_what_fails_is_told_with_its_reason_and_nothing_else_is(
    healthy: Mapping[str, str | None],
    ready: Mapping[str, str | None],
    codes: tuple[int, int],
    why: dict[str, str],
) -> None:
    app = Starlette(routes=routes(lambda: healthy, lambda: ready, lambda: {"ready": False}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://daemon") as http:
        answers = {path: await http.get(path) for path in ("/healthz", "/readyz")}
        assert (await http.get("/status")).json() == {"ready": False}
    assert tuple(answer.status_code for answer in answers.values()) == codes
    for path, answer in answers.items():
        told = answer.json()
        assert told["status"] == ("failing" if path in why else "ok")
        assert {reason for reason in told["checks"].values() if reason != "ok"} == (
            {why[path]} if path in why else set()
        )
