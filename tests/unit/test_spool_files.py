"""Spool files on a disk that fails, and in a directory that others use."""

import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from processor.records import Record
from processor.spool import Spool, default_directory, files, trouble

PROJECT = "https://abcdefgh.supabase.co"
WORKER = uuid4()


def record(number: int, size: int = 10) -> Record:
    return Record(number, WORKER, "job", UUID(int=number), 1, 1000.0, {"result": "x" * size})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


@pytest.fixture
def spool(directory: Path):
    made = Spool(directory, WORKER, PROJECT, max_bytes=100_000)
    yield made
    made.close()


def heirloom(directory: Path) -> list[int]:
    """Return the numbers of the outcomes that an heir would find there."""
    found: list[int] = []
    for path in files(directory):
        adopted = Spool.adopt(path, PROJECT)
        assert adopted is not None
        spool, contents = adopted
        found += [one.number for one in contents.records]
        spool.close()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_is_made_before_there_is_something_to_keep(spool: Spool, directory: Path) -> None:
    spool.write([], [])
    assert not directory.exists()


def test_only_the_owner_may_read_it(spool: Spool, directory: Path) -> None:
    spool.write([record(1)], [])
    (path,) = files(directory)
    assert (mode(path), mode(directory)) == (0o600, 0o700)
    assert str(WORKER) in path.name


def test_a_living_owner_keeps_its_file_and_a_dead_one_has_an_heir(spool: Spool, directory: Path) -> None:
    spool.write([record(1), record(2)], [])
    (path,) = files(directory)
    assert Spool.adopt(path, PROJECT) is None
    spool.close()
    assert heirloom(directory) == [1, 2]


def test_what_is_settled_is_forgotten_also_by_heirs(spool: Spool, directory: Path) -> None:
    spool.write([record(1), record(2), record(3)], [])
    spool.write([record(4)], [1, 3])
    assert [number for number in range(5) if spool.keeps(number)] == [2, 4]
    spool.close()
    assert heirloom(directory) == [2, 4]


def test_an_heir_can_forget_and_remove(spool: Spool, directory: Path) -> None:
    spool.write([record(1), record(2)], [])
    spool.close()
    (path,) = files(directory)
    with path.open("ab") as file:
        file.write(b"half a li")
    heir, contents = Spool.adopt(path, PROJECT) or pytest.fail("it has no owner")
    assert (contents.torn, heir.worker_id) == (True, WORKER)
    heir.write([], [1])
    heir.close()
    assert heirloom(directory) == [2]
    heir, _ = Spool.adopt(path, PROJECT) or pytest.fail("it has no owner")
    heir.write([], [2])
    heir.discard()
    assert list(directory.iterdir()) == []


