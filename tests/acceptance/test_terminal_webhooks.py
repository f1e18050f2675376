"""Webhooks at a terminal: an endpoint from its first secret to its end, without a daemon that delivers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from tests.acceptance.terminal import Terminal

HOOK = "https://crm.example/hook"


@pytest.fixture
def terminal(stack) -> Terminal:
    return Terminal(stack.url, stack.service_role_key)


@pytest.fixture
async def name(shop, service) -> AsyncIterator[str]:
    """Give a name for an endpoint, which is gone afterwards."""
    yield shop.queue
    await service.table("webhook_endpoints").delete().eq("name", shop.queue).execute()


async def test_an_endpoint_is_added_shown_rotated_disabled_and_removed(shop, terminal, name):
    add = ("webhooks", "add", name, HOOK, "--queue", shop.queue)
    (
        added,
        again,
        plain,
        listed,
        shown,
        rotated,
        rotated_table,
        disabled,
        table,
        enabled,
        removed,
        gone,
    ) = await terminal.session(
        (*add, "--event", "job.completed", "--event", "job.failed", "--rate-limit", "60", "--json"),
        add,
        ("webhooks", "add", name + "-http", "http://127.0.0.1/hook"),
        ("webhooks", "list", "--json"),
        ("webhooks", "show", name),
        ("webhooks", "rotate", name, "--json"),
        ("webhooks", "rotate", name, "--overlap", "0"),
        ("webhooks", "disable", name),
        ("webhooks", "list"),
        ("webhooks", "enable", name),
        ("webhooks", "remove", name),
        ("webhooks", "show", name),
    )
    secret = added.json["secret"]
    assert (secret.startswith("whsec_"), added.json["events"]) == (True, ["job.completed", "job.failed"])
    assert (again.code, f"there is a webhook {name} already" in again.err) == (2, True)
    assert (plain.code, "set allow_http" in plain.err) == (2, True)
    (row,) = [row for row in listed.json if row["name"] == name]
    assert (row["state"], row["rate_limit"], row["queues"], row["secrets"]) == ("new", 60, [shop.queue], 1)
    assert f"  wants: job.completed, job.failed; queues {shop.queue}\n" in shown.out
    assert "  at most: 60 in 60 s\n" in shown.out
    new = rotated.json["secret"]
    assert new != secret
    assert rotated_table.out.startswith(f"{name} has a new secret, the old one is out\nwhsec_")
    assert "shown this once" in rotated_table.out
    assert disabled.out == f"{name} is disabled: what waits for it is given up\n"
    assert [line.split()[1] for line in table.out.splitlines() if line.startswith(name)] == ["disabled"]
    assert enabled.out == f"{name} is told again\n"
    assert removed.out == f"{name} is removed\n"
    assert (gone.code, "processor webhooks list" in gone.err) == (2, True)
    told = [said.out + said.err for said in (listed, shown, disabled, table, enabled, removed, gone)]
    assert not [said for said in told if secret in said or new in said]


async def test_deliveries_are_listed_page_by_page_and_redelivered(shop, terminal, name):
    await shop.daemon()
    job = await shop.create("greet", {"name": "Ann"}, delay_seconds=3600)
    added, tried, cancelled, listed, page, failed, waiting, nobody, unknown = await terminal.session(
        ("webhooks", "add", name, HOOK, "--queue", shop.queue),
        ("webhooks", "test", name, "--json"),
        ("jobs", "cancel", job["id"]),
        ("webhooks", "deliveries", name, "--json"),
        ("webhooks", "deliveries", name, "--limit", "1"),
        ("webhooks", "deliveries", name, "--status", "failed"),
        ("webhooks", "show", name),
        ("webhooks", "deliveries", "no-such-webhook"),
        ("webhooks", "redeliver", str(uuid4())),
    )
    assert (added.code, cancelled.code) == (0, 0), added.err + cancelled.err
    first, second = listed.json
    assert (first["event"], first["subject_id"], first["status"]) == ("job.cancelled", job["id"], "pending")
    assert (second["event"], second["job_id"]) == ("webhook.test", tried.json["id"])
    assert f"older ones: --before {first['job_id']}" in page.out
    assert failed.out == "no deliveries\n"
    assert "  waiting: 2, the oldest for " in waiting.out
    assert (nobody.code, "processor webhooks list" in nobody.err) == (2, True)
    assert (unknown.code, "delivery not found" in unknown.err) == (2, True)

    waits, ended, repeated = await terminal.session(
        ("webhooks", "redeliver", first["job_id"]),
        ("jobs", "cancel", first["job_id"]),
        ("webhooks", "redeliver", first["job_id"], "--json"),
    )
    assert waits.out == f"{first['job_id']} pending\n", "one that is on its way is left alone"
    assert ended.code == 0, ended.err
    assert (repeated.json["retry_of"], repeated.json["status"]) == (first["job_id"], "pending")
    (last, *_) = (await terminal.run("webhooks", "deliveries", name, "--json")).json
    assert (last["job_id"], last["message_id"]) == (repeated.json["id"], first["message_id"])
