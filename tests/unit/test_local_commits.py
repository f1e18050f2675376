"""What REST tells Realtime of transactions that have ended."""

import asyncio

from processor.local.context import REMEMBERED, Commits

LONG = 30.0


def test_what_was_seen_to_end_is_known_by_its_32_bits() -> None:
    commits = Commits()
    commits.note(7 * 2**32 + 5)
    assert commits.unknown({5, 6}) == {6}


def test_only_the_latest_are_remembered() -> None:
    commits = Commits()
    for xid in range(REMEMBERED + 1):
        commits.note(xid)
    assert commits.unknown({0, 1, REMEMBERED}) == {0}


async def test_who_reads_of_a_commit_waits_for_the_call_that_made_it() -> None:
    commits = Commits()
    with commits.awaited():
        reader = asyncio.create_task(commits.until_known({5}, LONG), name="reader")
        await asyncio.sleep(0)
        with commits.awaited():  # another call, which ends first
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reader.done()
        commits.note(5)
    async with asyncio.timeout(LONG / 2):
        await reader
    assert not commits.unknown({5})


async def test_nobody_waits_for_commits_that_no_call_made() -> None:
    commits = Commits()
    async with asyncio.timeout(LONG / 2):
        await commits.until_known({5}, LONG)
        with commits.awaited():
            reader = asyncio.create_task(commits.until_known({5}, LONG), name="reader")
            await asyncio.sleep(0)
        await reader  # the only call has ended, and was not the one
    assert commits.unknown({5}) == {5}


async def test_a_call_that_takes_long_holds_up_nobody_for_long() -> None:
    commits = Commits()
    with commits.awaited():
        async with asyncio.timeout(LONG):
            await commits.until_known({5}, 0.01)
    assert commits.unknown({5}) == {5}
