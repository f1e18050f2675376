"""Bad input over REST: a clear error with the value in it, and nothing has changed."""

from __future__ import annotations

import pytest
from postgrest.exceptions import APIError

BAD = {
    "an unknown kind": ({"kind": "nonsense"}, "JQ001", "nonsense"),
    "an unknown queue": ({"queue": "nowhere"}, "JQ002", "nowhere"),
    "a payload that is an array": ({"payload": [1]}, "JQ003", "array"),
    "a payload that is null": ({"payload": None}, "JQ003", "null"),
    "a payload over 256 KiB": ({"payload": {"x": "y" * 262_144}}, "JQ004", "at most 262144"),
    "duplicate item keys": ({"items": ["a", "b", "a"]}, "JQ005", "duplicate item key: a"),
    "more than 10,000 items": ({"items": [str(n) for n in range(10_001)]}, "JQ005", "10001"),
    "items that are no array": ({"items": {"a": 1}}, "JQ005", "object"),
    "an item that is a number": ({"items": ["a", 7]}, "JQ005", "item 2 is not valid: 7"),
    "an item with an empty key": ({"items": [""]}, "JQ005", "item 1"),
    "no items where the price is per item": ({"items": None}, "JQ005", "priced per item"),
    "an absurd priority": ({"priority": 1_000_000}, "JQ006", "priority is 1000000"),
    "no attempts": ({"max_attempts": 0}, "JQ006", "max_attempts is 0"),
    "a negative timeout": ({"timeout_seconds": -1}, "JQ006", "timeout_seconds is -1"),
    "a time that never comes": ({"run_at": "infinity"}, "JQ006", "infinity"),
    "a time in a thousand years": ({"run_at": "3026-01-01T00:00:00Z"}, "JQ006", "3026"),
    "an empty idempotency key": ({"idempotency_key": ""}, "JQ006", "idempotency_key"),
    "a number too large for its column": ({"priority": 10**12}, "22003", "out of range"),
}
"""What is asked for, the code, and words of the message."""


@pytest.fixture
async def open_shop(shop):
    await shop.daemon()
    return shop


async def test_every_bad_input_is_refused_with_the_value_and_changes_nothing(open_shop, admin):
    counts = (
        "select (select count(*) from jobs where queue = $1), "
        "(select count(*) from job_items i join jobs j on j.id = i.job_id where j.queue = $1), "
        "(select count(*) from job_kinds), (select count(*) from job_queues)"
    )
    before = await admin.fetchrow(counts, open_shop.queue)
    good = {"kind": f"{open_shop.queue}.pack", "payload": {}, "items": ["a"]}
    for name, (bad, code, words) in BAD.items():
        with pytest.raises(APIError) as refused:
            await open_shop.service.rpc("create_job", good | bad).execute()
        assert refused.value.code == code, f"{name}: {refused.value}"
        assert words in (refused.value.message or ""), f"{name}: {refused.value}"
        assert len(str(refused.value)) < 1000, f"{name}: the error repeats the input"
    assert await admin.fetchrow(counts, open_shop.queue) == before
    # and what all of these were one step from is accepted
    await open_shop.service.rpc("create_job", good).execute()


async def test_a_payload_the_handler_does_not_understand_fails_at_once_and_is_refunded(open_shop, new_user):
    user = await new_user(credits=10)
    job = await open_shop.create("pack", {"seconds": -1}, by=user, items=["a"])

    await open_shop.daemons[0].event("job.finished", job_id=job["id"])
    row = await open_shop.job(job["id"])
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "INVALID_PAYLOAD", 1)
    assert "seconds" in row["error_message"]
    assert (row["credits_refunded"], row["credits_captured"]) == (2, 0)
