"""What a spool file says, whatever has become of it on the disk."""

import math
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.records import Record, forgetting, keeping, read

PROJECT = "https://abcdefgh.supabase.co"
WORKER = uuid4()


def record(number: int, **body: object) -> Record:
    return Record(number, WORKER, "job", UUID(int=number), 1, 1000.0 + number, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.builds(
    Record,
    number=st.integers(1, 2**40),
    worker_id=st.uuids(),
    pile=st.sampled_from(["item", "job", "release"]),
    job_id=st.uuids(),
    attempt=st.integers(1, 2**31),
    at=st.floats(0, 1e11).filter(math.isfinite),
    body=st.dictionaries(st.text(), json_values, max_size=3),
)


WRITTEN = [record(number, result={"text": "ä\n\\", "n": [number, None, 1.5]}) for number in range(1, 7)]
FILE = b"".join([*(keeping(one, PROJECT) for one in WRITTEN), forgetting([2, 5])])


@settings(max_examples=50)
@given(written=st.lists(records, max_size=4, unique_by=lambda one: one.number))
def test_what_was_written_is_read(written: list[Record]) -> None:
    found = read(b"".join(keeping(one, PROJECT) for one in written), PROJECT)
    assert (found.records, found.broken, found.torn, found.strange) == (written, 0, False, None)


@settings(max_examples=500)
@given(
    flips=st.lists(st.integers(0, len(FILE) * 8 - 1), max_size=5),
    start=st.sampled_from([0, 0, 0, 1, 200]),
    end=st.integers(0, len(FILE)),
)
def test_no_damage_raises_or_makes_up_an_outcome(flips: list[int], start: int, end: int) -> None:
    data = bytearray(FILE)
    for place in flips:
        data[place // 8] ^= 1 << place % 8
    found = read(bytes(data[start:end]), PROJECT)
    assert all(one in WRITTEN for one in found.records)
    assert found.strange is None


@given(st.binary())
def test_any_other_file_has_no_outcome_in_it(data: bytes) -> None:
    assert read(data, PROJECT).records == []


def test_a_line_cut_short_is_told_from_one_that_was_changed() -> None:
    lines = [keeping(record(number, result="x"), PROJECT) for number in (1, 2, 3)]
    torn = read(b"".join(lines)[:-5], PROJECT)
    assert ([one.number for one in torn.records], torn.broken, torn.torn) == ([1, 2], 0, True)
    changed = read(lines[0] + lines[1].replace(b'"x"', b'"y"') + lines[2], PROJECT)
    assert ([one.number for one in changed.records], changed.broken, changed.torn) == ([1, 3], 1, False)


def test_what_is_forgotten_is_not_offered_again() -> None:
    lines = [keeping(record(1), PROJECT), keeping(record(2), PROJECT), forgetting([1])]
    assert [one.number for one in read(b"".join(lines), PROJECT).records] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (keeping(record(1), "https://other.supabase.co"), "it belongs to https://other.supabase.co"),
        (keeping(record(1), PROJECT).replace(b'"v":1', b'"v":2'), None),
    ],
)
def test_a_file_of_another_project_is_strange_and_one_that_was_changed_is_not(
    line: bytes, reason: str | None
) -> None:
    assert read(line, PROJECT).strange == reason


def test_a_file_of_a_newer_version_is_strange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.records._FORMAT", 2)
    line = keeping(record(1), PROJECT)
    monkeypatch.undo()
    found = read(line, PROJECT)
    assert found.records == []
    assert found.strange == "it is of format 2, and this version knows 1"
