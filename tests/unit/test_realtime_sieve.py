"""Which changes are stopped before their rows are decoded."""

import struct

import pytest

from processor.local.realtime.pgoutput import Unchanged
from processor.local.realtime.sieve import Sieve
from tests.unit.test_pgoutput_decode import row


def update(*values: str | Unchanged | None) -> bytes:
    return b"U" + struct.pack("!I", 7) + b"N" + row(*values)


def is_(text):
    return lambda value: value == text


PENDING = [(1, is_("pending"))]
MINE = [(0, is_("7")), (1, is_("done"))]


@pytest.mark.parametrize(
    ("subscriptions", "data", "passes"),
    [
        ([PENDING], update("1", "pending"), True),
        ([PENDING], update("1", "done"), False),
        ([PENDING], update("1", None), False),
        ([PENDING, MINE], update("7", "done"), True),
        ([PENDING, MINE], update("8", "done"), False),
        ([PENDING, []], update("8", "done"), True),  # somebody takes everything
        ([], update("8", "done"), False),  # everybody asked for another event
        ([PENDING], update("8", Unchanged.TOAST), True),  # not in the log: perhaps
        ([PENDING], b"U" + struct.pack("!I", 7) + b"K" + row("1", None) + b"N" + row("2", "done"), True),
        ([PENDING], update("8")[:-1], True),  # broken: whoever decodes it says so
    ],
)
def test_only_what_certainly_nobody_wants_is_stopped(subscriptions, data, passes):
    assert Sieve(subscriptions).passes(data) is passes
