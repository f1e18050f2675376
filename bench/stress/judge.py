"""Compare what was acknowledged with what is there, when all is quiet."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from bench.stress.journal import ENDED, Journal

JOBS = "select id::text, status from public.jobs"
PRUNED = "select id::text, status from stress.pruned"
COMPLETED = "select job_id::text, key from public.job_items where status = 'completed'"
PAID = """
    select job_id::text, sum(amount)::bigint from public.credit_entries where kind = 'capture' group by 1
"""
PRICES = """
    select job_id::text, unit_price from public.credit_holds where per_item
"""
GRANTED = """
    select idempotency_key, owner_id::text, amount from public.credit_entries
    where kind = 'grant' and idempotency_key is not null
"""
UNCOUNTED = "select id::text, children_open from public.jobs where children_open <> 0"
FAULTS = "select problem, owner_id, job_id, expected, found from processor.check_credits() limit 20"


async def judge(connection: asyncpg.Connection, journal: Journal) -> list[str]:
    """Return a line for everything that was promised and is not so."""
    there = dict(map(tuple, await connection.fetch(JOBS)))
    pruned = dict(map(tuple, await connection.fetch(PRUNED)))
    completed = {tuple(row) for row in await connection.fetch(COMPLETED)}
    paid = dict(map(tuple, await connection.fetch(PAID)))
    prices = dict(map(tuple, await connection.fetch(PRICES)))
    granted = {key: (owner, amount) for key, owner, amount in await connection.fetch(GRANTED)}
    known = pruned | there
    wrong: list[str] = []

    def report(what: str, found: Iterable[object]) -> None:
        found = list(found)
        if found:
            wrong.append(f"{what} ({len(found)}): {', '.join(map(str, found[:5]))}")

    report("jobs that were created are gone", sorted(journal.created - known.keys()))
    report("jobs were pruned and are there", sorted(pruned.keys() & there.keys()))
    report(
        "jobs did not end as was told",
        (
            f"{job} as {known.get(job)}, not {told}"
            for job, told in journal.ended.items()
            if known.get(job) != told
        ),
    )
    report("jobs did not end", (f"{job} is {status}" for job, status in known.items() if status not in ENDED))
    report(
        "items that were told to be completed are not",
        (
            f"{key} of {job}"
            for job, keys in journal.captured.items()
            if job in there
            for key in keys
            if (job, key) not in completed
        ),
    )
    report(
        "items that were told to be completed are not paid",
        (
            f"{job}: {paid.get(job, 0)} for {len(keys)} at {prices[job]}"
            for job, keys in journal.captured.items()
            if job in prices and paid.get(job, 0) < len(keys) * prices[job]
        ),
    )
    report(
        "grants that were told are not there",
        (
            f"{key}: {granted.get(key)}, not {told}"
            for key, told in journal.grants.items()
            if granted.get(key) != told
        ),
    )
    report("parents count children that have ended as open", map(tuple, await connection.fetch(UNCOUNTED)))
    report("check_credits()", (dict(row) for row in await connection.fetch(FAULTS)))
    return wrong
