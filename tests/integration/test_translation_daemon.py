"""The translation example whole: a user's order, a real daemon, an endpoint that does not always behave."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from examples.translation.card import Card
from tests.conftest import NewUser, RunningStack
from tests.daemons import Daemon
from tests.integration.translation_endpoint import (
    Endpoint,
    endpoint,
    internal_error,
    prose,
    stall,
    too_many,
    wrong_key,
)

CARD = Card.model_validate_json(Path("examples/translation/cards/sourdough.json").read_text()).model_dump()


@pytest.fixture
async def upstream() -> AsyncIterator[Endpoint]:
    async with endpoint() as served:
        yield served


@pytest.fixture
async def daemon(stack: RunningStack, admin: asyncpg.Connection, upstream: Endpoint) -> AsyncIterator[Daemon]:
    running = await Daemon.start(
        "examples.translation.app:app",
        {
            "SUPABASE_URL": stack.url,
            "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key,
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": upstream.url,
            "OPENAI_MODEL": "test-model",
            "OPENAI_TIMEOUT_SECONDS": "0.5",
        },
    )
    try:
        await running.ready()
        await admin.execute(
            "update public.job_queues set retry_delays = '{100 milliseconds}' where name = 'translation'"
        )
        yield running
    finally:
        await running.close()


async def order(user: NewUser, payload: dict[str, Any], *languages: str) -> str:
    arguments = {"kind": "translate_card", "payload": payload, "items": languages, "max_attempts": 2}
    return (await user.rest.rpc("create_job", arguments).execute()).data["id"]


async def ended(user: NewUser, job_id: str, eventually: Callable[..., Awaitable[Any]]) -> dict[str, Any]:
    """Return the job's row, as the user sees it, when the job has ended."""

    async def finished() -> dict[str, Any] | None:
        (row,) = (await user.rest.table("jobs").select("*").eq("id", job_id).execute()).data
        return row if row["finished_at"] else None

    return await eventually(finished, within=30)


async def test_only_what_was_translated_is_paid_and_every_failure_has_its_code(
    daemon: Daemon,
    upstream: Endpoint,
    new_user: Callable[..., Awaitable[NewUser]],
    eventually: Callable[..., Awaitable[Any]],
):
    upstream.plan = {
        "French": [too_many("1")],
        "Spanish": [internal_error, internal_error],
        "Italian": [prose, prose],
        "Swedish": [stall, stall],
        "Polish": [wrong_key],
    }
    user = await new_user(credits=20)
    job_id = await order(user, CARD, "de", "fr", "es", "it", "sv", "pl", "tlh")
    job = await ended(user, job_id, eventually)
    rows = (await user.rest.table("job_items").select("*").eq("job_id", job_id).execute()).data
    items = {row["key"]: row for row in rows}

    assert {key: (row["status"], row["error_code"], row["credits"]) for key, row in items.items()} == {
        "de": ("completed", None, 2),
        "fr": ("completed", None, 2),
        "es": ("failed", "UPSTREAM_UNAVAILABLE", 0),
        "it": ("failed", "BAD_UPSTREAM_ANSWER", 0),
        "sv": ("failed", "UPSTREAM_TIMEOUT", 0),
        "pl": ("failed", "AUTH_FAILED", 0),
        "tlh": ("failed", "UNSUPPORTED_LANGUAGE", 0),
    }
    assert items["fr"]["result"]["sections"][3]["heading"] == "French: Bake"
    # what was done, and what cannot succeed, is not asked for again
    asked = {language: upstream.asked(language) for language in ("German", "French", "Spanish", "Polish")}
    assert asked == {"German": 1, "French": 2, "Spanish": 2, "Polish": 1}

    assert (job["status"], job["attempt"], job["result"]) == ("partial", 2, {"provider": "test-model"})
    assert (job["credits_held"], job["credits_captured"], job["credits_refunded"]) == (0, 4, 10)
    (account,) = (await user.rest.table("credit_accounts").select("*").execute()).data
    assert (account["available"], account["held"], account["spent"]) == (16, 0, 4)
    assert "sk-test" not in daemon.log()


async def test_the_wait_that_an_endpoint_asks_for_is_kept(
    daemon: Daemon,
    upstream: Endpoint,
    new_user: Callable[..., Awaitable[NewUser]],
    eventually: Callable[..., Awaitable[Any]],
):
    upstream.plan = {"French": [too_many("2")]}
    user = await new_user(credits=2)
    job_id = await order(user, CARD, "fr")
    job = await ended(user, job_id, eventually)
    assert (job["status"], job["credits_captured"]) == ("completed", 2)
    first, second = (event["started_at"] for event in daemon.all("job.started", job_id=job_id))
    assert second - first >= 2.0


async def test_a_card_that_is_none_costs_nothing_and_bothers_nobody(
    daemon: Daemon,
    upstream: Endpoint,
    new_user: Callable[..., Awaitable[NewUser]],
    eventually: Callable[..., Awaitable[Any]],
):
    user = await new_user(credits=4)
    job = await ended(user, await order(user, {"title": "no sections"}, "de", "fr"), eventually)
    assert (job["status"], job["error_code"], job["attempt"]) == ("failed", "INVALID_PAYLOAD", 1)
    assert "sections" in job["error_message"]
    assert (job["credits_captured"], job["credits_refunded"]) == (0, 4)
    assert upstream.questions == []
