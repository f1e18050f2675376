"""A fleet for each test, or a visible reason why there can be none here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.machines import Fleet, need_sshd


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need_sshd()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # what Debian's sshd locks itself into; others need none
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()
