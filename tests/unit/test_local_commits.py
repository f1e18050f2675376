"""What REST tells Realtime of transactions that have ended."""

from processor.local.context import REMEMBERED, Commits


def test_what_was_seen_to_end_is_known_by_its_32_bits() -> None:
    commits = Commits()
    commits.note(7 * 2**32 + 5)
    assert commits.unknown({5, 6}) == {6}


def test_only_the_latest_are_remembered() -> None:
    commits = Commits()
    for xid in range(REMEMBERED + 1):
        commits.note(xid)
    assert commits.unknown({0, 1, REMEMBERED}) == {0}