def test_a_file_with_something_unreadable_in_it_is_put_aside(spool: Spool, directory: Path) -> None:
    spool.write([record(1), record(2), record(3)], [])
    spool.close()
    (path,) = files(directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    heir, contents = Spool.adopt(path, PROJECT) or pytest.fail("it has no owner")
    assert ([one.number for one in contents.records], contents.broken) == ([1, 3], 1)
    heir.discard()
    assert [left.suffix for left in directory.iterdir()] == [".corrupt"]
    assert (directory / f"{path.stem}.corrupt").read_bytes() == data


def test_what_does_not_fit_is_not_kept_and_there_is_room_again_later(directory: Path) -> None:
    spool = Spool(directory, WORKER, PROJECT, max_bytes=1000)
    spool.write([record(1, 100), record(2, 2000), record(3, 100)], [])
    assert (spool.full, [n for n in (1, 2, 3) if spool.keeps(n)]) == (True, [1])
    spool.discard()
    spool.write([record(3, 100)], [])
    assert (spool.full, spool.keeps(3), spool.depth.records) == (False, True, 1)
    spool.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every write and fsync, in order, and of what."""
    seen: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(fd: int, *arguments: object) -> object:
            answer = real(fd, *arguments)
            seen.append(f"{name} {'directory' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'}")
            return answer

        monkeypatch.setattr(os, name, watched)

    watch("pwrite")
    watch("fsync")
    return seen


def test_the_file_and_its_directories_are_on_the_disk_before_an_outcome_counts(
    spool: Spool, calls: list[str]
) -> None:
    spool.write([record(1)], [])
    # the directory, and the two above it that had to be made, whose names stand in their parents
    assert calls == ["pwrite file", "fsync file", *["fsync directory"] * 3]
    calls.clear()
    spool.write([record(2)], [])
    assert calls == ["pwrite file", "fsync file"]
    calls.clear()
    spool.write([], [1])
    assert calls == ["pwrite file"]


Fault = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Make the next calls of a function of ``os`` fail."""

    def make(name: str, number: int, times: int = 1) -> None:
        real = getattr(os, name)
        left = [times]

        def failing(*arguments: object) -> object:
            if left[0] > 0:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        monkeypatch.setattr(os, name, failing)

    return make


def test_a_disk_that_is_full_costs_only_what_is_new(spool: Spool, directory: Path, fail: Fault) -> None:
    spool.write([record(1)], [])
    fail("pwrite", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        spool.write([record(2)], [])
    assert (spool.keeps(1), spool.keeps(2)) == (True, False)
    spool.write([record(2)], [])
    spool.close()
    assert heirloom(directory) == [1, 2]


def test_a_full_disk_does_not_cost_the_file_that_is_no_longer_trusted(
    spool: Spool, directory: Path, fail: Fault
) -> None:
    spool.write([record(1)], [])
    before = files(directory)
    for name, number in (("fsync", errno.EIO), ("pwrite", errno.ENOSPC)):
        fail(name, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            spool.write([record(1), record(2)], [])
        assert files(directory) == before
    spool.write([record(1), record(2)], [])
    spool.close()
    assert heirloom(directory) == [1, 2]


def test_no_room_for_a_note_of_what_is_settled_is_no_failure(
    spool: Spool, directory: Path, fail: Fault
) -> None:
    spool.write([record(1), record(2)], [])
    fail("pwrite", errno.ENOSPC)
    spool.write([], [1])
    assert not spool.keeps(1)
    spool.close()
    assert heirloom(directory) == [1, 2]  # it will be offered again, and found stale


@pytest.mark.parametrize("times", [1, 3])
def test_after_a_failed_fsync_nothing_counts_until_another_file_has_it_all(
    spool: Spool, directory: Path, fail: Fault, times: int
) -> None:
    spool.write([record(1)], [])
    (first,) = files(directory)
    fail("fsync", errno.EIO, times)
    for _ in range(times):
        with pytest.raises(OSError, match="Input/output error"):
            spool.write([record(2)], [])
        assert not spool.keeps(1)
        assert not spool.keeps(2)
        assert first.exists()
    spool.write([record(1), record(2)], [])
    assert first not in files(directory)
    spool.close()
    assert heirloom(directory) == [1, 2]


def test_a_file_that_somebody_deleted_keeps_nothing(spool: Spool, directory: Path) -> None:
    spool.write([record(1)], [])
    files(directory)[0].unlink()
    spool.write([record(2)], [])
    assert (spool.keeps(1), spool.keeps(2)) == (False, True)
    spool.write([record(1)], [])
    spool.close()
    assert heirloom(directory) == [2, 1]


def test_a_file_that_others_put_there_is_not_believed(
    spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.write([record(1)], [])
    spool.close()
    (path,) = files(directory)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    other, contents = Spool.adopt(path, PROJECT) or pytest.fail("it has no owner")
    assert (contents.records, contents.strange) == ([], f"it belongs to user {path.stat().st_uid}")
    other.close()


def test_a_link_is_not_followed(spool: Spool, directory: Path, tmp_path: Path) -> None:
    spool.write([record(1)], [])
    (path,) = files(directory)
    link = tmp_path / "link.spool"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        Spool.adopt(link, PROJECT)


def test_a_directory_that_cannot_be_used_is_found_out(tmp_path: Path) -> None:
    assert trouble(tmp_path / "new") is None
    (tmp_path / "file").touch()
    assert isinstance(trouble(tmp_path / "file" / "spool"), NotADirectoryError)


def test_state_belongs_to_the_service_else_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/jobs:/var/lib/more")
    assert default_directory() == Path("/var/lib/jobs")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_directory() == Path("/state/supabase-job-processor")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/jobs")
    assert default_directory() == Path("/home/jobs/.local/state/supabase-job-processor")


FULL_DISK = """
    import subprocess, sys
    from pathlib import Path
    from uuid import UUID, uuid4
    from processor.records import Record
    from processor.spool import Spool, files

    place = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    spool = Spool(place, uuid4(), "p", max_bytes=1_000_000)
    record = lambda n: Record(n, spool.worker_id, "job", UUID(int=n), 1, 0.0, {"result": "x" * 20_000})
    number = 0
    try:
        while True:
            number += 1
            spool.write([record(number)], [])
    except OSError as error:
        print(error.strerror, "at", number)
    (place / files(place)[0].name).stat()
    spool.close()
    heir, contents = Spool.adopt(files(place)[0], "p")
    print([one.number for one in contents.records], contents.broken, contents.torn)
"""


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk of its own")
    script = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    said = subprocess.run([*private, *script], check=True, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["No space left on device at 4", "[1, 2, 3] 0 False"]
