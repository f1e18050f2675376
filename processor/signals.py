"""The signals of a daemon, from the first to the last moment of its life."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def heard(
    *, stop: Callable[[str], None], reload: Callable[[], None], dump: Callable[[], None]
) -> Iterator[None]:
    """Hear signals in the block; afterwards whoever heard them before hears them again.

    Must be entered in the main thread, with its loop running.

    Args:
        stop: called in the loop with the name of SIGTERM, SIGINT, or SIGHUP if that came because the
            terminal is gone.
        reload: called in the loop at any other SIGHUP.
        dump: called at SIGUSR1, in a thread of its own: it is wanted most when the loop hangs.

    """
    loop = asyncio.get_running_loop()
    terminal = _terminal()

    def hang_up() -> None:
        if terminal is not None and not os.isatty(terminal):
            stop("SIGHUP")
        else:
            reload()

    def show(*_: Any) -> None:
        threading.Thread(target=dump, name="dump", daemon=True).start()

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, show)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminal() -> int | None:
    """Return the descriptor of the terminal that the log is written to, if there is one."""
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):  # somebody has put something else in its place
        return None
    return descriptor if os.isatty(descriptor) else None
